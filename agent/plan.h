/* SPDX-License-Identifier: MIT */
/* agent/plan.h: the rebalance planner. A pure function: what the datastores and VMs are, in; which VMs to
 * move where, out.
 *
 * It finds the fewest moves after which every datastore of this host is at or under its target fill, no other
 * has been pushed over its own, and none is over it at any moment in between (a move takes its space at the
 * destination when it starts and frees it at the source when it ends). Among plans with as few moves it takes
 * the one with the fewest moves to other hosts, then the one with the fewest bytes. Only VMs that run on this
 * host are moved, each at most once, as a whole:
 * - within the host (`xmigrate --storage-only VM DATASTORE`): its disks in other datastores go to this one;
 * disks outside any datastore stay where they are;
 * - to another host (`xmigrate --with-storage VM HOST:DATASTORE`): all its disks; not when one is outside any
 * datastore.
 * When not every datastore of this host can be brought to its target, as many as possible are, and the others,
 * the one that is most over it first, as near to theirs as can be; what stays over is said, and why.
 */
#ifndef XM_AGENT_PLAN_H
#define XM_AGENT_PLAN_H

#include "vm/vm.h"

struct plan_host { /* another host that VMs may go to */
    char name[64];
    uint64_t memory_free; /* bytes for further VMs; UINT64_MAX: not known, not looked at */
};

struct plan_datastore {
    char host[64], name[64];
    uint64_t size, used; /* bytes */
    unsigned target;     /* per cent; 0: no target, may be filled */
};

struct plan_vm { /* runs on this host */
    char name[VM_NAME_MAX + 1];
    uint64_t memory;
    bool fixed; /* must not be moved (being migrated, a device that cannot, the user said so) */
    /* Where it would be refused: bit 0: the datastores of its own host, bit 1 + i: hosts[i]. */
    uint64_t barred;
    unsigned disks;
    struct {
        int datastore;  /* index; -1: outside any */
        uint64_t bytes; /* what it takes up (allocated, when thin) */
    } disk[VM_DISKS_MAX];
};

struct plan_input {
    const char *host; /* this one */
    const struct plan_host *hosts;
    unsigned host_count;
    const struct plan_datastore *datastores; /* of this host and of those above; others are ignored */
    unsigned datastore_count;
    const struct plan_vm *vms;
    unsigned vm_count;
    unsigned concurrent; /* moves at once; 0: 1 */
};

struct plan_move {
    unsigned vm, datastore; /* which, and to where */
    bool across;            /* to another host */
    uint64_t bytes;
    unsigned wave; /* from 0; a wave starts when all moves of the one before have ended */
    char reason[600];
};

struct plan_problem {
    unsigned datastore; /* stays above its target */
    uint64_t over;      /* by so many bytes, after the moves */
    char reason[600];
};

struct plan {
    struct plan_move *moves; /* by wave */
    unsigned move_count;
    struct plan_problem *problems;
    unsigned problem_count;
    bool fewest; /* proven; false: too many possibilities, there may be a plan with fewer moves */
};

/* 0 or -EINVAL/-ENOMEM with a sentence. plan_free after success. */
int plan_rebalance(const struct plan_input *, struct plan *, struct xm_error *);
void plan_free(struct plan *);

#endif
