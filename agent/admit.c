/* SPDX-License-Identifier: MIT */
/* What this host is, for admission; and the disks' files. */
#include "agent/datastore.h"
#include "agent/agent.h"
#include "agent/facts.h"
#include "agent/nvram.h"
#include "agent/inventory.h"
#include "agent/outside.h"
#include "agent/storage.h"
#include "probe/probe.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- facts ---- */

/* Only those that are in question are looked at: a start has its disks' paths, a move may name one. */
static void gather_datastore(struct agent *a, const struct admission_request *r, unsigned i,
                             struct gathered *g)
{
    const struct conf_datastore *ds = &a->conf.datastore[i];
    struct fact_datastore *f = &g->datastore[i];
    struct xm_error wrong = {0};

    *f = (struct fact_datastore){.name = ds->name, .target = ds->target, .closed = !ds->incoming};
    if (r->start || !r->storage || !ds->incoming || (r->datastore && strcmp(r->datastore, ds->name) != 0))
        return;
    f->hangs = storage_space(ds->path, &f->size, &f->free) == -ETIMEDOUT;
    if (!f->hangs && (datastore_judge(a, ds, &wrong) < 0 || storage_takes_files(ds->path, &wrong) < 0))
        f->wrong = g->wrong[i] = xm_printf("%s", wrong.text);
    f->block = f->hangs || f->wrong ? 0 : probe_block_size(ds->path);
}

void gather(struct agent *a, const struct admission_request *r, bool strict, struct gathered *g)
{
    const struct vm_spec *s = r->spec;
    struct host_facts *f = &g->facts;
    bool run_it = !strict || outside_program(s, NULL) == 0;
    bool kvm = s->accel && !strncmp(s->accel, "kvm", 3);
    char full[128];

    memset(g, 0, sizeof *g);
    const struct qemu_facts *q = run_it ? qemu_facts(s->qemu, &g->qemu) : NULL;
    /* The words that a program ends with are for those at its host. */
    if (!q && run_it && g->qemu.code != ENOENT) {
        f->qemu_why = strict ? "see its agent's log" : g->qemu.text;
        if (strict)
            xm_log(XM_LOG_WARN, "%s", g->qemu.text);
    }
    f->host = a->conf.name;
    f->protocol = AGENT_PROTOCOL;
    f->qemu_version = q ? q->version : NULL;
    f->machine = q && qemu_facts_machine(q, s->machine, full);
    if (q && !f->machine)
        qemu_facts_machine_like(q, s->machine, r->start ? NULL : r->qemu_version, g->machine_like);
    f->machine_like = g->machine_like[0] ? g->machine_like : NULL;
    if (!r->start && probe_tracking(&g->tracking) < 0)
        f->no_tracking = g->tracking.text;
    f->kvm = kvm ? kvm_probe(&g->kvm) : KVM_NONE;
    f->kvm_why = g->kvm.text;
    f->partial_kvm = a->conf.partial_kvm;
    bool works = !kvm || f->kvm >= (r->start && !f->partial_kvm ? KVM_WHOLE : KVM_PART);
    if (q && (r->start || r->cpu) && s->cpu && works)
        f->cpu = g->cpu = qemu_facts_cpu(s->qemu, s->accel, s->cpu, &g->no_cpu);
    f->cpu_why = g->no_cpu.code ? g->no_cpu.text : NULL;
    f->cpu_unknown = g->no_cpu.code == EINVAL;
    if (f->machine && r->start && s->accel && works) {
        bool pci;
        if (qemu_machine_try(s->qemu, s->machine, s->accel, &pci, &g->no_machine) < 0)
            f->machine_why = g->no_machine.text;
        f->no_pci = !pci;
    }
    f->cpu_flags = facts_cpu_flags();
    for (unsigned i = 0; i < s->nics; i++)
        f->bridge[i] = s->nic[i].bridge[0] && facts_bridge(s->nic[i].bridge);
    f->kernel = s->kernel && facts_file(s->kernel, strict);
    f->initrd = s->initrd && facts_file(s->initrd, strict);
    f->firmware = s->firmware && facts_file(s->firmware, strict);
    f->firmware_bytes = f->firmware ? facts_file_size(s->firmware) : 0;
    for (unsigned i = 0; i < s->cdroms; i++) {
        f->cdrom[i] = facts_file(s->cdrom[i].path, strict);
        f->cdrom_bytes[i] = f->cdrom[i] ? facts_file_size(s->cdrom[i].path) : 0;
        /* Of other files a peer is not told that they are there. */
        f->cdrom_private[i] = strict && !f->cdrom[i] && outside_allows(a->conf.images, s->cdrom[i].path) &&
                              facts_file_private(s->cdrom[i].path);
    }
    f->vnc_address = a->conf.vnc_address;
    f->vnc_busy = a->conf.vnc_address && s->devices.vnc_password &&
                  facts_port_busy(a->conf.vnc_address, (uint16_t)(VNC_PORT + atoi(s->devices.vnc)));
    f->owned_epoch = vm_owned(a, s->name, &f->known_epoch) ? f->known_epoch : 0;
    f->memory_free = facts_memory_available();
    f->min_memory = a->conf.min_memory;
    f->min_free = a->conf.min_free;
    f->min_bandwidth = a->conf.min_bandwidth;
    f->max_migrations = a->conf.migrations;
    f->max_storage_migrations = a->conf.storage_migrations;
    f->datastores = a->conf.datastores;
    f->datastore = g->datastore;
    for (unsigned i = 0; i < a->conf.datastores; i++)
        gather_datastore(a, r, i, g);
    g->usage = vms_usage(a, r->storage && !r->start);
    f->links = a->conf.links;
    f->link = g->link;
    for (unsigned i = 0; i < a->conf.links; i++) {
        g->link[i] = (struct fact_link){.name = a->conf.link[i].name, .address = a->conf.link[i].address};
        g->link[i].speed = facts_link_speed(a->conf.link[i].address, &g->link[i].up);
    }
}

