/* SPDX-License-Identifier: MIT */
/* QEMU's own migration at the source: begun, and waited for.
 *
 * QEMU's stream carries what is not the guest's RAM, some 0.2 MB and ROMs. A QEMU that would send guest RAM
 * too would do so in the downtime, and over what our own frames have brought. One that leaves out more than
 * we send would lose it. So it is asked what it counts as its own to send before anything is accepted of
 * it, and device state that is larger than what fits into the budget ends the migration (check_ram,
 * check_state). */
#include "migrate/source.h"

#include <string.h>

#define INCOMING_TIMEOUT (20 * XM_NS_PER_S) /* a link that goes silent with it counts as failed after 10 s */
#define STATE_MIN        (1ull << 20) /* device state that is always let through; usual is 0.1 to 0.3 MB */

#define STOP_HEARD (10 * XM_NS_PER_MS) /* so long after its STOP event it has been read, mostly */

/* ROMs of QEMU's may grow by some KiB when a guest boots anew; guest RAM has no smaller blocks. */
#define RAM_SLACK (1ull << 20)

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

int source_qemu_wait(struct source *m, const char *status)
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
        if (!m->seen.stop)
            late_trim(m->machine, STOP_HEARD);
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

int source_qemu_begin(struct source *m)
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
    xm_fault("switch-asked");
    if (!r)
        late_keep(m->machine);
    if (!r)
        r = qmp_do(q, "migrate", json_pack("{s:s}", "uri", "fd:" STREAM_NAME), QEMU_TIMEOUT, &m->error);
    return r;
}
