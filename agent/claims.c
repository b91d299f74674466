/* SPDX-License-Identifier: MIT */
/* At most one thread works on what is open of a VM. It may wait for the peer, whose thread may wait for
 * us: so a peer that asks does not wait long for a claim, and other VMs have nothing to do with it. */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A peer that is asked meanwhile has 3 s to let us connect, and 3 more to answer (returned.c). */
#define HELD_NS (10 * XM_NS_PER_S)

/* The oldest of a VM works on it, the others wait for their turn: who comes again and again keeps nobody from
 * it. */
struct claim {
    LIST_ENTRY(claim) link; /* newest first */
    char vm[VM_NAME_MAX + 1];
    bool held;
    bool word; /* an operator's word about its peer is carried out */
};

/* Under the lock: whose turn it is; NULL: nobody's. */
static struct claim *claim_of(struct agent *a, const char *vm)
{
    struct claim *c, *oldest = NULL;

    LIST_FOREACH (c, &a->claims, link) {
        if (!strcmp(c->vm, vm))
            oldest = c;
    }
    return oldest;
}

bool settle_claim(struct agent *a, const char *vm, uint64_t patience_ns)
{
    struct claim *c = calloc(1, sizeof *c);
    uint64_t until = xm_now() + (xm_fault("claim-at-once") ? 0 : patience_ns);

    if (!c)
        return false;
    snprintf(c->vm, sizeof c->vm, "%s", vm);
    agent_lock(a);
    LIST_INSERT_HEAD(&a->claims, c, link);
    while (claim_of(a, vm) != c && agent_wait(a, until))
        ;
    bool mine = claim_of(a, vm) == c;
    if (!mine)
        LIST_REMOVE(c, link);
    agent_unlock(a);
    if (!mine)
        free(c);
    return mine;
}

void settle_release(struct agent *a, const char *vm)
{
    agent_lock(a);
    struct claim *c = claim_of(a, vm);
    LIST_REMOVE(c, link);
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    free(c);
}

bool settle_hold(struct agent *a, const char *vm, bool yes)
{
    agent_lock(a);
    const struct vm *v = vm_find(a, vm);
    bool free = !v || (!v->job[0] && v->phase == VM_UP && !v->incoming);
    if (free || !yes)
        claim_of(a, vm)->held = yes;
    if (!yes)
        pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    return free;
}

bool settle_let_go(struct agent *a, const char *vm)
{
    uint64_t until = xm_now() + HELD_NS;
    const struct claim *c;

    while ((c = claim_of(a, vm)) && c->held && agent_wait(a, until))
        ;
    return !c || !c->held;
}

void settle_word(struct agent *a, const char *vm, bool yes)
{
    agent_lock(a);
    claim_of(a, vm)->word = yes;
    agent_unlock(a);
}

bool settle_by_word(struct agent *a, const char *vm)
{
    agent_lock(a);
    const struct claim *c = claim_of(a, vm);
    bool is = c && c->word;
    agent_unlock(a);
    return is;
}
