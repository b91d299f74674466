/* SPDX-License-Identifier: MIT */
/* The file system of each host: what is there, and what would be there after a power cut.
 *
 * A file's bytes are durable after fsync, or when they were written with O_DSYNC; a name (made, changed,
 * removed) after fsync of its directory, or of the file itself. What was not durable when the power goes
 * is lost or is not, names in the order in which they were changed. A write that was under way leaves any
 * mixture of old and new sectors. The run directory is made of memory. What programs call: file_calls.c. */
#include "tests/sim/files.h"

#include <stdio.h>
#include <string.h>

#define SECTOR 512u

struct file_system sim_fs[HOSTS];
static struct host *as;
unsigned long records_turn[HOSTS];

void files_as(struct host *h)
{
    as = h;
}

bool files_looked_at(void)
{
    return as != NULL;
}

struct host *files_here(void)
{
    if (as)
        return as;
    struct proc *p = proc_current();

    return p ? p->host : &w.host[0];
}

static uint64_t hash_of(const char *s)
{
    uint64_t h = 14695981039346656037u;

    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 1099511628211u;
    return h;
}

void files_reset(void)
{
    for (int i = 0; i < HOSTS; i++) {
        sim_fs[i].names = 0;
        sim_fs[i].changes = 0;
        records_turn[i]++;
    }
}

struct name *name_find(struct host *h, const char *path)
{
    uint64_t hash = hash_of(path);

    for (unsigned i = 0; i < sim_fs[h->number].names; i++) {
        struct name *n = &sim_fs[h->number].name[i];
        if (n->hash == hash && !strcmp(n->path, path))
            return n;
    }
    return NULL;
}

bool file_in_memory(struct host *h, const char *path)
{
    return !strncmp(path, h->run_dir, strlen(h->run_dir));
}

static struct name *entry(struct host *h, const char *path)
{
    struct name *n = name_find(h, path);

    if (n)
        return n;
    for (unsigned i = 0; !n && i < sim_fs[h->number].names; i++) {
        if (!sim_fs[h->number].name[i].inode && !sim_fs[h->number].name[i].durable)
            n = &sim_fs[h->number].name[i];
    }
    if (!n && sim_fs[h->number].names == NAMES) {
        sim_violated("more than %d files on %s", NAMES, h->name);
        n = &sim_fs[h->number].name[0];
    } else if (!n) {
        n = &sim_fs[h->number].name[sim_fs[h->number].names++];
    }
    memset(n, 0, sizeof *n);
    snprintf(n->path, sizeof n->path, "%s", path);
    n->hash = hash_of(path);
    return n;
}

void name_touched(struct host *h, const char *path)
{
    size_t n = strlen(path);

    records_turn[h->number] += n > 10 && !strcmp(path + n - 10, "owner.json");
}

void name_set(struct host *h, const char *path, struct inode *inode)
{
    name_touched(h, path);
    struct name *n = entry(h, path);

    if (n->inode)
        n->inode->named = false;
    n->inode = inode;
    if (inode)
        inode->named = true;
    n->changed = n->inode == n->durable ? 0 : ++sim_fs[h->number].changes;
    if (file_in_memory(h, path)) {
        n->durable = NULL;
        n->changed = 0;
    }
}

struct inode *file_find(struct host *h, const char *path)
{
    struct name *n = name_find(h, path);

    return n ? n->inode : NULL;
}

struct inode *inode_new(bool dir)
{
    struct inode *i = sim_alloc(sizeof *i);

    memset(i, 0, sizeof *i);
    i->dir = dir;
    return i;
}

void inode_set(char **to, size_t *to_len, const char *data, size_t len)
{
    *to = sim_alloc(len + 1);
    if (len)
        memcpy(*to, data, len);
    *to_len = len;
}

void inode_synced(struct inode *i)
{
    inode_set(&i->durable, &i->durable_len, i->data, i->len);
    i->durable_version = i->version;
    i->synced = true;
}

