/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_ramwire.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* A frame as the sink gets it, with a payload of its own, and a link's manners: what follows the head goes
 * where place() says, part by part, until it is cut. */
struct ramwire_copy {
    STAILQ_ENTRY(ramwire_copy) next;
    struct xm_rx rx;
    int status;
    uint8_t reply[64];
    uint32_t reply_len;
    struct xm_msg *msg; /* is answered by it; or NULL */
    uint8_t *bytes;     /* all of the payload; rx.payload is its beginning */
    struct iovec piece[XM_PIECES_MAX];
    unsigned pieces;
    size_t from, placed;  /* of the bytes: where the pieces begin, and how many are there */
    pthread_mutex_t lock; /* held while bytes are placed; protects rx.is_cut */
};

static void copy_done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    struct ramwire_copy *c = xm_container_of(rx, struct ramwire_copy, rx);

    c->status = status;
    c->reply_len = len;
    if (len)
        memcpy(c->reply, reply, XM_MIN(len, sizeof c->reply));
}

static void copy_cut(struct xm_rx *rx)
{
    struct ramwire_copy *c = xm_container_of(rx, struct ramwire_copy, rx);

    pthread_mutex_lock(&c->lock);
    rx->is_cut = true;
    pthread_mutex_unlock(&c->lock);
}

static uint64_t roll(struct ramwire *w)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return w->seed;
}

/* The payload as it is now. */
static void gather(uint8_t *to, const struct xm_msg *m)
{
    memcpy(to, m->payload, m->length - m->apart);
    to += m->length - m->apart;
    for (unsigned i = 0; m->apart && i < m->pieces; to += m->piece[i++].iov_len)
        memcpy(to, m->piece[i].iov_base, m->piece[i].iov_len);
}

static struct ramwire_copy *copy_make(const struct xm_msg *m, const struct xm_frame_hdr *h)
{
    struct ramwire_copy *c = calloc(1, sizeof *c);

    c->rx.hdr = *h;
    c->rx.done = copy_done;
    c->rx.cut = copy_cut;
    c->status = 1;
    pthread_mutex_init(&c->lock, NULL);
    if (m->length) {
        c->bytes = aligned_alloc(4096, XM_ROUND_UP(m->length, 4096));
        gather(c->bytes, m);
    }
    return c;
}

static void copy_free(struct ramwire_copy *c)
{
    pthread_mutex_destroy(&c->lock);
    free(c->bytes);
    free(c->rx.payload);
    free(c);
}

/* The head comes, as a link brings it. False: refused. */
static bool copy_begin(struct ramwire *w, struct ramwire_copy *c)
{
    struct xm_placer p = xm_ramsink_placer(w->sink);
    uint32_t length = c->rx.hdr.length, head = p.head(p.ctx, &c->rx.hdr);
    struct xm_error e = {0};

    c->status = xm_ramsink_check(w->sink, &c->rx.hdr, &e);
    if (c->status)
        return false;
    c->from = length;
    if (!length)
        return true;
    c->rx.payload = malloc(head); /* not a byte more may be looked at */
    memcpy(c->rx.payload, c->bytes, head);
    if (head == length)
        return true;
    c->from = head;
    c->pieces = p.place(p.ctx, &c->rx, c->piece);
    size_t room = 0;
    for (unsigned i = 0; i < c->pieces; i++)
        room += c->piece[i].iov_len;
    assert_true(!c->pieces || room == length - head);
    return true;
}

/* The rest comes up to `until` bytes, in parts. */
static void copy_bring(struct ramwire_copy *c, size_t until)
{
    for (bool more = true; more;) {
        pthread_mutex_lock(&c->lock);
        size_t at = c->placed, i = 0;
        while (i < c->pieces && at >= c->piece[i].iov_len)
            at -= c->piece[i++].iov_len;
        more = i < c->pieces && c->placed < until && !c->rx.is_cut;
        if (more) {
            size_t n = XM_MIN(XM_MIN(c->piece[i].iov_len - at, 10000u), until - c->placed);
            memcpy((uint8_t *)c->piece[i].iov_base + at, c->bytes + c->from + c->placed, n);
            c->placed += n;
        }
        pthread_mutex_unlock(&c->lock);
    }
}

/* The rest comes, and it is a frame. Frees it; returns the sink's status. */
static int copy_end(struct ramwire *w, struct ramwire_copy *c)
{
    copy_bring(c, SIZE_MAX);
    xm_ramsink_frame(w->sink, &c->rx);
    int status = c->status;
    if (status)
        atomic_fetch_add(&w->refused, 1);
    if (c->msg && c->reply_len) {
        c->msg->reply = malloc(c->reply_len);
        c->msg->reply_len = c->reply_len;
        memcpy(c->msg->reply, c->reply, c->reply_len);
    }
    copy_free(c);
    return status;
}

static int copy_deliver(struct ramwire *w, struct ramwire_copy *c)
{
    if (copy_begin(w, c))
        return copy_end(w, c);
    int status = c->status;
    atomic_fetch_add(&w->refused, 1);
    copy_free(c);
    return status;
}

/* The link has died in the middle of it. */
static void copy_drop(struct ramwire *w, struct ramwire_copy *c)
{
    struct xm_placer p = xm_ramsink_placer(w->sink);

    if (c->from < c->rx.hdr.length)
        p.dropped(p.ctx, &c->rx);
    copy_free(c);
}

static void pause_us(uint64_t us)
{
    if (us)
        usleep((useconds_t)us);
}

