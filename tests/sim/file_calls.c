/* SPDX-License-Identifier: MIT */
/* Files' and directories' system calls, on the names and inodes of files.c. A write, a sync or a rename is a
 * point at which something may go wrong, and takes the time of a disk. */
#include "tests/sim/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(int code)
{
    errno = code;
    return -1;
}

static bool write_fails(struct host *h, const char *path)
{
    return w.begun && !w.ending && !file_in_memory(h, path) && chance(w.write_errors);
}

/* Of /proc there is the boot's name and the processes' command lines. */
static struct inode *proc_file(struct host *h, const char *path)
{
    struct inode *i = NULL;
    char text[64];
    int pid;

    if (!strcmp(path, "/proc/sys/kernel/random/boot_id")) {
        i = inode_new(false);
        inode_set(&i->data, &i->len, text,
                  (size_t)snprintf(text, sizeof text, "boot-%s-%u\n", h->name, h->boots));
    } else if (sscanf(path, "/proc/%d/cmdline", &pid) == 1) {
        struct proc *p = proc_of(pid);
        if (!p || p->host != h)
            return NULL;
        i = inode_new(false);
        inode_set(&i->data, &i->len, p->cmdline, p->cmdline_len);
    }
    return i;
}

static int open_inode(struct inode *i, const char *path, int flags)
{
    struct obj *o = obj_new(i->dir ? FD_DIR : FD_FILE);

    o->inode = i;
    o->flags = flags;
    snprintf(o->path, sizeof o->path, "%s", path);
    return fd_new(o, proc_current());
}

int __wrap_open(const char *path, int flags, ...)
{
    struct host *h = files_here();
    struct inode *i = strncmp(path, "/proc/", 6) ? file_find(h, path) : proc_file(h, path);

    if (i && (flags & O_CREAT) && (flags & O_EXCL))
        return fail(EEXIST);
    if (i && !files_looked_at() && w.begun && !w.ending && strstr(path, "/owner.json") &&
        chance(w.read_errors))
        return fail(EIO);
    if (!i && !(flags & O_CREAT))
        return fail(ENOENT);
    if (!i) {
        if (!file_has_parent(h, path))
            return fail(ENOENT);
        if (write_fails(h, path))
            return fail(ENOSPC);
        i = inode_new(false);
        name_set(h, path, i);
    } else if (flags & O_TRUNC) {
        i->len = 0;
        i->synced = false;
    }
    return open_inode(i, path, flags);
}

int __wrap_mkostemp(char *template, int flags)
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyz";
    size_t n = strlen(template);

    for (size_t i = n - 6; i < n; i++)
        template[i] = digits[below(26)];
    return __wrap_open(template, flags | O_CREAT | O_EXCL | O_RDWR);
}

static ssize_t put(struct obj *o, const char *data, size_t len, size_t offset)
{
    struct inode *i = o->inode;

    name_touched(files_here(), o->path);
    if (offset + len > i->len) {
        char *more = sim_alloc(offset + len + 1);
        memset(more, 0, offset + len);
        if (i->len)
            memcpy(more, i->data, i->len);
        i->data = more;
        i->len = offset + len;
    } else if (i->synced) {
        inode_set(&i->data, &i->len, i->data, i->len); /* the durable one may be the same */
    }
    memcpy(i->data + offset, data, len);
    i->synced = false;
    return (ssize_t)len;
}

/* The disk takes its time; the power may go meanwhile. */
static void disk_time(struct host *h, const char *path)
{
    if (!file_in_memory(h, path))
        task_sleep(between(100 * XM_NS_PER_US, w.begun && !w.ending && chance(w.slow) ? 2 * SEC : 2 * MS));
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t offset)
{
    struct obj *o = fd_obj(fd);
    struct host *h = files_here();

    if (!o || o->kind != FD_FILE)
        return fail(EBADF);
    sim_point("write");
    bool fails = write_fails(h, o->path);
    if (fails && chance(500))
        return fail(EIO); /* nothing of it has reached the disk; or else all of it has, and nobody knows */
    if (!(o->flags & O_DSYNC) || sin_committed == RECORD_UNSYNCED)
        return put(o, data, len, (size_t)offset);
    put(o, data, len, (size_t)offset);
    disk_time(h, o->path);
    inode_synced(o->inode);
    sim_point("written");
    return fails ? fail(EIO) : (ssize_t)len;
}

