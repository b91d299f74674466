/* SPDX-License-Identifier: MIT */
/* The devices of a VM that are said by one key each: what may be said of them, and their JSON.
 *
 * Two tables name them all; INI (spec_ini.c) and JSON have the same names. None of them names anything of a
 * host, so a peer may send all of them, held to what is checked here.
 */
#include "vm/spec_inside.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PASSWORD_MAX 8 /* VNC's own */
#define SMBIOS_MAX   256

struct part {
    const char *name;
    size_t offset;
};
#define PART(field)                                                                                          \
    {                                                                                                        \
#field, offsetof(struct vm_devices, field)                                                           \
    }
static const struct part flags[] = {PART(rng), PART(balloon), PART(guest_agent), PART(tablet), {NULL, 0}};
static const struct part texts[] = {PART(clock),          PART(video),          PART(vnc),
                                    PART(vnc_password),   PART(uuid),           PART(smbios_manufacturer),
                                    PART(smbios_product), PART(smbios_version), PART(smbios_serial),
                                    PART(smbios_sku),     PART(smbios_family),  {NULL, 0}};

static bool *flag(const struct vm_devices *d, const struct part *p)
{
    return (bool *)((char *)d + p->offset);
}

static char **text(const struct vm_devices *d, const struct part *p)
{
    return (char **)((char *)d + p->offset);
}

static const struct part *find(const struct part *list, const char *name)
{
    for (; list->name; list++) {
        if (!strcmp(list->name, name))
            return list;
    }
    return NULL;
}

/* ---- JSON ---- */

int devices_from_json(struct vm_devices *d, const json_t *o, struct xm_error *e)
{
    const struct part *p;
    const char *name;
    json_t *v;

    json_object_foreach ((json_t *)o, name, v) {
        if ((p = find(flags, name))) {
            if (!json_is_boolean(v))
                return xm_error_set(e, EINVAL, "devices: '%s' is neither true nor false", name);
            *flag(d, p) = json_is_true(v);
        } else if ((p = find(texts, name))) {
            if (!json_is_string(v))
                return xm_error_set(e, EINVAL, "devices: '%s' is no text", name);
            free(*text(d, p));
            *text(d, p) = xm_printf("%s", json_string_value(v));
        } else {
            return xm_error_set(e, EINVAL, "devices: unknown key '%.40s'", name);
        }
    }
    return 0;
}

json_t *devices_to_json(const struct vm_devices *d)
{
    json_t *o = json_object();

    for (const struct part *p = flags; p->name; p++) {
        if (*flag(d, p))
            json_object_set_new(o, p->name, json_true());
    }
    for (const struct part *p = texts; p->name; p++) {
        if (*text(d, p))
            json_object_set_new(o, p->name, json_string(*text(d, p)));
    }
    if (json_object_size(o))
        return o;
    json_decref(o);
    return NULL;
}

void devices_free(struct vm_devices *d)
{
    for (const struct part *p = texts; p->name; p++)
        free(*text(d, p));
    memset(d, 0, sizeof *d);
}

/* ---- checks ---- */

static bool uuid_ok(const char *u)
{
    static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    for (size_t i = 0; i < sizeof form; i++) {
        if (form[i] == 'x' ? !isxdigit((unsigned char)u[i]) : u[i] != form[i])
            return false;
    }
    return true;
}

static bool is_display(const char *vnc)
{
    return spec_only(vnc, "0123456789") && strlen(vnc) <= 3;
}

static int check_vnc(const struct vm_devices *d, const struct spec_where *w, struct xm_error *e)
{
    bool display = d->vnc && is_display(d->vnc);

    if (d->vnc && !display && strcmp(d->vnc, "unix") != 0)
        return spec_bad(w, e, "vm", "vnc", "vnc has to be unix or a display's number, 0 to 999, and is '%s'",
                        d->vnc);
    if (display && !d->vnc_password)
        return spec_bad(w, e, "vm", "vnc", "vnc = %s needs a vnc_password beside it; vnc = unix does not",
                        d->vnc);
    if (d->vnc_password && !display)
        return spec_bad(w, e, "vm", "vnc_password", "vnc_password needs vnc = NUMBER beside it");
    if (d->vnc_password &&
        (!spec_only(d->vnc_password, SPEC_ALNUM "._+@~:=!?*/-") || strlen(d->vnc_password) > PASSWORD_MAX))
        return spec_bad(w, e, "vm", "vnc_password",
                        "vnc_password has 1 to %d letters, digits and ._+@~:=!?*/- (VNC has no longer ones)",
                        PASSWORD_MAX);
    return 0;
}

