/* SPDX-License-Identifier: MIT */
/* migrate/call.h: what the source asks of the destination over the links: {"call":...} answered by
 * {"ok":...}. */
#ifndef XM_MIGRATE_CALL_H
#define XM_MIGRATE_CALL_H

#include "net/net.h"

/* The answer, a new reference; NULL with a sentence when there is none or it says no. */
json_t *call_destination(struct xm_links *, unsigned attempt, json_t *steals, uint64_t timeout_ns,
                         struct xm_error *);
/* The same for as long as it takes, until over(ctx), asked several times a second, is true. */
json_t *call_destination_until(struct xm_links *, unsigned attempt, json_t *steals, bool (*over)(void *),
                               void *ctx, struct xm_error *);

#endif
