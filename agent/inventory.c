/* SPDX-License-Identifier: MIT */
/* The inventory; inventory.h says what it is. */
#include "agent/inventory.h"
#include "agent/known.h"
#include "agent/storage.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOPS 8 /* how often a VM is followed from one host to the next */

/* ---- reading ---- */

int inventory_read(struct agent *a, const char *name, struct inventory_vm *v)
{
    char *dir = vm_state_path(a, name, NULL), *path = vm_state_path(a, name, "spec.json");
    struct vm_spec check = {0};
    int r = -ENOENT;

    memset(v, 0, sizeof *v);
    if (!vm_name_check(name, NULL)) {
        snprintf(v->name, sizeof v->name, "%s", name);
        r = owner_load(dir, name, &v->rec, &v->damage);
        if (r && r != -ENOENT)
            r = 0; /* there is something, and v->damage says what is wrong with it */
        else
            v->damage.code = 0;
    }
    if (!r) {
        struct xm_error e = {0};
        v->spec = read_json(path, &e);
        if (v->spec && (vm_spec_from_json(&check, v->spec, &e) < 0 || strcmp(check.name, name) != 0)) {
            json_decref(v->spec);
            v->spec = NULL;
            if (!e.code)
                xm_error_set(&e, EINVAL, "it is that of a VM '%s'", check.name);
            xm_error_prefix(&e, "%s", path);
        }
        if (!v->spec && !v->damage.code)
            v->damage = e;
        if (life_load(dir, &v->life, &e) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s", name, e.text);
        vm_spec_free(&check);
    }
    free(path);
    free(dir);
    return r;
}

void inventory_free(struct inventory_vm *v)
{
    json_decref(v->spec);
    v->spec = NULL;
}

int inventory_mend(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL), *path = vm_state_path(a, name, "spec.json");
    struct journal j;
    json_t *spec, *d;
    size_t i;
    int r = journal_read(dir, &j, e);

    if (!r && j.side == JOURNAL_STORAGE) {
        spec = read_json(path, NULL); /* who reads it then says what is wrong with it */
        json_array_foreach (json_object_get(spec, "disks"), i, d) {
            if (!r)
                r = storage_hangs(xm_json_str(d, "path", ""), e);
        }
        if (!r && spec && !vm_process(a, name, "shim.pid"))
            r = journal_mend(dir, e);
        json_decref(spec);
    }
    journal_free(&j);
    free(path);
    free(dir);
    return r;
}

bool inventory_owns(const struct inventory_vm *v)
{
    return owner_may_run(&v->rec) || v->rec.owner == OWNER_PROMISED ||
           (v->rec.owner == OWNER_NONE && v->damage.code);
}

static int by_name(const void *x, const void *y)
{
    return strcmp(*(char *const *)x, *(char *const *)y);
}

json_t *inventory_names(struct agent *a)
{
    char *path = xm_printf("%s/vms", a->conf.state_dir), **name = NULL;
    json_t *names = json_array();
    size_t n = 0;
    DIR *d = opendir(path);

    free(path);
    for (struct dirent *f; d && (f = readdir(d));) {
        char **more = vm_name_check(f->d_name, NULL) ? NULL : realloc(name, (n + 1) * sizeof *name);
        if (!more)
            continue;
        name = more;
        name[n++] = xm_printf("%s", f->d_name);
    }
    if (d)
        closedir(d);
    if (n)
        qsort(name, n, sizeof *name, by_name);
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(names, json_string(name[i]));
        free(name[i]);
    }
    free(name);
    return names;
}

/* ---- a VM that was given away ---- */

char *inventory_whereabouts(struct agent *a, const char *name, const struct owner_record *ours,
                            enum whereabouts *is)
{
    struct owner_record rec = *ours;
    enum whereabouts ignored = WHERE_UNKNOWN;

