/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_handoff.h"
#include "tests/unit/lib_disk.h"

#include <stdio.h>

static const char *const names[] = {"A", "B"};

enum sin sin_committed;
char violation[200];
struct handoff_msg history[2][HISTORY];
unsigned sent[2];
bool on_record;

static void world_violated(const char *what)
{
    if (!violation[0])
        snprintf(violation, sizeof(violation), "%s", what);
}

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            world_violated(#cond);                                                                           \
    } while (0)

/* The record says mine, and no epoch is known that is higher: given away with the same one is what it came
 * from. */
static bool may_run(const struct world *w, int i)
{
    const struct owner_record *mine = &w->n[i].disk, *other = &w->n[!i].disk;
    uint64_t known = other->epoch - (other->owner == OWNER_PROMISED);

    return owner_may_run(mine) &&
           (mine->epoch > known || (mine->epoch == known && other->owner != OWNER_MINE));
}

void world_check(const struct world *w)
{
    const struct node *a = &w->n[0], *b = &w->n[1];

    CHECK(!(a->vm == VM_RUNNING && b->vm == VM_RUNNING));
    CHECK(!(a->disk.owner == OWNER_MINE && b->disk.owner == OWNER_MINE));
    CHECK(a->current || b->current);
    /* A source's copy goes after its record has said so. */
    for (int i = 0; i < 2; i++)
        CHECK(w->n[i].copy || w->n[i].h.destination ||
              (w->n[i].disk.owner == OWNER_GIVEN && w->n[i].disk.settled));
    for (int i = 0; i < 2; i++) {
        CHECK(w->n[i].vm != VM_RUNNING || may_run(w, i));
        CHECK(w->n[i].vm != VM_RUNNING || w->n[i].current);
    }
}

static void send_msg(struct world *w, int to, const struct handoff_msg *m)
{
    if (on_record)
        history[to][sent[to]++ % HISTORY] = *m;
    if (w->count[to] < CHANNEL)
        w->channel[to][w->count[to]++] = *m;
}

static void run_vm(struct world *w, int i)
{
    w->n[i].vm = VM_RUNNING;
    CHECK(w->n[i].current);
    w->n[!i].current = false;
}

void world_perform(struct world *w, int i, const struct handoff_actions *a)
{
    struct node *n = &w->n[i];

    if (a->write) {
        CHECK(!n->writing);
        CHECK(!a->run && !a->resume && !a->destroy && !a->discard && !a->send);
        n->pending = a->record;
        n->writing = true;
        n->reached = false;
        if (sin_committed == SEND_BEFORE_RECORD && a->record.owner == OWNER_GIVEN)
            send_msg(w, !i, &(struct handoff_msg){.type = HANDOFF_MSG_RUN, .epoch = a->record.epoch});
        if (sin_committed == RUN_BEFORE_RECORD && a->record.owner == OWNER_MINE && n->vm == VM_STOPPED)
            run_vm(w, i);
    }
    if (a->run) {
        n->starting = true;
        n->executed = false;
        if (sin_committed == ACKNOWLEDGE_BEFORE_RUN)
            send_msg(w, !i, &(struct handoff_msg){.type = HANDOFF_MSG_RUN_ACK, .epoch = n->disk.epoch});
    }
    if (a->resume)
        run_vm(w, i);
    if (a->destroy || a->discard) {
        CHECK(n->vm != VM_RUNNING);
        CHECK(!a->destroy || (n->disk.owner == OWNER_GIVEN && n->disk.settled));
        n->vm = VM_NONE;
        n->copy = n->current = false;
        if (n->disk.owner == OWNER_PROMISED)
            n->disk = n->before;
    }
    if (a->send)
        send_msg(w, !i, &a->msg);
}

static void event(struct world *w, int i, enum handoff_event what)
{
    struct handoff_actions a;

    CHECK(handoff_event(&w->n[i].h, what, &a) == 0);
    world_perform(w, i, &a);
}

/* ---- the steps ---- */

