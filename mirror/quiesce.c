/* SPDX-License-Identifier: MIT */
/* Coming to rest: quiescing before the switch, the pivot of storage-only, mirror on and off.
 *
 * Whoever waits for the disk to come to something says so here; whatever may bring it nearer calls
 * disk_progress(), which has disk_progress_fire() look at everything once, from the top of a turn, with no
 * request half handled.
 *
 * Quiesce: the guest is stopped. When its last request, the mirror buffer and the copier have ended and all
 * chunks are present, the replica is flushed; when all of that still holds after the flush, it is quiesced
 * (invariant 10). A flush that has failed, whoever waited for it, or nobody any more, fails it, and all that
 * follow: what the kernel could not write it says once, and the next flush would say that all is well.
 *
 * Pivot: the guest runs on. IN_STEP waits for all chunks; PREFLUSH flushes the replica while the guest still
 * writes, so that the flush at the end is short; DRAIN holds new requests outside and lets the others end;
 * FLUSH; then the files are swapped and the held requests go to the new one. A chunk that is given up
 * meanwhile sends it back to IN_STEP, with the gate open, and so does a gate that stays closed for GATE_MAX:
 * at most PIVOT_TRIES times. Any failure opens the gate, with the disk where it was.
 */
#include "mirror/disk.h"

#include <assert.h>

#define PIVOT_TRIES 10u
/* How long the guest may be kept waiting outside; then it goes on, and the next try comes later. A disk that
 * has been flushed a moment ago flushes again in a few ms, if others leave it alone. */
#define GATE_MAX   XM_NS_PER_S
#define GATE_RETRY XM_NS_PER_S

void disk_progress(struct xm_disk *d)
{
    if (!d->progress.armed)
        xm_engine_timer_set(d->engine, &d->progress, xm_engine_now(d->engine));
}

void disk_progress_if_awaited(struct xm_disk *d)
{
    if (d->quiesce.done || d->pivot.done || d->off.done || d->verify || d->mirror.mode == XM_MIRROR_STARTING)
        disk_progress(d);
}

static void open_gate(struct xm_disk *d)
{
    struct disk_reqs gated = TAILQ_HEAD_INITIALIZER(gated);
    struct xm_disk_req *r;

    d->pivot.gate = false;
    TAILQ_CONCAT(&gated, &d->guest.gated, wait);
    while ((r = TAILQ_FIRST(&gated))) {
        struct xm_breq *b = r->breq;
        TAILQ_REMOVE(&gated, r, wait);
        request_free(r);
        xm_disk_submit(d, b);
    }
}

static void quiesce_end(struct xm_disk *d, int status, const char *why)
{
    void (*done)(void *, int, const char *) = d->quiesce.done;

    d->quiesce.done = NULL;
    done(d->quiesce.arg, status, why);
}

static void pivot_end(struct xm_disk *d, int status, const char *why)
{
    void (*done)(void *, int, const char *) = d->pivot.done;

    xm_engine_timer_cancel(d->engine, &d->pivot.gate_limit);
    d->pivot.done = NULL;
    d->pivot.step = PIVOT_NONE;
    done(d->pivot.arg, status, why);
    if (d->pivot.gate)
        open_gate(d);
}

void switch_fail(struct xm_disk *d, int status, const char *why)
{
    if (d->quiesce.done)
        quiesce_end(d, status, why);
    if (d->pivot.done)
        pivot_end(d, status, why);
    verify_fail(d, status, why);
}

/* ---- the replica's flush ---- */

static void flush_ended(struct xm_rreq *r, int status)
{
    struct xm_disk *d = xm_container_of(r, struct xm_disk, flush.request);

    d->flush.busy = false;
    d->flush.done = !d->flush.old;
    d->flush.old = false;
    if (status < 0)
        d->flush.failed = status;
    disk_progress(d);
}

static void flush_replica(struct xm_disk *d)
{
    d->flush.done = false;
    d->flush.busy = true;
    d->flush.request = (struct xm_rreq){.op = XM_IO_FLUSH, .urgent = true, .done = flush_ended};
    xm_replica_submit(d->mirror.replica, &d->flush.request);
}

/* ---- quiesce ---- */

/* What invariant 10 asks for, but the flush. */
static bool at_rest(const struct xm_disk *d)
{
    return d->guest.requests == 0 && mirror_quiet(d) && d->buffer.used == 0 && xm_disk_in_step(d);
}

static void quiesce_step(struct xm_disk *d)
{
    if (!d->quiesce.done || d->flush.busy)
        return;
    if (d->quiesce.spoiled) {
        quiesce_end(d, -EBUSY, "the guest wrote to the disk while it was being quiesced");
    } else if (d->flush.failed) {
        quiesce_end(d, d->flush.failed, "flushing the disk at the destination failed");
    } else if (!at_rest(d)) {
        d->flush.done = false;
    } else if (!d->flush.done) {
        flush_replica(d);
    } else {
        quiesce_end(d, 0, NULL);
    }
}

