/* SPDX-License-Identifier: MIT */
/* The hand-off in a simulator: two hosts, a lossy channel, disks that are durable when they say so. Every
 * order of messages, losses, duplicates, failed writes, crashes and restarts within a bound is tried (a
 * depth-first search over the states), and long random runs with many migrations to and fro. After each step
 * it is checked that no two VMs run, that who runs has the right to and the current copy, and that recovery
 * finds exactly one owner. Then rules are broken on purpose, and the search has to notice. */
#include "vm/handoff.h"
#include "tests/unit/lib_disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum vm { VM_NONE, VM_STOPPED, VM_RUNNING };

struct node {
    struct handoff h;
    bool up;
    struct owner_record disk;    /* what is durable */
    struct owner_record before;  /* what was durable before the promise */
    struct owner_record pending; /* being written */
    bool writing, reached;       /* reached: the write has reached the disk, but that is not reported yet */
    enum vm vm;
    bool starting, executed; /* asked to run; it did, and that is not reported yet */
    bool copy;               /* has the disks */
    bool current;            /* its copy holds all that the guest has ever done */
};

#define CHANNEL 2
struct world {
    struct node n[2];
    struct handoff_msg channel[2][CHANNEL]; /* to node 0, to node 1 */
    uint8_t count[2];
    uint8_t crashes, duplicates, write_failures; /* left */
};

static const char *const names[] = {"A", "B"};

/* Rules that can be broken. */
enum sin {
    NO_SIN,
    SEND_BEFORE_RECORD,
    RUN_BEFORE_RECORD,
    RESUME_AFTER_SILENCE,
    RESUME_AFTER_FAILED_WRITE,
    ACKNOWLEDGE_BEFORE_RUN,
    DENY_HAVING_RUN,
    REPORT_BEFORE_DURABLE,
    DESTROY_BEFORE_SETTLED,
    SINS
};
static enum sin sin_committed;

/* The first violation found, with the steps that led to it. */
static char violation[200];
static const char *trail[400];
static unsigned trail_length;

static void violated(const char *what)
{
    if (!violation[0])
        snprintf(violation, sizeof(violation), "%s", what);
}

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            violated(#cond);                                                                                 \
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

static void check(const struct world *w)
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

/* All that was ever sent, to node 0 and to node 1, for messages that come much too late. */
#define HISTORY 64
static struct handoff_msg history[2][HISTORY];
static unsigned sent[2];
static bool on_record; /* what happens does happen, and is not only looked at */

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

static void perform(struct world *w, int i, const struct handoff_actions *a)
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
    perform(w, i, &a);
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
    perform(w, i, &a);
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
        perform(w, to, &a);
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
static const char *do_step(struct world *w, unsigned step)
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
static void recover(struct world *w)
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
                check(w);
            }
        }
    }
}

static void check_recovered(const struct world *w)
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

static void check_recovery(const struct world *from)
{
    struct world w = *from;

    recover(&w);
    check_recovered(&w);
}

/* ---- the exhaustive search ---- */

static XXH128_hash_t *seen;
static size_t seen_size, seen_count;

static void key_record(uint8_t **p, const struct owner_record *r)
{
    *(*p)++ = (uint8_t)r->epoch;
    *(*p)++ = (uint8_t)(r->owner | r->settled << 4);
}

static XXH128_hash_t key_of(const struct world *w)
{
    uint8_t key[200], *p = key;

    for (int i = 0; i < 2; i++) {
        const struct node *n = &w->n[i];
        *p++ = (uint8_t)n->h.state;
        *p++ = (uint8_t)(n->h.destination | n->h.over << 1 | n->h.failed << 2 | n->up << 3 | n->writing << 4 |
                         n->reached << 5);
        *p++ =
            (uint8_t)(n->starting | n->executed << 1 | n->copy << 2 | n->current << 3 | (uint8_t)n->vm << 4);
        key_record(&p, &n->h.record);
        key_record(&p, &n->h.next);
        key_record(&p, &n->disk);
        if (n->writing)
            key_record(&p, &n->pending);
        *p++ = w->count[i];
        for (unsigned k = 0; k < w->count[i]; k++) {
            *p++ = (uint8_t)w->channel[i][k].type;
            *p++ = (uint8_t)w->channel[i][k].epoch;
            *p++ = (uint8_t)w->channel[i][k].owner;
        }
    }
    *p++ = w->crashes;
    *p++ = w->duplicates;
    *p++ = w->write_failures;
    return XXH3_128bits(key, (size_t)(p - key));
}

static bool see(XXH128_hash_t key);

static void grow(void)
{
    XXH128_hash_t *old = seen;
    size_t old_size = seen_size;

    seen_size = seen_size ? 4 * seen_size : 1 << 16;
    seen = calloc(seen_size, sizeof(*seen));
    assert_non_null(seen);
    seen_count = 0;
    for (size_t i = 0; i < old_size; i++) {
        if (old[i].low64 || old[i].high64)
            see(old[i]);
    }
    free(old);
}

