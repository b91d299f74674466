/* SPDX-License-Identifier: MIT */
/* The hand-off in a simulator (lib_handoff.h). Every order of messages, losses, duplicates, failed writes,
 * crashes and restarts within a bound is tried (a depth-first search over the states), and long random runs
 * with many migrations to and fro. After each step it is checked that no two VMs run, that who runs has the
 * right to and the current copy, and that recovery finds exactly one owner. Then rules are broken on purpose,
 * and the search has to notice. */
#include "tests/unit/lib_handoff.h"
#include "tests/unit/lib_disk.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- the exhaustive search ---- */

/* The steps that led to the first violation. */
static const char *trail[400];
static unsigned trail_length;

static void check_recovery(const struct world *from)
{
    struct world w = *from;

    world_recover(&w);
    world_check_recovered(&w);
}

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

    for (unsigned step = 0; (label = world_step(&next, step)); step++, next = *w) {
        trail[depth] = label;
        trail_length = depth + 1;
        world_check(&next);
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

static void explore(uint8_t crashes, uint8_t duplicates, uint8_t write_failures)
{
    struct world w = world_new();

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
        world_perform(w, to, &a);
    }
}

/* Messages are not bound to the migration they were sent in: what is old must be harmless by itself. */
static void random_run(unsigned migrations)
{
    struct world w = world_new();

    sent[0] = sent[1] = 0;
    for (unsigned m = 0; m < migrations && !violation[0]; m++) {
        w.crashes = (uint8_t)pick(4);
        w.duplicates = (uint8_t)pick(6);
        w.write_failures = (uint8_t)pick(3);
        bool haunted = pick(2);
        for (unsigned steps = (unsigned)pick(60); steps && !violation[0]; steps--) {
            unsigned can = 0;
            on_record = false;
            for (struct world next = w; world_step(&next, can); next = w)
                can++;
            on_record = true;
            if (haunted && pick(4) == 0)
                deliver_old(&w, (int)pick(2));
            else
                world_step(&w, (unsigned)pick(can));
            world_check(&w);
        }
        world_recover(&w);
        world_check_recovered(&w);
        if (!violation[0])
            world_migrate(&w, w.n[0].disk.owner == OWNER_MINE ? 0 : 1);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order_within_bounds),
        cmocka_unit_test(test_broken_rules_are_noticed),
        cmocka_unit_test(test_random_migrations_to_and_fro),
    };
    if (!getenv("XMIGRATE_LOG"))
        setenv("XMIGRATE_LOG", "error", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
