/* SPDX-License-Identifier: MIT */
/* The life of a guest write while the mirror is on.
 *
 *   START: it enters the chunks that it touches
 *     overlaps an earlier write              ─> BLOCKED ─UNBLOCKED─> route
 *     else                                   ─> route
 *   route:
 *     a chunk of it is being read            ─> HELD, until all of it is (RETRY) or past the cap (CAP)
 *     a chunk of it is followed, no buffer   ─> NOBUF, likewise
 *     else                                   ─> LOCAL: with the engine, and its pieces with the replica
 *   A chunk is followed when it is present, or when its copy has been read and is on its way: pieces land per
 *   chunk in the order in which the replica got them (invariant 5), so those of a write that begins now land
 *   on top of the copy's. Only a write that begins while the chunk is being read must not: a read that has
 *   begun may still see the disk as it was before it.
 *   LOCAL ─> the guest gets its answer; in sync mode ─> SYNC until the replica is
 *   done with it (MIRRORED) or the cap has passed
 *
 * Past the cap the guest does not wait any more, whatever it waits for: a chunk whose copy is under way
 * becomes stale, a present chunk is given up; the copier brings both again (invariant 6). Each request has
 * one budget of write_cap for all its waiting.
 *
 * The local write's error is the guest's, and makes the chunks absent: what is on either side is not known
 * then. */
#include "mirror/disk.h"

#include <assert.h>
#include <stdlib.h>

static void request_route(struct xm_disk_req *r, bool first_in_queue);

static uint64_t first_chunk(const struct xm_disk_req *r)
{
    return r->offset >> r->disk->chunk_shift;
}

static uint64_t last_chunk(const struct xm_disk_req *r)
{
    return (r->offset + r->length - 1) >> r->disk->chunk_shift;
}

/* ---- waiting ---- */

static void wait_enter(struct xm_disk_req *r, enum req_state state)
{
    struct xm_disk *d = r->disk;
    struct xm_disk_req *before;

    r->state = state;
    d->guest.held += state == REQ_HELD;
    r->wait_from = xm_engine_now(d->engine);
    r->deadline = r->wait_from + r->budget;
    for (before = TAILQ_LAST(&d->guest.waits, disk_reqs); before && before->deadline > r->deadline;)
        before = TAILQ_PREV(before, disk_reqs, wait);
    if (before)
        TAILQ_INSERT_AFTER(&d->guest.waits, before, r, wait);
    else
        TAILQ_INSERT_HEAD(&d->guest.waits, r, wait);
    if (state == REQ_NOBUF)
        TAILQ_INSERT_TAIL(&d->guest.nobuf, r, queue);
    if (TAILQ_FIRST(&d->guest.waits) == r)
        xm_engine_timer_set(d->engine, &d->guest.cap, r->deadline);
}

static void wait_leave(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;
    uint64_t waited = xm_engine_now(d->engine) - r->wait_from;

    TAILQ_REMOVE(&d->guest.waits, r, wait);
    if (r->state == REQ_NOBUF)
        TAILQ_REMOVE(&d->guest.nobuf, r, queue);
    if (r->state == REQ_HELD) {
        d->guest.held--;
        d->stats.held_ns_max = XM_MAX(d->stats.held_ns_max, waited);
    }
    r->budget -= XM_MIN(r->budget, waited);
}

/* The timer of disk->waits. It may fire early for one that has left: then it is set anew. */
void request_cap_fire(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, guest.cap);
    struct xm_disk_req *r;

    while ((r = TAILQ_FIRST(&d->guest.waits))) {
        if (r->deadline > xm_engine_now(d->engine)) {
            xm_engine_timer_set(d->engine, &d->guest.cap, r->deadline);
            return;
        }
        request_event(r, REQ_EV_CAP, 0);
    }
}

void request_release_all(struct xm_disk *d)
{
    struct disk_reqs all = TAILQ_HEAD_INITIALIZER(all);
    struct xm_disk_req *r;

    TAILQ_FOREACH (r, &d->guest.waits, wait)
        TAILQ_INSERT_TAIL(&all, r, ready);
    request_event_all(&all, REQ_EV_CAP);
}

