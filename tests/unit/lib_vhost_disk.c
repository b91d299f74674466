/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_vhost_disk.h"
#include "blkcopy/engine.h"
#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_vhost_front.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum xm_engine_kind vd_kind = XM_ENGINE_AUTO;

/* The engine's operations with ours before them: found by the engine, of which a program has few. */
static struct vdisk *all[8];
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;

static struct vdisk *disk_of(const struct xm_engine *e)
{
    struct vdisk *found = NULL;

    pthread_mutex_lock(&all_lock);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i] && all[i]->engine == e)
            found = all[i];
    }
    pthread_mutex_unlock(&all_lock);
    return found;
}

static void put(struct vdisk *from, struct vdisk *to)
{
    pthread_mutex_lock(&all_lock);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i] == from) {
            all[i] = to;
            break;
        }
    }
    pthread_mutex_unlock(&all_lock);
}

static void gated_submit(struct xm_engine *e, struct xm_io *io)
{
    struct vdisk *v = disk_of(e);

    __atomic_add_fetch(&v->submitted[io->op], 1, __ATOMIC_RELAXED);
    if (v->fail && io->op != XM_IO_FLUSH)
        io->offset = v->file.size + 4096; /* the engine refuses it */
    if (v->closed)
        TAILQ_INSERT_TAIL(&v->held, io, link);
    else
        v->real->submit(e, io);
}

static struct xm_bitmap *bitmap(void *ctx, int fd, uint64_t size)
{
    struct vdisk *v = ctx;
    (void)fd;
    return size == VF_MEM ? &v->bitmap : NULL;
}

struct call {
    struct vdisk *v;
    bool closed;
    int error;
    unsigned n;
    const char *name;
    struct xm_vhost *vhost;
    struct xm_error e;
};

static struct xm_vhost *make_vhost(struct vdisk *v, const char *name, unsigned queues, struct xm_error *e)
{
    char sock[64];

    snprintf(sock, sizeof sock, "%s.sock", name);
    v->path = lib_path(sock);
    struct xm_vhost_opts o = {.socket_path = v->path,
                              .serial = "serial-0123456789abcdef",
                              .queues = queues,
                              .mem = {.bitmap = bitmap, .ctx = v}};
    return xm_vhost_new(v->disk, &o, e);
}

static void *engine_main(void *arg)
{
    struct vdisk *v = arg;
    xm_engine_own(v->engine);
    sem_post(&v->owned);
    while (!v->stop)
        xm_engine_turn(v->engine);
    return NULL;
}

const char *vd_open(struct vdisk *v, const char *name, unsigned queues)
{
    static char why[512];
    struct xm_error e = {0};
    char img[64];

    memset(v, 0, sizeof *v);
    TAILQ_INIT(&v->held);
    sem_init(&v->owned, 0, 0);
    snprintf(img, sizeof img, "%s.img", name);
    const char *path = lib_path(img);
    bool there = !access(path, F_OK);
    int err;
    /* After a process was killed the kernel still finishes its requests, and only then gives its lock back.
     */
    struct limit l = limit_start(10);
    do
        err = xm_file_open(&v->file, path, there ? 0 : XM_FILE_CREATE, there ? 0 : VD_SIZE, &e);
    while (err == -EBUSY && limit_wait(&l));
    if (!err)
        v->engine = xm_engine_open(vd_kind, 64, &e);
    if (err || !v->engine || xm_bitmap_init(&v->bitmap, VF_MEM / 4096)) {
        snprintf(why, sizeof why, "%s", e.text);
        return why;
    }
    v->disk = xm_disk_new(v->engine, &v->file, NULL, &e);
    v->real = v->engine->ops;
    v->ops = *v->real;
    v->ops.submit = gated_submit;
    v->engine->ops = &v->ops;
    put(NULL, v);
    pthread_create(&v->thread, NULL, engine_main, v);
    sem_wait(&v->owned);
    v->vhost = v->disk ? make_vhost(v, name, queues, &e) : NULL;
    if (!v->vhost) {
        snprintf(why, sizeof why, "%s", e.text);
        return why;
    }
    return NULL;
}

struct xm_vhost *vd_second(struct vdisk *v, const char *name)
{
    return make_vhost(v, name, 1, NULL);
}

static void stop_thread(void *arg)
{
    struct vdisk *v = arg;
    v->stop = true;
}

static void gate(void *arg)
{
    struct call *c = arg;
    struct xm_io *io;

    c->v->closed = c->closed;
    while (!c->closed && (io = TAILQ_FIRST(&c->v->held))) {
        TAILQ_REMOVE(&c->v->held, io, link);
        if (io->op == XM_IO_FLUSH && c->v->flush_error)
            xm_engine_end(c->v->engine, io, -c->v->flush_error);
        else
            c->v->real->submit(c->v->engine, io);
    }
}

void vd_gate(struct vdisk *v, bool closed)
{
    xm_mailbox_call(&v->engine->mailbox, gate, &(struct call){.v = v, .closed = closed});
}

static void count_held(void *arg)
{
    struct call *c = arg;
    struct xm_io *io;

    TAILQ_FOREACH (io, &c->v->held, link) {
        c->n++;
    }
}

unsigned vd_held(struct vdisk *v)
{
    struct call c = {.v = v};
    xm_mailbox_call(&v->engine->mailbox, count_held, &c);
    return c.n;
}

unsigned vd_submitted(struct vdisk *v, enum xm_io_op op)
{
    return __atomic_load_n(&v->submitted[op], __ATOMIC_RELAXED);
}

static void set_fail(void *arg)
{
    struct call *c = arg;
    c->v->fail = c->error;
}

void vd_fail(struct vdisk *v, int error)
{
    xm_mailbox_call(&v->engine->mailbox, set_fail, &(struct call){.v = v, .error = error});
}

static void set_flush_error(void *arg)
{
    struct call *c = arg;
    c->v->flush_error = c->error;
}

void vd_fail_flush(struct vdisk *v, int error)
{
    xm_mailbox_call(&v->engine->mailbox, set_flush_error, &(struct call){.v = v, .error = error});
}

void vd_close(struct vdisk *v)
{
    vd_gate(v, false);
    xm_vhost_free(v->vhost);
    xm_mailbox_call(&v->engine->mailbox, stop_thread, v);
    pthread_join(v->thread, NULL);
    xm_engine_own(v->engine);
    xm_disk_free(v->disk);
    xm_engine_free(v->engine);
    put(v, NULL);
    xm_file_close(&v->file);
    xm_bitmap_destroy(&v->bitmap);
}
