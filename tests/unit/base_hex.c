/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void what_is_put_is_got(void **state)
{
    unsigned char all[256], back[256];
    char text[2 * sizeof all + 1];

    (void)state;
    for (unsigned i = 0; i < sizeof all; i++)
        all[i] = (unsigned char)i;
    xm_hex_put(text, all, sizeof all);
    assert_int_equal(strlen(text), 2 * sizeof all);
    assert_memory_equal(text, "000102", 6);
    assert_string_equal(text + 2 * 254, "feff");
    assert_int_equal(xm_hex_get(back, sizeof back, text), 0);
    assert_memory_equal(all, back, sizeof all);
    xm_hex_put(text, all, 0);
    assert_string_equal(text, "");
    assert_int_equal(xm_hex_get(back, 0, ""), 0);
}

static void both_cases_are_read(void **state)
{
    unsigned char b[3];

    (void)state;
    assert_int_equal(xm_hex_get(b, 3, "aBcDeF"), 0);
    assert_memory_equal(b, "\xab\xcd\xef", 3);
}

/* What the readers before this one took (sscanf, strtoul): signs, spaces, "0x". */
static void nothing_else_is_read(void **state)
{
    static const char *const bad[] = {"",          "abcde",  "abcdef0", "abcdeg", " bcdef",
                                      "ab+1ef",    "ab-1ef", "0xcdef",  "ab ef ", "ab\nde1",
                                      "abcde\xff", "@abcde", "`abcde",  "/:abcd"};
    unsigned char b[3];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (xm_hex_get(b, 3, bad[i]) != -EINVAL)
            fail_msg("\"%s\" was read", bad[i]);
    }
    assert_int_equal(xm_hex_get(b, 3, NULL), -EINVAL);
}

static void random_ones_differ(void **state)
{
    char a[65], b[65];
    unsigned char raw[32];

    (void)state;
    assert_int_equal(xm_hex_random(a, 32, NULL), 0);
    assert_int_equal(xm_hex_random(b, 32, NULL), 0);
    assert_int_equal(xm_hex_get(raw, 32, a), 0);
    assert_int_equal(xm_hex_get(raw, 32, b), 0);
    assert_string_not_equal(a, b);
    assert_int_equal(xm_hex_random(a, 65, NULL), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_is_got),
        cmocka_unit_test(both_cases_are_read),
        cmocka_unit_test(nothing_else_is_read),
        cmocka_unit_test(random_ones_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
