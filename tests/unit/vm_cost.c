/* SPDX-License-Identifier: MIT */
/* What a switch-over takes: by a VM's devices, then by its last moves; and the file of it. */
#include "tests/unit/lib_tmpdir.h"
#include "vm/vm.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#define MS     XM_NS_PER_MS
#define ENOUGH (10 * XM_NS_PER_S)

static struct vm_spec small = {.disks = 1, .nics = 1}, large = {.disks = 16, .nics = 8};

/* A VM of 16 disks and 8 NICs stood for 258 to 342 ms, and its budget was 100. */
static void a_vm_of_many_devices_needs_more(void **state)
{
    struct switch_cost none = {0};

    (void)state;
    assert_in_range(switch_cost_expect(&none, &small, ENOUGH), 15 * MS, 25 * MS);
    assert_in_range(switch_cost_expect(&none, &large, ENOUGH), 100 * MS, 350 * MS);
    large.accel = "kvm";
    assert_in_range(switch_cost_expect(&none, &large, ENOUGH), 40 * MS, 80 * MS);
}

static void one_move_says_nothing_two_do(void **state)
{
    struct switch_cost c = {0};

    (void)state;
    switch_cost_add(&c, 70 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, ENOUGH), switch_cost_guess(&small));
    switch_cost_add(&c, 40 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, ENOUGH), 64 * MS);
}

/* Two that came in the way of something else do not keep a VM where it is. */
static void the_median_of_five_counts(void **state)
{
    struct switch_cost c = {0};

    (void)state;
    for (unsigned ms = 10; ms <= 60; ms += 10)
        switch_cost_add(&c, ms * MS);
    assert_int_equal(c.n, SWITCH_COSTS);
    assert_int_equal(c.ns[0], 60 * MS);
    assert_int_equal(c.ns[SWITCH_COSTS - 1], 20 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, ENOUGH), 64 * MS);
    switch_cost_add(&c, 3000 * MS);
    switch_cost_add(&c, 2000 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, ENOUGH), 96 * MS);
}

/* Three of five moves that a stopped shim held up, and the VM could not be moved any more but with another
 * budget, which a rebalance has no way to give. */
static void a_bad_day_keeps_no_vm_where_it_is(void **state)
{
    struct switch_cost c = {0};

    (void)state;
    for (unsigned ms = 1000; ms <= 3000; ms += 1000)
        switch_cost_add(&c, ms * MS);
    switch_cost_add(&c, 40 * MS);
    switch_cost_add(&c, 30 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, ENOUGH), 1600 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, 100 * MS), 30 * MS);
    assert_int_equal(switch_cost_expect(&c, &small, 20 * MS), 30 * MS); /* it never was that quick */
}

static void it_is_kept_in_a_file_and_what_is_no_figure_is_not(void **state)
{
    struct switch_cost c = {0}, read;
    char dir[300];

    (void)state;
    snprintf(dir, sizeof dir, "%s", tmpdir_path(""));
    switch_cost_load(dir, &read); /* none yet */
    assert_int_equal(read.n, 0);
    switch_cost_add(&c, 0); /* a clock that says so */
    switch_cost_add(&c, UINT64_MAX);
    assert_int_equal(switch_cost_save(dir, &c, NULL), 0);
    switch_cost_load(dir, &read);
    assert_int_equal(read.n, 2);
    assert_int_equal(read.ns[0], 10 * XM_NS_PER_S);
    assert_int_equal(read.ns[1], 1);

    json_t *lies =
        json_pack("[I, i, s, f, n, i, i, i, i, i, i]", (json_int_t)INT64_MAX, -5, "7", 3.5, 1, 2, 3, 4, 5, 6);
    switch_cost_unpack(&read, lies);
    assert_int_equal(read.n, SWITCH_COSTS);
    assert_int_equal(read.ns[0], 1);
    json_decref(lies);
    switch_cost_unpack(&read, NULL);
    assert_int_equal(read.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_vm_of_many_devices_needs_more),
        cmocka_unit_test(one_move_says_nothing_two_do),
        cmocka_unit_test(the_median_of_five_counts),
        cmocka_unit_test(a_bad_day_keeps_no_vm_where_it_is),
        cmocka_unit_test_setup_teardown(it_is_kept_in_a_file_and_what_is_no_figure_is_not, tmpdir_make,
                                        tmpdir_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