/* True when it is new. */
static bool see(XXH128_hash_t key)
{
    if (2 * seen_count >= seen_size)
        grow();
    for (size_t i = key.low64 & (seen_size - 1);; i = (i + 1) & (seen_size - 1)) {
        if (!seen[i].low64 && !seen[i].high64) {
            seen[i] = key;
            seen_count++;
            return true;
        }
        if (XXH128_isEqual(seen[i], key))
            return false;
    }
}

static void search(const struct world *w, unsigned depth)
{
    struct world next = *w;
    const char *label;

    for (unsigned step = 0; (label = do_step(&next, step)); step++, next = *w) {
        trail[depth] = label;
        trail_length = depth + 1;
        check(&next);
        if (violation[0])
            return;
        if (!see(key_of(&next)))
            continue;
        check_recovery(&next);
        if (violation[0])
            return;
        if (depth + 1 < sizeof(trail) / sizeof(*trail))
            search(&next, depth + 1);
        if (violation[0])
            return;
    }
}

static void start_migration(struct world *w, int source)
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

static struct world new_world(void)
{
    struct world w = {0};

    w.n[0].disk = (struct owner_record){.epoch = 5, .owner = OWNER_MINE};
    w.n[0].vm = VM_RUNNING;
    w.n[0].copy = w.n[0].current = true;
    start_migration(&w, 0);
    return w;
}

static void explore(uint8_t crashes, uint8_t duplicates, uint8_t write_failures)
{
    struct world w = new_world();

    w.crashes = crashes;
    w.duplicates = duplicates;
    w.write_failures = write_failures;
    free(seen);
    seen = NULL;
    seen_size = seen_count = 0;
    violation[0] = 0;
    search(&w, 0);
    if (violation[0] && sin_committed == NO_SIN) {
        for (unsigned i = 0; i < trail_length; i++)
            print_message("  %s\n", trail[i]);
    }
    free(seen);
    seen = NULL;
    seen_size = 0;
}

static void test_every_order_within_bounds(void **state)
{
    (void)state;
    sin_committed = NO_SIN;
    explore(2, 1, 1);
    print_message("%zu states\n", seen_count);
    if (violation[0])
        fail_msg("violated: %s", violation);
    assert_true(seen_count > 10000);
}

static void test_broken_rules_are_noticed(void **state)
{
    (void)state;
    for (sin_committed = NO_SIN + 1; sin_committed < SINS; sin_committed++) {
        explore(1, 0, 1);
        if (!violation[0])
            fail_msg("broken rule %d was not noticed in %zu states", (int)sin_committed, seen_count);
        print_message("rule %d: %s, after %u steps\n", (int)sin_committed, violation, trail_length);
    }
    sin_committed = NO_SIN;
}

/* ---- long random runs ---- */

static uint64_t seed;

static uint64_t pick(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

/* A message from any time before, of this migration or an older one. */
static void deliver_old(struct world *w, int to)
{
    unsigned kept = XM_MIN(sent[to], HISTORY);
    struct handoff_actions a;

    if (kept && w->n[to].up) {
        handoff_message(&w->n[to].h, &history[to][pick(kept)], &a);
        perform(w, to, &a);
    }
}

/* Messages are not bound to the migration they were sent in: what is old must be harmless by itself. */
static void random_run(unsigned migrations)
{
    struct world w = new_world();

    sent[0] = sent[1] = 0;
    for (unsigned m = 0; m < migrations && !violation[0]; m++) {
        w.crashes = (uint8_t)pick(4);
        w.duplicates = (uint8_t)pick(6);
        w.write_failures = (uint8_t)pick(3);
        bool haunted = pick(2);
        for (unsigned steps = (unsigned)pick(60); steps && !violation[0]; steps--) {
            unsigned can = 0;
            on_record = false;
            for (struct world next = w; do_step(&next, can); next = w)
                can++;
            on_record = true;
            if (haunted && pick(4) == 0)
                deliver_old(&w, (int)pick(2));
            else
                do_step(&w, (unsigned)pick(can));
            check(&w);
        }
        recover(&w);
        check_recovered(&w);
        if (!violation[0])
            start_migration(&w, w.n[0].disk.owner == OWNER_MINE ? 0 : 1);
    }
}

static void test_random_migrations_to_and_fro(void **state)
{
    (void)state;
    for (uint64_t s = 1; s <= 5000; s++) {
        violation[0] = 0;
        seed = s;
        random_run(12);
        if (violation[0])
            fail_msg("seed %llu: violated: %s", (unsigned long long)s, violation);
    }
}

/* ---- single things ---- */

static void test_start_refuses_who_has_no_right(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE},
                        given = {.epoch = 3, .owner = OWNER_GIVEN, .to = "B"};
    struct handoff_actions a;
    struct xm_error e;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &given, &a, &e), -EPERM);
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", NULL, &a, &e), -EPERM);
    assert_int_equal(handoff_start(&h, HANDOFF_DESTINATION, false, "B", "A", &mine, &a, &e), -EEXIST);
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &mine, &a, &e), 0);
    assert_int_equal(handoff_event(&h, HANDOFF_RAN, &a), -EPROTO);
    assert_int_equal(handoff_event(&h, HANDOFF_ABORT, &a), 0);
    assert_true(a.resume && a.send);
    assert_int_equal(handoff_event(&h, HANDOFF_WANT, &a), -ECANCELED);
    assert_false(a.write);
}

