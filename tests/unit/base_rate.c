/* SPDX-License-Identifier: MIT */
/* Meters and buckets under a clock that the test turns. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#define MS XM_NS_PER_MS
#define S  XM_NS_PER_S

static void a_steady_flow_is_measured_exactly(void **state)
{
    (void)state;
    struct xm_meter m;
    uint64_t now = 5 * S;

    xm_meter_init(&m, S, now);
    assert_true(xm_meter_rate(&m, now) == 0);
    for (int i = 0; i < 500; i++) {
        xm_meter_add(&m, 1000, now);
        now += 10 * MS;
    }
    double rate = xm_meter_rate(&m, now); /* 100 000 bytes a second */
    assert_true(rate > 99000 && rate < 101000);
    assert_int_equal(m.total, 500000);
}

static void a_flow_that_stops_is_forgotten_after_the_window(void **state)
{
    (void)state;
    struct xm_meter m;

    xm_meter_init(&m, S, 0);
    xm_meter_add(&m, 1000000, 0);
    assert_true(xm_meter_rate(&m, S / 2) > 0);
    assert_true(xm_meter_rate(&m, 2 * S) == 0);
    xm_meter_add(&m, 1000, 86400 * S); /* a day later: no loop over the day */
    assert_true(xm_meter_rate(&m, 86400 * S + 500 * MS) > 0);
}

static void the_first_bytes_count_over_the_time_that_has_passed(void **state)
{
    (void)state;
    struct xm_meter m;

    xm_meter_init(&m, S, 0);
    xm_meter_add(&m, 1000, 50 * MS);
    double rate = xm_meter_rate(&m, 100 * MS);
    assert_true(rate > 9999 && rate < 10001);
}

/* Takes pieces for that long, waiting as told; returns what went through. */
static uint64_t run_bucket(struct xm_bucket *b, uint64_t *now, uint64_t span, uint64_t piece)
{
    uint64_t end = *now + span, sum = 0;
    while (*now < end) {
        sum += piece;
        *now += xm_bucket_take(b, piece, *now);
    }
    return sum;
}

static void the_bucket_holds_its_rate(void **state)
{
    (void)state;
    struct xm_bucket b;
    uint64_t now = S;

    xm_bucket_init(&b, 100000000, now);
    uint64_t sum = run_bucket(&b, &now, 2 * S, 65536);
    assert_true(sum > 199000000 && sum < 203000000); /* the burst and one piece over it */
}

static void a_burst_after_idling_is_bounded(void **state)
{
    (void)state;
    struct xm_bucket b;
    uint64_t now = 0, sum = 0;

    xm_bucket_init(&b, 1000000000, now);
    now = 3600 * S;
    while (xm_bucket_take(&b, 65536, now) == 0)
        sum += 65536;
    assert_true(sum <= 10000000); /* 10 ms of the rate */
}

static void rate_zero_is_no_limit_and_may_change_while_running(void **state)
{
    (void)state;
    struct xm_bucket b;
    uint64_t now = S;

    xm_bucket_init(&b, 0, now);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(xm_bucket_take(&b, 1 << 30, now), 0);
    xm_bucket_set(&b, 10000000, now);
    uint64_t sum = run_bucket(&b, &now, S, 65536);
    assert_true(sum > 9000000 && sum < 11000000);
    xm_bucket_set(&b, 0, now);
    assert_int_equal(xm_bucket_take(&b, 1 << 30, now), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steady_flow_is_measured_exactly),
        cmocka_unit_test(a_flow_that_stops_is_forgotten_after_the_window),
        cmocka_unit_test(the_first_bytes_count_over_the_time_that_has_passed),
        cmocka_unit_test(the_bucket_holds_its_rate),
        cmocka_unit_test(a_burst_after_idling_is_bounded),
        cmocka_unit_test(rate_zero_is_no_limit_and_may_change_while_running),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
