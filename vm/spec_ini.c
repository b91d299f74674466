/* SPDX-License-Identifier: MIT */
/* A VM's specification as the user wrote it: the INI's sections and keys, into a struct vm_spec.
 *
 * The tables here are the format: what is not in them is refused with its line (base/ini.c), and the manual's
 * list of keys is compared with them (tests/man.sh). Values go to strings of their own first, and are checked
 * before they are put into the spec's short arrays.
 */
#include "vm/spec_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ini_disk {
    char name[32];
    char *path, *datastore, *file, *format;
    uint64_t size;
    unsigned queues, boot, block_size;
    bool read_only;
};

struct ini_cdrom {
    char name[32];
    char *path;
    unsigned boot;
};

struct ini_nic {
    char name[32];
    char *bridge, *mac, *tap;
};

struct ini_vm {
    char *name;
    uint64_t memory;
    unsigned vcpus;
    bool autostart;
    char *machine, *accel, *cpu, *kernel, *initrd, *append, *firmware, *nvram, *qemu, **extra;
    struct vm_devices devices;
    unsigned disks, nics, cdroms;
    struct ini_cdrom cdrom[VM_CDROMS_MAX];
    struct ini_disk disk[VM_DISKS_MAX];
    struct ini_nic nic[VM_NICS_MAX];
};

static void *open_disk(void *root, const char *name, struct xm_error *e)
{
    struct ini_vm *v = root;

    if (part_name_check("disk", name, e))
        return NULL;
    for (unsigned i = 0; i < v->disks; i++) {
        if (!strcmp(v->disk[i].name, name)) {
            xm_error_set(e, EINVAL, "the VM has another disk '%s'", name);
            return NULL;
        }
    }
    if (v->disks == VM_DISKS_MAX) {
        xm_error_set(e, EINVAL, "a VM has at most %d disks", VM_DISKS_MAX);
        return NULL;
    }
    struct ini_disk *d = &v->disk[v->disks++];
    snprintf(d->name, sizeof d->name, "%s", name);
    return d;
}

static void *open_nic(void *root, const char *name, struct xm_error *e)
{
    struct ini_vm *v = root;

    if (part_name_check("NIC", name, e))
        return NULL;
    for (unsigned i = 0; i < v->nics; i++) {
        if (!strcmp(v->nic[i].name, name)) {
            xm_error_set(e, EINVAL, "the VM has another NIC '%s'", name);
            return NULL;
        }
    }
    if (v->nics == VM_NICS_MAX) {
        xm_error_set(e, EINVAL, "a VM has at most %d NICs", VM_NICS_MAX);
        return NULL;
    }
    struct ini_nic *nic = &v->nic[v->nics++];
    snprintf(nic->name, sizeof nic->name, "%s", name);
    return nic;
}

static void *open_cdrom(void *root, const char *name, struct xm_error *e)
{
    struct ini_vm *v = root;

    if (part_name_check("CD-ROM", name, e))
        return NULL;
    for (unsigned i = 0; i < v->cdroms; i++) {
        if (!strcmp(v->cdrom[i].name, name)) {
            xm_error_set(e, EINVAL, "the VM has another CD-ROM '%s'", name);
            return NULL;
        }
    }
    if (v->cdroms == VM_CDROMS_MAX) {
        xm_error_set(e, EINVAL, "a VM has at most %d CD-ROMs", VM_CDROMS_MAX);
        return NULL;
    }
    struct ini_cdrom *c = &v->cdrom[v->cdroms++];
    snprintf(c->name, sizeof c->name, "%s", name);
    return c;
}

