/* SPDX-License-Identifier: MIT */
/* A disk: opening, the requests that the mirror has no business with, status.
 *
 * While no mirror is on a request costs one recycled object and one submission; nothing is copied, nothing is
 * looked up. */
#include "mirror/disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_DEFAULT         (1u << 20)
#define WRITE_CAP_DEFAULT     (50 * XM_NS_PER_MS)
#define MIRROR_BUFFER_DEFAULT (64ull << 20)
#define BULK_BUFFER_DEFAULT   (16ull << 20)
/* Two buffers of the smallest chunk. */
#define BUFFER_MIN (64ull << 10)

static int check_opts(struct xm_disk_opts *o, const char *path, struct xm_error *e)
{
    if (o->chunk_size == 0)
        o->chunk_size = CHUNK_DEFAULT;
    if (o->write_cap == 0)
        o->write_cap = WRITE_CAP_DEFAULT;
    if (o->mirror_buffer == 0)
        o->mirror_buffer = MIRROR_BUFFER_DEFAULT;
    if (o->bulk_buffer == 0)
        o->bulk_buffer = BULK_BUFFER_DEFAULT;
    if ((o->chunk_size & (o->chunk_size - 1)) || o->chunk_size < XM_CHUNK_MIN || o->chunk_size > XM_CHUNK_MAX)
        return xm_error_set(e, EINVAL, "%s: the chunk size %u is no power of two from %u to %u", path,
                            o->chunk_size, XM_CHUNK_MIN, XM_CHUNK_MAX);
    if (o->mirror_buffer < BUFFER_MIN || o->bulk_buffer < BUFFER_MIN)
        return xm_error_set(e, EINVAL, "%s: mirror and bulk buffer must be at least %llu bytes", path,
                            (unsigned long long)BUFFER_MIN);
    return 0;
}

struct xm_disk *xm_disk_new(struct xm_engine *engine, struct xm_file *file, const struct xm_disk_opts *opts,
                            struct xm_error *e)
{
    struct xm_disk *d = calloc(1, sizeof *d);

    if (!d) {
        xm_error_set(e, ENOMEM, "no memory for the disk %s", file->path);
        return NULL;
    }
    if (opts)
        d->opts = *opts;
    if (check_opts(&d->opts, file->path, e) < 0) {
        free(d);
        return NULL;
    }
    d->engine = engine;
    d->file = file;
    d->chunk_shift = (unsigned)__builtin_ctz(d->opts.chunk_size);
    d->chunks = (file->size + d->opts.chunk_size - 1) >> d->chunk_shift;
    TAILQ_INIT(&d->guest.free);
    TAILQ_INIT(&d->guest.gated);
    TAILQ_INIT(&d->room.waiting);
    TAILQ_INIT(&d->guest.waits);
    TAILQ_INIT(&d->guest.nobuf);
    TAILQ_INIT(&d->buffer.pending);
    TAILQ_INIT(&d->buffer.free);
    busy_init(&d->guest.busy);
    d->progress.fire = disk_progress_fire;
    d->guest.cap.fire = request_cap_fire;
    return d;
}

void xm_disk_free(struct xm_disk *d)
{
    struct xm_disk_req *r;

    if (!d)
        return;
    assert(d->guest.requests == 0 && !d->copy.copier && !d->verify && TAILQ_EMPTY(&d->guest.gated) &&
           TAILQ_EMPTY(&d->room.waiting));
    xm_engine_timer_cancel(d->engine, &d->progress);
    xm_engine_timer_cancel(d->engine, &d->guest.cap);
    xm_engine_timer_cancel(d->engine, &d->room.retry);
    while ((r = TAILQ_FIRST(&d->guest.free))) {
        TAILQ_REMOVE(&d->guest.free, r, wait);
        free(r);
    }
    buffer_free_lists(d);
    busy_destroy(&d->guest.busy);
    free(d);
}

struct xm_file *xm_disk_file(struct xm_disk *d)
{
    return d->file;
}

struct xm_engine *xm_disk_engine(struct xm_disk *d)
{
    return d->engine;
}

struct xm_disk_req *request_new(struct xm_disk *d, struct xm_breq *b)
{
    struct xm_disk_req *r = TAILQ_FIRST(&d->guest.free);

    if (r)
        TAILQ_REMOVE(&d->guest.free, r, wait);
    else if (!(r = malloc(sizeof *r)))
        return NULL;
    r->disk = d;
    r->breq = b;
    r->state = REQ_PLAIN;
    r->status = 0;
    r->slice = NULL;
    r->at = 0;
    r->mirrored = NULL;
    r->active = false;
    return r;
}

void request_free(struct xm_disk_req *r)
{
    free(r->slice);
    r->slice = NULL;
    r->state = REQ_PLAIN;
    TAILQ_INSERT_HEAD(&r->disk->guest.free, r, wait);
}

