/* SPDX-License-Identifier: MIT */
/* mirror/virtio_blk.h: virtio block requests, from a chain of guest buffers to requests of the driver and
 * back to a status byte (virtio 1.2, 5.2). Engine's thread.
 */
#ifndef XM_MIRROR_VIRTIO_BLK_H
#define XM_MIRROR_VIRTIO_BLK_H

#include <linux/virtio_blk.h>

#include "mirror/virtqueue.h"

/* With 128 descriptors in a ring that leaves one for the header and one for the status. */
#define BLK_SEG_MAX 126
/* Discard, write zeroes: how much one segment may be, how many segments one request may have. */
#define BLK_ZERO_MAX_SECTORS (256u << 11)
#define BLK_ZERO_MAX_SEGS    16
#define BLK_INLINE_IOV       18

/* What the requests of one device share. */
struct blk_dev {
    struct xm_disk *disk;
    char serial[VIRTIO_BLK_ID_BYTES];
    bool read_only, writeback; /* writeback: a write is done before it is durable, until a flush */
    uint64_t sectors;
    uint32_t block; /* bytes */
};

struct blk_req;
/* The status byte is written and marked; `len` bytes of the writable buffers have been written. */
typedef void blk_done_fn(struct blk_req *, uint32_t len);

/* One slot per descriptor head. */
struct blk_req {
    struct xm_breq b;
    const struct blk_dev *dev;
    const struct guestmem *mem;
    blk_done_fn *done;
    void *owner;
    uint16_t head;
    uint32_t type;
    uint32_t in_len; /* of the data, without the status byte */
    uint8_t *status;
    bool no_room;             /* a write that failed for want of it */
    struct iovec *iov, *heap; /* data; heap: what to free, or NULL */
    int iovcnt;
    unsigned segs, seg; /* discard, write zeroes: how many, which is under way */
    struct virtio_blk_discard_write_zeroes *seg_list;
    struct iovec inline_iov[BLK_INLINE_IOV];
};

/* Feature bits that are the block device's. */
uint64_t blk_features(const struct blk_dev *);
void blk_config(const struct blk_dev *, unsigned queues, bool wce, struct virtio_blk_config *);

/* Starts a request: owner and done are set in r, all else is filled here. 0: done() is or will be called.
 * -EPROTO with a sentence: the chain is no request at all (no header, no place for a status), nothing was
 * started. */
int blk_start(struct blk_req *, const struct blk_dev *, const struct guestmem *, struct chain *,
              struct xm_error *);

#endif