    is = is ? is : &ignored;
    *is = WHERE_UNKNOWN;
    if (rec.owner == OWNER_PROMISED)
        return xm_printf("%s may have given it to %s (epoch %llu): `xmigrate recover %s`", rec.from,
                         a->conf.name, (unsigned long long)rec.epoch, name);
    for (int hop = 0; hop < HOPS && strcmp(rec.to, a->conf.name) != 0; hop++) {
        const struct conf_peer *p = config_peer(&a->conf, rec.to);
        struct xm_error e = {0};
        struct known k = {0};
        if (!p)
            xm_error_set(&e, ENOENT, "%s has no [peer %s]", a->conf.name, rec.to);
        if (!p || known_there_soon(a, p, name, &k, &e) < 0)
            return xm_printf("%s gave it to %s (epoch %llu), and where it is now cannot be asked: %s%s%s%s",
                             a->conf.name, ours->to, (unsigned long long)ours->epoch, e.text,
                             ours->settled ? "" : "; see `xmigrate recover ", ours->settled ? "" : name,
                             ours->settled ? "" : "`");
        if (k.rec.owner == OWNER_MINE && k.rec.epoch >= rec.epoch) {
            *is = WHERE_OWNED;
            return xm_printf("it is %s's (epoch %llu)", p->name, (unsigned long long)k.rec.epoch);
        }
        if (k.rec.owner == OWNER_NONE && ours->settled) {
            *is = WHERE_NOWHERE;
            return xm_printf("%s gave it to %s (epoch %llu), and %s has no record of it any more",
                             a->conf.name, ours->to, (unsigned long long)ours->epoch, p->name);
        }
        if (k.rec.owner != OWNER_GIVEN || k.rec.epoch <= rec.epoch)
            return xm_printf(
                "%s gave it to %s (epoch %llu), whose record does not say that yet: `xmigrate recover %s`",
                a->conf.name, p->name, (unsigned long long)rec.epoch, name);
        rec = k.rec;
    }
    return xm_printf("%s gave it to %s (epoch %llu)", a->conf.name, ours->to,
                     (unsigned long long)ours->epoch);
}

/* ---- contradictions ---- */

static bool same_file(const char *x, const char *y)
{
    struct stat s, t;

    if (!strcmp(x, y))
        return true;
    /* One that answers and one whose storage hangs are not the same. */
    if (storage_stat(x, &s) || storage_stat(y, &t))
        return false;
    if (S_ISBLK(s.st_mode) && S_ISBLK(t.st_mode))
        return s.st_rdev == t.st_rdev;
    return s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

const json_t *inventory_disk(const json_t *spec, const char *name)
{
    const json_t *d;
    size_t i;

    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        if (!strcmp(xm_json_str(d, "name", ""), name))
            return d;
    }
    return NULL;
}

static int contradicts_itself(struct agent *a, const struct vm_spec *s, const json_t *known,
                              struct xm_error *e)
{
    for (unsigned i = 0; i < s->disks; i++) {
        const struct vm_disk *d = &s->disk[i];
        const json_t *k = inventory_disk(known, d->name);
        const char *path = xm_json_str(k, "path", "");
        uint64_t size = (uint64_t)xm_json_int(k, "size", 0);
        if (k && !same_file(path, d->path))
            return xm_error_set(
                e, EEXIST,
                "disk '%s' of VM %s is %s in the specification, and %s in the record of %s; `xmigrate start "
                "%s` starts it as recorded. If the specification is right: `xmigrate undefine %s` first",
                d->name, s->name, d->path, path, a->conf.name, s->name, s->name);
        if (k && d->size > size && disk_file_size(d->path) != d->size)
            return xm_error_set(
                e, EEXIST,
                "disk '%s' of VM %s (%s) has %llu bytes in the specification, and %llu in the record of %s. "
                "To make it larger, make its file larger first",
                d->name, s->name, path, (unsigned long long)d->size, (unsigned long long)size, a->conf.name);
        if (k && d->size && d->size < size)
            return xm_error_set(
                e, EEXIST,
                "disk '%s' of VM %s (%s) has %llu bytes in the specification, and %llu in the record of %s. "
                "If the specification is right: `xmigrate undefine %s` first",
                d->name, s->name, path, (unsigned long long)d->size, (unsigned long long)size, a->conf.name,
                s->name);
    }
    return 0;
}

