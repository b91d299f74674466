/* SPDX-License-Identifier: MIT */
/* The mirror's bulk copy: which chunk is next, and what becomes of it. The mirror's beginning and end. */
#include "mirror/disk.h"

#include <stdio.h>
#include <string.h>

/* A chunk that fails to copy is tried again, after a while, behind all others. So many failures in a row end
 * the copy. */
#define FAILURES_MAX 8u
#define BACKOFF      (20 * XM_NS_PER_MS)
#define GUEST_RECENT (2 * XM_NS_PER_MS)

void copier_pause(struct xm_disk *d, unsigned reason)
{
    d->copy.pauses |= reason;
    if (d->copy.copier)
        xm_copier_pause(d->copy.copier, true);
}

/* What can be claimed now is claimed by disk_progress_fire, not here: whoever calls may be about to start a
 * write.
 */
void copier_resume(struct xm_disk *d, unsigned reason)
{
    d->copy.pauses &= ~reason;
    disk_progress(d);
}

/* Invariant 2: the chunk is `copying`, and no write is with the engine in it, before the copier looks at it.
 */
static int64_t next_chunk(void *ctx, bool *fresh)
{
    struct xm_disk *d = ctx;
    struct busy_table *f = &d->guest.busy;
    int64_t chunk;

    if (!is_mirroring(d))
        return -1;
    if (f->ndrained > 0) {
        f->ndrained--;
        *fresh = f->drained[f->ndrained].fresh;
        return (int64_t)f->drained[f->ndrained].chunk;
    }
    /* What drains is `copying` as well: it has its place in the copier's depth, so that its copy can start
     * as soon as it has drained. */
    while (f->draining < XM_MIN(DRAIN_MAX, xm_copier_room(d->copy.copier))) {
        chunk = chunkmap_claim_next(&d->copy.map, fresh);
        if (chunk < 0 || busy_drain(d, (uint64_t)chunk, *fresh))
            return chunk;
    }
    return -1;
}

static void copy_failed(struct xm_disk *d, uint64_t chunk, int status)
{
    struct xm_copier_stats now;
    bool gone = status == -ENOLINK || status == -ECANCELED;

    xm_copier_stats(d->copy.copier, &now);
    bool reading = now.read_errors > d->stats.copied.read_errors;
    d->stats.copied = now;
    if (++d->copy.failures < FAILURES_MAX && !gone) {
        copier_pause(d, PAUSE_BACKOFF);
        xm_engine_timer_set(d->engine, &d->copy.backoff,
                            xm_engine_now(d->engine) + d->copy.failures * BACKOFF);
        return;
    }
    d->copy.failed = status;
    if (gone)
        snprintf(d->copy.why, sizeof d->copy.why, "the connection to the copy of %s is lost: %s",
                 d->file->path, strerror(-status));
    else
        snprintf(d->copy.why, sizeof d->copy.why, "copying %s failed near offset %llu, %s: %s", d->file->path,
                 (unsigned long long)chunk << d->chunk_shift,
                 reading ? "reading it" : "writing at the destination", strerror(-status));
    copier_pause(d, PAUSE_FAILED);
}

void chunk_release(struct xm_disk *d, uint64_t chunk, bool ok)
{
    struct disk_reqs held = TAILQ_HEAD_INITIALIZER(held);
    bool stale = chunkmap_is_stale(&d->copy.map, chunk);

    chunkmap_set_state(&d->copy.map, chunk, ok && !stale ? XM_CHUNK_PRESENT : XM_CHUNK_ABSENT);
    d->stats.given_up += stale;
    if (!ok || stale)
        disk_progress(d);
    busy_held(d, chunk, &held);
    request_event_all(&held, REQ_EV_RETRY);
}

/* Who waited for the chunk to be read goes on: its piece follows the chunk's. */
static void chunk_read(void *ctx, int64_t chunk)
{
    struct disk_reqs held = TAILQ_HEAD_INITIALIZER(held);
    struct xm_disk *d = ctx;

    if (!is_mirroring(d))
        return;
    chunkmap_set_read(&d->copy.map, (uint64_t)chunk);
    busy_held(d, (uint64_t)chunk, &held);
    request_event_all(&held, REQ_EV_RETRY);
}

static void copy_ended(void *ctx, int64_t copied, int status)
{
    struct xm_disk *d = ctx;
    uint64_t chunk = (uint64_t)copied;

    disk_progress_if_awaited(d);
    if (!is_mirroring(d))
        return;
    if (status == 0)
        d->copy.failures = 0;
    else
        copy_failed(d, chunk, status);
    chunk_release(d, chunk, status == 0);
}

/* A guest that was there just now will be there again. One that waits for a chunk to be read is served
 * best by reading it. */
