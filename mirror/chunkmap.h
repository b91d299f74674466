/* SPDX-License-Identifier: MIT */
/* mirror/chunkmap.h: what the other side has of each chunk. One byte per chunk; one owner, the disk's thread.
 */
#ifndef MIRROR_CHUNKMAP_H
#define MIRROR_CHUNKMAP_H

#include "mirror/mirror.h"

enum {
    CHUNK_SENT = 4, /* something of it was sent once: the other side need not read as zeros there any more */
    /* copying only: what is being copied is out of date already; it goes absent when its copy ends */
    CHUNK_STALE = 8,
    /* copying only: all of it has been read and has its place in the order of the replica; what is sent
     * after it lands on top of it. Every change of state clears it: a chunk that is copying to be compared
     * has none. */
    CHUNK_READ = 16
};

struct chunkmap {
    uint64_t chunks;
    uint64_t count[3];         /* by state */
    uint8_t *byte;             /* state | flags */
    uint32_t *absent_in_group; /* so that the search skips what is done in large steps */
    uint64_t cursor;           /* where the next search begins: claims go round the disk */
};

int chunkmap_init(struct chunkmap *, uint64_t chunks); /* all absent and never sent; 0 or -ENOMEM */
void chunkmap_destroy(struct chunkmap *);
enum xm_chunk_state chunkmap_state(const struct chunkmap *, uint64_t chunk);
/* The one setter. Legal: absent -> copying -> present or absent; present -> absent, or copying (to be
 * verified). */
void chunkmap_set_state(struct chunkmap *, uint64_t chunk, enum xm_chunk_state);
bool chunkmap_is_stale(const struct chunkmap *, uint64_t chunk);
void chunkmap_set_stale(struct chunkmap *, uint64_t chunk); /* copying only */
void chunkmap_set_read(struct chunkmap *, uint64_t chunk);  /* copying only */
/* Whether a write to it has to go to both sides: present, or copying, read and not stale. */
bool chunkmap_is_followed(const struct chunkmap *, uint64_t chunk);
/* The next absent chunk, now copying, or -1. *fresh: nothing of it was ever sent before. */
int64_t chunkmap_claim_next(struct chunkmap *, bool *fresh);

#endif
