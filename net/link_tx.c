/* SPDX-License-Identifier: MIT */
/* net/link_tx.c: what a link sends.
 *
 * Frames are queued in link.tx.out: first the answers to the peer's frames, then messages taken from the
 * bundle's queue. All of it goes out with one gathered sendmsg, headers and payloads together, without
 * copying; what the socket does not take is continued when it has room again. A payload's hash is made here,
 * just before it is copied into the socket, while that brings it into the cache anyway; and so are the hashes
 * that a message's owner puts into its head (xm_msg.complete). Both are made once: a frame that is sent again
 * over another link has the head that it had, though its pieces may have changed meanwhile.
 */
#include "net/bundle.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Of one sendmsg; the kernel takes 1024. */
#define PARTS_MAX (2 * OUT_MAX + XM_PIECES_MAX)

bool tx_idle(const struct link *l)
{
    return l->tx.first == l->tx.n;
}

size_t tx_unsent(const struct link *l)
{
    size_t bytes = 0;

    for (unsigned i = l->tx.first; i < l->tx.n; i++)
        bytes += FRAME_HDR + l->tx.out[i].length;
    return bytes - l->tx.done;
}

static struct out *tx_add(struct link *l, const struct xm_frame_hdr *h, const void *payload)
{
    struct out *o = &l->tx.out[l->tx.n++];

    *o = (struct out){.payload = payload, .length = h->length, .head = h->length};
    frame_encode(o->hdr, h);
    return o;
}

void tx_frame(struct link *l, uint8_t type, uint64_t extent, const void *payload, uint32_t len)
{
    if (l->tx.n == OUT_MAX)
        return;
    tx_add(l,
           &(struct xm_frame_hdr){
               .type = type, .extent = extent, .length = len, .hash = frame_hash(payload, len)},
           payload);
}

/* Takes what handlers have answered since the last time, oldest first. */
static void take_answers(struct link *l)
{
    if (!atomic_load_explicit(&l->any.answered, memory_order_relaxed))
        return;
    struct xm_rx *list = NULL;
    for (struct xm_rx *rx = atomic_exchange(&l->any.answered, NULL), *next; rx; rx = next) {
        next = rx->next_ack;
        rx->next_ack = list;
        list = rx;
    }
    *l->tx.answers_tail = list;
    for (; list; list = list->next_ack) {
        l->tx.answers_tail = &list->next_ack;
        l->rx.unanswered--;
        l->rx.unanswered_bytes -= list->asked;
    }
}

void tx_answers(struct link *l)
{
    unsigned acks = 0;
    struct xm_rx *rx;

    take_answers(l);
    if (!l->tx.answers)
        return;
    /* One place is kept for the ACK frame itself. */
    bool may_ack = !l->tx.ack_busy && l->tx.n < OUT_MAX;
    while ((rx = l->tx.answers)) {
        if (rx->payload) {
            if (l->tx.n + 1 >= OUT_MAX)
                break;
            struct out *o = tx_add(l,
                                   &(struct xm_frame_hdr){.type = XM_FRAME_REPLY,
                                                          .id = rx->hdr.id,
                                                          .extent = (uint32_t)rx->status,
                                                          .length = rx->hdr.length,
                                                          .hash = frame_hash(rx->payload, rx->hdr.length)},
                                   rx->payload);
            o->owned = rx->payload;
        } else {
            if (!may_ack || acks == ACKS_MAX)
                break;
            l->tx.ack[2 * acks] = htole32(rx->hdr.id);
            l->tx.ack[2 * acks + 1] = htole32((uint32_t)rx->status);
            acks++;
        }
        l->tx.answers = rx->next_ack;
        if (!l->tx.answers)
            l->tx.answers_tail = &l->tx.answers;
        free(rx);
    }
    if (acks) {
        tx_frame(l, XM_FRAME_ACK, 0, l->tx.ack, acks * 8);
        l->tx.out[l->tx.n - 1].acks = true;
        l->tx.ack_busy = true;
    }
}

/* Slots come in blocks that never move and are never fewer: an id finds its slot, and other slots may point
 * to it. */
static bool slots_grow(struct link *l)
{
    if (l->slots.n + SLOT_BLOCK > SLOTS_MAX)
        return false;
    unsigned blocks = l->slots.n / SLOT_BLOCK;
    struct slot **more = reallocarray(l->slots.block, blocks + 1, sizeof(struct slot *));
    if (!more)
        return false;
    l->slots.block = more;
    more[blocks] = calloc(SLOT_BLOCK, sizeof(struct slot));
    if (!more[blocks])
        return false;
    for (unsigned i = 0; i < SLOT_BLOCK; i++) {
        more[blocks][i].index = (uint16_t)(l->slots.n + i);
        TAILQ_INSERT_TAIL(&l->slots.idle, &more[blocks][i], order);
    }
    l->slots.n += SLOT_BLOCK;
    return true;
}

struct slot *link_slot_of(struct link *l, uint32_t id)
{
    unsigned index = id & 0xffff;
    if (index >= l->slots.n)
        return NULL;
    struct slot *s = &l->slots.block[index / SLOT_BLOCK][index % SLOT_BLOCK];
    return s->msg && s->generation == id >> 16 && s->sent ? s : NULL;
}

