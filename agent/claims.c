/* SPDX-License-Identifier: MIT */
/* At most one thread works on what is open of a VM. It may wait for the peer, whose thread may wait for us: so
 * a peer that asks does not wait long for a claim, and other VMs have nothing to do with it. */
#include "agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct claim {
    LIST_ENTRY(claim) link;
    char vm[VM_NAME_MAX + 1];
};

/* Under the lock. */
static struct claim *claim_of(struct agent *a, const char *vm)
{
    struct claim *c;

    LIST_FOREACH (c, &a->claims, link) {
        if (!strcmp(c->vm, vm))
            break;
    }
    return c;
}

bool settle_claim(struct agent *a, const char *vm, uint64_t patience_ns)
{
    struct claim *c = calloc(1, sizeof *c);
    uint64_t until = xm_now() + (xm_fault("claim-at-once") ? 0 : patience_ns);

    if (!c)
        return false;
    snprintf(c->vm, sizeof c->vm, "%s", vm);
    agent_lock(a);
    while (claim_of(a, vm) && agent_wait(a, until))
        ;
    bool taken = claim_of(a, vm) != NULL;
    if (!taken)
        LIST_INSERT_HEAD(&a->claims, c, link);
    agent_unlock(a);
    if (taken)
        free(c);
    return !taken;
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
    struct vm *v = vm_find(a, vm);
    bool free = !v || (!v->job[0] && v->phase == VM_UP && !v->incoming);
    if (v && (free || !yes))
        v->closing = yes;
    if (!yes)
        pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    return free;
}
