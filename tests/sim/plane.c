/* SPDX-License-Identifier: MIT */
/* What moves bytes, reduced to what a hand-off may see of it.
 *
 * Links: one a bundle. They are up or down; down at once when the other process ends, after SILENCE when
 * it hangs or cannot be reached. Calls take time, may come twice, and are lost with the links. Disks: a
 * copy is HALF until it is in step; from then on each write of the guest goes to both sides while the
 * links are up. RAM: rounds take time. */
#include "tests/sim/sim.h"
#include "migrate/destination.h"
#include "migrate/source.h"
#include "shim/shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SILENCE (10 * SEC)
#define RAM     (128ull << 20)

struct xm_links {
    struct xm_links_opts o;
    struct xm_transport transport;
    struct proc *proc;
    struct obj *socket;
    int fd;
    struct xm_links *peer;
    bool up, was_up, freed, silent;
    unsigned turn; /* of its silences */
    struct xm_error error, said;
    unsigned serving;
    struct xm_links *next;
};

static struct xm_links *all;

void plane_reset(void)
{
    all = NULL;
}

/* ---- links that come and go ---- */

static void lost(void *arg)
{
    struct xm_links *l = arg;

    if (!l->error.code)
        xm_error_set(&l->error, ENOLINK, "the connection was lost");
    task_wake(l);
}

static void down(struct xm_links *l)
{
    struct xm_error e = {.code = ENOLINK, .text = "the connection was lost"};

    if (!l->up)
        return;
    l->up = false;
    if (fd_obj(l->fd) == l->socket)
        close(l->fd);
    l->fd = -1;
    if (l->o.event && !l->freed && l->proc->alive)
        l->o.event(l->o.event_ctx, 0, XM_LINK_DOWN, &e);
    if (l->o.link_timeout)
        after(l->o.link_timeout, lost, l);
    else
        lost(l);
    task_wake(l);
}

static bool hears(const struct xm_links *l)
{
    return l->peer && l->peer->proc->alive && !l->peer->proc->stopped &&
           reachable(l->proc->host, l->peer->proc->host);
}

struct silence {
    struct xm_links *l;
    unsigned turn;
};

static void silent_still(void *arg)
{
    struct silence *s = arg;

    if (s->l->silent && s->l->turn == s->turn)
        down(s->l);
}

void plane_network_changed(void)
{
    for (struct xm_links *l = all; l; l = l->next) {
        if (!l->up || l->freed || !l->proc->alive)
            continue;
        if (l->socket->eof) {
            down(l);
        } else if (!hears(l) && !l->silent) {
            struct silence *s = sim_alloc(sizeof *s);
            l->silent = true;
            *s = (struct silence){l, ++l->turn};
            after(SILENCE, silent_still, s);
        } else if (hears(l)) {
            l->silent = false;
        }
    }
}

void plane_process_gone(struct proc *p, bool silently)
{
    (void)silently;
    for (struct xm_links *l = all; l; l = l->next) {
        if (l->proc == p)
            l->freed = true;
    }
}

bool links_live(struct xm_links *l)
{
    return l->up && !l->freed && hears(l) && l->peer->up && !l->peer->freed;
}

struct proc *links_peer(struct xm_links *l)
{
    return links_live(l) ? l->peer->proc : NULL;
}

static void submit(struct xm_transport *t, struct xm_msg *m)
{
    (void)t, (void)m;
    sim_violated("the simulator has no frames of this kind");
}

struct xm_links *__wrap_xm_links_new(const struct xm_links_opts *o, struct xm_error *e)
{
    struct xm_links *l = calloc(1, sizeof *l);

    (void)e;
    l->o = *o;
    l->transport = (struct xm_transport){.submit = submit, .ctx = l};
    l->proc = proc_current();
    l->fd = -1;
    l->next = all;
    return all = l;
}

int __wrap_xm_links_add(struct xm_links *l, int fd, bool client, const char *name, struct xm_error *e)
{
    struct obj *o = fd_obj(fd);
    uint64_t deadline = sim_time() + 5 * SEC;

    (void)client;
    l->socket = o;
    l->fd = fd;
    o->links = l;
    sim_point("link");
    while (o->peer && !o->eof && !o->peer->links && sim_time() < deadline)
        task_sleep(MS);
    if (!o->peer || o->eof || !o->peer->links || o->peer->links->freed || l->freed) {
        close(fd);
        return xm_error_set(e, ETIMEDOUT, "link %s: no answer", name);
    }
    if (memcmp(o->peer->links->o.token, l->o.token, sizeof l->o.token) != 0) {
        close(fd);
        return xm_error_set(e, EACCES, "link %s: another token", name);
    }
    l->peer = o->peer->links;
    l->up = l->was_up = true;
    plane_network_changed();
    return 0;
}

