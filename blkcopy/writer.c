/* SPDX-License-Identifier: MIT */
/* Applies the frames of one disk in the order that their sender meant (invariant 5).
 *
 * Happy path: a frame comes with its number (seq) and the number of the frame of the same chunk that must be
 * applied first (after). When that one has been applied, or is 0, the frame goes to the engine; else it
 * waits. When the engine has done it, it is added to the digest, answered, and whoever waits for it starts.
 * Frames of different chunks pass each other freely.
 *
 * What can happen instead:
 * - The frame fails to apply. It is answered with the error and has «passed»: what waits for it goes on.
 * The sender marks the chunk absent and sends all of it again later, with later numbers.
 * - It comes again, because a link failed before its answer was through. If the first copy is done, the
 * second gets the same answer, the error too if it was one: the sender must not count as applied what never
 * was. If the first is held or in flight, the second waits for it. A frame counts once in the digest.
 * - Its number is further ahead than the window, or so far behind that its answer is forgotten, or it waits
 * for a later frame: the sender broke the rules, -EPROTO, and nothing is remembered of it.
 * - It lies outside the disk: -EINVAL, and it has passed.
 *
 * A DISK_HASH may name a frame to wait for, too; it has no number of its own.
 *
 * Invariant: the sender has nothing pending further back than XM_WRITER_WINDOW behind the highest number it
 * sent. So one byte per number of the window is enough to remember every answer that may still be asked for.
 */
#include "blkcopy/blkcopy.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define BUCKETS   256u
#define HASH_STEP (1u << 20)

/* A number's fate: */
enum { UNSEEN, PENDING, PASSED /* + the errno it was answered with */ };

TAILQ_HEAD(wreqs, xm_wreq);

struct xm_writer {
    struct xm_engine *engine;
    struct xm_file *file;
    bool cancelled;
    uint64_t floor;   /* all up to here have passed */
    uint64_t highest; /* the highest number seen */
    uint8_t fate[XM_WRITER_WINDOW];
    struct wreqs pending[BUCKETS]; /* by seq: accepted and not answered (link) */
    struct wreqs waiting[BUCKETS]; /* by after: those of them that wait for another (wait) */
    struct wreqs flying;           /* those with the engine, in the order they were given to it (wait) */
    struct wreqs flushes;          /* wait for what was flying when they came (wait) */
    struct wreqs hashes;           /* one at a time, the first is at work (wait) */
    XXH3_state_t *hash_state;
    void *hash_buf;
    uint64_t started, requests;
    struct xm_digest digest;
};

struct xm_writer *xm_writer_new(struct xm_engine *engine, struct xm_file *file, struct xm_error *e)
{
    struct xm_writer *w = calloc(1, sizeof *w);

    if (!w) {
        xm_error_set(e, ENOMEM, "no memory for the writer of %s", file->path);
        return NULL;
    }
    w->engine = engine;
    w->file = file;
    for (unsigned i = 0; i < BUCKETS; i++) {
        TAILQ_INIT(&w->pending[i]);
        TAILQ_INIT(&w->waiting[i]);
    }
    TAILQ_INIT(&w->flying);
    TAILQ_INIT(&w->flushes);
    TAILQ_INIT(&w->hashes);
    return w;
}

void xm_writer_free(struct xm_writer *w)
{
    if (!w)
        return;
    /* Invariant: nothing is forgotten. */
    assert(w->requests == 0);
    if (w->hash_state)
        XXH3_freeState(w->hash_state);
    free(w->hash_buf);
    free(w);
}

void xm_writer_digest(const struct xm_writer *w, struct xm_digest *out)
{
    *out = w->digest;
}

uint64_t xm_writer_pending(const struct xm_writer *w)
{
    return w->requests;
}

static uint8_t *fate_of(struct xm_writer *w, uint64_t seq)
{
    return &w->fate[seq % XM_WRITER_WINDOW];
}

static bool has_passed(struct xm_writer *w, uint64_t seq)
{
    if (seq <= w->floor)
        return true;
    return seq <= w->highest && *fate_of(w, seq) >= PASSED;
}

static void writer_answer(struct xm_writer *w, struct xm_wreq *r, int status, const void *reply,
                          uint32_t reply_len)
{
    w->requests--;
    r->done(r, status, reply, reply_len);
}

static void writer_write_done(struct xm_io *io, int res);

static void start_write(struct xm_writer *w, struct xm_wreq *r)
{
    bool zero = r->hdr.type == XM_FRAME_DISK_ZERO;

    r->iov = (struct iovec){.iov_base = r->payload, .iov_len = r->hdr.length};
    r->io = (struct xm_io){.op = zero ? XM_IO_ZERO : XM_IO_WRITE,
                           .unmap = zero && (r->hdr.flags & XM_FLAG_UNMAP),
                           .file = w->file,
                           .offset = r->hdr.offset,
                           .length = zero ? r->hdr.extent : r->hdr.length,
                           .iov = &r->iov,
                           .iovcnt = 1,
                           .done = writer_write_done};
    r->started = ++w->started;
    TAILQ_INSERT_TAIL(&w->flying, r, wait);
    xm_engine_submit(w->engine, &r->io);
}

