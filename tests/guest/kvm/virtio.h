/* SPDX-License-Identifier: MIT */
/* tests/guest/kvm/virtio.h: a virtio-blk device of the modern PCI kind with one queue that is looked at,
 * never waited for. Words of the specification: virtio 1.2, 2.7 (split virtqueues), 4.1 (PCI), 5.2 (block
 * device). */
#ifndef XM_TESTS_GUEST_KVM_VIRTIO_H
#define XM_TESTS_GUEST_KVM_VIRTIO_H

#include "tests/guest/kvm/kvmguest.h"

#define REQUESTS 4u /* under way at once */
#define BUFFER   PAGE

enum { BLK_READ = 0, BLK_WRITE = 1, BLK_FLUSH = 4 };

struct blk_request {
    uint32_t type, unused, sector, sector_high;
    volatile uint8_t status;
    bool under_way;
    uint8_t *buffer; /* BUFFER bytes */
};

struct blk {
    volatile uint8_t *common, *notify, *config;
    volatile struct blk_descriptor *descriptor;
    volatile uint16_t *available, *used;
    uint16_t seen; /* of the used ring */
    uint32_t sectors;
    struct blk_request request[REQUESTS];
};

/* The n-th device on the first bus, made ready. False: there is none. */
bool blk_open(struct blk *, uint32_t n);
/* To or from its buffer; the request is not under way. */
void blk_submit(struct blk *, uint32_t request, uint32_t type, uint32_t sector, uint32_t bytes);
/* The next request that has been completed; -1: none yet. */
int blk_completed(struct blk *);

#endif
