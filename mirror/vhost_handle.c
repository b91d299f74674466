/* SPDX-License-Identifier: MIT */
/* mirror/vhost_handle.c: what each vhost-user message does. Each is checked for its form before it comes here
 * (vhost_msg_check).
 *
 * A handler runs on the engine's thread, where all state of rings lives, while the control thread waits for
 * it. What may block, mapping and draining, is done on the control thread around it.
 *
 * Stopping a ring (GET_VRING_BASE) and changing the memory under running rings (SET_MEM_TABLE) wait until
 * what is in flight has ended: the driver holds no request for longer than its write cap and the disk's own
 * time, so that the wait ends by itself.
 */
#include "mirror/vhost_handle.h"

#include <fcntl.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const uint64_t protocol_features = 1ull << VHOST_PROTOCOL_MQ | 1ull << VHOST_PROTOCOL_LOG_SHMFD |
                                          1ull << VHOST_PROTOCOL_REPLY_ACK | 1ull << VHOST_PROTOCOL_CONFIG |
                                          1ull << VHOST_PROTOCOL_INFLIGHT_SHMFD;

uint64_t vhost_protocol_features(void)
{
    return protocol_features;
}

static uint64_t vhost_offered(const struct xm_vhost *d)
{
    return blk_features(&d->blk) | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |
           1ull << VHOST_F_LOG_ALL | 1ull << VHOST_F_PROTOCOL_FEATURES;
}

/* ---- handlers on the engine's thread: 0, or -errno with a sentence that ends the connection ---- */

static struct ring *ring_of(struct job *j, uint64_t index)
{
    if (index < j->dev->queues)
        return &j->dev->ring[index];
    xm_error_set(j->e, EPROTO, "vhost-user %s is about queue %llu of %u", vhost_msg_name(j->msg->hdr.request),
                 (unsigned long long)index, j->dev->queues);
    return NULL;
}

/* The ring that may not run, nor have anything in flight, while this of it is changed. */
static struct ring *quiet_ring(struct job *j, uint64_t index)
{
    struct ring *r = ring_of(j, index);

    if (r && (r->running || r->in_flight)) {
        xm_error_set(j->e, EPROTO, "vhost-user %s came while queue %u runs",
                     vhost_msg_name(j->msg->hdr.request), r->index);
        return NULL;
    }
    return r;
}

static int set_features(struct job *j)
{
    struct xm_vhost *d = j->dev;

    if (j->msg->p.u64 & ~vhost_offered(d))
        return xm_error_set(j->e, EPROTO, "the front end wants features %#llx, which were not offered",
                            (unsigned long long)(j->msg->p.u64 & ~vhost_offered(d)));
    d->features = j->msg->p.u64;
    rings_apply_features(d);
    __atomic_store_n(&d->any.connected, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < d->queues; i++)
        ring_update(&d->ring[i]);
    return 0;
}

static int set_vring_num(struct job *j)
{
    uint32_t n = j->msg->p.vring.num;
    struct ring *r = quiet_ring(j, j->msg->p.vring.index);

    if (!r)
        return -EPROTO;
    if (!n || n > VIRTQUEUE_MAX || (n & (n - 1)))
        return xm_error_set(j->e, EPROTO, "queue %u cannot have a size of %u", r->index, n);
    r->vq.num = (uint16_t)n;
    r->have_num = true;
    ring_update(r);
    return 0;
}

static int set_vring_addr(struct job *j)
{
    const struct vhost_ring_addr *a = &j->msg->p.addr;
    struct virtqueue_addr addr = {a->desc, a->avail, a->used, a->log, a->flags & VHOST_LOG_USED};
    struct ring *r = ring_of(j, a->index);

    if (!r)
        return -EPROTO;
    /* Logging is turned on and off by this while the ring runs. */
    bool same =
        addr.desc == r->vq.addr.desc && addr.avail == r->vq.addr.avail && addr.used == r->vq.addr.used;
    if (!same && !quiet_ring(j, a->index))
        return -EPROTO;
    r->vq.addr = addr;
    r->have_addr = true;
    ring_update(r);
    return 0;
}

