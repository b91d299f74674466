/* SPDX-License-Identifier: MIT */
/* mirror/vhost_inflight.h: the region in which a back end notes, per queue, which requests it has taken and
 * not answered. The front end keeps it; after a back end's death the next one reads it and submits again what
 * was in flight.
 *
 * Layout and order of the updates: vhost-user.rst, «Inflight I/O tracking», split virtqueues. The region is
 * shared with the front end, so what is read from it is checked like everything else that comes from there.
 */
#ifndef XM_MIRROR_VHOST_INFLIGHT_H
#define XM_MIRROR_VHOST_INFLIGHT_H

#include <stddef.h>
#include <stdint.h>

struct inflight_desc {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};
struct inflight_queue {
    uint64_t features;
    uint16_t version; /* 0: nothing in it yet */
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct inflight_desc desc[];
};

/* Bytes that one queue takes in the region. */
size_t vhost_inflight_bytes(uint16_t queue_size);

/* A ring starts, with used index `used` in guest memory. Repairs the last batch, and gives the heads of what
 * was in flight, in the order in which they were taken, in heads (room for num). *counter: what the next
 * request shall be numbered. Returns how many; -1: the region is new, or of another life of the ring, and
 * knows nothing of this one; it is in order for it now. */
int vhost_inflight_resume(struct inflight_queue *, uint16_t num, uint16_t used, uint16_t *heads,
                          uint64_t *counter);

/* Taken from the available ring. */
void vhost_inflight_take(struct inflight_queue *, uint16_t head, uint64_t counter);
/* Written to the used ring, whose index does not say so yet. */
void vhost_inflight_batch(struct inflight_queue *, uint16_t head);
/* The used index says so now: the batch is done. */
void vhost_inflight_done(struct inflight_queue *, const uint16_t *heads, unsigned n, uint16_t used);

#endif
