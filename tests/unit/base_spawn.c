/* SPDX-License-Identifier: MIT */
/* Programs started: their failures become sentences, their output is bounded, nothing leaks into them. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SH(script)                                                                                           \
    (const char *const[])                                                                                    \
    {                                                                                                        \
        "sh", "-c", script, NULL                                                                             \
    }
#define TIME LIMIT_HANG_NS

static void success_gives_the_output(void **state)
{
    (void)state;
    char *out;
    assert_int_equal(xm_run(SH("echo one; echo two; echo ignored >&2"), TIME, &out, NULL), 0);
    assert_string_equal(out, "one\ntwo\n");
    free(out);
    assert_int_equal(xm_run(SH("true"), TIME, &out, NULL), 0);
    assert_string_equal(out, "");
    free(out);
}

static void input_is_read_and_stays_open(void **state)
{
    (void)state;
    char *out;
    struct xm_error e = {0};
    const struct xm_run_input text = {.first = "text\n"};
    /* A second read waits: it would end at once if the input had. */
    assert_int_equal(
        xm_run_input(SH("read a; echo \"<$a>\"; timeout 0.2 cat; echo $?"), &text, TIME, &out, NULL), 0);
    assert_string_equal(out, "<text>\n124\n");
    free(out);
    char *large = calloc(1, 1 << 20);
    memset(large, 'x', (1 << 20) - 1);
    const struct xm_run_input first = {.first = large}, last = {"", "x", large};
    assert_int_equal(xm_run_input(SH("true"), &first, TIME, NULL, &e), -E2BIG);
    assert_int_equal(xm_run_input(SH("true"), &last, TIME, NULL, &e), -E2BIG);
    free(large);
}

/* Longer than a pipe, the word at the line's beginning, and once more behind it. */
static void the_last_word_comes_after_the_line_that_it_waits_for(void **state)
{
    (void)state;
    char *out;
    const struct xm_run_input talk = {"first\n", "done", "last\n"};
    assert_int_equal(
        xm_run_input(SH("read a; echo one; printf done; head -c 300000 /dev/zero | tr '\\0' x; "
                        "timeout 0.2 cat; echo; read b; echo \"<$a $b> done\"; timeout 0.2 cat; :"),
                     &talk, TIME, &out, NULL),
        0);
    assert_int_equal(strlen(out), 4 + 4 + 300000 + 1 + 18);
    assert_string_equal(out + 4 + 4 + 300000, "\n<first last> done\n");
    free(out);
    signal(SIGPIPE, SIG_IGN); /* who does not read is no failure */
    assert_int_equal(xm_run_input(SH("exec <&-; echo done"), &talk, TIME, NULL, NULL), 0);
    signal(SIGPIPE, SIG_DFL);
}

static void failure_is_told_by_the_first_line_of_standard_error(void **state)
{
    (void)state;
    struct xm_error e = {0};
    assert_int_equal(xm_run(SH("echo the reason >&2; echo more >&2; exit 3"), TIME, NULL, &e), -EIO);
    assert_string_equal(e.text, "the reason");
    assert_int_equal(xm_run(SH("exit 3"), TIME, NULL, &e), -EIO);
    assert_string_equal(e.text, "sh failed with exit status 3");
    assert_int_equal(xm_run(SH("kill -9 $$"), TIME, NULL, &e), -EIO);
    assert_string_equal(e.text, "sh was ended by signal 9 (Killed)");
}

static void a_program_that_is_not_there_is_named(void **state)
{
    (void)state;
    struct xm_error e = {0};
    char *out = (char *)1;
    assert_int_equal(xm_run((const char *const[]){"xmt-no-such-program", NULL}, TIME, &out, &e), -ENOENT);
    assert_string_equal(e.text, "cannot start xmt-no-such-program: No such file or directory");
    assert_null(out);
    assert_int_equal(xm_run((const char *const[]){"/", NULL}, TIME, NULL, &e), -EACCES);
}

static void who_takes_too_long_is_killed(void **state)
{
    (void)state;
    struct xm_error e = {0};
    uint64_t t = xm_now();
    assert_int_equal(xm_run((const char *const[]){"sleep", "3600", NULL}, 50 * XM_NS_PER_MS, NULL, &e),
                     -ETIMEDOUT);
    assert_true(xm_now() - t < LIMIT_HANG_NS);
    assert_string_equal(e.text, "sleep did not end within 50.0 ms and was killed");
}

