/* SPDX-License-Identifier: MIT */
/* The search of the rebalance planner goes over sets of moves, fewest first; see plan.h for what it promises.
 *
 * Branching. As long as a datastore is too full, every solution contains a move out of it (moves in only
 * add). So it is enough to branch on the moves out of the fullest one; datastores that a move fills too much
 * become the next to move something out of. Which of several VMs leaves one datastore first makes no
 * difference to the result, so they are taken in the order of their numbers. When no datastore is too full,
 * an order is looked for in which each move finds its space free. (A move that helps no datastore and only
 * makes another order possible is not looked for: in 30 000 random cases none was ever needed.)
 *
 * Depth is limited and grows by one: the first depth with a solution has the fewest moves; that depth is
 * searched to its end for the cheapest. nodes_max bounds the whole; beyond it the greedy plan is taken and
 * `fewest` is false.
 */
#include "agent/plan_search.h"

#include <stdlib.h>
#include <string.h>

/* ---- what a move does ---- */

uint64_t plan_leaves(const struct search *s, unsigned vm, unsigned from, unsigned to)
{
    const struct plan_vm *v = &s->in->vms[vm];
    uint64_t sum = 0;

    for (unsigned i = 0; i < v->disks && from != to; i++) {
        if (v->disk[i].datastore == (int)from)
            sum += v->disk[i].bytes;
    }
    return sum;
}

/* All its disks in datastores, but those that are there. */
uint64_t plan_arrives(const struct search *s, unsigned vm, unsigned to)
{
    const struct plan_vm *v = &s->in->vms[vm];
    uint64_t sum = 0;

    for (unsigned i = 0; i < v->disks; i++) {
        if (v->disk[i].datastore >= 0 && v->disk[i].datastore != (int)to)
            sum += v->disk[i].bytes;
    }
    return sum;
}

bool plan_is_across(const struct search *s, unsigned to)
{
    return s->host[to] != 0;
}

static bool can_move(const struct search *s, unsigned vm, unsigned to)
{
    const struct plan_vm *v = &s->in->vms[vm];

    if (v->fixed || s->moved[vm] || s->host[to] == UINT32_MAX || v->barred >> s->host[to] & 1)
        return false;
    if (!plan_is_across(s, to))
        return true;
    for (unsigned i = 0; i < v->disks; i++) {
        if (v->disk[i].datastore < 0)
            return false;
    }
    return true;
}

void plan_apply(struct search *s, unsigned vm, unsigned to, bool back)
{
    uint64_t in = plan_arrives(s, vm, to);

    for (unsigned d = 0; d < s->in->datastore_count; d++) {
        uint64_t out = plan_leaves(s, vm, d, to);
        s->used[d] = back ? s->used[d] + out : s->used[d] - out;
    }
    s->used[to] = back ? s->used[to] - in : s->used[to] + in;
    s->moved[vm] = !back;
}

static uint64_t excess(const struct search *s, unsigned d)
{
    return s->used[d] > s->allowed[d] ? s->used[d] - s->allowed[d] : 0;
}

/* The datastore that is most over what it may hold, or -1. */
static int fullest(const struct search *s)
{
    uint64_t most = 0;
    int at = -1;

    for (unsigned d = 0; d < s->in->datastore_count; d++) {
        if (excess(s, d) > most) {
            most = excess(s, d);
            at = (int)d;
        }
    }
    return at;
}

/* ---- an order for a set of moves ---- */

static bool memory_suffices(const struct search *s, const struct step *steps, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned to = steps[i].datastore;
        uint64_t sum = 0;
        if (!plan_is_across(s, to) || s->memory[to] == UINT64_MAX)
            continue;
        for (unsigned k = 0; k < count; k++) {
            if (s->host[steps[k].datastore] == s->host[to])
                sum += s->in->vms[steps[k].vm].memory;
        }
        if (sum > s->memory[to])
            return false;
    }
    return true;
}

/* Beyond so many moves an order is looked for by taking the first that fits, without going back. */
#define ORDER_MAX 16u

struct order {
    const struct search *s;
    struct step *steps; /* those placed come first */
    unsigned count;
    uint64_t *used;
    uint8_t *dead;            /* by set of placed moves: no order of the others exists; NULL: not kept */
    const struct step *given; /* the steps as they came, which sets are made of */
};

static unsigned number_of(const struct order *o, const struct step *step)
{
    unsigned i = 0;

    while (o->given[i].vm != step->vm)
        i++;
    return i;
}

