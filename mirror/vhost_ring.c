/* SPDX-License-Identifier: MIT */
#include "mirror/vhost_turn.h"

#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void count_busy(struct xm_vhost *d)
{
    unsigned n = 0;

    for (unsigned i = 0; i < d->queues; i++)
        n += d->ring[i].in_flight + d->ring[i].running;
    __atomic_store_n(&d->any.busy, n, __ATOMIC_RELEASE);
}

bool rings_idle(const struct xm_vhost *d, int which)
{
    for (unsigned i = 0; i < d->queues; i++) {
        if ((which == DRAIN_ALL || which == (int)i) && d->ring[i].in_flight)
            return false;
    }
    return true;
}

/* Requests have left: is that what the control thread waits for? */
static void rings_left(struct xm_vhost *d)
{
    count_busy(d);
    if (d->drain != DRAIN_NONE && rings_idle(d, d->drain)) {
        d->drain = DRAIN_NONE;
        sem_post(&d->drained);
    }
}

static bool ring_enabled(const struct ring *r)
{
    return r->enabled || !(r->dev->features >> VHOST_F_PROTOCOL_FEATURES & 1);
}

static bool ring_is_live(const struct ring *r)
{
    return r->running && !r->dev->paused && ring_enabled(r);
}

static void ring_publish(struct ring *r)
{
    unsigned n = (uint16_t)(r->vq.used_idx - r->vq.published);

    if (virtqueue_publish(&r->vq) && r->call_fd >= 0)
        eventfd_write(r->call_fd, 1);
    if (n) {
        r->in_flight -= n;
        rings_left(r->dev);
    }
}

static void ring_done(struct blk_req *q, uint32_t len)
{
    struct ring *r = q->owner;

    /* Not answered, it stays in the in-flight region, and is done again when the ring runs again. */
    bool kept = q->no_room && (!r->running || r->dev->paused) && r->vq.track;
    if (r->dev->hung_up || kept) {
        virtqueue_drop(&r->vq, q->head);
        r->kept += kept;
        r->in_flight--;
        rings_left(r->dev);
        return;
    }
    virtqueue_push(&r->vq, q->head, len);
    turn_add(r->dev->turn, r);
}

void vhost_broken(struct xm_vhost *d, unsigned ring, const char *why)
{
    __atomic_add_fetch(&d->any.broken, 1, __ATOMIC_RELAXED);
    /* A guest can do this as often as it likes: it shall not fill our log. */
    if (!d->complained || xm_now() - d->complained > XM_NS_PER_S) {
        xm_log(XM_LOG_WARN,
               "%s: the guest broke the rules of queue %u: %s; the device stands still until it is reset",
               d->path, ring, why);
        d->complained = xm_now();
    }
    d->broken = true;
    for (unsigned i = 0; i < d->queues; i++) {
        if (d->ring[i].err_fd >= 0 && i == ring)
            eventfd_write(d->ring[i].err_fd, 1);
        ring_stop(&d->ring[i]);
    }
}

/* Takes at most a ring's length of requests. How many it were. */
static unsigned ring_process(struct ring *r)
{
    struct xm_vhost *d = r->dev;
    struct xm_error e = {0};
    unsigned n = 0;

    while (n < r->vq.num && ring_is_live(r)) {
        int got = virtqueue_pop(&r->vq, &d->chain, &e);
        if (got == 0)
            break;
        if (got < 0) {
            vhost_broken(d, r->index, e.text);
            break;
        }
        struct blk_req *q = &r->reqs[d->chain.head];
        uint16_t head = d->chain.head;
        if (!n && !r->vq.event_idx)
            virtqueue_want_kick(&r->vq, false); /* with the event index it is enough not to move it */
        q->owner = r;
        q->done = ring_done;
        r->in_flight++;
        n++;
        if (blk_start(q, &d->blk, d->mem, &d->chain, &e)) {
            virtqueue_drop(&r->vq, head);
            r->in_flight--;
            vhost_broken(d, r->index, e.text);
            break;
        }
    }
    if (n)
        rings_left(d);
    return n;
}

