/* SPDX-License-Identifier: MIT */
#include "mirror/chunkmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_begins_absent_and_fresh(void **state)
{
    struct chunkmap m;
    bool fresh = false;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 3), 0);
    assert_int_equal(m.count[XM_CHUNK_ABSENT], 3);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), 0);
    assert_true(fresh);
    assert_int_equal(chunkmap_state(&m, 0), XM_CHUNK_COPYING);
    assert_int_equal(chunkmap_state(&m, 1), XM_CHUNK_ABSENT);
    chunkmap_destroy(&m);
}

static void test_claims_go_round_and_end(void **state)
{
    struct chunkmap m;
    bool fresh;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 5000), 0);
    for (int64_t i = 0; i < 5000; i++)
        assert_int_equal(chunkmap_claim_next(&m, &fresh), i);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), -1);
    /* Only what went back is claimed again, in the order of the disk, wherever it lies. */
    chunkmap_set_state(&m, 4999, XM_CHUNK_ABSENT);
    chunkmap_set_state(&m, 2, XM_CHUNK_ABSENT);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), 2);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), 4999);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), -1);
    chunkmap_destroy(&m);
}

static void test_copied_again_is_not_fresh(void **state)
{
    struct chunkmap m;
    bool fresh;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 1), 0);
    chunkmap_claim_next(&m, &fresh);
    chunkmap_set_state(&m, 0, XM_CHUNK_PRESENT);
    chunkmap_set_state(&m, 0, XM_CHUNK_ABSENT);
    assert_int_equal(chunkmap_claim_next(&m, &fresh), 0);
    assert_false(fresh);
    chunkmap_destroy(&m);
}

static void test_stale_ends_with_the_copy(void **state)
{
    struct chunkmap m;
    bool fresh;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 1), 0);
    chunkmap_claim_next(&m, &fresh);
    chunkmap_set_stale(&m, 0);
    assert_true(chunkmap_is_stale(&m, 0));
    chunkmap_set_state(&m, 0, XM_CHUNK_ABSENT);
    chunkmap_claim_next(&m, &fresh);
    assert_false(chunkmap_is_stale(&m, 0));
    chunkmap_destroy(&m);
}

static void test_followed_once_it_is_read(void **state)
{
    struct chunkmap m;
    bool fresh;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 1), 0);
    assert_false(chunkmap_is_followed(&m, 0));
    chunkmap_claim_next(&m, &fresh);
    assert_false(chunkmap_is_followed(&m, 0));
    chunkmap_set_read(&m, 0);
    assert_true(chunkmap_is_followed(&m, 0));
    chunkmap_set_stale(&m, 0);
    assert_false(chunkmap_is_followed(&m, 0));
    chunkmap_set_state(&m, 0, XM_CHUNK_ABSENT);
    chunkmap_claim_next(&m, &fresh);
    assert_false(chunkmap_is_followed(&m, 0)); /* it has to be read again */
    chunkmap_set_read(&m, 0);
    chunkmap_set_state(&m, 0, XM_CHUNK_PRESENT);
    assert_true(chunkmap_is_followed(&m, 0));
    chunkmap_destroy(&m);
}

static void test_counts_follow(void **state)
{
    struct chunkmap m;
    bool fresh;

    (void)state;
    assert_int_equal(chunkmap_init(&m, 10), 0);
    for (int i = 0; i < 4; i++)
        chunkmap_claim_next(&m, &fresh);
    chunkmap_set_state(&m, 0, XM_CHUNK_PRESENT);
    chunkmap_set_state(&m, 1, XM_CHUNK_ABSENT);
    assert_int_equal(m.count[XM_CHUNK_ABSENT], 7);
    assert_int_equal(m.count[XM_CHUNK_COPYING], 2);
    assert_int_equal(m.count[XM_CHUNK_PRESENT], 1);
    chunkmap_destroy(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_begins_absent_and_fresh),   cmocka_unit_test(test_claims_go_round_and_end),
        cmocka_unit_test(test_copied_again_is_not_fresh), cmocka_unit_test(test_stale_ends_with_the_copy),
        cmocka_unit_test(test_followed_once_it_is_read),  cmocka_unit_test(test_counts_follow)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
