/* SPDX-License-Identifier: MIT */
/* Disks: a copy is HALF until it is in step; from then on each write of the guest goes to both sides while
 * the links are up. */
#include "tests/sim/links.h"
#include "migrate/destination.h"
#include "migrate/source.h"
#include "shim/shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

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

bool disks_hold_guest(struct proc *shim)
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

/* It takes nothing any more (migrate/destination_frames.c). */
static bool sealed(const struct xm_replica *r)
{
    struct proc *p = r->near ? NULL : links_peer(r->l);

    return p && p->shim && p->shim->destination && p->shim->destination->sealed;
}

void disks_guest_wrote(struct proc *shim, uint64_t version)
{
    struct xm_replica *r = shim->shim ? shim->shim->machine.disk[0].replica : NULL;
    struct inode *far = r ? far_side(r, NULL) : NULL;

    if (!r || !r->in_step)
        return;
    if (far && !sealed(r))
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

void __wrap_xm_disk_quiesce_cancel(struct xm_disk *disk)
{
    (void)disk; /* it has called back already */
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

bool __wrap_xm_vhost_silent(struct xm_vhost *v)
{
    (void)v;
    return false;
}

bool __wrap_xm_vhost_connected(struct xm_vhost *v)
{
    (void)v;
    return true;
}
