/* SPDX-License-Identifier: MIT */
/* memxfer/estimate.c: when to switch over. Pure functions: nothing here asks a clock or a machine. */
#include "memxfer/memxfer.h"

uint64_t xm_switch_estimate(const struct xm_switch_inputs *in)
{
    if (!(in->wire_rate > 0))
        return UINT64_MAX;
    double wire = ((double)in->dirty_bytes + (double)in->mirror_backlog) * 1e9 / in->wire_rate;
    double total = wire + (double)in->scan_ns + (double)in->fixed_ns;
    return total >= 0x1p63 ? UINT64_MAX : (uint64_t)total;
}

enum xm_converge xm_converge_judge(struct xm_converge_state *s, uint64_t dirty_bytes, uint64_t estimate_ns,
                                   uint64_t budget_ns, unsigned patience)
{
    if (estimate_ns != UINT64_MAX && estimate_ns <= budget_ns)
        return XM_CONVERGE_SWITCH;
    if (!s->started || dirty_bytes < s->best_dirty - s->best_dirty / 10) {
        s->started = true;
        s->best_dirty = dirty_bytes;
        s->without_gain = 0;
        return XM_CONVERGE_AGAIN;
    }
    s->without_gain++;
    return s->without_gain >= patience ? XM_CONVERGE_STUCK : XM_CONVERGE_AGAIN;
}
