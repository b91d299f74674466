/* SPDX-License-Identifier: MIT */
#include "base/text.h"

#include <stdint.h>

/* The bytes that follow the first one; -1: none begins so. */
static int more_of(unsigned char first)
{
    return first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : -1;
}

/* Unicode's C0 and C1, line and paragraph separator, marks, embeddings, overrides and isolates of direction,
 * and the invisible ones. */
static bool is_harmless(uint32_t c)
{
    bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
    bool format = c == 0xad || c == 0x61c || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
                  (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xe0000 && c < 0xe1000);

    return !control && !format && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
}

size_t xm_text_char(const char *s, bool *fits)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    int more = more_of((unsigned char)s[0]);
    uint32_t c = (unsigned char)s[0] & (more < 1 ? 0x7fu : 0x3fu >> more);

    *fits = false;
    if (more < 0)
        return 1;
    for (int i = 1; i <= more; i++) {
        if (((unsigned char)s[i] & 0xc0) != 0x80)
            return 1;
        c = c << 6 | ((unsigned char)s[i] & 0x3fu);
    }
    *fits = is_harmless(c) && c >= least[more];
    return (size_t)more + 1;
}
