/* SPDX-License-Identifier: MIT */
/* memxfer/precopy.h: the pre-copy from inside: precopy.c has the rounds, precopy_frames.c the frames of one
 * on their way. Private to memxfer. One owner thread; what else touches a part says so. */
#ifndef XM_MEMXFER_PRECOPY_H
#define XM_MEMXFER_PRECOPY_H

#include "memxfer/overtaken.h"
#include "memxfer/pages.h"

#include <stdatomic.h>

/* How many frames may be under way: NEAR as a rule, since what is read, hashed and sent soon after stays
 * in the cache (two links of a veth pair: 2.2 to 2.8 GB/s with 64 frames, 2.9 to 3.2 with 8 to 32); up to
 * SLOTS where the way is so long that it takes more to keep it busy. */
#define SLOTS        64u
#define SLOTS_NEAR   16u
#define LOOK_MS      20 /* how often a round is asked whether it goes on */
#define WINDOW_SLACK (PAGES_SEQ_WINDOW / 2)

struct slot {
    struct xm_msg msg;
    TAILQ_ENTRY(slot) link; /* in free or in flight */
    struct xm_precopy *pc;
    struct pages_frame frame;
    uint64_t order, since; /* since: when it was submitted */
};
TAILQ_HEAD(slots, slot);

struct xm_precopy {
    struct xm_ram *ram;
    struct xm_tracker *tracker;
    struct xm_transport *transport;
    struct xm_mailbox mailbox;
    uint8_t *slab;
    struct slot slot[SLOTS];
    struct slots free, flight; /* in flight: oldest first */
    unsigned flying, allowed;  /* how many are in flight, and may be */
    uint64_t way_ns;           /* the shortest time from submitting to the answer; 0: none yet */
    uint64_t order;            /* messages submitted so far */
    uint64_t deadline;         /* xm_now() scale; 0: none */
    uint64_t seq[16];          /* per block */
    struct xm_bitmap dirty[16];
    unsigned bitmaps;
    bool direct[16]; /* the block's pages may be sent from where they lie */
    struct overtaken overtaken;
    unsigned number; /* of rounds */
    double rate;     /* of the last round that told it */
    struct xm_digest digest;
    struct xm_error error; /* the first failure; for good, unless it is `late` */
    bool late;             /* `error` says that a deadline has passed, and nothing else has failed */
    bool whole;            /* the next round sends everything, as the first one does */
    /* Of the running round: */
    struct xm_round *round;
    bool final;
    struct slot *open; /* being filled, for block open_block */
    unsigned open_block;
    bool (*over)(void *);
    void *over_ctx;
    uint64_t looked; /* xm_now(), when it was asked */
    uint64_t first_submit;
    atomic_ullong done, of; /* pages */
};

/* precopy_frames.c */
/* 0, or why the round has to end. */
int precopy_trouble(struct xm_precopy *);
/* Pages that read as zeros; pages that hold something, or may. In ascending order within a block. */
int precopy_send_zeros(struct xm_precopy *, unsigned block, uint64_t page, uint64_t n);
int precopy_send_pages(struct xm_precopy *, unsigned block, uint64_t page, uint64_t n);
/* What is still being filled goes, too. */
void precopy_send_last(struct xm_precopy *);

#endif
