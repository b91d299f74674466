/* SPDX-License-Identifier: MIT */
/* Coming to rest: quiescing before the switch, the pivot of storage-only, mirror on and off.
 *
 * Whoever waits for the disk to come to something says so here; whatever may bring it nearer calls
 * progress(), which has progress_fire() look at everything once, from the top of a turn, with no request half
 * handled.
 *
 * Quiesce: the guest is stopped. When its last request, the mirror buffer and the copier have ended and all
 * chunks are present, the replica is flushed; when all of that still holds after the flush, it is quiesced
 * (invariant 10).
 *
 * Pivot: the guest runs on. IN_STEP waits for all chunks; PREFLUSH flushes the replica while the guest still
 * writes, so that the flush at the end is short; DRAIN holds new requests outside and lets the others end;
 * FLUSH; then the files are swapped and the held requests go to the new one. A chunk that is given up
 * meanwhile sends it back to IN_STEP, with the gate open, and so does a gate that stays closed for GATE_MAX: at
 * most PIVOT_TRIES times. Any failure opens the gate, with the disk where it was.
 */
#include "mirror/disk.h"

#include <assert.h>

#define PIVOT_TRIES 10u
/* How long the guest may be kept waiting outside; then it goes on, and the next try comes later. A disk that
 * has been flushed a moment ago flushes again in a few ms, if others leave it alone. */
#define GATE_MAX   XM_NS_PER_S
#define GATE_RETRY XM_NS_PER_S

void progress(struct xm_disk *d)
{
    if (!d->progress.armed)
        xm_engine_timer_set(d->engine, &d->progress, xm_engine_now(d->engine));
}

void progress_if_awaited(struct xm_disk *d)
{
    if (d->quiesce_done || d->pivot_done || d->off_done || d->verify || d->mode == XM_MIRROR_STARTING)
        progress(d);
}

static void open_gate(struct xm_disk *d)
{
    struct disk_reqs gated = TAILQ_HEAD_INITIALIZER(gated);
    struct xm_disk_req *r;

    d->gate = false;
    TAILQ_CONCAT(&gated, &d->gated, wait);
    while ((r = TAILQ_FIRST(&gated))) {
        struct xm_breq *b = r->breq;
        TAILQ_REMOVE(&gated, r, wait);
        request_free(r);
        xm_disk_submit(d, b);
    }
}

static void quiesce_end(struct xm_disk *d, int status, const char *why)
{
    void (*done)(void *, int, const char *) = d->quiesce_done;

    d->quiesce_done = NULL;
    done(d->quiesce_arg, status, why);
}

static void pivot_end(struct xm_disk *d, int status, const char *why)
{
    void (*done)(void *, int, const char *) = d->pivot_done;

    xm_engine_timer_cancel(d->engine, &d->gate_limit);
    d->pivot_done = NULL;
    d->pivot = PIVOT_NONE;
    done(d->pivot_arg, status, why);
    if (d->gate)
        open_gate(d);
}

void switch_fail(struct xm_disk *d, int status, const char *why)
{
    if (d->quiesce_done)
        quiesce_end(d, status, why);
    if (d->pivot_done)
        pivot_end(d, status, why);
    verify_fail(d, status, why);
}

/* ---- the replica's flush ---- */

static void flush_ended(struct xm_rreq *r, int status)
{
    struct xm_disk *d = xm_container_of(r, struct xm_disk, flush);

    d->flushing = false;
    d->flushed = true;
    d->flush_status = status;
    progress(d);
}

static void flush_replica(struct xm_disk *d)
{
    d->flushed = false;
    d->flushing = true;
    d->flush = (struct xm_rreq){.op = XM_IO_FLUSH, .urgent = true, .done = flush_ended};
    xm_replica_submit(d->replica, &d->flush);
}

/* ---- quiesce ---- */

/* What invariant 10 asks for, but the flush. */
static bool at_rest(const struct xm_disk *d)
{
    return d->requests == 0 && mirror_quiet(d) && d->buffer_used == 0 && xm_disk_in_step(d);
}

static void quiesce_step(struct xm_disk *d)
{
    if (!d->quiesce_done || d->flushing)
        return;
    if (d->quiesce_spoiled) {
        quiesce_end(d, -EBUSY, "the guest wrote to the disk while it was being quiesced");
    } else if (!at_rest(d)) {
        d->flushed = false;
    } else if (!d->flushed) {
        flush_replica(d);
    } else if (d->flush_status < 0) {
        quiesce_end(d, d->flush_status, "flushing the disk at the destination failed");
    } else {
        quiesce_end(d, 0, NULL);
    }
}

