/* SPDX-License-Identifier: MIT */
/* base/rate.h: how fast something goes, and a bound on it. Not thread-safe: one owner. Time is xm_now(),
 * given by the caller. */
#ifndef XM_BASE_RATE_H
#define XM_BASE_RATE_H

#include <stdint.h>

/* Bytes a second over about the last `window` (buckets of a tenth of it). */
struct xm_meter {
    uint64_t window, first, slot_start;
    uint64_t slot[10];
    unsigned at;
    uint64_t total;
};
void xm_meter_init(struct xm_meter *, uint64_t window_ns, uint64_t now);
void xm_meter_add(struct xm_meter *, uint64_t bytes, uint64_t now);
double xm_meter_rate(struct xm_meter *, uint64_t now); /* bytes a second; 0 before the first bytes */

/* A token bucket: rate 0 is no limit. Burst: 10 ms of the rate, at least 256 KiB. */
struct xm_bucket {
    uint64_t rate; /* bytes a second */
    double tokens;
    uint64_t last;
};
void xm_bucket_init(struct xm_bucket *, uint64_t rate, uint64_t now);
void xm_bucket_set(struct xm_bucket *, uint64_t rate, uint64_t now);
/* Takes `bytes` (tokens may go below zero once) and returns how many ns to wait before taking again; 0: go
 * on. */
uint64_t xm_bucket_take(struct xm_bucket *, uint64_t bytes, uint64_t now);

#endif
