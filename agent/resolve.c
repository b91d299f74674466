/* SPDX-License-Identifier: MIT */
/* A specification as its user wrote it is made whole for this host, and held against what is recorded of
 * the VM. */
#include "agent/datastore.h"
#include "agent/agent.h"
#include "agent/facts.h"
#include "agent/inventory.h"
#include "agent/storage.h"
#include "probe/probe.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* This VM had the disk the last time it was started here: since then what is on it is its guest's. */
static bool used_before(struct agent *a, const struct vm_spec *s, const struct vm_disk *d)
{
    char *path = vm_state_path(a, s->name, "spec.json");
    json_t *o = read_json(path, NULL), *disk;
    bool found = false;
    size_t i;

    json_array_foreach (json_object_get(o, "disks"), i, disk)
        found = found || !strcmp(xm_json_str(disk, "path", ""), d->path);
    json_decref(o);
    free(path);
    return found;
}

static int refuse_foreign(int fd, const char *path, uint64_t size, struct xm_error *e)
{
    unsigned char head[VM_FORMAT_HEAD], tail[512];
    ssize_t n = pread(fd, head, sizeof head, 0);
    bool whole = size >= sizeof tail &&
                 pread(fd, tail, sizeof tail, (off_t)(size - sizeof tail)) == (ssize_t)sizeof tail;
    const char *is = n > 0 ? vm_foreign_format(head, (size_t)n, whole ? tail : NULL) : NULL;

    return !is ? 0
               : xm_error_set(
                     e, EINVAL,
                     "%s looks like %s, and disks are raw here: convert it by qemu-img, or write «format = "
                     "raw» when the guest is to have these very bytes",
                     path, is);
}

/* The disk's size as it is. A disk in a datastore is a plain file; what is new here has to look like a raw
 * one. -ENOENT: there is nothing. */
static int look_at_disk(struct agent *a, const struct vm_spec *s, const struct vm_disk *d, uint64_t *size,
                        struct xm_error *e)
{
    bool plain = d->datastore[0];
    struct stat st;
    int r = storage_hangs(d->path, e);

    if (r)
        return r;
    int fd = open(d->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (plain ? O_NOFOLLOW : 0));
    if (plain && fd < 0 && errno == ELOOP)
        r = xm_error_set(e, EINVAL, "%s is a link, and a disk in a datastore is a plain file", d->path);
    else if (fd < 0 || fstat(fd, &st) < 0)
        r = xm_error_errno(e, errno, "cannot open %s", d->path);
    else if (S_ISREG(st.st_mode))
        *size = (uint64_t)st.st_size;
    else if (plain || !S_ISBLK(st.st_mode) || ioctl(fd, BLKGETSIZE64, size) < 0)
        r = xm_error_set(e, EINVAL, "%s is neither a file nor a block device", d->path);
    if (!r && !d->raw && !used_before(a, s, d))
        r = refuse_foreign(fd, d->path, *size, e);
    if (fd >= 0)
        close(fd);
    return r;
}

static int resolve_path(struct agent *a, const struct vm_spec *s, struct vm_disk *d, struct xm_error *e)
{
    const struct conf_datastore *ds;

    if (d->path[0] != '/') {
        ds = config_datastore(&a->conf, d->datastore);
        if (!ds)
            return xm_error_set(e, EINVAL, "disk '%s' of VM %s: %s has no datastore '%s'", d->name, s->name,
                                a->conf.name, d->datastore);
        char *path = xm_printf("%s/%s", ds->path, d->path);
        free(d->path);
        d->path = path;
    } else if ((ds = config_datastore_of(&a->conf, d->path))) {
        snprintf(d->datastore, sizeof d->datastore, "%s", ds->name);
    } else {
        d->datastore[0] = 0;
    }
    return 0;
}

/* The disk is somewhere; a guest on an empty one is worse than none. */
int disk_missing(struct agent *a, const struct vm_spec *s, const struct vm_disk *d, struct xm_error *e)
{
    const struct conf_datastore *ds = config_datastore(&a->conf, d->datastore);

    return xm_error_set(
        e, ENOENT,
        "disk '%s' of VM %s: %s is not there, where the record of %s has it; no disk is made in its place. "
        "%s%s%s",
        d->name, s->name, d->path, a->conf.name,
        ds ? "Is the datastore mounted at " : "Is the device or file system that holds it there?",
        ds ? ds->path : "", ds ? "?" : "");
}

/* What has been written to a new disk tells its block: storage with larger ones would hide a partition table
 * from its guest. */
static unsigned first_block(const struct vm_disk *d)
{
    unsigned char head[VM_BLOCK_HEAD];
    int fd = open(d->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof head, 0);
    unsigned written = n > 0 ? vm_written_block(head, (size_t)n) : 0;

    if (fd >= 0)
        close(fd);
    return written ? written : probe_block_size(d->path);
}

/* What the guest sees from its first start on, wherever the disk comes to lie. known: the disk in the record,
 * or NULL. */