ssize_t __wrap_pread(int fd, void *data, size_t len, off_t offset)
{
    struct obj *o = fd_obj(fd);

    if (!o || o->kind != FD_FILE)
        return fail(EBADF);
    size_t have = (size_t)offset < o->inode->len ? o->inode->len - (size_t)offset : 0;
    size_t n = XM_MIN(have, len);
    if (n)
        memcpy(data, o->inode->data + offset, n);
    return (ssize_t)n;
}

ssize_t __wrap_read(int fd, void *data, size_t len)
{
    struct obj *o = fd_obj(fd);
    ssize_t n = __wrap_pread(fd, data, len, o ? (off_t)o->pos : 0);

    if (n > 0)
        o->pos += (size_t)n;
    return n;
}

ssize_t __wrap_write(int fd, const void *data, size_t len)
{
    struct obj *o = fd_obj(fd);

    if (o && o->kind == FD_SOCKET) {
        agent_heard_preamble(o, data, len);
        return (ssize_t)len;
    }
    if (!o || o->kind != FD_FILE)
        return fail(EBADF);
    if (write_fails(files_here(), o->path))
        return fail(ENOSPC);
    put(o, data, len, o->pos);
    o->pos += len;
    return (ssize_t)len;
}

static void names_synced(struct host *h, const char *dir)
{
    size_t n = strlen(dir);

    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct name *e = &sim_fs[h->number].name[k];
        if (e->changed && !strncmp(e->path, dir, n) && e->path[n] == '/' && !strchr(e->path + n + 1, '/')) {
            e->durable = e->inode;
            e->changed = 0;
        }
    }
}

int __wrap_fsync(int fd)
{
    struct obj *o = fd_obj(fd);
    struct host *h = files_here();

    if (!o || (o->kind != FD_FILE && o->kind != FD_DIR))
        return fail(EBADF);
    sim_point("sync");
    if (write_fails(h, o->path))
        return fail(EIO);
    disk_time(h, o->path);
    if (o->kind == FD_DIR) {
        names_synced(h, o->path);
        sim_point("synced");
        return 0;
    }
    inode_synced(o->inode);
    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct name *e = &sim_fs[h->number].name[k];
        if (e->inode == o->inode && e->changed && !e->durable) {
            e->durable = e->inode;
            e->changed = 0;
        }
    }
    return 0;
}

int __wrap_rename(const char *from, const char *to)
{
    struct host *h = files_here();
    struct inode *i = file_find(h, from);

    if (!i || !file_has_parent(h, to))
        return fail(ENOENT);
    sim_point("rename");
    if (!name_find(h, from) || file_find(h, from) != i)
        return fail(ENOENT);
    struct name *n = name_find(h, from);
    n->inode = n->durable = NULL; /* a name of a moment: nobody looks for it after a power cut */
    n->changed = 0;
    name_set(h, to, i);
    return 0;
}

int __wrap_unlink(const char *path)
{
    struct host *h = files_here();
    struct inode *i = file_find(h, path);

    if (!i)
        return fail(ENOENT);
    if (i->dir)
        return fail(EISDIR);
    sim_point("unlink");
    if (!file_in_memory(h, path))
        sim_trace("  %s is removed", path);
    name_set(h, path, NULL);
    return 0;
}