static int set_vring_base(struct job *j)
{
    struct ring *r = quiet_ring(j, j->msg->p.vring.index);

    if (!r)
        return -EPROTO;
    if (j->msg->p.vring.num > UINT16_MAX)
        return xm_error_set(j->e, EPROTO, "queue %u cannot begin at %u", r->index, j->msg->p.vring.num);
    r->base = (uint16_t)j->msg->p.vring.num;
    return 0;
}

static int stop_vring(struct job *j)
{
    struct ring *r = ring_of(j, j->msg->p.vring.index);

    if (!r)
        return -EPROTO;
    ring_stop(r);
    return 0;
}

static int vring_base(struct job *j)
{
    struct ring *r = ring_of(j, j->msg->p.vring.index);

    j->msg->p.vring.num = r->base;
    ring_set_kick(r, -1); /* runs again when it is given the next one */
    j->dev->broken = false;
    return 0;
}

static int set_vring_fd(struct job *j)
{
    struct ring *r = ring_of(j, j->msg->p.u64 & 0xff);

    if (!r)
        return -EPROTO;
    if (j->msg->hdr.request == VHOST_SET_VRING_KICK && !j->msg->fds)
        return xm_error_set(j->e, EPROTO, "queue %u shall be polled, which is not done here", r->index);
    int fd = vhost_msg_take_fd(j->msg, 0);
    if (j->msg->hdr.request == VHOST_SET_VRING_KICK) {
        ring_set_kick(r, fd);
    } else if (j->msg->hdr.request == VHOST_SET_VRING_CALL) {
        ring_set_call(r, fd);
    } else {
        if (r->err_fd >= 0)
            close(r->err_fd);
        r->err_fd = fd;
    }
    return 0;
}

static int set_vring_enable(struct job *j)
{
    struct ring *r = ring_of(j, j->msg->p.vring.index);

    if (!r)
        return -EPROTO;
    if (j->msg->p.vring.num > 1)
        return xm_error_set(j->e, EPROTO, "queue %u can be enabled by 1 or 0, not by %u", r->index,
                            j->msg->p.vring.num);
    r->enabled = j->msg->p.vring.num;
    ring_update(r);
    return 0;
}

static int disable_all(struct job *j)
{
    for (unsigned i = 0; i < j->dev->queues; i++)
        j->dev->ring[i].enabled = false;
    return 0;
}

static int get_config(struct job *j)
{
    struct vhost_config *c = &j->msg->p.config;
    uint8_t all[VHOST_MSG_MAX_CONFIG] = {0};
    struct virtio_blk_config blk;

    blk_config(&j->dev->blk, j->dev->queues, j->dev->wce, &blk);
    memcpy(all, &blk, sizeof blk);
    memcpy(c->data, all + c->offset, c->size);
    return 0;
}

static int set_config(struct job *j)
{
    const struct vhost_config *c = &j->msg->p.config;
    uint32_t wce = offsetof(struct virtio_blk_config, wce);
    bool migration = c->flags == 1;

    /* The cache mode is the one field that can be written. A migration may bring all of them: the others are
     * ours to know. */
    if (!migration && (c->offset != wce || c->size != 1))
        return xm_error_set(j->e, EPROTO, "the front end writes %u bytes of the configuration at %u", c->size,
                            c->offset);
    if (c->offset <= wce && wce < c->offset + c->size)
        j->dev->wce = c->data[wce - c->offset];
    rings_apply_features(j->dev);
    return 0;
}

static int pause_rings(struct job *j)
{
    rings_pause(j->dev, true);
    return 0;
}

static int swap_mem(struct job *j)
{
    struct guestmem *old = j->dev->mem;

    for (unsigned i = 0; i < j->dev->queues; i++) {
        if (j->dev->ring[i].kept) /* starts anew below, with what is kept */
            ring_stop(&j->dev->ring[i]);
    }
    j->dev->mem = j->mem;
    j->mem = old;
    rings_apply_features(j->dev); /* the log */
    rings_remap(j->dev);
    rings_pause(j->dev, false);
    for (unsigned i = 0; i < j->dev->queues; i++)
        ring_update(&j->dev->ring[i]);
    return 0;
}

static int swap_log(struct job *j)
{
    struct dirtylog old = j->dev->log;

    j->dev->log = j->log;
    j->log = old;
    rings_apply_features(j->dev);
    return 0;
}

