/* SPDX-License-Identifier: MIT */
/* define, undefine, dump, and autostart: the definitions in the inventory (agent/inventory.h).
 *
 * define: read and complete the spec; claim the name, so that nobody starts or receives it meanwhile; look
 * whether it contradicts what is recorded; make the disks that are new; write the spec, and for a new VM the
 * record. Killed in between: without a record there are empty files that nobody has, and the next define
 * takes them; with it, it is done.
 *
 * undefine: the VM does not run, and its record is «mine», or «given» and settled, and who has it since does
 * not have it any more: the record keeps another VM of its name from being defined here, whoever is silent
 * then. Its files in the state directory go, its disks stay.
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

/* NULL, or why not. */
static json_t *hold(struct agent *a, const char *name, json_t *spec)
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

static void let_go(struct agent *a, const char *name)
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
    if ((no = hold(a, s->name, spec))) {
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
    let_go(a, s->name);
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

/* What the journal of its last migration still waits for. NULL: nothing. */
static json_t *not_cleaned_up(struct agent *a, const struct inventory_vm *v)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    char *dir = vm_state_path(a, v->name, NULL);
    struct xm_error e = {0};
    struct journal j;
    json_t *no = NULL;
    int r = journal_read(dir, &j, &e);
    const char *file = journal_path(json_array_get(j.files, 0));

    if (r)
        no = refusal(EXIT_REFUSED,
                     "VM %s: what its last migration left is not known: %s. With --force it is forgotten all "
                     "the same, and that stays",
                     v->name, e.text);
    else if (v->rec.owner == OWNER_MINE && journal_asks(&j, &v->rec, open))
        no =
            refusal(EXIT_REFUSED,
                    "VM %s: its last migration is not cleaned up yet; that is done within seconds, when %s "
                    "answers: try again; if that host is lost for good: `xmigrate recover %s --peer-is-dead`",
                    v->name, open[0].peer, v->name);
    else if (j.side != JOURNAL_NONE)
        no = refusal(EXIT_REFUSED,
                     "VM %s: what its last migration left is not cleaned up yet (%s), which is tried every "
                     "few seconds. With --force the VM is forgotten all the same, and that stays",
                     v->name, file[0] ? file : "its journal");
    journal_free(&j);
    free(dir);
    return no;
}

/* NULL: it may be forgotten. With force what is in doubt, too, but not what cannot be read. */
static json_t *must_stay(struct agent *a, const struct inventory_vm *v, bool force)
{
    bool known = v->rec.owner == OWNER_MINE || (v->rec.owner == OWNER_GIVEN && v->rec.settled);
    json_t *no = NULL;
    enum whereabouts is = WHERE_NOWHERE;
    char *where = v->rec.owner != OWNER_NONE && v->rec.owner != OWNER_MINE && !force
                      ? inventory_whereabouts(a, v->name, &v->rec, &is)
                      : NULL;

    if (v->rec.owner == OWNER_NONE) {
        no = refusal(EXIT_REFUSED, "VM %s: %s", v->name, v->damage.text);
    } else if (!force && !known) {
        no = refusal(
            EXIT_REFUSED,
            "VM %s is not forgotten while it is not settled where it is: %s. With --force it is, and only "
            "you know then where its disks are",
            v->name, where);
    } else if (is == WHERE_OWNED) {
        no = refusal(EXIT_REFUSED,
                     "VM %s: %s. Nothing needs to be done here: what %s remembers of it keeps another VM of "
                     "its name from being started",
                     v->name, where, a->conf.name);
    } else if (is == WHERE_UNKNOWN) {
        no = refusal(EXIT_REFUSED,
                     "VM %s: %s. What %s remembers of it keeps another VM of its name from being started; "
                     "if it is to be forgotten all the same: `xmigrate undefine --force %s`",
                     v->name, where, a->conf.name, v->name);
    } else if (!force) {
        no = not_cleaned_up(a, v);
    }
    free(where);
    return no;
}