static int check_smbios(const struct vm_devices *d, const struct spec_where *w, struct xm_error *e)
{
    for (const struct part *p = texts; p->name; p++) {
        const char *value = *text(d, p);
        if (!value || strncmp(p->name, "smbios_", 7) != 0)
            continue;
        if (!spec_only(value, SPEC_ALNUM " ._+@~:;=!?*/#&%()-") || strlen(value) > SMBIOS_MAX)
            return spec_bad(w, e, "vm", p->name,
                            "%s has at most %d letters, digits, blanks and ._+@~:;=!?*/#&%%()-: no comma",
                            p->name, SMBIOS_MAX);
    }
    return 0;
}

static int check_cdrom(const struct vm_spec *s, unsigned i, const struct spec_where *w, struct xm_error *e)
{
    const struct vm_cdrom *c = &s->cdrom[i];
    char section[48];
    struct xm_error why;

    snprintf(section, sizeof section, "cdrom %s", c->name);
    if (part_name_check("CD-ROM", c->name, &why))
        return spec_bad(w, e, section, NULL, "%s", why.text);
    if (!c->path || !spec_path_ok(c->path))
        return spec_bad(w, e, section, "path",
                        "the path '%s' has to begin with / and to have letters, digits and /._+@~:=- alone",
                        c->path ? c->path : "");
    for (unsigned j = 0; j < i; j++) {
        if (!strcmp(s->cdrom[j].name, c->name))
            return spec_bad(w, e, section, NULL, "the VM has another CD-ROM of this name");
    }
    return 0;
}

/* The firmware's order, of disks and CD-ROMs together: QEMU refuses a place that is taken. */
static int check_boot(const struct vm_spec *s, const struct spec_where *w, struct xm_error *e)
{
    bool taken[BOOT_MAX + 1] = {false};
    char section[48];

    for (unsigned i = 0; i < s->disks + s->cdroms; i++) {
        bool cd = i >= s->disks;
        unsigned boot = cd ? s->cdrom[i - s->disks].boot : s->disk[i].boot;
        if (boot <= BOOT_MAX && (!boot || !taken[boot])) {
            taken[boot] = true;
            continue;
        }
        snprintf(section, sizeof section, "%s %s", cd ? "cdrom" : "disk",
                 cd ? s->cdrom[i - s->disks].name : s->disk[i].name);
        return spec_bad(w, e, section, "boot", "boot = %u is another one's, or more than %d", boot, BOOT_MAX);
    }
    return 0;
}

int spec_check_devices(const struct vm_spec *s, const struct spec_where *w, struct xm_error *e)
{
    const struct vm_devices *d = &s->devices;

    if (d->clock && strcmp(d->clock, "utc") != 0 && strcmp(d->clock, "localtime") != 0)
        return spec_bad(w, e, "vm", "clock", "clock has to be utc or localtime, and is '%s'", d->clock);
    if (d->video && strcmp(d->video, "std") != 0 && strcmp(d->video, "virtio") != 0)
        return spec_bad(w, e, "vm", "video", "video has to be std or virtio, and is '%s'", d->video);
    if (d->uuid && !uuid_ok(d->uuid))
        return spec_bad(w, e, "vm", "uuid", "'%s' is no UUID, like 123e4567-e89b-12d3-a456-426614174000",
                        d->uuid);
    if (check_vnc(d, w, e) || check_smbios(d, w, e))
        return -EINVAL;
    for (unsigned i = 0; i < s->cdroms; i++) {
        if (check_cdrom(s, i, w, e))
            return -EINVAL;
    }
    return check_boot(s, w, e);
}