#define AT(field) .offset = offsetof(struct ini_vm, devices.field)
static const struct xm_ini_key vm_keys[] = {
    XM_INI_KEY(struct ini_vm, name, XM_INI_STRING, .required = true),
    XM_INI_KEY(struct ini_vm, memory, XM_INI_SIZE, .required = true),
    XM_INI_KEY(struct ini_vm, vcpus, XM_INI_UINT, .min = 1, .max = VCPUS_MAX),
    XM_INI_KEY(struct ini_vm, machine, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, accel, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, cpu, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, kernel, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, initrd, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, append, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, firmware, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, nvram, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, qemu, XM_INI_STRING),
    XM_INI_KEY(struct ini_vm, extra, XM_INI_STRINGS),
    {.name = "rng", .type = XM_INI_BOOL, AT(rng)},
    {.name = "balloon", .type = XM_INI_BOOL, AT(balloon)},
    {.name = "guest_agent", .type = XM_INI_BOOL, AT(guest_agent)},
    {.name = "tablet", .type = XM_INI_BOOL, AT(tablet)},
    {.name = "clock", .type = XM_INI_STRING, AT(clock)},
    {.name = "video", .type = XM_INI_STRING, AT(video)},
    {.name = "vnc", .type = XM_INI_STRING, AT(vnc)},
    {.name = "vnc_password", .type = XM_INI_STRING, AT(vnc_password)},
    {.name = "uuid", .type = XM_INI_STRING, AT(uuid)},
    {.name = "smbios_manufacturer", .type = XM_INI_STRING, AT(smbios_manufacturer)},
    {.name = "smbios_product", .type = XM_INI_STRING, AT(smbios_product)},
    {.name = "smbios_version", .type = XM_INI_STRING, AT(smbios_version)},
    {.name = "smbios_serial", .type = XM_INI_STRING, AT(smbios_serial)},
    {.name = "smbios_sku", .type = XM_INI_STRING, AT(smbios_sku)},
    {.name = "smbios_family", .type = XM_INI_STRING, AT(smbios_family)},
    XM_INI_KEY(struct ini_vm, autostart, XM_INI_BOOL),
    {.name = NULL},
};
static const struct xm_ini_key disk_keys[] = {
    XM_INI_KEY(struct ini_disk, path, XM_INI_STRING),
    XM_INI_KEY(struct ini_disk, datastore, XM_INI_STRING),
    XM_INI_KEY(struct ini_disk, file, XM_INI_STRING),
    XM_INI_KEY(struct ini_disk, size, XM_INI_SIZE),
    XM_INI_KEY(struct ini_disk, queues, XM_INI_UINT, .min = 1, .max = QUEUES_MAX),
    XM_INI_KEY(struct ini_disk, block_size, XM_INI_UINT, .min = 512, .max = 4096),
    XM_INI_KEY(struct ini_disk, format, XM_INI_STRING),
    XM_INI_KEY(struct ini_disk, read_only, XM_INI_BOOL),
    XM_INI_KEY(struct ini_disk, boot, XM_INI_UINT, .min = 1, .max = BOOT_MAX),
    {.name = NULL},
};
static const struct xm_ini_key cdrom_keys[] = {
    XM_INI_KEY(struct ini_cdrom, path, XM_INI_STRING, .required = true),
    XM_INI_KEY(struct ini_cdrom, boot, XM_INI_UINT, .min = 1, .max = BOOT_MAX),
    {.name = NULL},
};
static const struct xm_ini_key nic_keys[] = {
    XM_INI_KEY(struct ini_nic, bridge, XM_INI_STRING),
    XM_INI_KEY(struct ini_nic, mac, XM_INI_STRING),
    XM_INI_KEY(struct ini_nic, tap, XM_INI_STRING),
    {.name = NULL},
};
static const struct xm_ini_section sections[] = {
    {.name = "vm", .required = true, .keys = vm_keys},
    {.name = "disk", .named = true, .keys = disk_keys, .open = open_disk},
    {.name = "cdrom", .named = true, .keys = cdrom_keys, .open = open_cdrom},
    {.name = "nic", .named = true, .keys = nic_keys, .open = open_nic},
    {.name = NULL},
};

static int take_disk(struct vm_disk *d, struct ini_disk *in, const struct spec_where *w, struct xm_error *e)
{
    char section[48];

    snprintf(section, sizeof section, "disk %s", in->name);
    if (in->path && (in->datastore || in->file))
        return spec_bad(w, e, section, in->datastore ? "datastore" : "file",
                        "a disk has either 'path' or 'datastore' and 'file'");
    if (!in->path && !(in->datastore && in->file))
        return spec_bad(w, e, section, NULL, "a disk needs 'path', or 'datastore' and 'file'");
    if (in->datastore && strlen(in->datastore) >= sizeof d->datastore)
        return spec_bad(w, e, section, "datastore", "the datastore's name '%s' is too long", in->datastore);
    if (in->format && strcmp(in->format, "raw") != 0)
        return spec_bad(w, e, section, "format",
                        "format has to be raw, and is '%s': convert the image by qemu-img", in->format);
    if (in->block_size && in->block_size != 512 && in->block_size != 4096)
        return spec_bad(w, e, section, "block_size", "block_size has to be 512 or 4096, and is %u",
                        in->block_size);
    if (in->block_size && in->size % in->block_size)
        return spec_bad(w, e, section, "size", "the size has to be a multiple of block_size, %u",
                        in->block_size);
    snprintf(d->name, sizeof d->name, "%s", in->name);
    snprintf(d->datastore, sizeof d->datastore, "%s", in->datastore ? in->datastore : "");
    d->path = in->path ? in->path : in->file;
    in->path = in->file = NULL;
    d->size = in->size;
    d->queues = in->queues;
    d->block_size = in->block_size;
    d->raw = in->format;
    d->read_only = in->read_only;
    d->boot = in->boot;
    return 0;
}

