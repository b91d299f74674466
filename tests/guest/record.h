/* SPDX-License-Identifier: MIT */
/* tests/guest/record.h: the blocks that the test guest writes to its disks, shared with the host side
 * (xm-client fill, check).
 *
 * Every 4 KiB block proves by itself what it is: which disk, which block of it, which write it was part of.
 * So a block that is lost, old, torn, or that went to another place or disk is told apart from a right one.
 */
#ifndef XM_TESTS_GUEST_RECORD_H
#define XM_TESTS_GUEST_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REC_BLOCK       4096u
#define REC_SLOT        65536u /* a record lies within one slot */
#define REC_SLOT_BLOCKS (REC_SLOT / REC_BLOCK)

/* The number of a disk: of its name and the run's seed. */
uint64_t rec_disk_id(const char *name, uint64_t seed);
/* Fills `count` blocks that begin at `block` with the write number `seq`. */
void rec_make(void *buf, uint64_t disk, uint64_t block, unsigned count, uint64_t seq);
/* Judges one block. Returns NULL when it is a whole block of a write lo..hi, else what is wrong (buffer of
 * `why`). */
const char *rec_check(const void *buf, uint64_t disk, uint64_t block, uint64_t lo, uint64_t hi, char *why,
                      size_t why_size);
uint64_t rec_sequence(const void *buf); /* of a block that rec_check has found whole */
bool rec_is_zero(const void *buf, size_t len);

/* Fills words with pseudo-random content. */
void rec_noise(void *buf, size_t len, uint64_t seed);
/* A small random generator: state in *s. */
uint64_t rec_random(uint64_t *s);

#endif