struct xm_transport *__wrap_xm_links_transport(struct xm_links *l)
{
    return &l->transport;
}

int __wrap_xm_links_up(struct xm_links *l)
{
    return l->up;
}

void __wrap_xm_links_error(struct xm_links *l, struct xm_error *e)
{
    *e = l->error;
}

void __wrap_xm_links_peer_said(struct xm_links *l, struct xm_error *e)
{
    *e = l->said;
}

struct word {
    struct xm_links *to;
    char text[300];
};

static void said(void *arg)
{
    struct word *word = arg;
    struct xm_links *l = word->to;

    if (l->freed || l->error.code)
        return;
    xm_error_set(&l->said, ECANCELED, "%s", word->text);
    xm_error_set(&l->error, ECANCELED, "%s", word->text);
    down(l);
}

void __wrap_xm_links_abort(struct xm_links *l, const char *reason)
{
    if (l->error.code)
        return;
    sim_point("abort links");
    if (links_live(l)) {
        struct word *word = sim_alloc(sizeof *word);
        word->to = l->peer;
        snprintf(word->text, sizeof word->text, "%s", reason);
        after(between(100, 1500) * XM_NS_PER_US, said, word);
        /* The other end finds the connection closed after these words. */
        l->socket->peer->last_arrival = XM_MAX(l->socket->peer->last_arrival, sim_time() + 2 * MS);
    }
    xm_error_set(&l->error, ECANCELED, "%s", reason);
    down(l);
}

void __wrap_xm_links_free(struct xm_links *l)
{
    l->o.event = NULL;
    down(l);
    while (l->serving)
        task_wait(l, sim_time() + 10 * MS);
    l->freed = true;
}

void __wrap_xm_links_set_rate(struct xm_links *l, uint64_t rate)
{
    (void)l, (void)rate;
}

void __wrap_xm_links_set_background(struct xm_links *l, bool yes)
{
    (void)l, (void)yes;
}

unsigned long __wrap_xm_links_serving(struct xm_links *l)
{
    return l->serving;
}

double __wrap_xm_links_rate(struct xm_links *l)
{
    (void)l;
    return 1e9;
}

uint64_t __wrap_xm_links_wire_bytes(struct xm_links *l)
{
    (void)l;
    return 0;
}

uint64_t __wrap_xm_links_queued(struct xm_links *l, uint64_t *max)
{
    (void)l;
    if (max)
        *max = 0;
    return 0;
}

/* ---- calls ---- */

struct call {
    struct xm_links *from;
    uint8_t type;
    char *payload;
    uint32_t length;
    bool answered;
    int status;
    char *reply;
    uint32_t reply_len;
};

struct answer {
    struct call *call;
    int status;
    char *reply;
    uint32_t reply_len;
};

static uint64_t wire(void)
{
    return !w.ending && chance(w.slow) ? between(1, 15000) * MS : between(100, 1500) * XM_NS_PER_US;
}

static void answer_arrives(void *arg)
{
    struct answer *a = arg;
    struct call *c = a->call;

    if (c->from->freed || !c->from->up || c->answered)
        return;
    if (!hears(c->from)) {
        after(50 * MS, answer_arrives, a);
        return;
    }
    c->answered = true;
    c->status = a->status;
    c->reply = a->reply;
    c->reply_len = a->reply_len;
    task_wake(c->from);
}

static void answer(struct call *c, int status, const void *reply, uint32_t len)
{
    struct answer *a = sim_alloc(sizeof *a);

    *a = (struct answer){.call = c, .status = status, .reply_len = len};
    if (len) {
        a->reply = malloc(len);
        memcpy(a->reply, reply, len);
    }
    after(wire(), answer_arrives, a);
}