static void reach(struct world *w, int i)
{
    struct node *n = &w->n[i];

    CHECK(n->pending.epoch > n->disk.epoch ||
          (n->pending.epoch == n->disk.epoch &&
           (n->pending.owner == n->disk.owner || n->disk.owner == OWNER_PROMISED)));
    n->disk = n->pending;
    n->reached = true;
}

static void report_written(struct world *w, int i)
{
    w->n[i].writing = false;
    event(w, i, HANDOFF_WRITTEN);
}

static void fail_write(struct world *w, int i)
{
    struct node *n = &w->n[i];

    n->writing = false;
    w->write_failures--;
    if (sin_committed == RESUME_AFTER_FAILED_WRITE && n->h.state == HANDOFF_GIVING && !n->h.destination) {
        n->h.state = HANDOFF_OWNER;
        run_vm(w, i);
        return;
    }
    event(w, i, HANDOFF_WRITE_FAILED);
}

static void crash(struct world *w, int i, bool host)
{
    struct node *n = &w->n[i];

    n->up = n->writing = n->starting = n->executed = false;
    if (host)
        n->vm = VM_NONE;
    w->crashes--;
}

static void restart(struct world *w, int i)
{
    struct node *n = &w->n[i];
    struct handoff_actions a;
    struct xm_error e;

    enum handoff_role role = !n->copy           ? HANDOFF_EMPTY
                             : n->h.destination ? HANDOFF_DESTINATION
                                                : HANDOFF_SOURCE;
    n->up = true;
    CHECK(handoff_start(&n->h, role, true, names[i], names[!i], n->disk.epoch ? &n->disk : NULL, &a, &e) ==
          0);
    world_perform(w, i, &a);
}

static void want(struct world *w, int i)
{
    w->n[i].vm = VM_STOPPED;
    w->n[!i].current = w->n[!i].copy;
    event(w, i, HANDOFF_WANT);
}

static void ran(struct world *w, int i)
{
    w->n[i].starting = w->n[i].executed = false;
    event(w, i, HANDOFF_RAN);
}

static void cannot_run(struct world *w, int i)
{
    w->n[i].starting = w->n[i].executed = false;
    w->n[i].vm = VM_NONE;
    event(w, i, HANDOFF_CANNOT_RUN);
}

static void retry(struct world *w, int i)
{
    event(w, i, HANDOFF_RETRY);
    if (sin_committed == DESTROY_BEFORE_SETTLED && w->n[i].h.state == HANDOFF_SETTLING) {
        w->n[i].vm = VM_NONE;
        w->n[i].copy = w->n[i].current = false;
    }
    if (sin_committed == RESUME_AFTER_SILENCE && w->n[i].h.state == HANDOFF_GIVEN && !w->n[i].h.destination)
        run_vm(w, i);
}

static void deliver(struct world *w, int to, unsigned k, bool take)
{
    struct handoff_msg m = w->channel[to][k];
    struct handoff_actions a;

    if (take) {
        for (; k + 1 < w->count[to]; k++)
            w->channel[to][k] = w->channel[to][k + 1];
        w->count[to]--;
    }
    if (w->n[to].up) {
        handoff_message(&w->n[to].h, &m, &a);
        world_perform(w, to, &a);
    }
}

static void lose(struct world *w, int to, unsigned k)
{
    bool up = w->n[to].up;

    w->n[to].up = false;
    deliver(w, to, k, true);
    w->n[to].up = up;
}