static int resolve_block(const struct vm_spec *s, struct vm_disk *d, const json_t *known, struct xm_error *e)
{
    unsigned block = d->block_size ? d->block_size : (unsigned)xm_json_int(known, "block_size", 0);

    if (!block)
        block = known ? probe_block_size(d->path) : first_block(d);
    if (!block || (!d->block_size && d->size % block))
        block = 512;
    d->block_size = block;
    if (d->size % d->block_size)
        return xm_error_set(
            e, EINVAL, "disk '%s' of VM %s: %s has %llu bytes, which is no multiple of its block_size, %u",
            d->name, s->name, d->path, (unsigned long long)d->size, d->block_size);
    return 0;
}

/* known: the disk in the record; NULL: it is new. */
static int resolve_size(struct agent *a, const struct vm_spec *s, struct vm_disk *d, const json_t *known,
                        struct xm_error *e)
{
    uint64_t size = 0;
    int r = look_at_disk(a, s, d, &size, e);

    if (r == -ENOENT && known)
        return disk_missing(a, s, d, e);
    if (r == -ENOENT && d->datastore[0]) {
        const struct conf_datastore *ds = config_datastore(&a->conf, d->datastore);
        if (ds && datastore_judge(a, ds, e) < 0)
            return -XM_MAX(e->code, 1);
        /* A size that cannot be had in whole blocks gets the smallest. */
        if (!d->block_size)
            d->block_size = ds ? probe_block_size(ds->path) : 512;
        if (d->size % d->block_size)
            d->block_size = 512;
        return d->size ? 0
                       : xm_error_set(
                             e, EINVAL,
                             "disk '%s' of VM %s: %s is not there, and without a 'size' it cannot be made",
                             d->name, s->name, d->path);
    }
    if (r)
        return xm_error_prefix(e, "disk '%s' of VM %s", d->name, s->name);
    if (known && d->size && size > d->size)
        return xm_error_set(e, EINVAL,
                            "disk '%s' of VM %s: %s has %llu bytes, and the disk %llu: if the file was made "
                            "larger for it, edit or define with size = %llu",
                            d->name, s->name, d->path, (unsigned long long)size, (unsigned long long)d->size,
                            (unsigned long long)size);
    /* An image as it was downloaded, mostly. */
    if (!known && d->datastore[0] && size && d->size > size && size % 512 == 0)
        return xm_error_set(
            e, EINVAL,
            "disk '%s' of VM %s: %s has %llu bytes, the specification says %llu: take that "
            "size out for a disk as large as the file, or enlarge it by `truncate -s %llu %s`",
            d->name, s->name, d->path, (unsigned long long)size, (unsigned long long)d->size,
            (unsigned long long)d->size, d->path);
    if (d->size && d->size != size)
        return xm_error_set(e, EINVAL, "disk '%s' of VM %s: %s has %llu bytes, the specification says %llu",
                            d->name, s->name, d->path, (unsigned long long)size, (unsigned long long)d->size);
    if (!size)
        return xm_error_set(e, EINVAL, "disk '%s' of VM %s: %s is empty: enlarge it by `truncate -s SIZE %s`",
                            d->name, s->name, d->path, d->path);
    if (size % 512)
        return xm_error_set(
            e, EINVAL,
            "disk '%s' of VM %s: %s has %llu bytes, which is no multiple of 512: `truncate -s "
            "%%512 %s` adds the zeros that it lacks",
            d->name, s->name, d->path, (unsigned long long)size, d->path);
    d->size = size;
    return resolve_block(s, d, known, e);
}

static int resolve_disks(struct agent *a, struct vm_spec *s, const json_t *known, struct xm_error *e)
{
    int r = 0;

    for (unsigned i = 0; !r && i < s->disks; i++)
        r = resolve_path(a, s, &s->disk[i], e);
    if (!r) /* before the sizes: a file that is not there is often one that the record has elsewhere */
        r = inventory_contradiction(a, s, e);
    for (unsigned i = 0; !r && i < s->disks; i++)
        r = resolve_size(a, s, &s->disk[i], inventory_disk(known, s->disk[i].name), e);
    return r;
}

int resolve_spec(struct agent *a, struct vm_spec *s, struct xm_error *note, struct xm_error *e)
{
    const struct qemu_facts *q = qemu_facts(s->qemu, NULL);
    char full[128];

    if (!s->accel) {
        struct xm_error why = {0};
        bool kvm = kvm_probe(&why) == KVM_WHOLE;
        s->accel = xm_printf("%s", kvm ? "kvm" : "tcg");
        if (!kvm && note)
            xm_error_set(note, ENOTSUP, "VM %s runs by software emulation (accel = tcg), which is slow: %s",
                         s->name, why.text);
    }
    if (!s->cpu)
        s->cpu = xm_printf("%s", !strncmp(s->accel, "kvm", 3) ? "host" : "max");
    /* "q35" is another machine with each QEMU: both hosts have to mean the same one. */
    if (q && qemu_facts_machine(q, s->machine, full)) {
        free(s->machine);
        s->machine = xm_printf("%s", full);
    }
    struct inventory_vm v = {0};
    bool recorded = !inventory_read(a, s->name, &v) && inventory_owns(&v);
    int r = resolve_disks(a, s, recorded ? v.spec : NULL, e);
    inventory_free(&v);
    return r;
}
