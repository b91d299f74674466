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
 * QEMU's stream carries what is not the guest's RAM, some 0.2 MB and ROMs. A QEMU that would send guest RAM
 * too would do so in the downtime, and over what our own frames have brought. One that leaves out more than
 * we send would lose it. So it is asked what it counts as its own to send before anything is accepted of
 * it, and device state that is larger than what fits into the budget ends the migration (check_ram,
 * check_state).
 *
 * A guest that its user has paused stays so, here and there: neither side tells its QEMU to go on.
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
#define QEMU_TIMEOUT     (10 * XM_NS_PER_S)
#define INCOMING_TIMEOUT (20 * XM_NS_PER_S) /* a link that goes silent with it counts as failed after 10 s */
#define QUIESCE_TIMEOUT  (10 * XM_NS_PER_S)
#define LOCK_TIMEOUT     (2 * XM_NS_PER_S) /* of one try */
#define STATE_MIN        (1ull << 20) /* device state that is always let through; usual is 0.1 to 0.3 MB */

/* ROMs of QEMU's may grow by some KiB when a guest boots anew; guest RAM has no smaller blocks. */
#define RAM_SLACK (1ull << 20)

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

/* ---- what QEMU sends by itself ---- */

/* Invariant: each byte of RAM goes once, by QEMU's stream or by our frames. Asked once, when QEMU has
 * begun. */
static int check_ram(struct source *m)
{
    struct qmp *q = &m->machine->qemu.qmp;

    if (m->ram_checked || (strcmp(m->seen.status, "active") && strcmp(m->seen.status, "pre-switchover")))
        return 0;
    json_t *st = qmp_call(q, "query-migrate", NULL, QEMU_TIMEOUT, &m->error);
    uint64_t sends = (uint64_t)xm_json_int(json_object_get(st, "ram"), "total", 0);
    json_decref(st);
    if (!st)
        return -m->error.code;
    m->ram_checked = true;
    if (sends + RAM_SLACK < m->other_ram)
        return xm_error_set(&m->error, ENOTSUP,
                            "VM %s has %s of RAM that QEMU leaves to whoever shares it, and that would be "
                            "missing on %s: memory "
                            "of its `extra` in a shared file? Make that private, or have all of it as memory",
                            m->machine->spec.name, xm_format_size(m->other_ram - sends).s, m->destination);
    if (sends <= m->other_ram + RAM_SLACK)
        return 0;
    return xm_error_set(
        &m->error, ENOTSUP,
        "this QEMU would send %s of guest RAM itself, in the downtime: shared memory must be a "
        "memory-backend-file, as VMs have it that this version of xmigrate starts; stop and start %s "
        "once (a reboot inside it is not enough)",
        xm_format_size(sends - m->other_ram).s, m->machine->spec.name);
}

uint64_t source_state_max(double wire_rate, uint64_t budget_ns)
{
    double fits = wire_rate * (double)budget_ns / 1e9;

    return fits > (double)STATE_MIN ? (uint64_t)fits : STATE_MIN;
}

/* What came since the VM was stopped has to fit into the budget. */
static int check_state(struct source *m)
{
    uint64_t max = source_state_max(m->wire_rate, m->opt.downtime);
    uint64_t bytes = stream_bytes(m->stream) - m->seen.stream_at_stop;

    if (!m->seen.stop || (bytes <= max && !xm_fault("state-large")))
        return 0;
    return xm_error_set(
        &m->error, EFBIG,
        "QEMU's device state is larger than %s: the VM would stand still for longer than its budget of %s; "
        "allow more with --downtime",
        xm_format_size(max).s, xm_format_time(m->opt.downtime).s);
}

/* One that has begun to stop the guest answers nobody until its disks' requests are done. */
static int stays_active(struct source *m)
{
    struct xm_error why = {0};
    json_t *st = qmp_call(&m->machine->qemu.qmp, "query-migrate", NULL, XM_NS_PER_S, &why);
    bool answers = st != NULL;

    json_decref(st);
    return answers ? xm_error_set(
                         &m->error, ETIMEDOUT,
                         "QEMU has memory of its own (a VGA's, say) that changes faster than it can be sent "
                         "within the downtime budget of %s; allow more with --downtime",
                         xm_format_time(m->opt.downtime).s)
                   : xm_error_set(
                         &m->error, ETIMEDOUT,
                         "QEMU does not come to stop the guest: it waits for requests of its disks that are "
                         "not done (does their storage hang?)");
}

/* Waits until QEMU's migration is in the state wanted, by its events. */
static int wait_qemu(struct source *m, const char *status)
{
    uint64_t deadline = xm_now() + QEMU_TIMEOUT;

    while (strcmp(m->seen.status, status) != 0) {
        int r = source_interrupted(m);
        if (!r)
            r = source_overdue(m);
        if (!r && m->told) /* an earlier migration's is none of ours */
            r = qmp_refusal(&m->machine->qemu.qmp, &m->error);
        if (!r && !strcmp(m->seen.status, "failed"))
            r = xm_error_set(&m->error, EIO,
                             "QEMU could not hand its devices over (see qemu.log on both hosts)");
        if (!r)
            r = check_ram(m);
        if (!r)
            r = check_state(m);
        if (!r && xm_now() > deadline && !strcmp(m->seen.status, "active"))
            r = stays_active(m);
        else if (!r && xm_now() > deadline)
            r = xm_error_set(&m->error, ETIMEDOUT, "QEMU's migration does not reach «%s» (it is «%s»)",
                             status, m->seen.status);
        if (!r)
            r = qmp_pump(&m->machine->qemu.qmp, 5, &m->error);
        if (r)
            return r;
    }
    return check_ram(m);
}