/* Does the step number `step` in world *w, if there are so many that can be done now; NULL: there are not. */
const char *world_step(struct world *w, unsigned step)
{
#define STEP(can, does, label)                                                                               \
    do {                                                                                                     \
        if (can) {                                                                                           \
            if (step-- == 0) {                                                                               \
                does;                                                                                        \
                return i ? "B " label : "A " label;                                                          \
            }                                                                                                \
        }                                                                                                    \
    } while (0)
    for (int i = 0; i < 2; i++) {
        struct node *n = &w->n[i];
        bool source = n->up && !n->h.destination && n->h.state == HANDOFF_OWNER && !n->h.over;

        STEP(source, want(w, i), "wants to hand over");
        STEP(source, event(w, i, HANDOFF_ABORT), "aborts");
        STEP(n->writing && !n->reached, reach(w, i), "reaches the disk");
        STEP(n->writing && (n->reached || sin_committed == REPORT_BEFORE_DURABLE), report_written(w, i),
             "has written");
        STEP(n->writing && w->write_failures, fail_write(w, i), "could not write");
        STEP(n->starting && !n->executed && n->vm == VM_STOPPED, (run_vm(w, i), n->executed = true),
             "lets the guest run");
        STEP(n->starting && n->executed, ran(w, i), "ran");
        STEP(n->starting && (!n->executed || sin_committed == DENY_HAVING_RUN), cannot_run(w, i),
             "cannot run");
        STEP(n->up, retry(w, i), "tries again");
        STEP(n->up && w->crashes, crash(w, i, false), "loses its driver");
        STEP(n->up && w->crashes, crash(w, i, true), "crashes");
        STEP(!n->up, restart(w, i), "restarts");
        for (unsigned k = 0; k < w->count[i]; k++) {
            STEP(n->up, deliver(w, i, k, true), "hears");
            STEP(n->up && w->duplicates, (w->duplicates--, deliver(w, i, k, false)), "hears, and will again");
            STEP(true, lose(w, i, k), "misses a message");
        }
    }
#undef STEP
    return NULL;
}

/* ---- recovery ---- */

/* No more faults: everybody is up, writes succeed, messages arrive in order, and what is open is tried again.
 */
void world_recover(struct world *w)
{
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < 2; i++) {
            struct node *n = &w->n[i];
            if (!n->up)
                restart(w, i);
            retry(w, i);
            for (bool more = true; more;) {
                more = true;
                if (n->writing && !n->reached)
                    reach(w, i);
                else if (n->writing)
                    report_written(w, i);
                else if (n->starting && n->executed)
                    ran(w, i);
                else if (n->starting && n->vm == VM_STOPPED) {
                    run_vm(w, i);
                    n->executed = true;
                } else if (n->starting)
                    cannot_run(w, i);
                else if (w->count[i])
                    deliver(w, i, 0, true);
                else
                    more = false;
                world_check(w);
            }
        }
    }
}

void world_check_recovered(const struct world *w)
{
    int owner = w->n[0].disk.owner == OWNER_MINE ? 0 : 1;

    CHECK(w->n[owner].disk.owner == OWNER_MINE);
    CHECK(w->n[!owner].disk.owner != OWNER_MINE);
    CHECK(w->n[owner].h.state == HANDOFF_OWNER);
    CHECK(w->n[owner].vm == VM_RUNNING);
    CHECK(w->n[owner].current);
    CHECK(!handoff_open(&w->n[!owner].h));
    CHECK(w->n[!owner].vm == VM_NONE);
}

/* ---- a migration begins ---- */

void world_migrate(struct world *w, int source)
{
    struct handoff_actions a;
    struct xm_error e;

    for (int i = 0; i < 2; i++) {
        struct node *n = &w->n[i];
        n->up = true;
        assert_int_equal(handoff_start(&n->h, i == source ? HANDOFF_SOURCE : HANDOFF_DESTINATION, false,
                                       names[i], names[!i], n->disk.epoch ? &n->disk : NULL, &a, &e),
                         0);
        assert_false(a.write || a.run || a.resume || a.destroy || a.discard || a.send);
    }
    struct node *d = &w->n[!source];
    d->vm = VM_STOPPED;
    d->copy = true;
    d->before = d->disk;
    d->disk = (struct owner_record){.epoch = w->n[source].disk.epoch + 1, .owner = OWNER_PROMISED};
    handoff_promised(&d->h, &d->disk);
}

struct world world_new(void)
{
    struct world w = {0};

    w.n[0].disk = (struct owner_record){.epoch = 5, .owner = OWNER_MINE};
    w.n[0].vm = VM_RUNNING;
    w.n[0].copy = w.n[0].current = true;
    world_migrate(&w, 0);
    return w;
}
