/* SPDX-License-Identifier: MIT */
/* QEMU's own stream is to be small: it is sent while the VM stands still. What would make it large ends the
 * move, and so does what would be in neither QEMU's stream nor ours; the VM is as before.
 *
 * RAM: QEMU from 8.1 on sends RAM of memory-backend-memfd by itself, x-ignore-shared or not, a second time
 * and over what our frames have brought. A VM that an earlier version of ours started on such a QEMU has that
 * RAM. */
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

LAB_GROUP("state", "XM_LAB_VM=none XM_LAB_QEMU_RIGHTS=yes")

static struct small guest;

/* The directory of a QEMU that is new enough. */
static bool find_qemu(char dir[200])
{
    char *out = NULL, *at;
    bool found = false;

    if (sh(&out, 60, "qemu-system-x86_64 --version") == 0 && (at = strstr(out, "version ")) &&
        atoi(at + 8) >= 9) {
        snprintf(dir, 200, "/usr/bin");
        found = true;
    }
    free(out);
    if (found || sh(&out, 900, "tests/debian13.sh --qemu 10") != 0)
        return found;
    snprintf(dir, 200, "%.*s", (int)strcspn(out, "\n"), out);
    free(out);
    return true;
}

/* A QEMU whose RAM is as the earlier version asked for it. */
static void write_wrapper(const char *qemu)
{
    char path[200];
    FILE *f;

    snprintf(path, sizeof(path), "%s/old", lab_run_dir());
    assert_int_equal(sh(NULL, 5, "mkdir -p %s", path), 0);
    snprintf(path, sizeof(path), "%s/old/qemu-system-x86_64", lab_run_dir());
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "#!/bin/bash\na=()\nfor x; do\n  case $x in memory-backend-file,*) x=${x/-file,/-memfd,} "
            "x=${x%%,mem-path=*} ;; esac\n"
            "  a+=(\"$x\")\ndone\nexec %s/qemu-system-x86_64 \"${a[@]}\"\n",
            qemu);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(sh(NULL, 5, "chmod 755 %s", path), 0);
}

static void restart_agents(const char *env)
{
    for (const char *h = "ab"; *h; h++) {
        sh(NULL, 5, "kill -9 $(cat %s/%c/agent.pid)", lab_run_dir(), *h);
        assert_int_equal(sh(NULL, 30, "%s tests/system/lab.sh agent %c", env, *h), 0);
    }
}

/* web1 is started, with these lines at the end of its [vm], and its move to hostb fails. The sentence that
 * it ends with: the caller's. The VM is as before. */
static json_t *must_stay(const char *more)
{
    static const struct small_options usual = {.memory = 64};
    char spec[256];
    json_t *last = NULL;

    snprintf(spec, sizeof(spec), "%s/web1.ini", lab_run_dir());
    small_init(&guest, "web1");
    assert_true(small_write_spec(&guest, spec, &usual));
    assert_int_equal(sh(NULL, 5, "sed -i 's|^name = web1$|&%s|' %s", more, spec), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s", spec), 0);
    assert_null(small_ready(&guest, 'a'));
    assert_int_equal(xmigrate_run("a", 1, &last, "--json --with-storage web1 hostb"), 1);
    vm_must_run_at("a", "web1");
    small_must_be_whole(&guest, "a");
    assert_int_equal(guest.boots, 1);
    host_must_be_clean("b");
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force web1"), 0);
    small_free(&guest);
    return last;
}

static void must_say(json_t *last, const char *sentence)
{
    if (!strstr(string(last, "error"), sentence))
        fail_msg("it ended with: %s", string(last, "error"));
    json_decref(last);
}

static void a_qemu_that_would_send_ram_itself_is_stopped_in_time(void **state)
{
    char qemu[200] = "", env[512];

    (void)state;
    need_lab();
    if (!find_qemu(qemu)) {
        fprintf(stderr, "skipped: no QEMU from 9 on here\n");
        skip();
    }
    write_wrapper(qemu);
    snprintf(env, sizeof(env), "XM_LAB_QEMU_A=%s/old XM_LAB_QEMU_B=%s/old", lab_run_dir(), lab_run_dir());
    restart_agents(env);
    must_say(must_stay(""), " of guest RAM itself");
}

static void device_state_beyond_the_budget_ends_it(void **state)
{
    (void)state;
    need_lab();
    restart_agents("XMIGRATE_FAULT=state-large:1:error");
    must_say(must_stay(""), "longer than its budget");
}

/* Memory in a shared file is not sent by a QEMU that is told x-ignore-shared, and of this we know nothing:
 * the guest would have lost it. */
static void ram_that_nobody_would_send_is_not_left_behind(void **state)
{
    const char *run = lab_run_dir();
    char more[600];

    (void)state;
    need_lab();
    assert_int_equal(
        sh(NULL, 5,
           "cd %s && truncate -s 64M more && cp b/xmigrated.conf before.conf && "
           "printf 'extra = -m slots=1,maxmem=4G\\nextra = -object "
           "memory-backend-file,id=more,size=64M,share=on,"
           "mem-path=%s/more\\nextra = -device pc-dimm,id=dimm,memdev=more\\n' >>b/xmigrated.conf",
           run, run),
        0);
    restart_agents("");
    snprintf(more, sizeof(more),
             "\\nextra = -m\\nextra = slots=1,maxmem=4G\\nextra = -object\\n"
             "extra = memory-backend-file,id=more,size=64M,share=on,mem-path=%s/more\\n"
             "extra = -device\\nextra = pc-dimm,id=dimm,memdev=more",
             run);
    must_say(must_stay(more), "64.00 MiB of RAM that QEMU leaves to whoever shares it");
    assert_int_equal(sh(NULL, 5, "cd %s && mv before.conf b/xmigrated.conf", run), 0);
}

/* It stood still for good, and its sentence was in the shim's log alone. */
static void a_vm_that_does_not_go_on_at_once_is_tried_again(void **state)
{
    (void)state;
    need_lab();
    restart_agents("XMIGRATE_FAULT=switch-stopped:1:error,resume-refused:1:error");
    json_t *last = must_stay("");
    assert_true(truth(last, "vm_safe"));
    assert_string_equal(string(last, "error"), "fault point switch-stopped");
    json_decref(last);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_qemu_that_would_send_ram_itself_is_stopped_in_time),
        cmocka_unit_test(ram_that_nobody_would_send_is_not_left_behind),
        cmocka_unit_test(device_state_beyond_the_budget_ends_it),
        cmocka_unit_test(a_vm_that_does_not_go_on_at_once_is_tried_again),
    };
    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
