/* SPDX-License-Identifier: MIT */
/* Errors carry one sentence, whatever is put into them. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "base/base.h"

static void set_formats_and_returns_the_negative_code(void **state)
{
    (void)state;
    struct xm_error e = {0};
    assert_int_equal(xm_error_set(&e, ENOENT, "no %s number %d", "disk", 3), -ENOENT);
    assert_int_equal(e.code, ENOENT);
    assert_string_equal(e.text, "no disk number 3");
}

static void errno_is_told_in_words(void **state)
{
    (void)state;
    struct xm_error e = {0};
    assert_int_equal(xm_error_errno(&e, EACCES, "cannot open %s", "/x"), -EACCES);
    assert_string_equal(e.text, "cannot open /x: Permission denied");
}

static void prefixes_pile_up(void **state)
{
    (void)state;
    struct xm_error e = {0};
    xm_error_set(&e, EIO, "gone");
    assert_int_equal(xm_error_prefix(&e, "disk %d", 1), -EIO);
    xm_error_prefix(&e, "web1");
    assert_string_equal(e.text, "web1: disk 1: gone");
}

static void an_error_may_be_set_from_its_own_text(void **state)
{
    (void)state;
    struct xm_error e = {0};
    xm_error_set(&e, EIO, "first");
    xm_error_set(&e, EPROTO, "second after %s", e.text);
    assert_string_equal(e.text, "second after first");
    assert_int_equal(e.code, EPROTO);
}

static void too_long_a_text_is_cut(void **state)
{
    (void)state;
    struct xm_error e = {0};
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    xm_error_set(&e, EIO, "%s", big);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    xm_error_prefix(&e, "%s", big);
    assert_true(strlen(e.text) < sizeof e.text);
    xm_error_errno(&e, ENOSPC, "%s", big);
    assert_non_null(strstr(e.text, ": No space left on device"));
}

static void must_be_json(const struct xm_error *e)
{
    json_t *s = json_string(e->text);

    if (!s)
        fail_msg("no JSON can be made of this: %s", e->text);
    json_decref(s);
}

/* What broke: a peer's byte, or a character of our own that was cut in its middle, made the last event of a
 * migration none at all, and its job ran for ever. */
static void the_text_is_utf8_whatever_is_put_into_it(void **state)
{
    static const char *const strange[] = {"\xff", "a\xc3(b", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80"};
    struct xm_error e = {0};
    (void)state;

    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        xm_error_set(&e, EIO, "%s", strange[i]);
        must_be_json(&e);
        xm_error_errno(&e, EIO, "%s", strange[i]);
        must_be_json(&e);
        xm_error_prefix(&e, "%s", strange[i]);
        must_be_json(&e);
    }
    for (unsigned n = 0; n < 4; n++) {
        char big[1000] = "xxxx";
        for (size_t at = n; at + 3 < sizeof big; at += 3)
            snprintf(big + at, sizeof big - at, "€");
        xm_error_set(&e, EIO, "%s", big);
        must_be_json(&e);
        xm_error_prefix(&e, "%s", big);
        must_be_json(&e);
        xm_error_errno(&e, EIO, "%s", big);
        must_be_json(&e);
    }
    xm_error_set(&e, EIO, "«ä€😀»");
    assert_string_equal(e.text, "«ä€😀»");
}

static void nobody_has_to_want_the_error(void **state)
{
    (void)state;
    assert_int_equal(xm_error_set(NULL, EIO, "x"), -EIO);
    assert_int_equal(xm_error_errno(NULL, EIO, "x"), -EIO);
    assert_true(xm_error_prefix(NULL, "x") < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_formats_and_returns_the_negative_code),
        cmocka_unit_test(errno_is_told_in_words),
        cmocka_unit_test(prefixes_pile_up),
        cmocka_unit_test(an_error_may_be_set_from_its_own_text),
        cmocka_unit_test(too_long_a_text_is_cut),
        cmocka_unit_test(the_text_is_utf8_whatever_is_put_into_it),
        cmocka_unit_test(nobody_has_to_want_the_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
