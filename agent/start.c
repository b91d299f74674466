/* SPDX-License-Identifier: MIT */
/* start, stop.
 *
 * start SPEC is define and start: read and complete the spec; judge; claim the name (from here on nobody else
 * can start it or send it here); put it into the inventory (define.c), which makes missing disks the first
 * time; run the shim. A failure takes back what this start made: run directory, and for a VM that was not
 * defined before its disks and its record. Killed in between: the record says «mine», which is true, and a
 * start of the VM by name, or of the same spec, works.
 *
 * start NAME runs what the inventory has, and makes nothing.
 */
#include "agent/inventory.h"
#include "agent/nvram.h"
#include "agent/returned.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STOP_NS       (120 * XM_NS_PER_S) /* unless its user says otherwise */
#define STOP_SAY_NS   (5 * XM_NS_PER_S)   /* then what it waits for is said */
#define STOP_FORCE_NS (30 * XM_NS_PER_S)

/* What the start is made of has been read before the name was claimed: it still stands? */
static int still_recorded(struct agent *a, const char *name, const json_t *recorded, uint64_t *epoch,
                          struct xm_error *e)
{
    struct inventory_vm v;
    int r =
        inventory_read(a, name, &v) < 0 || !owner_may_run(&v.rec) || !v.spec || !json_equal(v.spec, recorded)
            ? xm_error_set(e, EAGAIN, "VM %s has been changed at this moment: start it again", name)
            : 0;

    *epoch = v.rec.epoch;
    inventory_free(&v);
    return r;
}

/* Its record stands. What it noted of its life before is put back when this comes to nothing. */
static int run_shim(struct agent *a, const char *name, json_t *spec, uint64_t epoch, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    struct vm_life before;

    life_load(dir, &before, NULL);
    int r = inventory_runs(a, name, e);
    if (!r)
        r = vm_spawn(a, name, spec, epoch, NULL, e);
    if (r && vm_process(a, name, "qemu.pid")) {
        /* Its shim was killed, and the guest may run already: another shim takes it over, now or when it is
         * started again. */
        r = vm_spawn(a, name, spec, epoch, NULL, e);
    } else if (r) {
        vm_remove_run_dir(a, name);
        life_save(dir, &before, NULL);
    }
    free(dir);
    return r;
}

/* The name is claimed. recorded: the spec as it stands in the inventory, NULL to put this one there. The
 * caller frees d->created. */
static int bring_up(struct agent *a, struct vm_spec *s, json_t *spec, const json_t *recorded,
                    struct defined *d, struct xm_error *e)
{
    int r = recorded ? still_recorded(a, s->name, recorded, &d->epoch, e) : define_spec(a, s, spec, d, e);

    if (!r && recorded) /* looks only: what is recorded is not made anew */
        r = nvram_make(a, s, NULL, e);
    if (!r && (r = run_shim(a, s->name, spec, d->epoch, e)) && !recorded &&
        !vm_process(a, s->name, "qemu.pid"))
        define_undo(a, s->name, d);
    return r;
}

/* fresh: it is not known here yet (define.c). */
static json_t *start_spec(struct agent *a, struct vm_spec *s, const json_t *recorded, bool fresh)
{
    struct admission_request req = {.spec = s, .start = true, .source = a->conf.name};
    struct gathered g;
    struct defined d = {0};
    struct xm_error e = {0};
    json_t *reasons = json_array(), *answer = NULL;
    json_t *spec = vm_spec_to_json(s);
    bool no = false;
    int ignored;

    if (!spec) {
        json_decref(reasons);
        return refusal(EXIT_USAGE, "VM %s: a text in its specification is not UTF-8", s->name);
    }
    gather(a, &req, false, &g);
    agent_lock(a);
    if (!settle_let_go(a, s->name))
        json_array_append_new(
            reasons, json_string("what its last migration left open is just being closed: try again"));
    admit_judge(a, &req, &g, reasons, &ignored);
    struct vm *vm = json_array_size(reasons) ? NULL : vm_claim(a, s->name, spec, &e);
    agent_unlock(a);
    if (!vm) {
        char *why = reasons_text(reasons);
        answer = refusal(EXIT_REFUSED, "VM %s: %s", s->name, why[0] ? why : e.text);
        json_object_set(answer, "reasons", reasons);
        free(why);
    } else if ((no = fresh && define_namesake(a, s->name, &e) < 0) ||
               bring_up(a, s, spec, recorded, &d, &e)) {
        answer = refusal(no ? EXIT_REFUSED : EXIT_FAILED, "%s", e.text);
        agent_lock(a);
        vm_forget(vm_find(a, s->name));
        agent_unlock(a);
    } else {
        vm_watch(a, s->name);
        xm_log(XM_LOG_INFO, "VM %s: started", s->name);
        answer = ok_answer();
        json_object_set_new(answer, "vm", json_string(s->name));
        char *done = xm_printf("is %s's, and has been started", a->conf.name);
        json_object_set_new(answer, "text", define_text(s, &d, done));
        free(done);
    }
    gathered_free(&g);
    json_decref(d.created);
    json_decref(spec);
    json_decref(reasons);
    return answer;
}

/* Another host may have taken it over while this one was away, or have it though this one's record, an older
 * one, says otherwise. NULL: none has. */
static json_t *gone(struct agent *a, const char *name)
{
    bool silent[CONFIG_MANY] = {false};
    struct xm_error e = {0};

    agent_lock(a);
    bool there = vm_find(a, name) != NULL;
    agent_unlock(a);
    if (there)
        return NULL;
    switch (returned_judge(a, name, silent, &e)) {
    case RETURNED_THEIRS:
        return refusal(EXIT_REFUSED, "%s", e.text);
    case RETURNED_UNKNOWN:
        return refusal(e.code == EEXIST ? EXIT_REFUSED : EXIT_UNKNOWN, "%s", e.text);
    case RETURNED_OURS:
        break;
    }
    return NULL;
}

