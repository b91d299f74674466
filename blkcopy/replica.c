/* SPDX-License-Identifier: MIT */
/* The sending proxy of a disk's second copy, which is what the driver and the copier see of it: requests go
 * in, and come back with a status. What it sends is applied at the destination by the writer (writer.c).
 *
 * Far: each request becomes a message for the transport. Near: a request of a writer on the same engine.
 * Either way it gets a number, and the number of the latest request of its chunk that is still pending: the
 * writer applies it after that one. Requests of a chunk whose predecessor has ended need none: what
 * has ended was applied (or refused), and so was all before it.
 *
 * Urgent requests pass the others on the way, but not those that they have to follow.
 *
 * What can happen instead:
 * - The other side refuses a request (its disk is full or broken): it ends with that error. Order is not
 * disturbed.
 * - The transport is lost for good: -ENOLINK or -ECANCELED. Whether the other side has applied the request
 * cannot be known any more, so no later one could be put in its order: the replica is dead, and ends all
 * that comes with that error.
 * - More than XM_WRITER_WINDOW would be pending: requests wait here, in order.
 */
#include "blkcopy/blkcopy.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 1024u

TAILQ_HEAD(rreqs, xm_rreq);

struct xm_replica {
    struct xm_engine *engine;
    struct xm_transport *transport; /* far, or NULL */
    struct xm_writer *writer;       /* near, or NULL */
    uint16_t object;
    uint32_t chunk_size;
    int dead; /* -errno of a transport that is lost for good */
    uint64_t last_seq;
    uint64_t pending;             /* all requests not done, of any kind */
    struct rreqs sent;            /* WRITE and ZERO with a number, lowest first (link) */
    struct rreqs waiting;         /* WRITE and ZERO that the window has no room for (link) */
    struct rreqs latest[BUCKETS]; /* by chunk: the latest pending one (by_chunk) */
    struct xm_digest digest;
};

static struct xm_replica *replica_new(struct xm_engine *engine, uint32_t chunk_size)
{
    struct xm_replica *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->engine = engine;
    p->chunk_size = chunk_size;
    TAILQ_INIT(&p->sent);
    TAILQ_INIT(&p->waiting);
    for (unsigned i = 0; i < BUCKETS; i++)
        TAILQ_INIT(&p->latest[i]);
    return p;
}

struct xm_replica *xm_replica_far(struct xm_engine *engine, struct xm_transport *t, uint16_t object,
                                  uint32_t chunk_size)
{
    struct xm_replica *p = replica_new(engine, chunk_size);

    if (p) {
        p->transport = t;
        p->object = object;
    }
    return p;
}

struct xm_replica *xm_replica_near(struct xm_engine *engine, struct xm_writer *w, uint32_t chunk_size)
{
    struct xm_replica *p = replica_new(engine, chunk_size);

    if (p)
        p->writer = w;
    return p;
}

void xm_replica_free(struct xm_replica *p)
{
    if (!p)
        return;
    /* Invariant: nobody waits for an answer. */
    assert(p->pending == 0);
    free(p);
}

void xm_replica_digest(const struct xm_replica *p, struct xm_digest *out)
{
    *out = p->digest;
}

uint64_t xm_replica_pending(const struct xm_replica *p)
{
    return p->pending;
}

static bool is_ordered(const struct xm_rreq *r)
{
    return r->op == XM_IO_WRITE || r->op == XM_IO_ZERO;
}

static uint64_t chunk_of(const struct xm_rreq *r)
{
    return r->offset / r->replica->chunk_size;
}

/* The latest pending request of r's chunk, or NULL. */
static struct xm_rreq *replica_predecessor(struct xm_replica *p, const struct xm_rreq *r)
{
    struct xm_rreq *before;

    TAILQ_FOREACH (before, &p->latest[chunk_of(r) % BUCKETS], by_chunk)
        if (chunk_of(before) == chunk_of(r))
            break;
    return before;
}

/* r waits at the other side until `before` is applied. It must not overtake it on the way: it would fill a
 * window that the other needs. So in a chunk that always has a write under way, what follows its copy goes
 * with the bulk for as long. */
static void replica_follow(struct xm_rreq *r, const struct xm_rreq *before)
{
    r->msg.after = before->msg.seq;
    r->msg.urgent = r->msg.urgent && before->msg.urgent;
}

/* Gives r its place in the order. */
static void replica_number(struct xm_replica *p, struct xm_rreq *r)
{
    struct rreqs *bucket = &p->latest[chunk_of(r) % BUCKETS];
    struct xm_rreq *before = replica_predecessor(p, r);

    r->msg.seq = ++p->last_seq;
    r->msg.after = 0;
    if (before) {
        replica_follow(r, before);
        before->latest = false;
        TAILQ_REMOVE(bucket, before, by_chunk);
    }
    r->latest = true;
    TAILQ_INSERT_HEAD(bucket, r, by_chunk);
    TAILQ_INSERT_TAIL(&p->sent, r, link);
}

static void send_waiting(struct xm_replica *p);