static bool guest_is_there(void *ctx)
{
    struct xm_disk *d = ctx;

    return d->guest.held == 0 &&
           (d->guest.requests > 0 || (d->guest.at && xm_engine_now(d->engine) - d->guest.at < GUEST_RECENT));
}

static void backoff_fire(struct xm_timer *t)
{
    copier_resume(xm_container_of(t, struct xm_disk, copy.backoff), PAUSE_BACKOFF);
}

static void reset_stats(struct xm_disk *d)
{
    struct xm_disk_status *s = &d->stats, guest = *s;

    *s = (struct xm_disk_status){.reads = guest.reads,
                                 .writes = guest.writes,
                                 .flushes = guest.flushes,
                                 .read_bytes = guest.read_bytes,
                                 .write_bytes = guest.write_bytes,
                                 .errors = guest.errors};
}

int xm_disk_mirror_on(struct xm_disk *d, struct xm_replica *replica, bool target_zeroed, struct xm_error *e)
{
    static const struct xm_copier_ops ops = {
        .next = next_chunk, .shared = guest_is_there, .read = chunk_read, .ended = copy_ended};

    if (d->mirror.mode != XM_MIRROR_OFF || d->copy.copier)
        return xm_error_set(e, EBUSY, "%s is being mirrored already", d->file->path);
    if (chunkmap_init(&d->copy.map, d->chunks) < 0)
        return xm_error_set(e, ENOMEM, "no memory for the chunk map of %s", d->file->path);
    d->copy.pool = xm_bufpool_new(d->opts.bulk_buffer);
    d->buffer.pool = xm_bufpool_new(d->opts.mirror_buffer);
    if (d->copy.pool && d->buffer.pool)
        d->copy.copier = xm_copier_new(d->engine, d->file, replica, d->copy.pool, d->opts.chunk_size,
                                       target_zeroed, &ops, d);
    if (!d->copy.copier) {
        mirror_teardown(d);
        return xm_error_set(e, ENOMEM, "no memory for the mirror of %s", d->file->path);
    }
    xm_copier_delay(d->copy.copier, d->opts.write_cap / 2);
    reset_stats(d);
    d->stats.allocated = XM_MIN(xm_file_allocated(d->file), d->file->size);
    d->mirror.replica = replica;
    d->mirror.lost = false;
    d->copy.failures = 0;
    d->copy.failed = 0;
    d->copy.why[0] = 0;
    d->flush.failed = 0;
    d->buffer.low_since = 0;
    d->copy.pauses = 0;
    d->copy.backoff.fire = backoff_fire;
    copier_pause(d, PAUSE_STARTING);
    /* From now on writes are tracked; those before it are waited for (invariant 1). */
    d->mirror.mode = XM_MIRROR_STARTING;
    disk_progress(d);
    return 0;
}

void mirror_begin(struct xm_disk *d)
{
    d->mirror.mode = XM_MIRROR_ASYNC;
    copier_resume(d, PAUSE_STARTING);
}

bool mirror_quiet(const struct xm_disk *d)
{
    return !d->flush.busy && !verify_busy(d) && TAILQ_EMPTY(&d->buffer.pending) &&
           (!d->copy.copier || xm_copier_busy(d->copy.copier) == 0);
}

void mirror_teardown(struct xm_disk *d)
{
    d->mirror.mode = XM_MIRROR_OFF;
    if (d->copy.copier)
        xm_copier_stats(d->copy.copier, &d->stats.copied);
    if (d->mirror.replica)
        xm_replica_digest(d->mirror.replica, &d->stats.digest);
    xm_engine_timer_cancel(d->engine, &d->copy.backoff);
    xm_copier_free(d->copy.copier);
    xm_bufpool_free(d->copy.pool);
    xm_bufpool_free(d->buffer.pool);
    chunkmap_destroy(&d->copy.map);
    busy_forget_claims(d);
    d->copy.copier = NULL;
    d->copy.pool = d->buffer.pool = NULL;
    d->mirror.replica = NULL;
}

void xm_disk_mirror_off(struct xm_disk *d, void (*done)(void *), void *arg)
{
    d->off.done = done;
    d->off.arg = arg;
    if (d->mirror.mode != XM_MIRROR_OFF) {
        d->mirror.mode = XM_MIRROR_OFF;
        copier_pause(d, PAUSE_OFF);
        busy_forget_claims(d);
        switch_fail(d, -ECANCELED, "the mirror was turned off");
        request_release_all(d);
    }
    disk_progress(d);
}

void xm_disk_copy_rate(struct xm_disk *d, uint64_t bytes_per_s)
{
    if (d->copy.copier)
        xm_copier_rate(d->copy.copier, bytes_per_s);
}

bool xm_disk_in_step(const struct xm_disk *d)
{
    return is_mirroring(d) && d->copy.map.count[XM_CHUNK_PRESENT] == d->chunks;
}
