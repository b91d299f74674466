/* SPDX-License-Identifier: MIT */
/* base/bitmap.h: a bitmap that several threads may set bits in while one takes them out. Bit = page of 4 KiB
 * in its main use, guest RAM: 24 TiB of it are 768 MiB of bitmap, mapped lazily, so that untouched parts cost
 * nothing. */
#ifndef XM_BASE_BITMAP_H
#define XM_BASE_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

struct xm_bitmap {
    uint64_t bits;
    uint64_t *word; /* (bits + 63) / 64, zero at first */
};

int xm_bitmap_init(struct xm_bitmap *, uint64_t bits); /* 0 or -ENOMEM */
void xm_bitmap_destroy(struct xm_bitmap *);
/* Atomic, any thread. Ranges past the end are cut. */
void xm_bitmap_set(struct xm_bitmap *, uint64_t first, uint64_t count);
void xm_bitmap_clear(struct xm_bitmap *, uint64_t first, uint64_t count);
bool xm_bitmap_test(const struct xm_bitmap *, uint64_t bit);
/* Takes word i out (reads and clears it in one step). */
uint64_t xm_bitmap_take_word(struct xm_bitmap *, uint64_t i);
/* The first set bit at or after `from`, or `bits`. Not a snapshot against concurrent setters. */
uint64_t xm_bitmap_next(const struct xm_bitmap *, uint64_t from);
/* The first clear bit at or after `from`, or `bits`. */
uint64_t xm_bitmap_next_clear(const struct xm_bitmap *, uint64_t from);
uint64_t xm_bitmap_count(const struct xm_bitmap *);

#endif
