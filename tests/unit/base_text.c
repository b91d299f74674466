/* SPDX-License-Identifier: MIT */
/* Which characters of a stranger's text are shown, and how long each is. */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* One character a row. */
static const struct {
    const char *text;
    size_t length;
    bool fits;
} cases[] = {
    {"a", 1, true},
    {"ä", 2, true},
    {"€", 3, true},
    {"😀", 4, true},
    {"\n", 1, false},
    {"\033", 1, false},
    {"\x7f", 1, false},
    {"\xc2\x9b", 2, false},         /* CSI in one character */
    {"\u202e", 3, false},           /* all that follows is shown from right to left */
    {"\u2066", 3, false},           /* isolate */
    {"\u200b", 3, false},           /* no width */
    {"\u2028", 3, false},           /* ends a line */
    {"\ufeff", 3, false},           /* no width */
    {"\U000e0041", 4, false},       /* a tag: invisible */
    {"\xc0\xaf", 1, false},         /* too long a way to write '/' */
    {"\xe0\x80\xaf", 3, false},     /* likewise */
    {"\xed\xa0\x80", 3, false},     /* half of a pair */
    {"\xf4\x90\x80\x80", 4, false}, /* beyond the last one */
    {"\x9b", 1, false},
    {"\xff", 1, false},
    {"\xc3", 1, false}, /* ends too early */
    {"\xe2\x82", 1, false},
    {"\xe2(", 1, false},
};

static void each_is_shown_or_not(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool fits;
        size_t length = xm_text_char(cases[i].text, &fits);
        if (length != cases[i].length || fits != cases[i].fits)
            fail_msg("row %zu: %zu bytes, %s", i, length, fits ? "fits" : "does not fit");
    }
}

static void base64_is_rfc_4648s(void **state)
{
    static const char *const text[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    static const char *const none[] = {"Z", "Zg", "Zg=", "Z===", "Zg==Zm8=", "Zm9\n", "Z=9v", "Zm 9"};
    char out[12];
    unsigned char in[8];

    (void)state;
    for (size_t n = 0; n < sizeof text / sizeof *text; n++) {
        xm_base64_encode((const unsigned char *)"foobar", n, out);
        assert_string_equal(out, text[n]);
        assert_int_equal(xm_base64_decode(text[n], in, n), n);
        assert_memory_equal(in, "foobar", n);
        if (n)
            assert_int_equal(xm_base64_decode(text[n], in, n - 1), -1);
    }
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(xm_base64_decode(none[i], in, sizeof in), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_is_shown_or_not),
                                       cmocka_unit_test(base64_is_rfc_4648s)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
