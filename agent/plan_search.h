/* SPDX-License-Identifier: MIT */
/* agent/plan_search.h: the search of the rebalance planner, between plan_search.c and plan.c. */
#ifndef HOST_PLAN_SEARCH_H
#define HOST_PLAN_SEARCH_H

#include "agent/plan.h"

#define PLAN_NODES_MAX 300000u

struct cost {
    unsigned moves, across;
    uint64_t bytes;
};

struct step {
    unsigned vm, datastore, wave;
};

struct search {
    const struct plan_input *in;
    uint64_t *limit; /* per datastore: its target in bytes */
    uint64_t
        *allowed; /* what it may hold in the end: the limit, or what it holds now if it is not to be helped */
    uint64_t *used;   /* as the moves so far have left it */
    uint64_t *memory; /* per datastore: free memory of its host; this host: UINT64_MAX */
    unsigned *host;   /* per datastore: 0 this host, 1 + index of another, UINT_MAX unknown */
    bool *moved;      /* per VM */
    unsigned *last;   /* per datastore: the VM after which the next to leave it is taken */
    struct step *steps, *best, *trial;
    unsigned depth, best_count;
    bool found;
    struct cost best_cost;
    unsigned nodes, nodes_max;
    bool exhausted; /* nodes_max was reached */
    bool proven;    /* solve: there is nothing better */
};

/* What leaves datastore `from` when the VM moves to `to` (UINT32_MAX: anywhere), and what comes to `to`. */
uint64_t plan_leaves(const struct search *, unsigned vm, unsigned from, unsigned to);
uint64_t plan_arrives(const struct search *, unsigned vm, unsigned to);
bool plan_is_across(const struct search *, unsigned to);
/* Adds the effect of a move to `used` and `moved`, or takes it back. */
void plan_apply(struct search *, unsigned vm, unsigned to, bool back);
bool plan_cheaper(struct cost, struct cost);
/* Solves for the datastores that `allowed` says. False: it cannot be done, or (not s->proven) nothing was
 * found. */
bool plan_solve(struct search *);

#endif
