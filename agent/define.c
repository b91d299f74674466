/* SPDX-License-Identifier: MIT */
/* define, dump, and autostart: the definitions in the inventory (agent/inventory.h).
 *
 * define: read and complete the spec; claim the name, so that nobody starts or receives it meanwhile; look
 * whether it contradicts what is recorded; make the disks that are new; write the spec, and for a new VM the
 * record. Killed in between: without a record there are empty files that nobody has, and the next define
 * takes them; with it, it is done.
 *
 * Writers of spec.json: this file, while the VM does not run; its shim while it runs. So what is changed of a
 * running VM's definition (autostart) its shim changes, and the rest cannot be. */
#include "agent/inventory.h"
#include "agent/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Two definitions that name the same file are not looked at at once. */
static pthread_mutex_t defining = PTHREAD_MUTEX_INITIALIZER;
#define DEFINING_S 20

/* ---- the record ---- */

int define_allowed(struct agent *a, const char *name, struct defined *d, struct xm_error *e)
{
    struct owner_record rec;
    int r = owner_read(a, name, &rec, e);

    d->fresh = r == -ENOENT;
    if (d->fresh)
        return inventory_first_epoch(a, name, &d->epoch, e);
    d->epoch = rec.epoch;
    if (r || owner_may_run(&rec))
        return r;
    enum whereabouts is;
    char *where = inventory_whereabouts(a, name, &rec, &is);
    if (rec.owner == OWNER_PROMISED)
        xm_error_set(e, EPERM, "VM %s: %s", name, where);
    else if (is == WHERE_OWNED)
        xm_error_set(e, EPERM, "VM %s is not %s's to run: %s. Start it there; another VM needs another name",
                     name, a->conf.name, where);
    else
        xm_error_set(e, EPERM,
                     "VM %s is not %s's to run: %s. If that VM is to be forgotten here: `xmigrate undefine "
                     "%s`",
                     name, a->conf.name, where, name);
    free(where);
    return -EPERM;
}

static int write_definition(struct agent *a, const char *name, json_t *spec, const struct defined *d,
                            struct xm_error *e)
{
    struct owner_record rec = {.epoch = d->epoch, .owner = OWNER_MINE};
    char *dir = vm_state_path(a, name, NULL), *path = vm_state_path(a, name, "spec.json");
    int r = xm_mkdir_all(dir, e);

    if (!r)
        r = write_json(path, spec, e);
    if (!r && d->fresh)
        r = owner_write(a, name, &rec, e);
    free(path);
    free(dir);
    return r;
}

/* Who holds it makes or deletes files: the storage may hang at that very moment. */
int define_lock(struct xm_error *e)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += DEFINING_S;
    return pthread_mutex_clocklock(&defining, CLOCK_MONOTONIC, &ts)
               ? xm_error_set(e, EBUSY, "another definition is being made, and its storage does not answer")
               : 0;
}

void define_unlock(void)
{
    pthread_mutex_unlock(&defining);
}

/* Nobody settles it meanwhile: who does may mend where its disks are (inventory_mend), and would write back
 * what has been changed since he read it. False, with a sentence: one does, and does not come to an end. */
static bool claim(struct agent *a, const char *name, struct xm_error *e)
{
    bool claimed = settle_claim(a, name, SETTLE_PREPARE_PATIENCE);

    if (!claimed)
        xm_error_set(e, EBUSY, "what is open of VM %s is just being settled on %s: try again", name,
                     a->conf.name);
    return claimed;
}

/* A migration of such a VM to this host has come to nothing, and left a journal: who takes away what that
 * names takes a new definition, without a record yet, for part of it; and what has a record keeps it, for
 * ever. */
static int beside_nothing(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (!r && j.side != JOURNAL_NONE)
        r = xm_error_set(
            e, EBUSY,
            "what a migration from %s left on %s of a VM %s, and came to nothing, is not taken away "
            "yet, which is tried every few seconds: try again; why not stands in the agent's log",
            j.peer, a->conf.name, name);
    journal_free(&j);
    free(dir);
    return r;
}

int define_spec(struct agent *a, struct vm_spec *s, json_t *spec, struct defined *d, struct xm_error *e)
{
    struct inventory_vm v = {0};

    *d = (struct defined){.created = json_array()};
    bool claimed = claim(a, s->name, e);
    int r = claimed ? define_allowed(a, s->name, d, e) : -EBUSY;
    if (!r && d->fresh)
        r = beside_nothing(a, s->name, e);
    if (r)
        d->fresh = false; /* nothing of it is there to be undone */
    if (!r && !d->fresh)
        inventory_read(a, s->name, &v);
    if (!r)
        r = define_lock(e);
    bool locked = !r;
    if (!r)
        r = inventory_contradiction(a, s, e);
    if (!r)
        r = create_missing(a, s, v.spec, d->created, e);
    if (!r)
        r = write_definition(a, s->name, spec, d, e);
    if (locked)
        define_unlock();
    inventory_free(&v);
    if (r)
        define_undo(a, s->name, d);
    if (claimed)
        settle_release(a, s->name);
    return r;
}