static void *serve_call(void *arg)
{
    struct call *c = arg;
    struct xm_links *l = c->from->peer;
    struct xm_frame_hdr hdr = {.type = c->type, .length = c->length};
    struct xm_digest none = {0};
    struct xm_error e = {0};

    if (!l || l->freed || !l->up)
        return NULL;
    if (c->type != XM_FRAME_CALL) {
        answer(c, 0, &none, sizeof none);
        return NULL;
    }
    l->serving++;
    struct xm_rx *rx = calloc(1, sizeof *rx);
    rx->hdr = hdr;
    rx->payload = malloc(c->length + 1);
    memcpy(rx->payload, c->payload, c->length);
    rx->transport = c;
    if (l->o.sink.check(l->o.sink.ctx, &hdr, &e) < 0)
        sim_violated("a call is refused as a frame: %s", e.text);
    l->o.sink.frame(l->o.sink.ctx, rx);
    return NULL;
}

static void call_arrives(void *arg)
{
    struct call *c = arg;
    struct xm_links *l = c->from;

    if (!l->up || l->freed || !l->peer || l->peer->freed || (l->peer->was_up && !l->peer->up))
        return;
    if (!hears(l) || !l->peer->up)
        after(l->peer->was_up ? 50 * MS : MS, call_arrives, c);
    else
        task_new(l->peer->proc, serve_call, c);
}

void __wrap_xm_rx_done(struct xm_rx *rx, int status, const void *reply, uint32_t len)
{
    struct call *c = rx->transport;

    sim_point("answer");
    c->from->peer->serving--;
    answer(c, status, reply, len);
    free(rx->payload);
    free(rx);
}

int __wrap_xm_transport_call(struct xm_transport *t, struct xm_msg *m, uint64_t timeout, struct xm_error *e)
{
    struct xm_links *l = t->ctx;
    struct call *c = sim_alloc(sizeof *c);
    uint64_t deadline = sim_time() + timeout;

    sim_point("call");
    *c = (struct call){.from = l, .type = m->type, .length = m->length, .payload = sim_alloc(m->length + 1)};
    if (m->length)
        memcpy(c->payload, m->payload, m->length);
    if (m->type == XM_FRAME_CALL)
        sim_trace("  call %.*s", (int)m->length, (const char *)m->payload);
    after(wire(), call_arrives, c);
    if (!w.ending && chance(w.duplicate))
        after(wire(), call_arrives, c);
    while (!c->answered && !l->error.code && sim_time() < deadline)
        task_wait(l, deadline);
    if (!c->answered) {
        if (l->error.code)
            return xm_error_set(e, l->error.code, "%s", l->error.text);
        return xm_error_set(e, ETIMEDOUT, "no answer in time");
    }
    if (m->type == XM_FRAME_CALL)
        sim_trace("  answer %.*s", (int)c->reply_len, c->reply ? c->reply : "");
    m->status = c->status;
    m->reply = c->reply;
    m->reply_len = c->reply_len;
    return c->status;
}

int __wrap_xm_transport_call_until(struct xm_transport *t, struct xm_msg *m, bool (*over)(void *), void *ctx,
                                   struct xm_error *e)
{
    struct xm_links *l = t->ctx;
    uint64_t until = sim_time() + between(1, 20) * MS;

    (void)m;
    while (sim_time() < until || !links_live(l)) {
        if (over(ctx))
            return xm_error_set(e, ECANCELED, "it is over");
        task_sleep(10 * MS);
    }
    return 0;
}

/* ---- device state ---- */

struct stream {
    struct xm_links *l;
    bool held; /* what QEMU writes stays here */
};

int __wrap_qmp_make_stream(struct qmp *q, const char *name, uint64_t timeout_ns, struct xm_error *e)
{
    json_t *args = json_pack("{s:s}", "fdname", name);

    return qmp_do(q, "getfd", args, timeout_ns, e) < 0 ? -EIO
                                                       : 0; /* no descriptor: the stream is a stand-in */
}

struct stream *__wrap_stream_send(int fd, struct xm_transport *to, struct xm_error *e)
{
    struct stream *s = calloc(1, sizeof *s);

    (void)fd, (void)e;
    s->l = to->ctx;
    return s;
}

struct stream *__wrap_stream_receive(int fd, struct xm_error *e)
{
    (void)fd, (void)e;
    return calloc(1, sizeof(struct stream));
}

void __wrap_stream_hold(struct stream *s)
{
    s->held = sin_committed != LOAD_BEFORE_PAGES;
}

void __wrap_stream_release(struct stream *s)
{
    sim_point("release");
    s->held = false;
}

