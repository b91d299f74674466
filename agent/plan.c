/* SPDX-License-Identifier: MIT */
/* The rebalance planner: which datastores can be helped, and saying what is done and why. plan_search.c finds
 * the moves. */
#include "agent/plan_search.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Datastores that are too full at once for which every subset is tried when not all can be helped. */
#define SUBSETS_OF_MAX 8u

/* ---- which datastores can be helped ---- */

static bool solve_subset(struct search *s, const unsigned *full, unsigned count, unsigned subset)
{
    for (unsigned d = 0; d < s->in->datastore_count; d++)
        s->allowed[d] = XM_MAX(s->limit[d], s->in->datastores[d].used);
    for (unsigned i = 0; i < count; i++) {
        if (subset & 1u << i)
            s->allowed[full[i]] = s->limit[full[i]];
    }
    return plan_solve(s);
}

static unsigned bits(unsigned x)
{
    return (unsigned)__builtin_popcount(x);
}

/* The subset of most datastores that can be helped together; of several, the one with the cheapest plan. */
static void help_most(struct search *s, const unsigned *full, unsigned count, bool *proven)
{
    struct step *keep = calloc(s->in->vm_count + 1, sizeof(*keep));
    unsigned tried = XM_MIN(count, SUBSETS_OF_MAX), chosen = 0, kept = 0;
    struct cost cost = {0};

    for (unsigned size = tried; keep && size && !chosen; size--) {
        for (unsigned subset = 1; subset < 1u << tried; subset++) {
            if (bits(subset) != size)
                continue;
            bool solved = solve_subset(s, full, count, subset);
            *proven = *proven && s->proven;
            if (!solved)
                continue;
            if (chosen && !plan_cheaper(s->best_cost, cost))
                continue;
            chosen = subset;
            cost = s->best_cost;
            kept = s->best_count;
            memcpy(keep, s->best, kept * sizeof(*keep));
        }
    }
    if (chosen)
        memcpy(s->best, keep, kept * sizeof(*keep));
    s->best_count = chosen ? kept : 0;
    *proven = *proven && tried == count;
    free(keep);
}

/* ---- the others, as far as it goes ---- */

/* Less than this nearer to its target is not worth a move. */
#define RELIEF_MIN (1ull << 20)

static uint64_t left_by_best(const struct search *s, unsigned d)
{
    uint64_t used = s->in->datastores[d].used;

    for (unsigned i = 0; i < s->best_count; i++) {
        unsigned to = s->best[i].datastore;
        used -= plan_leaves(s, s->best[i].vm, d, to);
        used += to == d ? plan_arrives(s, s->best[i].vm, d) : 0;
    }
    return used;
}

/* What is the least that datastore d can be brought to, with all others as `allowed` says? Halves the range
 * between its target and what is known to be possible; the last solution found stays in s->best. */
static void relieve(struct search *s, unsigned d, struct step *keep, bool *proven)
{
    uint64_t low = s->limit[d], high = left_by_best(s, d), try = low;
    unsigned kept = s->best_count;

    memcpy(keep, s->best, kept * sizeof(*keep));
    while (high > low) {
        s->allowed[d] = try;
        s->nodes = 0;
        if (plan_solve(s)) {
            kept = s->best_count;
            memcpy(keep, s->best, kept * sizeof(*keep));
            high = XM_MIN(left_by_best(s, d), try);
        } else {
            low = try;
        }
        *proven = *proven && s->proven;
        if (high - low <= RELIEF_MIN)
            break;
        try = low + (high - low) / 2;
    }
    s->allowed[d] = high;
    s->best_count = kept;
    memcpy(s->best, keep, kept * sizeof(*keep));
}

/* Those that cannot be helped to their target, or not together with the others, are brought as near to it as
 * they can, one after the other, the worst first. None of those before is given up for it. */
static void relieve_others(struct search *s, unsigned *full, unsigned count, bool *proven)
{
    const struct plan_datastore *ds = s->in->datastores;
    struct step *keep = calloc(s->in->vm_count + 1, sizeof(*keep));

    for (unsigned d = 0; d < s->in->datastore_count; d++)
        s->allowed[d] = XM_MAX(s->limit[d], left_by_best(s, d));
    s->nodes_max = PLAN_NODES_MAX / 16;
    for (unsigned i = 0; keep && i < count; i++) {
        for (unsigned k = i + 1; k < count; k++) {
            unsigned a = full[i], b = full[k];
            if (ds[b].used - s->limit[b] > ds[a].used - s->limit[a]) {
                full[i] = b;
                full[k] = a;
            }
        }
        if (left_by_best(s, full[i]) > s->limit[full[i]])
            relieve(s, full[i], keep, proven);
    }
    free(keep);
}

/* ---- saying it ---- */

static unsigned percent(uint64_t used, uint64_t size)
{
    return size ? (unsigned)((double)used * 100 / (double)size + 0.5) : 100;
}