static json_t *start_file(struct agent *a, const char *path)
{
    struct vm_spec s = {0};
    struct xm_error e = {0}, note = {0};
    struct defined d = {0};
    json_t *answer;

    if (vm_spec_load(&s, path, &e) < 0)
        answer = refusal(EXIT_USAGE, "%s", e.text);
    else if ((answer = gone(a, s.name)))
        ;
    else if (define_allowed(a, s.name, &d, &e) < 0 || resolve_spec(a, &s, &note, &e) < 0)
        answer = refusal(EXIT_REFUSED, "%s", e.text);
    else
        answer = start_spec(a, &s, NULL, d.fresh);
    if (note.text[0] && xm_json_bool(answer, "ok", false)) {
        xm_log(XM_LOG_WARN, "%s", note.text);
        json_object_set_new(answer, "note", json_string(note.text));
    }
    vm_spec_free(&s);
    return answer;
}

json_t *verb_start(struct conn *c, const json_t *request)
{
    const char *path = xm_json_str(request, "spec", NULL), *name = xm_json_str(request, "vm", NULL);

    if (name && !path) {
        json_t *no = gone(c->agent, name);
        return no ? no : start_again(c->agent, name);
    }
    if (!path || path[0] != '/')
        return refusal(EXIT_USAGE, "start needs a VM, or the whole path of a specification, and got '%s'",
                       path ? path : "");
    return start_file(c->agent, path);
}

json_t *start_again(struct agent *a, const char *name)
{
    struct inventory_vm v;
    struct vm_spec s = {0};
    struct xm_error e = {0};
    json_t *answer;

    vm_wait_ended(a, name);
    agent_lock(a);
    bool there = vm_find(a, name) != NULL;
    agent_unlock(a);
    if (there)
        return refusal(EXIT_REFUSED,
                       "VM %s is on %s already; one that stands still goes on by `xmigrate recover %s`", name,
                       a->conf.name, name);
    if (inventory_mend(a, name, &e) < 0)
        return refusal(EXIT_FAILED, "VM %s: %s", name, e.text);
    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    if (!owner_may_run(&v.rec))
        answer = not_running(a, name, EXIT_REFUSED);
    else if (!v.spec || vm_spec_from_json(&s, v.spec, &e) < 0)
        answer = refusal(EXIT_FAILED, "VM %s: %s", name, v.spec ? e.text : v.damage.text);
    else if (resolve_spec(a, &s, NULL, &e) < 0)
        answer = refusal(EXIT_REFUSED, "%s", e.text);
    else
        answer = start_spec(a, &s, v.spec, false);
    vm_spec_free(&s);
    inventory_free(&v);
    return answer;
}

/* ---- stop ---- */

static bool wait_gone(struct agent *a, const char *name, uint64_t until)
{
    agent_lock(a);
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    bool gone = !vm_find(a, name);
    agent_unlock(a);
    return gone;
}

json_t *verb_stop(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    bool force = xm_json_bool(request, "force", false);
    int64_t ms = xm_json_int(request, "timeout_ms", 0);
    uint64_t patience = ms > 0 ? (uint64_t)XM_MIN(ms, 86400 * 1000) * XM_NS_PER_MS : STOP_NS;
    struct owner_record rec;
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool up = vm && vm->phase == VM_UP, starting = vm && vm->phase == VM_STARTING;
    bool comes = up && vm->incoming;
    agent_unlock(a);
    if (starting)
        return refusal(EXIT_FAILED, "VM %s is just being started", name);
    if (!up)
        return not_running(a, name, EXIT_FAILED);
    json_t *answer =
        shim_call(a, name, json_pack("{s:s, s:b}", "cmd", "stop", "force", force), -1, 15 * XM_NS_PER_S, &e);
    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
    uint64_t now = xm_now(), until = now + (force ? STOP_FORCE_NS : patience);
    bool gone = wait_gone(a, name, XM_MIN(until, now + STOP_SAY_NS));
    if (!gone && !force && xm_now() < until) {
        conn_event(
            c, json_pack(
                   "{s:s, s:o}", "event", "note", "text",
                   json_sprintf("VM %s has been asked to power down, and its guest has not done so yet; it "
                                "is waited for up to %s; `xmigrate stop --force %s` ends it at once",
                                name, xm_format_time(patience).s, name)));
        gone = wait_gone(a, name, until);
    }
    if (!gone && force)
        return refusal(EXIT_FAILED, "VM %s has not ended yet", name);
    if (!gone)
        return refusal(
            EXIT_FAILED,
            "VM %s has not powered down within %s: its guest may not listen; `xmigrate stop --force %s` "
            "ends it at once",
            name, xm_format_time(patience).s, name);
    /* It was not held: somebody may have moved it away. */
    if (!comes && owner_read(a, name, &rec, NULL) == 0 && rec.owner == OWNER_GIVEN)
        return refusal(EXIT_FAILED,
                       "VM %s has been given to %s meanwhile, and is not known to be stopped: `xmigrate stop "
                       "%s` there",
                       name, rec.to, name);
    answer = ok_answer();
    json_object_set_new(
        answer, "text",
        json_sprintf(comes ? "VM %s: its migration to this host has been ended here; it is where it was"
                           : "VM %s is stopped",
                     name));
    return answer;
}
