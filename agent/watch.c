/* SPDX-License-Identifier: MIT */
/* A VM's watcher: what its shim tells, and what is done when that has gone.
 *
 * Happy path: who has started a shim (shim.c) starts the watcher; that subscribes to the shim's events and
 * passes those of this host's jobs on; when the shim has ended, the run directory is removed (clean_up.c) and
 * the VM forgotten.
 *
 * The shim dies while its QEMU lives: a new shim is started by what the inventory has; it takes the QEMU
 * over, whose disks wait. Shim and QEMU are both dead: the directory is removed; if it was an incoming
 * migration that never took over, the disks that were made for it too.
 */
#include "agent/inventory.h"
#include "agent/nvram.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECTED_NS (10 * XM_NS_PER_S) /* a VM that is on its way is asked so often whether it has come */
#define LAST_NS     (3 * XM_NS_PER_S)  /* a job's last event waits so long for the end of the VM's shim */
#define REVIVE_MAX  3
#define REVIVE_NS   (600 * XM_NS_PER_S) /* so many in that time, then only: */
#define ORPHAN_NS   (10 * XM_NS_PER_S)  /* once in that time: another may have had its disks' locks */

struct watch {
    struct agent *agent;
    char name[VM_NAME_MAX + 1];
};

/* It was expected, and is this host's own by now. */
static void took_over(struct agent *a, const char *name)
{
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool came = vm && vm->incoming;
    if (came) {
        xm_log(XM_LOG_INFO, "VM %s has come from %s and runs here", name,
               xm_json_str(vm->incoming, "source", "?"));
        json_decref(vm->incoming);
        vm->incoming = NULL;
        pthread_cond_broadcast(&a->changed);
    }
    agent_unlock(a);
    if (came) {
        xm_fault("vm-came");
        nvram_sync(a, name);
        inventory_came(a, name, true);
    }
}

/* Asked again whenever something happened. */
static void learn_role(struct agent *a, const char *name)
{
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
    char lost[16] = "";

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && st && vm->job_assumed) {
        vm->job_assumed = false;
        if (strcmp(vm->job, xm_json_str(st, "job", "")) != 0)
            memcpy(lost, vm->job, sizeof lost);
    }
    agent_unlock(a);
    if (lost[0])
        job_lost(a, lost);
    if (st && !strcmp(xm_json_str(st, "role", ""), "owner"))
        took_over(a, name);
    json_decref(st);
}

/* Disks may have moved, also where that failed in the end: what stands durably, not what this agent
 * remembers. A new reference, or NULL. */
static json_t *learn_spec(struct agent *a, const char *name, struct xm_error *e)
{
    char *path = vm_state_path(a, name, "spec.json");
    json_t *spec = read_json(path, e);

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && spec) {
        json_decref(vm->spec);
        vm->spec = json_incref(spec);
    }
    agent_unlock(a);
    free(path);
    return spec;
}

/* A job that this agent knows by its shim alone: its record could not be written, and who began it died. */
static void forget_job(struct agent *a, const char *name, const char *id)
{
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && !strcmp(vm->job, id))
        vm->job[0] = 0;
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
}

/* Its user is told what stays, and why. */
static void note_left(struct agent *a, const char *name, json_t *event)
{
    char *why = left_wait(a, name);

    if (why)
        json_object_set_new(event, "note", json_sprintf("%s; that is tried again", why));
    free(why);
}

static void on_event(struct agent *a, const char *name, json_t *event)
{
    const char *what = xm_json_str(event, "event", "");
    struct job *job = NULL;

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool incoming = vm && vm->incoming;
    char id[16] = "";
    /* The other side's jobs are counted by the other side. */
    if (vm && !incoming && vm->job[0] && !strcmp(vm->job, xm_json_str(event, "job", "")))
        memcpy(id, vm->job, sizeof id);
    agent_unlock(a);
    bool done = !strcmp(what, "done"), over = done || !strcmp(what, "failed");
    if (over && !incoming)
        json_decref(learn_spec(a, name, NULL));
    bool gone = done || xm_json_bool(event, "stopped", false);
    if (id[0] && gone) {
        agent_lock(a);
        if ((vm = vm_find(a, name))) {
            json_decref(vm->last);
            vm->last = json_incref(event);
            vm->last_at = xm_now();
        }
        agent_unlock(a);
    }
    if (id[0] && (job = job_get(a, id))) {
        bool local = !strcmp(xm_json_str(job->about, "mode", ""), "storage-only");
        /* When the VM has gone, that is said after it has gone from the list too (vm_ended): then it can be
         * started. */
        gone = gone && !(done && local);
        if (over && local) /* the half copies of one that failed, too, are gone when that is said */
            note_left(a, name, event);
        if (!gone)
            job_event(a, job, json_incref(event));
        job_put(a, job);
    } else if (id[0] && over) {
        forget_job(a, name, id);
    }
    if (incoming && strcmp(what, "progress"))
        learn_role(a, name);
}

