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
    /* A second read waits: it would end at once if the input had. */
    assert_int_equal(
        xm_run_input(SH("read a; echo \"<$a>\"; timeout 0.2 cat; echo $?"), "text\n", TIME, &out, NULL), 0);
    assert_string_equal(out, "<text>\n124\n");
    free(out);
    char *large = calloc(1, 1 << 20);
    memset(large, 'x', (1 << 20) - 1);
    assert_int_equal(xm_run_input(SH("true"), large, TIME, NULL, &e), -E2BIG);
    free(large);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(success_gives_the_output),
        cmocka_unit_test(input_is_read_and_stays_open),
        cmocka_unit_test(failure_is_told_by_the_first_line_of_standard_error),
        cmocka_unit_test(a_program_that_is_not_there_is_named),
        cmocka_unit_test(who_takes_too_long_is_killed),
        cmocka_unit_test(a_daemon_left_behind_is_not_waited_for),
        cmocka_unit_test(more_output_than_the_bound_is_dropped_not_stuck),
        cmocka_unit_test(descriptors_stay_here),
        cmocka_unit_test(blocked_signals_are_not_inherited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
