/* SPDX-License-Identifier: MIT */
/* blkcopy/engine.h: what the implementations of the I/O engine share with engine.c. */
#ifndef BLKCOPY_ENGINE_H
#define BLKCOPY_ENGINE_H

#include "blkcopy/blkcopy.h"

TAILQ_HEAD(requests, xm_io);

/* NULL with a sentence; the error's code says whether another kind may work (engine.c decides). */
struct xm_engine *uring_open(unsigned depth, struct xm_error *);
struct xm_engine *aio_open(unsigned depth, struct xm_error *);

/* How long a turn may wait: ns until the nearest timer, 0 when it is due, UINT64_MAX without one. */
uint64_t engine_patience(struct xm_engine *);
/* Ends all requests that were in the list at the call, each with its io->res. */
void engine_end_all(struct xm_engine *, struct requests *);

#endif