static struct xm_msg *take(struct ramwire *w)
{
    unsigned skip = (unsigned)(roll(w) % 4);
    struct xm_msg *m = STAILQ_FIRST(&w->queue);

    for (struct xm_msg *n = m; skip && n; skip--) {
        n = STAILQ_NEXT(n, link);
        m = n ? n : m;
    }
    if (m)
        STAILQ_REMOVE(&w->queue, m, xm_msg, link);
    return m;
}

static void *wire_main(void *arg)
{
    struct ramwire *w = arg;

    pthread_mutex_lock(&w->lock);
    for (;;) {
        struct ramwire_copy *late = STAILQ_FIRST(&w->late);
        if (late && (w->end || roll(w) % 8 == 0)) {
            STAILQ_REMOVE_HEAD(&w->late, next);
            bool dies = late->from && roll(w) % 4 == 0;
            pthread_mutex_unlock(&w->lock);
            if (dies)
                copy_drop(w, late);
            else if (late->from)
                copy_end(w, late);
            else
                copy_deliver(w, late);
            pthread_mutex_lock(&w->lock);
            continue;
        }
        struct xm_msg *m = w->hold ? NULL : take(w);
        if (!m) {
            if (w->end && !w->hold)
                break;
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        uint64_t delay = w->max_delay_us ? roll(w) % w->max_delay_us : 0;
        bool twice = roll(w) % 100 < w->duplicate_percent, at_once = roll(w) % 2, half = roll(w) % 2;
        size_t part = roll(w) % (m->length + 1);
        bool fails = w->fail_after && w->taken >= w->fail_after;
        w->taken++;
        pthread_mutex_unlock(&w->lock);

        struct xm_frame_hdr h;
        if (m->complete)
            m->complete(m);
        m->hash = XXH3_64bits(m->payload, m->length - m->apart);
        xm_frame_of_msg(&h, m, 0, m->hash);
        m->status = -ENOLINK;
        if (m->apart)
            atomic_fetch_add(&w->direct, 1);
        if (w->on_the_way && m->apart)
            w->on_the_way(m);
        if (!fails) {
            struct ramwire_copy *second = twice ? copy_make(m, &h) : NULL;
            pause_us(delay);
            bool stale_later = (part & 3) == 0;
            if (second && half && !stale_later &&
                copy_begin(w, second)) /* a link that stops in the middle of it */
                copy_bring(second, part);
            struct ramwire_copy *first = copy_make(m, &h);
            first->msg = m;
            if (m->apart && atomic_exchange(&w->damage, false))
                first->bytes[m->length - 1] ^= 1;
            if (second && half && stale_later &&
                copy_begin(w, first)) { /* it has not stopped; the live one is slower */
                copy_bring(first, part);
                if (copy_begin(w, second))
                    copy_bring(second, part / 2);
                m->status = copy_end(w, first);
            } else {
                m->status = copy_deliver(w, first);
            }
            if (second && at_once) {
                if (second->from)
                    copy_end(w, second);
                else
                    copy_deliver(w, second);
            } else if (second) {
                pthread_mutex_lock(&w->lock);
                STAILQ_INSERT_TAIL(&w->late, second, next);
                pthread_mutex_unlock(&w->lock);
            }
        }
        pthread_mutex_lock(&w->lock);
        w->in_flight -= m->length;
        xm_mailbox_post(m->home, &m->post);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void wire_submit(struct xm_transport *t, struct xm_msg *m)
{
    struct ramwire *w = t->ctx;

    pthread_mutex_lock(&w->lock);
    STAILQ_INSERT_TAIL(&w->queue, m, link);
    w->in_flight += m->length;
    w->most_in_flight = XM_MAX(w->most_in_flight, w->in_flight);
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void ramwire_start(struct ramwire *w, struct xm_ramsink *sink, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->transport.submit = wire_submit;
    w->transport.ctx = w;
    w->transport.features = XM_FEATURE_HEAD;
    w->sink = sink;
    w->seed = seed * 0x9e3779b97f4a7c15ull + 1;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    STAILQ_INIT(&w->queue);
    STAILQ_INIT(&w->late);
    for (unsigned i = 0; i < RAMWIRE_THREADS; i++)
        assert_int_equal(pthread_create(&w->thread[i], NULL, wire_main, w), 0);
}

void ramwire_hold(struct ramwire *w, bool hold)
{
    pthread_mutex_lock(&w->lock);
    w->hold = hold;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void ramwire_stop(struct ramwire *w)
{
    pthread_mutex_lock(&w->lock);
    w->end = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < RAMWIRE_THREADS; i++)
        pthread_join(w->thread[i], NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
}

int ramwire_digest_status(struct ramwire *w)
{
    struct ramwire_copy c = {.rx.hdr.type = XM_FRAME_RAM_DIGEST, .rx.done = copy_done, .status = 1};

    xm_ramsink_frame(w->sink, &c.rx);
    return c.status;
}

void ramwire_digest(struct ramwire *w, struct xm_digest *d)
{
    struct ramwire_copy c = {.rx.hdr.type = XM_FRAME_RAM_DIGEST, .rx.done = copy_done, .status = 1};
    uint64_t wire[3];

    assert_int_equal(xm_ramsink_check(w->sink, &c.rx.hdr, NULL), 0);
    xm_ramsink_frame(w->sink, &c.rx);
    assert_int_equal(c.status, 0);
    memcpy(wire, c.reply, sizeof wire);
    *d = (struct xm_digest){le64toh(wire[0]), le64toh(wire[1]), le64toh(wire[2])};
}
