/* SPDX-License-Identifier: MIT */
/* net/links.c: the bundle: its life, its end, and what can be asked of it. queue.c has its queue, link.c its
 * links. */
#include "net/bundle.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void msg_end(struct xm_msg *m, int status)
{
    m->status = status;
    xm_mailbox_post(m->home, &m->post);
}

struct xm_links *xm_links_new(const struct xm_links_opts *opts, struct xm_error *e)
{
    struct xm_links *b = calloc(1, sizeof *b);
    pthread_condattr_t attr;

    if (!b) {
        xm_error_errno(e, ENOMEM, "a bundle of links");
        return NULL;
    }
    b->opts = *opts;
    if (!b->opts.window_bytes)
        b->opts.window_bytes = DEFAULT_WINDOW;
    if (!b->opts.window_frames)
        b->opts.window_frames = DEFAULT_FRAMES;
    if (!b->opts.silence)
        b->opts.silence = DEFAULT_SILENCE;
    /* An honest peer stays within a window per link, and a payload or two; a failed link's frames come again
     * while those that it brought may still be worked on; and buffers come in powers of two. What lies beyond
     * that is not read. */
    b->pool = xm_bufpool_new(POOL_LINKS * (b->opts.window_bytes + 2 * XM_PAYLOAD_MAX));
    if (!b->pool) {
        free(b);
        xm_error_errno(e, ENOMEM, "a bundle of links");
        return NULL;
    }
    b->transport = (struct xm_transport){.submit = queue_submit, .ctx = b};
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b->changed, &attr);
    pthread_condattr_destroy(&attr);
    sem_init(&b->rx_drained, 0, 0);
    atomic_store(&b->rx_open, 1);
    STAILQ_INIT(&b->queue.again);
    STAILQ_INIT(&b->queue.urgent);
    STAILQ_INIT(&b->queue.bulk);
    xm_meter_init(&b->answered, XM_NS_PER_S, xm_now());
    xm_bucket_init(&b->queue.bucket, 0, xm_now());
    return b;
}

/* Threads of links that have gone are joined here, so that they do not pile up when a link comes and goes. */
static void join_ended(struct xm_links *b)
{
    for (int i = 0; i < b->links; i++) {
        struct link *l = b->link[i];
        if (l->locked.ended && !l->locked.joined) {
            pthread_join(l->thread, NULL);
            l->locked.joined = true;
        }
    }
}

static int link_start(struct xm_links *b, struct link *l, uint32_t features, struct xm_error *e)
{
    int err = 0;

    pthread_mutex_lock(&b->lock);
    join_ended(b);
    if (b->end.lost || b->end.closing) {
        err = xm_error_set(e, b->end.why.code ? b->end.why.code : ECANCELED, "link %s comes too late: %.400s",
                           l->name, b->end.why.code ? b->end.why.text : "the transfer has ended");
    } else if (b->links == LINKS_MAX) {
        err = xm_error_set(e, ENOSPC, "link %s: there were %d links already", l->name, LINKS_MAX);
    } else {
        l->number = b->links;
        l->locked.up = true;
        err = -pthread_create(&l->thread, NULL, link_main,
                              l); /* it waits for the lock before it needs any of this */
        if (err < 0)
            xm_error_errno(e, -err, "link %s: starting a thread", l->name);
    }
    if (!err) {
        err = l->number;
        /* Sides that speak to each other are two processes: all links tell the same. */
        atomic_store(&b->transport.features,
                     b->links ? atomic_load(&b->transport.features) & features : features);
        b->link[b->links++] = l;
        b->up++;
        pthread_cond_broadcast(&b->changed);
    }
    pthread_mutex_unlock(&b->lock);
    return err;
}

int xm_links_add(struct xm_links *b, int fd, bool client, const char *name, struct xm_error *e)
{
    struct link *l = link_new(b, fd, name);
    struct hello peer;

    if (!l) {
        close(fd);
        return xm_error_errno(e, ENOMEM, "link %s", name);
    }
    int err = hello_exchange(fd, client, &b->opts, l->name, &peer, e);
    if (!err) {
        l->window_bytes = (size_t)XM_MIN((uint64_t)b->opts.window_bytes, peer.window_bytes);
        l->window_frames = XM_MIN(XM_MIN(b->opts.window_frames, peer.window_frames), SLOTS_MAX);
        l->rx.heard = l->tx.spoke = xm_now();
        err = link_start(b, l, peer.optional, e);
    }
    if (err < 0)
        link_free(l);
    return err;
}

struct xm_transport *xm_links_transport(struct xm_links *b)
{
    return &b->transport;
}

void bundle_wake(struct xm_links *b)
{
    pthread_mutex_lock(&b->lock);
    for (int i = 0; i < b->links; i++)
        link_wake(b->link[i]);
    pthread_mutex_unlock(&b->lock);
}

/* Takes all that no link has. With the lock held. */
static void take_queues(struct xm_links *b, struct msgs *to)
{
    STAILQ_CONCAT(to, &b->queue.again);
    STAILQ_CONCAT(to, &b->queue.urgent);
    STAILQ_CONCAT(to, &b->queue.bulk);
    b->queue.bytes = 0;
}

static void msgs_end(struct msgs *list, int status)
{
    struct xm_msg *m;

    while ((m = STAILQ_FIRST(list))) {
        STAILQ_REMOVE_HEAD(list, link);
        msg_end(m, status);
    }
}

