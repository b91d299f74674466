/* SPDX-License-Identifier: MIT */
/* Fault points: each test in a child, because the environment is read once in a process. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs body in a child with XMIGRATE_FAULT=spec; returns what waitpid says. Its log is thrown away. */
static int in_child(const char *spec, int (*body)(void), int options)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        if (spec)
            setenv("XMIGRATE_FAULT", spec, 1);
        else
            unsetenv("XMIGRATE_FAULT");
        if (!freopen("/dev/null", "w", stderr))
            _exit(99);
        _exit(body());
    }
    assert_int_equal(waitpid(pid, &status, options), pid);
    if (WIFSTOPPED(status)) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return status;
}

/* Five passages of "a" and one of "b" after each: bits of those of "a" that failed, 64 when one of "b" did.
 */
static int pass(void)
{
    int got = 0;
    for (int i = 0; i < 5; i++) {
        got |= xm_fault("a") << i;
        got |= xm_fault("b") ? 64 : 0;
    }
    return got;
}

static void without_the_variable_nothing_happens(void **state)
{
    (void)state;
    assert_int_equal(WEXITSTATUS(in_child(NULL, pass, 0)), 0);
    assert_int_equal(WEXITSTATUS(in_child("", pass, 0)), 0);
}

static void the_counted_passage_fails_and_no_other(void **state)
{
    (void)state;
    assert_int_equal(WEXITSTATUS(in_child("a:3:error", pass, 0)), 4);
    assert_int_equal(WEXITSTATUS(in_child("a:1:error,b:2:error,a:5:error", pass, 0)), 1 | 16 | 64);
    assert_int_equal(WEXITSTATUS(in_child("a:*:error", pass, 0)), 31);
}

static void kill_and_stop_are_signals(void **state)
{
    (void)state;
    int status = in_child("b:2:kill", pass, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    status = in_child("a:2:stop", pass, WUNTRACED);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

static void a_delay_takes_its_time_and_fails_nothing(void **state)
{
    (void)state;
    uint64_t t = xm_now();
    assert_int_equal(WEXITSTATUS(in_child("a:1:delay=30", pass, 0)), 0);
    assert_true(xm_now() - t >= 30 * XM_NS_PER_MS);
}

static void arm(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* The point may be named while the program runs; one process acts, once, and the file is gone then. */
static void a_point_in_a_file_is_used_up(void **state)
{
    char path[] = "/tmp/xmigrate-fault-XXXXXX", spec[64];

    (void)state;
    close(mkstemp(path));
    snprintf(spec, sizeof spec, "@%s", path);
    arm(path, "a:3:error\n");
    assert_int_equal(WEXITSTATUS(in_child(spec, pass, 0)), 4);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(WEXITSTATUS(in_child(spec, pass, 0)), 0);
    arm(path, "b:2:kill\n");
    int status = in_child(spec, pass, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    arm(path, "a:*:error\n");
    assert_int_equal(WEXITSTATUS(in_child(spec, pass, 0)), 31); /* each time, for as long as it is there */
    assert_int_equal(access(path, F_OK), 0);
    arm(path, "c:1:kill\n");
    assert_int_equal(WEXITSTATUS(in_child(spec, pass, 0)), 0);
    assert_int_equal(unlink(path), 0);
}

static void nonsense_is_no_fault(void **state)
{
    (void)state;
    static const char *const bad[] = {"a",           "a:",         "a:1",      "a:0:error",   "a:x:error",
                                      "a:1:explode", "a:1:delay=", ":1:error", "a:1:delay=5x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(WEXITSTATUS(in_child(bad[i], pass, 0)), 0);
    assert_int_equal(WEXITSTATUS(in_child("nonsense,a:2:error", pass, 0)), 2); /* the rest still counts */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_the_variable_nothing_happens),
        cmocka_unit_test(the_counted_passage_fails_and_no_other),
        cmocka_unit_test(kill_and_stop_are_signals),
        cmocka_unit_test(a_delay_takes_its_time_and_fails_nothing),
        cmocka_unit_test(a_point_in_a_file_is_used_up),
        cmocka_unit_test(nonsense_is_no_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