static void submit_hash(struct xm_writer *w, struct xm_wreq *r);

/* Sets the fate of a number and starts who waited for it. */
static void writer_pass(struct xm_writer *w, uint64_t seq, int status)
{
    struct wreqs *bucket = &w->waiting[seq % BUCKETS];

    *fate_of(w, seq) = (uint8_t)(PASSED + XM_MIN(-status, UINT8_MAX - PASSED));
    while (w->floor < w->highest && *fate_of(w, w->floor + 1) >= PASSED)
        w->floor++;
    for (struct xm_wreq *r = TAILQ_FIRST(bucket), *next; r; r = next) {
        next = TAILQ_NEXT(r, wait);
        if (r->hdr.after != seq)
            continue;
        TAILQ_REMOVE(bucket, r, wait);
        if (r->hdr.type == XM_FRAME_DISK_HASH)
            submit_hash(w, r);
        else
            start_write(w, r);
    }
}

/* Flushes go once all that was flying before them has landed. */
static void start_flushes(struct xm_writer *w)
{
    struct xm_wreq *oldest = TAILQ_FIRST(&w->flying), *r;

    while ((r = TAILQ_FIRST(&w->flushes)) && (!oldest || oldest->started > r->started)) {
        TAILQ_REMOVE(&w->flushes, r, wait);
        xm_engine_submit(w->engine, &r->io);
    }
}

static void answer_with_dups(struct xm_writer *w, struct xm_wreq *r, int status)
{
    for (struct xm_wreq *next; r; r = next) {
        next = r->dups;
        writer_answer(w, r, status, NULL, 0);
    }
}

static void writer_write_done(struct xm_io *io, int res)
{
    struct xm_wreq *r = xm_container_of(io, struct xm_wreq, io);
    struct xm_writer *w = r->writer;

    TAILQ_REMOVE(&w->flying, r, wait);
    TAILQ_REMOVE(&w->pending[r->hdr.seq % BUCKETS], r, link);
    if (res == 0)
        xm_digest_add(&w->digest, &r->hdr);
    writer_pass(w, r->hdr.seq, res);
    start_flushes(w);
    answer_with_dups(w, r, res);
}

static void flush_done(struct xm_io *io, int res)
{
    struct xm_wreq *r = xm_container_of(io, struct xm_wreq, io);

    writer_answer(r->writer, r, res, NULL, 0);
}

static void hash_next(struct xm_writer *w);

static void hash_done(struct xm_io *io, int res)
{
    struct xm_wreq *r = xm_container_of(io, struct xm_wreq, io);
    struct xm_writer *w = r->writer;
    XXH128_canonical_t out;

    if (res == 0) {
        XXH3_128bits_update(w->hash_state, w->hash_buf, io->length);
        r->hdr.offset += io->length;
        r->hdr.extent -= io->length;
        if (r->hdr.extent > 0 && !w->cancelled) {
            r->iov.iov_len = io->length = XM_MIN(r->hdr.extent, HASH_STEP);
            io->offset = r->hdr.offset;
            xm_engine_submit(w->engine, io);
            return;
        }
        XXH128_canonicalFromHash(&out, XXH3_128bits_digest(w->hash_state));
    }
    TAILQ_REMOVE(&w->hashes, r, wait);
    if (res == 0 && r->hdr.extent > 0)
        res = -ECANCELED;
    writer_answer(w, r, res, res == 0 ? &out : NULL, res == 0 ? (uint32_t)sizeof out : 0);
    hash_next(w);
}

static void hash_next(struct xm_writer *w)
{
    struct xm_wreq *r = TAILQ_FIRST(&w->hashes);

    if (!r)
        return;
    XXH3_128bits_reset(w->hash_state);
    r->iov = (struct iovec){.iov_base = w->hash_buf, .iov_len = XM_MIN(r->hdr.extent, HASH_STEP)};
    r->io = (struct xm_io){.op = XM_IO_READ,
                           .file = w->file,
                           .offset = r->hdr.offset,
                           .length = r->iov.iov_len,
                           .iov = &r->iov,
                           .iovcnt = 1,
                           .done = hash_done};
    xm_engine_submit(w->engine, &r->io);
}

static void submit_hash(struct xm_writer *w, struct xm_wreq *r)
{
    if (!w->hash_state)
        w->hash_state = XXH3_createState();
    if (!w->hash_buf && posix_memalign(&w->hash_buf, 4096, HASH_STEP) != 0)
        w->hash_buf = NULL;
    if (!w->hash_state || !w->hash_buf) {
        writer_answer(w, r, -ENOMEM, NULL, 0);
        return;
    }
    TAILQ_INSERT_TAIL(&w->hashes, r, wait);
    if (TAILQ_FIRST(&w->hashes) == r)
        hash_next(w);
}