/* Is the end of its shim waited for, so that its job's last event can be told? With the lock held. */
static bool holds_last(const struct vm *vm)
{
    return vm && vm->last && vm->job[0] && !strcmp(vm->job, xm_json_str(vm->last, "job", ""));
}

/* Old storage that hangs, say, may keep its shim from ending for as long as it likes: the VM, not the job. */
static void tell_last(struct agent *a, const char *name)
{
    json_t *last = NULL;

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (holds_last(vm) && xm_now() - vm->last_at >= LAST_NS)
        last = json_copy(vm->last);
    agent_unlock(a);
    struct job *job = last ? job_get(a, xm_json_str(last, "job", "")) : NULL;
    if (job) {
        json_object_set_new(last, "note", json_string("its shim here has not ended yet"));
        job_event(a, job, json_incref(last));
        job_put(a, job);
    }
    json_decref(last);
}

/* The next event. A shim that was silent when it was asked what it is now may have no more to tell. */
static json_t *next_event(struct agent *a, const char *name, struct xm_jsonl *js)
{
    for (;;) {
        struct xm_error e = {0};
        agent_lock(a);
        struct vm *vm = vm_find(a, name);
        bool expected = vm && vm->incoming, last = holds_last(vm);
        agent_unlock(a);
        json_t *o = xm_jsonl_recv(js,
                                  last       ? xm_now() + LAST_NS
                                  : expected ? xm_now() + EXPECTED_NS
                                             : UINT64_MAX,
                                  &e);
        if (o || e.code != ETIMEDOUT)
            return o;
        tell_last(a, name);
        if (expected)
            learn_role(a, name);
    }
}

/* Until the shim hangs up. False: it could not be reached. */
static bool listen_to(struct agent *a, const char *name)
{
    char *path = vm_path(a, name, "shim.sock");
    struct xm_jsonl js;
    int fd = xm_unix_connect(path, NULL);

    free(path);
    if (fd < 0)
        return false;
    xm_jsonl_init(&js, fd);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool go_on = vm && !a->ending;
    if (go_on)
        vm->watch_fd = fd;
    agent_unlock(a);
    if (go_on && !xm_jsonl_send(fd, json_pack("{s:i, s:s}", "id", 1, "cmd", "subscribe"), -1, NULL)) {
        for (json_t *o; (o = next_event(a, name, &js)); json_decref(o)) {
            if (json_object_get(o, "event"))
                on_event(a, name, o);
            else if (xm_json_int(o, "id", 0) == 1)
                learn_role(a, name); /* nothing that happens from now on is missed */
        }
    }
    agent_lock(a);
    if ((vm = vm_find(a, name)))
        vm->watch_fd = -1;
    agent_unlock(a);
    xm_jsonl_close(&js);
    return true;
}

/* The job that the dead shim worked on, or was to get, is given to no other one (launch). NULL: none. */
static struct job *bar_job_of(struct agent *a, const char *name)
{
    char id[16] = "";

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm)
        memcpy(id, vm->job, sizeof id);
    agent_unlock(a);
    struct job *job = id[0] ? job_get(a, id) : NULL;
    if (!job)
        return NULL;
    agent_lock(a);
    job->barred = "the shim died before it had the migration";
    agent_unlock(a);
    return job;
}