static void room_count(struct room *r, const struct xm_msg *m, int one)
{
    r->frames += (unsigned)one;
    *(m->urgent ? &r->urgent : &r->bulk) += (unsigned)one;
    r->bytes = one > 0 ? r->bytes + m->length : r->bytes - m->length;
}

struct xm_msg *link_slot_take(struct link *l, struct slot *s)
{
    struct xm_msg *m = s->msg;

    room_count(&l->slots.room, m, -1);
    s->msg = NULL;
    s->generation++;
    TAILQ_REMOVE(&l->slots.flying, s, order);
    /* The one free for longest is used next: an id comes again as late as possible. */
    TAILQ_INSERT_TAIL(&l->slots.idle, s, order);
    return m;
}

void tx_messages(struct link *l)
{
    struct msgs taken = STAILQ_HEAD_INITIALIZER(taken);
    struct xm_msg *m;

    queue_take(l, &taken);
    while ((m = STAILQ_FIRST(&taken))) {
        STAILQ_REMOVE_HEAD(&taken, link);
        if (TAILQ_EMPTY(&l->slots.idle) && !slots_grow(l)) {
            msg_end(m, -ENOMEM);
            continue;
        }
        struct slot *s = TAILQ_FIRST(&l->slots.idle);
        TAILQ_REMOVE(&l->slots.idle, s, order);
        TAILQ_INSERT_TAIL(&l->slots.flying, s, order);
        s->msg = m;
        s->sent = false;
        room_count(&l->slots.room, m, 1);
        m->wire_id = (uint32_t)s->generation << 16 | s->index;
        if (!m->hashed && m->complete)
            m->complete(m);
        if (!m->hashed)
            m->hash = frame_hash(m->payload, m->length - m->apart);
        m->hashed = true;
        struct xm_frame_hdr h;
        xm_frame_of_msg(&h, m, m->wire_id, m->hash);
        struct out *o = tx_add(l, &h, m->payload);
        o->slot = s;
        o->head -= m->apart;
        o->piece = m->piece;
        o->pieces = m->apart ? m->pieces : 0;
    }
}

static void out_over(struct link *l, struct out *o)
{
    free(o->owned);
    if (o->acks)
        l->tx.ack_busy = false;
}

void tx_cut(struct link *l)
{
    unsigned keep = l->tx.first + (l->tx.done > 0);

    while (l->tx.n > keep)
        out_over(l, &l->tx.out[--l->tx.n]);
}

void tx_drop(struct link *l)
{
    l->tx.done = 0;
    tx_cut(l);
    l->tx.first = l->tx.n = 0;
}

/* `n` more bytes are sent. */
static void tx_advance(struct link *l, size_t n)
{
    unsigned frames = 0;

    l->tx.done += n;
    while (l->tx.first < l->tx.n) {
        struct out *o = &l->tx.out[l->tx.first];
        if (l->tx.done < FRAME_HDR + o->length)
            break;
        l->tx.done -= FRAME_HDR + o->length;
        if (o->slot)
            o->slot->sent = true;
        out_over(l, o);
        l->tx.first++;
        frames++;
    }
    if (tx_idle(l))
        l->tx.first = l->tx.n = 0;
    atomic_fetch_add_explicit(&l->any.wire_tx, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&l->any.frames_tx, frames, memory_order_relaxed);
}

static void tx_part(struct iovec **at, const void *base, size_t len, size_t *skip)
{
    if (*skip >= len) {
        *skip -= len;
        return;
    }
    *(*at)++ = (struct iovec){(uint8_t *)(uintptr_t)base + *skip, len - *skip};
    *skip = 0;
}

/* What is still to be sent of as many frames as there are parts for, and at least one. Returns the bytes. */
static size_t tx_parts(const struct link *l, struct iovec *iov, size_t *parts)
{
    struct iovec *at = iov;
    size_t skip = l->tx.done, all = 0;

    for (unsigned i = l->tx.first; i < l->tx.n; i++) {
        const struct out *o = &l->tx.out[i];
        if (at + 2 + o->pieces > iov + PARTS_MAX)
            break;
        tx_part(&at, o->hdr, FRAME_HDR, &skip);
        tx_part(&at, o->payload, o->head, &skip);
        for (unsigned k = 0; k < o->pieces; k++)
            tx_part(&at, o->piece[k].iov_base, o->piece[k].iov_len, &skip);
        all += FRAME_HDR + o->length;
    }
    *parts = (size_t)(at - iov);
    return all - l->tx.done;
}

int tx_send(struct link *l)
{
    struct iovec iov[PARTS_MAX];

    l->tx.blocked = false;
    while (!tx_idle(l)) {
        struct msghdr msg = {.msg_iov = iov};
        size_t all = tx_parts(l, iov, &msg.msg_iovlen);
        ssize_t n = sendmsg(l->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return -errno;
        if (n > 0)
            tx_advance(l, (size_t)n);
        if (n < 0 || (size_t)n < all) {
            if (n > 0 || !l->tx.stuck)
                l->tx.stuck = xm_now();
            l->tx.blocked = true;
            return 0;
        }
    }
    l->tx.stuck = 0;
    return 0;
}