static void request_end(struct xm_rreq *r, int status)
{
    struct xm_replica *p = r->replica;

    if (is_ordered(r) && r->msg.seq > 0) {
        TAILQ_REMOVE(&p->sent, r, link);
        if (r->latest)
            TAILQ_REMOVE(&p->latest[chunk_of(r) % BUCKETS], r, by_chunk);
        if (status == 0) {
            struct xm_frame_hdr hdr;
            xm_frame_of_msg(&hdr, &r->msg, 0, r->msg.hash);
            xm_digest_add(&p->digest, &hdr);
        }
    }
    if (p->transport && (status == -ENOLINK || status == -ECANCELED) && !p->dead)
        p->dead = status;
    p->pending--;
    send_waiting(p);
    r->done(r, status);
}

static int take_hash(struct xm_rreq *r, int status, const void *reply, uint32_t reply_len)
{
    if (!r->is_hash || status < 0)
        return status;
    if (reply_len != sizeof r->hash)
        return -EPROTO;
    memcpy(r->hash, reply, sizeof r->hash);
    return 0;
}

static void far_ended(struct xm_post *post)
{
    struct xm_rreq *r = xm_container_of(post, struct xm_rreq, msg.post);
    int status = take_hash(r, r->msg.status, r->msg.reply, r->msg.reply_len);

    free(r->msg.reply);
    r->msg.reply = NULL;
    request_end(r, status);
}

static void near_ended(struct xm_wreq *w, int status, const void *reply, uint32_t reply_len)
{
    struct xm_rreq *r = xm_container_of(w, struct xm_rreq, wreq);

    request_end(r, take_hash(r, status, reply, reply_len));
}

static void send_near(struct xm_replica *p, struct xm_rreq *r)
{
    /* Nothing can be changed on the way from here to there: the hash stays 0 on both sides. */
    xm_frame_of_msg(&r->wreq.hdr, &r->msg, 0, 0);
    r->wreq.payload = (void *)(uintptr_t)r->buf;
    r->wreq.done = near_ended;
    xm_writer_submit(p->writer, &r->wreq);
}

static void send_one(struct xm_replica *p, struct xm_rreq *r)
{
    if (is_ordered(r)) {
        replica_number(p, r);
    } else if (r->is_hash) {
        struct xm_rreq *before = replica_predecessor(p, r);
        if (before)
            replica_follow(r, before);
    }
    if (p->transport)
        p->transport->submit(p->transport, &r->msg);
    else
        send_near(p, r);
}

static bool replica_has_room(const struct xm_replica *p)
{
    const struct xm_rreq *oldest = TAILQ_FIRST(&p->sent);

    return !oldest || p->last_seq + 1 < oldest->msg.seq + XM_WRITER_WINDOW;
}

static void fail_later(struct xm_replica *p, struct xm_rreq *r)
{
    r->msg.status = p->dead;
    xm_mailbox_post(&p->engine->mailbox, &r->msg.post);
}

static void send_waiting(struct xm_replica *p)
{
    struct xm_rreq *r;

    while ((r = TAILQ_FIRST(&p->waiting)) && (p->dead || replica_has_room(p))) {
        TAILQ_REMOVE(&p->waiting, r, link);
        if (p->dead)
            fail_later(p, r);
        else
            send_one(p, r);
    }
}

/* Those that keep an order wait when the window is full; a flush is for what has ended before it. */
static void replica_submit(struct xm_replica *p, struct xm_rreq *r)
{
    p->pending++;
    if (p->dead)
        fail_later(p, r);
    else if (r->op != XM_IO_FLUSH && (!TAILQ_EMPTY(&p->waiting) || !replica_has_room(p)))
        TAILQ_INSERT_TAIL(&p->waiting, r, link);
    else
        send_one(p, r);
}

static void replica_prepare(struct xm_replica *p, struct xm_rreq *r, uint8_t type)
{
    r->replica = p;
    r->latest = false;
    r->is_hash = type == XM_FRAME_DISK_HASH;
    memset(&r->msg, 0, sizeof r->msg);
    r->msg.post.run = far_ended;
    r->msg.home = &p->engine->mailbox;
    r->msg.type = type;
    r->msg.urgent = r->urgent;
    r->msg.object = p->object;
    /* Invariant: a piece lies within one chunk, else its place in the order would not be defined. */
    assert(r->op == XM_IO_FLUSH ||
           (r->length > 0 && chunk_of(r) == (r->offset + r->length - 1) / p->chunk_size));
}

void xm_replica_hash(struct xm_replica *p, struct xm_rreq *r)
{
    r->op = XM_IO_READ;
    replica_prepare(p, r, XM_FRAME_DISK_HASH);
    r->msg.offset = r->offset;
    r->msg.extent = r->length;
    replica_submit(p, r);
}

void xm_replica_submit(struct xm_replica *p, struct xm_rreq *r)
{
    static const uint8_t type[] = {[XM_IO_WRITE] = XM_FRAME_DISK_DATA,
                                   [XM_IO_ZERO] = XM_FRAME_DISK_ZERO,
                                   [XM_IO_FLUSH] = XM_FRAME_DISK_FLUSH};

    assert(r->op != XM_IO_READ);
    replica_prepare(p, r, type[r->op]);
    if (r->op != XM_IO_FLUSH)
        r->msg.offset = r->offset;
    if (r->op == XM_IO_WRITE) {
        r->msg.payload = r->buf;
        r->msg.length = (uint32_t)r->length;
    } else if (r->op == XM_IO_ZERO) {
        r->msg.flags = r->unmap ? XM_FLAG_UNMAP : 0;
        r->msg.extent = r->length;
    }
    replica_submit(p, r);
}
