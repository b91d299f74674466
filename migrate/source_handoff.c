/* SPDX-License-Identifier: MIT */
/* The hand-off at the source: the hands of vm/handoff.h's driver, the record on disk and calls over the
 * links.
 *
 * Happy path: WANT -> «given to B, n+1» is durable -> RUN -> the destination has recorded it, runs the VM and
 * acknowledges -> «given to B, n+1, settled» is durable -> our copy may go. Otherwise the machine says what
 * follows; three ends are possible here:
 *   destroy    the VM runs there
 *   resume     it is ours (again), and runs here: the record could not be written, or the destination
 *              handed it back
 *   neither    nobody has answered: the VM stays stopped here, with its disks, until `recover` has asked the
 *              destination
 */
#include "migrate/source.h"

#include <poll.h>
#include <string.h>

#define ANSWER_TIMEOUT (10 * XM_NS_PER_S)
#define WORD_TIMEOUT   XM_NS_PER_S /* what the guest may wait for, and nothing depends on */
#define RETRY_MS       100

/* One message to the destination, and what it answers. A lost one is nothing. */
static bool exchange(void *ctx, const struct handoff_msg *out, struct handoff_msg *answer)
{
    struct source *m = ctx;
    struct xm_error e = {0};
    json_t *o = handoff_msg_pack(out);

    json_object_set_new(o, "call", json_string("handoff"));
    json_t *reply = source_call(m, o, out->type == HANDOFF_MSG_RUN ? ANSWER_TIMEOUT : WORD_TIMEOUT, &e);
    bool answered = reply && json_object_get(reply, "handoff") && handoff_msg_unpack(answer, reply, &e) == 0;
    if (xm_json_str(reply, "reason", NULL))
        xm_error_set(&e, EIO, "%s: %s", m->destination, xm_json_str(reply, "reason", ""));
    if (e.code && !m->error.code) /* the first is the cause */
        m->error = e;
    xm_fault("handoff-told");
    json_decref(reply);
    return answered;
}

static int save(void *ctx, const struct owner_record *rec)
{
    struct source *m = ctx;

    if (m->handoff.state == HANDOFF_SETTLING && !m->report.running_at)
        m->report.running_at = xm_now(); /* it runs there; what follows is no downtime */
    int r = owner_save(m->machine->state_dir, m->machine->spec.name, rec, &m->error);
    xm_fault("handoff-after-record");
    return r;
}

static const struct handoff_hands hands = {.save = save, .send = exchange};

bool source_disk_stays(const struct source *m, const struct machine_disk *d)
{
    return m->opt.keep_source || !d->spec->datastore[0] || d->file->block_device;
}

static json_t *disks_to_delete(struct source *m)
{
    json_t *files = json_array();

    json_array_clear(m->kept);
    for (unsigned i = 0; m->storage && i < m->machine->disks; i++) {
        struct machine_disk *d = &m->machine->disk[i];
        bool stays = source_disk_stays(m, d);
        json_array_append_new(stays ? m->kept : files,
                              stays ? json_string(d->file->path) : left_file(d->file->path, d->file->fd));
    }
    return files;
}

int source_handoff_prepare(struct source *m)
{
    struct machine *vm = m->machine;
    struct owner_record rec;
    struct handoff_actions none;
    int r = owner_load(vm->state_dir, vm->spec.name, &rec, &m->error);

    if (!r)
        r = handoff_start(&m->handoff, HANDOFF_SOURCE, false, vm->host, m->destination, &rec, &none,
                          &m->error);
    json_t *files = disks_to_delete(m);
    if (!r)
        r = journal_sweep(vm->state_dir, vm->spec.name, &m->error);
    if (!r)
        r = journal_write(vm->state_dir, JOURNAL_SOURCE, rec.epoch + 1, m->destination, NULL, files,
                          &m->error);
    json_decref(files);
    return r;
}

/* By QMP, of which its user may have a monitor, too. What the guest has done since then is in no copy. A QEMU
 * that has died meanwhile has sent all that there is. */
static int still_stands(struct source *m)
{
    struct xm_error ignored = {0};

    qmp_pump(&m->machine->qemu.qmp, 0, &ignored);
    return m->seen.resumed
               ? xm_error_set(&m->error, ECANCELED,
                              "VM %s was let go on here, by its user, while it was to stand still for the "
                              "switch-over",
                              m->machine->spec.name)
               : 0;
}