/* A VM that its user has stopped after the migration ended is not started because the peer asks again. */
static void test_resumes_once(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE};
    struct handoff_msg ask = {.type = HANDOFF_MSG_ASK};
    struct handoff_actions a;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &mine, &a, NULL), 0);
    handoff_message(&h, &ask, &a);
    assert_true(a.resume && a.send);
    assert_int_equal(a.msg.owner, OWNER_MINE);
    handoff_message(&h, &ask, &a);
    assert_true(!a.resume && a.send);
}

/* Found by the simulator: QEMU refused to run the VM, «given back» could not be written, and from then on
 * nobody wrote it: the source was told nothing, and no command brought the VM back. */
static void test_handing_back_is_written_again(void **state)
{
    struct owner_record promised = {.epoch = 2, .owner = OWNER_PROMISED};
    struct handoff_msg run = {.type = HANDOFF_MSG_RUN, .epoch = 2};
    struct handoff_actions a;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_DESTINATION, false, "B", "A", NULL, &a, NULL), 0);
    handoff_promised(&h, &promised);
    handoff_message(&h, &run, &a);
    assert_true(a.write);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITTEN, &a), 0);
    assert_true(a.run);
    assert_int_equal(handoff_event(&h, HANDOFF_CANNOT_RUN, &a), 0);
    assert_true(a.write && a.record.owner == OWNER_GIVEN && a.record.epoch == 3);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITE_FAILED, &a), 0);
    assert_false(a.write || a.send);
    handoff_message(&h, &run, &a); /* the source asks again */
    assert_true(a.write && a.record.owner == OWNER_GIVEN && a.record.epoch == 3);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITE_FAILED, &a), 0);
    assert_int_equal(handoff_event(&h, HANDOFF_RETRY, &a), 0); /* or its own driver tries */
    assert_true(a.write);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITTEN, &a), 0);
    assert_true(a.send && a.msg.type == HANDOFF_MSG_RUN && a.msg.epoch == 3);
}

static void test_messages_survive_the_wire(void **state)
{
    struct handoff_msg in,
        out[] = {{.type = HANDOFF_MSG_RUN, .epoch = 7},
                 {.type = HANDOFF_MSG_RUN_ACK, .epoch = 1},
                 {.type = HANDOFF_MSG_ASK},
                 {.type = HANDOFF_MSG_ANSWER, .epoch = 9, .owner = OWNER_GIVEN, .to = "hostb"}};
    static const char *const bad[] = {"{}",
                                      "{\"handoff\":\"jump\",\"epoch\":1}",
                                      "{\"handoff\":\"run\"}",
                                      "{\"handoff\":\"run\",\"epoch\":-1}",
                                      "{\"handoff\":\"run\",\"epoch\":\"1\"}",
                                      "{\"handoff\":\"answer\",\"epoch\":1,\"owner\":\"ours\"}"};
    struct xm_error e;

    (void)state;
    for (size_t i = 0; i < sizeof(out) / sizeof(*out); i++) {
        json_t *o = handoff_msg_pack(&out[i]);
        assert_non_null(o);
        assert_int_equal(handoff_msg_unpack(&in, o, &e), 0);
        assert_int_equal(in.type, out[i].type);
        assert_int_equal(in.epoch, out[i].epoch);
        assert_int_equal(in.owner, out[i].owner);
        assert_string_equal(in.to, out[i].to);
        json_decref(o);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        json_t *o = json_loads(bad[i], 0, NULL);
        assert_non_null(o);
        assert_int_equal(handoff_msg_unpack(&in, o, &e), -EPROTO);
        json_decref(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order_within_bounds),
        cmocka_unit_test(test_broken_rules_are_noticed),
        cmocka_unit_test(test_random_migrations_to_and_fro),
        cmocka_unit_test(test_start_refuses_who_has_no_right),
        cmocka_unit_test(test_resumes_once),
        cmocka_unit_test(test_handing_back_is_written_again),
        cmocka_unit_test(test_messages_survive_the_wire),
    };
    if (!getenv("XMIGRATE_LOG"))
        setenv("XMIGRATE_LOG", "error", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
