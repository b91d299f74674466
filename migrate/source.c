/* SPDX-License-Identifier: MIT */
/* The source's thread: its states, and what the main thread asks of it.
 *
 * Happy path: prepare -> disks -> memory -> switch -> handoff -> settle -> done; each step is a function
 * that returns when its state is over. Failures:
 *   in prepare, disks, memory   mirror off, tracking off, links aborted (the destination cleans up by
 *                               itself): the VM was never touched
 *   in switch                   the same; and QEMU, once it has been told to begin its migration, is told to
 *                               take it back and to go on: the VM runs here. While that fails (this host's
 *                               storage hangs, say) it is tried again as long as QEMU lives; after 10 s it is
 *                               said
 *                               But when it only took too long, the guest goes on, and another switch is
 *                               tried (source_again.c)
 *   in handoff                  before the record: as in switch, and the destination is told that the VM
 *                               stays. After the record: the VM is not ours any more, whatever we hear. It
 *                               stays stopped here, and the state is `unknown` until the destination answers
 *                               or `recover` asks; unless the destination hands it back.
 *   in settle                   the VM runs there; what could not be cleaned up is said, and done again by
 *                               the agent.
 * An abort is a failure that somebody wished for: honoured until the record is written. */
#include "migrate/source.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_ROOM (64u << 10) /* the last event's bytes, disks and rounds and all */

static const char *const state_names[SOURCE_STATES] = {"prepare", "disks", "memory", "switch", "handoff",
                                                       "settle",  "done",  "failed", "unknown"};

/* Which state may follow which: bit n of [s]: s -> n. */
#define TO(s) (1u << (s))
static const unsigned legal[SOURCE_STATES] = {
    [SOURCE_PREPARE] = TO(SOURCE_DISKS) | TO(SOURCE_MEMORY) | TO(SOURCE_FAILED),
    [SOURCE_DISKS] = TO(SOURCE_MEMORY) | TO(SOURCE_SETTLE) | TO(SOURCE_FAILED),
    [SOURCE_MEMORY] = TO(SOURCE_SWITCH) | TO(SOURCE_FAILED),
    [SOURCE_SWITCH] = TO(SOURCE_HANDOFF) | TO(SOURCE_MEMORY) | TO(SOURCE_FAILED),
    [SOURCE_HANDOFF] = TO(SOURCE_SETTLE) | TO(SOURCE_FAILED) | TO(SOURCE_UNKNOWN),
    [SOURCE_SETTLE] = TO(SOURCE_DONE),
};

const char *source_step_name(enum source_state s)
{
    return state_names[s];
}

const char *source_state_name(const struct source *m)
{
    return state_names[atomic_load(&m->state)];
}

json_t *source_event(const struct source *m, const char *name)
{
    return json_pack("{s:s s:s s:s}", "event", name, "job", m->job, "state", source_state_name(m));
}

int source_set_state(struct source *m, enum source_state to)
{
    /* Invariant: only legal transitions; this is our own logic, nothing from outside can lead here. */
    if (!(legal[m->state] & TO(to))) {
        xm_log(XM_LOG_ERROR, "job %s: refused to go from %s to %s", m->job, source_state_name(m),
               state_names[to]);
        return xm_error_set(&m->error, EPROTO, "no way leads from «%s» to «%s»: please report this",
                            source_state_name(m), state_names[to]);
    }
    xm_log(XM_LOG_INFO, "VM %s, job %s: %s -> %s", m->machine->spec.name, m->job, source_state_name(m),
           state_names[to]);
    m->state = to;
    /* Of memory that goes anew: both times, and the switch-over between them, are memory's. */
    if (to != SOURCE_MEMORY || !m->report.entered[to])
        m->report.entered[to] = xm_now();
    if (to != SOURCE_DONE && to != SOURCE_FAILED && to != SOURCE_UNKNOWN) {
        m->machine->emit(m->machine, source_event(m, "state"));
        source_progress(m, true);
    }
    return 0;
}

int source_interrupted(struct source *m)
{
    struct xm_error lost = {0};

    if (m->qemu_gone)
        return xm_error_set(&m->error, ECHILD, "VM %s has ended here meanwhile (powered off?) and is stopped",
                            m->machine->spec.name);
    if (m->asked.abort)
        return xm_error_set(&m->error, ECANCELED, "aborted: %s", m->asked.reason);
    if (m->links) {
        xm_links_peer_said(m->links, &lost);
        if (lost.code)
            return xm_error_set(&m->error, lost.code, "%s has ended the migration: %s", m->destination,
                                lost.text);
        xm_links_error(m->links, &lost);
        if (lost.code)
            return xm_error_set(&m->error, lost.code, "lost the destination %s: %s", m->destination,
                                lost.text);
    }
    return 0;
}