/* Requests that the region has room for, per queue. Ours have it for the largest queue, whatever was asked
 * for: QEMU 10.0.13 asks for queues of 128 and lets the guest have 1024. A region that an earlier version of
 * ours has made is as large as it was asked for. */
static uint16_t inflight_size(const struct vhost_inflight *in)
{
    return in->size >= in->queues * vhost_inflight_bytes(VIRTQUEUE_MAX) ? VIRTQUEUE_MAX : in->queue_size;
}

static int swap_inflight(struct job *j)
{
    struct xm_vhost *d = j->dev;
    const struct vhost_inflight *in = &j->msg->p.inflight;

    for (unsigned i = 0; i < d->queues; i++) {
        if (!quiet_ring(j, i))
            return -EPROTO;
        d->ring[i].kept = 0; /* what is in this region counts when the ring runs */
    }
    void *old = d->inflight.map;
    size_t old_len = d->inflight.len;
    d->inflight.map = j->map;
    d->inflight.len = j->map_len;
    d->inflight.at = j->at;
    d->inflight.queues = in->queues;
    d->inflight.size = inflight_size(in);
    j->map = old;
    j->map_len = old_len;
    return 0;
}

/* ---- handlers on the control thread ---- */

static int set_mem_table(struct job *j)
{
    j->mem = guestmem_new(j->msg, &j->dev->mem_ops, j->e);
    if (!j->mem)
        return j->e->code ? -j->e->code : -EPROTO;
    int err = vhost_drained(j, DRAIN_ALL, pause_rings, swap_mem);
    guestmem_free(j->mem);
    return err;
}

static int set_log_base(struct job *j)
{
    int err = dirtylog_map(&j->log, j->msg->fd[0], j->msg->p.log.size, j->msg->p.log.offset,
                           j->dev->mem_ops.sealed, j->e);

    if (err)
        return err;
    vhost_on_engine(j, swap_log);
    dirtylog_unmap(&j->log);
    return 0;
}

static int check_inflight(struct job *j)
{
    const struct vhost_inflight *in = &j->msg->p.inflight;

    if (!in->queues || in->queues > j->dev->queues || !in->queue_size || in->queue_size > VIRTQUEUE_MAX)
        return xm_error_set(j->e, EPROTO, "an in-flight region for %u queues of %u is asked for", in->queues,
                            in->queue_size);
    return 0;
}

