/* SPDX-License-Identifier: MIT */
/* How a migration ends at the source, after the walk: settled and done, unknown, or failed with the VM
 * running here as before (the head of source.c tells what a failure does in which state). The last event is
 * written to a file as well; then stream and links go, and the main thread hears that it is over. */
#include "migrate/source.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The VM runs at the destination; before its QEMU here gives gigabytes back, it gets a moment to find its
 * feet. Hosts of their own do not notice; two hosts on two processors do (silence of an idle guest seen
 * from outside: 25 to 43 ms, 35 to 90 without). */
#define SETTLE_MS   100
#define END_TIMEOUT (5 * XM_NS_PER_S) /* of a QEMU that is ending */
#define END_SOON    (500 * XM_NS_PER_MS)
/* How long a VM that does not go on is waited for before that is said, and how often it is tried. */
#define BACK_PATIENCE (10 * XM_NS_PER_S)
#define BACK_EVERY_MS 200

/* The VM runs there. Its agent deletes what it has left here. */
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
    if (closed < 0 || m->seen.powered_off || m->error.code == ESRCH)
        qemu_wait_end(q, END_TIMEOUT);
    else if (m->state < SOURCE_SWITCH) /* the guest does not wait for us: what failed may be the first sign */
        qemu_wait_end(q, END_SOON);
    if (qemu_alive(q))
        return false;
    xm_error_set(&m->error, ECHILD, "VM %s has ended meanwhile: %s", m->machine->spec.name,
                 life_why_text(m->seen.powered_off ? LIFE_GUEST : LIFE_DIED));
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
        if (xm_now() >= until || m->asked.leave)
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
                          text, "state", source_step_name(in), "code", code, "vm_safe", safe, "stopped",
                          b->ended, "destination", m->destination);
    if (b->runs && !m->paused && m->seen.stop && b->at > m->seen.stop)
        json_object_set_new(o, "stood_ms", json_real((double)(b->at - m->seen.stop) / 1e6));
    source_report_given_up(m, o);
    xm_log(XM_LOG_WARN, "VM %s, job %s failed in state %s: %s", m->machine->spec.name, m->job,
           source_step_name(in), text);
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

void source_end(struct source *m, int r)
{
    if (!r) {
        uint64_t until = xm_now() + SETTLE_MS * XM_NS_PER_MS;
        if (!m->local)
            source_send_late(m, until);
        json_t *done = source_report(m);
        json_object_set_new(done, "event", json_string("done"));
        source_disks_off(m);
        /* QEMU goes before the tracker: letting go of a live one's memory page by page costs 13 ms of CPU
         * for each GiB. */
        if (!m->local) {
            uint64_t now = xm_now();
            if (now < until)
                poll(NULL, 0, (int)((until - now) / XM_NS_PER_MS));
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
        late_drop(m->machine);
        source_disks_off(m);
        xm_precopy_free(m->precopy);
        m->precopy = NULL;
        emit_last(m, json_pack("{s:s s:s s:s s:s s:b s:b s:s}", "event", "failed", "job", m->job, "error",
                               m->error.text, "state", "unknown", "vm_safe", 0, "unknown", 1, "destination",
                               m->destination));
    } else {
        source_fail(m, r);
    }
    xm_fault("source-told");
    if (m->links) /* what is not answered yet ends, whatever the other side does */
        xm_links_abort(m->links, "the migration is over");
    stream_free(m->stream); /* it sends on the links */
    stream_free(m->old_stream);
    m->stream = m->old_stream = NULL;
    if (m->links)
        xm_links_free(m->links);
    m->links = NULL;
    m->over.run = over;
    xm_mailbox_post(&m->machine->mailbox, &m->over);
}
