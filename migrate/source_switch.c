/* SPDX-License-Identifier: MIT */
/* The switch-over at the source.
 *
 * Happy path: the destination's QEMU listens -> ours begins its migration and stops the VM at pre-switchover
 * (all rings stopped, device state not yet sent). From then on side by side:
 *   - QEMU writes its device state; it is read and held here,
 *   - the last dirty pages go,
 *   - the disks are quiesced (invariant 10).
 * Loading the device state reads guest memory (rings' indexes): it is let go when all pages are there.
 * While it is loaded both sides' digests are compared. When the destination has loaded it all: hand-off.
 *
 * A guest that its user has paused stays so, here and there: neither side tells its QEMU to go on. Whether he
 * did so just before QEMU's own stop, QEMU's stream says.
 *
 * Failures before the hand-off: what only takes too long is tried again (source_again.c). Else
 * source_resume() cancels QEMU's migration and lets the VM go on; nothing of what the destination has
 * heard makes it run the VM. A destination that says nothing is such a failure: from when the guest has
 * been stopped everything together has its downtime budget and the grace (source_time_left). What hangs
 * on this host (its storage, its QEMU) is tried again until it has come back. */
#include "migrate/source.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* While the guest runs; once it stands still, source_time_left cuts them. */
#define QUIESCE_TIMEOUT (10 * XM_NS_PER_S)
#define LOCK_TIMEOUT    (2 * XM_NS_PER_S)    /* of one try */
#define STATE_PATIENCE  (200 * XM_NS_PER_MS) /* for what QEMU has written already */

/* ---- time ---- */

/* Beyond its budget. While another try may follow, it is not worth waiting for long, and the other half of
 * the grace is for the destination's word that it has taken its promise back; all that is left to do in the
 * hand-off is a record and a word. */
static uint64_t patience(const struct source *m)
{
    bool again = m->can_try_again && m->state == SOURCE_SWITCH;

    return again ? XM_MIN(m->opt.downtime, m->opt.grace / 2) : m->opt.grace;
}

static uint64_t stands_until(const struct source *m)
{
    return m->seen.stop ? m->seen.stop + m->opt.downtime + patience(m) : UINT64_MAX;
}

uint64_t source_time_left(const struct source *m, uint64_t most)
{
    uint64_t now = xm_now(), until = stands_until(m);

    return XM_MAX(XM_MIN(most, until > now ? until - now : 0), 1u);
}

int source_overdue(struct source *m)
{
    if (xm_now() < stands_until(m))
        return 0;
    return xm_error_set(&m->error, ETIMEDOUT,
                        "%s did not take the VM over within its downtime budget of %s and %s more",
                        m->destination, xm_format_time(m->opt.downtime).s, xm_format_time(patience(m)).s);
}

/* ---- disks ---- */

struct quiesce {
    struct xm_mailbox *home;
    struct xm_post post;
    struct machine_disk *d;
    int status;
    char why[300];
    bool done;
};

static void quiesce_posted(struct xm_post *p)
{
    xm_container_of(p, struct quiesce, post)->done = true;
}

static void quiesce_done(void *arg, int status, const char *why)
{
    struct quiesce *s = arg;
    s->status = status;
    snprintf(s->why, sizeof s->why, "%s", why ? why : "");
    s->post.run = quiesce_posted;
    xm_mailbox_post(s->home, &s->post);
}

static void quiesce_begin(struct machine_disk *d, void *arg)
{
    xm_disk_quiesce(d->disk, quiesce_done, arg);
}

static void give_up(struct machine_disk *d, void *arg)
{
    (void)arg;
    xm_disk_replica_lost(d->disk, true);
}

static void not_now(struct machine_disk *d, void *arg)
{
    (void)arg;
    xm_disk_quiesce_cancel(d->disk);
}

