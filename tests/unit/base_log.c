/* SPDX-License-Identifier: MIT */
/* Log lines: which are written, how they look, that a long one is cut and still ends. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/base.h"

static int written, saved; /* a file in the place of standard error, and the real one */
static char text[4096];

static int set_up(void **state)
{
    (void)state;
    written = memfd_create("log", MFD_CLOEXEC);
    saved = dup(STDERR_FILENO);
    return dup2(written, STDERR_FILENO) < 0;
}

static int tear_down(void **state)
{
    (void)state;
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(written);
    unsetenv("XMIGRATE_LOG");
    return 0;
}

static const char *lines(void)
{
    ssize_t n = pread(written, text, sizeof text - 1, 0);
    text[n < 0 ? 0 : n] = 0;
    return text;
}

static void only_levels_up_to_the_chosen_are_written(void **state)
{
    (void)state;
    unsetenv("XMIGRATE_LOG");
    xm_log_open("me", XM_LOG_WARN);
    xm_log(XM_LOG_INFO, "quiet");
    xm_log(XM_LOG_WARN, "number %d", 7);
    assert_null(strstr(lines(), "quiet"));
    assert_non_null(strstr(lines(), " warn me: number 7\n"));
    int y, mo, d, h, mi, s, ms;
    assert_int_equal(sscanf(text, "%d-%d-%d %d:%d:%d.%d ", &y, &mo, &d, &h, &mi, &s, &ms), 7);
}

static void the_environment_overrides_the_program(void **state)
{
    (void)state;
    setenv("XMIGRATE_LOG", "debug", 1);
    xm_log_open("me", XM_LOG_ERROR);
    xm_log(XM_LOG_DEBUG, "heard");
    assert_non_null(strstr(lines(), " debug me: heard\n"));
    setenv("XMIGRATE_LOG", "nonsense", 1);
    xm_log_open("me", XM_LOG_ERROR);
    xm_log(XM_LOG_WARN, "not heard");
    assert_null(strstr(lines(), "not heard"));
}

static void a_long_text_is_cut_and_its_line_ends(void **state)
{
    (void)state;
    char big[3000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    xm_log_open("me", XM_LOG_INFO);
    xm_log(XM_LOG_INFO, "%s", big);
    xm_log(XM_LOG_INFO, "next");
    char *end = strchr(lines(), '\n');
    assert_non_null(end);
    assert_true(end - text > 1000 && end - text < 1024);
    assert_non_null(strstr(end, "info me: next\n"));
}

/* A peer's sentence may hold a line that looks like ours, or steer the terminal of who reads the log. */
static void text_makes_no_line_and_steers_no_terminal(void **state)
{
    (void)state;
    xm_log_open("me", XM_LOG_INFO);
    xm_log(XM_LOG_INFO, "%s",
           "it says: no\n2026-01-01 error me: all is lost\r\t\033[2J\x7f\xff\u202e\xc2\x9b"
           "1m, käse");
    assert_non_null(strstr(lines(), "info me: it says: no\\n2026-01-01 error me: all is lost\\r\\t\\x1b[2J"
                                    "\\x7f\\xff\\xe2\\x80\\xae\\xc2\\x9b1m, käse\n"));
    assert_ptr_equal(strchr(text, '\n'), strrchr(text, '\n'));
}

static unsigned count_of(const char *part)
{
    unsigned n = 0;

    for (const char *at = lines(); (at = strstr(at, part)); at++)
        n++;
    return n;
}

static void what_comes_too_often_is_counted(void **state)
{
    (void)state;
    struct xm_log_limit limit = {0}, other = {0};

    xm_log_open("me", XM_LOG_INFO);
    for (int i = 0; i < 1000; i++)
        xm_log_limited(&limit, XM_LOG_WARN, "knock %d", i);
    xm_log_limited(&other, XM_LOG_WARN, "another matter");
    assert_int_equal(count_of("knock"), XM_LOG_BURST);
    assert_int_equal(count_of("another matter"), 1);
    limit.since -= 60 * XM_NS_PER_S; /* a minute has gone */
    xm_log_limited(&limit, XM_LOG_WARN, "knock again");
    assert_int_equal(count_of("990 more lines like the next one were left out"), 1);
    assert_int_equal(count_of("knock again"), 1);
    assert_int_equal(limit.left_out, 0);
}

#define CAUGHT(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CAUGHT(only_levels_up_to_the_chosen_are_written), CAUGHT(the_environment_overrides_the_program),
        CAUGHT(a_long_text_is_cut_and_its_line_ends),     CAUGHT(text_makes_no_line_and_steers_no_terminal),
        CAUGHT(what_comes_too_often_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
