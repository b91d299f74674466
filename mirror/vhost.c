/* SPDX-License-Identifier: MIT */
/* mirror/vhost.c: a vhost-user-blk device: its socket and the thread that listens there.
 *
 * The control thread serves one front end at a time, and waits for the next. It receives a message, has its
 * form checked (vhost_msg.c), does what it says (vhost_handle.c) and answers. Messages that nobody waits for
 * go to the engine's thread together. When the front end hangs up it stops the rings, waits until what is in
 * flight has ended, and forgets all of it: the next one brings its own, and in its in-flight region what has
 * to be done again.
 *
 * A front end that breaks the protocol is hung up on; it may come again. Failures of ours while serving it
 * (no memory, no mapping) are the same to it.
 */
#include "mirror/vhost_handle.h"

#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* QEMU starts a disk by some twenty messages that want no answer, while its guest stands still, and one disk
 * after the other: handing each over by itself cost two wake-ups, and 2 to 5 ms a disk. */
#define GATHER_MAX 24
#define GATHER_NS  (200 * XM_NS_PER_US) /* who has sent nothing more in that time has nothing more to send */

struct gathered {
    struct vu_msg msg[GATHER_MAX]; /* n of them well formed; the next is being looked at */
    unsigned n;
};

static int do_gathered(struct job *j)
{
    int err = 0;

    for (unsigned i = 0; !err && i < j->gathered->n; i++) {
        j->msg = &j->gathered->msg[i];
        err = vhost_simple(j->msg->hdr.request)(j);
    }
    return err;
}

static int serve_gathered(struct xm_vhost *d, struct gathered *g, struct xm_error *e)
{
    struct job j = {.dev = d, .e = e, .gathered = g};
    int err = g->n ? vhost_on_engine(&j, do_gathered) : 0;

    for (unsigned i = 0; i < g->n; i++)
        vhost_msg_close_fds(&g->msg[i]);
    g->n = 0;
    return err;
}

static int serve_one(struct xm_vhost *d, struct vu_msg *m, bool ack, struct xm_error *e)
{
    struct job j = {.dev = d, .msg = m, .e = e};
    enum answer answer = ANSWER_ACK;
    int fd = -1, err = vhost_msg_check(m, e);

    if (!err)
        err = vhost_handle(&j, &answer, &fd);
    if (answer == ANSWER_REPLY ? !err : ack) {
        if (answer == ANSWER_ACK) {
            m->hdr.size = 8;
            m->p.u64 = err ? 1 : 0;
        }
        m->hdr.flags = VHOST_FLAG_VERSION | VHOST_FLAG_REPLY;
        int sent = vhost_msg_send(d->control.sock, m, fd);
        if (sent && !err)
            err = xm_error_errno(e, -sent, "cannot answer vhost-user %s", vhost_msg_name(m->hdr.request));
    }
    if (fd >= 0)
        close(fd);
    vhost_msg_close_fds(m);
    return err;
}

/* The message behind those that are gathered. */
static int serve(struct xm_vhost *d, struct gathered *g, struct xm_error *e)
{
    struct vu_msg *m = &g->msg[g->n];
    struct job j = {.dev = d, .msg = m, .e = e};
    bool ack = m->hdr.flags & VHOST_FLAG_NEED_REPLY && d->control.protocol >> VHOST_PROTOCOL_REPLY_ACK & 1;
    bool gather = !ack && vhost_simple(m->hdr.request);
    int err = gather ? vhost_msg_check(m, e) : serve_gathered(d, g, e);

    if (!err && gather)
        err = vhost_ready(&j);
    if (!err && !gather)
        return serve_one(d, m, ack, e);
    if (err)
        vhost_msg_close_fds(m);
    else if (++g->n == GATHER_MAX)
        err = serve_gathered(d, g, e);
    return err;
}

/* ---- a connection from its beginning to its end ---- */

static int connection_begins(struct job *j)
{
    j->dev->hung_up = false;
    return 0;
}

static int vhost_hang_up(struct job *j)
{
    __atomic_store_n(&j->dev->any.connected, false, __ATOMIC_RELEASE);
    rings_hang_up(j->dev);
    return 0;
}

/* Drained: as new. */
static int vhost_forget(struct job *j)
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
        r->kept = 0;
        r->vq.track = NULL;
    }
    d->broken = d->paused = false;
    d->features = 0;
    j->mem = d->mem;
    d->mem = NULL;
    j->log = d->log;
    d->log = (struct dirtylog){0};
    j->map = d->inflight.map;
    j->map_len = d->inflight.len;
    d->inflight.map = NULL;
    d->inflight.at = NULL;
    return 0;
}