void __wrap_stream_frame(struct stream *s, struct xm_rx *rx)
{
    (void)s, (void)rx;
}

void __wrap_stream_stop(struct stream *s)
{
    (void)s;
}

void __wrap_stream_free(struct stream *s)
{
    free(s);
}

uint64_t __wrap_stream_bytes(const struct stream *s)
{
    (void)s;
    return 0;
}

void __wrap_stream_error(struct stream *s, struct xm_error *e)
{
    (void)s;
    e->code = 0;
}

struct xm_links *stream_links(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->stream ? m->stream->l : NULL;
}

bool stream_held(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->stream && m->stream->held;
}

/* ---- disks ---- */

/* A disk's file is known by its path's memory: the product has room for a struct xm_file only. */
struct file_name {
    struct inode *inode;
    char path[160];
};

static struct inode *inode_of(const struct xm_file *f)
{
    return xm_container_of((const char(*)[160])(const void *)f->path, struct file_name, path)->inode;
}

static struct xm_file file_of(struct inode *i, const char *path)
{
    struct file_name *n = sim_alloc(sizeof *n);

    n->inode = i;
    snprintf(n->path, sizeof n->path, "%s", path);
    i->user = proc_current();
    return (struct xm_file){.fd = -1, .size = i->size, .block = 512, .path = n->path};
}

struct xm_disk {
    struct machine_disk *d;
    bool held; /* the guest's requests wait: a pivot */
};

struct xm_replica {
    struct xm_links *l;
    struct inode *near; /* storage-only: the other side is here */
    uint64_t ready;     /* when the bulk of it is there */
    bool in_step;
};

struct inode *machine_inode(struct proc *shim)
{
    struct machine_disk *d = shim->shim ? &shim->shim->machine.disk[0] : NULL;

    return d && d->started ? inode_of(d->file) : NULL;
}

bool plane_holds_guest(struct proc *shim)
{
    return shim->shim->machine.disk[0].disk->held;
}

/* What the other side has the disk in; NULL: it cannot be reached. */
static struct inode *far_side(struct xm_replica *r, struct host **h)
{
    struct proc *p = r->near ? NULL : links_peer(r->l);

    if (r->near && h)
        *h = proc_current()->host;
    if (r->near)
        return r->near;
    if (p && h)
        *h = p->host;
    return p ? machine_inode(p) : NULL;
}

void plane_guest_wrote(struct proc *shim, uint64_t version)
{
    struct xm_replica *r = shim->shim ? shim->shim->machine.disk[0].replica : NULL;
    struct inode *far = r ? far_side(r, NULL) : NULL;

    if (!r || !r->in_step)
        return;
    if (far)
        far->version = version;
    else
        r->in_step = false;
}

int __wrap_machine_disk_start(struct machine_disk *d, struct xm_error *e)
{
    struct proc *me = proc_current();
    uint64_t deadline = sim_time() + 5 * SEC;

    sim_point("open disk");
    struct inode *i = file_find(me->host, d->spec->path);
    while (i && i->user && i->user->alive && sim_time() < deadline) {
        task_sleep(10 * MS);
        i = file_find(me->host, d->spec->path);
    }
    if (!i || (i->user && i->user->alive))
        return xm_error_set(e, i ? EBUSY : ENOENT, "disk %s: %s %s", d->spec->name, d->spec->path,
                            i ? "is in use" : "is not there");
    d->file = calloc(1, sizeof *d->file);
    *d->file = file_of(i, d->spec->path);
    d->spec->block_size = 512;
    d->disk = calloc(1, sizeof *d->disk);
    d->disk->d = d;
    d->engine = sim_alloc(sizeof *d->engine);
    d->started = true;
    return 0;
}

int __wrap_machine_disk_serve(struct machine_disk *d, struct xm_error *e)
{
    (void)d, (void)e;
    return 0;
}

void __wrap_machine_disk_stop(struct machine_disk *d)
{
    if (!d->started)
        return;
    inode_of(d->file)->user = NULL;
    d->started = false;
}

void __wrap_machine_disk_call(struct machine_disk *d, void (*fn)(struct machine_disk *, void *), void *arg)
{
    fn(d, arg);
}

struct xm_replica *__wrap_xm_replica_far(struct xm_engine *engine, struct xm_transport *t, uint16_t object,
                                         uint32_t chunk)
{
    struct xm_replica *r = calloc(1, sizeof *r);

    (void)engine, (void)object, (void)chunk;
    r->l = t->ctx;
    return r;
}