static json_t *capabilities(void)
{
    static const char *const names[] = {"x-ignore-shared", "pause-before-switchover", "events"};
    json_t *list = json_array();

    for (unsigned i = 0; i < 3; i++)
        json_array_append_new(list, json_pack("{s:s s:b}", "capability", names[i], "state", 1));
    return json_pack("{s:o}", "capabilities", list);
}

/* QEMU ends its stream with a description of it in JSON, made while the guest stands still, for tools that
 * look at a stream in a file. */
static bool suppress_description(struct source *m)
{
    return qmp_do(&m->machine->qemu.qmp, "qom-set",
                  json_pack("{s:s s:s s:b}", "path", "/machine", "property", "suppress-vmdesc", "value", 1),
                  QEMU_TIMEOUT, NULL) == 0;
}

/* It would be lost there: the region that knows of it is this QEMU's. */
static int check_left(struct source *m)
{
    for (unsigned i = 0; m->paused && i < m->machine->disks; i++) {
        int left = machine_disk_left(&m->machine->disk[i], &m->error);
        if (left < 0)
            return xm_error_prefix(&m->error, "disk %s", m->machine->spec.disk[i].name);
        if (left)
            return xm_error_set(
                &m->error, EBUSY,
                "disk %s: a request of the guest, which is paused, is not done yet, or was done since (a "
                "write that has waited for room, say); let the guest go on first; the VM stays here",
                m->machine->spec.disk[i].name);
    }
    return 0;
}

static int start_qemu_migration(struct source *m)
{
    struct qmp *q = &m->machine->qemu.qmp;
    json_t *reply = NULL;
    int r = qmp_do(q, "migrate-set-capabilities", capabilities(), QEMU_TIMEOUT, &m->error);

    /* QEMU's own limit must not pace its stream: what it sends is small, and the links have their own. It
     * stops the VM when what is left of its own RAM (a VGA's) takes a quarter of the budget. */
    json_int_t ms = (json_int_t)(m->opt.downtime / 4 / XM_NS_PER_MS);
    if (!r)
        r = qmp_do(
            q, "migrate-set-parameters",
            json_pack("{s:I s:I}", "max-bandwidth", (json_int_t)1 << 36, "downtime-limit", XM_MAX(ms, 1)),
            QEMU_TIMEOUT, &m->error);
    if (!r)
        r = qemu_other_ram(&m->machine->qemu, &m->machine->ram, &m->other_ram, &m->error);
    if (!r) {
        m->may_be_promised = true;
        bool described = !suppress_description(m);
        reply = source_call_awake(m, json_pack("{s:s s:b}", "call", "incoming", "described", described),
                                  INCOMING_TIMEOUT);
        r = reply ? 0 : -m->error.code;
        json_decref(reply);
    }
    if (!r) {
        int fd = qmp_make_stream(q, STREAM_NAME, QEMU_TIMEOUT, &m->error);
        m->stream = fd < 0 ? NULL : stream_send(fd, m->to, m->attempt, &m->error);
        r = m->stream ? 0 : -m->error.code;
    }
    m->seen.status[0] = 0;
    m->seen.stop = 0;
    m->seen.resumed = false;
    m->ram_checked = m->told = false;
    if (!r)
        r = machine_guest_paused(m->machine, &m->paused, &m->error);
    if (!r)
        machine_note_paused(m->machine, m->paused);
    if (!r)
        r = check_left(m);
    if (!r) /* as its check has found, perhaps hours ago; from «migrate» on QEMU lets nobody plug anything */
        r = machine_none_plugged(m->machine, m->destination, &m->error);
    m->stopping = !r;
    if (!r)
        late_keep(m->machine);
    if (!r)
        r = qmp_do(q, "migrate", json_pack("{s:s}", "uri", "fd:" STREAM_NAME), QEMU_TIMEOUT, &m->error);
    return r;
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

static int switch_over(struct source *m)
{
    json_t *reply;
    int r = source_interrupted(m);

    if (!r)
        r = start_qemu_migration(m);
    xm_fault("switch-begun");
    if (!r)
        r = wait_qemu(m, "pre-switchover");
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
    if ((r = wait_qemu(m, "completed")) < 0)
        return r;
    xm_fault("switch-sent");
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
    late_drop(m->machine);
    int r = xm_fault("resume-refused") ? xm_error_set(e, EIO, "fault point resume-refused")
                                       : qemu_cancel_migration(&m->machine->qemu, QEMU_TIMEOUT, e);

    if (!r && !m->storage)
        r = lock_disks(m, e);
    if (r || !m->paused)
        return r ? r : qemu_continue(&m->machine->qemu, QEMU_TIMEOUT, e);
    bool paused;
    return machine_guest_paused(m->machine, &paused,
                                e); /* in which state that is, the next move's check wants to know */
}
