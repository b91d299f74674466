/* SPDX-License-Identifier: MIT */
/* Bytes as hex digits, and back. Strict: a token that comes from a peer is either wholly right or refused. */
#include "base/base.h"

#include <string.h>
#include <sys/random.h>

#define RANDOM_MAX 64u

void xm_hex_put(char *text, const void *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *b = bytes;

    for (size_t i = 0; i < n; i++) {
        text[2 * i] = digits[b[i] >> 4];
        text[2 * i + 1] = digits[b[i] & 15];
    }
    text[2 * n] = 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

int xm_hex_get(void *bytes, size_t n, const char *text)
{
    unsigned char *b = bytes;

    if (!text || strlen(text) != 2 * n)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        b[i] = (unsigned char)(high << 4 | low);
    }
    return 0;
}

int xm_hex_random(char *text, size_t n, struct xm_error *e)
{
    unsigned char raw[RANDOM_MAX];

    if (n > sizeof raw)
        return xm_error_set(e, EINVAL, "%zu random bytes at once are too many", n);
    if (getrandom(raw, n, 0) != (ssize_t)n)
        return xm_error_errno(e, errno ? errno : EIO, "no random numbers");
    xm_hex_put(text, raw, n);
    return 0;
}
