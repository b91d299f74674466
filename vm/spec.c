/* SPDX-License-Identifier: MIT */
/* A VM's specification: its defaults, and what it has to be held to, wherever it came from.
 *
 * Both ways in (vm_ini.c, vm_json.c) end in spec_check(), so that what a peer sends is held to all that the
 * user's file is held to. Where a rule is broken the sentence begins with file and line for an INI
 * (base/iniline.h finds the line again by section and key), and with the key's name alone for JSON. Nothing
 * here looks at the host: whether files and bridges exist is the agent's question.
 */
#include "vm/spec_inside.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MEMORY_GRAIN (2ull << 20)
#define MEMORY_MAX   (64ull << 40)

/* Words that the command line reads as something else than a VM. */
static const char *const verbs[] = {"start",    "stop",     "list",      "show",   "check", "move",
                                    "define",   "jobs",     "watch",     "set",    "abort", "recover",
                                    "evacuate", "undefine", "rebalance", "report", "help",  "version",
                                    "dump",     "edit",     "console",   "log",    NULL};

int vm_name_check(const char *name, struct xm_error *e)
{
    size_t n = strlen(name);

    if (!n)
        return xm_error_set(e, EINVAL, "a VM needs a name");
    if (n > VM_NAME_MAX)
        return xm_error_set(e, EINVAL, "the VM's name '%.20s…' is longer than %d characters", name,
                            VM_NAME_MAX);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        if (!(isascii(c) && isalnum(c)) && (!i || !strchr("._-", c)))
            return xm_error_set(
                e, EINVAL,
                "'%s' is no legal VM name: letters, digits, '.', '_' and '-', the first a letter or digit",
                name);
    }
    for (size_t i = 0; verbs[i]; i++) {
        if (!strcmp(name, verbs[i]))
            return xm_error_set(e, EINVAL, "'%s' cannot name a VM: it is a command of xmigrate", name);
    }
    return 0;
}

int part_name_check(const char *kind, const char *name, struct xm_error *e)
{
    size_t n = strlen(name);

    if (!n || n > 20 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return xm_error_set(e, EINVAL, "'%.40s' is no legal name of a %s: 1 to 20 of a-z, 0-9 and '-'", name,
                            kind);
    return 0;
}

/* ---- defaults ---- */

void spec_tap_name(const struct vm_spec *s, unsigned nic, char name[16])
{
    uint64_t h = XXH3_64bits_withSeed(s->name, strlen(s->name), nic);

    snprintf(name, 16, "xm%08x.%u", (unsigned)(h >> 32), nic & 0xf);
}

static void make_up_nic(const struct vm_spec *s, unsigned i)
{
    struct vm_nic *nic = (struct vm_nic *)&s->nic[i];
    uint64_t h = XXH3_64bits_withSeed(s->name, strlen(s->name), i);

    /* Both depend on name and number alone, so that they are the same wherever the VM is started. */
    if (!nic->mac[0])
        snprintf(nic->mac, sizeof nic->mac, "52:54:00:%02x:%02x:%02x", (unsigned)(h & 0xff),
                 (unsigned)(h >> 8 & 0xff), (unsigned)(h >> 16 & 0xff));
    if (!nic->tap[0])
        spec_tap_name(s, i, nic->tap);
}

void spec_set_defaults(struct vm_spec *s)
{
    if (!s->vcpus)
        s->vcpus = 1;
    if (!s->qemu)
        s->qemu = xm_printf(VM_QEMU);
    if (!s->machine)
        s->machine = xm_printf("q35");
    for (unsigned i = 0; i < s->disks; i++) {
        if (!s->disk[i].queues)
            s->disk[i].queues = XM_MIN(s->vcpus, 4);
    }
    for (unsigned i = 0; i < s->nics; i++)
        make_up_nic(s, i);
}

/* ---- checks ---- */

int spec_bad(const struct spec_where *w, struct xm_error *e, const char *section, const char *key,
             const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (w->ini)
        return xm_error_set(e, EINVAL, "%s:%u: %s", w->ini, xm_ini_line(w->ini, section, key), text);
    return xm_error_set(e, EINVAL, "%s: %s", section, text);
}

bool mac_ok(const char *m)
{
    for (int i = 0; i < 17; i++) {
        if (i % 3 == 2 ? m[i] != ':' : !isxdigit((unsigned char)m[i]))
            return false;
    }
    return !m[17] && !(strtoul((char[]){m[0], m[1], 0}, NULL, 16) & 1);
}

bool ifname_ok(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++) {
        if (!isgraph((unsigned char)s[i]) || strchr("/:,", s[i]))
            return false;
    }
    return n && n < 16 && strcmp(s, ".") && strcmp(s, "..");
}

