/* start, stop, list, show.
 *
 * start: read and complete the spec; judge; claim the name (from here on nobody else can start it or send it
 * here); make missing disks; record spec and ownership; run the shim. A failure takes back what this start
 * made: disks, run directory, and the record when there was none before. Killed in between: the record says
 * «mine», which is true, and a start of the same spec works.
 */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STOP_NS       (120 * XM_NS_PER_S)
#define STOP_FORCE_NS (30 * XM_NS_PER_S)

/* Which epoch a start has, and whether this host may start it at all. */
static int may_start(struct agent *a, const char *name, uint64_t *epoch, bool *fresh, struct xm_error *e)
{
    struct owner_record rec;
    int r = owner_read(a, name, &rec, e);

    *fresh = r == -ENOENT;
    *epoch = *fresh ? 1 : rec.epoch;
    if (*fresh)
        return 0;
    if (r)
        return r;
    if (!owner_may_run(&rec))
        return xm_error_set(e, EPERM,
                            "VM %s was given to %s (epoch %llu): start it there; or remove %s/vms/%s if you "
                            "are sure that it will never "
                            "run there again",
                            name, rec.to, (unsigned long long)rec.epoch, a->conf.state_dir, name);
    return 0;
}

static int record_start(struct agent *a, const char *name, json_t *spec, uint64_t epoch, bool fresh,
                        struct xm_error *e)
{
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_MINE};
    char *dir = vm_state_path(a, name, NULL), *path = vm_state_path(a, name, "spec.json");
    int r = xm_mkdir_all(dir, e);

    if (!r)
        r = write_json(path, spec, e);
    if (!r && fresh)
        r = owner_write(a, name, &rec, e);
    free(path);
    free(dir);
    return r;
}

/* The name is claimed. */
static int bring_up(struct agent *a, struct vm_spec *s, json_t *spec, struct xm_error *e)
{
    json_t *created = json_array();
    uint64_t epoch;
    bool fresh = false;
    int r = may_start(a, s->name, &epoch, &fresh, e);

    if (!r)
        r = create_missing(a, s, created, e);
    if (!r)
        r = record_start(a, s->name, spec, epoch, fresh, e);
    if (!r) {
        r = vm_spawn(a, s->name, spec, epoch, NULL, e);
        if (r)
            vm_remove_run_dir(a, s->name);
    }
    if (r) {
        char *dir = vm_state_path(a, s->name, NULL);
        delete_created(created);
        if (fresh)
            xm_rmdir_files(dir, NULL);
        free(dir);
    }
    json_decref(created);
    return r;
}

static json_t *start_spec(struct agent *a, struct vm_spec *s)
{
    struct admission_request req = {.spec = s, .start = true, .source = a->conf.name};
    struct gathered g;
    struct xm_error e = {0};
    json_t *reasons = json_array(), *answer = NULL;
    json_t *spec = vm_spec_to_json(s);
    int ignored;

    if (!spec) {
        json_decref(reasons);
        return refusal(EXIT_USAGE, "VM %s: a text in its specification is not UTF-8", s->name);
    }
    gather(a, &req, false, &g);
    agent_lock(a);
    struct vm *vm = judge(a, &req, &g, reasons, &ignored) ? NULL : vm_claim(a, s->name, spec, &e);
    agent_unlock(a);
    if (!vm) {
        char *why = reasons_text(reasons);
        answer = refusal(EXIT_REFUSED, "VM %s: %s", s->name, why[0] ? why : e.text);
        json_object_set(answer, "reasons", reasons);
        free(why);
    } else if (bring_up(a, s, spec, &e) || vm_watch(a, s->name, &e)) {
        answer = refusal(EXIT_FAILED, "%s", e.text);
        agent_lock(a);
        vm_forget(vm_find(a, s->name));
        agent_unlock(a);
    } else {
        xm_log(XM_LOG_INFO, "VM %s: started", s->name);
        answer = ok_answer();
        json_object_set_new(answer, "vm", json_string(s->name));
    }
    gathered_free(&g);
    json_decref(spec);
    json_decref(reasons);
    return answer;
}

json_t *verb_start(struct conn *c, const json_t *request)
{
    const char *path = xm_json_str(request, "spec", "");
    struct vm_spec s = {0};
    struct xm_error e = {0}, note = {0};
    json_t *answer;

    if (path[0] != '/')
        return refusal(EXIT_USAGE, "start needs the whole path of a specification, and got '%s'", path);
    if (vm_spec_load(&s, path, &e) < 0)
        answer = refusal(EXIT_USAGE, "%s", e.text);
    else if (resolve_spec(c->agent, &s, &note, &e) < 0)
        answer = refusal(EXIT_REFUSED, "%s", e.text);
    else
        answer = start_spec(c->agent, &s);
    if (note.text[0] && xm_json_bool(answer, "ok", false)) {
        xm_log(XM_LOG_WARN, "%s", note.text);
        json_object_set_new(answer, "note", json_string(note.text));
    }
    vm_spec_free(&s);
    return answer;
}

json_t *start_again(struct agent *a, const char *name)
{
    char *path = vm_state_path(a, name, "spec.json");
    struct vm_spec s = {0};
    struct xm_error e = {0};
    json_t *spec = read_json(path, &e), *answer;

    if (!spec || vm_spec_from_json(&s, spec, &e) < 0 || resolve_spec(a, &s, NULL, &e) < 0)
        answer = refusal(EXIT_FAILED, "VM %s: %s", name, e.text);
    else
        answer = start_spec(a, &s);
    if (xm_json_bool(answer, "ok", false))
        json_object_set_new(answer, "text",
                            json_sprintf("VM %s is %s's, and has been started", name, a->conf.name));
    vm_spec_free(&s);
    json_decref(spec);
    free(path);
    return answer;
}

