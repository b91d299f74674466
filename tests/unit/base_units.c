/* SPDX-License-Identifier: MIT */
/* Sizes, rates and times: what users write is read exactly or refused; what is written can be read by people.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

typedef int parser(const char *, uint64_t *, struct xm_error *);

struct good {
    const char *text;
    uint64_t value;
};

static void expect_good(parser *parse, const struct good *g)
{
    for (; g->text; g++) {
        struct xm_error e = {0};
        uint64_t v = 0;
        if (parse(g->text, &v, &e) || v != g->value)
            fail_msg("\"%s\" gave %llu, not %llu %s", g->text, (unsigned long long)v,
                     (unsigned long long)g->value, e.text);
    }
}

static void expect_bad(parser *parse, int code, const char *const *texts)
{
    for (; *texts; texts++) {
        struct xm_error e = {0};
        uint64_t v = 0;
        int got = parse(*texts, &v, &e);
        if (got != -code)
            fail_msg("\"%s\" gave %d with value %llu, not %d", *texts, got, (unsigned long long)v, -code);
        assert_non_null(strstr(e.text, *texts)); /* the sentence names what was read */
    }
}

static void sizes_are_powers_of_1024_unless_they_end_in_B(void **state)
{
    (void)state;
    expect_good(xm_parse_size, (struct good[]){{"0", 0},
                                               {"4096", 4096},
                                               {"512B", 512},
                                               {"512K", 512 << 10},
                                               {"512k", 512 << 10},
                                               {"1M", 1 << 20},
                                               {"20G", 20ull << 30},
                                               {"64T", 64ull << 40},
                                               {"1KiB", 1024},
                                               {"3 GiB", 3ull << 30},
                                               {"10KB", 10000},
                                               {"10GB", 10000000000ull},
                                               {"1.5G", 3ull << 29},
                                               {"0.25M", 1 << 18},
                                               {"16777215T", 16777215ull << 40},
                                               {0}});
}

static void sizes_refuse_signs_and_garbage(void **state)
{
    (void)state;
    const char *const bad[] = {"",      "-1",     "+1",    "G",   "1X",   "1Gi", "1GG", "1Kb",
                               "0x10",  " 1",     "1,5G",  "1.G", ".5G",  "1.5", "1e3", "1 2",
                               "1Gbit", "1.2.3G", "1KiBx", "nan", "1G\n", NULL};
    expect_bad(xm_parse_size, EINVAL, bad);
}

static void sizes_refuse_what_64_bits_do_not_hold(void **state)
{
    (void)state;
    const char *const bad[] = {"16777216T", "18446744073709551615K", NULL};
    expect_bad(xm_parse_size, ERANGE, bad);
    const char *const worse[] = {"18446744073709551616", "99999999999999999999999999", NULL};
    expect_bad(xm_parse_size, EINVAL, worse);
}

static void rates_are_bytes_unless_they_say_bit(void **state)
{
    (void)state;
    expect_good(xm_parse_rate, (struct good[]){{"0", 0},
                                               {"100M", 100 << 20},
                                               {"100M/s", 100 << 20},
                                               {"100MiB/s", 100 << 20},
                                               {"1GB/s", 1000000000},
                                               {"10Gbit", 1250000000},
                                               {"250Mbit/s", 31250000},
                                               {"250 Mbit/s", 31250000},
                                               {"800kbit", 100000},
                                               {"8bit/s", 1},
                                               {"2.5Gbit", 312500000},
                                               {0}});
}

static void rates_refuse_the_ambiguous(void **state)
{
    (void)state;
    const char *const bad[] = {"",     "fast", "10Gb",   "10Gbps", "10Gibit", "10bits", "-5M",
                               "1M/h", "/s",   "10MBit", "3bit",   "1.5",     NULL};
    expect_bad(xm_parse_rate, EINVAL, bad);
    const char *const high[] = {"16777216T", NULL};
    expect_bad(xm_parse_rate, ERANGE, high);
}

static void times_have_a_unit(void **state)
{
    (void)state;
    expect_good(xm_parse_time, (struct good[]){{"0s", 0},
                                               {"100us", 100000},
                                               {"50ms", 50 * XM_NS_PER_MS},
                                               {"50 ms", 50 * XM_NS_PER_MS},
                                               {"1.5s", 1500 * XM_NS_PER_MS},
                                               {"5m", 300 * XM_NS_PER_S},
                                               {"1h", 3600 * XM_NS_PER_S},
                                               {"7ns", 7},
                                               {0}});
    const char *const bad[] = {"", "50", "ms", "-1s", "1S", "1d", "1s ", "0,5s", NULL};
    expect_bad(xm_parse_time, EINVAL, bad);
    const char *const high[] = {"18446744074s", "9999999999h", NULL};
    expect_bad(xm_parse_time, ERANGE, high);
}

static void formatted_values_step_at_the_right_places(void **state)
{
    (void)state;
    assert_string_equal(xm_format_size(0).s, "0 B");
    assert_string_equal(xm_format_size(1023).s, "1023 B");
    assert_string_equal(xm_format_size(1024).s, "1.00 KiB");
    assert_string_equal(xm_format_size((1 << 20) - 1).s, "1.00 MiB");
    assert_string_equal(xm_format_size(3ull << 29).s, "1.50 GiB");
    assert_string_equal(xm_format_size(UINT64_MAX).s, "16384.00 PiB");
    assert_string_equal(xm_format_rate(0).s, "0 B/s");
    assert_string_equal(xm_format_rate(-1).s, "0 B/s");
    assert_string_equal(xm_format_rate(999.6).s, "1.00 KB/s");
    assert_string_equal(xm_format_rate(1.25e9).s, "1.25 GB/s");
    assert_string_equal(xm_format_time(0).s, "0 ns");
    assert_string_equal(xm_format_time(1500).s, "1.5 us");
    assert_string_equal(xm_format_time(12300000).s, "12.3 ms");
    assert_string_equal(xm_format_time(999999999).s, "1.00 s");
    assert_string_equal(xm_format_time(4200 * XM_NS_PER_MS).s, "4.20 s");
    assert_string_equal(xm_format_time(59999 * XM_NS_PER_MS).s, "1 min 00 s");
    assert_string_equal(xm_format_time(185 * XM_NS_PER_S).s, "3 min 05 s");
    assert_string_equal(xm_format_time(3780 * XM_NS_PER_S).s, "1 h 03 min");
    assert_string_equal(xm_format_time(UINT64_MAX).s, "5124095 h 34 min");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_powers_of_1024_unless_they_end_in_B),
        cmocka_unit_test(sizes_refuse_signs_and_garbage),
        cmocka_unit_test(sizes_refuse_what_64_bits_do_not_hold),
        cmocka_unit_test(rates_are_bytes_unless_they_say_bit),
        cmocka_unit_test(rates_refuse_the_ambiguous),
        cmocka_unit_test(times_have_a_unit),
        cmocka_unit_test(formatted_values_step_at_the_right_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
