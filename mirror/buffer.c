/* SPDX-License-Identifier: MIT */
/* The mirror buffer: what guest writes still owe the replica, bounded in bytes.
 *
 * A part that is mirrored gets a private copy of its payload here; the local write and the replica's pieces
 * are both made from that copy (invariant 4). It is given back when both are done with it. Zeros have no
 * payload and count one page per piece, so that they are bounded too. */
#include "mirror/disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

/* A quarter of the buffer at most, so that several parts fit it, however small it is. */
uint64_t buffer_part_max(const struct xm_disk *d)
{
    uint64_t max = XM_PAYLOAD_MAX;

    while (max > PAGE && max > d->opts.mirror_buffer / 4)
        max /= 2;
    return max;
}

/* What the pool counts for a buffer of this length. */
static uint64_t whole_class(uint64_t length)
{
    uint64_t bytes = PAGE;

    while (bytes < length)
        bytes *= 2;
    return bytes;
}

static uint64_t cost_of(const struct xm_disk_req *r)
{
    if (r->breq->op == XM_IO_WRITE)
        return whole_class(r->length);
    return r->nrefs * (uint64_t)PAGE;
}

struct mirrored *mirrored_new(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;
    uint64_t cost = cost_of(r);
    struct mirrored *m = TAILQ_FIRST(&d->buffer.free);
    void *buf = NULL;

    if (d->buffer.used + cost > d->opts.mirror_buffer)
        return NULL;
    if (m)
        TAILQ_REMOVE(&d->buffer.free, m, link);
    else if (!(m = malloc(sizeof *m)))
        return NULL;
    if (r->breq->op == XM_IO_WRITE && !(buf = xm_bufpool_get(d->buffer.pool, r->length))) {
        TAILQ_INSERT_HEAD(&d->buffer.free, m, link);
        return NULL;
    }
    *m = (struct mirrored){.disk = d,
                           .req = r,
                           .buf = buf,
                           .offset = r->offset,
                           .length = r->length,
                           .cost = cost,
                           .since = xm_engine_now(d->engine),
                           .local = true};
    d->buffer.used += cost;
    TAILQ_INSERT_TAIL(&d->buffer.pending, m, link);
    return m;
}

void mirrored_fill(struct mirrored *m, const struct iovec *iov, int iovcnt, uint64_t skip)
{
    uint64_t done = 0;

    for (int i = 0; i < iovcnt && done < m->length; i++) {
        uint64_t len = iov[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        len = XM_MIN(len - skip, m->length - done);
        memcpy((char *)m->buf + done, (const char *)iov[i].iov_base + skip, len);
        done += len;
        skip = 0;
    }
}

static void free_if_done(struct mirrored *m)
{
    struct xm_disk *d = m->disk;

    if (m->local || m->pending > 0)
        return;
    xm_bufpool_put(d->buffer.pool, m->buf, m->length);
    d->buffer.used -= m->cost;
    TAILQ_REMOVE(&d->buffer.pending, m, link);
    TAILQ_INSERT_HEAD(&d->buffer.free, m, link);
    mode_update(d, xm_engine_now(d->engine));
    buffer_wake(d);
    disk_progress_if_awaited(d);
}

static void mirrored_piece_ended(struct xm_rreq *rr, int status)
{
    struct piece *p = xm_container_of(rr, struct piece, rreq);
    struct mirrored *m = p->mirrored;
    struct xm_disk *d = m->disk;

    if (status == 0) {
        d->stats.mirrored_writes++;
        d->stats.mirrored_bytes += rr->length;
    } else {
        give_up_chunk(d, rr->offset >> d->chunk_shift);
    }
    p->next_free = d->buffer.free_pieces;
    d->buffer.free_pieces = p;
    if (--m->pending > 0)
        return;
    struct xm_disk_req *r = m->local ? NULL : m->req;
    free_if_done(m);
    if (r)
        request_event(r, REQ_EV_MIRRORED, 0);
}

static struct piece *piece_get(struct xm_disk *d)
{
    struct piece *p = d->buffer.free_pieces;

    if (p)
        d->buffer.free_pieces = p->next_free;
    else
        p = malloc(sizeof *p);
    return p;
}

void mirrored_send(struct mirrored *m)
{
    struct xm_disk *d = m->disk;
    struct xm_disk_req *r = m->req;
    uint64_t end = m->offset + m->length;

    for (uint64_t at = m->offset, to; at < end; at = to) {
        uint64_t chunk = at >> d->chunk_shift;
        to = XM_MIN(end, (chunk + 1) << d->chunk_shift);
        if (!chunkmap_is_followed(&d->copy.map, chunk))
            continue;
        struct piece *p = piece_get(d);
        if (!p) {
            give_up_chunk(d, chunk);
            continue;
        }
        p->mirrored = m;
        p->rreq = (struct xm_rreq){.op = r->breq->op,
                                   .unmap = r->breq->unmap,
                                   .urgent = true,
                                   .offset = at,
                                   .length = to - at,
                                   .buf = m->buf ? (char *)m->buf + (at - m->offset) : NULL,
                                   .done = mirrored_piece_ended};
        m->pending++;
        xm_replica_submit(d->mirror.replica, &p->rreq);
    }
}

void mirrored_detach(struct mirrored *m)
{
    m->req = NULL;
}

void mirrored_local_done(struct mirrored *m)
{
    m->local = false;
    free_if_done(m);
}

/* First come, first served. */
void buffer_wake(struct xm_disk *d)
{
    struct xm_disk_req *r;

    while ((r = TAILQ_FIRST(&d->guest.nobuf)) && d->buffer.used + cost_of(r) <= d->opts.mirror_buffer) {
        request_event(r, REQ_EV_RETRY, 0);
        if (r->state == REQ_NOBUF)
            break; /* memory is short, not the buffer's bound */
    }
}

void buffer_free_lists(struct xm_disk *d)
{
    struct mirrored *m;

    while ((m = TAILQ_FIRST(&d->buffer.free))) {
        TAILQ_REMOVE(&d->buffer.free, m, link);
        free(m);
    }
    for (struct piece *p; (p = d->buffer.free_pieces);) {
        d->buffer.free_pieces = p->next_free;
        free(p);
    }
}