struct xm_replica *__wrap_xm_replica_near(struct xm_engine *engine, struct xm_writer *writer, uint32_t chunk)
{
    struct xm_replica *r = calloc(1, sizeof *r);

    (void)engine, (void)chunk;
    r->near = inode_of((struct xm_file *)(void *)writer); /* xm_writer_new */
    return r;
}

void __wrap_xm_replica_free(struct xm_replica *r)
{
    free(r);
}

int __wrap_xm_disk_mirror_on(struct xm_disk *disk, struct xm_replica *r, bool zeroed, struct xm_error *e)
{
    struct inode *far = far_side(r, NULL);

    (void)disk, (void)zeroed, (void)e;
    if (far)
        far->version = HALF;
    r->ready = sim_time() + between(10, 400) * MS;
    return 0;
}

void __wrap_xm_disk_mirror_off(struct xm_disk *disk, void (*done)(void *), void *arg)
{
    (void)disk;
    done(arg);
}

bool __wrap_xm_disk_in_step(const struct xm_disk *disk)
{
    struct xm_replica *r = disk->d->replica;
    struct inode *far = far_side(r, NULL);

    if (!far || sim_time() < r->ready)
        return false;
    if (!r->in_step)
        far->version = machine_inode(proc_current())->version;
    return r->in_step = true;
}

void __wrap_xm_disk_replica_lost(struct xm_disk *disk, bool yes)
{
    (void)disk, (void)yes;
}

void __wrap_xm_disk_quiesce(struct xm_disk *disk, void (*done)(void *, int, const char *), void *arg)
{
    struct xm_replica *r = disk->d->replica;
    struct host *h = NULL;
    struct inode *far = far_side(r, &h);

    if (!far || !r->in_step) {
        done(arg, -ENOLINK, "the other side cannot be reached");
        return;
    }
    far->version = machine_inode(proc_current())->version;
    file_flushed(h, far);
    done(arg, 0, NULL);
}

void __wrap_xm_disk_copy_rate(struct xm_disk *disk, uint64_t rate)
{
    (void)disk, (void)rate;
}

/* The source's thread has the disk's part, too. Whoever called puts the new file in the old one's place
 * before anybody else runs. */
void __wrap_xm_disk_pivot(struct xm_disk *disk, struct xm_file *file, int (*commit)(void *),
                          void (*done)(void *, int, const char *), void *arg)
{
    struct inode *from = inode_of(disk->d->file), *to = inode_of(file);

    sim_point("pivot");
    if (!disk->d->replica->in_step) {
        done(arg, -EIO, "the new disk keeps falling behind");
        return;
    }
    disk->held = true;
    to->version = from->version;
    file_flushed(proc_current()->host, to);
    sim_point("pivot flushed");
    int r = commit(arg);
    disk->held = false;
    done(arg, r, r ? "the new file cannot be recorded as the disk's" : NULL);
}

void __wrap_xm_disk_status(struct xm_disk *disk, struct xm_disk_status *st)
{
    memset(st, 0, sizeof *st);
    st->size = disk->d->file->size;
}

void *__wrap_xm_writer_new(struct xm_engine *engine, struct xm_file *f, struct xm_error *e)
{
    (void)engine, (void)e;
    return f;
}

void __wrap_xm_writer_cancel(struct xm_writer *writer)
{
    (void)writer;
}

void __wrap_xm_writer_free(struct xm_writer *writer)
{
    (void)writer;
}

uint64_t __wrap_xm_file_allocated(const struct xm_file *f)
{
    (void)f;
    return 0;
}

int __wrap_xm_file_lock(struct xm_file *f, struct xm_error *e)
{
    (void)e;
    inode_of(f)->user = proc_current();
    return 0;
}

void __wrap_xm_file_unlock(struct xm_file *f)
{
    inode_of(f)->user = NULL;
}

/* Of a storage-only move: the new file. */
int __wrap_xm_file_open(struct xm_file *f, const char *path, unsigned flags, uint64_t size,
                        struct xm_error *e)
{
    (void)flags;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    int r = 0;