static void explain_move(struct search *s, const struct step *step, struct plan_move *m)
{
    const struct plan_datastore *ds = s->in->datastores, *to = &ds[step->datastore];
    uint64_t most = 0;
    unsigned from = step->datastore;

    *m = (struct plan_move){.vm = step->vm,
                            .datastore = step->datastore,
                            .wave = step->wave,
                            .across = plan_is_across(s, step->datastore),
                            .bytes = plan_arrives(s, step->vm, step->datastore)};
    /* It is for the datastore that is most over its target of those that it leaves; else to make room for
     * what comes. */
    for (unsigned d = 0; d < s->in->datastore_count; d++) {
        uint64_t over = s->used[d] > s->limit[d] ? s->used[d] - s->limit[d] : 0;
        if (plan_leaves(s, step->vm, d, step->datastore) && (from == step->datastore || over > most)) {
            from = d;
            most = over;
        }
    }
    unsigned from_before = percent(s->used[from], ds[from].size),
             to_before = percent(s->used[step->datastore], to->size);
    plan_apply(s, step->vm, step->datastore, false);
    s->moved[step->vm] = false;
    char why[100] = "has to make room for what comes";
    if (most)
        snprintf(why, sizeof(why), "%s above its target of %u %%", xm_format_size(most).s, ds[from].target);
    snprintf(m->reason, sizeof(m->reason),
             "%s is %u %% full, %s; %s (%s) leaves it at %u %% and takes %s%s%s from %u %% to %u %%",
             ds[from].name, from_before, why, s->in->vms[step->vm].name, xm_format_size(m->bytes).s,
             percent(s->used[from], ds[from].size), m->across ? to->host : "", m->across ? ":" : "", to->name,
             to_before, percent(s->used[step->datastore], to->size));
}

/* After the moves. */
static void explain_problem(struct search *s, unsigned d, struct plan_problem *p)
{
    const struct plan_datastore *ds = &s->in->datastores[d];
    uint64_t over = ds->used - s->limit[d], movable = 0, room = 0;
    bool less = s->used[d] < ds->used;
    unsigned roomiest = d;
    bool barred = false;
    char head[300];

    p->datastore = d;
    p->over = s->used[d] - s->limit[d];
    snprintf(head, sizeof(head), "%s is %u %% full, %s above its target of %u %%", ds->name,
             percent(ds->used, ds->size), xm_format_size(over).s, ds->target);
    if (s->host[d] != 0) {
        snprintf(p->reason, sizeof(p->reason),
                 "%s:%s, but only VMs that run on %s are moved from here: run rebalance on %s", ds->host,
                 head, s->in->host, ds->host);
        return;
    }
    if (less)
        snprintf(head + strlen(head), sizeof(head) - strlen(head), ", and stays at %u %%, %s above it",
                 percent(s->used[d], ds->size), xm_format_size(p->over).s);
    for (unsigned v = 0; v < s->in->vm_count; v++) {
        movable += s->in->vms[v].fixed ? 0 : plan_leaves(s, v, d, UINT32_MAX);
        barred = barred || s->in->vms[v].barred;
    }
    for (unsigned i = 0; i < s->in->datastore_count; i++) {
        if (i != d && s->host[i] != UINT32_MAX && s->used[i] < s->limit[i] &&
            s->limit[i] - s->used[i] > room) {
            room = s->limit[i] - s->used[i];
            roomiest = i;
        }
    }
    if (movable < over)
        snprintf(p->reason, sizeof(p->reason), "%s, %s the VMs here that could be moved take only %s of it",
                 head, less ? "since" : "but", xm_format_size(movable).s);
    else if (roomiest == d)
        snprintf(p->reason, sizeof(p->reason), "%s, %s no other datastore has %sroom below its own target",
                 head, less ? "since" : "but", less ? "more " : "");
    else
        snprintf(p->reason, sizeof(p->reason),
                 "%s, %s no %smoves of its VMs%s fit into the room elsewhere: the most is %s, in %s:%s", head,
                 less ? "since" : "but", less ? "more " : "", barred ? " that are let in" : "",
                 xm_format_size(room).s, s->in->datastores[roomiest].host, s->in->datastores[roomiest].name);
}

/* ---- in and out ---- */

static int plan_judge(const struct plan_input *in, struct xm_error *e)
{
    for (unsigned v = 0; v < in->vm_count; v++) {
        const struct plan_vm *vm = &in->vms[v];
        if (vm->disks > VM_DISKS_MAX)
            return xm_error_set(e, EINVAL, "VM %s has %u disks, more than %u", vm->name, vm->disks,
                                VM_DISKS_MAX);
        for (unsigned i = 0; i < vm->disks; i++) {
            int d = vm->disk[i].datastore;
            if (d >= (int)in->datastore_count || (d >= 0 && strcmp(in->datastores[d].host, in->host) != 0))
                return xm_error_set(e, EINVAL,
                                    "VM %s runs on %s and cannot have a disk in a datastore elsewhere",
                                    vm->name, in->host);
        }
    }
    return 0;
}