int __wrap_link(const char *from, const char *to)
{
    struct host *h = files_here();
    struct inode *i = file_find(h, from);

    if (!i)
        return fail(ENOENT);
    if (file_find(h, to))
        return fail(EEXIST);
    name_set(h, to, i);
    return 0;
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    struct host *h = files_here();

    (void)mode;
    if (file_find(h, path))
        return fail(EEXIST);
    if (!file_has_parent(h, path))
        return fail(ENOENT);
    name_set(h, path, inode_new(true));
    return 0;
}

int __wrap_rmdir(const char *path)
{
    struct host *h = files_here();
    struct inode *i = file_find(h, path);
    size_t n = strlen(path);

    if (!i)
        return fail(ENOENT);
    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct name *e = &sim_fs[h->number].name[k];
        if (e->inode && !strncmp(e->path, path, n) && e->path[n] == '/')
            return fail(ENOTEMPTY);
    }
    name_set(h, path, NULL);
    return 0;
}

int __wrap_access(const char *path, int mode)
{
    (void)mode;
    return file_find(files_here(), path) ? 0 : fail(ENOENT);
}

static int fill(const struct inode *i, struct stat *st)
{
    if (!i)
        return fail(ENOENT);
    memset(st, 0, sizeof *st);
    st->st_mode = i->dir ? S_IFDIR | 0700 : S_IFREG | 0600;
    st->st_size = (off_t)(i->size ? i->size : i->len);
    st->st_dev = 1;
    st->st_ino = (ino_t)i;
    return 0;
}

int __wrap_stat(const char *path, struct stat *st)
{
    return fill(file_find(files_here(), path), st);
}

int __wrap_lstat(const char *path, struct stat *st)
{
    return __wrap_stat(path, st);
}

int __wrap_fstat(int fd, struct stat *st)
{
    struct obj *o = fd_obj(fd);

    return o && (o->kind == FD_FILE || o->kind == FD_DIR) ? fill(o->inode, st) : fail(EBADF);
}

/* Only disks are made so. */
int __wrap_ftruncate(int fd, off_t size)
{
    struct obj *o = fd_obj(fd);

    if (!o || o->kind != FD_FILE)
        return fail(EBADF);
    o->inode->size = (uint64_t)size;
    o->inode->version = o->inode->durable_version = HALF;
    return 0;
}

int __wrap_posix_fallocate(int fd, off_t offset, off_t len)
{
    (void)fd, (void)offset, (void)len;
    return 0;
}

/* ---- directories ---- */

struct listing {
    char path[160];
    unsigned names, next;
    char name[60][64];
    struct dirent entry;
};

DIR *__wrap_opendir(const char *path)
{
    struct host *h = files_here();
    struct inode *i = file_find(h, path);
    size_t n = strlen(path);

    if (!i || !i->dir) {
        errno = ENOENT;
        return NULL;
    }
    struct listing *l = sim_alloc(sizeof *l);
    l->names = l->next = 0;
    snprintf(l->path, sizeof l->path, "%s", path);
    for (unsigned k = 0; k < sim_fs[h->number].names && l->names < 60; k++) {
        struct name *e = &sim_fs[h->number].name[k];
        if (e->inode && !strncmp(e->path, path, n) && e->path[n] == '/' && !strchr(e->path + n + 1, '/'))
            snprintf(l->name[l->names++], 64, "%s", e->path + n + 1);
    }
    return (DIR *)l;
}

struct dirent *__wrap_readdir(DIR *d)
{
    struct listing *l = (struct listing *)d;

    if (l->next == l->names)
        return NULL;
    snprintf(l->entry.d_name, sizeof l->entry.d_name, "%s", l->name[l->next++]);
    return &l->entry;
}

int __wrap_closedir(DIR *d)
{
    free(d);
    return 0;
}

static struct listing *listed; /* dirfd and unlinkat come one after the other */

int __wrap_dirfd(DIR *d)
{
    listed = (struct listing *)d;
    return -2;
}

int __wrap_unlinkat(int fd, const char *name, int flags)
{
    char path[256];

    (void)fd, (void)flags;
    snprintf(path, sizeof path, "%s/%s", listed->path, name);
    return __wrap_unlink(path);
}