void source_turn(struct source *m, int ms)
{
    uint64_t rate = m->asked.rate;

    qmp_pump(&m->machine->qemu.qmp, ms, NULL);
    if (m->links && m->rate != rate)
        xm_links_set_rate(m->links, m->rate = rate);
    source_progress(m, false);
}

bool source_waits(void *ctx)
{
    struct source *m = ctx;

    source_turn(m, 0);
    return source_interrupted(m) < 0;
}

json_t *source_call(struct source *m, json_t *steals, uint64_t timeout_ns, struct xm_error *e)
{
    return call_destination(m->links, m->attempt, steals, timeout_ns, e);
}

struct patience {
    struct source *m;
    uint64_t until;
};

/* No turn: in the switch-over the links have another rate. */
static bool no_longer(void *ctx)
{
    struct patience *p = ctx;

    qmp_pump(&p->m->machine->qemu.qmp, 0, NULL);
    source_progress(p->m, false);
    return source_interrupted(p->m) < 0 || xm_now() > p->until;
}

json_t *source_call_awake(struct source *m, json_t *steals, uint64_t timeout_ns)
{
    struct patience p = {m, xm_now() + timeout_ns};
    char what[32];

    snprintf(what, sizeof what, "%s", xm_json_str(steals, "call", "?"));
    json_t *reply = call_destination_until(m->links, m->attempt, steals, no_longer, &p, &m->error);
    if (!reply && !source_interrupted(m) && xm_now() > p.until) /* that is the cause */
        xm_error_set(&m->error, ETIMEDOUT, "the destination does not answer «%s» within %s", what,
                     xm_format_time(timeout_ns).s);
    return reply;
}

static int memory_and_switch(struct source *m)
{
    xm_sched_background(0, true);
    int r = source_memory(m);
    xm_sched_background(0, false);
    xm_links_set_background(m->links, false);
    if (r < 0)
        return r;
    xm_fault("memory-copied");
    return (r = source_set_state(m, SOURCE_SWITCH)) < 0 ? r : source_switch(m);
}

static int source_walk(struct source *m)
{
    int r;

    if (m->local) {
        if ((r = source_storage(m)) < 0)
            return r;
        return source_set_state(m, SOURCE_SETTLE);
    }
    if ((r = source_handoff_prepare(m)) < 0)
        return r;
    xm_fault("source-journaled");
    if ((r = source_prepare(m)) < 0)
        return r;
    xm_fault("source-begun");
    if (m->storage) {
        if ((r = source_set_state(m, SOURCE_DISKS)) < 0 || (r = source_disks(m)) < 0)
            return r;
        xm_fault("disks-copied");
    }
    if ((r = source_set_state(m, SOURCE_MEMORY)) < 0)
        return r;
    while ((r = memory_and_switch(m)) < 0) {
        if (m->state != SOURCE_SWITCH || (r = source_again(m, r)) < 0)
            return r;
    }
    if ((r = source_set_state(m, SOURCE_HANDOFF)) < 0 || (r = source_handoff(m)) < 0)
        return r;
    return source_set_state(m, SOURCE_SETTLE);
}

static void *source_main(void *arg)
{
    struct source *m = arg;
    char *result = xm_printf("%s/result.json", m->machine->run_dir);

    pthread_setname_np(pthread_self(), "source");
    xm_room_keep(result, RESULT_ROOM);
    free(result);
    m->report.began = m->report.entered[m->state] = xm_now();
    source_end(m, source_walk(m));
    return NULL;
}

struct source *source_start(struct machine *vm, const json_t *request, bool local, migrate_ended *ended,
                            struct xm_error *e)
{
    struct source *m = calloc(1, sizeof *m);
    if (!m) {
        xm_error_set(e, ENOMEM, "no memory");
        return NULL;
    }
    const json_t *o = json_object_get(request, "options");
    m->machine = vm;
    m->ended = ended;
    m->local = local;
    m->storage = xm_json_bool(request, "storage", true);
    m->request = json_deep_copy(request);
    m->kept = json_array();
    snprintf(m->job, sizeof m->job, "%s", xm_json_str(request, "job", "0"));
    snprintf(m->destination, sizeof m->destination, "%s", xm_json_str(request, "destination", vm->host));
    m->opt = (struct source_options){
        .downtime = (uint64_t)xm_json_int(o, "downtime_ns", 100 * (int64_t)XM_NS_PER_MS),
        .link_timeout = (uint64_t)xm_json_int(o, "link_timeout_ns", 0),
        .grace = (uint64_t)xm_json_int(o, "grace_ns", XM_NS_PER_S),
        .keep_source = xm_json_bool(o, "keep_source", false),
        .verify = xm_json_bool(o, "verify", false),
        .patience = 5,
    };
    m->asked.rate = (uint64_t)xm_json_int(o, "bandwidth", 0);
    m->asked.persist = xm_json_bool(o, "persist", false);
    m->state = local ? SOURCE_DISKS : SOURCE_PREPARE;
    int r = pthread_create(&m->thread, NULL, source_main, m);
    if (!r)
        return m;
    json_decref(m->request);
    json_decref(m->kept);
    free(m);
    xm_error_errno(e, r, "the migration's thread");
    return NULL;
}

