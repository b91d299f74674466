/* SPDX-License-Identifier: MIT */
/* mirror/virtqueue.h: the device's side of a split virtqueue (virtio 1.2, 2.7).
 *
 * The guest owns the ring and may write anything there at any time. So everything is copied out once and only
 * the copy is looked at; indices are compared with the ring's size, chains are counted, addresses are
 * translated with their length. Whatever breaks the rules ends in -EPROTO with a sentence, and the caller
 * stops the device.
 *
 * A life: virtqueue_start, then pop, push, publish in any number, then virtqueue_stop when nothing is in
 * flight. Engine's thread.
 */
#ifndef XM_MIRROR_VIRTQUEUE_H
#define XM_MIRROR_VIRTQUEUE_H

#include <linux/virtio_ring.h>

#include "mirror/guestmem.h"
#include "mirror/vhost_inflight.h"

#define VIRTQUEUE_MAX 1024
#define CHAIN_IOV_MAX 1024 /* what preadv takes */

struct virtqueue_addr {
    uint64_t desc, avail, used; /* the front end's virtual addresses */
    uint64_t log;               /* guest physical address for the dirty log of the used ring */
    bool log_used;
};

struct virtqueue {
    uint16_t num; /* power of two */
    struct virtqueue_addr addr;
    const struct guestmem *mem;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    bool event_idx, indirect;

    uint16_t last_avail;  /* next to take */
    uint16_t used_idx;    /* next to write; ahead of `published` by what publish has not told yet */
    uint16_t published;   /* what the guest was told */
    uint16_t avail_event; /* what was last written there */
    bool avail_event_set, suppressed, call_due;

    struct inflight_queue *track; /* or NULL */
    uint64_t counter;
    uint16_t again[VIRTQUEUE_MAX]; /* heads to take again after a reconnect, before the available ring */
    unsigned again_at, again_count;
    uint16_t batch[VIRTQUEUE_MAX]; /* heads pushed and not published */
    uint8_t busy[VIRTQUEUE_MAX];   /* head is between pop and publish */
};

/* A request as it came: iov[0 .. out) readable, iov[out .. out+in) writable. Filled by pop. */
struct chain {
    uint16_t head;
    int out, in;
    uint64_t out_len, in_len;
    struct iovec iov[CHAIN_IOV_MAX];
};

/* num, addr, mem, event_idx, indirect and track are set. base: the first available index; a region that
 * knows this ring overrules it (then it is the used index plus what is in flight). 0 or -EPROTO with
 * a sentence: the addresses are not guest memory. */
int virtqueue_start(struct virtqueue *, uint16_t base, struct xm_error *);
/* Finds the rings in a new memory table. The same errors. */
int virtqueue_remap(struct virtqueue *, const struct guestmem *, struct xm_error *);
/* Is there anything to take? */
bool virtqueue_has_more(const struct virtqueue *);
/* Takes the next request. 1: there was one, 0: none, -EPROTO with a sentence: the ring is broken. */
int virtqueue_pop(struct virtqueue *, struct chain *, struct xm_error *);
/* The request is done, having written `len` bytes. The guest hears of it with the next publish. */
void virtqueue_push(struct virtqueue *, uint16_t head, uint32_t len);
/* The request is over but is not answered: after a reconnect it comes again. */
void virtqueue_drop(struct virtqueue *, uint16_t head);
/* Makes what was pushed visible. True when the guest wants to be called. */
bool virtqueue_publish(struct virtqueue *);
/* Asks the guest to kick (true) before we sleep, or not to (false) while we look anyway. After true: are
 * there requests already? */
bool virtqueue_want_kick(struct virtqueue *, bool on);

#endif