/* A wrapper that does not exec what it wraps. */
static void its_children_are_killed_too(void **state)
{
    (void)state;
    pid_t pid = 0, got = 0;
    int status = 0;

    prctl(PR_SET_CHILD_SUBREAPER, 1);
    /* Longer each time: on a busy machine it may not have said its child's number yet. */
    for (uint64_t ns = 100 * XM_NS_PER_MS; !pid && ns < LIMIT_HANG_NS; ns *= 2) {
        char *out = NULL;
        assert_int_equal(xm_run(SH("sleep 3600 & echo $!; wait"), ns, &out, NULL), -ETIMEDOUT);
        pid = (pid_t)atoi(out);
        free(out);
    }
    assert_true(pid > 1);
    for (struct limit l = limit_start(5); !(got = waitpid(pid, &status, WNOHANG)) && limit_wait(&l);)
        ;
    if (!got)
        kill(pid, SIGKILL);
    assert_int_equal(got, pid);
    assert_true(WIFSIGNALED(status));
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static void a_daemon_left_behind_is_not_waited_for(void **state)
{
    (void)state;
    uint64_t t = xm_now();
    char *out;
    /* The sleeper keeps both pipes open. */
    assert_int_equal(xm_run(SH("sleep 3600 & echo $!"), TIME, &out, NULL), 0);
    assert_true(xm_now() - t < LIMIT_HANG_NS);
    pid_t pid = (pid_t)atoi(out);
    assert_true(pid > 1);
    kill(pid, SIGKILL);
    free(out);
}

static void more_output_than_the_bound_is_dropped_not_stuck(void **state)
{
    (void)state;
    char *out;
    assert_int_equal(
        xm_run(SH("head -c 3000000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero >&2"), TIME, &out, NULL),
        0);
    assert_int_equal(strlen(out), 1 << 20);
    free(out);
}

static void descriptors_stay_here(void **state)
{
    (void)state;
    int secret = open("/dev/null", O_RDONLY);
    char script[100];

    snprintf(script, sizeof script, "[ ! -e /proc/self/fd/%d ]", secret);
    assert_int_equal(xm_run(SH(script), TIME, NULL, NULL), 0);
    close(secret);
}

static void blocked_signals_are_not_inherited(void **state)
{
    (void)state;
    sigset_t all, was;
    struct xm_error e = {0};
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &was);
    int err = xm_run(SH("kill -TERM $$; sleep 60"), TIME, NULL, &e);
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    assert_int_equal(err, -EIO);
    assert_non_null(strstr(e.text, "signal 15"));
}

/* Who talks to a program may be killed: the program does not go on without him. */
static void a_program_that_is_talked_to_dies_with_us(void **state)
{
    (void)state;
    static const struct xm_run_input input = {"", NULL, NULL};
    pid_t pid, got = 0;
    int status = 0;

    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid = fork();
    if (pid == 0) {
        xm_run_input(SH("kill -9 $PPID; exec sleep 3600"), &input, TIME, NULL, NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    /* Its child is ours now. */
    for (struct limit l = limit_start(5); !(got = waitpid(-1, &status, WNOHANG)) && limit_wait(&l);)
        ;
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    assert_true(got > 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(success_gives_the_output),
        cmocka_unit_test(input_is_read_and_stays_open),
        cmocka_unit_test(the_last_word_comes_after_the_line_that_it_waits_for),
        cmocka_unit_test(failure_is_told_by_the_first_line_of_standard_error),
        cmocka_unit_test(a_program_that_is_not_there_is_named),
        cmocka_unit_test(who_takes_too_long_is_killed),
        cmocka_unit_test(its_children_are_killed_too),
        cmocka_unit_test(a_daemon_left_behind_is_not_waited_for),
        cmocka_unit_test(more_output_than_the_bound_is_dropped_not_stuck),
        cmocka_unit_test(descriptors_stay_here),
        cmocka_unit_test(blocked_signals_are_not_inherited),
        cmocka_unit_test(a_program_that_is_talked_to_dies_with_us),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