int source_abort(struct source *m, const char *job, const char *reason, struct xm_error *e)
{
    if (source_over(m) || (job && job[0] && strcmp(job, m->job) != 0))
        return xm_error_set(e, ENOENT, "VM %s has no such migration going on", m->machine->spec.name);
    if (!m->asked.abort)
        snprintf(m->asked.reason, sizeof m->asked.reason, "%s", reason); /* before whoever looks for it */
    int first = ABORT_MAY_COME;
    bool late =
        m->state > SOURCE_SWITCH ||
        (!atomic_compare_exchange_strong(&m->asked.first, &first, ABORT_CAME) && first == ABORT_TOO_LATE);
    if (late && m->local)
        return xm_error_set(e, EBUSY, "too late: the disks of VM %s have moved to datastore '%s'",
                            m->machine->spec.name, xm_json_str(m->request, "datastore", "?"));
    if (late)
        return xm_error_set(e, EBUSY, "too late: VM %s is being handed over to %s", m->machine->spec.name,
                            m->destination);
    m->asked.abort = true;
    return 0;
}

bool source_past_abort(struct source *m)
{
    int first = ABORT_MAY_COME;

    return atomic_compare_exchange_strong(&m->asked.first, &first, ABORT_TOO_LATE) || first == ABORT_TOO_LATE;
}

void source_abort_again(struct source *m)
{
    int first = ABORT_TOO_LATE;

    atomic_compare_exchange_strong(&m->asked.first, &first, ABORT_MAY_COME);
}

void source_set_rate(struct source *m, uint64_t bytes_per_s)
{
    m->asked.rate = bytes_per_s;
}

void source_persist(struct source *m, bool yes)
{
    m->asked.persist = yes;
}

/* QEMU stops the guest itself when its migration is active, and not before. */
bool source_stops(const struct source *m)
{
    return m->stopping && m->seen.status[0] && strcmp(m->seen.status, "setup") != 0;
}

void source_qmp_event(struct source *m, const char *name, const json_t *data, uint64_t when)
{
    if (!strcmp(name, "MIGRATION"))
        snprintf(m->seen.status, sizeof m->seen.status, "%s", xm_json_str(data, "status", ""));
    else if (!strcmp(name, "SHUTDOWN"))
        m->seen.powered_off = xm_json_bool(data, "guest", false);
    else if (!strcmp(name, "STOP") && !source_stops(m)) {
        m->paused = true; /* by its user; before a switch-over that is asked anew */
    } else if (!strcmp(name, "STOP")) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        uint64_t real = (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
        uint64_t now = xm_now(), since = m->report.entered[SOURCE_SWITCH];
        /* When it happened, not when we read of it. The clock may have been set in between. */
        m->seen.stop = now - XM_MIN(real > when ? real - when : 0, now - XM_MIN(since, now));
        m->seen.stream_at_stop = m->stream ? stream_bytes(m->stream) : 0;
    } else if (!strcmp(name, "RESUME")) {
        m->seen.resumed = true;
    }
}

void source_qemu_gone(struct source *m)
{
    m->qemu_gone = true;
}

bool source_over(const struct source *m)
{
    return m->state == SOURCE_DONE || m->state == SOURCE_FAILED || m->state == SOURCE_UNKNOWN;
}

bool source_stands(const struct source *m)
{
    return source_over(m) && m->stands;
}

bool source_ending(const struct source *m)
{
    return (m->state == SOURCE_FAILED && !m->stands) || (m->state == SOURCE_DONE && m->local);
}

void source_leave(struct source *m)
{
    m->asked.leave = true;
}

const char *source_job(const struct source *m)
{
    return m->job;
}

void source_status(const struct source *m, json_t *into)
{
    json_object_set_new(into, "job", json_string(m->job));
    json_object_set_new(into, "step", json_string(source_state_name(m)));
    json_object_set_new(into, "destination", json_string(m->destination));
}

void source_free(struct source *m)
{
    pthread_join(m->thread, NULL);
    json_decref(m->request);
    json_decref(m->kept);
    free(m);
}
