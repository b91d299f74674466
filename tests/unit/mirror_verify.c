/* SPDX-License-Identifier: MIT */
/* Comparing both sides while the guest writes. */
#include "tests/unit/lib_mirror.h"

#include <stdio.h>
#include <string.h>

static struct {
    bool done;
    int status;
    uint64_t differed;
    char why[300];
} v;

static int setup(void **state)
{
    memset(&v, 0, sizeof v);
    rig_setup(state);
    rig_mirror_on(r, true);
    rig_in_step(r);
    return 0;
}

static int setup_near(void **state)
{
    memset(&v, 0, sizeof v);
    rig_setup_near(state);
    rig_mirror_on(r, true);
    rig_in_step(r);
    return 0;
}

static void verified(void *arg, int status, uint64_t differed, const char *why)
{
    (void)arg;
    assert_false(v.done);
    v.done = true;
    v.status = status;
    v.differed = differed;
    snprintf(v.why, sizeof v.why, "%s", why ? why : "");
}

static void test_equal_disks_are_equal(void **state)
{
    (void)state;
    xm_disk_verify(r->disk, verified, NULL);
    rig_run(r, 100);
    assert_true(v.done);
    assert_int_equal(v.status, 0);
    assert_int_equal(v.differed, 0);
    assert_true(xm_disk_in_step(r->disk));
    struct xm_disk_status st;
    xm_disk_status(r->disk, &st);
    assert_int_equal(st.verified, RIG_SIZE);
}

static void test_what_differs_is_found_and_copied_again(void **state)
{
    (void)state;
    r->target->data[RIG_CHUNK + 77] ^= 1;
    r->target->data[RIG_SIZE - 1] ^= 1;
    xm_disk_verify(r->disk, verified, NULL);
    rig_run(r, 100);
    assert_true(v.done);
    assert_int_equal(v.differed, 2);
    rig_in_step(r);
    assert_true(rig_same(r));
}

static void test_writes_meanwhile_are_no_difference(void **state)
{
    (void)state;
    r->links->delay_max = 2 * XM_NS_PER_MS;
    xm_disk_verify(r->disk, verified, NULL);
    for (unsigned i = 0; i < 5000 && !v.done; i++) {
        rig_write(r, i * 2048 * 5 % RIG_SIZE, 2048, (int)i);
        sim_run_for(r->sim, 30 * XM_NS_PER_US);
    }
    assert_true(v.done);
    assert_int_equal(v.status, 0);
    assert_int_equal(v.differed, 0);
    rig_in_step(r);
    rig_run(r, 100);
    assert_true(rig_same(r));
}

static void test_holds_the_guest_no_longer_than_the_cap(void **state)
{
    (void)state;
    r->target->gate = hold_reads;
    xm_disk_verify(r->disk, verified, NULL);
    rig_run(r, 1);
    struct rig_op *held = rig_write(r, 0, 4096, 9);
    rig_run(r, 49);
    assert_false(held->done);
    rig_run(r, 3);
    assert_true(held->done);
    ungate(r->target);
    rig_run(r, 200);
    assert_true(v.done);
    assert_int_equal(v.differed, 0); /* it was not compared: it went stale */
    assert_true(rig_same(r));
}

static void test_unreadable_there_ends_with_a_sentence(void **state)
{
    (void)state;
    r->target->read_errors = 1000;
    xm_disk_verify(r->disk, verified, NULL);
    rig_run(r, 100);
    assert_true(v.done);
    assert_int_equal(v.status, -EIO);
    assert_non_null(strstr(v.why, "at the destination"));
    rig_in_step(r);
}

static void test_mirror_off_ends_it(void **state)
{
    (void)state;
    r->target->gate = hold_reads;
    xm_disk_verify(r->disk, verified, NULL);
    rig_run(r, 1);
    rig_mirror_off(r);
    assert_true(v.done);
    assert_int_equal(v.status, -ECANCELED);
    rig_run(r, 5);
    assert_false(r->off);
    ungate(r->target);
    rig_run(r, 5);
    assert_true(r->off);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, rig_teardown)
#define NEAR(name)                                                                                           \
    {                                                                                                        \
#name " (near)", name, setup_near, rig_teardown, NULL                                                \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_equal_disks_are_equal),
        NEAR(test_equal_disks_are_equal),
        T(test_what_differs_is_found_and_copied_again),
        NEAR(test_what_differs_is_found_and_copied_again),
        T(test_writes_meanwhile_are_no_difference),
        T(test_holds_the_guest_no_longer_than_the_cap),
        T(test_unreadable_there_ends_with_a_sentence),
        T(test_mirror_off_ends_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
