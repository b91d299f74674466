/* SPDX-License-Identifier: MIT */
/* vm/cost.h: what a switch-over of a VM takes when nothing is left to send: its device state written, sent
 * and loaded, disks flushed, the hand-off's records and round trips. `check` holds it against the downtime
 * budget, and the source does before it stops the guest.
 *
 * It follows from what a VM's last moves took; before there are some, from its devices. The figures are of
 * one file per VM, switch.json beside owner.json, and travel with the VM: the source of a move sends them
 * when the VM runs at its destination. Nothing else is decided by them: a file that is not there, or that
 * nobody understands, means no figures. */
#ifndef XM_VM_COST_H
#define XM_VM_COST_H

#include "vm/spec.h"

#define SWITCH_COSTS 5

struct switch_cost {
    unsigned n;
    uint64_t ns[SWITCH_COSTS]; /* the latest first */
};

/* By its devices alone; ns. */
uint64_t switch_cost_guess(const struct vm_spec *);
/* By its devices until it has moved twice; then 1.6 × the median of what the last moves took (the lower
 * one of two), since they differ, and some came in the way of something else. Where that is beyond the
 * budget, the least of them: a VM whose hosts had a bad day is not kept where it is for good, and a
 * switch that does take longer is given up and tried again. */
uint64_t switch_cost_expect(const struct switch_cost *, const struct vm_spec *, uint64_t budget_ns);
void switch_cost_add(struct switch_cost *, uint64_t ns); /* 1 ns to 10 s; what is beyond is taken for these */

json_t *switch_cost_pack(const struct switch_cost *);
/* A peer's too: what is no figure is left out. */
void switch_cost_unpack(struct switch_cost *, const json_t *);

/* dir: the VM's own in the state directory. */
void switch_cost_load(const char *dir, struct switch_cost *);
int switch_cost_save(const char *dir, const struct switch_cost *, struct xm_error *);

#endif
