/* SPDX-License-Identifier: MIT */
/* tests/guest/disk.h: a disk under test and the account of what it has acknowledged; private to disk.c and
 * diskload.c. */
#ifndef XM_TESTS_GUEST_DISK_H
#define XM_TESTS_GUEST_DISK_H

#include "tests/guest/guest.h"
#include "tests/guest/record.h"

/* The account of a block: the number of the last acknowledged write, or what a discard or write-zeroes has
 * made of it. */
#define ACC_UNKNOWN   0ull         /* never written by us: not verified */
#define ACC_ZERO      (1ull << 63) /* must read as zeros */
#define ACC_DISCARDED (1ull << 62) /* zeros, or still the write whose number is in the other bits */
#define ACC_SEQ(a)    ((a) & ~(3ull << 62))

struct disk {
    char dev[16], name[32];
    int fd, fd_sync; /* O_DIRECT; the second with O_DSYNC: each of its writes is flushed */
    uint64_t id, seed, span, trim, rate;
    unsigned threads;
    bool no_discard, no_zeroes; /* the device has refused */
    struct gate gate;
    /* Each block belongs to one thread (by its slot) while the gate is open, to whoever has closed it
     * otherwise. */
    uint64_t *acked, *issued;
    uint64_t seq; /* atomic; the last write's number */
    /* Counters, atomic. */
    uint64_t bytes, writes, reads, flushes, discards, zeroes, errors, slowest_ns, busy_ns;
};

#define COUNT(field, n) __atomic_add_fetch(&(field), (n), __ATOMIC_RELAXED)
#define LOOK(field)     __atomic_load_n(&(field), __ATOMIC_RELAXED)

/* One thread's place on a disk: it uses only the slots whose number is `index` modulo `of`. */
struct stroke {
    struct disk *d;
    unsigned index, of;
    uint64_t rng, slot;
    unsigned char *buf; /* REC_SLOT, aligned */
};
int stroke_init(struct stroke *, struct disk *, unsigned index, unsigned of, uint64_t salt);
/* One random operation of writing; returns the bytes written or discarded. */
uint64_t stroke_write(struct stroke *);
/* Reads a random piece and verifies it; returns its bytes. */
uint64_t stroke_read(struct stroke *);
/* Verifies blocks that have been read; returns how many were wrong. */
uint64_t disk_judge(struct disk *, uint64_t block, unsigned count, const unsigned char *buf);

extern struct disk *guest_disks[8];
extern unsigned guest_disk_count;

#endif
