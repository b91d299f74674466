/* SPDX-License-Identifier: MIT */
/* A VM's specification as agents and shims pass it on: JSON, both ways.
 *
 * What comes in may be from a peer: keys, types, lengths and signs are looked at in each object before
 * anything is taken from it, and the whole is then checked as a user's file is (spec_check).
 */
#include "vm/spec_inside.h"

#include <stdlib.h>
#include <string.h>

#define EXTRA_MAX 64
#define TEXT_MAX  4096

/* Every key that may be there, and of which type (JSON_TRUE: either boolean); one that is not listed is
 * refused: it would mean something to its sender. */
struct json_key {
    const char *name;
    json_type type;
    bool required;
};
static const struct json_key vm_json[] = {
    {"name", JSON_STRING, true},     {"memory", JSON_INTEGER, true},   {"vcpus", JSON_INTEGER, true},
    {"qemu", JSON_STRING, true},     {"machine", JSON_STRING, true},   {"accel", JSON_STRING, false},
    {"cpu", JSON_STRING, false},     {"kernel", JSON_STRING, false},   {"initrd", JSON_STRING, false},
    {"append", JSON_STRING, false},  {"firmware", JSON_STRING, false}, {"extra", JSON_ARRAY, false},
    {"disks", JSON_ARRAY, true},     {"nics", JSON_ARRAY, true},       {"cdroms", JSON_ARRAY, false},
    {"devices", JSON_OBJECT, false}, {"nvram", JSON_STRING, false},    {"autostart", JSON_TRUE, false},
    {NULL, JSON_NULL, false},
};
static const struct json_key disk_json[] = {
    {"name", JSON_STRING, true},      {"path", JSON_STRING, true},         {"size", JSON_INTEGER, true},
    {"datastore", JSON_STRING, true}, {"queues", JSON_INTEGER, true},      {"read_only", JSON_TRUE, false},
    {"boot", JSON_INTEGER, false},    {"block_size", JSON_INTEGER, false}, {NULL, JSON_NULL, false},
};
static const struct json_key cdrom_json[] = {
    {"name", JSON_STRING, true},
    {"path", JSON_STRING, true},
    {"boot", JSON_INTEGER, false},
    {NULL, JSON_NULL, false},
};
static const struct json_key nic_json[] = {
    {"name", JSON_STRING, true}, {"bridge", JSON_STRING, true}, {"mac", JSON_STRING, true},
    {"tap", JSON_STRING, true},  {NULL, JSON_NULL, false},
};

static int json_check(const json_t *o, const struct json_key *keys, const char *what, struct xm_error *e)
{
    const char *name;
    json_t *value;

    if (!json_is_object(o))
        return xm_error_set(e, EINVAL, "%s: no JSON object", what);
    for (const struct json_key *k = keys; k->name; k++) {
        if (k->required && !json_object_get(o, k->name))
            return xm_error_set(e, EINVAL, "%s: '%s' is missing", what, k->name);
    }
    json_object_foreach ((json_t *)o, name, value) {
        const struct json_key *k = keys;
        while (k->name && strcmp(k->name, name))
            k++;
        if (!k->name)
            return xm_error_set(e, EINVAL, "%s: unknown key '%.40s'", what, name);
        if (json_typeof(value) != k->type && !(k->type == JSON_TRUE && json_is_false(value)))
            return xm_error_set(e, EINVAL, "%s: '%s' is of the wrong type", what, name);
        if (k->type == JSON_STRING && strlen(json_string_value(value)) >= TEXT_MAX)
            return xm_error_set(e, EINVAL, "%s: '%s' is longer than %d bytes", what, name, TEXT_MAX);
        if (k->type == JSON_INTEGER && json_integer_value(value) < 0)
            return xm_error_set(e, EINVAL, "%s: '%s' is negative", what, name);
    }
    return 0;
}

static char *dup_string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? xm_printf("%s", s) : NULL;
}

/* Into an array in the spec; what does not fit is refused, not cut. */
static int put_string(char *to, size_t size, const json_t *o, const char *key, const char *what,
                      struct xm_error *e)
{
    const char *s = json_string_value(json_object_get(o, key));

    if (strlen(s) >= size)
        return xm_error_set(e, EINVAL, "%s: '%s' is longer than %zu bytes", what, key, size - 1);
    memcpy(to, s, strlen(s) + 1);
    return 0;
}

