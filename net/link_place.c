/* SPDX-License-Identifier: MIT */
/* net/link_place.c: payloads that are received where they stay.
 *
 * Happy path, on the link's thread: the head of a payload is in its buffer, the sink's place() says where the
 * rest goes, and recvmsg puts it there, piece after piece; its hash is made of each part right behind, while
 * the part is in the cache.
 *
 * Failures:
 * - The link ends in the middle: dropped() tells the sink; what has been written stays, and nobody counts on
 *   it.
 * - Another link brings the same frame, since the sender has given this link up (its own end may be down for
 *   long before ours notices): the sink takes the place back with xm_rx_cut. That waits for the recvmsg that
 *   may be under way, which never blocks; from then on this link's bytes go nowhere, and a newer page is safe
 *   from them.
 * - The hash is wrong: the whole bundle is lost, like for any frame (link_rx.c), and dropped() comes. What
 *   lies in the place is garbage then: the sink must not need it before frame() has come. What came after a
 *   cut is not hashed. A frame with XM_FLAG_HEAD has its head judged before place() is asked, and the rest by
 *   the sink.
 * - No memory in the place (EFAULT): the bundle is lost, and the peer is told so.
 *
 * Lock: place.lock is held while bytes are written, and protects xm_rx.is_cut. Taken with locks of the sink
 * held (xm_rx_cut), and no callback is called under it.
 */
#include "net/bundle.h"

#include <stdlib.h>

struct place {
    struct frame_hasher *hasher;
    unsigned pieces; /* 0: nobody wants it; it is hashed all the same, since a damaged head may be why */
    bool hashes;     /* the frame's hash is that of all of it (no XM_FLAG_HEAD) */
    unsigned at;     /* the first piece that is not full */
    size_t at_done;  /* bytes of it that are there */
    bool cut;        /* seen to be cut: for good, nothing of the frame is hashed any more */
    pthread_mutex_t lock;
    struct iovec piece[XM_PIECES_MAX];
};

static struct place *place_new(void)
{
    struct place *p = calloc(1, sizeof *p);

    if (p && !(p->hasher = frame_hasher_new())) {
        free(p);
        return NULL;
    }
    if (p)
        pthread_mutex_init(&p->lock, NULL);
    return p;
}

void place_free(struct link *l)
{
    if (!l->rx.place)
        return;
    frame_hasher_free(l->rx.place->hasher);
    pthread_mutex_destroy(&l->rx.place->lock);
    free(l->rx.place);
}

int place_begin(struct link *l)
{
    const struct xm_placer *placer = &l->bundle->opts.sink.placer;

    if (!l->rx.place && !(l->rx.place = place_new()))
        return xm_error_set(&l->why, ENOMEM, "no memory to receive payloads in place");
    struct place *p = l->rx.place;
    p->at = 0;
    p->at_done = 0;
    p->cut = false;
    p->hashes = !(l->rx.hdr.flags & XM_FLAG_HEAD);
    if (!p->hashes && frame_hash(l->rx.frame->payload, l->rx.head) != l->rx.hdr.hash)
        return link_violation(l, EBADMSG,
                              "the head of a %s frame does not have its checksum: damaged on the way",
                              frame_kind(l->rx.hdr.type)->name);
    frame_hasher_reset(p->hasher);
    if (p->hashes)
        frame_hasher_add(p->hasher, l->rx.frame->payload, l->rx.head);
    p->pieces = placer->place(placer->ctx, l->rx.frame, p->piece);
    l->rx.state = RX_PLACE;
    return 0;
}

unsigned place_lock(struct link *l, struct iovec *piece)
{
    struct place *p = l->rx.place;
    unsigned n = 0;

    pthread_mutex_lock(&p->lock);
    p->cut = p->cut || l->rx.frame->is_cut;
    if (p->cut || !p->pieces) {
        piece[n++] = (struct iovec){l->rx.own, XM_MIN(sizeof l->rx.own, l->rx.hdr.length - l->rx.got)};
        return n;
    }
    for (unsigned i = p->at; i < p->pieces; i++)
        piece[n++] = p->piece[i];
    piece[0].iov_base = (uint8_t *)piece[0].iov_base + p->at_done;
    piece[0].iov_len -= p->at_done;
    return n;
}

void place_took(struct link *l, size_t n)
{
    struct place *p = l->rx.place;
    bool wanted = p->pieces && !p->cut;

    l->rx.got += (uint32_t)n;
    if (!p->pieces && p->hashes)
        frame_hasher_add(p->hasher, l->rx.own, n);
    while (wanted && n) {
        struct iovec *v = &p->piece[p->at];
        size_t part = XM_MIN(n, v->iov_len - p->at_done);
        if (p->hashes)
            frame_hasher_add(p->hasher, (uint8_t *)v->iov_base + p->at_done, part);
        p->at_done += part;
        n -= part;
        if (p->at_done == v->iov_len) {
            p->at++;
            p->at_done = 0;
        }
    }
    pthread_mutex_unlock(&p->lock);
}

bool place_intact(const struct link *l)
{
    const struct place *p = l->rx.place;

    return p->cut || !p->hashes || frame_hasher_end(p->hasher) == l->rx.hdr.hash;
}

void place_cut(struct xm_rx *rx)
{
    struct link *l = rx->transport;

    pthread_mutex_lock(&l->rx.place->lock);
    rx->is_cut = true;
    pthread_mutex_unlock(&l->rx.place->lock);
}

void xm_rx_cut(struct xm_rx *rx)
{
    rx->cut(rx);
}
