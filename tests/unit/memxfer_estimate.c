/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_estimate.c: the estimate of the switch-over and the judgement after a round. */
#include "memxfer/memxfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void sums_wire_time_and_the_rest(void **state)
{
    (void)state;
    struct xm_switch_inputs in = {
        .dirty_bytes = 40000000,
        .mirror_backlog = 10000000,
        .wire_rate = 1e9,
        .scan_ns = 1000,
        .fixed_ns = 234,
    };
    assert_int_equal(xm_switch_estimate(&in), 50000000 + 1234);
}

static void unknown_rate_is_for_ever(void **state)
{
    (void)state;
    struct xm_switch_inputs in = {.dirty_bytes = 1};
    assert_true(xm_switch_estimate(&in) == UINT64_MAX);
    in.wire_rate = -1;
    assert_true(xm_switch_estimate(&in) == UINT64_MAX);
}

static void huge_guests_do_not_overflow(void **state)
{
    (void)state;
    struct xm_switch_inputs in = {.dirty_bytes = UINT64_MAX, .mirror_backlog = UINT64_MAX, .wire_rate = 1};
    assert_true(xm_switch_estimate(&in) == UINT64_MAX);
    in = (struct xm_switch_inputs){.dirty_bytes = 24ull << 40, .wire_rate = 1e10};
    uint64_t s = xm_switch_estimate(&in) / XM_NS_PER_S;
    assert_in_range(s, 2637, 2640);
}

static void switches_within_the_budget_only(void **state)
{
    (void)state;
    struct xm_converge_state s = {0};
    assert_int_equal(xm_converge_judge(&s, 5, 101, 100, 3), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 5, 100, 100, 3), XM_CONVERGE_SWITCH);
    /* An unknown estimate is within no budget. */
    assert_int_equal(xm_converge_judge(&s, 5, UINT64_MAX, UINT64_MAX, 3), XM_CONVERGE_AGAIN);
}

static void shrinking_by_a_tenth_goes_on(void **state)
{
    (void)state;
    struct xm_converge_state s = {0};
    for (uint64_t dirty = 1000000; dirty > 10; dirty = dirty * 89 / 100)
        assert_int_equal(xm_converge_judge(&s, dirty, 2, 1, 1), XM_CONVERGE_AGAIN);
}

static void patience_rounds_without_gain_are_stuck(void **state)
{
    (void)state;
    struct xm_converge_state s = {0};
    assert_int_equal(xm_converge_judge(&s, 1000, 2, 1, 3), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 950, 2, 1, 3), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 5000, 2, 1, 3), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 900, 2, 1, 3), XM_CONVERGE_STUCK);
}

static void a_gain_resets_patience(void **state)
{
    (void)state;
    struct xm_converge_state s = {0};
    xm_converge_judge(&s, 1000, 2, 1, 2);
    assert_int_equal(xm_converge_judge(&s, 1000, 2, 1, 2), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 899, 2, 1, 2), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 899, 2, 1, 2), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 899, 2, 1, 2), XM_CONVERGE_STUCK);
}

/* Nothing dirty, but the mirror's backlog holds it up: that is no gain either. */
static void nothing_dirty_can_be_stuck_too(void **state)
{
    (void)state;
    struct xm_converge_state s = {0};
    assert_int_equal(xm_converge_judge(&s, 0, 2, 1, 2), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 0, 2, 1, 2), XM_CONVERGE_AGAIN);
    assert_int_equal(xm_converge_judge(&s, 0, 2, 1, 2), XM_CONVERGE_STUCK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_wire_time_and_the_rest),
        cmocka_unit_test(unknown_rate_is_for_ever),
        cmocka_unit_test(huge_guests_do_not_overflow),
        cmocka_unit_test(switches_within_the_budget_only),
        cmocka_unit_test(shrinking_by_a_tenth_goes_on),
        cmocka_unit_test(patience_rounds_without_gain_are_stuck),
        cmocka_unit_test(a_gain_resets_patience),
        cmocka_unit_test(nothing_dirty_can_be_stuck_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
