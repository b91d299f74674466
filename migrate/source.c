/* SPDX-License-Identifier: MIT */
/* The source's thread.
 *
 * Happy path: prepare -> disks -> memory -> switch -> handoff -> settle -> done; each step is a function
 * that returns when its state is over. Failures:
 *   in prepare, disks, memory   mirror off, tracking off, links aborted (the destination cleans up by itself): the VM was never touched
 *   in switch                   the same, and QEMU is told to take back its migration and to go on: the VM
 *                               runs here. While that fails (this host's storage hangs, say) it is tried again
 *                               as long as QEMU lives; after 10 s it is said
 *   in handoff                  before the record: as in switch, and the destination is told that the VM stays. After the record: the VM
 *                               is not ours any more, whatever we hear. It stays stopped here, and the state is `unknown` until the
 *                               destination answers or `recover` asks; unless the destination hands it back.
 *   in settle                   the VM runs there; what could not be cleaned up is said, and done again by the agent.
 * An abort is a failure that somebody wished for: honoured until the record is written. */
#include "migrate/source.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const state_names[SOURCE_STATES] = {"prepare", "disks", "memory", "switch", "handoff",
                                                       "settle",  "done",  "failed", "unknown"};

/* The VM runs at the destination; before its QEMU here gives gigabytes back, it gets a moment to find its
 * feet. Hosts of their own do not notice; two hosts on two processors do (silence of an idle guest seen
 * from outside: 25 to 43 ms, 35 to 90 without). */
#define RESULT_ROOM (64u << 10) /* the last event's bytes, disks and rounds and all */
#define SETTLE_MS   100
#define BRIDGES_MAX (60 * XM_NS_PER_S) /* two forward delays of 30 s, the longest */
#define END_TIMEOUT (5 * XM_NS_PER_S)  /* of a QEMU that is ending */
#define END_SOON    (500 * XM_NS_PER_MS)
/* How long a VM that does not go on is waited for before that is said, and how often it is tried. */
#define BACK_PATIENCE (10 * XM_NS_PER_S)
#define BACK_EVERY_MS 200