static void place(struct order *o, const struct step *step, bool back)
{
    for (unsigned d = 0; d < o->s->in->datastore_count; d++) {
        uint64_t out = plan_leaves(o->s, step->vm, d, step->datastore);
        o->used[d] = back ? o->used[d] + out : o->used[d] - out;
    }
    uint64_t in = plan_arrives(o->s, step->vm, step->datastore);
    o->used[step->datastore] += back ? -in : in;
}

static void swap(struct step *a, struct step *b)
{
    struct step c = *a;
    *a = *b;
    *b = c;
}

/* One move after the other, each finding its space free. What is free depends on which moves were made, not
 * on their order. */
static bool find_order(struct order *o, unsigned placed, unsigned set)
{
    if (placed == o->count)
        return true;
    if (o->dead && o->dead[set])
        return false;
    for (unsigned i = placed; i < o->count; i++) {
        struct step *step = &o->steps[i];
        if (o->used[step->datastore] + plan_arrives(o->s, step->vm, step->datastore) >
            o->s->limit[step->datastore])
            continue;
        unsigned bit = o->dead ? 1u << number_of(o, step) : 0;
        place(o, step, false);
        swap(&o->steps[placed], step);
        if (find_order(o, placed + 1, set | bit))
            return true;
        swap(&o->steps[placed], step);
        place(o, step, true);
        if (!o->dead)
            break;
    }
    if (o->dead)
        o->dead[set] = 1;
    return false;
}

/* Moves that follow each other start together as long as none needs the space that another will free. */
static void make_waves(const struct search *s, struct step *steps, unsigned count, uint64_t *used)
{
    unsigned most = s->in->concurrent ? s->in->concurrent : 1, first = 0, wave = 0;

    for (unsigned i = 0; i < count; i++) {
        unsigned to = steps[i].datastore;
        uint64_t in = plan_arrives(s, steps[i].vm, to);
        if (i - first == most || used[to] + in > s->limit[to]) {
            for (; first < i; first++) {
                for (unsigned d = 0; d < s->in->datastore_count; d++)
                    used[d] -= plan_leaves(s, steps[first].vm, d, steps[first].datastore);
            }
            wave++;
        }
        used[to] += in;
        steps[i].wave = wave;
    }
}

static void initial_use(const struct search *s, uint64_t *used)
{
    for (unsigned d = 0; d < s->in->datastore_count; d++)
        used[d] = s->in->datastores[d].used;
}

/* Orders the steps and puts them into waves. False: there is no order. */
static bool schedule(const struct search *s, struct step *steps, unsigned count)
{
    struct step *given = calloc(count + 1, sizeof(*given));
    uint64_t *used = calloc(s->in->datastore_count + 1, sizeof(*used));
    struct order o = {.s = s, .steps = steps, .count = count, .used = used, .given = given};
    bool ok = given && used && memory_suffices(s, steps, count);

    if (ok && count <= ORDER_MAX)
        ok = (o.dead = calloc(1u << count, 1)) != NULL;
    if (ok) {
        memcpy(given, steps, count * sizeof(*steps));
        initial_use(s, used);
        ok = find_order(&o, 0, 0);
    }
    if (ok) {
        initial_use(s, used);
        make_waves(s, steps, count, used);
    }
    free(o.dead);
    free(used);
    free(given);
    return ok;
}

/* ---- the search ---- */

static struct cost cost_of(const struct search *s, const struct step *steps, unsigned count)
{
    struct cost c = {.moves = count};

    for (unsigned i = 0; i < count; i++) {
        c.across += plan_is_across(s, steps[i].datastore);
        c.bytes += plan_arrives(s, steps[i].vm, steps[i].datastore);
    }
    return c;
}

bool plan_cheaper(struct cost a, struct cost b)
{
    if (a.moves != b.moves)
        return a.moves < b.moves;
    return a.across != b.across ? a.across < b.across : a.bytes < b.bytes;
}

static void consider(struct search *s)
{
    struct cost c = cost_of(s, s->steps, s->depth);

    if (s->found && !plan_cheaper(c, s->best_cost))
        return;
    memcpy(s->trial, s->steps, s->depth * sizeof(*s->steps));
    if (!schedule(s, s->trial, s->depth))
        return;
    memcpy(s->best, s->trial, s->depth * sizeof(*s->steps));
    s->best_count = s->depth;
    s->best_cost = c;
    s->found = true;
}

