/* SPDX-License-Identifier: MIT */
#include "mirror/vhost_inflight.h"
#include "mirror/virtqueue.h"

#include <stdlib.h>

#define ALIGNMENT 64

size_t vhost_inflight_bytes(uint16_t queue_size)
{
    size_t n = sizeof(struct inflight_queue) + queue_size * sizeof(struct inflight_desc);
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* We may die between any two of these stores, so their order is the protocol. Release keeps it. */
static void put16(uint16_t *at, uint16_t v)
{
    __atomic_store_n(at, v, __ATOMIC_RELEASE);
}

static void set_flag(struct inflight_queue *q, uint16_t head, uint8_t v)
{
    __atomic_store_n(&q->desc[head].inflight, v, __ATOMIC_RELEASE);
}

struct entry {
    uint64_t counter;
    uint16_t head;
};

static int by_counter(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->counter < y->counter ? -1 : x->counter > y->counter;
}

int vhost_inflight_resume(struct inflight_queue *q, uint16_t num, uint16_t used, uint16_t *heads,
                          uint64_t *counter)
{
    *counter = 0;
    uint16_t batch = (uint16_t)(used - q->used_idx);
    if (q->version == 0 || batch > num) {
        /* New, as after a migration, when the ring is not at 0 but the region is; or of another life of the
         * ring: no batch is longer than the ring. Nothing in it is about this ring. */
        for (uint16_t i = 0; i < num; i++)
            set_flag(q, i, 0);
        q->last_batch_head = 0;
        q->desc_num = num;
        put16(&q->used_idx, used);
        put16(&q->version, 1);
        return -1;
    }
    uint16_t at = q->last_batch_head;
    for (uint16_t i = 0; i < batch && at < num; i++) {
        set_flag(q, at, 0);
        at = q->desc[at].next;
    }
    put16(&q->used_idx, used);

    struct entry found[VIRTQUEUE_MAX];
    int n = 0;
    for (uint16_t i = 0; i < num; i++) {
        if (!q->desc[i].inflight)
            continue;
        found[n++] = (struct entry){q->desc[i].counter, i};
        if (q->desc[i].counter >= *counter)
            *counter = q->desc[i].counter + 1;
    }
    if (n > 0)
        qsort(found, (size_t)n, sizeof *found, by_counter);
    for (int i = 0; i < n; i++)
        heads[i] = found[i].head;
    return n;
}

void vhost_inflight_take(struct inflight_queue *q, uint16_t head, uint64_t counter)
{
    q->desc[head].counter = counter;
    set_flag(q, head, 1);
}

void vhost_inflight_batch(struct inflight_queue *q, uint16_t head)
{
    q->desc[head].next = q->last_batch_head;
    put16(&q->last_batch_head, head);
}

void vhost_inflight_done(struct inflight_queue *q, const uint16_t *heads, unsigned n, uint16_t used)
{
    for (unsigned i = 0; i < n; i++)
        set_flag(q, heads[i], 0);
    put16(&q->used_idx, used);
}