static void go_on(struct xm_post *p)
{
    struct ring *r = xm_container_of(p, struct ring, again);

    r->again_posted = false;
    if (ring_is_live(r)) {
        ring_process(r);
        turn_add(r->dev->turn, r);
    }
}

/* Goes on in the next turn, which does not wait. */
static void post_again(struct ring *r)
{
    if (!r->again_posted) {
        r->again_posted = true;
        xm_mailbox_post(&r->dev->engine->mailbox, &r->again);
    }
}

bool ring_has_work(const struct ring *r)
{
    return ring_is_live(r) && virtqueue_has_more(&r->vq);
}

bool ring_waits(const struct ring *r)
{
    return r->in_flight > (uint16_t)(r->vq.used_idx - r->vq.published);
}

bool ring_catch_up(struct ring *r, bool watched)
{
    if (watched && ring_is_live(r))
        virtqueue_want_kick(&r->vq, false);
    ring_publish(r);
    if (!ring_is_live(r) || !ring_process(r))
        return false;
    ring_publish(r); /* what was done at once */
    return true;
}

void ring_sleep(struct ring *r)
{
    /* A guest that adds and adds does not keep us here: the engine has others. */
    if (ring_is_live(r) && virtqueue_want_kick(&r->vq, true))
        post_again(r);
}

static void ring_kicked(struct xm_watch *w)
{
    struct ring *r = xm_container_of(w, struct ring, kick);

    turn_woken(r->dev->turn);
    if (ring_is_live(r)) {
        ring_process(r);
        turn_add(r->dev->turn, r);
    }
}

static void ring_watch(struct ring *r, bool on)
{
    if (!on && r->kick.fd >= 0) {
        xm_engine_unwatch(r->dev->engine, &r->kick);
        r->kick.fd = -1;
    }
    if (on && r->kick.fd < 0) {
        r->kick.fd = r->kick_fd;
        r->kick.ready = ring_kicked;
        if (xm_engine_watch(r->dev->engine, &r->kick) < 0) {
            r->kick.fd = -1;
            vhost_broken(r->dev, r->index, "its kick descriptor cannot be watched");
        }
    }
}

static int ring_start(struct ring *r, struct xm_error *e)
{
    struct xm_vhost *d = r->dev;

    r->vq.mem = d->mem;
    r->vq.event_idx = d->features >> VIRTIO_RING_F_EVENT_IDX & 1;
    r->vq.indirect = d->features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    r->vq.track = NULL;
    r->kept = 0;
    if (d->inflight.at) {
        if (r->index >= d->inflight.queues || r->vq.num > d->inflight.size)
            return xm_error_set(e, EPROTO, "the in-flight region has no place for it");
        r->vq.track = (void *)(d->inflight.at + r->index * vhost_inflight_bytes(d->inflight.size));
    }
    if (r->slots < r->vq.num) {
        free(r->reqs);
        r->slots = 0;
        r->reqs = calloc(r->vq.num, sizeof *r->reqs);
        if (!r->reqs)
            return xm_error_set(e, ENOMEM, "no memory for its requests");
        r->slots = r->vq.num;
    }
    return virtqueue_start(&r->vq, r->base, e);
}

void ring_update(struct ring *r)
{
    struct xm_vhost *d = r->dev;
    struct xm_error e = {0};

    if (!r->running) {
        if (!ring_enabled(r) || !r->started || !r->have_num || !r->have_addr || !d->mem || d->broken ||
            r->in_flight)
            return;
        if (ring_start(r, &e)) {
            vhost_broken(d, r->index, e.text);
            return;
        }
        r->running = true;
        turn_running(d->turn, r, true);
        count_busy(d);
        ring_watch(r, true);
    }
    /* Once without a kick: it may have come before us. The call for the other side is in virtqueue_start. */
    if (ring_is_live(r)) {
        ring_process(r);
        turn_add(r->dev->turn, r);
    }
}

