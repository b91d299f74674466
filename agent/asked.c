/* SPDX-License-Identifier: MIT */
/* See asked.h. Everything in a request is hostile until it has been checked: the specification by
 * vm_spec_from_json, numbers against their bounds, names against the configuration. No path comes from a
 * peer. */
#include "agent/asked.h"
#include "agent/storage.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static int read_links(struct asked *q, const json_t *links, struct xm_error *e)
{
    struct address addr;
    json_t *l;
    size_t i;

    if (links && !json_is_array(links))
        return xm_error_set(e, EINVAL, "links: no list");
    if (json_array_size(links) > CONFIG_MANY)
        return xm_error_set(e, EINVAL, "links: more than %d", CONFIG_MANY);
    json_array_foreach ((json_t *)links, i, l) {
        q->link[i].name = xm_json_str(l, "name", "");
        q->link[i].address = xm_json_str(l, "address", "");
        if (config_name_check("link", q->link[i].name, e) < 0)
            return -EINVAL;
        if (!address_parse(&addr, q->link[i].address))
            return xm_error_set(e, EINVAL, "links: '%.40s' is no IP address", q->link[i].address);
        q->req.links++;
    }
    q->req.link = q->link;
    return 0;
}

static int read_used(struct asked *q, const json_t *used, struct xm_error *e)
{
    if (!json_is_array(used) || json_array_size(used) != q->spec.disks)
        return xm_error_set(e, EINVAL, "used: no list of one number per disk");
    for (unsigned i = 0; i < q->spec.disks; i++) {
        json_t *n = json_array_get(used, i);
        if (!json_is_integer(n) || json_integer_value(n) < 0 ||
            (uint64_t)json_integer_value(n) > q->spec.disk[i].size)
            return xm_error_set(e, EINVAL, "used: no number from 0 to the disk's size");
        q->req.used[i] = (uint64_t)json_integer_value(n);
    }
    return 0;
}