void gathered_free(struct gathered *g)
{
    for (unsigned i = 0; i < CONFIG_MANY; i++)
        free(g->wrong[i]);
    json_decref(g->cpu);
    json_decref(g->usage);
}

/* With the lock held: the other VM that has the MAC address on the same bridge. */
static const char *twin_of(struct agent *a, const char *name, const struct vm_nic *n)
{
    struct vm *vm;
    json_t *nic;
    size_t i;

    TAILQ_FOREACH (vm, &a->vms, link) {
        if (!strcmp(vm->name, name) || vm->phase >= VM_HELD)
            continue;
        json_array_foreach (json_object_get(vm->spec, "nics"), i, nic) {
            if (n->bridge[0] && !strcmp(xm_json_str(nic, "bridge", ""), n->bridge) &&
                !strcasecmp(xm_json_str(nic, "mac", ""), n->mac))
                return vm->name;
        }
    }
    return NULL;
}

unsigned admit_judge(struct agent *a, const struct admission_request *r, struct gathered *g, json_t *reasons,
                     int *datastore)
{
    struct host_facts *f = &g->facts;
    struct vm *vm;

    f->present = vm_find(a, r->spec->name) != NULL;
    for (unsigned i = 0; i < r->spec->nics; i++)
        f->twin[i] = twin_of(a, r->spec->name, &r->spec->nic[i]);
    f->memory_promised = vms_memory_promised(a, g->usage);
    f->migrations = jobs_running(a, false);
    f->storage_migrations = jobs_running(a, true);
    TAILQ_FOREACH (vm, &a->vms, link) {
        f->migrations += vm->incoming != NULL;
        f->storage_migrations += xm_json_bool(vm->incoming, "storage", false);
    }
    for (unsigned i = 0; i < f->datastores; i++)
        g->datastore[i].reserved = vms_space_promised(a, g->datastore[i].name, NULL, g->usage);
    return admit(f, r, reasons, datastore);
}

char *reasons_text(const json_t *reasons)
{
    char *text = xm_printf("%s", "");
    size_t i;
    json_t *v;

    json_array_foreach ((json_t *)reasons, i, v) {
        char *longer =
            xm_printf("%s%s%s", text, i ? "; " : "", json_is_string(v) ? json_string_value(v) : "?");
        free(text);
        text = longer;
    }
    return text;
}

