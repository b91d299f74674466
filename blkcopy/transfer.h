/* SPDX-License-Identifier: MIT */
/* blkcopy/transfer.h: what one request needs from the kernel, step by step, whichever engine asks the kernel
 * for it.
 *
 * Happy path: transfer_begin, transfer_step, the kernel does all of it, transfer_advance says that the
 * request is over. Else: a short transfer, a piece of a bounced request, an interrupted call or a fallocate
 * that the file cannot do make transfer_advance return false, and the engine asks transfer_step for the next
 * one.
 */
#ifndef BLKCOPY_TRANSFER_H
#define BLKCOPY_TRANSFER_H

#include "blkcopy/blkcopy.h"

enum way { WAY_READ, WAY_WRITE, WAY_SYNC, WAY_PUNCH, WAY_ZERO_RANGE, WAY_WRITE_ZEROS };

/* One system call's worth. */
struct step {
    enum way way;
    int fd;
    const struct iovec *iov; /* READ, WRITE, WRITE_ZEROS */
    int iovcnt;
    uint64_t offset, length;
    int mode; /* of fallocate: PUNCH, ZERO_RANGE */
};

/* Judges the request. 1: go on with transfer_step; 0: nothing to do, it is over; -errno: refused. */
int transfer_begin(struct xm_io *);
/* 0, or -ENOMEM: no memory to bounce through. */
int transfer_step(struct xm_io *, struct step *);
/* res: what the kernel answered to the step, bytes or -errno. True: the request is over with io->res. */
bool transfer_advance(struct xm_io *, int64_t res);
/* Ends a request early, after transfer_begin: frees its bounce buffer. */
void transfer_drop(struct xm_io *);

#endif
