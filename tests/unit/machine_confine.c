/* SPDX-License-Identifier: MIT */
/* tests/unit/machine_confine.c: a real QEMU, as a VM's is started: what it may still do, and that its memory
 * can be tracked all the same. */
#include "machine/qemu.h"
#include "tests/progress.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct vm_spec spec;
static struct qemu qemu;

static void start(void)
{
    struct xm_error e = {0};

    if (!qemu_facts("qemu-system-x86_64", &e)) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    ramchild_need_tracking();
    spec = (struct vm_spec){.name = "confined",
                            .memory = 64 << 20,
                            .vcpus = 1,
                            .qemu = (char *)"qemu-system-x86_64",
                            .machine = (char *)"q35",
                            .accel = (char *)"tcg"};
    qemu_init(&qemu);
    struct qemu_place at = {.host = "hosta", .run_dir = tmpdir_path("")};
    if (qemu_start(&qemu, &spec, &at, &e) < 0)
        fail_msg("%s", e.text);
}

static int teardown(void **state)
{
    qemu_end(&qemu, &spec);
    return tmpdir_remove(state);
}

/* A line of /proc/PID/status, without its name and blanks. */
static const char *status(const char *name)
{
    static char line[200];
    char path[40], format[40];

    snprintf(path, sizeof path, "/proc/%d/status", (int)qemu.pid);
    snprintf(format, sizeof format, "%s: %%190s", name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char one[200] = "";
    while (fgets(line, sizeof line, f) && sscanf(line, format, one) != 1) {
    }
    fclose(f);
    return strcpy(line, one);
}

static void it_has_no_rights(void **state)
{
    (void)state;
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};

    start();
    for (unsigned i = 0; i < 5; i++) {
        if (strspn(status(sets[i]), "0") != 16)
            fail_msg("%s: %s", sets[i], status(sets[i]));
    }
    assert_string_equal(status("NoNewPrivs"), "1");
    assert_string_equal(status("Seccomp"), "2");
    assert_string_equal(status("Umask"), "0077");
}

static void its_sockets_are_nobody_elses(void **state)
{
    (void)state;
    static const char *const files[] = {"qmp.sock", "serial.sock", "qemu.log"};
    struct stat st;

    start();
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(stat(tmpdir_path(files[i]), &st), 0);
        assert_int_equal(st.st_mode & 077, 0);
    }
}

static void its_memory_is_tracked(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct xm_tracker *t = NULL;
    struct xm_bitmap dirty = {0};
    uint64_t pages = 0;

    start();
    if (xm_ram_find(&ram, qemu.pid, &e) < 0 || xm_tracker_open(&t, &ram, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(xm_bitmap_init(&dirty, ram.block[0].size / XM_PAGE), 0);
    if (xm_tracker_collect(t, &dirty, &pages, &e) < 0)
        fail_msg("%s", e.text);
    /* It writes its first pages when it runs: its firmware's. */
    assert_int_equal(qemu_continue(&qemu, LIMIT_HANG_NS, &e), 0);
    uint64_t seen = 0;
    for (struct limit l = limit_start(20); !seen && limit_wait(&l); seen += pages) {
        if (xm_tracker_collect(t, &dirty, &pages, &e) < 0)
            fail_msg("%s", e.text);
    }
    assert_true(seen > 0);
    xm_tracker_close(t);
    xm_bitmap_destroy(&dirty);
    xm_ram_close(&ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_has_no_rights, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(its_sockets_are_nobody_elses, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(its_memory_is_tracked, tmpdir_make, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