/* Which state may follow which: bit n of [s]: s -> n. */
#define TO(s) (1u << (s))
static const unsigned legal[SOURCE_STATES] = {
    [SOURCE_PREPARE] = TO(SOURCE_DISKS) | TO(SOURCE_MEMORY) | TO(SOURCE_FAILED),
    [SOURCE_DISKS] = TO(SOURCE_MEMORY) | TO(SOURCE_SETTLE) | TO(SOURCE_FAILED),
    [SOURCE_MEMORY] = TO(SOURCE_SWITCH) | TO(SOURCE_FAILED),
    [SOURCE_SWITCH] = TO(SOURCE_HANDOFF) | TO(SOURCE_FAILED),
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
    if (m->abort)
        return xm_error_set(&m->error, ECANCELED, "aborted: %s", m->abort_reason);
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

/* ---- the walk ---- */

static void link_event(void *ctx, int link, enum xm_link_state st, const struct xm_error *e)
{
    struct source *m = ctx;

    xm_log(XM_LOG_INFO, "job %s: link %d is %s%s%s", m->job, link, st == XM_LINK_UP ? "up" : "down",
           e && e->code ? ": " : "", e && e->code ? e->text : "");
    source_disks_links(m);
}

static int add_link(struct source *m, const char *local, const char *remote, uint16_t port, const char *token)
{
    struct xm_error e = {0};
    char name[64];
    char *preamble;

    snprintf(name, sizeof name, "%s -> %s", local, remote);
    int fd = xm_tcp_connect(local, remote, port, 5 * XM_NS_PER_S, &e);
    if (fd >= 0) {
        preamble = xm_printf("XMIG/1 link %s %s\n", token, local);
        size_t n = strlen(preamble);
        if (write(fd, preamble, n) != (ssize_t)n) {
            xm_error_errno(&e, errno, "link %s", name);
            close(fd);
            fd = -1;
        }
        free(preamble);
    }
    if (fd >= 0 && xm_links_add(m->links, fd, true, name, &e) >= 0)
        return 0;
    xm_log(XM_LOG_WARN, "job %s: %s", m->job, e.text);
    m->error = e;
    return -e.code;
}

/* Tells the destination what comes, so that both sides number disks and RAM blocks alike; learns which disks
 * read as zeros. */
static int source_begin(struct source *m)
{
    struct machine *vm = m->machine;
    struct owner_record rec;
    json_t *disks = json_array();
    json_t *ram = json_array();

    /* An operator may have declared a peer dead since this shim read it. */
    if (owner_load(vm->state_dir, vm->spec.name, &rec, &m->error) < 0) {
        json_decref(disks);
        json_decref(ram);
        return -m->error.code;
    }
    vm->epoch = rec.epoch;
    for (unsigned i = 0; i < vm->disks; i++)
        json_array_append_new(disks, json_pack("{s:s s:I s:i}", "name", vm->disk[i].spec->name, "size",
                                               (json_int_t)vm->disk[i].file->size, "block",
                                               (int)vm->disk[i].spec->block_size));
    for (unsigned i = 0; i < vm->ram.blocks; i++)
        json_array_append_new(ram, json_pack("{s:s s:I}", "name", vm->ram.block[i].name, "size",
                                             (json_int_t)vm->ram.block[i].size));
    json_int_t epoch = (json_int_t)vm->epoch + 1;
    json_t *reply =
        call_destination(m->links,
                         json_pack("{s:s s:s s:I s:b s:o s:o}", "call", "begin", "job", m->job, "epoch",
                                   epoch, "storage", m->storage, "disks", disks, "ram", ram),
                         30 * XM_NS_PER_S, &m->error);
    if (!reply)
        return -m->error.code;
    for (unsigned i = 0; i < vm->disks; i++)
        m->zeroed[i] = xm_json_bool(json_array_get(json_object_get(reply, "disks"), i), "zeroed", false);
    uint64_t bridges = (uint64_t)XM_MAX(xm_json_int(reply, "bridges_ms", 0), 0) * XM_NS_PER_MS;
    m->bridges_at = xm_now() + XM_MIN(bridges, BRIDGES_MAX);
    json_decref(reply);
    return 0;
}

static int prepare(struct source *m)
{
    struct xm_links_opts o = {.link_timeout = m->opt.link_timeout, .event = link_event, .event_ctx = m};
    const char *token = xm_json_str(m->request, "token", NULL);
    uint16_t port = (uint16_t)xm_json_int(m->request, "port", 0);
    json_t *links = json_object_get(m->request, "links");
    json_t *l;
    size_t i;
    int up = 0;

    if (xm_hex_get(o.token, sizeof o.token, token) < 0)
        return xm_error_set(&m->error, EINVAL, "the agent gave no usable token");
    m->links = xm_links_new(&o, &m->error);
    if (!m->links)
        return -m->error.code;
    m->to = xm_links_transport(m->links);
    xm_links_set_rate(m->links, m->rate);
    xm_links_set_background(m->links, true);
    json_array_foreach (links, i, l)
        up += add_link(m, xm_json_str(l, "local", ""), xm_json_str(l, "remote", ""), port, token) == 0;
    if (!up)
        return xm_error_prefix(&m->error, "no link to %s comes up", m->destination);
    m->error.code = 0;
    xm_fault("source-linked");
    int r = source_begin(m);
    xm_links_set_rate(m->links, m->rate); /* whoever set it meanwhile may not have seen the links */
    return r;
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
    if ((r = prepare(m)) < 0)
        return r;
    xm_fault("source-begun");
    if (m->storage) {
        if ((r = source_set_state(m, SOURCE_DISKS)) < 0 || (r = source_disks(m)) < 0)
            return r;
        xm_fault("disks-copied");
    }
    if ((r = source_set_state(m, SOURCE_MEMORY)) < 0)
        return r;
    xm_sched_background(0, true);
    r = source_memory(m);
    xm_sched_background(0, false);
    xm_links_set_background(m->links, false);
    if (r < 0)
        return r;
    xm_fault("memory-copied");
    if ((r = source_set_state(m, SOURCE_SWITCH)) < 0 || (r = source_switch(m)) < 0)
        return r;
    if ((r = source_set_state(m, SOURCE_HANDOFF)) < 0 || (r = source_handoff(m)) < 0)
        return r;
    return source_set_state(m, SOURCE_SETTLE);
}

/* ---- settle, done, failed ---- */

/* The VM runs there. What cannot be deleted now the agent deletes later: the journal names it until then. */
static void let_go(struct source *m)
{
    struct machine *vm = m->machine;

    xm_fault("gone-begin");
    source_tell_settled(m);
    qemu_end(&vm->qemu, &vm->spec);
    xm_fault("gone-qemu-ended");
    source_unlock_disks(m);
    if (journal_settle(vm->state_dir, vm->spec.name, &m->left) < 0)
        xm_log(XM_LOG_WARN, "job %s: %s", m->job, m->left.text);
}

/* The VM stays. A destination that may have promised to take it is asked first (agent/tidy.c): its operator
 * may take this host for dead. The journal of an earlier migration, where this one has not come to write its
 * own, names who else has to be asked, or which files are still to go. */
static void source_keeps(struct source *m)
{
    const char *dir = m->machine->state_dir;
    struct xm_error e = {0};
    struct journal j;

    if (m->local || m->may_be_promised)
        return;
    int r = journal_read(dir, &j, &e);
    if (!r && j.side == JOURNAL_SOURCE && !strcmp(j.peer, m->destination))
        r = journal_end(dir, &e);
    journal_free(&j);
    if (r)
        xm_log(XM_LOG_WARN, "job %s: %s", m->job, e.text);
}

/* The last event is kept in a file too: the agent may be away at this moment, and we may not live on. */
static void emit_last(struct source *m, json_t *o)
{
    char *path = xm_printf("%s/result.json", m->machine->run_dir);
    json_object_set_new(o, "vm", json_string(m->machine->spec.name));
    char *text = json_dumps(o, JSON_INDENT(1));
    struct xm_error e = {0};

    xm_fault("source-last-word");
    xm_room_use(path);
    if (text && xm_file_replace(path, text, strlen(text), &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s, job %s: %s", m->machine->spec.name, m->job, e.text);
    free(text);
    free(path);
    m->machine->emit(m->machine, o);
}

static void over(struct xm_post *p)
{
    struct source *m = xm_container_of(p, struct source, over);

    m->ended(m->machine, m->state == SOURCE_DONE && !m->local ? MIGRATE_GONE
                         : m->qemu_gone                       ? MIGRATE_STOPPED
                                                              : MIGRATE_STAYS);
}

/* The VM has ended before it was given away. That is no loss: it is this host's, and so are its disks.
 * Whatever else was the first to notice, this is the cause. */
static bool guest_ended(struct source *m)
{
    struct qemu *q = &m->machine->qemu;

    int closed = qmp_pump(&q->qmp, 0, NULL); /* its last words */

    /* Its memory goes before the process does: the tracker may know it first. */
    if (closed < 0 || m->powered_off || m->error.code == ESRCH)
        qemu_wait_end(q, END_TIMEOUT);
    else if (m->state < SOURCE_SWITCH) /* the guest does not wait for us: what failed may be the first sign */
        qemu_wait_end(q, END_SOON);
    if (qemu_alive(q))
        return false;
    xm_error_set(&m->error, ECHILD, "VM %s has ended meanwhile: %s", m->machine->spec.name,
                 life_why_text(m->powered_off ? LIFE_GUEST : LIFE_DIED));
    return true;
}

/* After a switch that failed: the guest goes on here. */
struct back {
    bool ended;          /* it has ended by itself: it is stopped here, and whole */
    bool stood;          /* it was stopped for the switch, or about to be: by us */
    bool runs;           /* it runs again */
    uint64_t at;         /* since when */
    struct xm_error why; /* why it does not */
};

static void bring_back(struct source *m, struct back *b, uint64_t until)
{
    while (b->stood && !b->runs && !m->qemu_gone) {
        struct xm_error e = {0};
        b->runs = source_resume(m, &e) == 0;
        b->at = xm_now();
        if (b->runs)
            return;
        if (strcmp(b->why.text, e.text) != 0)
            xm_log(XM_LOG_ERROR, "VM %s does not go on after the failed switch-over: %s",
                   m->machine->spec.name, e.text);
        b->why = e;
        if (xm_now() >= until || m->leave)
            return;
        poll(NULL, 0, BACK_EVERY_MS);
    }
}

/* The guest first: what of this migration is left, and the destination, can wait. Only disks that both hosts
 * reach have to be given back before. */
static void back_from_switch(struct source *m, struct back *b)
{
    struct handoff_msg word;
    bool tell = source_keep(m, &word);

    if (m->stream)
        stream_stop(m->stream);
    if (m->storage)
        bring_back(m, b, 0);
    if (tell)
        source_tell(m, &word);
}

static json_t *failure(struct source *m, const struct back *b, enum source_state in, int code,
                       const struct xm_error *first)
{
    bool safe = !b->stood || b->runs || m->qemu_gone;
    char *text = xm_printf("%s", first->text);

    if (!safe) {
        free(text);
        text =
            xm_printf("%s; and VM %s, which is this host's, does not go on here: %s. That is tried again as "
                      "long as its QEMU lives",
                      first->text, m->machine->spec.name, b->why.text);
    }
    json_t *o = json_pack("{s:s s:s s:s s:s s:i s:b s:b s:s}", "event", "failed", "job", m->job, "error",
                          text, "state", state_names[in], "code", code, "vm_safe", safe, "stopped", b->ended,
                          "destination", m->destination);
    if (b->runs && !m->paused && m->stop_seen && b->at > m->stop_seen)
        json_object_set_new(o, "stood_ms", json_real((double)(b->at - m->stop_seen) / 1e6));
    xm_log(XM_LOG_WARN, "VM %s, job %s failed in state %s: %s", m->machine->spec.name, m->job,
           state_names[in], text);
    free(text);
    return o;
}

static void source_fail(struct source *m, int r)
{
    enum source_state in = m->state;
    bool ended = guest_ended(m), switching = in == SOURCE_SWITCH || in == SOURCE_HANDOFF;
    struct xm_error first = m->error; /* what follows must not hide it */
    struct back b = {.ended = ended, .stood = m->stopping && !ended};

    xm_fault("failing");
    if (switching)
        back_from_switch(m, &b);
    if (m->links)
        xm_links_abort(m->links, first.text);
    stream_free(m->stream);
    m->stream = NULL;
    bring_back(m, &b, xm_now() + BACK_PATIENCE);
    xm_fault("failing-resumed");
    bool stands = b.stood && !b.runs && !m->qemu_gone;
    source_keeps(m);
    m->stands = stands;
    if (stands) { /* what it waits for may hold up the rest, too */
        source_set_state(m, SOURCE_FAILED);
        emit_last(m, failure(m, &b, in, -r, &first));
        bring_back(m, &b, UINT64_MAX);
        m->stands = !b.runs;
        if (b.runs)
            xm_log(XM_LOG_WARN, "VM %s goes on here after all", m->machine->spec.name);
    }
    source_disks_off(m);
    xm_precopy_free(m->precopy);
    m->precopy = NULL;
    if (!stands) {
        source_set_state(m, SOURCE_FAILED);
        emit_last(m, failure(m, &b, in, -r, &first));
    }
}

static void *source_main(void *arg)
{
    struct source *m = arg;
    char *result = xm_printf("%s/result.json", m->machine->run_dir);

    pthread_setname_np(pthread_self(), "source");
    xm_room_keep(result, RESULT_ROOM);
    free(result);
    m->report.began = m->report.entered[m->state] = xm_now();
    int r = source_walk(m);
    if (!r) {
        json_t *done = source_report(m);
        json_object_set_new(done, "event", json_string("done"));
        source_disks_off(m);
        /* QEMU goes before the tracker: letting go of a live one's memory page by page costs 13 ms of CPU
         * for each GiB. */
        if (!m->local) {
            poll(NULL, 0, SETTLE_MS);
            let_go(m);
        }
        xm_precopy_free(m->precopy);
        m->precopy = NULL;
        json_object_set_new(done, "total_s", json_real((double)(xm_now() - m->report.began) / 1e9));
        source_set_state(m, SOURCE_DONE);
        json_object_set_new(done, "state", json_string("done"));
        if (m->left.code)
            json_object_set_new(done, "note", json_sprintf("%s; that is tried again", m->left.text));
        emit_last(m, done);
    } else if (m->state == SOURCE_UNKNOWN) {
        source_disks_off(m);
        xm_precopy_free(m->precopy);
        m->precopy = NULL;
        emit_last(m, json_pack("{s:s s:s s:s s:s s:b s:b s:s}", "event", "failed", "job", m->job, "error",
                               m->error.text, "state", "unknown", "vm_safe", 0, "unknown", 1, "destination",
                               m->destination));
    } else {
        source_fail(m, r);
    }
    stream_free(m->stream); /* it sends on the links */
    m->stream = NULL;
    if (m->links)
        xm_links_free(m->links);
    m->links = NULL;
    m->over.run = over;
    xm_mailbox_post(&m->machine->mailbox, &m->over);
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
    m->rate = (uint64_t)xm_json_int(o, "bandwidth", 0);
    m->persist = xm_json_bool(o, "persist", false);
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
    if (job && job[0] && strcmp(job, m->job) != 0)
        return xm_error_set(e, ENOENT, "VM %s has no such migration going on", m->machine->spec.name);
    if (m->state > SOURCE_SWITCH)
        return xm_error_set(e, EBUSY, "too late: VM %s is being handed over to %s", m->machine->spec.name,
                            m->destination);
    if (!m->abort) {
        snprintf(m->abort_reason, sizeof m->abort_reason, "%s", reason);
        m->abort = true; /* after its reason */
    }
    return 0;
}

void source_set_rate(struct source *m, uint64_t bytes_per_s)
{
    m->rate = bytes_per_s;
    if (m->links && m->state < SOURCE_SWITCH)
        xm_links_set_rate(m->links, bytes_per_s);
}

void source_persist(struct source *m, bool yes)
{
    m->persist = yes;
}

void source_qmp_event(struct source *m, const char *name, const json_t *data, uint64_t when)
{
    if (!strcmp(name, "MIGRATION"))
        snprintf(m->qemu_status, sizeof m->qemu_status, "%s", xm_json_str(data, "status", ""));
    else if (!strcmp(name, "SHUTDOWN"))
        m->powered_off = xm_json_bool(data, "guest", false);
    else if (!strcmp(name, "STOP")) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        uint64_t real = (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
        m->stop_seen =
            xm_now() - (real > when ? real - when : 0); /* when it happened, not when we read of it */
        m->stream_at_stop = m->stream ? stream_bytes(m->stream) : 0;
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
    return m->state == SOURCE_FAILED && !m->stands;
}

void source_leave(struct source *m)
{
    m->leave = true;
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
