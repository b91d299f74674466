/* SPDX-License-Identifier: MIT */
/* Pre-copy: rounds until what is left fits into the downtime budget. The VM runs all the time. */
#include "migrate/source.h"

#include <stdio.h>
#include <string.h>

static uint64_t mirror_backlog(struct source *m)
{
    uint64_t sum = 0;

    for (unsigned i = 0; m->storage && i < m->machine->disks; i++) {
        struct xm_disk_status st;
        xm_disk_status(m->machine->disk[i].disk, &st);
        sum += st.buffer_bytes;
    }
    return sum;
}

int source_stuck(const struct xm_switch_inputs *in, const struct xm_round *last, uint64_t budget,
                 uint64_t limit, struct xm_error *e)
{
    uint64_t fixed = in->scan_ns + in->fixed_ns;
    uint64_t estimate = xm_switch_estimate(in);
    /* As fast as it makes pages dirty; and what it has made dirty by the end of a round within the budget. */
    double keep_up = last->ns ? (double)in->dirty_bytes * 1e9 / (double)last->ns : 0;
    double in_time = budget > fixed ? (double)in->dirty_bytes * 1e9 / (double)(budget - fixed) : 0;
    char held[80] = "";

    if (fixed > budget) {
        uint64_t left = in->dirty_bytes + in->mirror_backlog;
        char with[64] = "";
        if (left)
            snprintf(with, sizeof with, "with the %s that are left now ", xm_format_size(left).s);
        return xm_error_set(
            e, ETIMEDOUT,
            "the switch-over takes %s with nothing left to send, by this VM's last moves or its devices (of "
            "that %s to look for changed memory), more than the budget of %s; %sit needs --downtime %llu at "
            "least",
            xm_format_time(fixed).s, xm_format_time(in->scan_ns).s, xm_format_time(budget).s, with,
            (unsigned long long)((estimate == UINT64_MAX ? fixed : estimate) / XM_NS_PER_MS + 1));
    }
    if (in->mirror_backlog > in->dirty_bytes)
        return xm_error_set(
            e, ETIMEDOUT,
            "the guest writes to its disks faster than the destination takes it: %s left after %u rounds at "
            "%s, estimated downtime %s, budget %s; it would need faster links or disks there, or "
            "a larger --downtime",
            xm_format_size(in->mirror_backlog).s, last->number, xm_format_rate(last->rate).s,
            xm_format_time(estimate).s, xm_format_time(budget).s);
    if (limit)
        snprintf(held, sizeof held, " (--bandwidth holds them to %s)", xm_format_rate((double)limit).s);
    return xm_error_set(
        e, ETIMEDOUT,
        "the guest dirties memory faster than it can be sent: %s left after %u rounds at %s, estimated "
        "downtime %s, budget %s; it needs links of %s at least%s, or a larger --downtime",
        xm_format_size(in->dirty_bytes).s, last->number, xm_format_rate(last->rate).s,
        xm_format_time(estimate).s, xm_format_time(budget).s,
        xm_format_rate(keep_up > in_time ? keep_up : in_time).s, held);
}

/* A guest that comes to a bridge which passes nothing yet is cut off, and what tells the network of its move
 * is lost. It runs here meanwhile. */
static int wait_for_bridges(struct source *m)
{
    int r = 0;

    xm_log(XM_LOG_INFO, "job %s: bridges of %s (STP) pass what the guest sends in %s", m->job, m->destination,
           xm_format_time(m->bridges_at - xm_now()).s);
    while (!(r = source_interrupted(m)) && xm_now() < m->bridges_at)
        source_turn(m, 10);
    return r;
}

int source_memory(struct source *m)
{
    struct xm_converge_state judge = {0};
    struct xm_round round = {0};

    switch_cost_load(m->machine->state_dir, &m->took);
    uint64_t fixed = switch_cost_expect(&m->took, &m->machine->spec, m->opt.downtime);
    if (!m->precopy)
        m->precopy = xm_precopy_new(&m->machine->ram, m->to, &m->error);
    if (!m->precopy)
        return -m->error.code;
    for (;;) {
        uint64_t pages = 0;
        int r = source_interrupted(m);
        if (!r)
            r = source_disks_flush(m);
        m->report.rounds++;
        if (!r)
            r = xm_precopy_round(m->precopy, false, source_waits, m, &round, &m->error);
        if (r)
            return source_interrupted(m) ? -m->error.code : r;
        xm_fault("memory-round");
        m->wire_rate = round.rate;
        m->report.ram_bytes += round.pages_data * XM_PAGE;
        uint64_t t = xm_now();
        if ((r = xm_precopy_peek(m->precopy, &pages, &m->error)) < 0)
            return r;
        struct xm_switch_inputs in = {
            .dirty_bytes = pages * XM_PAGE,
            .mirror_backlog = mirror_backlog(m),
            .wire_rate = round.rate,
            .scan_ns = xm_now() - t,
            .fixed_ns = fixed,
        };
        m->report.estimate = xm_switch_estimate(&in);
        xm_log(XM_LOG_INFO,
               "job %s: round %u: %llu pages in %s, %llu dirty since, switch-over estimated at %s", m->job,
               round.number, (unsigned long long)round.pages_dirty, xm_format_time(round.ns).s,
               (unsigned long long)pages, xm_format_time(m->report.estimate).s);
        source_progress(m, true);
        switch (
            xm_converge_judge(&judge, in.dirty_bytes, m->report.estimate, m->opt.downtime, m->opt.patience)) {
        case XM_CONVERGE_SWITCH:
            if (xm_now() < m->bridges_at) {
                if ((r = wait_for_bridges(m)) < 0)
                    return r;
                judge = (struct xm_converge_state){0};
                break;
            }
            /* Chunks that the mirror gave up meanwhile are copied while the guest runs, not while it is
             * stopped. */
            if (source_disks_in_step(m))
                return 0;
            if ((r = source_disks_wait(m)) < 0)
                return r;
            break;
        case XM_CONVERGE_STUCK:
            if (m->asked.persist)
                break;
            return source_stuck(&in, &round, m->opt.downtime, m->asked.rate, &m->error);
        case XM_CONVERGE_AGAIN:
            break;
        }
    }
}