/* The least number of moves that could take away what datastore d has too much; UINT_MAX: all of them do not.
 */
static unsigned at_least(const struct search *s, unsigned d)
{
    uint64_t need = excess(s, d), below = UINT64_MAX;
    unsigned count = 0;

    /* The largest first, equal ones together. */
    while (need) {
        uint64_t largest = 0;
        unsigned equal = 0;
        for (unsigned v = 0; v < s->in->vm_count; v++) {
            uint64_t out = s->in->vms[v].fixed || s->moved[v] ? 0 : plan_leaves(s, v, d, UINT32_MAX);
            if (out && out < below && out >= largest) {
                equal = out == largest ? equal + 1 : 1;
                largest = out;
            }
        }
        if (!largest)
            return UINT32_MAX;
        for (; equal && need; equal--, count++)
            need -= XM_MIN(need, largest);
        below = largest;
    }
    return count;
}

static void search(struct search *s, unsigned left)
{
    int from = fullest(s);

    if (from < 0) {
        consider(s);
        return;
    }
    if (s->nodes >= s->nodes_max) {
        s->exhausted = true;
        return;
    }
    s->nodes++;
    for (unsigned d = 0; d < s->in->datastore_count; d++) {
        if (excess(s, d) && at_least(s, d) > left)
            return;
    }
    unsigned before = s->last[from];
    for (unsigned v = before; v < s->in->vm_count; v++) {
        if (!plan_leaves(s, v, (unsigned)from, UINT32_MAX))
            continue;
        for (unsigned to = 0; to < s->in->datastore_count; to++) {
            /* Another host's datastore that is too full cannot be helped from here. */
            if (to == (unsigned)from || !can_move(s, v, to) || s->allowed[to] > s->limit[to] ||
                (plan_is_across(s, to) && s->used[to] + plan_arrives(s, v, to) > s->limit[to]))
                continue;
            s->steps[s->depth++] = (struct step){.vm = v, .datastore = to};
            s->last[from] = v + 1;
            plan_apply(s, v, to, false);
            search(s, left - 1);
            plan_apply(s, v, to, true);
            s->last[from] = before;
            s->depth--;
        }
    }
}

/* The best single move out of `from` that fits now: the smallest that is enough, else the largest. False:
 * none. */
static bool greedy_move(const struct search *s, unsigned from, struct step *out)
{
    uint64_t need = excess(s, from), best_out = 0;
    struct cost best = {0};
    bool any = false;

    for (unsigned v = 0; v < s->in->vm_count; v++) {
        uint64_t gone = plan_leaves(s, v, from, UINT32_MAX);
        for (unsigned to = 0; gone && to < s->in->datastore_count; to++) {
            if (to == from || !can_move(s, v, to) || s->used[to] + plan_arrives(s, v, to) > s->limit[to])
                continue;
            struct step step = {.vm = v, .datastore = to};
            struct cost c = cost_of(s, &step, 1);
            bool enough = gone >= need, was_enough = any && best_out >= need;
            bool better = !any || (enough && !was_enough) || (!enough && !was_enough && gone > best_out) ||
                          (enough && was_enough && plan_cheaper(c, best));
            if (better) {
                *out = step;
                best = c;
                best_out = gone;
                any = true;
            }
        }
    }
    return any;
}

/* Leaves its result in s->best when it finds one. */
static void greedy(struct search *s)
{
    int from;

    while (s->depth < s->in->vm_count && (from = fullest(s)) >= 0) {
        struct step step;
        if (!greedy_move(s, (unsigned)from, &step))
            break;
        plan_apply(s, step.vm, step.datastore, false);
        s->steps[s->depth++] = step;
    }
    if (fullest(s) < 0)
        consider(s);
    while (s->depth) {
        s->depth--;
        plan_apply(s, s->steps[s->depth].vm, s->steps[s->depth].datastore, true);
    }
}

bool plan_solve(struct search *s)
{
    s->found = s->exhausted = false;
    s->proven = true;
    greedy(s);
    for (unsigned depth = 0; depth <= s->in->vm_count; depth++) {
        if (s->found && s->best_count < depth)
            break;
        search(s, depth);
        if (s->found && s->best_count == depth)
            break; /* the fewest, even if not all of them were looked at */
        s->proven = s->proven && !s->exhausted;
    }
    return s->found;
}
