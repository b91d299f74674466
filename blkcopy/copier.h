/* SPDX-License-Identifier: MIT */
/* blkcopy/copier.h: the bulk copier, between copier.c (which chunk is claimed, and when) and copier_chunk.c
 * (a claimed chunk until it is copied). All of it belongs to the engine's thread. */
#ifndef XM_BLKCOPY_COPIER_H
#define XM_BLKCOPY_COPIER_H

#include "blkcopy/blkcopy.h"
#include "blkcopy/depth.h"

struct job {
    struct xm_copier *copier;
    int64_t chunk;
    bool again;
    bool bare;                  /* no data: does not count as depth */
    bool skip_zeros;            /* what is zero here need not be sent */
    bool told;                  /* that all of it was read */
    uint64_t since, data;       /* when it was claimed; bytes sent */
    uint64_t offset, end, next; /* next: up to where steps were started */
    uint64_t data_end;          /* up to here it is known not to be a hole */
    unsigned reading, pending;
    int status;
    uint64_t zeros, holes; /* by granule; holes is a subset of zeros */
};

struct step {
    struct xm_io io;
    struct iovec iov;
    struct job *job;
    void *buf;
    unsigned tries, pieces;
    struct step *next_free;
};

struct piece {
    struct xm_rreq rreq;
    struct job *job;
    struct step *step; /* whose buffer it is sent from; NULL: zeros */
    struct piece *next_free;
};

struct xm_copier {
    struct xm_engine *engine;
    struct xm_file *file;
    struct xm_replica *replica;
    struct xm_bufpool *pool;
    uint32_t chunk_size, step_size, granule;
    bool target_zeroed, paused, filling, refill;
    const struct xm_copier_ops *ops;
    void *ctx;
    struct xm_timer more;
    struct depth depth;
    struct xm_bucket rate;
    struct job *current;                           /* claimed, and not all steps of it started; NULL: none */
    uint64_t read_at;                              /* when the last read began */
    unsigned busy, bare, again, steps_busy, reads; /* reads: steps with the engine */
    struct step *free_steps;
    struct piece *free_pieces;
    struct xm_copier_stats stats;
};

/* Claims chunks and starts steps, all that can be started now. What it calls may call it again. */
void copier_fill(struct xm_copier *);
/* Starts the next step of the current job. False: it has to wait, for a buffer or its turn to read. */
bool copier_start_step(struct xm_copier *);
/* Moves a job on when something of it has ended. May free it. */
void copier_job_advance(struct job *);
bool copier_is_hole(struct xm_copier *, uint64_t offset, uint64_t length);
void copier_mark_hole(struct job *, uint64_t offset, uint64_t length);

#endif
