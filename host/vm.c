/* A VM's specification: read from the user's INI or from another agent's JSON, completed with defaults,
 * checked.
 *
 * Both ways end in spec_check(), so that what a peer sends is held to all that the user's file is held to.
 * Where a rule is broken the sentence begins with file and line for an INI (host/iniline.h finds the line
 * again by section and key), and with the key's name alone for JSON. Nothing here looks at the host: whether
 * files and bridges exist is the agent's question.
 */
#include "host/vm.h"
#include "host/iniline.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MEMORY_GRAIN (2ull << 20)
#define MEMORY_MAX   (64ull << 40)
#define VCPUS_MAX    1024
#define QUEUES_MAX   16
#define EXTRA_MAX    64
#define TEXT_MAX     4096

/* Words that the command line reads as something else than a VM. */
static const char *const verbs[] = {"start",     "stop",   "list", "show",    "check",   "move",
                                    "jobs",      "watch",  "set",  "abort",   "recover", "evacuate",
                                    "rebalance", "report", "help", "version", NULL};

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

/* Disks and NICs are named in paths, QEMU ids and device serials. */
static int part_name_check(const char *kind, const char *name, struct xm_error *e)
{
    size_t n = strlen(name);

    if (!n || n > 20 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return xm_error_set(e, EINVAL, "'%.40s' is no legal name of a %s: 1 to 20 of a-z, 0-9 and '-'", name,
                            kind);
    return 0;
}

/* ---- defaults ---- */

static void make_up_nic(const struct vm_spec *s, unsigned i)
{
    struct vm_nic *nic = (struct vm_nic *)&s->nic[i];
    uint64_t h = XXH3_64bits_withSeed(s->name, strlen(s->name), i);

    /* Both depend on name and number alone, so that they are the same wherever the VM is started. */
    if (!nic->mac[0])
        snprintf(nic->mac, sizeof nic->mac, "52:54:00:%02x:%02x:%02x", (unsigned)(h & 0xff),
                 (unsigned)(h >> 8 & 0xff), (unsigned)(h >> 16 & 0xff));
    if (!nic->tap[0])
        snprintf(nic->tap, sizeof nic->tap, "xm%08x.%u", (unsigned)(h >> 32), i & 0xf);
}

static void set_defaults(struct vm_spec *s)
{
    if (!s->vcpus)
        s->vcpus = 1;
    if (!s->qemu)
        s->qemu = xm_printf("qemu-system-x86_64");
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

/* Where a value came from, for the sentence. */
struct where {
    const char *ini; /* NULL: JSON */
};

static int bad(const struct where *w, struct xm_error *e, const char *section, const char *key,
               const char *fmt, ...) __attribute__((format(printf, 5, 6)));
static int bad(const struct where *w, struct xm_error *e, const char *section, const char *key,
               const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (w->ini)
        return xm_error_set(e, EINVAL, "%s:%u: %s", w->ini, ini_line(w->ini, section, key), text);
    return xm_error_set(e, EINVAL, "%s: %s", section, text);
}

static bool mac_ok(const char *m)
{
    for (int i = 0; i < 17; i++) {
        if (i % 3 == 2 ? m[i] != ':' : !isxdigit((unsigned char)m[i]))
            return false;
    }
    return !m[17] && !(strtoul((char[]){m[0], m[1], 0}, NULL, 16) & 1);
}

static bool ifname_ok(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++) {
        if (!isgraph((unsigned char)s[i]) || strchr("/:,", s[i]))
            return false;
    }
    return n && n < 16 && strcmp(s, ".") && strcmp(s, "..");
}

static int check_disk(const struct vm_spec *s, unsigned i, const struct where *w, struct xm_error *e)
{
    const struct vm_disk *d = &s->disk[i];
    char section[48];
    struct xm_error why;

    snprintf(section, sizeof section, "disk %s", d->name);
    if (part_name_check("disk", d->name, &why))
        return bad(w, e, section, NULL, "%s", why.text);
    if (!d->path || !d->path[0])
        return bad(w, e, section, NULL, "a disk needs 'path', or 'datastore' and 'file'");
    /* Only an INI may leave the path open, as a file in a datastore: the agent makes it whole. */
    bool in_datastore = w->ini && d->datastore[0];
    if (!in_datastore && d->path[0] != '/')
        return bad(w, e, section, "path", "the path '%s' has to begin with /", d->path);
    if (in_datastore && (strchr(d->path, '/') || d->path[0] == '.'))
        return bad(w, e, section, "file",
                   "'%s' is no legal file name in a datastore: no '/', and no '.' in front", d->path);
    if (d->size % 512 || (!d->size && !w->ini))
        return bad(w, e, section, "size", "the size %" PRIu64 " is no multiple of 512 bytes", d->size);
    if (d->queues > QUEUES_MAX)
        return bad(w, e, section, "queues", "%u queues are more than %d", d->queues, QUEUES_MAX);
    for (unsigned j = 0; j < i; j++) {
        if (!strcmp(s->disk[j].name, d->name))
            return bad(w, e, section, NULL, "the VM has another disk of this name");
        if (!strcmp(s->disk[j].path, d->path) && !strcmp(s->disk[j].datastore, d->datastore))
            return bad(w, e, section, NULL, "'%s' is disk '%s' already", d->path, s->disk[j].name);
    }
    return 0;
}

static int check_nic(const struct vm_spec *s, unsigned i, const struct where *w, struct xm_error *e)
{
    const struct vm_nic *nic = &s->nic[i];
    char section[48];
    struct xm_error why;

    snprintf(section, sizeof section, "nic %s", nic->name);
    if (part_name_check("NIC", nic->name, &why))
        return bad(w, e, section, NULL, "%s", why.text);
    if (nic->bridge[0] && !ifname_ok(nic->bridge))
        return bad(w, e, section, "bridge", "'%s' is no legal name of a bridge", nic->bridge);
    if (!ifname_ok(nic->tap))
        return bad(w, e, section, "tap", "'%s' is no legal name of a tap device", nic->tap);
    if (!mac_ok(nic->mac))
        return bad(w, e, section, "mac", "'%s' is no MAC address of one station, like 52:54:00:12:34:56",
                   nic->mac);
    for (unsigned j = 0; j < i; j++) {
        if (!strcmp(s->nic[j].name, nic->name))
            return bad(w, e, section, NULL, "the VM has another NIC of this name");
        if (!strcasecmp(s->nic[j].mac, nic->mac))
            return bad(w, e, section, "mac", "NIC '%s' has this MAC address already", s->nic[j].name);
    }
    return 0;
}

static int check_file(const char *key, const char *path, const struct where *w, struct xm_error *e)
{
    if (path && path[0] != '/')
        return bad(w, e, "vm", key, "%s: the path '%s' has to begin with /", key, path);
    return 0;
}

static bool one_of(const char *value, const char *word)
{
    size_t n = strlen(word);
    return !strncmp(value, word, n) && (!value[n] || value[n] == ',');
}

static int spec_check(const struct vm_spec *s, const struct where *w, struct xm_error *e)
{
    struct xm_error why;

    if (vm_name_check(s->name, &why))
        return bad(w, e, "vm", "name", "%s", why.text);
    if (!s->memory || s->memory % MEMORY_GRAIN || s->memory > MEMORY_MAX)
        return bad(w, e, "vm", "memory",
                   "memory has to be a multiple of 2 MiB, from 2 MiB to 64 TiB, and is %" PRIu64 " bytes",
                   s->memory);
    if (s->vcpus > VCPUS_MAX)
        return bad(w, e, "vm", "vcpus", "%u vCPUs are more than %d", s->vcpus, VCPUS_MAX);
    if (!s->qemu[0] || (strchr(s->qemu, '/') && s->qemu[0] != '/'))
        return bad(w, e, "vm", "qemu", "qemu has to be a program's name or its whole path, and is '%s'",
                   s->qemu);
    if (strstr(s->machine, "memory-backend"))
        return bad(w, e, "vm", "machine",
                   "machine '%s' names a memory-backend of its own; xmigrate makes the guest's memory itself",
                   s->machine);
    if (s->accel && !one_of(s->accel, "kvm") && !one_of(s->accel, "tcg"))
        return bad(w, e, "vm", "accel", "accel has to be kvm or tcg, and is '%s'", s->accel);
    if ((s->initrd || s->append) && !s->kernel)
        return bad(w, e, "vm", s->initrd ? "initrd" : "append", "%s needs a kernel beside it",
                   s->initrd ? "initrd" : "append");
    if (check_file("kernel", s->kernel, w, e) || check_file("initrd", s->initrd, w, e) ||
        check_file("firmware", s->firmware, w, e))
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

/* ---- INI ---- */

struct ini_disk {
    char name[32];
    char *path, *datastore, *file;
    uint64_t size;
    unsigned queues;
};

struct ini_nic {
    char name[32];
    char *bridge, *mac, *tap;
};

struct ini_vm {
    char *name;
    uint64_t memory;
    unsigned vcpus;
    char *machine, *accel, *cpu, *kernel, *initrd, *append, *firmware, *qemu, **extra;
    unsigned disks, nics;
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

static const struct xm_ini_key vm_keys[] = {
    INI_KEY(struct ini_vm, name, XM_INI_STRING, .required = true),
    INI_KEY(struct ini_vm, memory, XM_INI_SIZE, .required = true),
    INI_KEY(struct ini_vm, vcpus, XM_INI_UINT, .min = 1, .max = VCPUS_MAX),
    INI_KEY(struct ini_vm, machine, XM_INI_STRING),
    INI_KEY(struct ini_vm, accel, XM_INI_STRING),
    INI_KEY(struct ini_vm, cpu, XM_INI_STRING),
    INI_KEY(struct ini_vm, kernel, XM_INI_STRING),
    INI_KEY(struct ini_vm, initrd, XM_INI_STRING),
    INI_KEY(struct ini_vm, append, XM_INI_STRING),
    INI_KEY(struct ini_vm, firmware, XM_INI_STRING),
    INI_KEY(struct ini_vm, qemu, XM_INI_STRING),
    INI_KEY(struct ini_vm, extra, XM_INI_STRINGS),
    {.name = NULL},
};
static const struct xm_ini_key disk_keys[] = {
    INI_KEY(struct ini_disk, path, XM_INI_STRING),
    INI_KEY(struct ini_disk, datastore, XM_INI_STRING),
    INI_KEY(struct ini_disk, file, XM_INI_STRING),
    INI_KEY(struct ini_disk, size, XM_INI_SIZE),
    INI_KEY(struct ini_disk, queues, XM_INI_UINT, .min = 1, .max = QUEUES_MAX),
    {.name = NULL},
};
static const struct xm_ini_key nic_keys[] = {
    INI_KEY(struct ini_nic, bridge, XM_INI_STRING),
    INI_KEY(struct ini_nic, mac, XM_INI_STRING),
    INI_KEY(struct ini_nic, tap, XM_INI_STRING),
    {.name = NULL},
};
static const struct xm_ini_section sections[] = {
    {.name = "vm", .required = true, .keys = vm_keys},
    {.name = "disk", .named = true, .keys = disk_keys, .open = open_disk},
    {.name = "nic", .named = true, .keys = nic_keys, .open = open_nic},
    {.name = NULL},
};

static int take_disk(struct vm_disk *d, struct ini_disk *in, const struct where *w, struct xm_error *e)
{
    char section[48];

    snprintf(section, sizeof section, "disk %s", in->name);
    if (in->path && (in->datastore || in->file))
        return bad(w, e, section, in->datastore ? "datastore" : "file",
                   "a disk has either 'path' or 'datastore' and 'file'");
    if (!in->path && !(in->datastore && in->file))
        return bad(w, e, section, NULL, "a disk needs 'path', or 'datastore' and 'file'");
    if (in->datastore && strlen(in->datastore) >= sizeof d->datastore)
        return bad(w, e, section, "datastore", "the datastore's name '%s' is too long", in->datastore);
    snprintf(d->name, sizeof d->name, "%s", in->name);
    snprintf(d->datastore, sizeof d->datastore, "%s", in->datastore ? in->datastore : "");
    d->path = in->path ? in->path : in->file;
    in->path = in->file = NULL;
    d->size = in->size;
    d->queues = in->queues;
    return 0;
}

static int take_nic(struct vm_nic *nic, const struct ini_nic *in, const struct where *w, struct xm_error *e)
{
    char section[48];

    snprintf(section, sizeof section, "nic %s", in->name);
    snprintf(nic->name, sizeof nic->name, "%s", in->name);
    if (in->bridge && !ifname_ok(in->bridge))
        return bad(w, e, section, "bridge", "'%s' is no legal name of a bridge", in->bridge);
    if (in->tap && !ifname_ok(in->tap))
        return bad(w, e, section, "tap", "'%s' is no legal name of a tap device", in->tap);
    if (in->mac && !mac_ok(in->mac))
        return bad(w, e, section, "mac", "'%s' is no MAC address of one station, like 52:54:00:12:34:56",
                   in->mac);
    snprintf(nic->bridge, sizeof nic->bridge, "%s", in->bridge ? in->bridge : "");
    snprintf(nic->mac, sizeof nic->mac, "%s", in->mac ? in->mac : "");
    snprintf(nic->tap, sizeof nic->tap, "%s", in->tap ? in->tap : "");
    return 0;
}

static int take_ini(struct vm_spec *s, struct ini_vm *v, const struct where *w, struct xm_error *e)
{
    struct xm_error why;

    if (vm_name_check(v->name, &why))
        return bad(w, e, "vm", "name", "%s", why.text);
    snprintf(s->name, sizeof s->name, "%s", v->name);
    s->memory = v->memory;
    s->vcpus = v->vcpus;
#define TAKE(f) (s->f = v->f, v->f = NULL)
    TAKE(qemu), TAKE(machine), TAKE(accel), TAKE(cpu), TAKE(kernel), TAKE(initrd), TAKE(append),
        TAKE(firmware), TAKE(extra);
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
    set_defaults(s);
    return spec_check(s, w, e);
}

static void free_strings(char **list)
{
    for (size_t i = 0; list && list[i]; i++)
        free(list[i]);
    free(list);
}

int vm_spec_load(struct vm_spec *s, const char *ini_path, struct xm_error *e)
{
    struct ini_vm *v = calloc(1, sizeof *v);

    if (!v)
        return xm_error_set(e, ENOMEM, "no memory to read '%s'", ini_path);
    int r = xm_ini_load(ini_path, sections, v, e);
    if (!r)
        r = take_ini(s, v, &(struct where){ini_path}, e);
    for (unsigned i = 0; i < v->disks; i++)
        free(v->disk[i].path), free(v->disk[i].datastore), free(v->disk[i].file);
    for (unsigned i = 0; i < v->nics; i++)
        free(v->nic[i].bridge), free(v->nic[i].mac), free(v->nic[i].tap);
    free(v->name), free(v->machine), free(v->accel), free(v->cpu), free(v->kernel), free(v->initrd),
        free(v->append);
    free(v->firmware), free(v->qemu), free_strings(v->extra);
    free(v);
    return r;
}

/* ---- JSON ---- */

/* Every key that may be there, and of which type; one that is not listed is refused: it would mean something
 * to its sender. */
struct json_key {
    const char *name;
    json_type type;
    bool required;
};
static const struct json_key vm_json[] = {
    {"name", JSON_STRING, true},    {"memory", JSON_INTEGER, true},   {"vcpus", JSON_INTEGER, true},
    {"qemu", JSON_STRING, true},    {"machine", JSON_STRING, true},   {"accel", JSON_STRING, false},
    {"cpu", JSON_STRING, false},    {"kernel", JSON_STRING, false},   {"initrd", JSON_STRING, false},
    {"append", JSON_STRING, false}, {"firmware", JSON_STRING, false}, {"extra", JSON_ARRAY, false},
    {"disks", JSON_ARRAY, true},    {"nics", JSON_ARRAY, true},       {NULL, JSON_NULL, false},
};
static const struct json_key disk_json[] = {
    {"name", JSON_STRING, true},      {"path", JSON_STRING, true},    {"size", JSON_INTEGER, true},
    {"datastore", JSON_STRING, true}, {"queues", JSON_INTEGER, true}, {NULL, JSON_NULL, false},
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
        if (json_typeof(value) != k->type)
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
    if (r)
        return r;
    d->size = (uint64_t)json_integer_value(json_object_get(o, "size"));
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
    set_defaults(s);
    return spec_check(s, &(struct where){NULL}, e);
}

int vm_spec_from_json(struct vm_spec *s, const json_t *o, struct xm_error *e)
{
    int r = json_check(o, vm_json, "vm", e);
    return r ? r : take_json(s, o, e);
}

json_t *vm_spec_to_json(const struct vm_spec *s)
{
    json_t *disks = json_array(), *nics = json_array();

    for (unsigned i = 0; i < s->disks; i++) {
        const struct vm_disk *d = &s->disk[i];
        json_array_append_new(disks, json_pack("{s:s, s:s, s:I, s:s, s:i}", "name", d->name, "path", d->path,
                                               "size", (json_int_t)d->size, "datastore", d->datastore,
                                               "queues", (int)d->queues));
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
    if (o && s->extra) {
        json_t *extra = json_array();
        for (size_t i = 0; s->extra[i]; i++)
            json_array_append_new(extra, json_string(s->extra[i]));
        json_object_set_new(o, "extra", extra);
    }
    return o;
}

void vm_spec_free(struct vm_spec *s)
{
    free(s->qemu), free(s->machine), free(s->accel), free(s->cpu), free(s->kernel), free(s->initrd),
        free(s->append);
    free(s->firmware), free_strings(s->extra);
    for (unsigned i = 0; i < s->disks; i++)
        free(s->disk[i].path);
    memset(s, 0, sizeof *s);
}
