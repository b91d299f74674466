/* SPDX-License-Identifier: MIT */
/* A buddy allocator over one mapping of the bound's size.
 *
 * The mapping asks for huge pages: the kernel then takes a whole buffer as one piece when it pins it for
 * O_DIRECT, instead of 64 pages of 4 KiB (7 % of all CPU time of a disk copy between loop devices in memory).
 *
 * A buffer that comes back keeps its size and is the first to be used again, since it is in the cache.
 * Neighbours become one only when a size has run out. What lies scattered then may leave no room in one piece
 * although the bound is not reached: such a buffer gets a mapping of its own until it comes back.
 */
#include "base/bufpool.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define UNIT_SHIFT 12
#define UNIT       ((size_t)1 << UNIT_SHIFT)
#define ORDERS     10u /* of a buffer: 1 to 512 units */
#define NONE       UINT32_MAX

/* What is known of the block that begins at a unit. */
struct block {
    uint32_t next, prev; /* in the list of free ones of its order */
    uint8_t free;        /* its order + 1; 0: handed out, or no block begins here */
    uint8_t taken;       /* its order + 1 while it is handed out */
};

struct xm_bufpool {
    pthread_mutex_t lock; /* protects all below */
    size_t max, used;
    uint8_t *base, *map;
    size_t mapped;
    uint32_t units;
    struct block *block; /* by unit */
    uint32_t head[ORDERS];
};

static unsigned order_of(size_t len)
{
    unsigned o = 0;

    while ((UNIT << o) < len)
        o++;
    return o;
}

static void put_free(struct xm_bufpool *p, uint32_t at, unsigned order)
{
    struct block *b = &p->block[at];

    *b = (struct block){.next = p->head[order], .prev = NONE, .free = (uint8_t)(order + 1)};
    if (b->next != NONE)
        p->block[b->next].prev = at;
    p->head[order] = at;
}

static void take_free(struct xm_bufpool *p, uint32_t at, unsigned order)
{
    struct block *b = &p->block[at];

    if (b->prev != NONE)
        p->block[b->prev].next = b->next;
    else
        p->head[order] = b->next;
    if (b->next != NONE)
        p->block[b->next].prev = b->prev;
    b->free = 0;
}

/* Makes one of each two free neighbours of the same order, from the smallest on. */
static void merge_all(struct xm_bufpool *p)
{
    for (unsigned o = 0; o + 1 < ORDERS; o++) {
        uint32_t half = 1u << o;
        for (uint32_t at = 0; at + 2 * half <= p->units; at += 2 * half) {
            if (p->block[at].free != o + 1 || p->block[at + half].free != o + 1)
                continue;
            take_free(p, at, o);
            take_free(p, at + half, o);
            put_free(p, at, o + 1);
        }
    }
}

/* The unit at which a block of this order begins, or NONE. */
static uint32_t pool_take(struct xm_bufpool *p, unsigned order)
{
    unsigned o = order;

    while (o < ORDERS && p->head[o] == NONE)
        o++;
    if (o == ORDERS)
        return NONE;
    uint32_t at = p->head[o];
    take_free(p, at, o);
    while (o-- > order)
        put_free(p, at + (1u << o), o);
    return at;
}

static bool make_map(struct xm_bufpool *p)
{
    p->units = (uint32_t)(p->max >> UNIT_SHIFT);
    p->mapped = p->max + XM_BUF_MAX;
    p->map =
        mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->map == MAP_FAILED) {
        p->map = NULL;
        return false;
    }
    p->base = (uint8_t *)(((uintptr_t)p->map + XM_BUF_MAX - 1) / XM_BUF_MAX * XM_BUF_MAX);
    madvise(p->base, p->max, MADV_HUGEPAGE);
    p->block = calloc(p->units + 1, sizeof *p->block);
    return p->block;
}

struct xm_bufpool *xm_bufpool_new(size_t max_bytes)
{
    struct xm_bufpool *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    p->max = max_bytes;
    if (!make_map(p)) {
        xm_bufpool_free(p);
        return NULL;
    }
    for (unsigned o = 0; o < ORDERS; o++)
        p->head[o] = NONE;
    /* From the end, so that the beginning is used first; what is left over beside the whole ones is there
     * too. */
    uint32_t whole = p->units >> (ORDERS - 1) << (ORDERS - 1), at = whole;
    for (unsigned o = ORDERS - 1; o-- > 0;) {
        if (p->units >> o & 1) {
            put_free(p, at, o);
            at += 1u << o;
        }
    }
    while (whole) {
        whole -= 1u << (ORDERS - 1);
        put_free(p, whole, ORDERS - 1);
    }
    return p;
}

/* A mapping for one buffer, which is counted already. */
static void *get_own(struct xm_bufpool *p, size_t bytes)
{
    void *buf = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buf != MAP_FAILED)
        return buf;
    pthread_mutex_lock(&p->lock);
    p->used -= bytes;
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void *xm_bufpool_get(struct xm_bufpool *p, size_t len)
{
    assert(len > 0 && len <= XM_BUF_MAX);
    unsigned order = order_of(len);
    uint32_t at = NONE;

    pthread_mutex_lock(&p->lock);
    bool may = p->used + (UNIT << order) <= p->max;
    if (may) {
        at = pool_take(p, order);
        if (at == NONE) {
            merge_all(p);
            at = pool_take(p, order);
        }
        p->used += UNIT << order;
    }
    if (at != NONE)
        p->block[at].taken = (uint8_t)(order + 1);
    pthread_mutex_unlock(&p->lock);
    if (!may)
        return NULL;
    return at == NONE ? get_own(p, UNIT << order) : p->base + ((size_t)at << UNIT_SHIFT);
}

void xm_bufpool_put(struct xm_bufpool *p, void *buf, size_t len)
{
    if (!buf)
        return;
    unsigned order = order_of(len);
    uintptr_t offset = (uintptr_t)buf - (uintptr_t)p->base; /* of a mapping of its own: beyond all units */
    bool own = offset >> UNIT_SHIFT >= p->units;

    if (own)
        munmap(buf, UNIT << order);
    pthread_mutex_lock(&p->lock);
    /* Invariant: what is handed out was counted, and comes back once. */
    assert(p->used >= UNIT << order);
    p->used -= UNIT << order;
    if (!own) {
        uint32_t at = (uint32_t)(offset >> UNIT_SHIFT);
        assert(p->block[at].taken == order + 1);
        put_free(p, at, order);
    }
    pthread_mutex_unlock(&p->lock);
}

size_t xm_bufpool_used(struct xm_bufpool *p)
{
    pthread_mutex_lock(&p->lock);
    size_t used = p->used;
    pthread_mutex_unlock(&p->lock);
    return used;
}

size_t xm_bufpool_limit(struct xm_bufpool *p)
{
    return p->max;
}

void xm_bufpool_free(struct xm_bufpool *p)
{
    if (!p)
        return;
    assert(p->used == 0);
    if (p->map)
        munmap(p->map, p->mapped);
    free(p->block);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