static int contradicts_other(const struct vm_spec *s, const char *vm, const json_t *spec, const char *how,
                             struct xm_error *e)
{
    const json_t *k;
    size_t i;

    json_array_foreach (json_object_get(spec, "disks"), i, k) {
        for (unsigned j = 0; j < s->disks; j++) {
            const char *path = xm_json_str(k, "path", "");
            if (same_file(path, s->disk[j].path))
                return xm_error_set(e, EEXIST, "disk '%s' of VM %s: %s is disk '%s' of VM %s (%s), which %s",
                                    s->disk[j].name, s->name, s->disk[j].path, xm_json_str(k, "name", ""), vm,
                                    path, how);
        }
    }
    return 0;
}

/* An old record's disks went, or are a copy that belongs to no VM. One that is open may be handed back, and
 * then they are the VM's. */
static bool counts(const struct inventory_vm *v)
{
    return inventory_owns(v) || verdict_open(&v->rec);
}

int inventory_names_file(struct agent *a, const char *vm, const char *path, struct xm_error *e)
{
    struct inventory_vm v;
    bool named = false;
    json_t *d;
    size_t i;
    int r = 0;

    if (inventory_read(a, vm, &v) < 0)
        return 0;
    json_array_foreach (json_object_get(v.spec, "disks"), i, d)
        named |= same_file(xm_json_str(d, "path", ""), path);
    if (named && v.rec.owner == OWNER_NONE)
        r = xm_error_set(e, EAGAIN, "whose VM %s is is not known: %s", vm, v.damage.text);
    else if (counts(&v) && !v.spec)
        r = xm_error_set(e, EIO, "what VM %s has is not known: %s", vm, v.damage.text);
    else
        r = named && counts(&v);
    inventory_free(&v);
    return r;
}

/* Those on their way here have disks, too, and no record yet. */
static json_t *expected_specs(struct agent *a)
{
    json_t *list = json_array();
    struct vm *vm;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (vm->incoming)
            json_array_append_new(list, json_pack("{s:s, s:O}", "name", vm->name, "spec", vm->spec));
    }
    agent_unlock(a);
    return list;
}

static int contradiction(struct agent *a, const struct vm_spec *s, bool itself, struct xm_error *e)
{
    json_t *names = inventory_names(a), *expected = expected_specs(a), *v;
    size_t i;
    int r = 0;

    json_array_foreach (names, i, v) {
        struct inventory_vm k;
        const char *name = json_string_value(v);
        if (r || inventory_read(a, name, &k))
            continue;
        if (!counts(&k))
            r = 0;
        else if (!strcmp(name, s->name))
            r = itself ? contradicts_itself(a, s, k.spec, e) : 0;
        else
            r = contradicts_other(s, name, k.spec, "the inventory has", e);
        inventory_free(&k);
    }
    json_array_foreach (expected, i, v) {
        const char *name = xm_json_str(v, "name", "");
        if (!r && strcmp(name, s->name) != 0)
            r = contradicts_other(s, name, json_object_get(v, "spec"), "is on its way here", e);
    }
    json_decref(names);
    json_decref(expected);
    return r;
}

int inventory_contradiction(struct agent *a, const struct vm_spec *s, struct xm_error *e)
{
    return contradiction(a, s, true, e);
}

int inventory_taken(struct agent *a, const struct vm_spec *s, struct xm_error *e)
{
    return contradiction(a, s, false, e);
}

/* ---- epochs of names; forgetting ---- */

static char *epochs_path(const struct agent *a)
{
    return xm_printf("%s/epochs.json", a->conf.state_dir);
}

/* NULL with a sentence when it is there and cannot be read. */
static json_t *epochs_read(struct agent *a, struct xm_error *e)
{
    char *path = epochs_path(a);
    struct xm_error why = {0};
    json_t *o = access(path, F_OK) < 0 && errno == ENOENT ? json_object() : read_json(path, &why);

    if (!o)
        *e = why;
    free(path);
    return o;
}

