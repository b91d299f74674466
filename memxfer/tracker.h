/* SPDX-License-Identifier: MIT */
/* memxfer/tracker.h: what the pre-copy asks of the tracker besides the public part. Private to memxfer. */
#ifndef XM_MEMXFER_TRACKER_H
#define XM_MEMXFER_TRACKER_H

#include "memxfer/memxfer.h"

/* How many pages a collect would report now. Changes nothing. */
int tracker_peek(struct xm_tracker *, uint64_t *pages, struct xm_error *);

#endif