void file_put(struct host *h, const char *path, const void *data, size_t len)
{
    struct inode *i = inode_new(false);

    inode_set(&i->data, &i->len, data, len);
    inode_synced(i);
    name_set(h, path, i);
    struct name *n = name_find(h, path);
    n->durable = file_in_memory(h, path) ? NULL : i;
    n->changed = 0;
}

struct inode *file_put_disk(struct host *h, const char *path, uint64_t size, uint64_t version)
{
    file_put(h, path, "", 0);
    struct inode *i = file_find(h, path);
    i->size = size;
    i->version = i->durable_version = version;
    return i;
}

void file_make_dir(struct host *h, const char *path)
{
    struct inode *i = inode_new(true);

    name_set(h, path, i);
    struct name *n = name_find(h, path);
    n->durable = file_in_memory(h, path) ? NULL : i;
    n->changed = 0;
}

void files_each(struct host *h, const char *prefix,
                void (*fn)(struct host *, const char *, struct inode *, void *), void *arg)
{
    for (unsigned i = 0; i < sim_fs[h->number].names; i++) {
        struct name *n = &sim_fs[h->number].name[i];
        if (n->inode && !n->inode->dir && !strncmp(n->path, prefix, strlen(prefix)))
            fn(h, n->path, n->inode, arg);
    }
}

bool file_has_parent(struct host *h, const char *path)
{
    char dir[160];
    const char *slash = strrchr(path, '/');

    if (!slash || slash == path)
        return true;
    snprintf(dir, sizeof dir, "%.*s", (int)(slash - path), path);
    struct inode *i = file_find(h, dir);
    return i && i->dir;
}

/* Some of its sectors are of the one, some of the other. */
static void tear(struct inode *i)
{
    size_t len = chance(500) ? i->len : i->durable_len;
    char *data = sim_alloc(len + 1);

    for (size_t o = 0; o < len; o += SECTOR) {
        size_t n = XM_MIN(SECTOR, len - o);
        bool old = chance(500);
        const char *from = old ? i->durable : i->data;
        size_t have = old ? i->durable_len : i->len;
        memset(data + o, 0, n);
        if (have > o)
            memcpy(data + o, from + o, XM_MIN(n, have - o));
    }
    i->data = data;
    i->len = len;
}

void files_power_cut(struct host *h)
{
    uint64_t done = below(sim_fs[h->number].changes + 1);
    bool all_old = chance(300);

    records_turn[h->number]++;
    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct name *n = &sim_fs[h->number].name[k];
        if (n->inode)
            n->inode->named = false;
        if (n->changed && (all_old || n->changed > done))
            n->inode = n->durable;
        if (file_in_memory(h, n->path))
            n->inode = NULL;
        n->changed = 0;
    }
    for (bool again = true; again;) { /* what was in a directory that has gone */
        again = false;
        for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
            struct name *n = &sim_fs[h->number].name[k];
            if (n->inode && !file_has_parent(h, n->path)) {
                n->inode = NULL;
                again = true;
            }
        }
    }
    for (unsigned k = 0; k < sim_fs[h->number].names; k++)
        sim_fs[h->number].name[k].durable = sim_fs[h->number].name[k].inode;
    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct inode *i = sim_fs[h->number].name[k].inode;
        if (!i)
            continue;
        i->named = true;
        i->user = NULL;
        if (!i->synced && !i->dir && !i->size)
            tear(i);
        if (i->size) /* what was not flushed of a copy: some of it is there */
            i->version = i->version == i->durable_version ? i->version : HALF;
        inode_synced(i);
    }
    file_make_dir(h, h->run_dir);
}

/* The guest's, or a copy's, bytes are on the disk now. */
void file_flushed(struct host *h, struct inode *inode)
{
    inode->durable_version = inode->version;
    inode->synced = true;
    for (unsigned k = 0; k < sim_fs[h->number].names; k++) {
        struct name *e = &sim_fs[h->number].name[k];
        if (e->inode == inode && !e->durable) {
            e->durable = inode;
            e->changed = 0;
        }
    }
}
