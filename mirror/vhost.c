/* mirror/vhost.c: the control side of a vhost-user-blk device: its socket, its thread, its messages.
 *
 * The control thread listens, serves one front end at a time, and waits for the next. It receives a message,
 * checks its form (vhost_msg.c), maps what has to be mapped, and has the rest done on the engine's thread,
 * waiting for it. So all state of rings has one owner, and whatever may block (mapping, draining) happens
 * here and never holds up I/O.
 *
 * Stopping a ring (GET_VRING_BASE), changing the memory under running rings (SET_MEM_TABLE) and hanging up
 * wait until what is in flight has ended: the driver holds no request for longer than its write cap and the
 * disk's own time, so that the wait ends by itself.
 *
 * A front end that breaks the protocol is hung up on; it may come again. Failures of ours while serving it
 * (no memory, no mapping) are the same to it.
 */
#include "mirror/vhost_ring.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define DRAIN_NOTICE_S 10

static const uint64_t protocol_features = 1ull << VHOST_PROTOCOL_MQ | 1ull << VHOST_PROTOCOL_LOG_SHMFD |
                                          1ull << VHOST_PROTOCOL_REPLY_ACK | 1ull << VHOST_PROTOCOL_CONFIG |
                                          1ull << VHOST_PROTOCOL_INFLIGHT_SHMFD;

static uint64_t offered(const struct xm_vhost *d)
{
    return blk_features(&d->blk) | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |
           1ull << VHOST_F_LOG_ALL | 1ull << VHOST_F_PROTOCOL_FEATURES;
}

/* ---- from the control thread to the engine's ---- */

/* One message on its way through: the handler on the engine's thread reads it, may change it into its reply,
 * and leaves its verdict. */
struct job {
    struct xm_vhost *dev;
    struct vu_msg *msg;
    int (*fn)(struct job *);
    int ret;
    struct xm_error *e;
    /* For some: */
    int which;
    struct guestmem *mem;
    struct dirtylog log;
    void *map;
    size_t map_len;
    uint8_t *at;
};

static void run_job(void *arg)
{
    struct job *j = arg;
    j->ret = j->fn(j);
}

static int on_engine(struct job *j, int (*fn)(struct job *))
{
    j->fn = fn;
    xm_mailbox_call(&j->dev->engine->mailbox, run_job, j);
    return j->ret;
}

static int begin_drain(struct job *j)
{
    if (rings_idle(j->dev, j->which))
        return 0;
    j->dev->drain = j->which;
    return 1;
}

/* Returns when nothing of the ring (or DRAIN_ALL) is in flight. It must take nothing more. */
static void drain(struct job *j, int which)
{
    j->which = which;
    if (!on_engine(j, begin_drain))
        return;
    for (;;) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_sec += DRAIN_NOTICE_S;
        if (!sem_timedwait(&j->dev->drained, &ts))
            return;
        if (errno == ETIMEDOUT)
            xm_log(XM_LOG_WARN, "%s: requests have been in flight for %d s; still waiting for them",
                   j->dev->path, DRAIN_NOTICE_S);
    }
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

    if (j->msg->p.u64 & ~offered(d))
        return xm_error_set(j->e, EPROTO, "the front end wants features %#llx, which were not offered",
                            (unsigned long long)(j->msg->p.u64 & ~offered(d)));
    d->features = j->msg->p.u64;
    d->features_set = true;
    rings_apply_features(d);
    __atomic_store_n(&d->connected, true, __ATOMIC_RELEASE);
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

static int swap_inflight(struct job *j)
{
    struct xm_vhost *d = j->dev;
    const struct vhost_inflight *in = &j->msg->p.inflight;

    for (unsigned i = 0; i < d->queues; i++) {
        if (!quiet_ring(j, i))
            return -EPROTO;
    }
    void *old = d->inflight_map;
    size_t old_len = d->inflight_len;
    d->inflight_map = j->map;
    d->inflight_len = j->map_len;
    d->inflight = j->at;
    d->inflight_queues = in->queues;
    d->inflight_size = in->queue_size;
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
    on_engine(j, pause_rings);
    drain(j, DRAIN_ALL);
    on_engine(j, swap_mem);
    guestmem_free(j->mem);
    return 0;
}

static int set_log_base(struct job *j)
{
    int err = dirtylog_map(&j->log, j->msg->fd[0], j->msg->p.log.size, j->msg->p.log.offset, j->e);

    if (err)
        return err;
    on_engine(j, swap_log);
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
    in->size = in->queues * vhost_inflight_bytes(in->queue_size);
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
                         "the in-flight region", j->e);
    if (!err)
        err = on_engine(j, swap_inflight);
    if (j->map)
        munmap(j->map, j->map_len);
    return err;
}

