/* SPDX-License-Identifier: MIT */
/* Moves, as the source's agent sees them: check, move, abort, set.
 *
 * Happy path: the VM is held for the move (nobody else moves or stops it meanwhile by this agent); this
 * side's and the destination's reasons against it are collected (reasons.c); a job is made, and its
 * thread brings the move to the shim (launch.c), which from then on does everything.
 *
 * Failures: a reason against it: refused with all of them, no job, nothing changed.
 */
#include "agent/move.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void move_free(struct move *m)
{
    if (!m)
        return;
    for (unsigned i = 0; i < m->spec.disks; i++) {
        if (m->probe[i].path)
            unlink(m->probe[i].path);
        free(m->probe[i].path);
    }
    vm_spec_free(&m->spec);
    json_decref(m->options);
    json_decref(m->disks);
    free(m);
}

/* ---- the request ---- */

static json_t *read_options(const struct agent *a, const json_t *o)
{
    int64_t ms = xm_json_int(o, "downtime_ms", -1), rate = xm_json_int(o, "bandwidth", -1);

    return json_pack("{s:I, s:I, s:b, s:b, s:b, s:b, s:I, s:I}", "downtime_ns",
                     ms > 0 ? (json_int_t)(ms * (int64_t)XM_NS_PER_MS) : (json_int_t)a->conf.downtime,
                     "bandwidth", rate >= 0 ? (json_int_t)rate : (json_int_t)a->conf.bandwidth, "keep_source",
                     xm_json_bool(o, "keep_source", false), "allow_older",
                     xm_json_bool(o, "allow_older", false), "verify", xm_json_bool(o, "verify", false),
                     "persist", !strcmp(xm_json_str(o, "outrun", "end"), "go-on"), "link_timeout_ns",
                     (json_int_t)a->conf.link_timeout, "grace_ns", (json_int_t)a->conf.switch_grace);
}

/* NULL, or the refusal. */
static json_t *read_move(struct agent *a, const json_t *o, struct move *m)
{
    const char *host = xm_json_str(o, "host", ""), *ds = xm_json_str(o, "datastore", "");
    static const char *const not_yet[] = {"resume", NULL};
    const json_t *options = json_object_get(o, "options");

    m->agent = a;
    m->local = xm_json_bool(o, "storage_only", false);
    m->storage = m->local || xm_json_bool(o, "storage", false);
    snprintf(m->vm, sizeof m->vm, "%s", xm_json_str(o, "vm", ""));
    snprintf(m->host, sizeof m->host, "%s", m->local ? a->conf.name : host);
    snprintf(m->datastore, sizeof m->datastore, "%s", ds);
    if (vm_name_check(xm_json_str(o, "vm", ""), NULL) < 0)
        return refusal(EXIT_USAGE, "move needs the name of a VM, and got '%.70s'", xm_json_str(o, "vm", ""));
    for (size_t i = 0; not_yet[i]; i++) {
        if (xm_json_bool(options, not_yet[i], false))
            return refusal(EXIT_USAGE, "'%s' is not there yet", not_yet[i]);
    }
    if (m->local && !config_datastore(&a->conf, ds))
        return refusal(EXIT_REFUSED, "%s has no datastore '%s'", a->conf.name, ds);
    m->options = read_options(a, options);
    m->peer = m->local ? NULL : config_peer(&a->conf, host);
    if (!m->local && !strcmp(host, a->conf.name))
        return refusal(EXIT_REFUSED,
                       "this is %s: the disks alone move to another datastore of a host, by --storage-only",
                       host);
    return NULL;
}

#define LAUNCH_NS (10 * XM_NS_PER_S) /* for a job that has just begun to have its shim */

/* Where its disks are by what stands durably: a destination that opened another file of that name and size
 * would run the VM on it. It is held, and so nobody else's to change. */
static json_t *recorded_spec(struct move *m, struct xm_error *e)
{
    char *path = vm_state_path(m->agent, m->vm, "spec.json");
    json_t *spec = read_json(path, e);

    free(path);
    return spec;
}