static void bundle_set_lost(struct xm_links *b, int status, bool tell_peer, const struct xm_error *why,
                            const struct xm_error *peer_said)
{
    struct msgs queued = STAILQ_HEAD_INITIALIZER(queued);

    pthread_mutex_lock(&b->lock);
    if (!b->end.lost && !b->end.closing) {
        b->end.lost = true;
        b->end.tell_peer = tell_peer;
        b->end.status = status;
        if (why)
            b->end.why = *why;
        else if (peer_said)
            xm_error_set(&b->end.why, peer_said->code, "the other side ended the transfer: %s",
                         peer_said->text);
        else
            xm_error_set(&b->end.why, ENOLINK, "no link to the other side any more, the last one: %.400s",
                         b->end.last_why.text);
        if (peer_said)
            b->end.peer_said = *peer_said;
        atomic_store(&b->ending, true);
    }
    take_queues(b, &queued);
    status = b->end.status;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    bundle_wake(b);
    msgs_end(&queued, status);
}

void bundle_lose(struct xm_links *b, int status, bool tell_peer, const struct xm_error *why)
{
    bundle_set_lost(b, status, tell_peer, why, NULL);
}

void bundle_ended_by_peer(struct xm_links *b, const struct xm_error *said)
{
    bundle_set_lost(b, -ECANCELED, false, NULL, said);
}

void xm_links_abort(struct xm_links *b, const char *reason)
{
    struct xm_error why = {0};

    xm_error_set(&why, ECANCELED, "%s", reason && *reason ? reason : "aborted");
    bundle_lose(b, -ECANCELED, true, &why);
}

void xm_links_error(struct xm_links *b, struct xm_error *out)
{
    pthread_mutex_lock(&b->lock);
    *out = b->end.why;
    pthread_mutex_unlock(&b->lock);
}

void xm_links_peer_said(struct xm_links *b, struct xm_error *out)
{
    pthread_mutex_lock(&b->lock);
    *out = b->end.peer_said;
    pthread_mutex_unlock(&b->lock);
}

void xm_links_free(struct xm_links *b)
{
    struct msgs queued = STAILQ_HEAD_INITIALIZER(queued);

    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->end.closing = true;
    if (!b->end.lost)
        b->end.status = -ECANCELED;
    atomic_store(&b->ending, true);
    take_queues(b, &queued);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    bundle_wake(b);
    msgs_end(&queued, -ECANCELED);
    for (int i = 0; i < b->links; i++) {
        if (!b->link[i]->locked.joined)
            pthread_join(b->link[i]->thread, NULL);
    }
    if (atomic_fetch_sub(&b->rx_open, 1) != 1) {
        while (sem_wait(&b->rx_drained) < 0) {
        }
    }
    for (int i = 0; i < b->links; i++)
        link_free(b->link[i]);
    xm_bufpool_free(b->pool);
    sem_destroy(&b->rx_drained);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    free(b);
    calls_sweep();
}

int xm_links_up(struct xm_links *b)
{
    pthread_mutex_lock(&b->lock);
    int up = b->up;
    pthread_mutex_unlock(&b->lock);
    return up;
}

int xm_links_info(struct xm_links *b, struct xm_link_info *out, int max)
{
    pthread_mutex_lock(&b->lock);
    int n = b->links;
    for (int i = 0; i < n && i < max; i++) {
        struct link *l = b->link[i];
        out[i] = (struct xm_link_info){.state = l->locked.up ? XM_LINK_UP : XM_LINK_DOWN,
                                       .wire_tx = atomic_load(&l->any.wire_tx),
                                       .wire_rx = atomic_load(&l->any.wire_rx),
                                       .frames_tx = atomic_load(&l->any.frames_tx),
                                       .resent = atomic_load(&l->any.resent)};
        memcpy(out[i].name, l->name, sizeof out[i].name);
    }
    pthread_mutex_unlock(&b->lock);
    return n;
}

double xm_links_rate(struct xm_links *b)
{
    pthread_mutex_lock(&b->lock);
    double rate = xm_meter_rate(&b->answered, xm_now());
    pthread_mutex_unlock(&b->lock);
    return rate;
}

void xm_links_set_rate(struct xm_links *b, uint64_t bytes_per_s)
{
    uint64_t now = xm_now();

    pthread_mutex_lock(&b->lock);
    xm_bucket_set(&b->queue.bucket, bytes_per_s, now);
    b->queue.hold_until = 0;
    pthread_mutex_unlock(&b->lock);
    bundle_wake(b);
}

uint64_t xm_links_wire_bytes(struct xm_links *b)
{
    uint64_t sum = 0;

    pthread_mutex_lock(&b->lock);
    for (int i = 0; i < b->links; i++)
        sum += atomic_load(&b->link[i]->any.wire_tx) + atomic_load(&b->link[i]->any.wire_rx);
    pthread_mutex_unlock(&b->lock);
    return sum;
}

unsigned long xm_links_serving(struct xm_links *b)
{
    return atomic_load(&b->rx_open) - 1;
}

uint64_t xm_links_queued(struct xm_links *b, uint64_t *max)
{
    pthread_mutex_lock(&b->lock);
    uint64_t now = b->queue.bytes;
    if (max)
        *max = b->queue.bytes_max;
    pthread_mutex_unlock(&b->lock);
    return now;
}