void xm_disk_quiesce(struct xm_disk *d, void (*done)(void *, int status, const char *why), void *arg)
{
    assert(!d->quiesce_done && !d->pivot_done);
    d->quiesce_done = done;
    d->quiesce_arg = arg;
    d->quiesce_spoiled = false;
    d->flushed = false;
    progress(d);
}

/* ---- pivot ---- */

static void pivot_swap(struct xm_disk *d)
{
    int r;

    assert(at_rest(d));
    if (d->pivot_commit && (r = d->pivot_commit(d->pivot_arg)) < 0) {
        pivot_end(d, r, "the new file cannot be recorded as the disk's");
        return;
    }
    d->file = d->pivot_file;
    mirror_teardown(d);
    pivot_end(d, 0, NULL);
}

static void pivot_back(struct xm_disk *d, int status, const char *why)
{
    xm_engine_timer_cancel(d->engine, &d->gate_limit);
    if (++d->pivot_tries >= PIVOT_TRIES) {
        pivot_end(d, status, why);
        return;
    }
    d->pivot = PIVOT_IN_STEP;
    open_gate(d);
    progress(d);
}

static void gate_retry(struct xm_timer *t)
{
    progress(xm_container_of(t, struct xm_disk, gate_limit));
}

/* The flush that was too slow goes on; what it brings does not count any more. */
static void gate_too_long(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, gate_limit);

    pivot_back(d, -ETIMEDOUT, "the new disk is too slow to switch to it while the guest waits");
    if (!d->pivot_done)
        return;
    d->gate_limit.fire = gate_retry;
    xm_engine_timer_set(d->engine, &d->gate_limit, xm_engine_now(d->engine) + GATE_RETRY);
}

static void close_gate(struct xm_disk *d)
{
    d->gate = true;
    d->gate_limit.fire = gate_too_long;
    xm_engine_timer_set(d->engine, &d->gate_limit, xm_engine_now(d->engine) + GATE_MAX);
}

static void pivot_step(struct xm_disk *d)
{
    if (!d->pivot_done || d->flushing)
        return;
    if (d->flushed && d->flush_status < 0) {
        pivot_end(d, d->flush_status, "flushing the new disk failed");
        return;
    }
    switch (d->pivot) {
    case PIVOT_NONE:
        break;
    case PIVOT_IN_STEP:
        if (!xm_disk_in_step(d) || d->gate_limit.armed)
            break;
        d->pivot = PIVOT_PREFLUSH;
        flush_replica(d);
        break;
    case PIVOT_PREFLUSH:
        close_gate(d);
        d->pivot = PIVOT_DRAIN;
        d->flushed = false;
        progress(d);
        break;
    case PIVOT_DRAIN:
        if (d->requests > 0 || !mirror_quiet(d))
            break;
        if (!xm_disk_in_step(d)) {
            pivot_back(d, -EIO, "the new disk keeps falling behind");
            break;
        }
        d->pivot = PIVOT_FLUSH;
        flush_replica(d);
        break;
    case PIVOT_FLUSH:
        if (at_rest(d))
            pivot_swap(d);
        else
            pivot_back(d, -EIO, "the new disk keeps falling behind");
        break;
    }
}

void xm_disk_pivot(struct xm_disk *d, struct xm_file *file, int (*commit)(void *arg),
                   void (*done)(void *, int status, const char *why), void *arg)
{
    assert(!d->quiesce_done && !d->pivot_done);
    d->pivot_file = file;
    d->pivot_commit = commit;
    d->pivot_done = done;
    d->pivot_arg = arg;
    d->pivot = PIVOT_IN_STEP;
    d->pivot_tries = 0;
    d->flushed = false;
    progress(d);
}

/* ---- all of them ---- */

static void check_hopeless(struct xm_disk *d)
{
    if (!d->quiesce_done && !d->pivot_done && !d->verify)
        return;
    if (d->mode == XM_MIRROR_OFF)
        switch_fail(d, -EINVAL, "the disk is not being mirrored");
    else if (d->failed)
        switch_fail(d, d->failed, d->why);
    else if (d->lost)
        switch_fail(d, -ENOLINK, "no link to the destination is up");
}

void progress_fire(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, progress);

    if (d->mode == XM_MIRROR_STARTING && d->untracked == 0)
        mirror_begin(d);
    if (d->copier && d->pauses == 0)
        xm_copier_pause(d->copier, false);
    verify_step(d);
    if (d->off_done && mirror_quiet(d)) {
        void (*done)(void *) = d->off_done;
        d->off_done = NULL;
        mirror_teardown(d);
        done(d->off_arg);
        return;
    }
    check_hopeless(d);
    quiesce_step(d);
    pivot_step(d);
}