/* ---- disks' files ---- */

uint64_t disk_used(const struct vm_disk *d)
{
    struct stat st;

    if (storage_stat(d->path, &st) < 0 || !S_ISREG(st.st_mode))
        return d->size;
    return XM_MIN((uint64_t)st.st_blocks * 512, d->size);
}

uint64_t disk_file_size(const char *path)
{
    uint64_t size = 0;
    struct stat st;

    if (storage_stat(path, &st) < 0)
        return 0;
    if (S_ISREG(st.st_mode))
        return (uint64_t)st.st_size;
    int fd = S_ISBLK(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    if (fd >= 0 && ioctl(fd, BLKGETSIZE64, &size) < 0)
        size = 0;
    if (fd >= 0)
        close(fd);
    return size;
}

/* Appended to `created` as journals name files. */
static int make_sparse(const char *path, uint64_t size, json_t *created, struct xm_error *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = 0;

    if (fd < 0)
        return xm_error_errno(e, errno, "cannot make %s", path);
    if (ftruncate(fd, (off_t)size) < 0) {
        r = xm_error_errno(e, errno, "cannot make %s with %s", path, xm_format_size(size).s);
        unlink(path);
    } else {
        json_array_append_new(created, left_file(path, fd));
    }
    close(fd);
    return r;
}

int create_missing(struct agent *a, struct vm_spec *s, const json_t *known, json_t *created,
                   struct xm_error *e)
{
    for (unsigned i = 0; i < s->disks; i++) {
        struct vm_disk *d = &s->disk[i];
        struct stat st;
        int there = d->datastore[0] ? storage_stat(d->path, &st) : 0;
        if (!there)
            continue;
        if (there == -ETIMEDOUT)
            return storage_hangs(d->path, e);
        /* Invariant: what is recorded is never made. It was there a moment ago (resolve_spec). */
        const struct conf_datastore *ds = config_datastore(&a->conf, d->datastore);
        int r = inventory_disk(known, d->name) ? disk_missing(a, s, d, e) : ds ? datastore_use(a, ds, e) : 0;
        if (!r)
            r = make_sparse(d->path, d->size, created, e);
        if (!r && ds)
            r = datastore_judge(a, ds, e);
        if (r)
            return r;
    }
    return nvram_make(a, s, created, e);
}

/* The n-th name that a disk may have: what stands in the way under the first is not touched. */
static char *disk_path(struct agent *a, int datastore, const char *vm, const char *disk, unsigned n)
{
    const char *dir = a->conf.datastore[datastore].path;
    return n ? xm_printf("%s/%s-%s.%u.raw", dir, vm, disk, n) : xm_printf("%s/%s-%s.raw", dir, vm, disk);
}

char *free_disk_path(struct agent *a, int datastore, const char *vm, const char *disk)
{
    for (unsigned n = 0;; n++) {
        char *path = disk_path(a, datastore, vm, disk, n);
        struct stat st;
        if (lstat(path, &st) < 0)
            return path;
        free(path);
    }
}

void plan_disks(struct agent *a, struct vm_spec *s, int datastore, json_t *planned)
{
    for (unsigned i = 0; i < s->disks; i++) {
        struct vm_disk *d = &s->disk[i];
        free(d->path);
        d->path = free_disk_path(a, datastore, s->name, d->name);
        snprintf(d->datastore, sizeof d->datastore, "%s", a->conf.datastore[datastore].name);
        json_array_append_new(planned, json_string(d->path));
    }
}

int create_disks(const struct vm_spec *s, json_t *created, struct xm_error *e)
{
    int r = 0;

    for (unsigned i = 0; !r && i < s->disks; i++)
        r = make_sparse(s->disk[i].path, s->disk[i].size, created, e);
    return r;
}

void delete_created(const json_t *created)
{
    size_t i;
    json_t *v;

    json_array_foreach ((json_t *)created, i, v) {
        const char *path = journal_path(v);
        if (path[0] && unlink(path) < 0 && errno != ENOENT)
            xm_log(XM_LOG_WARN, "cannot delete %s: %s", path, strerror(errno));
    }
}
