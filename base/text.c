/* SPDX-License-Identifier: MIT */
#include "base/text.h"

#include <stdint.h>
#include <string.h>

/* The bytes that follow the first one; -1: none begins so. */
static int more_of(unsigned char first)
{
    return first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : -1;
}

#define NONE UINT32_MAX

/* Bytes of the character that `s`, which is not empty, begins with; NONE: they are no UTF-8. */
static size_t text_decode(const char *s, uint32_t *c)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    int more = more_of((unsigned char)s[0]);

    *c = NONE;
    if (more < 0)
        return 1;
    uint32_t is = (unsigned char)s[0] & (more < 1 ? 0x7fu : 0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        if (((unsigned char)s[i] & 0xc0) != 0x80)
            return 1;
        is = is << 6 | ((unsigned char)s[i] & 0x3fu);
    }
    if (is >= least[more] && is <= 0x10ffff && (is < 0xd800 || is > 0xdfff))
        *c = is;
    return (size_t)more + 1;
}

/* Unicode's C0 and C1, line and paragraph separator, marks, embeddings, overrides and isolates of direction,
 * and the invisible ones. */
static bool is_harmless(uint32_t c)
{
    bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
    bool format = c == 0xad || c == 0x61c || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
                  (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xe0000 && c < 0xe1000);

    return !control && !format;
}

size_t xm_text_char(const char *s, bool *fits)
{
    uint32_t c;
    size_t length = text_decode(s, &c);

    *fits = c != NONE && is_harmless(c);
    return length;
}

void xm_text_mend(char *s)
{
    uint32_t c;

    while (*s) {
        size_t length = text_decode(s, &c);
        if (c == NONE)
            *s = '?', length = 1;
        s += length;
    }
}

const char *xm_option_cut(char *const *argv, int next, const char *value, const char *name)
{
    const char *word = argv[value && value == argv[next - 1] ? next - 2 : next - 1];
    size_t n = strlen(name);

    return !strncmp(word, "--", 2) && (strncmp(word + 2, name, n) || (word[2 + n] && word[2 + n] != '='))
               ? word
               : NULL;
}

/* ---- base64 ---- */

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void xm_base64_encode(const unsigned char *in, size_t n, char *out)
{
    for (size_t i = 0; i < n; i += 3) {
        unsigned v =
            (unsigned)in[i] << 16 | (i + 1 < n ? (unsigned)in[i + 1] << 8 : 0) | (i + 2 < n ? in[i + 2] : 0);
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < n ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < n ? digits[v & 63] : '=';
    }
    *out = 0;
}

ssize_t xm_base64_decode(const char *in, unsigned char *out, size_t max)
{
    size_t len = strlen(in), n = 0;

    if (len % 4)
        return -1;
    for (size_t i = 0; i < len; i += 4) {
        unsigned v = 0, pad = 0;
        for (size_t k = 0; k < 4; k++) {
            const char *d = in[i + k] != '=' ? strchr(digits, in[i + k]) : NULL;
            if (!d && (in[i + k] != '=' || k < 2 || i + 4 < len))
                return -1;
            if (d && pad)
                return -1;
            pad += !d;
            v = v << 6 | (d ? (unsigned)(d - digits) : 0);
        }
        for (unsigned k = 0; k < 3 - pad; k++) {
            if (n == max)
                return -1;
            out[n++] = (unsigned char)(v >> (16 - 8 * k));
        }
    }
    return (ssize_t)n;
}