    if (fd < 0)
        return xm_error_errno(e, errno, "%s cannot be created", path);
    sim_point("file made");
    ftruncate(fd, (off_t)size);
    if (fsync(fd) < 0)
        r = xm_error_errno(e, errno, "%s cannot be synced", path);
    if (!r)
        r = xm_sync_directory_of(path, e);
    *f = file_of(fd_obj(fd)->inode, path);
    f->reads_zero_new = true;
    close(fd);
    if (!r)
        return 0;
    inode_of(f)->user = NULL;
    unlink(path);
    return r;
}

void __wrap_xm_file_close(struct xm_file *f)
{
    if (inode_of(f)->user == proc_current())
        inode_of(f)->user = NULL;
}

int __wrap_fstatvfs(int fd, struct statvfs *st)
{
    (void)fd;
    *st = (struct statvfs){.f_frsize = 4096, .f_bavail = 1u << 28};
    return 0;
}

bool __wrap_xm_vhost_attached(struct xm_vhost *v)
{
    (void)v;
    return true;
}

bool __wrap_xm_vhost_connected(struct xm_vhost *v)
{
    (void)v;
    return true;
}

/* ---- RAM ---- */

int __wrap_xm_ram_find(struct xm_ram *ram, pid_t pid, struct xm_error *e)
{
    if (!proc_of(pid))
        return xm_error_set(e, ESRCH, "QEMU has ended");
    ram->pid = pid;
    ram->blocks = 1;
    snprintf(ram->block[0].name, sizeof ram->block[0].name, "mem0");
    ram->block[0].size = RAM;
    return 0;
}

void __wrap_xm_ram_close(struct xm_ram *ram)
{
    ram->blocks = 0;
}

struct xm_ramsink *__wrap_xm_ramsink_new(struct xm_ram *ram, struct xm_error *e)
{
    (void)ram, (void)e;
    return sim_alloc(16);
}

uint64_t __wrap_xm_ramsink_round(struct xm_ramsink *s)
{
    (void)s;
    return 1;
}

bool __wrap_xm_ram_warm(const struct xm_ram *ram, struct xm_warm *warm, uint64_t bytes)
{
    (void)ram, (void)warm, (void)bytes;
    return false;
}

struct xm_placer __wrap_xm_ramsink_placer(struct xm_ramsink *s)
{
    (void)s;
    return (struct xm_placer){0};
}

void __wrap_xm_ramsink_populate(struct xm_ramsink *s)
{
    (void)s;
}

void __wrap_xm_ramsink_free(struct xm_ramsink *s)
{
    (void)s;
}

struct xm_precopy {
    struct xm_links *l;
    unsigned rounds;
    bool complete; /* the round that was made of a guest that stands still has ended */
};

bool pages_complete(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->precopy && m->precopy->complete;
}

struct xm_precopy *__wrap_xm_precopy_new(struct xm_ram *ram, struct xm_transport *t, struct xm_error *e)
{
    struct xm_precopy *p = calloc(1, sizeof *p);

    (void)ram, (void)e;
    p->l = t->ctx;
    return p;
}

int __wrap_xm_precopy_round(struct xm_precopy *p, bool final, const _Atomic bool *abort, struct xm_round *out,
                            struct xm_error *e)
{
    uint64_t ns = final ? between(100, 2000) * XM_NS_PER_US : between(5, 100) * MS;
    uint64_t until = sim_time() + ns;

    sim_point("round");
    while (sim_time() < until || !links_live(p->l)) {
        if (*abort)
            return xm_error_set(e, ECANCELED, "aborted");
        if (p->l->error.code)
            return xm_error_set(e, ENOLINK, "%s", p->l->error.text);
        task_sleep(XM_MAX(XM_MIN(10 * MS, ns), MS));
    }
    p->complete = final;
    *out = (struct xm_round){.number = ++p->rounds,
                             .pages_dirty = 100,
                             .pages_data = 100,
                             .wire_bytes = 400000,
                             .ns = ns,
                             .rate = 1e9};
    return 0;
}

int __wrap_xm_precopy_peek(struct xm_precopy *p, uint64_t *pages, struct xm_error *e)
{
    (void)p, (void)e;
    *pages = 10;
    return 0;
}

void __wrap_xm_precopy_digest(const struct xm_precopy *p, struct xm_digest *d)
{
    (void)p;
    memset(d, 0, sizeof *d);
}

void __wrap_xm_precopy_progress(const struct xm_precopy *p, uint64_t *done, uint64_t *of)
{
    (void)p;
    *done = *of = 0;
}

void __wrap_xm_precopy_free(struct xm_precopy *p)
{
    free(p);
}
