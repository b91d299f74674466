/* SPDX-License-Identifier: MIT */
/* What a QEMU is asked, and says: its version, machines, CPUs and rings; whole, also when its answers are
 * read late. This program is QEMU's wrapper then: it holds the answers up in a pipe that is small. */
#include "probe/probe.h"
#include "tests/progress.h"
#include "tests/unit/lib_qemu.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define QEMU "qemu-system-x86_64"

/* Reads nothing before the pipe is full, and then still waits whether QEMU ends, which loses what it has not
 * written. */
static int wrap(char **argv)
{
    int out[2], status = 0;
    char buf[4096];
    ssize_t n;

    if (pipe2(out, O_CLOEXEC) < 0 || fcntl(out[1], F_SETPIPE_SZ, 4096) < 0)
        return 1;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        argv[0] = (char *)QEMU;
        execvp(QEMU, argv);
        _exit(127);
    }
    bool ended = false;
    for (struct pollfd p = {.fd = out[1], .events = POLLOUT}; !ended && poll(&p, 1, 0) == 1;) {
        ended = waitpid(pid, &status, WNOHANG) == pid;
        poll(NULL, 0, 5);
    }
    for (int i = 0; !ended && i < 50; i++) {
        ended = waitpid(pid, &status, WNOHANG) == pid;
        poll(NULL, 0, 5);
    }
    close(out[1]);
    while ((n = read(out[0], buf, sizeof buf)) > 0) {
        if (write(1, buf, (size_t)n) != n)
            return 1;
    }
    if (!ended)
        waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static char self[300];

static void answers_that_are_read_late_are_whole(void **state)
{
    (void)state;
    struct xm_error e = {0};
    char full[128];

    qemu_real();
    const struct qemu_facts *direct = qemu_facts(QEMU, &e), *late = qemu_facts(self, &e);
    if (!direct || !late)
        fail_msg("%s", e.text);
    assert_string_equal(late->version, direct->version);
    assert_true(json_equal(late->machines, direct->machines));
    assert_int_equal(late->reconnect_ms, direct->reconnect_ms);
    assert_true(qemu_facts_machine(late, "q35", full));
    json_t *cpu = qemu_facts_cpu(QEMU, "tcg", "max", &e), *cpu_late = qemu_facts_cpu(self, "tcg", "max", &e);
    if (!cpu || !cpu_late)
        fail_msg("%s", e.text);
    assert_true(json_array_size(cpu) > 10);
    assert_true(json_equal(cpu, cpu_late));
    json_decref(cpu);
    json_decref(cpu_late);
}

/* What is advised when a machine type is not known. */
static void a_machine_that_both_know_is_found(void **state)
{
    (void)state;
    struct qemu_facts q = {.machines = json_pack("[{s:s}, {s:s}, {s:s}, {s:s}, {s:s}]", "name", "pc-q35-9.2",
                                                 "name", "pc-q35-10.0", "name", "pc-i440fx-10.0", "name",
                                                 "none", "name", "pc-q35-7.2")};
    char like[64];

    qemu_facts_machine_like(&q, "pc-q35-2.4,usb=off", NULL, like);
    assert_string_equal(like, "pc-q35-10.0"); /* by number, not by letter */
    qemu_facts_machine_like(&q, "pc-q35-2.4", "9.2.1", like);
    assert_string_equal(like, "pc-q35-9.2");
    qemu_facts_machine_like(&q, "pc-i440fx-2.4", "9.2.1", like); /* it has none that the other knows */
    assert_string_equal(like, "");
    qemu_facts_machine_like(&q, "foo", "8.0", like);
    assert_string_equal(like, "pc-q35-7.2");
    json_decref(q.machines);
}

static void a_real_one_says_what_it_is(void **state)
{
    (void)state;
    const struct qemu_facts *q = qemu_real();
    char full[128];

    assert_true(q->version[0] >= '1' && strchr(q->version, '.'));
    assert_true(q->sandbox);
    assert_true(qemu_facts_machine(q, "q35,usb=off", full));
    assert_memory_equal(full, "pc-q35-", 7);
    assert_non_null(strstr(full, ",usb=off"));
    assert_true(qemu_facts_machine(q, "pc-q35-7.2", full) || q->version[0] < '7');
    assert_false(qemu_facts_machine(q, "pc-q35", full));
    /* The same question is not asked twice. */
    assert_ptr_equal(qemu_facts("qemu-system-x86_64", NULL), q);
}

static bool sees(const char *cpu, const char *feature)
{
    struct xm_error e = {0};
    json_t *list = qemu_facts_cpu("qemu-system-x86_64", "tcg", cpu, &e), *v;
    bool found = false;
    size_t i;

    if (!list)
        fail_msg("%s", e.text);
    json_array_foreach (list, i, v)
        found = found || !strcmp(json_string_value(v), feature);
    json_decref(list);
    return found;
}

static void a_real_one_says_what_its_cpus_have(void **state)
{
    (void)state;
    qemu_real();
    assert_true(sees("max", "avx2"));
    assert_false(sees("qemu64", "avx2"));
    assert_true(sees("qemu64,+avx2", "avx2"));
    assert_false(sees("max,avx2=off", "avx2"));
    assert_false(sees("Skylake-Server", "avx512f")); /* TCG cannot give it, whatever the model says */
    struct xm_error e = {0};
    assert_null(qemu_facts_cpu("qemu-system-x86_64", "tcg", "i387dx", &e));
    assert_non_null(strstr(e.text, "does not know the CPU 'i387dx'"));
}