void request_event_all(struct disk_reqs *list, enum req_event event)
{
    struct xm_disk_req *r;

    while ((r = TAILQ_FIRST(list))) {
        TAILQ_REMOVE(list, r, ready);
        request_event(r, event, 0);
    }
}

/* ---- parts ---- */

static void part_begin(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;
    uint64_t rest = r->breq->length - r->at;

    r->offset = r->breq->offset + r->at;
    if (r->breq->op == XM_IO_WRITE) {
        r->length = XM_MIN(rest, buffer_part_max(d));
    } else {
        uint64_t n = XM_MAX(1u, XM_MIN(64u, d->opts.mirror_buffer / 4 / 4096));
        r->length = XM_MIN(rest, ((first_chunk(r) + n) << d->chunk_shift) - r->offset);
    }
    if (busy_enter(r) < 0) {
        request_complete(r, -ENOMEM);
        return;
    }
    if (r->blockers > 0)
        r->state = REQ_BLOCKED;
    else
        request_route(r, false);
}

static void part_end(struct xm_disk_req *r)
{
    r->at += r->length;
    if (r->status == 0 && r->at < r->breq->length)
        request_event(r, REQ_EV_START, 0);
    else
        request_complete(r, r->status);
}

/* ---- the way of a write ---- */

static void local_io_done(struct xm_io *io, int res)
{
    request_event(xm_container_of(io, struct xm_disk_req, io), REQ_EV_LOCAL, res);
}

