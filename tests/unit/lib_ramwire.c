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

/* A frame as the sink gets it, with a payload of its own. */
struct ramwire_copy {
    STAILQ_ENTRY(ramwire_copy) next;
    struct xm_rx rx;
    int status;
    uint8_t reply[64];
};

static void copy_done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    struct ramwire_copy *c = xm_container_of(rx, struct ramwire_copy, rx);

    c->status = status;
    if (reply)
        memcpy(c->reply, reply, XM_MIN(len, sizeof c->reply));
}

static uint64_t roll(struct ramwire *w)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return w->seed;
}

static struct ramwire_copy *copy_make(const struct xm_msg *m, const struct xm_frame_hdr *h)
{
    struct ramwire_copy *c = calloc(1, sizeof *c);

    c->rx.hdr = *h;
    c->rx.done = copy_done;
    c->status = 1;
    if (m->length) {
        c->rx.payload = aligned_alloc(4096, XM_ROUND_UP(m->length, 4096));
        memcpy(c->rx.payload, m->payload, m->length);
    }
    return c;
}

/* Frees it; returns the sink's status. */
static int copy_deliver(struct ramwire *w, struct ramwire_copy *c)
{
    struct xm_error e = {0};
    int status = xm_ramsink_check(w->sink, &c->rx.hdr, &e);

    if (!status) {
        xm_ramsink_frame(w->sink, &c->rx);
        status = c->status;
    }
    if (status)
        atomic_fetch_add(&w->refused, 1);
    free(c->rx.payload);
    free(c);
    return status;
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
            w->late_delivered++;
            pthread_mutex_unlock(&w->lock);
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
        bool twice = roll(w) % 100 < w->duplicate_percent, at_once = roll(w) % 2;
        bool fails = w->fail_after && w->taken >= w->fail_after;
        w->taken++;
        pthread_mutex_unlock(&w->lock);

        struct xm_frame_hdr h;
        m->hash = XXH3_64bits(m->payload, m->length);
        xm_frame_of_msg(&h, m, 0, m->hash);
        m->status = -ENOLINK;
        if (!fails) {
            struct ramwire_copy *second = twice ? copy_make(m, &h) : NULL;
            pause_us(delay);
            m->status = copy_deliver(w, copy_make(m, &h));
            if (second && at_once) {
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