/* The disks call back at once: what is still on its way is not waited for. */
static void give_up_disks(struct source *m, const char *why)
{
    bool for_good = !m->can_try_again;

    if (for_good)
        xm_links_abort(m->links, why);
    for (unsigned i = 0; m->storage && i < m->machine->disks; i++)
        machine_disk_call(&m->machine->disk[i], for_good ? give_up : not_now, NULL);
}

/* All disks at once; each calls back in the end, whatever happens to the links, so that waiting for it is
 * safe. */
static int quiesce_wait(struct source *m, struct quiesce *s, struct xm_mailbox *mb)
{
    uint64_t deadline = xm_now() + source_time_left(m, QUIESCE_TIMEOUT);
    int r = 0;

    for (unsigned i = 0; i < m->machine->disks; i++) {
        while (!s[i].done) {
            xm_mailbox_wait(mb, 20);
            if (!s[i].done && xm_now() > deadline)
                give_up_disks(m, "the destination's disks were not quiesced in time");
        }
        if (s[i].status && !r)
            r = xm_error_set(&m->error, -s[i].status, "disk %s: %s", m->machine->disk[i].spec->name,
                             s[i].why);
    }
    return r;
}

/* ---- the switch ---- */

static int quiesce_all(struct source *m, struct quiesce *s, struct xm_mailbox *mb)
{
    int r = 0;

    for (unsigned i = 0; i < m->machine->disks; i++) {
        s[i].home = mb;
        s[i].d = &m->machine->disk[i];
        if (m->storage)
            machine_disk_call(s[i].d, quiesce_begin, &s[i]);
        else
            s[i].done = true;
        if (!m->storage && !r) /* what waits for room would be lost there, too */
            r = source_disk_check(m, s[i].d);
        if (!r && s[i].d->vhost && !xm_vhost_stopped(s[i].d->vhost) &&
            !(m->paused && xm_vhost_rests(s[i].d->vhost)))
            r = xm_error_set(&m->error, EBUSY, "disk %s still has a running ring though the VM is stopped",
                             s[i].d->spec->name);
    }
    return r;
}

static bool is_interrupted(void *ctx)
{
    return source_interrupted(ctx) < 0;
}

/* QEMU has been told to write its device state; nothing of that changes guest memory. */
static int last_pages(struct source *m)
{
    struct xm_round round = {0};

    m->report.final_ram.from = xm_now();
    xm_precopy_deadline(m->precopy, xm_now() + source_time_left(m, UINT64_MAX / 2));
    int r = xm_precopy_round(m->precopy, true, is_interrupted, m, &round, &m->error);
    m->report.rounds = XM_MAX(m->report.rounds, round.number);
    m->report.ram_bytes += round.pages_data * XM_PAGE;
    m->report.final_ram.to = xm_now();
    if (r && source_interrupted(m)) /* that is the cause */
        r = -m->error.code;
    return r;
}

static int drain(struct source *m)
{
    struct quiesce s[VM_DISKS_MAX] = {0};
    struct xm_mailbox mb;
    int r = xm_mailbox_init(&mb);

    if (r)
        return xm_error_errno(&m->error, -r, "eventfd");
    m->report.disks.from = m->report.device_state.from = xm_now();
    r = quiesce_all(m, s, &mb);
    stream_hold(m->stream);
    if (!r)
        r = qmp_tell(&m->machine->qemu.qmp, "migrate-continue", json_pack("{s:s}", "state", "pre-switchover"),
                     &m->error);
    m->told = true;
    if (!r)
        r = last_pages(m);
    if (!r)
        stream_release(m->stream);
    struct xm_error first = m->error;
    if (r)
        give_up_disks(m, first.text);
    int quiesced = quiesce_wait(m, s, &mb);
    m->report.disks.to = xm_now();
    if (r)
        m->error = first;
    xm_mailbox_destroy(&mb);
    return r ? r : quiesced;
}

void source_unlock_disks(struct source *m)
{
    for (unsigned i = 0; i < m->machine->disks; i++)
        xm_file_unlock(m->machine->disk[i].file);
}