static int get_vring_base(struct job *j)
{
    int err = on_engine(j, stop_vring);

    if (err)
        return err;
    drain(j, (int)j->msg->p.vring.index);
    return on_engine(j, vring_base);
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

enum answer { ANSWER_ACK, ANSWER_REPLY };

/* Does what the message says. Its payload becomes the reply's where there is one; *fd: to go with it. */
static int handle(struct job *j, enum answer *answer, int *fd)
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
        m->p.u64 = m->hdr.request == VHOST_GET_FEATURES            ? offered(j->dev)
                   : m->hdr.request == VHOST_GET_PROTOCOL_FEATURES ? protocol_features
                                                                   : j->dev->queues;
        return 0;
    case VHOST_SET_FEATURES:
        return on_engine(j, set_features);
    case VHOST_SET_PROTOCOL_FEATURES:
        if (m->p.u64 & ~protocol_features)
            return xm_error_set(j->e, EPROTO,
                                "the front end wants protocol features %#llx, which were not offered",
                                (unsigned long long)(m->p.u64 & ~protocol_features));
        j->dev->protocol = m->p.u64;
        return 0;
    case VHOST_SET_OWNER:
    case VHOST_SET_LOG_FD: /* nobody needs to be told of each page */
        return 0;
    case VHOST_RESET_OWNER:
        return on_engine(j, disable_all);
    case VHOST_SET_MEM_TABLE:
        return set_mem_table(j);
    case VHOST_SET_LOG_BASE:
        *answer = ANSWER_REPLY;
        err = set_log_base(j);
        m->hdr.size = 8;
        m->p.u64 = 0;
        return err;
    case VHOST_SET_VRING_NUM:
        return on_engine(j, set_vring_num);
    case VHOST_SET_VRING_ADDR:
        return on_engine(j, set_vring_addr);
    case VHOST_SET_VRING_BASE:
        return on_engine(j, set_vring_base);
    case VHOST_GET_VRING_BASE:
        *answer = ANSWER_REPLY;
        return get_vring_base(j);
    case VHOST_SET_VRING_KICK:
    case VHOST_SET_VRING_CALL:
    case VHOST_SET_VRING_ERR:
        err = check_eventfd(j);
        return err ? err : on_engine(j, set_vring_fd);
    case VHOST_SET_VRING_ENABLE:
        return on_engine(j, set_vring_enable);
    case VHOST_GET_CONFIG:
        *answer = ANSWER_REPLY;
        return on_engine(j, get_config);
    case VHOST_SET_CONFIG:
        return on_engine(j, set_config);
    case VHOST_GET_INFLIGHT_FD:
        *answer = ANSWER_REPLY;
        *fd = get_inflight(j);
        return *fd < 0 ? *fd : 0;
    case VHOST_SET_INFLIGHT_FD:
        return set_inflight(j);
    default:
        return xm_error_set(j->e, EPROTO, "vhost-user request %u is not known here", m->hdr.request);
    }
}

static int serve_one(struct xm_vhost *d, struct vu_msg *m, struct xm_error *e)
{
    struct job j = {.dev = d, .msg = m, .e = e};
    enum answer answer = ANSWER_ACK;
    int fd = -1, err = vhost_msg_check(m, e);
    bool ack = m->hdr.flags & VHOST_FLAG_NEED_REPLY && d->protocol >> VHOST_PROTOCOL_REPLY_ACK & 1;

    if (!err)
        err = handle(&j, &answer, &fd);
    if (answer == ANSWER_REPLY ? !err : ack) {
        if (answer == ANSWER_ACK) {
            m->hdr.size = 8;
            m->p.u64 = err ? 1 : 0;
        }
        m->hdr.flags = VHOST_FLAG_VERSION | VHOST_FLAG_REPLY;
        int sent = vhost_msg_send(d->sock, m, fd);
        if (sent && !err)
            err = xm_error_errno(e, -sent, "cannot answer vhost-user %s", vhost_msg_name(m->hdr.request));
    }
    if (fd >= 0)
        close(fd);
    vhost_msg_close_fds(m);
    return err;
}

/* ---- a connection from its beginning to its end ---- */

static int connection_begins(struct job *j)
{
    j->dev->hung_up = false;
    return 0;
}

static int hang_up(struct job *j)
{
    __atomic_store_n(&j->dev->connected, false, __ATOMIC_RELEASE);
    rings_hang_up(j->dev);
    return 0;
}

/* Drained: as new. */
static int forget(struct job *j)
{
    struct xm_vhost *d = j->dev;

    for (unsigned i = 0; i < d->queues; i++) {
        struct ring *r = &d->ring[i];
        ring_set_kick(r, -1);
        ring_set_call(r, -1);
        if (r->err_fd >= 0)
            close(r->err_fd);
        r->err_fd = -1;
        r->have_num = r->have_addr = r->enabled = false;
        r->base = 0;
        r->vq.track = NULL;
    }
    d->broken = d->paused = d->features_set = false;
    d->features = 0;
    j->mem = d->mem;
    d->mem = NULL;
    j->log = d->log;
    d->log = (struct dirtylog){0};
    j->map = d->inflight_map;
    j->map_len = d->inflight_len;
    d->inflight_map = NULL;
    d->inflight = NULL;
    return 0;
}

