/* SPDX-License-Identifier: MIT */
/* tests/unit/machine_logs.c: logs are cut under whoever writes them. */
#include "machine/machine.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static off_t size_of(const char *name)
{
    struct stat st;

    return stat(tmpdir_path(name), &st) ? -1 : st.st_size;
}

static int fill(const char *name, size_t bytes)
{
    int fd = open(tmpdir_path(name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    char line[64];

    for (size_t at = 0; at < bytes; at += 16) {
        snprintf(line, sizeof line, "line %010zu\n", at / 16);
        assert_int_equal(write(fd, line, 16), 16);
    }
    return fd;
}

static void a_long_one_is_kept_once_and_begins_anew(void **state)
{
    (void)state;
    char *text;
    size_t len;
    int fd = fill("log", 1600);

    assert_false(machine_log_cut(tmpdir_path("log"), 1600));
    assert_int_equal(write(fd, "last\n", 5), 5);
    assert_true(machine_log_cut(tmpdir_path("log"), 1600));
    assert_int_equal(size_of("log"), 0);
    assert_int_equal(xm_file_read(tmpdir_path("log.1"), 1 << 20, &text, &len, NULL), 0);
    assert_int_equal(len, 1600);
    assert_memory_equal(text + len - 21, "line 0000000099\nlast\n", 21);
    free(text);
    assert_int_equal(write(fd, "new\n", 4), 4); /* its writer knows nothing of it */
    assert_int_equal(size_of("log"), 4);
    close(fd);
    close(fill("log", 3200));
    assert_true(machine_log_cut(tmpdir_path("log"), 1600));
    assert_int_equal(size_of("log.1"), 1600);
}

/* A disk that is full, say. */
static void one_that_cannot_be_kept_is_cut_all_the_same(void **state)
{
    (void)state;
    assert_int_equal(mkdir(tmpdir_path("log.1"), 0700), 0);
    close(fill("log", 3200));
    assert_true(machine_log_cut(tmpdir_path("log"), 1600));
    assert_int_equal(size_of("log"), 0);
    rmdir(tmpdir_path("log.1"));
}

static void what_is_no_file_is_left_alone(void **state)
{
    (void)state;
    close(fill("other", 3200));
    assert_int_equal(symlink("other", tmpdir_path("log")), 0);
    assert_false(machine_log_cut(tmpdir_path("log"), 1600));
    assert_int_equal(size_of("other"), 3200);
    assert_false(machine_log_cut(tmpdir_path("nothing"), 1600));
}

/* The real one: QEMU records the console into it through the descriptor that it is given. */
static void the_console_is_recorded_where_it_shall(void **state)
{
    (void)state;
    static struct machine vm;
    struct xm_error e = {0};

    if (!qemu_facts("qemu-system-x86_64", &e)) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    vm.spec = (struct vm_spec){.name = "talks",
                               .memory = 64 << 20,
                               .vcpus = 1,
                               .qemu = (char *)"qemu-system-x86_64",
                               .machine = (char *)"q35",
                               .accel = (char *)"tcg"};
    vm.log_dir = (char *)tmpdir_path("state/logs");
    qemu_init(&vm.qemu);
    int fd = machine_console_open(&vm);
    assert_true(fd >= 0);
    struct qemu_place at = {.host = "hosta", .run_dir = tmpdir_path(""), .console = fd};
    if (qemu_start(&vm.qemu, &vm.spec, &at, &e) < 0)
        fail_msg("%s", e.text);
    close(fd);
    char held[100], link[100];
    ssize_t n = -1;
    bool found = false;
    for (int i = 3; i < 40 && !found; i++) {
        snprintf(held, sizeof held, "/proc/%d/fd/%d", (int)vm.qemu.pid, i);
        n = readlink(held, link, sizeof link - 1);
        link[n < 0 ? 0 : n] = 0;
        found = strstr(link, "state/logs/talks-console.log") != NULL;
    }
    assert_true(found);
    qemu_end(&vm.qemu, &vm.spec);
    machine_console_end(&vm); /* it said nothing */
    assert_int_equal(size_of("state/logs/talks-console.log"), -1);
    rmdir(tmpdir_path("state/logs"));
    rmdir(tmpdir_path("state"));
}

static void must_hold(const char *name, const char *text)
{
    char *found;
    size_t len;

    assert_int_equal(xm_file_read(tmpdir_path(name), 1 << 20, &found, &len, NULL), 0);
    assert_string_equal(found, text);
    free(found);
}

/* What broke: a VM that started while the state directory could not be written had no record of its console
 * for as long as its QEMU lived. Here there is a file in the directory's place. */
static void the_console_is_recorded_as_soon_as_it_can_be(void **state)
{
    static struct machine vm;
    char run[200], logs[200];

    (void)state;
    snprintf(run, sizeof run, "%s", tmpdir_path("run"));
    snprintf(logs, sizeof logs, "%s", tmpdir_path("state/logs"));
    vm = (struct machine){.run_dir = run, .log_dir = logs};
    snprintf(vm.spec.name, sizeof vm.spec.name, "talks");
    assert_int_equal(mkdir(run, 0700), 0);
    close(fill("state", 16));
    int fd = machine_console_open(&vm);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "one\n", 4), 4);
    machine_logs_turn(&vm);
    assert_int_equal(unlink(tmpdir_path("state")), 0);
    machine_logs_turn(&vm);
    must_hold("state/logs/talks-console.log", "one\n");
    assert_int_equal(write(fd, "two\n", 4), 4);
    machine_logs_turn(&vm); /* of the next shim, perhaps */
    assert_int_equal(write(fd, "three\n", 6), 6);
    machine_console_end(&vm);
    must_hold("state/logs/talks-console.log", "one\ntwo\nthree\n");
    close(fd);
    unlink(tmpdir_path("run/console.log"));
    unlink(tmpdir_path("state/logs/talks-console.log"));
    rmdir(run);
    rmdir(logs);
    rmdir(tmpdir_path("state"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_long_one_is_kept_once_and_begins_anew, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(one_that_cannot_be_kept_is_cut_all_the_same, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(what_is_no_file_is_left_alone, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(the_console_is_recorded_where_it_shall, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(the_console_is_recorded_as_soon_as_it_can_be, tmpdir_make,
                                        tmpdir_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