/* The destination is going away, or its host is silent and its lock runs out (NFS). */
static int lock_disks(struct source *m, struct xm_error *e)
{
    uint64_t deadline = xm_now() + LOCK_TIMEOUT;
    int r = 0;

    for (unsigned i = 0; !r && i < m->machine->disks; i++) {
        while ((r = xm_file_lock(m->machine->disk[i].file, e)) == -EBUSY && xm_now() < deadline)
            poll(NULL, 0, 20);
    }
    return r;
}

static void learn_paused(struct source *m, uint64_t patience_ns)
{
    uint64_t until = xm_now() + patience_ns;
    char was[STREAM_STATE_MAX] = "";

    while (m->stream && !stream_runstate(m->stream, was) && !was[0] && xm_now() < until)
        poll(NULL, 0, 1);
    if (m->paused || !was[0] || !machine_paused_in(was))
        return;
    m->paused = true;
    machine_note_paused(m->machine, true);
}

static int switch_over(struct source *m)
{
    json_t *reply;
    int r = source_interrupted(m);

    if (!r)
        r = source_qemu_begin(m);
    xm_fault("switch-begun");
    if (!r)
        r = source_qemu_wait(m, "pre-switchover");
    if (r)
        return r;
    m->report.stopped_at = m->seen.stop ? m->seen.stop : xm_now();
    if (xm_fault("switch-stopped"))
        return xm_error_set(&m->error, EIO, "fault point switch-stopped");
    if ((r = drain(m)) < 0)
        return r;
    if ((r = source_compare(m)) < 0)
        return source_interrupted(m) ? -m->error.code : r;
    xm_fault("switch-compared");
    if ((r = source_qemu_wait(m, "completed")) < 0)
        return r;
    xm_fault("switch-sent");
    learn_paused(m, STATE_PATIENCE);
    if (!m->storage)
        source_unlock_disks(m); /* both hosts reach them: the destination locks them before it promises */
    reply = source_call(m, json_pack("{s:s s:b}", "call", "loaded", "paused", m->paused),
                        source_time_left(m, QEMU_TIMEOUT), &m->error);
    m->report.device_state.to = xm_now();
    json_decref(reply);
    xm_fault("switch-loaded");
    if (!reply)
        return -m->error.code;
    return source_interrupted(m); /* the last chance of an abort */
}

int source_late(struct source *m, int r)
{
    struct xm_error cause = m->error;

    if (m->asked.abort || m->qemu_gone || !source_overdue(m))
        return r;
    if (strcmp(cause.text, m->error.text) != 0)
        xm_error_set(&m->error, ETIMEDOUT, "%.200s: %.280s", m->error.text, cause.text);
    return -ETIMEDOUT;
}

int source_switch(struct source *m)
{
    /* The guest stands still for what --bandwidth would hold back: 106 ms of last pages, seen, at 30 MB/s. */
    xm_links_set_rate(m->links, m->rate = 0);
    int r = switch_over(m);

    return r && !m->can_try_again ? source_late(m, r) : r;
}

/* ---- back ---- */

/* Every step may be done already; which of them hung before makes no difference. */
int source_resume(struct source *m, struct xm_error *e)
{
    int r = xm_fault("resume-refused") ? xm_error_set(e, EIO, "fault point resume-refused")
                                       : qemu_cancel_migration(&m->machine->qemu, QEMU_TIMEOUT, e);

    if (!r && !m->storage)
        r = lock_disks(m, e);
    learn_paused(m, 0);
    bool paused = m->paused;
    if (!r) /* also of one that is known to be: in which state, the next move wants to know */
        r = machine_guest_paused(m->machine, &paused, e);
    m->paused |= paused;
    if (!r && !m->paused)
        r = qemu_continue(&m->machine->qemu, QEMU_TIMEOUT, e);
    late_drop(m->machine); /* which may take a millisecond */
    return r;
}
