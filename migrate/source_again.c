/* SPDX-License-Identifier: MIT */
/* Another try after a switch-over that took too long. The copy of the disks may have taken hours: it is not
 * given up for a destination's disk that took a second to flush, or a link that was slow for a moment.
 *
 * The first try has twice the guest's downtime budget, or half the grace beyond it where that is less. When
 * that is over:
 *   the destination takes its promise back, durably (invariant 11: the guest is about to make that copy
 *   old), and says so; the guest stands still for that, for as long as it would have for the switch-over
 *   -> the guest goes on here; the mirror has never been off
 *   -> what was on its way has ended, and the destination has a QEMU that can load a VM
 *   -> memory goes anew, all of it, and then the second try, with budget and grace (source_switch.c).
 *
 * Failures: as of the switch-over itself before the guest goes on; afterwards as in any round of memory. */
#include "migrate/source.h"

static bool only_late(struct source *m)
{
    struct xm_error first = m->error;

    /* Its user may have let it go on, and what it did is refused there. */
    qmp_pump(&m->machine->qemu.qmp, 0, NULL);
    bool late = m->can_try_again && m->seen.stop && !m->seen.resumed && source_overdue(m) < 0;

    late = late && source_interrupted(m) == 0;
    m->error = first;
    return late;
}

static void note(struct source *m)
{
    uint64_t stood = xm_now() - m->seen.stop;

    m->report.stood += stood;
    m->report.given_up = m->error;
    xm_log(XM_LOG_WARN, "VM %s, job %s: the switch-over was given up after %s, and is tried again: %s",
           m->machine->spec.name, m->job, xm_format_time(stood).s, m->error.text);
}

/* The guest runs here, as if no switch-over had begun. What the stream has sent is not waited for: whoever
 * does not answer it would keep an abort waiting, too. */
static void forget_switch(struct source *m)
{
    m->old_stream = m->stream;
    m->stream = NULL;
    m->stopping = m->told = false;
    m->seen.stop = 0;
    m->may_be_promised = false;
    m->attempt++;
}

int source_again(struct source *m, int r)
{
    struct xm_error first = m->error;

    if (!only_late(m))
        return m->can_try_again ? source_late(m, r) : r;
    m->can_try_again = false; /* from here on there is the grace */
    if (source_late(m, 0))
        return -m->error.code;
    xm_fault("again");
    json_t *reply = call_destination(m->links, m->attempt + 1, json_pack("{s:s}", "call", "again"),
                                     source_time_left(m, UINT64_MAX / 2), &m->error);
    json_decref(reply);
    if (!reply)
        xm_log(XM_LOG_WARN, "VM %s, job %s: no other switch-over can be tried: %s", m->machine->spec.name,
               m->job, m->error.text);
    m->error = first;
    if (!reply)
        return source_late(m, r);
    xm_fault("again-answered");
    /* QEMU waits for nobody from here on, and lets its guest go on by itself when it sees that. */
    if (m->stream)
        stream_stop(m->stream);
    bool back = source_resume(m, &m->error) == 0;
    m->error = first;
    if (!back)
        return r;
    note(m);
    xm_links_set_background(m->links, true);
    forget_switch(m);
    xm_fault("again-resumed");
    m->error.code = 0;
    if ((r = source_set_state(m, SOURCE_MEMORY)) < 0)
        return r;
    /* What was said meanwhile was said to one that stood still. */
    xm_links_set_rate(m->links, m->rate = m->asked.rate);
    source_disks_links(m);
    reply = call_destination_until(m->links, m->attempt, json_pack("{s:s}", "call", "ready"), source_waits, m,
                                   &m->error);
    if (!reply) {
        source_interrupted(m); /* that is the cause */
        return -m->error.code;
    }
    source_note_bridges(m, reply);
    json_decref(reply);
    r = xm_precopy_again(m->precopy, source_waits, m, &m->error);
    return r && source_interrupted(m) ? -m->error.code : r;
}