void ring_stop(struct ring *r)
{
    if (r->running) {
        r->running = false;
        turn_running(r->dev->turn, r, false);
        r->base = r->vq.last_avail;
        ring_watch(r, false);
        ring_publish(r);
        count_busy(r->dev);
    }
}

void ring_set_kick(struct ring *r, int fd)
{
    bool was = r->running;

    ring_watch(r, false);
    if (r->kick_fd >= 0)
        close(r->kick_fd);
    r->kick_fd = fd;
    r->started = fd >= 0;
    if (was && fd >= 0)
        ring_watch(r, true);
    else
        ring_update(r);
}

void ring_set_call(struct ring *r, int fd)
{
    if (r->call_fd >= 0)
        close(r->call_fd);
    r->call_fd = fd;
    /* What was told to the old one may not have been heard; a call too many harms nobody. */
    if (r->running && fd >= 0)
        eventfd_write(fd, 1);
}

void rings_pause(struct xm_vhost *d, bool on)
{
    d->paused = on;
    for (unsigned i = 0; i < d->queues; i++) {
        if (!on && ring_is_live(&d->ring[i])) {
            ring_process(&d->ring[i]);
            turn_add(d->turn, &d->ring[i]);
        }
    }
}

void rings_remap(struct xm_vhost *d)
{
    struct xm_error e = {0};

    for (unsigned i = 0; i < d->queues; i++) {
        struct ring *r = &d->ring[i];
        if (r->running && (!d->mem || virtqueue_remap(&r->vq, d->mem, &e))) {
            /* Not even to publish: its memory has gone. */
            r->running = false;
            turn_running(d->turn, r, false);
            ring_watch(r, false);
            vhost_broken(d, i, "its rings are not in the new memory table");
        }
    }
    count_busy(d);
}

void rings_hang_up(struct xm_vhost *d)
{
    for (unsigned i = 0; i < d->queues; i++) {
        if (!d->hung_up)
            ring_publish(&d->ring[i]);
        ring_stop(&d->ring[i]);
        turn_remove(d->turn, &d->ring[i]);
    }
    d->hung_up = true;
}

void rings_apply_features(struct xm_vhost *d)
{
    bool flush = d->features >> VIRTIO_BLK_F_FLUSH & 1,
         switchable = d->features >> VIRTIO_BLK_F_CONFIG_WCE & 1;

    /* virtio 1.2, 5.2.5.2: a driver that cannot flush gets a device that need not be flushed. */
    d->blk.writeback = flush && (!switchable || d->wce);
    if (d->mem)
        d->mem->log = d->features >> VHOST_F_LOG_ALL & 1 && d->log.base ? &d->log : NULL;
}

static unsigned rings_keep(void *arg)
{
    const struct xm_vhost *d = arg;
    unsigned n = 0;

    for (unsigned i = 0; i < d->queues; i++)
        n += d->ring[i].kept;
    return n;
}

int rings_init(struct xm_vhost *d)
{
    xm_disk_kept(d->disk, rings_keep, d);
    d->turn = turn_get(d->engine);
    d->drain = DRAIN_NONE;
    for (unsigned i = 0; i < VHOST_QUEUES_MAX; i++) {
        struct ring *r = &d->ring[i];
        r->dev = d;
        r->index = i;
        r->kick_fd = r->call_fd = r->err_fd = r->kick.fd = -1;
        r->again.run = go_on;
    }
    return d->turn ? 0 : -ENOMEM;
}

void rings_destroy(struct xm_vhost *d)
{
    xm_disk_kept(d->disk, NULL, NULL);
    for (unsigned i = 0; i < d->queues; i++) {
        turn_remove(d->turn, &d->ring[i]);
        free(d->ring[i].reqs);
    }
    if (d->turn)
        turn_put(d->turn);
}
