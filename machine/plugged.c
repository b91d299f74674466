/* SPDX-License-Identifier: MIT */
/* What was plugged into a running VM, or unplugged, by who speaks with its QEMU (by `extra`'s QMP, say) or by
 * its guest: QEMU's devices beside the arguments that it was started with. A destination makes the VM of the
 * same arguments. */
#include "machine/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASK_TIMEOUT (2 * XM_NS_PER_S)

struct devices {
    json_t *named;      /* ids, as an object's keys */
    unsigned anonymous; /* without an id */
};

/* "driver,id=NAME,...", "id=NAME,driver=..." or a JSON object. */
static void take_device(struct devices *d, const char *word)
{
    json_t *o = word[0] == '{' ? json_loads(word, 0, NULL) : NULL;
    const char *at = strncmp(word, "id=", 3) ? strstr(word, ",id=") : word;
    char id[128] = "";

    if (o)
        snprintf(id, sizeof id, "%s", xm_json_str(o, "id", ""));
    else if (at)
        snprintf(id, sizeof id, "%.*s", (int)strcspn(strchr(at, '=') + 1, ","), strchr(at, '=') + 1);
    json_decref(o);
    if (id[0])
        json_object_set_new(d->named, id, json_true());
    else
        d->anonymous++;
}

/* *certain: no other option makes devices. */
static int started_with(pid_t pid, struct devices *d, bool *certain, struct xm_error *e)
{
    char *path = xm_printf("/proc/%d/cmdline", pid), *text = NULL;
    size_t len = 0;
    int r = xm_file_read(path, 1 << 20, &text, &len, e);

    *certain = true;
    for (const char *w = text, *before = ""; !r && w < text + len; before = w, w += strlen(w) + 1) {
        if (!strcmp(before, "-device") || !strcmp(before, "--device"))
            take_device(d, w);
        if (!strcmp(w, "-readconfig") || !strcmp(w, "--readconfig"))
            r = xm_error_set(e, ENOTSUP, "it has devices by -readconfig");
        *certain = *certain && !strstr(w, "if=virtio") && !strstr(w, "-virtfs") && !strstr(w, "-watchdog");
    }
    free(text);
    free(path);
    return r;
}

static json_t *children(struct qmp *q, const char *path, struct xm_error *e)
{
    return qmp_call(q, "qom-list", json_pack("{s:s}", "path", path), ASK_TIMEOUT, e);
}

/* "child<virtio-rng-pci>" -> its kind; false: no device. */
static bool kind_of(const json_t *property, char kind[64])
{
    return sscanf(xm_json_str(property, "type", ""), "child<%63[^>]", kind) == 1;
}

static int compare(struct qmp *q, struct devices *d, bool certain, json_t *more, json_t *less,
                   struct xm_error *e)
{
    json_t *named = children(q, "/machine/peripheral", e), *anonymous = NULL, *v;
    unsigned count = 0;
    char kind[64];
    const char *id;
    size_t i;

    if (!named || !(anonymous = children(q, "/machine/peripheral-anon", e))) {
        json_decref(named);
        return -EIO;
    }
    json_array_foreach (named, i, v) {
        const char *name = xm_json_str(v, "name", "");
        if (kind_of(v, kind) && json_object_del(d->named, name) < 0)
            json_array_append_new(more, json_sprintf("%s (%s)", name, kind));
    }
    json_array_foreach (anonymous, i, v) {
        if (kind_of(v, kind) && ++count > d->anonymous && certain)
            json_array_append_new(more, json_sprintf("one without a name (%s)", kind));
    }
    json_object_foreach (d->named, id, v)
        json_array_append_new(less, json_string(id));
    json_decref(named);
    json_decref(anonymous);
    return 0;
}

int machine_plugged(struct machine *vm, json_t *more, json_t *less, struct xm_error *e)
{
    struct devices d = {.named = json_object()};
    bool certain;
    int r = started_with(vm->qemu.pid, &d, &certain, e);

    if (!r)
        r = compare(&vm->qemu.qmp, &d, certain, more, less, e);
    json_decref(d.named);
    return r;
}

int machine_none_plugged(struct machine *vm, const char *destination, struct xm_error *e)
{
    json_t *more = json_array(), *less = json_array();
    struct xm_error unknown = {0};
    int r = 0;

    if (machine_plugged(vm, more, less, &unknown) == 0 && json_array_size(more))
        r = xm_error_set(e, EBUSY,
                         "device %s was plugged into VM %s while it was being moved, and %s would make it "
                         "without: unplug it first",
                         json_string_value(json_array_get(more, 0)), vm->spec.name, destination);
    json_decref(more);
    json_decref(less);
    return r;
}