/* The variables of its firmware are the guest's, as its disks are. Linked before the record goes: killed in
 * between, the VM still has them. *kept: where, malloc'ed; NULL: there are none. */
static int keep_nvram(struct agent *a, const char *name, char **kept, struct xm_error *e)
{
    char *from = vm_state_path(a, name, "nvram.fd"), *dir = xm_printf("%s/kept", a->conf.state_dir),
         *to = NULL;
    int r = access(from, F_OK) < 0 ? -ENOENT : xm_mkdir_all(dir, e);

    for (unsigned n = 0; !r && !*kept; n++) {
        to = n ? xm_printf("%s/%s-nvram.%u.fd", dir, name, n) : xm_printf("%s/%s-nvram.fd", dir, name);
        if (!link(from, to))
            *kept = to;
        else if (errno != EEXIST)
            r = xm_error_errno(e, errno, "cannot keep %s as %s", from, to);
        if (!*kept)
            free(to);
    }
    free(dir);
    free(from);
    return r == -ENOENT ? 0 : r;
}

/* What is here still of the disks that it had when it was given away: what a move leaves (--keep-source, no
 * datastore's), or what the hosts share. */
static json_t *disks_left(const json_t *spec)
{
    json_t *left = json_array(), *d;
    size_t i;

    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        struct stat st;
        if (storage_stat(xm_json_str(d, "path", ""), &st) != -ENOENT)
            json_array_append(left, d);
    }
    return left;
}

static json_t *undefine(struct agent *a, const char *name, bool force)
{
    struct inventory_vm v;
    struct xm_error e = {0};
    char *nvram = NULL;

    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    json_t *answer = must_stay(a, &v, force);
    json_t *left = !answer && !owner_may_run(&v.rec) ? disks_left(v.spec) : NULL;
    if (!answer && ((owner_may_run(&v.rec) && keep_nvram(a, name, &nvram, &e) < 0) ||
                    inventory_remove(a, name, v.rec.epoch, &e) < 0))
        answer = refusal(EXIT_FAILED, "VM %s: %s", name, e.text);
    if (!answer) {
        xm_log(XM_LOG_INFO, "VM %s: undefined (epoch %llu)", name, (unsigned long long)v.rec.epoch);
        answer = ok_answer();
        json_object_set_new(answer, "text", json_sprintf("%s has forgotten VM %s", a->conf.name, name));
        if (owner_may_run(&v.rec) && v.spec) /* the only place that said where they are */
            json_object_set(answer, "disks_kept", json_object_get(v.spec, "disks"));
        else if (left)
            json_object_set(answer, "disks_left", left);
        if (nvram)
            json_object_set_new(answer, "nvram_kept", json_string(nvram));
    }
    free(nvram);
    json_decref(left);
    inventory_free(&v);
    return answer;
}

json_t *verb_undefine(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");

    if (vm_name_check(name, NULL) < 0)
        return not_running(a, name, EXIT_FAILED);
    /* Who settles it meanwhile would write its record anew. */
    if (!settle_claim(a, name, SETTLE_PREPARE_PATIENCE))
        return refusal(EXIT_REFUSED, "what is open of VM %s is just being settled on %s: try again", name,
                       a->conf.name);
    json_t *nothing = json_object(), *answer = hold(a, name, nothing);
    if (answer) {
        json_decref(answer);
        answer = refusal(EXIT_REFUSED, "VM %s runs, or is on its way: it can be undefined when it is stopped",
                         name);
    } else {
        answer = undefine(a, name, xm_json_bool(request, "force", false));
        let_go(a, name);
    }
    json_decref(nothing);
    settle_release(a, name);
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
    json_t *answer = up ? autostart_running(a, name, yes) : hold(a, name, spec);
    json_decref(spec);
    if (up || answer)
        return answer;
    bool claimed = claim(a, name, &e);
    int r = claimed ? autostart_stopped(a, name, yes, &e) : -EBUSY;
    if (claimed)
        settle_release(a, name);
    let_go(a, name);
    return r ? refusal(EXIT_FAILED, "%s", e.text) : ok_answer();
}
