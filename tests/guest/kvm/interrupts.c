/* SPDX-License-Identifier: MIT */
/* The processor's tables, and the PIT as the only source of interrupts. */
#include "tests/guest/kvm/kvmguest.h"

#define VECTOR 0x20
#define PIT_HZ 1193182u

struct __attribute__((packed)) table {
    uint16_t limit;
    const void *at;
};

static const uint64_t gdt[] = {0, 0x00cf9b000000ffffull /* code */, 0x00cf93000000ffffull /* data */};
static uint64_t idt[VECTOR + 1];

void load_tables(const struct table *gdt, const struct table *idt);
void timer(void);
void fault_entry(void);

static uint64_t gate(void (*entry)(void))
{
    uint32_t at = (uint32_t)entry;

    return (at & 0xffffu) | 8u << 16 | (uint64_t)((at & 0xffff0000u) | 0x8e00u) << 32;
}

void interrupts_begin(uint32_t beat_us)
{
    const struct table g = {sizeof gdt - 1, gdt}, i = {sizeof idt - 1, idt};
    uint32_t divisor = (PIT_HZ / 100) * beat_us / 10000;
    static const uint8_t pic[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, VECTOR}, {0xa1, VECTOR + 8},
                                     {0x21, 4},    {0xa1, 2},    {0x21, 1},      {0xa1, 1},
                                     {0x21, 0xfe}, {0xa1, 0xff}}; /* all but the timer are masked */

    for (uint32_t n = 0; n < VECTOR; n++)
        idt[n] = gate(fault_entry);
    idt[VECTOR] = gate(timer);
    load_tables(&g, &i);
    for (uint32_t n = 0; n < sizeof pic / sizeof *pic; n++)
        out8(pic[n][0], pic[n][1]);
    out8(0x43, 0x34); /* counter 0, both bytes, rate generator */
    out8(0x40, (uint8_t)divisor);
    out8(0x40, (uint8_t)(divisor >> 8));
}