/* Its disks may have moved before it died. */
static void fail_job_of_dead(struct agent *a, struct job *job, const json_t *spec)
{
    static const char why[] = "the shim died, and with it the migration; the VM runs on here with a new one";
    const json_t *disks = json_object_get(spec, "disks"), *d;
    unsigned there = 0;
    size_t i;

    agent_lock(a); /* who prepares it may be writing down what it has learned of it (launch.c) */
    const char *datastore = xm_json_str(job->about, "datastore", "");
    json_array_foreach ((json_t *)disks, i, d)
        there += !strcmp(xm_json_str(d, "datastore", ""), datastore);
    char *text = !strcmp(xm_json_str(job->about, "mode", ""), "storage-only")
                     ? xm_printf("%s, %u of its %zu disks in datastore %s", why, there,
                                 json_array_size(disks), datastore)
                     : xm_printf("%s", why);
    agent_unlock(a);
    job_fail(a, job, EXIT_FAILED, text);
    free(text);
}

/* The shim is gone and QEMU is not: another shim for it. */
static bool revive(struct agent *a, const char *name)
{
    struct xm_error e = {0};
    uint64_t epoch;

    bool owned = vm_owned(a, name, &epoch);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && xm_now() - vm->revived_at > REVIVE_NS) {
        vm->revived = 0;
        vm->revived_at = xm_now();
    }
    /* Expected here and recorded as ours: it came, and its shim died before it said so. */
    bool expected = vm && vm->incoming;
    bool may = vm && (!expected || owned) && vm->revived++ < REVIVE_MAX;
    agent_unlock(a);
    json_t *spec = may && !inventory_mend(a, name, &e) ? learn_spec(a, name, &e) : NULL;
    if (may && !spec)
        xm_log(XM_LOG_ERROR, "VM %s: %s", name, e.text);
    if (!spec || !vm_process(a, name, "qemu.pid") || !vm_owned(a, name, &epoch)) {
        json_decref(spec);
        return false;
    }
    xm_log(XM_LOG_WARN, "VM %s: its shim has died; starting another one for its running QEMU", name);
    struct job *job = bar_job_of(a, name);
    vm_take_result(a, name); /* it may have come to write how the migration has ended */
    xm_fault("reviving");
    int r = vm_spawn(a, name, spec, epoch, NULL, &e);
    if (!r && expected)
        took_over(a, name);
    if (r)
        xm_log(XM_LOG_ERROR, "%s", e.text);
    else if (job)
        fail_job_of_dead(a, job, spec);
    json_decref(spec);
    if (job)
        job_put(a, job);
    /* Its QEMU may be slow to answer: the next try, as long as there may be one. */
    return r == 0 || vm_process(a, name, "qemu.pid");
}

/* Nothing runs here any more, and this host's record says that it owns the VM: so nobody has it, and it is
 * as a guest leaves it that powers itself down. What a shim says of that that was still at work
 * (migrate/source_end.c). */
static json_t *stopped_here(struct agent *a, const char *name)
{
    char *dir = vm_state_path(a, name, NULL);
    struct vm_life l;
    bool known = !life_load(dir, &l, NULL) && l.state == LIFE_ENDED;
    json_t *event = json_pack(
        "{s:s, s:o, s:b, s:b, s:i}", "event", "failed", "error",
        json_sprintf("VM %s has ended meanwhile: %s", name, life_why_text(known ? l.why : LIFE_UNKNOWN)),
        "vm_safe", 1, "stopped", 1, "exit", EXIT_FAILED);

    free(dir);
    return event;
}

/* The shim leaves its last event in a file: the agent may have been away when it was sent. One that ended
 * before it was given the migration has none. */
static void end_job(struct agent *a, const char *name, const char *id, json_t *result, bool gone)
{
    struct job *job = job_get(a, id);

    if (job && result && !strcmp(xm_json_str(result, "job", ""), id)) {
        if (!strcmp(xm_json_str(result, "event", ""), "done"))
            note_left(a, name, result);
        job_event(a, job, json_incref(result));
    } else if (job && gone && vm_owned(a, name, NULL)) {
        job_event(a, job, stopped_here(a, name));
    } else if (job) {
        char *why = xm_printf(
            "the shim of VM %s ended without a report; `xmigrate recover %s` finds out where the VM is", name,
            name);
        job_fail(a, job, EXIT_UNKNOWN, why);
        free(why);
    }
    if (job)
        job_put(a, job);
}

