/* SPDX-License-Identifier: MIT */
/* What the guest says, by the first serial port. */
#include "tests/guest/kvm/kvmguest.h"

#define PORT 0x3f8
#define TOLD 16 /* errors are told, the rest are counted only */

static uint32_t errors;

/* A reader that does not keep up makes the port busy. Text waits for it, but not for ever; a beat is not
 * worth the wait. */
static void put(char c)
{
    for (uint32_t i = 0; i < 1000 && !(in8(PORT + 5) & 0x20); i++) {
    }
    out8(PORT, (uint8_t)c);
}

void serial_char(char c)
{
    out8(PORT, (uint8_t)c);
}

void serial_text(const char *s)
{
    while (*s)
        put(*s++);
}

void serial_number(uint32_t v)
{
    char digit[10];
    uint32_t n = 0;

    do {
        digit[n++] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    while (n)
        put(digit[--n]);
}

static void hexadecimal(uint32_t v)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[v >> shift & 15]);
}

void serial_error(char letter, uint32_t where, uint32_t have, uint32_t want)
{
    if (errors++ >= TOLD)
        return;
    put('\n');
    put(letter);
    serial_text(" at ");
    hexadecimal(where);
    serial_text(" is ");
    hexadecimal(have);
    serial_text(" not ");
    hexadecimal(want);
    put('\n');
}

uint32_t serial_errors(void)
{
    return errors;
}