static bool hex_only(const char *s, size_t n)
{
    return strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

/* The file of that name in an open directory: a plain file and no link, whatever somebody who may write there
 * puts in its place. The descriptor, or -1. */
static int open_plain(int dir, const char *name, struct stat *st)
{
    int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0 && fstat(fd, st) == 0 && S_ISREG(st->st_mode))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

void probe_sign(char content[33], const char *source, const char *destination)
{
    char *text = xm_printf("%.16s %s %s", content, source, destination);

    snprintf(content + 16, 17, "%016llx", (unsigned long long)XXH3_64bits(text, strlen(text)));
    free(text);
}

static bool is_shown(const char *content, const char *source, const char *destination)
{
    char is[33];

    memcpy(is, content, 17);
    probe_sign(is, source, destination);
    return !strcmp(is, content);
}

static const char *host_of(const struct config *c, unsigned i)
{
    return i < c->peers ? c->peer[i].name : c->name;
}

/* It was made by another host, this one perhaps, or for another: who shows it has only heard of it. One of an
 * older agent does not say. */
static bool probe_is_borrowed(const struct config *c, const char *source, const char *content)
{
    bool borrowed = false;

    for (unsigned from = 0; from <= c->peers && !is_shown(content, source, c->name); from++) {
        for (unsigned to = 0; to <= c->peers; to++)
            borrowed = borrowed || is_shown(content, host_of(c, from), host_of(c, to));
    }
    return borrowed;
}

static bool probe_says(int dir, const char *name, const char *content)
{
    char *file = xm_printf(PROBE_PREFIX "%s", name), text[33];
    struct stat st;
    int fd = open_plain(dir, file, &st);
    bool same =
        fd >= 0 && st.st_size == 32 && pread(fd, text, sizeof text, 0) == 32 && !memcmp(text, content, 32);

    if (fd >= 0)
        close(fd);
    free(file);
    return same;
}

/* A disk that stays where it is: the source has put a probe file beside it, and says what is in it. Whoever
 * finds that in the datastore of this name here reaches the same storage. The shim opens the disk once more,
 * in the same way, and compares its size again (blkcopy/file.c). */
static void look_for_probe(struct agent *a, struct asked *q, unsigned i, const json_t *probe)
{
    struct vm_disk *d = &q->spec.disk[i];
    const struct conf_datastore *ds = config_datastore(&a->conf, xm_json_str(probe, "datastore", ""));
    const char *name = xm_json_str(probe, "probe", ""), *content = xm_json_str(probe, "content", "");
    const char *file = xm_json_str(probe, "file", "");
    struct stat st;

    if (!ds || !ds->incoming || !hex_only(name, 16) || !hex_only(content, 32) || !file[0] || file[0] == '.' ||
        strchr(file, '/') || strlen(file) > 200)
        return;
    if (probe_is_borrowed(&a->conf, q->req.source, content) || storage_hangs(ds->path, NULL) < 0)
        return;
    int dir = open(ds->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = dir >= 0 && probe_says(dir, name, content) ? open_plain(dir, file, &st) : -1;
    if (fd >= 0 && (uint64_t)st.st_size == d->size) {
        free(d->path);
        d->path = xm_printf("%s/%s", ds->path, file);
        snprintf(d->datastore, sizeof d->datastore, "%s", ds->name);
        q->req.shared[i] = true;
    }
    if (fd >= 0)
        close(fd);
    if (dir >= 0)
        close(dir);
}

/* The spec with what is this host's own business taken out of it: taps, paths. */
static int read_spec(struct asked *q, const json_t *from, struct xm_error *e)
{
    json_t *o = json_deep_copy(from), *nic;
    size_t i;

    json_array_foreach (json_object_get(o, "nics"), i, nic) {
        if (json_is_object(nic))
            json_object_set_new(nic, "tap", json_string(""));
    }
    int r = vm_spec_from_json(&q->spec, o, e);
    json_decref(o);
    return r;
}

/* Bounds of what is compared word by word: a CPU has some hundred features. */
static int read_cpu(struct asked *q, const json_t *o, struct xm_error *e)
{
    const json_t *list = json_object_get(o, "cpu"), *v;
    size_t i;

    q->req.cpu_flags = xm_json_str(o, "cpu_flags", NULL);
    if (q->req.cpu_flags && strlen(q->req.cpu_flags) > 8192)
        return xm_error_set(e, EINVAL, "cpu_flags: longer than 8192 bytes");
    if (json_array_size(list) > 1000)
        return xm_error_set(e, EINVAL, "cpu: more than 1000 features");
    json_array_foreach (list, i, v) {
        if (!json_is_string(v) || !json_string_length(v) || json_string_length(v) > 64)
            return xm_error_set(e, EINVAL, "cpu: no list of names of at most 64 bytes");
    }
    q->req.cpu = json_array_size(list) ? list : NULL;
    q->req.cpu_why = xm_json_str(o, "cpu_why", NULL);
    q->req.booted = xm_json_bool(o, "booted", false);
    return 0;
}

int asked_read(struct agent *a, struct asked *q, const json_t *o, struct xm_error *e)
{
    const json_t *probes = json_object_get(o, "probes");
    struct admission_request *r = &q->req;
    int err = read_spec(q, json_object_get(o, "vm"), e);

    if (err)
        return err;
    r->spec = &q->spec;
    vm_wait_ending(a, q->spec.name); /* a second try soon after the first one has failed */
    tidy_expected(a, q->spec.name);  /* or after the first one was lost */
    r->storage = xm_json_bool(o, "storage", true);
    r->datastore = xm_json_str(o, "datastore", NULL);
    r->epoch = (uint64_t)XM_MAX(xm_json_int(o, "epoch", 0), 0);
    r->protocol = (unsigned)(xm_json_int(o, "protocol", 0) & 0xffff);
    r->source = xm_json_str(o, "from", "");
    r->qemu_version = xm_json_str(o, "qemu", NULL);
    r->firmware_bytes = (uint64_t)XM_MAX(xm_json_int(o, "firmware_bytes", 0), 0);
    for (unsigned i = 0; i < q->spec.cdroms; i++) {
        const json_t *n = json_array_get(json_object_get(o, "cdrom_bytes"), i);
        r->cdrom_bytes[i] = (uint64_t)XM_MAX(json_integer_value(n), 0); /* 0: no number, an older agent's */
    }
    r->large_rings = xm_json_bool(o, "large_rings", false);
    if ((err = read_cpu(q, o, e)) < 0)
        return err;
    r->kvm = (enum kvm_level)XM_MIN(XM_MAX(xm_json_int(o, "kvm", KVM_NONE), KVM_NONE), KVM_WHOLE);
    r->allow_older = xm_json_bool(o, "allow_older", false);
    snprintf(q->job, sizeof q->job, "%s", xm_json_str(o, "job", ""));
    if (strspn(q->job, "0123456789") != strlen(q->job))
        return xm_error_set(e, EINVAL, "job: no number");
    if (!r->epoch || r->epoch > OWNER_EPOCH_MAX)
        return xm_error_set(e, EINVAL, "epoch: not from 1, or beyond any that a VM comes to");
    err = read_links(q, json_object_get(o, "links"), e);
    if (!err && r->storage)
        err = read_used(q, json_object_get(o, "used"), e);
    for (unsigned i = 0; !err && !r->storage && i < q->spec.disks; i++)
        look_for_probe(a, q, i, json_array_get(probes, i));
    return err;
}

json_t *asked_of_another(const struct agent *a, const json_t *request)
{
    const char *name = xm_json_str(request, "for", a->conf.name), *from = xm_json_str(request, "from", "");

    if (!strcmp(name, a->conf.name))
        return NULL;
    return refusal(
        EXIT_REFUSED,
        "the host that %.64s has as [peer %.64s] calls itself %s ([host] name): a host has one name "
        "for all, by which hand-offs are settled; change one of the two",
        from, name, a->conf.name);
}

void asked_free(struct asked *q)
{
    free(q->nvram);
    vm_spec_free(&q->spec);
}