/* False: its QEMU is left, or has another shim, and with it the VM in the list. */
static bool vm_ended(struct agent *a, const char *name, uint64_t claimed)
{
    char id[16] = "";
    json_t *result = read_vm_json(a, name, "result.json");

    xm_fault("vm-ended");
    agent_lock(a);
    const struct vm *vm = vm_find_claimed(a, name, claimed);
    if (vm) {
        memcpy(id, vm->job, sizeof id);
        /* Its run directory may have been full: no file, or an earlier job's. */
        if (vm->last && strcmp(xm_json_str(result, "job", ""), id) != 0) {
            json_decref(result);
            result = json_incref(vm->last);
        }
    }
    agent_unlock(a);
    bool gone = vm_end_claimed(a, name, claimed);
    if (id[0] && strcmp(id, "-") != 0)
        end_job(a, name, id, result, gone);
    json_decref(result);
    return gone;
}

/* Its QEMU has no shim: until another one is started for it (settle.c), which has a watcher of its own, or it
 * ends. One that hung may answer again. */
static void watch_orphan(struct agent *a, const char *name, uint64_t claimed)
{
    uint64_t tried = xm_now();
    bool over = false;

    while (!over) {
        bool mine = settle_claim(a, name, 0); /* then nobody starts that shim at this moment */
        agent_lock(a);
        over = a->ending || !vm_find_claimed(a, name, claimed);
        agent_unlock(a);
        if (!over && mine && xm_now() - tried > ORPHAN_NS && vm_owned(a, name, NULL) &&
            vm_process(a, name, "qemu.pid") && !vm_process(a, name, "shim.pid")) {
            json_decref(settle_claimed(a, name, false));
            tried = xm_now();
        }
        if (!over && mine)
            over = vm_process(a, name, "shim.pid") ||
                   (!vm_process(a, name, "qemu.pid") && vm_end_orphan(a, name));
        if (mine)
            settle_release(a, name);
        agent_lock(a);
        uint64_t until = xm_now() + XM_NS_PER_S;
        while (!over && agent_wait(a, until))
            ;
        agent_unlock(a);
    }
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    struct agent *a = w->agent;
    bool ending = false;

    agent_lock(a);
    struct vm *vm = vm_find(a, w->name);
    uint64_t claimed = vm ? vm->claimed : 0;
    agent_unlock(a);
    while (!ending) {
        listen_to(a, w->name);
        /* It hung up, or is not there yet, or is dead. */
        if (!vm_process(a, w->name, "shim.pid") && !revive(a, w->name))
            break;
        tell_last(a, w->name);
        ending = agent_pause(a, 100 * XM_NS_PER_MS);
    }
    agent_lock(a);
    ending = a->ending;
    if ((vm = vm_find_claimed(a, w->name, claimed)))
        vm->watched = false;
    agent_unlock(a);
    if (!ending && !vm_ended(a, w->name, claimed))
        watch_orphan(a, w->name, claimed);
    free(w);
    agent_thread_ends(a);
    return NULL;
}

static int watch_begin(struct agent *a, const char *name, struct xm_error *e)
{
    struct watch *w = calloc(1, sizeof *w);

    if (!w)
        return xm_error_set(e, ENOMEM, "no memory to watch VM %s", name);
    w->agent = a;
    snprintf(w->name, sizeof w->name, "%s", name);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm) {
        vm->phase = VM_UP;
        vm->watched = true;
    }
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    int r = xm_fault("watch-thread") ? xm_error_set(e, EAGAIN, "fault point watch-thread")
                                     : agent_thread(a, watch_main, w, e);
    if (!r)
        return 0;
    agent_lock(a);
    if ((vm = vm_find(a, name)))
        vm->watched = false;
    agent_unlock(a);
    free(w);
    return r;
}

/* It runs, and that nobody listens to its shim ends nothing of it. */
void vm_watch(struct agent *a, const char *name)
{
    struct xm_error e = {0};

    if (watch_begin(a, name, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: what its shim tells is not heard yet: %s; tried again", name, e.text);
}

void vm_watch_all(struct agent *a)
{
    json_t *names = json_array(), *name;
    struct vm *vm;
    size_t i;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (vm->phase == VM_UP && !vm->watched)
            json_array_append_new(names, json_string(vm->name));
    }
    agent_unlock(a);
    json_array_foreach (names, i, name)
        if (vm_process(a, json_string_value(name), "shim.pid"))
            vm_watch(a, json_string_value(name));
    json_decref(names);
}