/* A package upgrade puts another file in its place. */
static void another_program_in_its_place_is_asked_anew(void **state)
{
    (void)state;
    const char *path = tmpdir_write(
        "qemu-system-test", "#!/bin/sh\necho x >>$(dirname $0)/asked\necho it is broken >&2\nexit 1\n");
    struct xm_error e = {0};
    char *asked = NULL;
    size_t len;

    qemu_real();
    chmod(path, 0755);
    for (int i = 0; i < 3; i++) { /* a failure is believed for a while */
        e = (struct xm_error){0};
        assert_null(qemu_facts(path, &e));
        assert_non_null(strstr(e.text, "it is broken"));
    }
    assert_int_equal(xm_file_read(tmpdir_path("asked"), 100, &asked, &len, NULL), 0);
    assert_string_equal(asked, "x\n");
    free(asked);
    /* Another file: the old one may not be written over, or it might have the same time. */
    const char *good = tmpdir_write("good", "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n");
    chmod(good, 0755);
    assert_int_equal(rename(good, path), 0);
    const struct qemu_facts *q = qemu_facts(path, &e);
    assert_non_null(q);
    assert_ptr_equal(qemu_facts(path, &e), q);
    const char *other = tmpdir_write("other", "#!/bin/sh\nexit 0\n");
    chmod(other, 0755);
    assert_int_equal(rename(other, path), 0);
    assert_null(qemu_facts(path, &e));
    assert_non_null(strstr(e.text, "does not answer by QMP"));
}

/* A peer names programs and CPUs. What broke: each name that could not be asked was kept for good, and so was
 * each failure that was not believed any more; and after 64 questions about CPUs, failures among them, no
 * answer was kept any more. */
static void what_others_name_is_not_kept_without_bound(void **state)
{
    enum { NAMES = 1000 };
    struct xm_error e = {0};
    char name[64];

    (void)state;
    assert_null(qemu_facts("qemu-system-before", &e));
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < NAMES; i++) {
        snprintf(name, sizeof name, "qemu-system-not%d", i);
        e.code = 0;
        assert_null(qemu_facts(name, &e));
        assert_int_equal(e.code, ENOENT);
    }
    size_t more = mallinfo2().uordblks - before;
    if (more > (size_t)NAMES * 200)
        fail_msg("%zu bytes are kept of %d programs that are not there", more, NAMES);
}

static unsigned times_asked(void)
{
    char *text = NULL;
    size_t len = 0;

    if (xm_file_read(tmpdir_path("asked"), 1 << 20, &text, &len, NULL) < 0)
        return 0;
    free(text);
    return (unsigned)len / 2;
}

static void the_last_answers_about_cpus_are_kept(void **state)
{
    const char *script = "#!/bin/sh\necho x >>$(dirname $0)/asked\n"
                         "while read -r l; do case $l in\n"
                         "*qmp_cap*) echo '{\"return\": {}, \"id\": \"ready\"}' ;;\n"
                         "*expansion*) echo '{\"return\": {\"model\": {\"props\": {\"avx\": true}}}, "
                         "\"id\": \"asked\"}' ;;\n"
                         "*definitions*) echo '{\"return\": [], \"id\": \"asked-last\"}' ;;\n"
                         "*quit*) exit 0 ;;\nesac; done\n";
    const char *path = tmpdir_write("qemu-system-test", script);
    struct xm_error e = {0};
    char cpu[32];

    (void)state;
    chmod(path, 0755);
    for (int i = 0; i < 100; i++) {
        snprintf(cpu, sizeof cpu, "cpu%d", i);
        json_t *list = qemu_facts_cpu(path, "tcg", cpu, &e);
        if (!list)
            fail_msg("%s", e.text);
        assert_int_equal(json_array_size(list), 1);
        json_decref(list);
    }
    assert_int_equal(times_asked(), 100);
    for (int i = 99; i >= 40; i--) {
        snprintf(cpu, sizeof cpu, "cpu%d", i);
        json_decref(qemu_facts_cpu(path, "tcg", cpu, &e));
    }
    assert_int_equal(times_asked(), 100);
}

/* Whatever it is: it can be asked, and a guest is not harmed by it. */
static void a_real_one_says_how_large_its_rings_are(void **state)
{
    const struct qemu_facts *q = qemu_facts("qemu-system-x86_64", NULL);

    (void)state;
    if (!q)
        skip();
    bool large = qemu_facts_large_rings("qemu-system-x86_64");
    print_message("QEMU %s: %s\n", q->version,
                  large ? "larger than its devices'" : "as its devices have them");
    assert_int_equal(large, qemu_facts_large_rings("qemu-system-x86_64"));
    if (!strncmp(q->version, "7.2.", 4))
        assert_false(large);
    if (!strcmp(q->version, "10.0.13"))
        assert_true(large);
    assert_false(qemu_facts_large_rings("no-such-qemu"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_that_both_know_is_found),
        cmocka_unit_test(a_real_one_says_what_it_is),
        cmocka_unit_test(a_real_one_says_how_large_its_rings_are),
        cmocka_unit_test(a_real_one_says_what_its_cpus_have),
        cmocka_unit_test_setup_teardown(another_program_in_its_place_is_asked_anew, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test(answers_that_are_read_late_are_whole),
        cmocka_unit_test(what_others_name_is_not_kept_without_bound),
        cmocka_unit_test_setup_teardown(the_last_answers_about_cpus_are_kept, tmpdir_make, tmpdir_remove),
    };

    if (argc > 1)
        return wrap(argv);
    signal(SIGPIPE, SIG_IGN);
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