static int take_nic(struct vm_nic *nic, const struct ini_nic *in, const struct spec_where *w,
                    struct xm_error *e)
{
    char section[48];

    snprintf(section, sizeof section, "nic %s", in->name);
    snprintf(nic->name, sizeof nic->name, "%s", in->name);
    if (in->bridge && !ifname_ok(in->bridge))
        return spec_bad(w, e, section, "bridge", "'%s' is no legal name of a bridge", in->bridge);
    if (in->tap && !ifname_ok(in->tap))
        return spec_bad(w, e, section, "tap", "'%s' is no legal name of a tap device", in->tap);
    if (in->mac && !mac_ok(in->mac))
        return spec_bad(w, e, section, "mac", "'%s' is no MAC address of one station, like 52:54:00:12:34:56",
                        in->mac);
    snprintf(nic->bridge, sizeof nic->bridge, "%s", in->bridge ? in->bridge : "");
    snprintf(nic->mac, sizeof nic->mac, "%s", in->mac ? in->mac : "");
    snprintf(nic->tap, sizeof nic->tap, "%s", in->tap ? in->tap : "");
    return 0;
}

static int take_ini(struct vm_spec *s, struct ini_vm *v, const struct spec_where *w, struct xm_error *e)
{
    struct xm_error why;

    if (vm_name_check(v->name, &why))
        return spec_bad(w, e, "vm", "name", "%s", why.text);
    snprintf(s->name, sizeof s->name, "%s", v->name);
    s->memory = v->memory;
    s->vcpus = v->vcpus;
    s->autostart = v->autostart;
#define TAKE(f) (s->f = v->f, v->f = NULL)
    TAKE(qemu), TAKE(machine), TAKE(accel), TAKE(cpu), TAKE(kernel), TAKE(initrd), TAKE(append),
        TAKE(firmware), TAKE(nvram), TAKE(extra);
#undef TAKE
    for (unsigned i = 0; i < v->disks; i++) {
        if (take_disk(&s->disk[i], &v->disk[i], w, e))
            return -EINVAL;
        s->disks = i + 1;
    }
    for (unsigned i = 0; i < v->nics; i++) {
        if (take_nic(&s->nic[i], &v->nic[i], w, e))
            return -EINVAL;
        s->nics = i + 1;
    }
    for (unsigned i = 0; i < v->cdroms; i++) {
        struct ini_cdrom *in = &v->cdrom[i];
        s->cdrom[i] = (struct vm_cdrom){.path = in->path, .boot = in->boot};
        snprintf(s->cdrom[i].name, sizeof s->cdrom[i].name, "%s", in->name);
        in->path = NULL;
        s->cdroms = i + 1;
    }
    s->devices = v->devices;
    memset(&v->devices, 0, sizeof v->devices);
    spec_set_defaults(s);
    return spec_check(s, w, e);
}

int vm_spec_load(struct vm_spec *s, const char *ini_path, struct xm_error *e)
{
    struct ini_vm *v = calloc(1, sizeof *v);

    if (!v)
        return xm_error_set(e, ENOMEM, "no memory to read '%s'", ini_path);
    int r = xm_ini_load(ini_path, sections, v, e);
    if (!r)
        r = take_ini(s, v, &(struct spec_where){ini_path}, e);
    for (unsigned i = 0; i < v->disks; i++)
        free(v->disk[i].path), free(v->disk[i].datastore), free(v->disk[i].file), free(v->disk[i].format);
    for (unsigned i = 0; i < v->nics; i++)
        free(v->nic[i].bridge), free(v->nic[i].mac), free(v->nic[i].tap);
    free(v->name), free(v->machine), free(v->accel), free(v->cpu), free(v->kernel), free(v->initrd),
        free(v->append);
    free(v->firmware), free(v->nvram), free(v->qemu), free_strings(v->extra);
    for (unsigned i = 0; i < v->cdroms; i++)
        free(v->cdrom[i].path);
    devices_free(&v->devices);
    free(v);
    return r;
}