static int put_unsigned(unsigned *to, const json_t *o, const char *key, unsigned max, const char *what,
                        struct xm_error *e)
{
    json_int_t n = json_integer_value(json_object_get(o, key));

    if (n > max)
        return xm_error_set(e, EINVAL, "%s: '%s' is more than %u", what, key, max);
    *to = (unsigned)n;
    return 0;
}

static int take_extra(struct vm_spec *s, const json_t *list, struct xm_error *e)
{
    size_t n = json_array_size(list), i;
    json_t *v;

    if (n > EXTRA_MAX)
        return xm_error_set(e, EINVAL, "vm: more than %d extra arguments", EXTRA_MAX);
    if (!n)
        return 0;
    s->extra = calloc(n + 1, sizeof *s->extra);
    if (!s->extra)
        return xm_error_set(e, ENOMEM, "no memory for a VM's specification");
    json_array_foreach ((json_t *)list, i, v) {
        if (!json_is_string(v) || strlen(json_string_value(v)) >= TEXT_MAX)
            return xm_error_set(e, EINVAL, "vm: extra argument %zu is no string, or too long", i + 1);
        s->extra[i] = xm_printf("%s", json_string_value(v));
    }
    return 0;
}

static int take_json_disk(struct vm_disk *d, const json_t *o, struct xm_error *e)
{
    int r = json_check(o, disk_json, "disk", e);

    if (!r)
        r = put_string(d->name, sizeof d->name, o, "name", "disk", e);
    if (!r)
        r = put_string(d->datastore, sizeof d->datastore, o, "datastore", "disk", e);
    if (!r)
        r = put_unsigned(&d->queues, o, "queues", QUEUES_MAX, "disk", e);
    if (!r)
        r = put_unsigned(&d->boot, o, "boot", BOOT_MAX, "disk", e);
    if (!r)
        r = put_unsigned(&d->block_size, o, "block_size", 4096, "disk", e);
    if (!r && d->block_size && d->block_size != 512 && d->block_size != 4096)
        r = xm_error_set(e, EINVAL, "disk: block_size: neither 512 nor 4096");
    if (r)
        return r;
    d->size = (uint64_t)json_integer_value(json_object_get(o, "size"));
    d->raw = true; /* JSON is what a start has been judged by, and is kept for the next */
    d->read_only = json_is_true(json_object_get(o, "read_only"));
    d->path = dup_string(o, "path");
    return 0;
}

static int take_json_nic(struct vm_nic *nic, const json_t *o, struct xm_error *e)
{
    int r = json_check(o, nic_json, "nic", e);

    if (!r)
        r = put_string(nic->name, sizeof nic->name, o, "name", "nic", e);
    if (!r)
        r = put_string(nic->bridge, sizeof nic->bridge, o, "bridge", "nic", e);
    if (!r)
        r = put_string(nic->mac, sizeof nic->mac, o, "mac", "nic", e);
    if (!r)
        r = put_string(nic->tap, sizeof nic->tap, o, "tap", "nic", e);
    return r;
}

static int take_cdroms(struct vm_spec *s, const json_t *list, struct xm_error *e)
{
    if (json_array_size(list) > VM_CDROMS_MAX)
        return xm_error_set(e, EINVAL, "vm: more than %d CD-ROMs", VM_CDROMS_MAX);
    for (unsigned i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        struct vm_cdrom *c = &s->cdrom[i];
        int r = json_check(o, cdrom_json, "cdrom", e);
        if (!r)
            r = put_string(c->name, sizeof c->name, o, "name", "cdrom", e);
        if (!r)
            r = put_unsigned(&c->boot, o, "boot", BOOT_MAX, "cdrom", e);
        if (r)
            return r;
        c->path = dup_string(o, "path");
        s->cdroms = i + 1;
    }
    return 0;
}

