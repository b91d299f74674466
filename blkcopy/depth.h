/* SPDX-License-Identifier: MIT */
/* How many chunks the copier may have claimed at once. Private to blkcopy; depth.c tells how it is found. */
#ifndef BLKCOPY_DEPTH_H
#define BLKCOPY_DEPTH_H

#include <stdbool.h>
#include <stdint.h>

#define DEPTH_CLASSES 4u

struct depth {
    uint64_t target;              /* ns of queueing that are welcome */
    unsigned now, max;            /* chunks */
    uint64_t base[DEPTH_CLASSES]; /* the shortest latency seen, by how much of a chunk is data */
    uint64_t confirmed;           /* when one nearly as short was seen last */
    bool doubling;                /* nothing was too deep so far */
    unsigned probing;             /* not 0: finding `base` anew; the depth to go back to */
    unsigned ceiling;             /* until retry_at: deeper than this was too deep */
    uint64_t retry_at;
    struct {
        uint64_t from;            /* chunks claimed since then are judged */
        unsigned copied, used;    /* of them; the most that were claimed at once */
        uint64_t queued, latency; /* of the one that was queued for the shortest time */
    } round;
};

void depth_init(struct depth *, unsigned max, uint64_t target, uint64_t now);
/* A chunk was claimed; so many are now. */
void depth_claimed(struct depth *, unsigned claimed);
/* A chunk that was claimed at `since` has been copied well; data: bytes of it that were sent, not 0. */
void depth_copied(struct depth *, uint64_t since, uint64_t now, uint64_t data, uint64_t chunk_size);

#endif