static void vhost_serve(struct xm_vhost *d)
{
    struct job j = {.dev = d};
    struct gathered g;
    struct xm_error e = {0};
    int got = 1, err = 0;

    /* QEMU whose VM was stopped when the process before us died comes back without negotiating anew (seen
     * with 7.2): it goes by what it agreed on with that one, and it takes all that we offer. Others say
     * what they want before they use it. */
    d->control.protocol = vhost_protocol_features();
    __atomic_store_n(&d->any.heard, false, __ATOMIC_RELEASE);
    __atomic_store_n(&d->any.attached, true, __ATOMIC_RELEASE);
    vhost_on_engine(&j, connection_begins);
    g.n = 0;
    while (!err && got == 1) {
        enum vhost_wait w =
            vhost_msg_wait(d->control.sock, d->control.stop_fd, g.n ? GATHER_NS : VHOST_FOR_EVER);
        if (w == VHOST_STOP)
            break;
        if (w == VHOST_SILENT) {
            err = serve_gathered(d, &g, &e);
            continue;
        }
        got = vhost_msg_recv(d->control.sock, d->control.stop_fd, &g.msg[g.n], &e);
        if (got == 1) {
            __atomic_store_n(&d->any.heard, true, __ATOMIC_RELEASE);
            err = serve(d, &g, &e);
        }
    }
    if (g.n) /* the others have said it before they were not understood, or went */
        serve_gathered(d, &g, &(struct xm_error){0});
    if (got < 0 || err) {
        __atomic_add_fetch(&d->any.broken, 1, __ATOMIC_RELAXED);
        xm_log_limited(&d->control.hung_up, XM_LOG_WARN, "%s: hanging up on the front end: %s", d->path,
                       e.text);
    }
    __atomic_store_n(&d->any.attached, false, __ATOMIC_RELEASE);
    vhost_drained(&j, DRAIN_ALL, vhost_hang_up, vhost_forget);
    guestmem_free(j.mem);
    dirtylog_unmap(&j.log);
    if (j.map)
        munmap(j.map, j.map_len);
}

static void thread_gone(struct xm_post *p)
{
    struct xm_vhost *d = xm_container_of(p, struct xm_vhost, control.gone);
    d->control.has_gone = true;
}

static void *vhost_control(void *arg)
{
    struct xm_vhost *d = arg;
    struct pollfd p[2] = {{.fd = d->control.listen_fd, .events = POLLIN},
                          {.fd = d->control.stop_fd, .events = POLLIN}};

    for (;;) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (p[1].revents)
            break;
        if (!(p[0].revents & POLLIN))
            continue;
        d->control.sock = accept4(d->control.listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (d->control.sock < 0)
            continue;
        vhost_serve(d);
        close(d->control.sock);
    }
    xm_mailbox_post(&d->engine->mailbox, &d->control.gone);
    return NULL;
}

/* ---- public ---- */

static int vhost_attach(struct job *j)
{
    return rings_init(j->dev);
}

static int vhost_detach(struct job *j)
{
    rings_destroy(j->dev);
    return 0;
}

static void vhost_destroy(struct xm_vhost *d)
{
    if (d->turn)
        vhost_on_engine(&(struct job){.dev = d}, vhost_detach);
    if (d->control.listen_fd >= 0) {
        close(d->control.listen_fd);
        unlink(d->path);
    }
    if (d->control.stop_fd >= 0)
        close(d->control.stop_fd);
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
    d->blk.read_only = file->read_only || o->read_only;
    d->blk.block = o->block ? o->block : XM_MAX(512, file->block);
    d->blk.sectors = file->size / d->blk.block * (d->blk.block / 512);
    if (o->serial)
        memcpy(d->blk.serial, o->serial, strnlen(o->serial, sizeof d->blk.serial));
    d->control.gone.run = thread_gone;
    d->control.listen_fd = d->control.stop_fd = -1;
    sem_init(&d->drained, 0, 0);

    d->control.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->control.stop_fd < 0) {
        xm_error_errno(e, errno, "cannot make an eventfd");
        goto failed;
    }
    d->control.listen_fd = xm_unix_listen(d->path, e);
    if (d->control.listen_fd < 0)
        goto failed;
    if (vhost_on_engine(&(struct job){.dev = d}, vhost_attach)) {
        xm_error_set(e, ENOMEM, "no memory for the front end of %s", file->path);
        goto failed;
    }
    int err = pthread_create(&d->control.thread, NULL, vhost_control, d);
    if (err) {
        xm_error_errno(e, err, "cannot start a thread for %s", d->path);
        goto failed;
    }
    return d;
failed:
    vhost_destroy(d);
    return NULL;
}

bool xm_vhost_attached(struct xm_vhost *d)
{
    return __atomic_load_n(&d->any.attached, __ATOMIC_ACQUIRE);
}

bool xm_vhost_silent(struct xm_vhost *d)
{
    return xm_vhost_attached(d) && !__atomic_load_n(&d->any.heard, __ATOMIC_ACQUIRE);
}

bool xm_vhost_connected(struct xm_vhost *d)
{
    return __atomic_load_n(&d->any.connected, __ATOMIC_ACQUIRE);
}

bool xm_vhost_stopped(struct xm_vhost *d)
{
    return !__atomic_load_n(&d->any.busy, __ATOMIC_ACQUIRE);
}

static int vhost_rests(struct job *j)
{
    for (unsigned i = 0; i < j->dev->queues; i++) {
        const struct ring *r = &j->dev->ring[i];
        if (r->in_flight || r->kept || (r->running && (r->vq.last_avail != r->base || ring_has_work(r))))
            return 0;
    }
    return 1;
}

bool xm_vhost_rests(struct xm_vhost *d)
{
    return vhost_on_engine(&(struct job){.dev = d}, vhost_rests);
}

uint64_t xm_vhost_broken(struct xm_vhost *d)
{
    return __atomic_load_n(&d->any.broken, __ATOMIC_RELAXED);
}

void xm_vhost_free(struct xm_vhost *d)
{
    if (!d)
        return;
    eventfd_write(d->control.stop_fd, 1);
    /* The control thread needs the engine to end. On its own thread we turn it ourselves. */
    if (pthread_equal(d->engine->mailbox.owner, pthread_self())) {
        while (!d->control.has_gone)
            xm_engine_turn(d->engine);
    }
    pthread_join(d->control.thread, NULL);
    vhost_destroy(d);
}