static int no_memory(struct xm_error *e)
{
    xm_error_set(e, ENOMEM, "no memory to plan");
    return -ENOMEM;
}

static void fini(struct search *s)
{
    free(s->limit);
    free(s->allowed);
    free(s->used);
    free(s->memory);
    free(s->host);
    free(s->moved);
    free(s->last);
    free(s->steps);
    free(s->best);
    free(s->trial);
}

static unsigned find_host(const struct plan_input *in, const char *name)
{
    if (strcmp(name, in->host) == 0)
        return 0;
    for (unsigned i = 0; i < in->host_count; i++) {
        if (strcmp(name, in->hosts[i].name) == 0)
            return i + 1;
    }
    return UINT32_MAX;
}

/* A datastore whose VMs take more than it has in use (the numbers were read at different moments) has at
 * least that in use. */
static uint64_t in_use(const struct search *s, unsigned d)
{
    uint64_t sum = 0;

    for (unsigned v = 0; v < s->in->vm_count; v++)
        sum += plan_leaves(s, v, d, UINT32_MAX);
    return XM_MAX(sum, s->in->datastores[d].used);
}

static int init(struct search *s, const struct plan_input *in, struct xm_error *e)
{
    unsigned stores = in->datastore_count + 1, vms = in->vm_count + 1;

    *s = (struct search){.in = in, .nodes_max = PLAN_NODES_MAX};
    s->limit = calloc(stores, sizeof(*s->limit));
    s->allowed = calloc(stores, sizeof(*s->allowed));
    s->used = calloc(stores, sizeof(*s->used));
    s->memory = calloc(stores, sizeof(*s->memory));
    s->host = calloc(stores, sizeof(*s->host));
    s->moved = calloc(vms, sizeof(*s->moved));
    s->last = calloc(stores, sizeof(*s->last));
    s->steps = calloc(vms, sizeof(*s->steps));
    s->best = calloc(vms, sizeof(*s->best));
    s->trial = calloc(vms, sizeof(*s->trial));
    if (!s->limit || !s->allowed || !s->used || !s->memory || !s->host || !s->moved || !s->last ||
        !s->steps || !s->best || !s->trial)
        return no_memory(e);
    for (unsigned d = 0; d < in->datastore_count; d++) {
        const struct plan_datastore *ds = &in->datastores[d];
        s->limit[d] = ds->target && ds->target < 100
                          ? ds->size / 100 * ds->target + ds->size % 100 * ds->target / 100
                          : ds->size;
        s->used[d] = ds->used;
        s->host[d] = find_host(in, ds->host);
        s->memory[d] =
            s->host[d] == 0 || s->host[d] == UINT32_MAX ? UINT64_MAX : in->hosts[s->host[d] - 1].memory_free;
    }
    return 0;
}

static int plan(const struct plan_input *in, struct plan *p, struct xm_error *e)
{
    struct search s;
    unsigned *full = calloc(in->datastore_count + 1, sizeof(*full)), count = 0;
    int rc = init(&s, in, e);

    p->moves = calloc(in->vm_count + 1, sizeof(*p->moves));
    p->problems = calloc(in->datastore_count + 1, sizeof(*p->problems));
    if (rc == 0 && (!full || !p->moves || !p->problems))
        rc = no_memory(e);
    if (rc < 0)
        goto out;
    p->fewest = true;
    for (unsigned d = 0; d < in->datastore_count; d++) {
        if (in->datastores[d].used > s.limit[d] && s.host[d] == 0)
            full[count++] = d;
    }
    if (count) {
        help_most(&s, full, count, &p->fewest);
        relieve_others(&s, full, count, &p->fewest);
    }
    for (unsigned i = 0; i < s.best_count; i++)
        explain_move(&s, &s.best[i], &p->moves[p->move_count++]);
    for (unsigned d = 0; d < in->datastore_count; d++) {
        if (s.used[d] > s.limit[d] && s.host[d] != UINT32_MAX)
            explain_problem(&s, d, &p->problems[p->problem_count++]);
    }
out:
    fini(&s);
    free(full);
    return rc;
}

int plan_rebalance(const struct plan_input *in, struct plan *p, struct xm_error *e)
{
    struct plan_datastore *stores = calloc(in->datastore_count + 1, sizeof(*stores));
    struct plan_input sane = *in;
    int rc = plan_judge(in, e);

    *p = (struct plan){0};
    if (rc == 0 && !stores)
        rc = no_memory(e);
    if (rc == 0) {
        struct search look = {.in = in};
        for (unsigned d = 0; d < in->datastore_count; d++) {
            stores[d] = in->datastores[d];
            stores[d].used = in_use(&look, d);
        }
        sane.datastores = stores;
        rc = plan(&sane, p, e);
    }
    if (rc < 0)
        plan_free(p);
    free(stores);
    return rc;
}

void plan_free(struct plan *p)
{
    free(p->moves);
    free(p->problems);
    *p = (struct plan){0};
}
