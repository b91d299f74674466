/* SPDX-License-Identifier: MIT */
/* Comparing both sides, chunk by chunk, while the guest writes (--verify).
 *
 * A chunk is taken when it is present, and is `copying` as long as it is compared: guest writes to it are
 * held, as for a copy, so what is hashed here and there is the same moment of it. What had begun before is
 * waited for here; what was on its way to the replica is there before the hash is made (the request names it
 * as its predecessor). A chunk that is not present when its turn comes is waited for: the copier has it.
 *
 * A chunk that differs, or that a guest write could not wait for, goes absent and is copied again; the first
 * is counted. An error on either side ends the comparison with a sentence; what is under way ends by itself.
 */
#include "mirror/disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define LANES 4u /* chunks compared at once */
#define STEP  (256u << 10)

struct lane {
    struct verify *verify;
    bool busy, reading, asking;
    uint64_t chunk, at, end;
    int status;
    bool remote; /* whose status it is */
    XXH3_state_t *hash;
    void *buf;
    struct iovec iov;
    struct xm_io io;
    struct xm_rreq ask;
};

struct verify {
    struct xm_disk *disk;
    uint64_t next, differed;
    void (*done)(void *, int, uint64_t, const char *); /* NULL: has been called */
    void *arg;
    struct lane lane[LANES];
};

bool verify_busy(const struct xm_disk *d)
{
    for (unsigned i = 0; d->verify && i < LANES; i++)
        if (d->verify->lane[i].reading || d->verify->lane[i].asking)
            return true;
    return false;
}

static void verify_free(struct verify *v)
{
    for (unsigned i = 0; i < LANES; i++) {
        if (v->lane[i].hash)
            XXH3_freeState(v->lane[i].hash);
        free(v->lane[i].buf);
    }
    v->disk->verify = NULL;
    free(v);
}

static void verify_end(struct verify *v, int status, const char *why)
{
    void (*done)(void *, int, uint64_t, const char *) = v->done;

    v->done = NULL;
    if (done)
        done(v->arg, status, v->differed, why);
}

/* Called again when the lanes have ended. */
void verify_fail(struct xm_disk *d, int status, const char *why)
{
    struct verify *v = d->verify;

    if (!v)
        return;
    verify_end(v, status, why);
    for (unsigned i = 0; i < LANES; i++) {
        struct lane *l = &v->lane[i];
        if (l->busy && !l->reading && !l->asking) { /* claimed, not begun */
            l->busy = false;
            if (is_mirroring(d))
                chunk_release(d, l->chunk, true);
        }
    }
    if (!verify_busy(d))
        verify_free(v);
}

static void lane_failed(struct lane *l)
{
    struct xm_disk *d = l->verify->disk;
    char why[300];

    snprintf(why, sizeof why, "verifying %s failed near offset %llu, %s: %s", d->file->path,
             (unsigned long long)l->chunk << d->chunk_shift,
             l->remote ? "at the destination" : "reading it here", strerror(-l->status));
    verify_end(l->verify, l->status, why);
}

static void lane_end(struct lane *l)
{
    struct verify *v = l->verify;
    struct xm_disk *d = v->disk;
    XXH128_canonical_t here;

    if (l->reading || l->asking)
        return;
    XXH128_canonicalFromHash(&here, XXH3_128bits_digest(l->hash));
    bool same = l->status == 0 && memcmp(&here, l->ask.hash, sizeof here) == 0;
    l->busy = false;
    if (l->status < 0)
        lane_failed(l);
    d->stats.verified += l->end - (l->chunk << d->chunk_shift);
    if (is_mirroring(d)) {
        /* A stale one was written to here meanwhile: that it differs means nothing. */
        v->differed += !same && l->status == 0 && !chunkmap_is_stale(&d->copy.map, l->chunk);
        chunk_release(d, l->chunk, same);
    }
    disk_progress(d);
}

static void lane_fail(struct lane *l, int status, bool remote)
{
    if (status < 0 && l->status == 0) {
        l->status = status;
        l->remote = remote;
    }
}

static void lane_read_next(struct lane *l)
{
    struct xm_disk *d = l->verify->disk;

    l->iov = (struct iovec){l->buf, XM_MIN(l->end - l->at, STEP)};
    l->io.offset = l->at;
    l->io.length = l->iov.iov_len;
    xm_engine_submit(d->engine, &l->io);
}

static void lane_read(struct xm_io *io, int res)
{
    struct lane *l = xm_container_of(io, struct lane, io);

    lane_fail(l, res, false);
    if (res == 0) {
        XXH3_128bits_update(l->hash, l->buf, io->length);
        l->at += io->length;
    }
    if (l->status == 0 && l->at < l->end) {
        lane_read_next(l);
        return;
    }
    l->reading = false;
    lane_end(l);
}

static void lane_asked(struct xm_rreq *r, int status)
{
    struct lane *l = xm_container_of(r, struct lane, ask);

    lane_fail(l, status, true);
    l->asking = false;
    lane_end(l);
}

static void lane_begin(struct lane *l)
{
    struct xm_disk *d = l->verify->disk;

    l->at = l->chunk << d->chunk_shift;
    l->end = XM_MIN(l->at + d->opts.chunk_size, d->file->size);
    l->status = 0;
    l->reading = l->asking = true;
    XXH3_128bits_reset(l->hash);
    l->io = (struct xm_io){.op = XM_IO_READ, .file = d->file, .iov = &l->iov, .iovcnt = 1, .done = lane_read};
    l->ask = (struct xm_rreq){.urgent = true, .offset = l->at, .length = l->end - l->at, .done = lane_asked};
    lane_read_next(l);
    xm_replica_hash(d->mirror.replica, &l->ask);
}

void verify_step(struct xm_disk *d)
{
    struct verify *v = d->verify;
    bool idle = true;

    if (!v)
        return;
    if (!v->done) {
        verify_fail(d, 0, NULL);
        return;
    }
    if (!is_mirroring(d))
        return; /* STARTING */
    for (unsigned i = 0; i < LANES; i++) {
        struct lane *l = &v->lane[i];
        if (!l->busy && v->next < d->chunks && chunkmap_state(&d->copy.map, v->next) == XM_CHUNK_PRESENT) {
            l->busy = true;
            l->chunk = v->next++;
            chunkmap_set_state(&d->copy.map, l->chunk, XM_CHUNK_COPYING);
        }
        if (l->busy && !l->reading && !l->asking && busy_is_idle(d, l->chunk))
            lane_begin(l);
        idle &= !l->busy;
    }
    if (idle && v->next == d->chunks) {
        verify_end(v, 0, NULL);
        verify_free(v);
    }
}

void xm_disk_verify(struct xm_disk *d, void (*done)(void *, int status, uint64_t differed, const char *why),
                    void *arg)
{
    struct verify *v = d->verify ? NULL : calloc(1, sizeof *v);
    bool ok = v;

    if (!v) {
        done(arg, d->verify ? -EBUSY : -ENOMEM, 0, "the disk is being verified already, or memory is short");
        return;
    }
    d->stats.verified = 0;
    v->disk = d;
    v->done = done;
    v->arg = arg;
    for (unsigned i = 0; i < LANES; i++) {
        struct lane *l = &v->lane[i];
        l->verify = v;
        l->hash = XXH3_createState();
        ok &= l->hash && posix_memalign(&l->buf, 4096, STEP) == 0;
    }
    d->verify = v;
    if (!ok)
        verify_fail(d, -ENOMEM, "no memory to verify the disk");
    disk_progress(d);
}