/* Holds the VM and takes a copy of what is known of it. NULL, or the refusal. */
static json_t *hold(struct move *m, bool for_real)
{
    struct agent *a = m->agent;
    struct xm_error e = {0};
    json_t *no = NULL, *spec = NULL;
    bool absent = false;

    agent_lock(a);
    bool closing = vm_find(a, m->vm) && !settle_let_go(a, m->vm);
    struct vm *vm = vm_find(a, m->vm);
    if (!vm || vm->phase == VM_ENDING)
        absent = true;
    else if (closing)
        no = refusal(EXIT_REFUSED,
                     "what the last migration of VM %s left open is just being closed: try again", m->vm);
    else if (vm->phase != VM_UP || vm->incoming)
        no = refusal(EXIT_REFUSED, "VM %s is not running here yet", m->vm);
    else if (vm->job[0])
        no = refusal(EXIT_REFUSED, "VM %s is being moved already%s%s", m->vm,
                     vm->job[0] == '-' ? "" : ": job ", vm->job[0] == '-' ? "" : vm->job);
    else
        spec = json_incref(vm->spec);
    if (vm && !no && !absent && for_real)
        snprintf(vm->job, sizeof vm->job, "-");
    agent_unlock(a);
    if (absent)
        return not_running(a, m->vm, EXIT_REFUSED);
    m->held = spec && for_real;
    if (m->held) {
        json_decref(spec);
        spec = recorded_spec(m, &e);
    }
    if (!no && (!spec || vm_spec_from_json(&m->spec, spec, &e) < 0))
        no = refusal(EXIT_FAILED, "VM %s: %s", m->vm, e.text);
    /* Started before this was put into the specification: its guest sees what the storage has. */
    for (unsigned i = 0; !no && i < m->spec.disks; i++) {
        struct vm_disk *d = &m->spec.disk[i];
        if (!d->block_size)
            d->block_size = probe_block_size(d->path);
    }
    json_decref(spec);
    return no;
}

void move_let_go(struct move *m)
{
    agent_lock(m->agent);
    struct vm *vm = m->held ? vm_find(m->agent, m->vm) : NULL;
    if (vm && !strcmp(vm->job, "-")) {
        vm->job[0] = 0;
        json_decref(vm->moving);
        vm->moving = NULL;
    }
    agent_unlock(m->agent);
}

/* ---- from the request to the job ---- */

static json_t *refused(struct move *m, json_t *reasons)
{
    const char *to = m->local ? m->datastore : m->host;
    json_t *answer = refusal(EXIT_REFUSED, "VM %s cannot be moved to %s, for %zu reason%s", m->vm, to,
                             json_array_size(reasons), json_array_size(reasons) == 1 ? "" : "s");

    json_object_set_new(answer, "reasons", reasons);
    return answer;
}

/* All disks are there already: done, as a script that asks for it a second time expects. */
static json_t *nothing_to_move(struct move *m)
{
    return json_pack("{s:s, s:b, s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:i, s:i}", "event", "done",
                     "nothing", 1, "vm", m->vm, "source", m->host, "destination", m->host, "mode",
                     "storage-only", "datastore", m->datastore, "total_s", 0.0, "downtime_ms", 0.0,
                     "disk_bytes", 0, "ram_bytes", 0, "wire_bytes", 0, "rounds", 0);
}

struct job *move_begin(struct agent *a, const json_t *request, bool only_check, json_t *notes,
                       json_t **nothing, json_t **no)
{
    struct move *m = calloc(1, sizeof *m);

    if (!m) {
        *no = refusal(EXIT_FAILED, "no memory");
        return NULL;
    }
    m->notes = notes;
    m->only_stored = xm_json_bool(request, "only_stored", false);
    *no = read_move(a, request, m);
    if (!*no)
        *no = hold(m, !only_check);
    /* Behind what is wrong with the VM: `xmigrate reboot web1` is read as the move of a VM reboot. */
    if (!*no && !m->local && !m->peer)
        *no = refusal(EXIT_REFUSED, "%s has no [peer %s] in its configuration", a->conf.name,
                      m->host[0] ? m->host : "?");
    if (!*no) {
        json_t *reasons = move_reasons(m);
        if (json_array_size(reasons))
            *no = refused(m, reasons);
        else
            json_decref(reasons);
    }
    m->nothing = !*no && m->local && !json_array_size(m->disks);
    if (!*no && !only_check && !m->nothing)
        return move_start(m, no);
    if (m->nothing && nothing)
        *nothing = nothing_to_move(m);
    agent_lock(a);
    move_count_off(m);
    agent_unlock(a);
    move_let_go(m);
    move_free(m);
    return NULL;
}

/* ---- verbs ---- */

json_t *verb_check(struct conn *c, const json_t *request)
{
    json_t *notes = json_array(), *no;

    move_begin(c->agent, request, true, notes, NULL, &no);
    json_t *answer = no ? no : ok_answer();
    json_object_set_new(answer, "notes", notes);
    return answer;
}

