/* SPDX-License-Identifier: MIT */
/* See space.h. How much a disk has of its file system is what the file has allocated, not what has come: a
 * guest that writes the same blocks again and again takes no more. */
#include "migrate/space.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* Some 100 questions a second at 5 GB/s; one takes 2 µs on a local file system. */
#define STEP_MAX (64u << 20)
/* A file system counts its maps of a file with the file's blocks. */
#define MAPS_BYTES (64u << 10)

void space_init(struct space *s, struct machine *vm, const json_t *o, const char *source)
{
    json_t *disk;
    size_t i;

    memset(s, 0, sizeof *s);
    s->machine = vm;
    s->source = source;
    snprintf(s->datastore, sizeof s->datastore, "%s", xm_json_str(o, "datastore", ""));
    s->min_free = (uint64_t)xm_json_int(o, "min_free", 0);
    s->others = (uint64_t)xm_json_int(o, "others", 0);
    json_array_foreach (json_object_get(o, "reserve"), i, disk) /* no peer's sum comes near to wrapping */
        s->promised += XM_MIN((uint64_t)xm_json_int(disk, "used", 0), 1ull << 56);
    pthread_mutex_init(&s->lock, NULL);
}

void space_destroy(struct space *s)
{
    pthread_mutex_destroy(&s->lock);
}

static bool take_left(struct space *s, uint64_t bytes)
{
    uint64_t left = s->left;

    while (left >= bytes) {
        if (atomic_compare_exchange_weak(&s->left, &left, left - bytes))
            return true;
    }
    return false;
}

static int refuse(const struct space *s, uint64_t has, bool beyond, struct xm_error *e)
{
    char more[220] = "";

    if (beyond)
        snprintf(more, sizeof more, ", and VM %s, of which %s had announced %s, has %s there and wants more",
                 s->machine->spec.name, s->source, xm_format_size(s->promised).s, xm_format_size(has).s);
    return xm_error_set(
        e, ENOSPC,
        "datastore '%s' on %s is full: %s of it stay free (min_free), %s are promised to other "
        "migrations%s",
        s->datastore, s->machine->host, xm_format_size(s->min_free).s, xm_format_size(s->others).s, more);
}

/* Asks the file system; sets how much may come before it is asked again. */
static int look(struct space *s, uint64_t bytes, struct xm_error *e)
{
    const struct machine *vm = s->machine;
    struct statvfs fs;
    struct stat st;
    uint64_t has = 0;

    for (unsigned i = 0; i < vm->disks; i++) {
        if (fstat(vm->disk[i].file->fd, &st) < 0)
            return xm_error_errno(e, errno, "%s", vm->disk[i].spec->path);
        has += (uint64_t)st.st_blocks * 512;
    }
    if (fstatvfs(vm->disk[0].file->fd, &fs) < 0)
        return xm_error_errno(e, errno, "datastore '%s' on %s", s->datastore, vm->host);
    bool beyond = has + bytes > s->promised + s->promised / 256 + MAPS_BYTES;
    uint64_t space = (uint64_t)fs.f_bavail * fs.f_frsize, kept = s->min_free + (beyond ? s->others : 0);
    if (space < kept || space - kept < bytes)
        return refuse(s, has, beyond, e);
    uint64_t step = XM_MIN((space - kept) / 8, (uint64_t)STEP_MAX);
    if (has < s->promised)
        step = XM_MIN(step, s->promised - has);
    s->left = XM_MAX(step, bytes) - bytes;
    return 0;
}

int space_take(struct space *s, uint64_t bytes, struct xm_error *e)
{
    if (take_left(s, bytes))
        return 0;
    pthread_mutex_lock(&s->lock);
    int r = take_left(s, bytes) ? 0 : look(s, bytes, e);
    pthread_mutex_unlock(&s->lock);
    return r;
}
