/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <sys/mman.h>

static uint64_t words(const struct xm_bitmap *m)
{
    return (m->bits + 63) / 64;
}

int xm_bitmap_init(struct xm_bitmap *m, uint64_t bits)
{
    m->bits = bits;
    m->word = mmap(NULL, XM_MAX(words(m), 1) * 8, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->word == MAP_FAILED) {
        m->word = NULL;
        return -ENOMEM;
    }
    return 0;
}

void xm_bitmap_destroy(struct xm_bitmap *m)
{
    if (m->word)
        munmap(m->word, XM_MAX(words(m), 1) * 8);
    m->word = NULL;
}

/* The bits of word w that lie in [first, end). */
static uint64_t mask_of(uint64_t w, uint64_t first, uint64_t end)
{
    uint64_t mask = ~0ull;
    if (w == first / 64)
        mask &= ~0ull << (first % 64);
    if (w == (end - 1) / 64 && end % 64)
        mask &= ~0ull >> (64 - end % 64);
    return mask;
}

void xm_bitmap_set(struct xm_bitmap *m, uint64_t first, uint64_t count)
{
    if (first >= m->bits || !count)
        return;
    uint64_t end = first + XM_MIN(count, m->bits - first);
    for (uint64_t w = first / 64; w <= (end - 1) / 64; w++) {
        /* Release: who takes the bit out sees the write that it stands for. Never skipped when the bit is set
         * already: the taker may be taking it out at this moment, before our write. */
        __atomic_fetch_or(&m->word[w], mask_of(w, first, end), __ATOMIC_RELEASE);
    }
}

void xm_bitmap_clear(struct xm_bitmap *m, uint64_t first, uint64_t count)
{
    if (first >= m->bits || !count)
        return;
    uint64_t end = first + XM_MIN(count, m->bits - first);
    for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
        __atomic_fetch_and(&m->word[w], ~mask_of(w, first, end), __ATOMIC_ACQ_REL);
}

bool xm_bitmap_test(const struct xm_bitmap *m, uint64_t bit)
{
    return bit < m->bits && (__atomic_load_n(&m->word[bit / 64], __ATOMIC_ACQUIRE) >> (bit % 64) & 1);
}

uint64_t xm_bitmap_take_word(struct xm_bitmap *m, uint64_t i)
{
    if (!__atomic_load_n(&m->word[i], __ATOMIC_RELAXED))
        return 0;
    return __atomic_exchange_n(&m->word[i], 0, __ATOMIC_ACQ_REL);
}

static uint64_t next_matching(const struct xm_bitmap *m, uint64_t from, uint64_t flip)
{
    for (uint64_t w = from / 64; from < m->bits && w < words(m); w++) {
        uint64_t v = __atomic_load_n(&m->word[w], __ATOMIC_ACQUIRE) ^ flip;
        if (w == from / 64)
            v &= ~0ull << (from % 64);
        if (v) {
            uint64_t bit = w * 64 + (uint64_t)__builtin_ctzll(v);
            return XM_MIN(bit, m->bits);
        }
    }
    return m->bits;
}

uint64_t xm_bitmap_next(const struct xm_bitmap *m, uint64_t from)
{
    return next_matching(m, from, 0);
}

uint64_t xm_bitmap_next_clear(const struct xm_bitmap *m, uint64_t from)
{
    return next_matching(m, from, ~0ull);
}

uint64_t xm_bitmap_count(const struct xm_bitmap *m)
{
    uint64_t n = 0;
    for (uint64_t w = 0; w < words(m); w++)
        n += (uint64_t)__builtin_popcountll(__atomic_load_n(&m->word[w], __ATOMIC_RELAXED));
    return n;
}