json_t *verb_move(struct conn *c, const json_t *request)
{
    json_t *no, *nothing = NULL;

    if (xm_json_bool(request, "dry_run", false))
        return verb_check(c, request);
    struct job *job = move_begin(c->agent, request, false, NULL, &nothing, &no);
    if (nothing)
        conn_event(c, nothing);
    if (!job)
        return no ? no : ok_answer();
    if (!xm_json_bool(request, "detach", false))
        return job_stream(c, job);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "job", json_string(job->id));
    job_put(c->agent, job);
    return answer;
}

/* The job that a request names: NULL with the refusal when there is none, or it is over. Its VM's name is put
 * to `vm`. */
static struct job *running_job(struct conn *c, const json_t *request, char vm[VM_NAME_MAX + 1],
                               bool *launched, json_t **no)
{
    struct agent *a = c->agent;
    const char *id = xm_json_str(request, "job", "");
    struct job *job = job_get(a, id);

    if (!job) {
        *no = no_such_job(id);
        return NULL;
    }
    agent_lock(a);
    bool over = job->over;
    *launched = job->launched;
    snprintf(vm, VM_NAME_MAX + 1, "%s", xm_json_str(job->about, "vm", ""));
    agent_unlock(a);
    if (over) {
        job_put(a, job);
        *no = refusal(EXIT_FAILED, "job %s is over", id);
        return NULL;
    }
    return job;
}

json_t *verb_abort(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    char vm[VM_NAME_MAX + 1];
    struct xm_error e = {0};
    bool launched;
    json_t *no;
    struct job *job = running_job(c, request, vm, &launched, &no);

    if (!job)
        return no;
    agent_lock(a);
    launched = job->launched; /* again, in one step with: */
    job->barred = "aborted by its user";
    agent_unlock(a);
    if (!launched) { /* the destination may take its time to answer, or does not: its answer is cancelled */
        job_fail(a, job, EXIT_FAILED, "aborted by its user");
    } else {
        json_t *answer = shim_call(a, vm, json_pack("{s:s, s:s}", "cmd", "abort", "job", job->id), -1,
                                   15 * XM_NS_PER_S, &e);
        if (!answer) {
            job_put(a, job);
            return refusal(EXIT_FAILED, "%s", e.text);
        }
        json_decref(answer);
    }
    job_put(a, job);
    return ok_answer();
}

/* A shim works on it, or has just been asked to. */
static bool wait_launched(struct agent *a, const struct job *job, uint64_t until)
{
    agent_lock(a);
    while (!job->launched && !job->over && agent_wait(a, until))
        ;
    bool is = job->launched && !job->over;
    agent_unlock(a);
    return is;
}

/* Whoever has just seen the job begin may be quicker than it. */
static json_t *set_soon(struct agent *a, const struct job *job, const char *vm, json_t *what,
                        struct xm_error *e)
{
    uint64_t until = xm_now() + LAUNCH_NS;
    json_t *answer = NULL;

    xm_error_set(e, EAGAIN, "job %s is still being prepared: try again", job->id);
    while (wait_launched(a, job, until) &&
           !(answer = shim_call(a, vm, json_deep_copy(what), -1, LAUNCH_NS, e)) && xm_now() < until)
        poll(NULL, 0, 100);
    json_decref(what);
    return answer;
}

json_t *verb_set(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    int64_t rate = xm_json_int(request, "bandwidth", -1);
    char vm[VM_NAME_MAX + 1];
    struct xm_error e = {0};
    bool launched;
    json_t *no;

    if (json_is_boolean(json_object_get(request, "autostart")))
        return define_autostart(a, xm_json_str(request, "vm", ""),
                                json_is_true(json_object_get(request, "autostart")));
    const char *outrun = xm_json_str(request, "outrun", NULL);
    bool go_on = outrun && !strcmp(outrun, "go-on");
    if (outrun ? !go_on && strcmp(outrun, "end") != 0 : rate < 0)
        return refusal(EXIT_USAGE,
                       "set needs a bandwidth, in bytes a second (0: no limit), or outrun (end or "
                       "go-on)");
    struct job *job = running_job(c, request, vm, &launched, &no);
    if (!job)
        return no;
    json_t *what = json_pack("{s:s, s:s}", "cmd", "set", "job", job->id);
    if (outrun)
        json_object_set_new(what, "persist", json_boolean(go_on));
    else
        json_object_set_new(what, "bandwidth", json_integer((json_int_t)rate));
    json_t *answer = set_soon(a, job, vm, what, &e);
    job_put(a, job);
    if (!answer)
        return refusal(EXIT_FAILED, "%s", e.text);
    json_decref(answer);
    return ok_answer();
}
