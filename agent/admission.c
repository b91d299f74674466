/* SPDX-License-Identifier: MIT */
#include "agent/admission_parts.h"
#include "agent/address.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void because(json_t *reasons, const char *fmt, ...)
{
    char text[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    xm_text_mend(text);
    json_array_append_new(reasons, json_string(text));
}

/* ---- the program ---- */

/* "7.2.22" -> 7 * 1000 + 2; 0: cannot be read */
static unsigned version_number(const char *v)
{
    unsigned major = 0, minor = 0;
    return sscanf(v, "%u.%u", &major, &minor) == 2 && minor < 1000 ? major * 1000 + minor : 0;
}

#define FIRMWARE_GRAIN (64u << 10) /* of QEMU's -bios on a PC */

/* From this one on QEMU refuses device state with a ring that is larger than the device's (its answer to
 * CVE-2026-50626). It cannot be asked. */
#define CHECKS_RINGS (11 * 1000 + 1)

bool admission_older(const struct host_facts *h, const struct admission_request *r)
{
    return !r->start && r->qemu_version && h->qemu_version &&
           version_number(h->qemu_version) < version_number(r->qemu_version);
}

/* Where Debian has it. */
static const char *package_of(const char *program)
{
    return !strcmp(program, "qemu-system-x86_64") || !strcmp(program, "qemu-system-i386")
               ? " (in Debian: package qemu-system-x86)"
               : "";
}

static bool has_pci_devices(const struct vm_spec *s)
{
    const struct vm_devices *d = &s->devices;

    return s->disks || s->nics || d->rng || d->balloon || d->guest_agent || d->tablet || d->video || d->vnc;
}

static void judge_machine(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;

    if (!h->machine && r->start)
        because(why, "QEMU %s on %s has no machine type '%s'%s%s", h->qemu_version, h->host, s->machine,
                h->machine_like ? "; it has, for one, " : "", h->machine_like ? h->machine_like : "");
    else if (!h->machine)
        because(why,
                "QEMU %s on %s has no machine type '%s': power %s off and start it with one that both hosts "
                "know%s%s",
                h->qemu_version, h->host, s->machine, s->name, h->machine_like ? ", such as " : "",
                h->machine_like ? h->machine_like : "");
    else if (h->machine_why)
        because(why, "QEMU %s on %s cannot make the machine '%s': %s", h->qemu_version, h->host, s->machine,
                h->machine_why);
    else if (h->no_pci && has_pci_devices(s))
        because(why,
                "the machine '%s' of QEMU %s on %s has no PCI bus, which the disks, network cards and other "
                "devices of %s need: use q35 or pc",
                s->machine, h->qemu_version, h->host, s->name);
}

static void judge_qemu(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;

    if (!h->qemu_version) {
        if (h->qemu_why)
            because(why, "QEMU on %s cannot be asked what it knows: %s", h->host, h->qemu_why);
        else
            because(why, "%s has no program '%s'%s", h->host, s->qemu, package_of(s->qemu));
        return;
    }
    judge_machine(h, r, why);
    if (admission_older(h, r) && !r->allow_older)
        because(why,
                "QEMU %s on %s is older than %s on %s; with --allow-older it is tried when machine type and "
                "CPU allow",
                h->qemu_version, h->host, r->qemu_version, r->source);
    if (!r->start && r->large_rings && version_number(h->qemu_version) >= CHECKS_RINGS)
        because(why,
                "QEMU %s on %s tells guests larger rings than its devices have, and QEMU %s on %s takes no "
                "guest that has set them up: it can move when it has been powered off on %s and started by "
                "another QEMU there, such as %s",
                r->qemu_version ? r->qemu_version : "?", r->source, h->qemu_version, h->host, r->source,
                h->qemu_version);
    if (!s->accel || strncmp(s->accel, "kvm", 3))
        return;
    if (h->kvm == KVM_NONE)
        because(why, "%s needs KVM and %s has none: %s", s->name, h->host, h->kvm_why ? h->kvm_why : "?");
    else if (r->start && h->kvm < KVM_WHOLE && !h->partial_kvm)
        because(why,
                "%s needs KVM and that of %s runs no ordinary guest: %s; without accel it runs by software "
                "emulation, which is slow",
                s->name, h->host, h->kvm_why ? h->kvm_why : "?");
    else if (!r->start && h->kvm < r->kvm)
        because(why, "KVM on %s can do less than on %s, and %s might not run there: %s", h->host, r->source,
                s->name, h->kvm_why ? h->kvm_why : "?");
}

/* ---- the host ---- */

static void judge_kernel(const struct host_facts *h, json_t *why)
{
    if (h->no_tracking)
        because(why, "%s: %s", h->host, h->no_tracking);
}

/* A kernel and an initrd matter when the guest boots. The firmware is ROM that the guest keeps: QEMU
 * refuses device state with one of another size. Debian's files of one path are of different sizes in its
 * releases. */
static void judge_firmware(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;
    bool pc = strstr(s->qemu, "x86_64") || strstr(s->qemu, "i386");

    if (!s->firmware)
        return;
    if (!h->firmware)
        because(why, "%s has no firmware %s that may be used", h->host, s->firmware);
    else if (pc && !s->nvram && (!h->firmware_bytes || h->firmware_bytes % FIRMWARE_GRAIN))
        because(why,
                "firmware %s on %s has %llu bytes, and QEMU takes a multiple of 64 KiB: a file with code and "
                "variables in one (Debian's OVMF.fd, not OVMF_CODE)",
                s->firmware, h->host, (unsigned long long)h->firmware_bytes);
    else if (!r->start && r->firmware_bytes && r->firmware_bytes != h->firmware_bytes)
        because(
            why,
            "firmware %s has %s in %s on %s and %s on %s, and QEMU moves no guest to one of another size: "
            "put the same file at a path of its own on both hosts, name that in the specification, power %s "
            "off and start it again",
            s->firmware, xm_format_size(r->firmware_bytes).s, s->name, r->source,
            xm_format_size(h->firmware_bytes).s, h->host, s->name);
}

/* A guest that has read from the disc goes on as if it were the same one: another of the same path is data
 * that changes under it. */
static void judge_cdroms(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;

    for (unsigned i = 0; i < s->cdroms; i++) {
        const char *name = s->cdrom[i].name, *path = s->cdrom[i].path;
        if (h->cdrom_private[i])
            because(why,
                    "image %s (for CD-ROM '%s') is on %s, and not everybody may read it, so a VM of another "
                    "host may not use it: chmod o+r there",
                    path, name, h->host);
        else if (!h->cdrom[i])
            because(why, "%s has no image %s that may be used (for CD-ROM '%s')", h->host, path, name);
        else if (!r->start && r->cdrom_bytes[i] && r->cdrom_bytes[i] != h->cdrom_bytes[i])
            because(why,
                    "image %s (for CD-ROM '%s') has %llu bytes on %s and %llu on %s, so it is another disc: "
                    "put the same file there",
                    path, name, (unsigned long long)r->cdrom_bytes[i], r->source,
                    (unsigned long long)h->cdrom_bytes[i], h->host);
    }
}

static void judge_parts(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;

    for (unsigned i = 0; i < s->nics; i++) {
        if (s->nic[i].bridge[0] && !h->bridge[i])
            because(why, "%s has no bridge '%s' (for NIC '%s')", h->host, s->nic[i].bridge, s->nic[i].name);
        else if (h->twin[i]) /* a clone, mostly, by dump and define */
            because(why,
                    "NIC '%s' of %s has the MAC address %s, which VM %s has on bridge '%s' of %s, too: one "
                    "of the "
                    "two needs another (without mac in its definition, one is made of the VM's name)",
                    s->nic[i].name, s->name, s->nic[i].mac, h->twin[i], s->nic[i].bridge, h->host);
    }
    if (s->kernel && !h->kernel)
        because(why, "%s has no kernel %s that may be used", h->host, s->kernel);
    if (s->initrd && !h->initrd)
        because(why, "%s has no initrd %s that may be used", h->host, s->initrd);
    judge_firmware(h, r, why);
    judge_cdroms(h, r, why);
    if (s->devices.vnc_password && !h->vnc_address)
        because(why, "%s gives VMs no address for VNC ([host] vnc_address): use vnc = unix", h->host);
    else if (h->vnc_busy && !h->present) /* else it may be its own */
        because(why,
                "display %s is in use on %s (somebody listens at port %d), and %s has it on each host (vnc = "
                "%s): "
                "give it another number, or vnc = unix",
                s->devices.vnc, h->host, VNC_PORT + atoi(s->devices.vnc), s->name, s->devices.vnc);
}

static void judge_memory(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    uint64_t gone = h->memory_promised + h->min_memory;
    uint64_t have = h->memory_free > gone ? h->memory_free - gone : 0;

    if (have < r->spec->memory)
        because(why,
                "%s has %s of RAM to give (%s available, %s promised to other VMs, %s kept) and %s needs %s",
                h->host, xm_format_size(have).s, xm_format_size(h->memory_free).s,
                xm_format_size(h->memory_promised).s, xm_format_size(h->min_memory).s, r->spec->name,
                xm_format_size(r->spec->memory).s);
}

static void judge_record(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    if (!r->start && h->owned_epoch)
        because(why,
                "%s has a VM '%s' of its own (epoch %llu), so one of the two needs another name. The one of "
                "%s gets it there, when it is stopped: `xmigrate dump %s`, then `xmigrate undefine %s` (its "
                "disks stay), and define of what was dumped, with another name",
                h->host, r->spec->name, (unsigned long long)h->owned_epoch, h->host, r->spec->name,
                r->spec->name);
    else if (h->present)
        because(why, "a VM '%s' is on %s already", r->spec->name, h->host);
    else if (!r->start && h->known_epoch > r->epoch) /* it would not believe the hand-off */
        because(why,
                "%s remembers a VM '%s' of a later epoch (%llu, this one's is %llu), so that is another VM: "
                "`xmigrate undefine "
                "%s` there forgets it",
                h->host, r->spec->name, (unsigned long long)h->known_epoch, (unsigned long long)r->epoch,
                r->spec->name);
}

static void judge_limits(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    if (h->migrations >= h->max_migrations)
        because(why, "%s takes part in %u migrations, which is its limit", h->host, h->migrations);
    else if (r->storage && h->storage_migrations >= h->max_storage_migrations)
        because(why, "%s takes part in %u migrations with disks, which is its limit", h->host,
                h->storage_migrations);
}

/* ---- disks ---- */

static uint64_t room(const struct host_facts *h, const struct fact_datastore *d)
{
    uint64_t gone = d->reserved + h->min_free;
    return d->free > gone ? d->free - gone : 0;
}

static bool under_target(const struct fact_datastore *d, uint64_t more)
{
    double used = (double)(d->size - d->free) + (double)d->reserved + (double)more;
    return used <= (double)d->size * d->target / 100.0;
}

/* One that is called as the first disk's is now: who has a «fast» on each host wants that. Else the one with
 * the most room; one that stays under its target goes before one that does not. */
static int choose(const struct host_facts *h, const struct vm_spec *s, uint64_t need)
{
    int best = -1;
    bool best_under = false;

    for (unsigned i = 0; i < h->datastores; i++) {
        const struct fact_datastore *d = &h->datastore[i];
        bool under = under_target(d, need);
        if (d->closed || d->hangs || d->wrong || room(h, d) < need || (best_under && !under))
            continue;
        if (under && !strcmp(d->name, s->disk[0].datastore))
            return (int)i;
        if (best < 0 || (under && !best_under) || room(h, d) > room(h, &h->datastore[best])) {
            best = (int)i;
            best_under = under;
        }
    }
    return best;
}

static int judge_storage(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    uint64_t need = 0;
    int found = -1;

    for (unsigned i = 0; i < r->spec->disks; i++) {
        if (__builtin_add_overflow(need, r->used[i], &need)) /* whatever a peer says */
            need = UINT64_MAX;
    }
    if (!r->spec->disks)
        return -1;
    if (!h->datastores) {
        because(why, "%s has no datastore", h->host);
        return -1;
    }
    if (!r->datastore) {
        found = choose(h, r->spec, need);
        unsigned hang = 0;
        for (unsigned i = 0; i < h->datastores; i++)
            hang += h->datastore[i].hangs;
        if (found < 0)
            because(why, "no datastore of %s has room for the %s of %s's disks%s", h->host,
                    xm_format_size(need).s, r->spec->name,
                    hang ? "; some hang, and were not asked (xmigrate check with HOST:DATASTORE names one)"
                         : "");
        for (unsigned i = 0; found < 0 && i < h->datastores; i++) {
            if (h->datastore[i].wrong && !h->datastore[i].closed)
                because(why, "%s", h->datastore[i].wrong);
        }
        return found;
    }
    for (unsigned i = 0; i < h->datastores; i++) {
        if (!strcmp(h->datastore[i].name, r->datastore))
            found = (int)i;
    }
    if (found < 0) {
        because(why, "%s has no datastore '%s'", h->host, r->datastore);
    } else if (h->datastore[found].closed) {
        because(why, "datastore '%s' on %s takes no disks from other hosts (incoming = no)", r->datastore,
                h->host);
        found = -1;
    } else if (h->datastore[found].hangs) {
        because(why, "datastore '%s' on %s does not answer: its storage hangs", r->datastore, h->host);
        found = -1;
    } else if (h->datastore[found].wrong) {
        because(why, "%s", h->datastore[found].wrong);
        found = -1;
    } else if (room(h, &h->datastore[found]) < need) {
        const struct fact_datastore *d = &h->datastore[found];
        because(why,
                "datastore '%s' on %s has %s to give (%s free, %s promised, %s kept) and %s's disks need %s",
                d->name, h->host, xm_format_size(room(h, d)).s, xm_format_size(d->free).s,
                xm_format_size(d->reserved).s, xm_format_size(h->min_free).s, r->spec->name,
                xm_format_size(need).s);
        found = -1;
    }
    return found;
}

static void judge_shared(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    for (unsigned i = 0; i < r->spec->disks; i++) {
        if (!r->shared[i])
            because(why,
                    "%s does not reach disk '%s' (%s): only files in a datastore that both hosts have, under "
                    "one name, can stay "
                    "where they are; use --with-storage",
                    h->host, r->spec->disk[i].name, r->spec->disk[i].path);
    }
}

/* ---- links ---- */

static void judge_links(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    bool pair = !h->links || !r->links; /* then the control connection's addresses are the link */

    for (unsigned i = 0; i < h->links; i++) {
        const struct fact_link *l = &h->link[i];
        if (!l->up)
            because(why, "link '%s' of %s is down: no interface that is up has its address %s", l->name,
                    h->host, l->address);
        else if (l->speed && l->speed < h->min_bandwidth)
            because(why, "link '%s' of %s runs at %s, less than the minimum of %s", l->name, h->host,
                    xm_format_rate((double)l->speed).s, xm_format_rate((double)h->min_bandwidth).s);
        for (unsigned j = 0; j < r->links; j++)
            pair = pair || address_same_family(l->address, r->link[j].address);
    }
    if (!pair)
        because(why, "no link of %s pairs with one of %s: their addresses are of different families", h->host,
                r->source);
}

unsigned admit(const struct host_facts *h, const struct admission_request *r, json_t *reasons, int *datastore)
{
    size_t before = json_array_size(reasons);

    *datastore = -1;
    if (!r->start && h->protocol != r->protocol) {
        because(reasons, "%s speaks version %u of the agents' protocol and %s version %u", h->host,
                h->protocol, r->source, r->protocol);
        return 1; /* what it says of the rest may mean something else */
    }
    judge_record(h, r, reasons);
    judge_qemu(h, r, reasons);
    admission_cpu(h, r, reasons);
    if (!r->start)
        judge_kernel(h, reasons);
    judge_parts(h, r, reasons);
    judge_memory(h, r, reasons);
    if (!r->start) {
        judge_limits(h, r, reasons);
        judge_links(h, r, reasons);
        if (r->storage)
            *datastore = judge_storage(h, r, reasons);
        else
            judge_shared(h, r, reasons);
    }
    return (unsigned)(json_array_size(reasons) - before);
}

void admit_note_block(const struct vm_disk *d, const char *vm, const char *where, unsigned block,
                      json_t *notes)
{
    if (d->block_size && d->block_size < block)
        because(
            notes,
            "disk '%s' of %s has blocks of %u bytes and %s has %u: it will go through the page cache there, "
            "which is slower",
            d->name, vm, d->block_size, where, block);
}

/* ---- what is attached by hand ---- */

static const char *const immovable[] = {"vfio",     "vhost-user",      "vhost-scsi",  "vhost-vsock",
                                        "usb-host", "hostdev",         "ivshmem",     "virtfs",
                                        "fsdev",    "tpm-passthrough", "host_device", NULL};

unsigned admit_extra(const struct vm_spec *s, json_t *reasons)
{
    size_t before = json_array_size(reasons);

    for (size_t i = 0; s->extra && s->extra[i]; i++) {
        const char *a = s->extra[i], *option = i ? s->extra[i - 1] : "";
        /* -global sets a property of devices that are there, ours (vhost-user-blk-pci) among them. */
        for (size_t j = 0; immovable[j] && strcmp(option, "-global") != 0; j++) {
            if (strstr(a, immovable[j])) {
                because(reasons, "'%s' attaches something of its host to %s that cannot move (%s)", a,
                        s->name, immovable[j]);
                break;
            }
        }
    }
    return (unsigned)(json_array_size(reasons) - before);
}