void xm_disk_quiesce(struct xm_disk *d, void (*done)(void *, int status, const char *why), void *arg)
{
    assert(!d->quiesce.done && !d->pivot.done);
    d->quiesce.done = done;
    d->quiesce.arg = arg;
    d->quiesce.spoiled = false;
    d->flush.done = false;
    d->flush.old = d->flush.busy; /* of one that was cancelled: the guest has written since */
    disk_progress(d);
}

void xm_disk_quiesce_cancel(struct xm_disk *d)
{
    if (d->quiesce.done)
        quiesce_end(d, -ETIMEDOUT, "it did not come to rest in time");
}

/* ---- pivot ---- */

static void pivot_swap(struct xm_disk *d)
{
    int r;

    assert(at_rest(d));
    if (d->pivot.commit && (r = d->pivot.commit(d->pivot.arg)) < 0) {
        pivot_end(d, r, "the new file cannot be recorded as the disk's");
        return;
    }
    d->file = d->pivot.file;
    mirror_teardown(d);
    pivot_end(d, 0, NULL);
}

static void pivot_back(struct xm_disk *d, int status, const char *why)
{
    xm_engine_timer_cancel(d->engine, &d->pivot.gate_limit);
    if (++d->pivot.tries >= PIVOT_TRIES) {
        pivot_end(d, status, why);
        return;
    }
    d->pivot.step = PIVOT_IN_STEP;
    open_gate(d);
    disk_progress(d);
}

static void gate_retry(struct xm_timer *t)
{
    disk_progress(xm_container_of(t, struct xm_disk, pivot.gate_limit));
}

/* The flush that was too slow goes on; what it brings does not count any more. */
static void gate_too_long(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, pivot.gate_limit);

    pivot_back(d, -ETIMEDOUT, "the new disk is too slow to switch to it while the guest waits");
    if (!d->pivot.done)
        return;
    d->pivot.gate_limit.fire = gate_retry;
    xm_engine_timer_set(d->engine, &d->pivot.gate_limit, xm_engine_now(d->engine) + GATE_RETRY);
}

static void close_gate(struct xm_disk *d)
{
    d->pivot.gate = true;
    d->pivot.gate_limit.fire = gate_too_long;
    xm_engine_timer_set(d->engine, &d->pivot.gate_limit, xm_engine_now(d->engine) + GATE_MAX);
}

static void pivot_step(struct xm_disk *d)
{
    if (!d->pivot.done || d->flush.busy)
        return;
    if (d->flush.failed) {
        pivot_end(d, d->flush.failed, "flushing the new disk failed");
        return;
    }
    switch (d->pivot.step) {
    case PIVOT_NONE:
        break;
    case PIVOT_IN_STEP:
        if (!xm_disk_in_step(d) || d->pivot.gate_limit.armed)
            break;
        d->pivot.step = PIVOT_PREFLUSH;
        flush_replica(d);
        break;
    case PIVOT_PREFLUSH:
        close_gate(d);
        d->pivot.step = PIVOT_DRAIN;
        d->flush.done = false;
        disk_progress(d);
        break;
    case PIVOT_DRAIN:
        if (d->guest.requests > 0 || !mirror_quiet(d))
            break;
        if (!xm_disk_in_step(d)) {
            pivot_back(d, -EIO, "the new disk keeps falling behind");
            break;
        }
        d->pivot.step = PIVOT_FLUSH;
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
    assert(!d->quiesce.done && !d->pivot.done);
    d->pivot.file = file;
    d->pivot.commit = commit;
    d->pivot.done = done;
    d->pivot.arg = arg;
    d->pivot.step = PIVOT_IN_STEP;
    d->pivot.tries = 0;
    d->flush.done = false;
    disk_progress(d);
}

/* ---- all of them ---- */

static void check_hopeless(struct xm_disk *d)
{
    if (!d->quiesce.done && !d->pivot.done && !d->verify)
        return;
    /* It is not written here, and would be lost there. A pivot does it with the new file. */
    if (d->quiesce.done && room_waiting(d)) {
        quiesce_end(d, -ENOSPC, "a write of the guest waits for room in its file system here");
        return;
    }
    if (d->mirror.mode == XM_MIRROR_OFF)
        switch_fail(d, -EINVAL, "the disk is not being mirrored");
    else if (d->copy.failed)
        switch_fail(d, d->copy.failed, d->copy.why);
    else if (d->mirror.lost)
        switch_fail(d, -ENOLINK, "no link to the destination is up");
}

void disk_progress_fire(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, progress);

    if (d->mirror.mode == XM_MIRROR_STARTING && d->guest.untracked == 0)
        mirror_begin(d);
    if (d->copy.copier && d->copy.pauses == 0)
        xm_copier_pause(d->copy.copier, false);
    verify_step(d);
    if (d->off.done && mirror_quiet(d)) {
        void (*done)(void *) = d->off.done;
        d->off.done = NULL;
        mirror_teardown(d);
        done(d->off.arg);
        return;
    }
    check_hopeless(d);
    quiesce_step(d);
    pivot_step(d);
}