int inventory_first_epoch(struct agent *a, const char *name, uint64_t *epoch, struct xm_error *e)
{
    json_t *o = epochs_read(a, e);

    if (!o)
        return -EINVAL;
    *epoch = (uint64_t)XM_MAX(xm_json_int(o, name, 0), 0) + 1;
    json_decref(o);
    return 0;
}

/* The record goes before the rest: without it the rest means nothing, and a record without a spec would be a
 * VM that is damaged. But a journal without a record is that of a migration which came to nothing, and its
 * files are deleted: here they are the VM's disks. */
int inventory_remove(struct agent *a, const char *name, uint64_t epoch, struct xm_error *e)
{
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    char *dir = vm_state_path(a, name, NULL), *record = vm_state_path(a, name, "owner.json"),
         *journal = vm_state_path(a, name, "journal.json"), *path = epochs_path(a);

    pthread_mutex_lock(&one);
    json_t *o = epochs_read(a, e);
    int r = o ? 0 : -EINVAL;
    if (o && epoch > (uint64_t)XM_MAX(xm_json_int(o, name, 0), 0)) {
        json_object_set_new(o, name, json_integer((json_int_t)epoch));
        r = write_json(path, o, e);
    }
    json_decref(o);
    pthread_mutex_unlock(&one);
    if (!r)
        r = xm_file_remove(journal, e);
    xm_fault("forget-journal-gone");
    if (!r)
        r = xm_file_remove(record, e);
    xm_fault("forget-record-gone");
    if (!r)
        r = xm_rmdir_files(dir, e);
    free(path);
    free(journal);
    free(record);
    free(dir);
    return r;
}

/* ---- life ---- */

static int life_note(struct agent *a, const char *name, struct xm_error *e)
{
    struct vm_life l = {.state = LIFE_RUNS, .at = (int64_t)time(NULL)};
    char *dir = vm_state_path(a, name, NULL);

    snprintf(l.boot, sizeof l.boot, "%s", a->boot);
    int r = life_save(dir, &l, e);
    free(dir);
    return r;
}

int inventory_runs(struct agent *a, const char *name, struct xm_error *e)
{
    return life_note(a, name, e);
}

void inventory_came(struct agent *a, const char *name, bool now)
{
    char *dir = vm_state_path(a, name, NULL);
    struct xm_error e = {0};
    struct vm_life l;
    /* Of one that comes just now what is noted is of the last time that it ran here. */
    bool noted = !now && !life_load(dir, &l, NULL) && l.state == LIFE_RUNS && !strcmp(l.boot, a->boot);

    if (!noted && vm_owned(a, name, NULL) && life_note(a, name, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: that it runs here could not be noted: %s", name, e.text);
    free(dir);
}

/* What its shim has noted stands: it knew more. */
void inventory_ended(struct agent *a, const char *name)
{
    char *dir = vm_state_path(a, name, NULL);
    struct xm_error e = {0};
    struct vm_life l;

    if (vm_owned(a, name, NULL) && !life_load(dir, &l, &e) && l.state == LIFE_RUNS)
        life_end(dir, strcmp(l.boot, a->boot) ? LIFE_REBOOT : LIFE_UNKNOWN, &e);
    if (e.code && e.code != ENOENT)
        xm_log(XM_LOG_WARN, "VM %s: why it ended could not be noted: %s", name, e.text);
    free(dir);
}

json_t *inventory_why_json(struct agent *a, const struct inventory_vm *v)
{
    enum life_why why = v->life.why;

    if (v->life.state == LIFE_NEVER)
        return NULL;
    bool seen = v->life.state != LIFE_RUNS; /* nobody has noted its end: what is known is when it began */
    if (!seen)
        why = strcmp(v->life.boot, a->boot) ? LIFE_REBOOT : LIFE_UNKNOWN;
    return json_pack("{s:s, s:s, s:I}", "why", life_why_name(why), "text", life_why_text(why),
                     seen ? "at" : "started", (json_int_t)v->life.at);
}
