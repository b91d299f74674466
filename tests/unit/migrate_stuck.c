/* SPDX-License-Identifier: MIT */
/* Why a migration cannot switch over within its budget: what is said names what is in the way. */
#include "migrate/source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <string.h>

#define MS XM_NS_PER_MS

static struct xm_switch_inputs in;
static struct xm_round last;
static struct xm_error e;
static uint64_t limit;

static int set_up(void **state)
{
    (void)state;
    in = (struct xm_switch_inputs){.wire_rate = 1e9, .scan_ns = 1 * MS, .fixed_ns = 19 * MS};
    last = (struct xm_round){.number = 7, .ns = 100 * MS, .rate = 1e9};
    e = (struct xm_error){0};
    limit = 0;
    return 0;
}

static void must_say(uint64_t budget, const char *sentence)
{
    assert_int_equal(source_stuck(&in, &last, budget, limit, &e), -ETIMEDOUT);
    assert_string_equal(e.text, sentence);
}

/* With --downtime 5: «faster than it can be sent: 0 B left ... links of at least 0 B/s». */
static void a_budget_below_what_any_switch_takes(void **state)
{
    (void)state;
    must_say(
        5 * MS,
        "the switch-over takes 20.0 ms with nothing left to send, by this VM's last moves or its devices "
        "(of that 1.0 ms to look for changed memory), more than the budget of 5.0 ms; it needs --downtime "
        "21 at least");
    in.dirty_bytes = 100000000; /* 100 ms */
    assert_int_equal(source_stuck(&in, &last, 5 * MS, 0, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.text, "with the 95.37 MiB that are left now it needs --downtime 121 at least"));
    in.wire_rate = 0; /* not known: what is certain */
    assert_int_equal(source_stuck(&in, &last, 5 * MS, 0, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.text, "--downtime 21"));
}

static void memory_that_is_dirtied_too_fast(void **state)
{
    (void)state;
    in.dirty_bytes = 100000000;
    must_say(100 * MS,
             "the guest dirties memory faster than it can be sent: 95.37 MiB left after 7 rounds at 1.00 "
             "GB/s, estimated downtime 120.0 ms, budget 100.0 ms; it needs links of 1.25 GB/s at least, "
             "or a larger --downtime");
    /* It was said: 3.22 MB/s, and that 2.98 MB/s are needed; nothing of the limit that its user had set. */
    limit = 3220000;
    in.dirty_bytes = 22439526;
    in.wire_rate = last.rate = 3220000;
    last.ns = 7530 * MS;
    must_say(
        100 * MS,
        "the guest dirties memory faster than it can be sent: 21.40 MiB left after 7 rounds at 3.22 MB/s, "
        "estimated downtime 6.99 s, budget 100.0 ms; it needs links of 280.49 MB/s at least (--bandwidth "
        "holds them to 3.22 MB/s), or a larger --downtime");
}

static void disks_that_are_written_too_fast(void **state)
{
    (void)state;
    in.mirror_backlog = 100000000;
    must_say(100 * MS,
             "the guest writes to its disks faster than the destination takes it: 95.37 MiB left after 7 "
             "rounds at 1.00 GB/s, estimated downtime 120.0 ms, budget 100.0 ms; it would need faster links "
             "or disks there, or a larger --downtime");
}

/* What is usual always fits, whatever was measured of the wire. */
static void device_state_may_be_what_the_budget_carries(void **state)
{
    (void)state;
    assert_int_equal(source_state_max(1e9, 100 * MS), 100000000);
    assert_int_equal(source_state_max(1e6, 100 * MS), 1 << 20);
    assert_int_equal(source_state_max(0, 100 * MS), 1 << 20);
    assert_int_equal(source_state_max(1e9, 3600 * XM_NS_PER_S), 3600000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(device_state_may_be_what_the_budget_carries),
        cmocka_unit_test_setup(a_budget_below_what_any_switch_takes, set_up),
        cmocka_unit_test_setup(memory_that_is_dirtied_too_fast, set_up),
        cmocka_unit_test_setup(disks_that_are_written_too_fast, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