static int take_json(struct vm_spec *s, const json_t *o, struct xm_error *e)
{
    const json_t *disks = json_object_get(o, "disks"), *nics = json_object_get(o, "nics");
    int r = put_string(s->name, sizeof s->name, o, "name", "vm", e);

    if (!r)
        r = put_unsigned(&s->vcpus, o, "vcpus", VCPUS_MAX, "vm", e);
    if (r)
        return r;
    s->memory = (uint64_t)json_integer_value(json_object_get(o, "memory"));
    s->qemu = dup_string(o, "qemu");
    s->machine = dup_string(o, "machine");
    s->accel = dup_string(o, "accel");
    s->cpu = dup_string(o, "cpu");
    s->kernel = dup_string(o, "kernel");
    s->initrd = dup_string(o, "initrd");
    s->append = dup_string(o, "append");
    s->firmware = dup_string(o, "firmware");
    s->nvram = dup_string(o, "nvram");
    s->autostart = json_is_true(json_object_get(o, "autostart")); /* only there when it is so */
    r = take_extra(s, json_object_get(o, "extra"), e);
    if (r)
        return r;
    if (json_array_size(disks) > VM_DISKS_MAX)
        return xm_error_set(e, EINVAL, "vm: more than %d disks", VM_DISKS_MAX);
    if (json_array_size(nics) > VM_NICS_MAX)
        return xm_error_set(e, EINVAL, "vm: more than %d NICs", VM_NICS_MAX);
    for (size_t i = 0; i < json_array_size(disks); i++) {
        s->disks = (unsigned)i + 1; /* before it is filled: vm_spec_free frees what is there */
        r = take_json_disk(&s->disk[i], json_array_get(disks, i), e);
        if (r)
            return r;
    }
    for (size_t i = 0; i < json_array_size(nics); i++) {
        r = take_json_nic(&s->nic[i], json_array_get(nics, i), e);
        if (r)
            return r;
        s->nics = (unsigned)i + 1;
    }
    r = take_cdroms(s, json_object_get(o, "cdroms"), e);
    if (!r)
        r = devices_from_json(&s->devices, json_object_get(o, "devices"), e);
    if (r)
        return r;
    spec_set_defaults(s);
    return spec_check(s, &(struct spec_where){NULL}, e);
}

int vm_spec_from_json(struct vm_spec *s, const json_t *o, struct xm_error *e)
{
    int r = json_check(o, vm_json, "vm", e);
    return r ? r : take_json(s, o, e);
}

/* A peer of an earlier version refuses a key that it does not know: what was not given is not there. */
static json_t *disk_to_json(const struct vm_disk *d)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:s, s:i}", "name", d->name, "path", d->path, "size",
                          (json_int_t)d->size, "datastore", d->datastore, "queues", (int)d->queues);

    if (d->read_only)
        json_object_set_new(o, "read_only", json_true());
    if (d->boot)
        json_object_set_new(o, "boot", json_integer(d->boot));
    if (d->block_size)
        json_object_set_new(o, "block_size", json_integer(d->block_size));
    return o;
}

static json_t *cdroms_to_json(const struct vm_spec *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->cdroms; i++) {
        const struct vm_cdrom *c = &s->cdrom[i];
        json_t *o = json_pack("{s:s, s:s}", "name", c->name, "path", c->path);
        if (c->boot)
            json_object_set_new(o, "boot", json_integer(c->boot));
        json_array_append_new(list, o);
    }
    return list;
}

json_t *vm_spec_to_json(const struct vm_spec *s)
{
    json_t *disks = json_array(), *nics = json_array();

    for (unsigned i = 0; i < s->disks; i++) {
        json_array_append_new(disks, disk_to_json(&s->disk[i]));
    }
    for (unsigned i = 0; i < s->nics; i++) {
        const struct vm_nic *n = &s->nic[i];
        json_array_append_new(nics, json_pack("{s:s, s:s, s:s, s:s}", "name", n->name, "bridge", n->bridge,
                                              "mac", n->mac, "tap", n->tap));
    }
    json_t *o =
        json_pack("{s:s, s:I, s:i, s:s, s:s, s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:o, s:o}", "name", s->name,
                  "memory", (json_int_t)s->memory, "vcpus", (int)s->vcpus, "qemu", s->qemu, "machine",
                  s->machine, "accel", s->accel, "cpu", s->cpu, "kernel", s->kernel, "initrd", s->initrd,
                  "append", s->append, "firmware", s->firmware, "disks", disks, "nics", nics);
    if (o && s->autostart)
        json_object_set_new(o, "autostart", json_true());
    if (o && s->extra) {
        json_t *extra = json_array();
        for (size_t i = 0; s->extra[i]; i++)
            json_array_append_new(extra, json_string(s->extra[i]));
        json_object_set_new(o, "extra", extra);
    }
    if (o && s->nvram)
        json_object_set_new(o, "nvram", json_string(s->nvram));
    json_t *devices = devices_to_json(&s->devices);
    if (o && devices)
        json_object_set(o, "devices", devices);
    json_decref(devices);
    if (o && s->cdroms)
        json_object_set_new(o, "cdroms", cdroms_to_json(s));
    return o;
}