/* Judges what the sender says of order. 1: new; 0: a duplicate, taken care of; -errno: against the rules. */
static int accept_seq(struct xm_writer *w, struct xm_wreq *r)
{
    uint64_t seq = r->hdr.seq;
    struct xm_wreq *first;

    if (seq == 0 || r->hdr.after >= seq || seq > w->floor + XM_WRITER_WINDOW ||
        (w->highest >= XM_WRITER_WINDOW && seq <= w->highest - XM_WRITER_WINDOW))
        return -EPROTO;
    while (w->highest < seq)
        *fate_of(w, ++w->highest) = UNSEEN;
    uint8_t fate = *fate_of(w, seq);
    if (fate >= PASSED) {
        writer_answer(w, r, -(fate - PASSED), NULL, 0);
        return 0;
    }
    if (fate == PENDING) {
        TAILQ_FOREACH (first, &w->pending[seq % BUCKETS], link)
            if (first->hdr.seq == seq)
                break;
        assert(first);
        r->dups = first->dups;
        first->dups = r;
        return 0;
    }
    return 1;
}

static bool writer_is_within(const struct xm_writer *w, uint64_t offset, uint64_t length)
{
    return length > 0 && length <= w->file->size && offset <= w->file->size - length;
}

static void submit_write(struct xm_writer *w, struct xm_wreq *r)
{
    bool zero = r->hdr.type == XM_FRAME_DISK_ZERO;
    int rc = accept_seq(w, r);

    if (rc < 0)
        writer_answer(w, r, rc, NULL, 0);
    if (rc <= 0)
        return;
    if (!writer_is_within(w, r->hdr.offset, zero ? r->hdr.extent : r->hdr.length)) {
        writer_pass(w, r->hdr.seq, -EINVAL);
        writer_answer(w, r, -EINVAL, NULL, 0);
        return;
    }
    *fate_of(w, r->hdr.seq) = PENDING;
    TAILQ_INSERT_TAIL(&w->pending[r->hdr.seq % BUCKETS], r, link);
    if (has_passed(w, r->hdr.after))
        start_write(w, r);
    else
        TAILQ_INSERT_TAIL(&w->waiting[r->hdr.after % BUCKETS], r, wait);
}

void xm_writer_submit(struct xm_writer *w, struct xm_wreq *r)
{
    w->requests++;
    r->writer = w;
    r->dups = NULL;
    if (w->cancelled) {
        writer_answer(w, r, -ECANCELED, NULL, 0);
        return;
    }
    switch (r->hdr.type) {
    case XM_FRAME_DISK_DATA:
    case XM_FRAME_DISK_ZERO:
        submit_write(w, r);
        break;
    case XM_FRAME_DISK_FLUSH:
        r->io = (struct xm_io){.op = XM_IO_FLUSH, .file = w->file, .done = flush_done};
        r->started = w->started;
        TAILQ_INSERT_TAIL(&w->flushes, r, wait);
        start_flushes(w);
        break;
    case XM_FRAME_DISK_DIGEST:
        writer_answer(w, r, 0, &w->digest, sizeof w->digest);
        break;
    case XM_FRAME_DISK_HASH:
        if (!writer_is_within(w, r->hdr.offset, r->hdr.extent))
            writer_answer(w, r, -EINVAL, NULL, 0);
        else if (r->hdr.after > w->floor + XM_WRITER_WINDOW)
            writer_answer(w, r, -EPROTO, NULL, 0);
        else if (has_passed(w, r->hdr.after))
            submit_hash(w, r);
        else
            TAILQ_INSERT_TAIL(&w->waiting[r->hdr.after % BUCKETS], r, wait);
        break;
    default:
        writer_answer(w, r, -EPROTO, NULL, 0);
    }
}

void xm_writer_cancel(struct xm_writer *w)
{
    struct wreqs doomed = TAILQ_HEAD_INITIALIZER(doomed);
    struct xm_wreq *r;

    w->cancelled = true;
    for (unsigned i = 0; i < BUCKETS; i++) {
        while ((r = TAILQ_FIRST(&w->waiting[i]))) {
            TAILQ_REMOVE(&w->waiting[i], r, wait);
            if (r->hdr.type != XM_FRAME_DISK_HASH)
                TAILQ_REMOVE(&w->pending[r->hdr.seq % BUCKETS], r, link);
            TAILQ_INSERT_TAIL(&doomed, r, wait);
        }
    }
    /* The first hash is at work and ends by itself. */
    while ((r = TAILQ_FIRST(&w->hashes)) && (r = TAILQ_NEXT(r, wait))) {
        TAILQ_REMOVE(&w->hashes, r, wait);
        TAILQ_INSERT_TAIL(&doomed, r, wait);
    }
    while ((r = TAILQ_FIRST(&doomed))) {
        TAILQ_REMOVE(&doomed, r, wait);
        answer_with_dups(w, r, -ECANCELED);
    }
}