/* The guest's iov from `at`, for a part that is only a part. */
static int slice_iov(struct xm_disk_req *r)
{
    const struct xm_breq *b = r->breq;
    uint64_t skip = r->at, left = r->length;
    int n = 0;

    if (r->at == 0 && r->length == b->length) {
        r->io.iov = b->iov;
        r->io.iovcnt = b->iovcnt;
        return 0;
    }
    if (!r->slice && !(r->slice = calloc((size_t)b->iovcnt, sizeof *r->slice)))
        return -ENOMEM;
    for (int i = 0; i < b->iovcnt && left > 0; i++) {
        uint64_t len = b->iov[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        len = XM_MIN(len - skip, left);
        r->slice[n++] = (struct iovec){(char *)b->iov[i].iov_base + skip, len};
        skip = 0;
        left -= len;
    }
    r->io.iov = r->slice;
    r->io.iovcnt = n;
    return 0;
}

static int local_submit(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;
    const struct xm_breq *b = r->breq;
    int rc = 0;

    r->io = (struct xm_io){.op = b->op,
                           .unmap = b->unmap,
                           .file = d->file,
                           .offset = r->offset,
                           .length = r->length,
                           .done = local_io_done};
    if (r->mirrored && r->mirrored->buf) {
        r->vec = (struct iovec){r->mirrored->buf, r->length};
        r->io.iov = &r->vec;
        r->io.iovcnt = 1;
    } else if (b->op == XM_IO_WRITE) {
        rc = slice_iov(r);
    }
    if (rc == 0)
        xm_engine_submit(d->engine, &r->io);
    return rc;
}

/* What there is among the part's chunks: such as have to be written on both sides, such as are being read. */
struct view {
    bool followed, reading;
};

static struct view look_at_chunks(const struct xm_disk_req *r)
{
    const struct xm_disk *d = r->disk;
    struct view v = {0};

    if (!is_mirroring(d))
        return v;
    for (uint64_t c = first_chunk(r); c <= last_chunk(r); c++) {
        bool followed = chunkmap_is_followed(&d->copy.map, c);
        v.followed |= followed;
        /* A stale copy is not worth waiting for. */
        v.reading |= !followed && chunkmap_state(&d->copy.map, c) == XM_CHUNK_COPYING &&
                     !chunkmap_is_stale(&d->copy.map, c);
    }
    return v;
}

/* Gives up the part's chunks that will not get it: those that are being read, and, unless it is mirrored,
 * the others. */
static void give_up_part(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;

    for (uint64_t c = first_chunk(r); c <= last_chunk(r); c++)
        if (!r->mirrored || !chunkmap_is_followed(&d->copy.map, c))
            give_up_chunk(d, c);
}

/* Decides what becomes of the part, from nothing but the state of its chunks now. Who needs room in the
 * buffer waits behind those that wait for it already, unless it was the first of them. */
static void request_route(struct xm_disk_req *r, bool first_in_queue)
{
    struct xm_disk *d = r->disk;
    struct view v = look_at_chunks(r);
    bool may_wait = r->budget > 0 && !d->mirror.lost;

    if (v.reading && may_wait) {
        d->stats.held++;
        wait_enter(r, REQ_HELD);
        return;
    }
    if (v.followed && !d->mirror.lost) {
        bool queue_up = may_wait && !first_in_queue && !TAILQ_EMPTY(&d->guest.nobuf);
        r->mirrored = queue_up ? NULL : mirrored_new(r);
        if (!r->mirrored && may_wait) {
            d->stats.buffer_waits++;
            wait_enter(r, REQ_NOBUF);
            return;
        }
    }
    /* From here on it happens. Active first: a chunk that is claimed from now on waits for it. */
    r->state = REQ_LOCAL;
    busy_activate(r);
    if (v.reading || v.followed)
        give_up_part(r);
    if (r->mirrored) {
        if (r->mirrored->buf)
            mirrored_fill(r->mirrored, r->breq->iov, r->breq->iovcnt, r->at);
        mirrored_send(r->mirrored);
        mode_update(d, xm_engine_now(d->engine));
    }
    int rc = local_submit(r);
    if (rc < 0)
        request_event(r, REQ_EV_LOCAL, rc);
}

/* True: the guest has to wait for the replica. */
static bool must_sync(const struct xm_disk_req *r)
{
    return r->mirrored->pending > 0 && r->disk->mirror.mode == XM_MIRROR_SYNC && !r->disk->mirror.lost;
}

static void local_done(struct xm_disk_req *r, int status)
{
    struct xm_disk *d = r->disk;
    struct disk_reqs unblocked = TAILQ_HEAD_INITIALIZER(unblocked);
    struct mirrored *m = r->mirrored;
    bool waits = false;

    if (status < 0) {
        r->status = status;
        give_up_range(d, r->offset, r->length);
    }
    bool drained = busy_leave(r, &unblocked);
    if (m && must_sync(r)) {
        if (r->budget > 0)
            waits = true;
        else
            give_up_range(d, m->offset, m->length);
    }
    if (m && !waits) {
        r->mirrored = NULL;
        mirrored_detach(m);
    }
    if (waits)
        wait_enter(r, REQ_SYNC);
    if (m)
        mirrored_local_done(m);
    request_event_all(&unblocked, REQ_EV_UNBLOCKED);
    if (drained)
        disk_progress(d);
    if (!waits)
        part_end(r);
}

void request_event(struct xm_disk_req *r, enum req_event event, int status)
{
    bool waits = r->state == REQ_HELD || r->state == REQ_NOBUF;

    switch (event) {
    case REQ_EV_START:
        part_begin(r);
        break;
    case REQ_EV_UNBLOCKED:
        request_route(r, false);
        break;
    case REQ_EV_RETRY:
        if (!waits)
            break;
        wait_leave(r);
        request_route(r, r->state == REQ_NOBUF);
        break;
    case REQ_EV_CAP:
        if (waits) {
            wait_leave(r);
            r->budget = 0;
            request_route(r, false);
        } else if (r->state == REQ_SYNC) {
            wait_leave(r);
            r->budget = 0;
            give_up_range(r->disk, r->offset, r->length);
            mirrored_detach(r->mirrored);
            r->mirrored = NULL;
            part_end(r);
        }
        break;
    case REQ_EV_LOCAL:
        local_done(r, status);
        break;
    case REQ_EV_MIRRORED:
        if (r->state != REQ_SYNC)
            break;
        wait_leave(r);
        r->mirrored = NULL;
        part_end(r);
        break;
    }
}

void request_tracked(struct xm_disk_req *r)
{
    r->budget = r->disk->opts.write_cap;
    request_event(r, REQ_EV_START, 0);
}