static int check_disk(const struct vm_spec *s, unsigned i, const struct spec_where *w, struct xm_error *e)
{
    const struct vm_disk *d = &s->disk[i];
    char section[48];
    struct xm_error why;

    snprintf(section, sizeof section, "disk %s", d->name);
    if (part_name_check("disk", d->name, &why))
        return spec_bad(w, e, section, NULL, "%s", why.text);
    if (!d->path || !d->path[0])
        return spec_bad(w, e, section, NULL, "a disk needs 'path', or 'datastore' and 'file'");
    /* Only an INI may leave the path open, as a file in a datastore: the agent makes it whole. */
    bool in_datastore = w->ini && d->datastore[0];
    if (!in_datastore && d->path[0] != '/')
        return spec_bad(w, e, section, "path", "the path '%s' has to begin with /", d->path);
    if (in_datastore && (strchr(d->path, '/') || d->path[0] == '.'))
        return spec_bad(w, e, section, "file",
                        "'%s' is no legal file name in a datastore: no '/', and no '.' in front", d->path);
    if (d->size % 512 || (!d->size && !w->ini))
        return spec_bad(w, e, section, "size", "the size %" PRIu64 " is no multiple of 512 bytes", d->size);
    if (d->queues > QUEUES_MAX)
        return spec_bad(w, e, section, "queues", "%u queues are more than %d", d->queues, QUEUES_MAX);
    for (unsigned j = 0; j < i; j++) {
        if (!strcmp(s->disk[j].name, d->name))
            return spec_bad(w, e, section, NULL, "the VM has another disk of this name");
        if (!strcmp(s->disk[j].path, d->path) && !strcmp(s->disk[j].datastore, d->datastore))
            return spec_bad(w, e, section, NULL, "'%s' is disk '%s' already", d->path, s->disk[j].name);
    }
    return 0;
}

static int check_nic(const struct vm_spec *s, unsigned i, const struct spec_where *w, struct xm_error *e)
{
    const struct vm_nic *nic = &s->nic[i];
    char section[48];
    struct xm_error why;

    snprintf(section, sizeof section, "nic %s", nic->name);
    if (part_name_check("NIC", nic->name, &why))
        return spec_bad(w, e, section, NULL, "%s", why.text);
    if (nic->bridge[0] && !ifname_ok(nic->bridge))
        return spec_bad(w, e, section, "bridge", "'%s' is no legal name of a bridge", nic->bridge);
    if (!ifname_ok(nic->tap))
        return spec_bad(w, e, section, "tap", "'%s' is no legal name of a tap device", nic->tap);
    if (!mac_ok(nic->mac))
        return spec_bad(w, e, section, "mac", "'%s' is no MAC address of one station, like 52:54:00:12:34:56",
                        nic->mac);
    for (unsigned j = 0; j < i; j++) {
        if (!strcmp(s->nic[j].name, nic->name))
            return spec_bad(w, e, section, NULL, "the VM has another NIC of this name");
        if (!strcasecmp(s->nic[j].mac, nic->mac))
            return spec_bad(w, e, section, "mac", "NIC '%s' has this MAC address already", s->nic[j].name);
    }
    return 0;
}

static bool one_of(const char *value, const char *word)
{
    size_t n = strlen(word);
    return !strncmp(value, word, n) && (!value[n] || value[n] == ',');
}

int spec_check(const struct vm_spec *s, const struct spec_where *w, struct xm_error *e)
{
    struct xm_error why;

    if (vm_name_check(s->name, &why))
        return spec_bad(w, e, "vm", "name", "%s", why.text);
    if (!s->memory || s->memory % MEMORY_GRAIN || s->memory > MEMORY_MAX)
        return spec_bad(w, e, "vm", "memory",
                        "memory has to be a multiple of 2 MiB, from 2 MiB to 64 TiB, and is %" PRIu64
                        " bytes",
                        s->memory);
    if (s->vcpus > VCPUS_MAX)
        return spec_bad(w, e, "vm", "vcpus", "%u vCPUs are more than %d", s->vcpus, VCPUS_MAX);
    if (!s->qemu[0] || (strchr(s->qemu, '/') && s->qemu[0] != '/'))
        return spec_bad(w, e, "vm", "qemu", "qemu has to be a program's name or its whole path, and is '%s'",
                        s->qemu);
    if (strstr(s->machine, "memory-backend"))
        return spec_bad(
            w, e, "vm", "machine",
            "machine '%s' names a memory-backend of its own; xmigrate makes the guest's memory itself",
            s->machine);
    if (s->accel && !one_of(s->accel, "kvm") && !one_of(s->accel, "tcg"))
        return spec_bad(w, e, "vm", "accel", "accel has to be kvm or tcg, and is '%s'", s->accel);
    if ((s->initrd || s->append) && !s->kernel)
        return spec_bad(w, e, "vm", s->initrd ? "initrd" : "append", "%s needs a kernel beside it",
                        s->initrd ? "initrd" : "append");
    if (s->nvram && !s->firmware)
        return spec_bad(w, e, "vm", "nvram", "nvram needs a firmware beside it");
    if (spec_check_words(s, w, e) || spec_check_devices(s, w, e))
        return -EINVAL;
    for (unsigned i = 0; i < s->disks; i++) {
        if (check_disk(s, i, w, e))
            return -EINVAL;
    }
    for (unsigned i = 0; i < s->nics; i++) {
        if (check_nic(s, i, w, e))
            return -EINVAL;
    }
    return 0;
}

/* ---- its end ---- */

void free_strings(char **list)
{
    for (size_t i = 0; list && list[i]; i++)
        free(list[i]);
    free(list);
}

void vm_spec_free(struct vm_spec *s)
{
    free(s->qemu), free(s->machine), free(s->accel), free(s->cpu), free(s->kernel), free(s->initrd),
        free(s->append);
    free(s->firmware), free(s->nvram), free_strings(s->extra);
    for (unsigned i = 0; i < s->disks; i++)
        free(s->disk[i].path);
    for (unsigned i = 0; i < s->cdroms; i++)
        free(s->cdrom[i].path);
    devices_free(&s->devices);
    memset(s, 0, sizeof *s);
}