/* What the guest does with it nobody here sees: many a file system is read-only from then on. */
static void tell_error(struct xm_disk *d, const struct xm_breq *b, int status)
{
    const char *what = b->op == XM_IO_READ    ? "reading"
                       : b->op == XM_IO_WRITE ? "writing"
                       : b->op == XM_IO_ZERO  ? "discarding or zeroing"
                                              : "flushing";

    xm_log_limited(&d->guest.told, XM_LOG_ERROR,
                   "%s: %s %llu bytes at %llu failed, and the guest has got an I/O error: %s", d->file->path,
                   what, (unsigned long long)b->length, (unsigned long long)b->offset, strerror(-status));
}

void request_complete(struct xm_disk_req *r, int status)
{
    struct xm_disk *d = r->disk;
    struct xm_breq *b = r->breq;
    struct xm_disk_status *s = &d->stats;
    bool modifies = b->op == XM_IO_WRITE || b->op == XM_IO_ZERO;

    d->guest.requests--;
    disk_progress_if_awaited(d);
    if (modifies && (status < 0 || d->room.probe) && room_wait(r, status))
        return;
    if (status < 0) {
        s->errors++;
        if (!modifies || !xm_is_no_room(status)) /* told when it began to wait */
            tell_error(d, b, status);
    } else if (b->op == XM_IO_READ) {
        s->reads++;
        s->read_bytes += b->length;
    } else if (b->op == XM_IO_FLUSH) {
        s->flushes++;
    } else {
        s->writes++;
        s->write_bytes += b->length;
    }
    request_free(r);
    b->done(b, status);
}

static void plain_done(struct xm_io *io, int res)
{
    struct xm_disk_req *r = xm_container_of(io, struct xm_disk_req, io);

    if (r->breq->op == XM_IO_WRITE || r->breq->op == XM_IO_ZERO)
        r->disk->guest.untracked--;
    request_complete(r, res);
}

static void plain_submit(struct xm_disk_req *r)
{
    struct xm_breq *b = r->breq;

    r->io = (struct xm_io){.op = b->op,
                           .unmap = b->unmap,
                           .file = r->disk->file,
                           .offset = b->offset,
                           .length = b->length,
                           .iov = b->iov,
                           .iovcnt = b->iovcnt,
                           .done = plain_done};
    xm_engine_submit(r->disk->engine, &r->io);
}

static bool is_outside(const struct xm_disk *d, const struct xm_breq *b)
{
    return b->op != XM_IO_FLUSH && (b->length > d->file->size || b->offset > d->file->size - b->length);
}

void xm_disk_submit(struct xm_disk *d, struct xm_breq *b)
{
    bool modifies = b->op == XM_IO_WRITE || b->op == XM_IO_ZERO;

    if (is_outside(d, b)) {
        d->stats.errors++;
        b->done(b, -EINVAL);
        return;
    }
    if (b->length == 0 && b->op != XM_IO_FLUSH) {
        b->done(b, 0);
        return;
    }
    struct xm_disk_req *r = request_new(d, b);
    if (!r) {
        d->stats.errors++;
        b->done(b, -ENOMEM);
        return;
    }
    if (d->pivot.gate) {
        r->state = REQ_GATED;
        TAILQ_INSERT_TAIL(&d->guest.gated, r, wait);
        return;
    }
    d->guest.requests++;
    if (d->mirror.mode != XM_MIRROR_OFF)
        d->guest.at = xm_engine_now(d->engine);
    if (modifies && d->mirror.mode != XM_MIRROR_OFF) {
        d->quiesce.spoiled = true;
        request_tracked(r);
        return;
    }
    d->guest.untracked += modifies;
    plain_submit(r);
}

struct status_call {
    struct xm_disk *disk;
    struct xm_disk_status *out;
};

static void take_status(void *arg)
{
    struct status_call *call = arg;
    struct xm_disk *d = call->disk;
    struct xm_disk_status *s = call->out;

    mode_update(d, xm_engine_now(d->engine));
    *s = d->stats;
    s->mode = d->mirror.mode;
    s->size = d->file->size;
    s->chunks_total = d->chunks;
    memcpy(s->chunks, d->copy.map.count, sizeof s->chunks);
    if (d->copy.copier)
        xm_copier_stats(d->copy.copier, &s->copied);
    if (d->mirror.replica)
        xm_replica_digest(d->mirror.replica, &s->digest);
    s->buffer_bytes = d->buffer.used;
    s->waiting = room_waiting(d);
    s->failed = d->mirror.mode == XM_MIRROR_OFF ? 0 : d->copy.failed;
    memcpy(s->why, d->copy.why, sizeof s->why);
}

void xm_disk_status(struct xm_disk *d, struct xm_disk_status *out)
{
    struct status_call call = {.disk = d, .out = out};

    xm_mailbox_call(&d->engine->mailbox, take_status, &call);
}