/* A new region, which goes back to the front end with the reply. The descriptor or -errno. */
static int get_inflight(struct job *j)
{
    struct vhost_inflight *in = &j->msg->p.inflight;
    int err = check_inflight(j);

    if (err)
        return err;
    in->size = in->queues * vhost_inflight_bytes(VIRTQUEUE_MAX);
    in->offset = 0;
    int fd = memfd_create("vhost-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return xm_error_errno(j->e, errno, "cannot make an in-flight region");
    /* Sealed, so that it does not shrink under us when it comes back. */
    if (ftruncate(fd, (off_t)in->size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
        err = xm_error_errno(j->e, errno, "cannot make an in-flight region of %llu bytes",
                             (unsigned long long)in->size);
        close(fd);
        return err;
    }
    return fd;
}

static int set_inflight(struct job *j)
{
    const struct vhost_inflight *in = &j->msg->p.inflight;
    int err = check_inflight(j);

    if (!err && (in->size < in->queues * vhost_inflight_bytes(in->queue_size) || in->offset % 8))
        err = xm_error_set(j->e, EPROTO, "an in-flight region of %llu bytes for %u queues of %u",
                           (unsigned long long)in->size, in->queues, in->queue_size);
    if (!err)
        err = map_shared(j->msg->fd[0], in->offset, in->size, &j->map, &j->map_len, &j->at,
                         "the in-flight region", j->dev->mem_ops.sealed, j->e);
    if (!err)
        err = vhost_on_engine(j, swap_inflight);
    if (j->map)
        munmap(j->map, j->map_len);
    return err;
}

/* What we write to must be an eventfd: another kind could block us, or kill us by SIGPIPE. It is set not to
 * block. */
static int check_eventfd(struct job *j)
{
    char link[64], name[32] = "";

    if (!j->msg->fds)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", j->msg->fd[0]);
    if (readlink(link, name, sizeof name - 1) < 0 || strcmp(name, "anon_inode:[eventfd]"))
        return xm_error_set(j->e, EPROTO, "vhost-user %s came with something that is no eventfd",
                            vhost_msg_name(j->msg->hdr.request));
    int flags = fcntl(j->msg->fd[0], F_GETFL);
    if (flags < 0 || fcntl(j->msg->fd[0], F_SETFL, flags | O_NONBLOCK) < 0)
        return xm_error_errno(j->e, errno, "cannot use the eventfd of vhost-user %s",
                              vhost_msg_name(j->msg->hdr.request));
    return 0;
}

/* What is done on the engine's thread alone, and needs nothing before or after it. */
static int (*const simple[VHOST_REQUESTS])(struct job *) = {
    [VHOST_SET_FEATURES] = set_features,         [VHOST_RESET_OWNER] = disable_all,
    [VHOST_SET_VRING_NUM] = set_vring_num,       [VHOST_SET_VRING_ADDR] = set_vring_addr,
    [VHOST_SET_VRING_BASE] = set_vring_base,     [VHOST_SET_VRING_KICK] = set_vring_fd,
    [VHOST_SET_VRING_CALL] = set_vring_fd,       [VHOST_SET_VRING_ERR] = set_vring_fd,
    [VHOST_SET_VRING_ENABLE] = set_vring_enable, [VHOST_SET_CONFIG] = set_config,
};

int (*vhost_simple(uint32_t request))(struct job *)
{
    return request < VHOST_REQUESTS ? simple[request] : NULL;
}

int vhost_ready(struct job *j)
{
    switch (j->msg->hdr.request) {
    case VHOST_SET_VRING_KICK:
    case VHOST_SET_VRING_CALL:
    case VHOST_SET_VRING_ERR:
        return check_eventfd(j);
    default:
        return 0;
    }
}

int vhost_handle(struct job *j, enum answer *answer, int *fd)
{
    struct vu_msg *m = j->msg;
    int err;

    *answer = ANSWER_ACK;
    switch (m->hdr.request) {
    case VHOST_GET_FEATURES:
    case VHOST_GET_PROTOCOL_FEATURES:
    case VHOST_GET_QUEUE_NUM:
        *answer = ANSWER_REPLY;
        m->hdr.size = 8;
        m->p.u64 = m->hdr.request == VHOST_GET_FEATURES            ? vhost_offered(j->dev)
                   : m->hdr.request == VHOST_GET_PROTOCOL_FEATURES ? protocol_features
                                                                   : j->dev->queues;
        return 0;
    case VHOST_SET_PROTOCOL_FEATURES:
        if (m->p.u64 & ~protocol_features)
            return xm_error_set(j->e, EPROTO,
                                "the front end wants protocol features %#llx, which were not offered",
                                (unsigned long long)(m->p.u64 & ~protocol_features));
        j->dev->control.protocol = m->p.u64;
        return 0;
    case VHOST_SET_OWNER:
    case VHOST_SET_LOG_FD: /* nobody needs to be told of each page */
        return 0;
    case VHOST_SET_MEM_TABLE:
        return set_mem_table(j);
    case VHOST_SET_LOG_BASE:
        *answer = ANSWER_REPLY;
        err = set_log_base(j);
        m->hdr.size = 8;
        m->p.u64 = 0;
        return err;
    case VHOST_GET_VRING_BASE:
        *answer = ANSWER_REPLY;
        return vhost_drained(j, (int)m->p.vring.index, stop_vring, vring_base);
    case VHOST_GET_CONFIG:
        *answer = ANSWER_REPLY;
        return vhost_on_engine(j, get_config);
    case VHOST_GET_INFLIGHT_FD:
        *answer = ANSWER_REPLY;
        *fd = get_inflight(j);
        return *fd < 0 ? *fd : 0;
    case VHOST_SET_INFLIGHT_FD:
        return set_inflight(j);
    default:
        err = vhost_ready(j);
        return err ? err : vhost_on_engine(j, vhost_simple(m->hdr.request));
    }
}