/* ---- stop ---- */

json_t *verb_stop(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    bool force = xm_json_bool(request, "force", false);
    struct xm_error e = {0};

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool starting = vm && vm->phase == VM_STARTING;
    agent_unlock(a);
    if (!vm || starting)
        return refusal(EXIT_FAILED,
                       starting ? "VM %s is just being started" : "there is no VM '%s' on this host", name);
    json_t *answer =
        shim_call(a, name, json_pack("{s:s, s:b}", "cmd", "stop", "force", force), -1, 15 * XM_NS_PER_S, &e);
    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
    agent_lock(a);
    uint64_t until = xm_now() + (force ? STOP_FORCE_NS : STOP_NS);
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    bool gone = !vm_find(a, name);
    agent_unlock(a);
    if (!gone)
        return refusal(EXIT_FAILED,
                       force ? "VM %s has not ended yet"
                             : "VM %s has not powered down yet: its guest may not listen; "
                               "stop it with --force",
                       name);
    return ok_answer();
}

/* ---- list, show ---- */

static json_t *describe(struct agent *a, const char *name, json_t *spec, const json_t *incoming,
                        bool starting, bool whole)
{
    struct xm_error e = {0};
    json_t *st =
        starting ? NULL : shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 3 * XM_NS_PER_S, &e);
    json_t *o = whole && st ? json_copy(st) : json_object();
    static const char *const keys[] = {"memory", "vcpus", "machine", "accel"};

    json_object_del(o, "ok");
    json_object_del(o, "id");
    json_object_del(o, "vm");
    json_object_set_new(o, "name", json_string(name));
    json_object_set_new(o, "host", json_string(a->conf.name));
    json_object_set_new(o, "state",
                        json_string(starting ? "starting" : xm_json_str(st, "state", "no answer")));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(o, keys[i], json_object_get(spec, keys[i]));
    json_object_set(o, "disks", st && whole ? json_object_get(st, "disks") : json_object_get(spec, "disks"));
    if (st && json_object_get(st, "job"))
        json_object_set(o, "job", json_object_get(st, "job"));
    if (incoming)
        json_object_set_new(o, "source", json_string(xm_json_str(incoming, "source", "")));
    if (!st && !starting)
        json_object_set_new(o, "error", json_string(e.text));
    if (whole)
        json_object_set(o, "spec", spec);
    json_decref(st);
    return o;
}

json_t *verb_list(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    json_t *answer = ok_answer(), *list = json_array(), *now = json_array(), *o;
    struct vm *vm;
    size_t i;

    (void)request;
    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link)
        json_array_append_new(now, json_pack("{s:s, s:O, s:O?, s:b}", "name", vm->name, "spec", vm->spec,
                                             "incoming", vm->incoming, "starting", vm->phase == VM_STARTING));
    agent_unlock(a);
    json_array_foreach (now, i, o) {
        json_t *in = json_object_get(o, "incoming");
        json_array_append_new(list, describe(a, xm_json_str(o, "name", ""), json_object_get(o, "spec"),
                                             json_is_object(in) ? in : NULL,
                                             xm_json_bool(o, "starting", false), false));
    }
    json_decref(now);
    json_object_set_new(answer, "host", json_string(a->conf.name));
    json_object_set_new(answer, "vms", list);
    return answer;
}

static json_t *not_here(struct agent *a, const char *name)
{
    struct owner_record rec;

    if (vm_name_check(name, NULL) || owner_read(a, name, &rec, NULL) < 0)
        return refusal(EXIT_FAILED, "there is no VM '%s' on %s", name, a->conf.name);
    if (rec.owner == OWNER_GIVEN)
        return refusal(EXIT_FAILED, "VM %s is not here: %s gave it to %s (epoch %llu)", name, a->conf.name,
                       rec.to, (unsigned long long)rec.epoch);
    return refusal(EXIT_FAILED, "VM %s belongs to %s (epoch %llu) and is not running", name, a->conf.name,
                   (unsigned long long)rec.epoch);
}

json_t *verb_show(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    struct owner_record rec;

    vm_wait_ending(a, name);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    json_t *spec = vm ? json_incref(vm->spec) : NULL, *incoming = vm ? json_incref(vm->incoming) : NULL;
    bool starting = vm && vm->phase == VM_STARTING;
    agent_unlock(a);
    if (!spec)
        return not_here(a, name);
    json_t *answer = ok_answer(), *o = describe(a, name, spec, incoming, starting, true);
    if (!owner_read(a, name, &rec, NULL)) {
        static const char *const sides[] = {"none", "mine", "given"};
        json_object_set_new(o, "owner",
                            json_pack("{s:s, s:I, s:s, s:s}", "owner", sides[rec.owner], "epoch",
                                      (json_int_t)rec.epoch, "to", rec.to, "from", rec.from));
    }
    json_object_set(answer, "state", json_object_get(o, "state")); /* for scripts: what they ask most */
    json_object_set(answer, "disks", json_object_get(o, "disks"));
    json_object_set_new(answer, "vm", o);
    json_decref(spec);
    json_decref(incoming);
    return answer;
}
