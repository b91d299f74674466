/* SPDX-License-Identifier: MIT */
/* A hand-off that was cut: what each pair of records leads to, and that no pair leads both hosts to run the
 * VM, or both to give up their copy. */
#include "vm/verdict.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#define N 8u /* A's epoch before it gives */

static struct owner_record rec(enum owner_side owner, uint64_t epoch, const char *other, bool settled)
{
    struct owner_record r = {.epoch = epoch, .owner = owner, .settled = settled};

    snprintf(owner == OWNER_GIVEN ? r.to : r.from, sizeof r.to, "%s", other);
    return r;
}

static enum verdict judge(const char *self, struct owner_record ours, struct owner_record theirs, bool runs,
                          uint64_t *epoch)
{
    struct xm_error why = {0};
    enum verdict v = verdict_of(self, &ours, &theirs, runs, epoch, &why);

    assert_int_equal(v == VERDICT_DOUBT, why.code != 0);
    return v;
}

static void promised_here(void **state)
{
    struct owner_record ours = rec(OWNER_PROMISED, N + 1, "A", false);
    static const struct {
        enum owner_side owner;
        uint64_t epoch;
        const char *to;
        enum verdict v;
    } t[] = {
        {OWNER_MINE, N, "", VERDICT_DISCARD},        {OWNER_MINE, N + 2, "", VERDICT_DISCARD},
        {OWNER_MINE, N - 1, "", VERDICT_DOUBT},      {OWNER_GIVEN, N + 1, "B", VERDICT_TAKE},
        {OWNER_GIVEN, N, "B", VERDICT_DOUBT},        {OWNER_GIVEN, N + 3, "B", VERDICT_DOUBT},
        {OWNER_GIVEN, N + 1, "C", VERDICT_DISCARD},  {OWNER_GIVEN, N + 2, "C", VERDICT_DISCARD},
        {OWNER_GIVEN, N, "C", VERDICT_DOUBT},        {OWNER_NONE, 0, "", VERDICT_DOUBT},
        {OWNER_PROMISED, N + 1, "B", VERDICT_DOUBT},
    };
    uint64_t epoch = 0;

    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        assert_int_equal(judge("B", ours, rec(t[i].owner, t[i].epoch, t[i].to, false), false, &epoch),
                         t[i].v);
    assert_string_equal(verdict_peer(&ours), "A");
    judge("B", ours, rec(OWNER_GIVEN, N + 1, "B", false), false, &epoch);
    assert_int_equal(epoch, N + 1);
}

static void given_from_here(void **state)
{
    struct owner_record ours = rec(OWNER_GIVEN, N + 1, "B", false);
    static const struct {
        enum owner_side owner;
        uint64_t epoch;
        const char *to;
        bool settled, runs;
        enum verdict v;
    } t[] = {
        {OWNER_MINE, N + 1, "", true, false, VERDICT_SETTLED},
        {OWNER_MINE, N + 1, "", false, true, VERDICT_SETTLED},
        {OWNER_MINE, N + 1, "", false, false, VERDICT_THEIRS},
        {OWNER_MINE, N + 3, "", false, false, VERDICT_SETTLED},
        {OWNER_MINE, N, "", true, true, VERDICT_DOUBT},
        {OWNER_GIVEN, N + 2, "A", false, false, VERDICT_BACK},
        {OWNER_GIVEN, N + 2, "C", false, false, VERDICT_SETTLED},
        {OWNER_GIVEN, N + 1, "C", true, false, VERDICT_SETTLED},
        {OWNER_GIVEN, N + 1, "A", true, false, VERDICT_DOUBT},
        {OWNER_GIVEN, N, "A", true, false, VERDICT_DOUBT},
        {OWNER_PROMISED, N + 1, "A", false, false, VERDICT_TELL},
        {OWNER_PROMISED, N + 2, "A", false, false, VERDICT_DOUBT},
        {OWNER_NONE, 0, "", false, false, VERDICT_DOUBT},
        {OWNER_NONE, 0, "", false, true, VERDICT_DOUBT},
    };
    uint64_t epoch = 0;

    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        assert_int_equal(
            judge("A", ours, rec(t[i].owner, t[i].epoch, t[i].to, t[i].settled), t[i].runs, &epoch), t[i].v);
    assert_string_equal(verdict_peer(&ours), "B");
    judge("A", ours, rec(OWNER_GIVEN, N + 2, "A", false), false, &epoch);
    assert_int_equal(epoch, N + 2);
}

static void what_is_settled_asks_nobody(void **state)
{
    uint64_t epoch;

    (void)state;
    for (int settled = 0; settled < 2; settled++)
        assert_int_equal(
            judge("A", rec(OWNER_MINE, N, "", settled), rec(OWNER_MINE, N + 4, "", true), true, &epoch),
            VERDICT_NOTHING);
    assert_int_equal(judge("A", rec(OWNER_GIVEN, N, "B", true), rec(OWNER_NONE, 0, "", false), false, &epoch),
                     VERDICT_NOTHING);
    assert_int_equal(judge("A", rec(OWNER_NONE, 0, "", false), rec(OWNER_MINE, N, "", true), false, &epoch),
                     VERDICT_NOTHING);
}

/* Every pair of records of two hosts. */
static void no_pair_runs_twice_or_loses_both(void **state)
{
    unsigned pairs = 0;

    (void)state;
    for (unsigned x = 0; x < 4 * 6 * 2; x++) {
        for (unsigned y = 0; y < 4 * 6 * 2; y++) {
            struct owner_record a = rec((enum owner_side)(x % 4), N - 1 + x / 4 % 6, "B", x / 24);
            struct owner_record b = rec((enum owner_side)(y % 4), N - 1 + y / 4 % 6, "A", y / 24);
            uint64_t ea = 0, eb = 0;
            enum verdict va = judge("A", a, b, false, &ea), vb = judge("B", b, a, false, &eb);
            bool a_owns = a.owner == OWNER_MINE || va == VERDICT_TAKE || va == VERDICT_BACK;
            bool b_owns = b.owner == OWNER_MINE || vb == VERDICT_TAKE || vb == VERDICT_BACK;
            bool a_drops = va == VERDICT_DISCARD || va == VERDICT_SETTLED;
            bool b_drops = vb == VERDICT_DISCARD || vb == VERDICT_SETTLED;
            if (a.owner == OWNER_MINE && b.owner == OWNER_MINE)
                continue; /* never written */
            assert_false(a_owns && b_owns);
            /* Whoever drops his copy knows of another one that is owned, or was passed on. */
            assert_true(!a_drops || b.owner == OWNER_MINE || b.owner == OWNER_GIVEN);
            assert_true(!b_drops || a.owner == OWNER_MINE || a.owner == OWNER_GIVEN);
            assert_false(a_drops && b_drops && a.owner != OWNER_GIVEN && b.owner != OWNER_GIVEN);
            pairs++;
        }
    }
    assert_true(pairs > 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promised_here),
        cmocka_unit_test(given_from_here),
        cmocka_unit_test(what_is_settled_asks_nobody),
        cmocka_unit_test(no_pair_runs_twice_or_loses_both),
    };
    return cmocka_run_group_tests_name("vm_verdict", tests, NULL, NULL);
}