static void serve(struct xm_vhost *d)
{
    struct job j = {.dev = d};
    struct vu_msg m;
    struct xm_error e = {0};
    int got = 1, err = 0;

    d->protocol = 0;
    on_engine(&j, connection_begins);
    while (!err && (got = vhost_msg_recv(d->sock, d->stop_fd, &m, &e)) == 1)
        err = serve_one(d, &m, &e);
    if (got < 0 || err) {
        __atomic_add_fetch(&d->broken_count, 1, __ATOMIC_RELAXED);
        xm_log(XM_LOG_WARN, "%s: hanging up on the front end: %s", d->path, e.text);
    }
    on_engine(&j, hang_up);
    drain(&j, DRAIN_ALL);
    on_engine(&j, forget);
    guestmem_free(j.mem);
    dirtylog_unmap(&j.log);
    if (j.map)
        munmap(j.map, j.map_len);
}

static void thread_gone(struct xm_post *p)
{
    struct xm_vhost *d = xm_container_of(p, struct xm_vhost, gone);
    d->thread_gone = true;
}

static void *control(void *arg)
{
    struct xm_vhost *d = arg;
    struct pollfd p[2] = {{.fd = d->listen_fd, .events = POLLIN}, {.fd = d->stop_fd, .events = POLLIN}};

    for (;;) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (p[1].revents)
            break;
        if (!(p[0].revents & POLLIN))
            continue;
        d->sock = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (d->sock < 0)
            continue;
        serve(d);
        close(d->sock);
    }
    xm_mailbox_post(&d->engine->mailbox, &d->gone);
    return NULL;
}

/* ---- public ---- */

static int attach(struct job *j)
{
    return rings_init(j->dev);
}

static int detach(struct job *j)
{
    rings_destroy(j->dev);
    return 0;
}

static void destroy(struct xm_vhost *d)
{
    if (d->turn)
        on_engine(&(struct job){.dev = d}, detach);
    if (d->listen_fd >= 0) {
        close(d->listen_fd);
        unlink(d->path);
    }
    if (d->stop_fd >= 0)
        close(d->stop_fd);
    sem_destroy(&d->drained);
    free(d->path);
    free(d);
}

struct xm_vhost *xm_vhost_new(struct xm_disk *disk, const struct xm_vhost_opts *o, struct xm_error *e)
{
    const struct xm_file *file = xm_disk_file(disk);

    if (!o->queues || o->queues > VHOST_QUEUES_MAX) {
        xm_error_set(e, EINVAL, "a disk can have 1 to %d queues, not %u", VHOST_QUEUES_MAX, o->queues);
        return NULL;
    }
    struct xm_vhost *d = calloc(1, sizeof *d);
    if (!d) {
        xm_error_set(e, ENOMEM, "no memory for the front end of %s", file->path);
        return NULL;
    }
    d->disk = d->blk.disk = disk;
    d->engine = xm_disk_engine(disk);
    d->queues = o->queues;
    d->mem_ops = o->mem;
    d->path = xm_printf("%s", o->socket_path);
    d->wce = true;
    d->blk.read_only = file->read_only;
    d->blk.block = XM_MAX(512, file->block);
    d->blk.sectors = file->size / d->blk.block * (d->blk.block / 512);
    if (o->serial)
        memcpy(d->blk.serial, o->serial, strnlen(o->serial, sizeof d->blk.serial));
    d->gone.run = thread_gone;
    d->listen_fd = d->stop_fd = -1;
    sem_init(&d->drained, 0, 0);

    d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->stop_fd < 0) {
        xm_error_errno(e, errno, "cannot make an eventfd");
        goto failed;
    }
    d->listen_fd = xm_unix_listen(d->path, e);
    if (d->listen_fd < 0)
        goto failed;
    if (on_engine(&(struct job){.dev = d}, attach)) {
        xm_error_set(e, ENOMEM, "no memory for the front end of %s", file->path);
        goto failed;
    }
    int err = pthread_create(&d->thread, NULL, control, d);
    if (err) {
        xm_error_errno(e, err, "cannot start a thread for %s", d->path);
        goto failed;
    }
    return d;
failed:
    destroy(d);
    return NULL;
}

bool xm_vhost_connected(struct xm_vhost *d)
{
    return __atomic_load_n(&d->connected, __ATOMIC_ACQUIRE);
}

bool xm_vhost_stopped(struct xm_vhost *d)
{
    return !__atomic_load_n(&d->busy, __ATOMIC_ACQUIRE);
}

uint64_t xm_vhost_broken(struct xm_vhost *d)
{
    return __atomic_load_n(&d->broken_count, __ATOMIC_RELAXED);
}

void xm_vhost_free(struct xm_vhost *d)
{
    if (!d)
        return;
    eventfd_write(d->stop_fd, 1);
    /* The control thread needs the engine to end. On its own thread we turn it ourselves. */
    if (pthread_equal(d->engine->mailbox.owner, pthread_self())) {
        while (!d->thread_gone)
            xm_engine_turn(d->engine);
    }
    pthread_join(d->thread, NULL);
    destroy(d);
}
