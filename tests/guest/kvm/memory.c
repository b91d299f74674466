/* SPDX-License-Identifier: MIT */
/* All RAM behind the image, page after page, round after round: a page must hold what the last round
 * wrote, and gets what the next one will look for. What it holds depends on the page and on the round: a
 * page that was lost, exchanged or is a round old is seen. A few words of each page are enough, since
 * memory is tracked and sent by pages; they lie spread over it. */
#include "tests/guest/kvm/kvmguest.h"

static uint32_t next_free, limit; /* addresses */
static uint32_t pages, words, cursor, round, checked;

/* The loader's list of memory areas: each is led by its size. The image lies in the one that begins at 1
 * MiB. */
void memory_find(const uint32_t *multiboot)
{
    const uint8_t *at = (const uint8_t *)multiboot[12];
    const uint8_t *end = at + multiboot[11];

    next_free = ((uint32_t)image_end + PAGE - 1) & ~(PAGE - 1);
    if (!(multiboot[0] & 1u << 6))
        return;
    while (at < end) {
        const uint32_t *area = (const uint32_t *)at;
        uint64_t first = area[1] | (uint64_t)area[2] << 32;
        uint64_t past = first + (area[3] | (uint64_t)area[4] << 32);
        if (area[5] == 1 && first <= 0x100000 && past > next_free)
            limit = past > 0xb0000000u ? 0xb0000000u : (uint32_t)past & ~(PAGE - 1);
        at += area[0] + 4;
    }
}

void *memory_take(uint32_t bytes)
{
    uint32_t at = next_free;

    next_free += (bytes + PAGE - 1) & ~(PAGE - 1);
    /* volatile: or the compiler calls memset, which is not there */
    for (volatile uint32_t *p = (uint32_t *)at; p < (uint32_t *)next_free; p++)
        *p = 0;
    return (void *)at;
}

void memory_begin(const struct options *o)
{
    words = o->words;
    pages = limit > next_free ? (limit - next_free) / PAGE : 0;
}

void pattern_write(uint32_t *at, uint32_t bytes, uint32_t n, uint32_t value)
{
    uint32_t step = bytes / n / 4;

    for (uint32_t i = 0; i < n; i++, at += step)
        at[step - 1] = value + i;
}

bool pattern_check(const uint32_t *at, uint32_t bytes, uint32_t n, uint32_t value, char letter,
                   uint32_t where)
{
    uint32_t step = bytes / n / 4;

    for (uint32_t i = 0; i < n; i++, at += step) {
        if (at[step - 1] != value + i) {
            serial_error(letter, where, at[step - 1], value + i);
            return false;
        }
    }
    return true;
}

/* Odd factors: for one page no two rounds have the same value, in one round no two pages. */
static uint32_t value_of(uint32_t page, uint32_t of_round)
{
    return page * 2654435761u ^ of_round * 2246822519u;
}

void memory_step(void)
{
    uint32_t at = next_free + cursor * PAGE;

    if (!pages)
        return;
    if (round)
        pattern_check((uint32_t *)at, PAGE, words, value_of(cursor, round), 'M', at);
    pattern_write((uint32_t *)at, PAGE, words, value_of(cursor, round + 1));
    checked += round != 0;
    if (++cursor == pages) {
        cursor = 0;
        round++;
    }
}

uint32_t memory_pages(void)
{
    return pages;
}

uint32_t memory_rounds(void)
{
    return round ? round - 1 : 0; /* the first only writes */
}

uint32_t memory_checked(void)
{
    return checked;
}