void define_undo(struct agent *a, const char *name, const struct defined *d)
{
    struct xm_error e = {0};

    /* A record that may be durable goes before the disks that it names. */
    if (d->fresh && d->epoch && inventory_remove(a, name, 0, &e) < 0) {
        xm_log(XM_LOG_WARN, "VM %s: %s", name, e.text);
        return;
    }
    delete_created(d->created);
}

json_t *define_text(const struct vm_spec *s, const struct defined *d, const char *done)
{
    char *text = xm_printf("VM %s %s", s->name, done);
    unsigned n = 0;

    for (unsigned i = 0; i < s->disks; i++) {
        const json_t *made;
        size_t at;
        json_array_foreach (d->created, at, made) {
            if (strcmp(journal_path(made), s->disk[i].path) != 0)
                continue;
            char *more = xm_printf("%s%s disk '%s' (%s)", text,
                                   n++ ? "," : ". Made for it, and empty:", s->disk[i].name, s->disk[i].path);
            free(text);
            text = more;
        }
    }
    json_t *answer = json_string(text);
    free(text);
    return answer;
}

/* ---- holding a VM that does not run ---- */

json_t *define_hold(struct agent *a, const char *name, json_t *spec)
{
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_claim(a, name, spec, &e);
    if (vm)
        vm->phase = VM_HELD, vm->memory = 0; /* it needs none */
    agent_unlock(a);
    if (vm)
        return NULL;
    return refusal(EXIT_REFUSED,
                   "VM %s runs, or is on its way: its definition can be changed when it is stopped", name);
}

void define_let_go(struct agent *a, const char *name)
{
    agent_lock(a);
    vm_forget(vm_find(a, name));
    agent_unlock(a);
}

/* ---- verbs ---- */

/* fresh: it is not known here yet. The name is held while others are asked, so that of two hosts that define
 * it at once each hears of the other. */
static json_t *define(struct agent *a, struct vm_spec *s, bool fresh)
{
    json_t *spec = vm_spec_to_json(s), *no, *answer;
    struct defined d = {0};
    struct xm_error e = {0};

    if (!spec)
        return refusal(EXIT_USAGE, "VM %s: a text in its specification is not UTF-8", s->name);
    if ((no = define_hold(a, s->name, spec))) {
        json_decref(spec);
        return no;
    }
    if ((fresh && define_namesake(a, s->name, &e) < 0) || define_spec(a, s, spec, &d, &e) < 0) {
        answer = refusal(EXIT_REFUSED, "%s", e.text);
    } else {
        xm_log(XM_LOG_INFO, "VM %s: defined", s->name);
        answer = ok_answer();
        json_object_set_new(answer, "vm", json_string(s->name));
        char *done = xm_printf("is defined on %s", a->conf.name);
        json_object_set_new(answer, "text", define_text(s, &d, done));
        free(done);
    }
    define_let_go(a, s->name);
    json_decref(d.created);
    json_decref(spec);
    return answer;
}

json_t *verb_define(struct conn *c, const json_t *request)
{
    const char *path = xm_json_str(request, "spec", ""), *name = xm_json_str(request, "vm", NULL);
    struct vm_spec s = {0};
    struct xm_error e = {0}, note = {0};
    struct defined d = {0};
    json_t *answer;

    if (path[0] != '/')
        return refusal(EXIT_USAGE, "define needs the whole path of a specification, and got '%s'", path);
    if (vm_spec_load(&s, path, &e) < 0)
        answer = refusal(EXIT_USAGE, "%s", e.text);
    else if (name && strcmp(name, s.name) != 0)
        answer = refusal(EXIT_USAGE, "%s is the specification of a VM '%s', not of %s", path, s.name, name);
    else if (define_allowed(c->agent, s.name, &d, &e) < 0 || resolve_spec(c->agent, &s, &note, &e) < 0)
        answer = refusal(EXIT_REFUSED, "%s", e.text);
    else
        answer = define(c->agent, &s, d.fresh);
    if (note.text[0] && xm_json_bool(answer, "ok", false))
        json_object_set_new(answer, "note", json_string(note.text));
    vm_spec_free(&s);
    return answer;
}

