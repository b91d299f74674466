/* SPDX-License-Identifier: MIT */
/* A VM's specification as an INI that vm_spec_load takes again: what `xmigrate dump` prints and `edit` edits.
 *
 * Everything that the guest can see is written out, defaults too (MAC addresses, queues): a specification
 * that is edited elsewhere does not change them. A tap's name is written only when it was chosen: it is this
 * host's business, and a VM made of this text under another name gets one of its own.
 *
 * INI has no quotes: a value that would be read otherwise than it is (a line's end, a blank at either end, a
 * comment in it) cannot be written, and is refused. No INI has brought such a value; a peer may have.
 */
#include "vm/spec_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ini_text {
    FILE *f;
    const char *section;
    struct xm_error *e;
    int err;
};

static bool ini_can_hold(const char *value)
{
    size_t n = strlen(value);

    if (!n || n > 8000 || strchr(" \t;#", value[0]) || strchr(" \t", value[n - 1]))
        return false;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)value[i] < ' ' || (value[i] == ';' && value[i - 1] == ' '))
            return false;
    }
    return true;
}

static void put_section(struct ini_text *t, const char *kind, const char *name)
{
    fprintf(t->f, name ? "\n[%s %s]\n" : "[%s]\n", kind, name);
    t->section = kind;
}

static void put_value(struct ini_text *t, const char *key, const char *value)
{
    if (!value || t->err)
        return;
    if (!ini_can_hold(value))
        t->err = xm_error_set(t->e, EINVAL, "[%s] %s: its value cannot be written in an INI: %.60s",
                              t->section, key, value);
    fprintf(t->f, "%s = %s\n", key, value);
}

static void put_number(struct ini_text *t, const char *key, uint64_t n)
{
    fprintf(t->f, "%s = %llu\n", key, (unsigned long long)n);
}

static void put_yes(struct ini_text *t, const char *key, bool yes)
{
    put_value(t, key, yes ? "yes" : NULL);
}

/* In the largest unit that divides it. */
static void put_size(struct ini_text *t, const char *key, uint64_t bytes)
{
    static const char units[] = "KMGT";
    int u = -1;

    while (bytes && bytes % 1024 == 0 && u < 3) {
        bytes /= 1024;
        u++;
    }
    fprintf(t->f, u < 0 ? "%s = %llu\n" : "%s = %llu%c\n", key, (unsigned long long)bytes,
            u < 0 ? 0 : units[u]);
}

static void put_disk(struct ini_text *t, const struct vm_disk *d)
{
    put_section(t, "disk", d->name);
    if (strchr(d->path, '/')) {
        put_value(t, "path", d->path);
    } else {
        put_value(t, "datastore", d->datastore);
        put_value(t, "file", d->path);
    }
    if (d->size)
        put_size(t, "size", d->size);
    if (d->queues)
        put_number(t, "queues", d->queues);
    if (d->block_size)
        put_number(t, "block_size", d->block_size);
    put_value(t, "format", d->raw ? "raw" : NULL);
    put_yes(t, "read_only", d->read_only);
    if (d->boot)
        put_number(t, "boot", d->boot);
}

static void put_cdrom(struct ini_text *t, const struct vm_cdrom *c)
{
    put_section(t, "cdrom", c->name);
    put_value(t, "path", c->path);
    if (c->boot)
        put_number(t, "boot", c->boot);
}

static void put_devices(struct ini_text *t, const struct vm_devices *d)
{
    put_yes(t, "rng", d->rng);
    put_yes(t, "balloon", d->balloon);
    put_yes(t, "guest_agent", d->guest_agent);
    put_yes(t, "tablet", d->tablet);
    put_value(t, "clock", d->clock);
    put_value(t, "video", d->video);
    put_value(t, "vnc", d->vnc);
    put_value(t, "vnc_password", d->vnc_password);
    put_value(t, "uuid", d->uuid);
    put_value(t, "smbios_manufacturer", d->smbios_manufacturer);
    put_value(t, "smbios_product", d->smbios_product);
    put_value(t, "smbios_version", d->smbios_version);
    put_value(t, "smbios_serial", d->smbios_serial);
    put_value(t, "smbios_sku", d->smbios_sku);
    put_value(t, "smbios_family", d->smbios_family);
}

static void put_nic(struct ini_text *t, const struct vm_spec *s, unsigned i)
{
    const struct vm_nic *n = &s->nic[i];
    char made_up[16];

    put_section(t, "nic", n->name);
    put_value(t, "bridge", n->bridge[0] ? n->bridge : NULL);
    put_value(t, "mac", n->mac);
    spec_tap_name(s, i, made_up);
    put_value(t, "tap", strcmp(n->tap, made_up) != 0 ? n->tap : NULL);
}

char *vm_spec_to_ini(const struct vm_spec *s, struct xm_error *e)
{
    char *text = NULL;
    size_t len;
    struct ini_text t = {.f = open_memstream(&text, &len), .e = e};

    if (!t.f) {
        xm_error_set(e, ENOMEM, "no memory");
        return NULL;
    }
    put_section(&t, "vm", NULL);
    put_value(&t, "name", s->name);
    put_size(&t, "memory", s->memory);
    put_number(&t, "vcpus", s->vcpus);
    put_value(&t, "machine", s->machine);
    put_value(&t, "accel", s->accel);
    put_value(&t, "cpu", s->cpu);
    put_value(&t, "kernel", s->kernel);
    put_value(&t, "initrd", s->initrd);
    put_value(&t, "append", s->append);
    put_value(&t, "firmware", s->firmware);
    put_value(&t, "nvram", s->nvram);
    put_value(&t, "qemu", s->qemu);
    for (size_t i = 0; s->extra && s->extra[i]; i++)
        put_value(&t, "extra", s->extra[i]);
    put_yes(&t, "autostart", s->autostart);
    put_devices(&t, &s->devices);
    for (unsigned i = 0; i < s->disks; i++)
        put_disk(&t, &s->disk[i]);
    for (unsigned i = 0; i < s->cdroms; i++)
        put_cdrom(&t, &s->cdrom[i]);
    for (unsigned i = 0; i < s->nics; i++)
        put_nic(&t, s, i);
    if (fclose(t.f) && !t.err)
        t.err = xm_error_set(e, ENOMEM, "no memory");
    if (t.err) {
        free(text);
        return NULL;
    }
    return text;
}