/* The same behind the record: what its guest does here now is in no copy, and it may run there. */
static void stop_again(struct source *m)
{
    struct xm_error e = {0};

    qmp_pump(&m->machine->qemu.qmp, 0, &e);
    if (!m->seen.resumed || m->qemu_gone)
        return;
    m->seen.resumed = false;
    if (machine_hold(m->machine, m->destination, &e) < 0)
        xm_log(XM_LOG_ERROR, "VM %s: %s", m->machine->spec.name, e.text);
}

/* What could not be recorded was not said to anybody: it is written over as soon as that can be done, and
 * the VM goes on. */
static bool goes_on(const struct source *m, uint64_t deadline)
{
    if (m->handoff.state == HANDOFF_UNDOING)
        return !m->qemu_gone && !m->asked.leave;
    return xm_links_up(m->links) > 0 && xm_now() < deadline;
}

/* What it took but for the last pages, for the next one's estimate. One whose hand-off had to be said twice
 * tells of a network or a disk that failed, and nothing of the VM; nobody hurries for a VM that stands
 * still anyway. */
static void learn(struct source *m, bool again)
{
    const struct source_report *r = &m->report;
    uint64_t pages = r->final_ram.to - r->final_ram.from, all = r->running_at - r->stopped_at;

    if (!m->paused && !again)
        switch_cost_add(&m->took, all > pages ? all - pages : 0);
}

int source_handoff(struct source *m)
{
    struct machine *vm = m->machine;
    struct handoff *h = &m->handoff;
    struct handoff_actions a;
    struct handoff_done out = {0};
    uint64_t t = xm_now();
    uint64_t deadline = t + XM_MAX(m->opt.link_timeout, ANSWER_TIMEOUT);

    if (xm_fault("handoff-before-record"))
        return xm_error_set(&m->error, EIO, "fault point handoff-before-record");
    if (source_overdue(m))
        return -m->error.code;
    if (still_stands(m) < 0)
        return -m->error.code;
    if (!source_past_abort(m))
        return xm_error_set(&m->error, ECANCELED, "aborted: %s", m->asked.reason);
    m->error.code = 0;
    handoff_event(h, HANDOFF_WANT, &a);
    handoff_drive(h, a, &hands, m, &out);
    bool again = handoff_open(h);
    while (handoff_open(h) && goes_on(m, deadline)) {
        poll(NULL, 0, RETRY_MS);
        stop_again(m);
        handoff_event(h, HANDOFF_RETRY, &a);
        handoff_drive(h, a, &hands, m, &out);
    }
    vm->epoch = h->record.epoch;
    /* It runs there. That our record does not say so yet only keeps our disks, until it does. */
    if (out.destroy || h->state == HANDOFF_SETTLING) {
        m->report.handoff = (struct source_span){t, m->report.running_at};
        learn(m, again);
        return 0;
    }
    if (out.resume) {
        xm_error_prefix(&m->error, "the VM could not be handed over and is this host's");
        return -EIO;
    }
    stop_again(m);
    xm_error_prefix(&m->error,
                    "VM %s was given to %s, which has not said that it runs it; it is stopped here (ask with "
                    "`xmigrate recover %s`)",
                    vm->spec.name, m->destination, vm->spec.name);
    source_set_state(m, SOURCE_UNKNOWN);
    return -EIO;
}

bool source_keep(struct source *m, struct handoff_msg *word)
{
    struct handoff_actions a;

    if (handoff_event(&m->handoff, HANDOFF_ABORT, &a) < 0)
        return false;
    *word = a.msg;
    return a.send;
}

/* The destination may have promised to run the VM, and would not know what became of it when the links just
 * went. */
void source_tell(struct source *m, const struct handoff_msg *word)
{
    struct handoff_msg unheard;
    struct xm_error first = m->error;

    if (xm_links_up(m->links) > 0)
        exchange(m, word, &unheard);
    m->error = first;
}

void source_tell_settled(struct source *m)
{
    struct xm_error e = {0};

    if (!m->handoff.record.settled || xm_links_up(m->links) == 0)
        return;
    json_t *o = json_pack("{s:s, s:I, s:o}", "call", "settled", "epoch", (json_int_t)m->handoff.record.epoch,
                          "switch_ns", switch_cost_pack(&m->took));
    json_decref(source_call(m, o, WORD_TIMEOUT, &e));
    xm_fault("handoff-settled-told");
}