/* Files of a datastore by its name, as a user writes them. */
static void name_datastores(struct agent *a, struct vm_spec *s)
{
    for (unsigned i = 0; i < s->disks; i++) {
        struct vm_disk *d = &s->disk[i];
        const struct conf_datastore *ds = config_datastore(&a->conf, d->datastore);
        size_t n = ds ? strlen(ds->path) : 0;
        const char *file = d->path + n + 1;
        if (!ds || strncmp(d->path, ds->path, n) != 0 || d->path[n] != '/' || !*file || *file == '.' ||
            strchr(file, '/'))
            continue;
        char *relative = xm_printf("%s", file);
        free(d->path);
        d->path = relative;
    }
}

/* A VM that is another host's by its record is not one of ours, but its definition is what is left of it
 * here, and with it its disks can be taken up again should that host be lost. */
json_t *verb_dump(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    struct inventory_vm v;
    struct vm_spec s = {0};
    struct xm_error e = {0};
    json_t *answer;

    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    agent_lock(a);
    bool runs = vm_find(a, name) != NULL, edit = xm_json_bool(request, "edit", false);
    agent_unlock(a);
    if (runs && edit) { /* before its user has written what is then refused */
        answer =
            refusal(EXIT_REFUSED,
                    "VM %s runs, or is on its way: its definition can be changed when it is stopped", name);
    } else if (!inventory_owns(&v) && (edit || !v.spec || v.rec.owner != OWNER_GIVEN)) {
        answer = not_running(a, name, EXIT_FAILED);
    } else if (!v.spec || vm_spec_from_json(&s, v.spec, &e) < 0) {
        answer = refusal(EXIT_FAILED, "VM %s: %s", name, v.spec ? e.text : v.damage.text);
    } else {
        name_datastores(a, &s);
        char *ini = vm_spec_to_ini(&s, &e);
        answer = ini ? ok_answer() : refusal(EXIT_FAILED, "VM %s: %s", name, e.text);
        if (ini)
            json_object_set_new(answer, "ini", json_string(ini));
        if (ini && v.rec.owner == OWNER_GIVEN)
            json_object_set_new(
                answer, "note",
                json_sprintf("VM %s is %s's by the record of %s: this is its definition as it "
                             "was given away",
                             name, v.rec.to, a->conf.name));
        free(ini);
    }
    vm_spec_free(&s);
    inventory_free(&v);
    return answer;
}

/* ---- autostart ---- */

static int autostart_stopped(struct agent *a, const char *name, bool yes, struct xm_error *e)
{
    char *path = vm_state_path(a, name, "spec.json");
    struct inventory_vm v;
    int r = inventory_read(a, name, &v);

    if (r || !v.spec) {
        r = xm_error_set(e, EINVAL, "VM %s: %s", name, r ? "it is not here any more" : v.damage.text);
    } else {
        if (yes)
            json_object_set_new(v.spec, "autostart", json_true());
        else
            json_object_del(v.spec, "autostart");
        r = write_json(path, v.spec, e);
    }
    inventory_free(&v);
    free(path);
    return r;
}

static json_t *autostart_running(struct agent *a, const char *name, bool yes)
{
    struct xm_error e = {0};
    json_t *answer =
        shim_call(a, name, json_pack("{s:s, s:b}", "cmd", "set", "autostart", yes), -1, 10 * XM_NS_PER_S, &e);

    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
    agent_lock(a); /* what a new shim, and a destination, would be given */
    struct vm *vm = vm_find(a, name);
    json_t *spec = vm ? json_copy(vm->spec) : NULL;
    if (spec && yes)
        json_object_set_new(spec, "autostart", json_true());
    else if (spec)
        json_object_del(spec, "autostart");
    if (spec) {
        json_decref(vm->spec);
        vm->spec = spec;
    }
    agent_unlock(a);
    return ok_answer();
}

json_t *define_autostart(struct agent *a, const char *name, bool yes)
{
    struct inventory_vm v;
    struct xm_error e = {0};

    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    bool ours = owner_may_run(&v.rec);
    json_t *spec = v.spec ? json_incref(v.spec) : json_object();
    inventory_free(&v);
    if (!ours) {
        json_decref(spec);
        return not_running(a, name, EXIT_FAILED);
    }
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool up = vm && vm->phase == VM_UP && !vm->incoming;
    bool moves = up && vm->job[0];
    agent_unlock(a);
    if (moves) { /* its definition has gone to the destination already */
        json_decref(spec);
        return refusal(EXIT_REFUSED, "VM %s is being moved: say it again when that is over", name);
    }
    json_t *answer = up ? autostart_running(a, name, yes) : define_hold(a, name, spec);
    json_decref(spec);
    if (up || answer)
        return answer;
    bool claimed = claim(a, name, &e);
    int r = claimed ? autostart_stopped(a, name, yes, &e) : -EBUSY;
    if (claimed)
        settle_release(a, name);
    define_let_go(a, name);
    return r ? refusal(EXIT_FAILED, "%s", e.text) : ok_answer();
}
