/* SPDX-License-Identifier: MIT */
/* What must always hold of a mirror (mirror/mirror.h; docs/design.md, «The storage plane»), one named test
 * or more for each: here those of what is copied, and in which order (1 to 5, 8, 9); mirror_guest.c has
 * those of the guest (6), mirror_quiesce.c those of the end (7, 10). */
#include "tests/unit/lib_mirror.h"

#include <string.h>

/* ---- 1 ---- */

static void test_invariant_1_mirror_on_before_first_read(void **state)
{
    (void)state;
    r->source->gate = hold_writes;
    struct rig_op *early = rig_write(r, 0, 4096, 0xaa);
    rig_mirror_on(r, true);
    rig_run(r, 20);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_STARTING);
    assert_int_equal(r->source->reads, 0);
    /* One that begins meanwhile is tracked, and need not be waited for. */
    r->source->gate = NULL;
    struct rig_op *late = rig_write(r, RIG_CHUNK, 4096, 0xbb);
    rig_run(r, 20);
    assert_true(late->done);
    assert_int_equal(r->source->reads, 0);
    ungate(r->source);
    rig_in_step(r);
    assert_true(early->done);
    rig_run(r, 10);
    assert_true(rig_same(r));
}

/* ---- 2 ---- */

static void test_invariant_2_claimed_before_it_is_read(void **state)
{
    (void)state;
    r->source->gate = hold_first_chunk_reads;
    rig_mirror_on(r, true);
    rig_run(r, 1);
    assert_true(rig_status(r).chunks[XM_CHUNK_COPYING] >= 1);
    /* It is being read: the write is held, and reads the guest's way are not. */
    struct rig_op *held = rig_write(r, 4096, 4096, 0xcc);
    assert_int_equal(r->source->writes, 0);
    rig_run(r, 10);
    assert_false(held->done);
    assert_int_equal(rig_status(r).held, 1);
    ungate(r->source);
    rig_in_step(r);
    rig_run(r, 10);
    assert_true(held->done);
    assert_int_equal(r->target->data[4096], 0xcc);
    assert_true(rig_same(r));
    assert_int_equal(rig_status(r).given_up, 0);
}

static void test_invariant_2_claim_waits_for_writes_in_flight(void **state)
{
    (void)state;
    for (unsigned i = 0; i < RIG_CHUNKS; i++)
        r->source->data[i * RIG_CHUNK] = 1;
    rig_mirror_on(r, true);
    r->source->gate = hold_writes;
    struct rig_op *before = rig_write(r, 0, 4096, 0xdd); /* tracked: mirror is starting */
    rig_run(r, 20);
    assert_int_equal(rig_status(r).chunks[XM_CHUNK_PRESENT], RIG_CHUNKS - 1);
    assert_int_equal(rig_status(r).chunks[XM_CHUNK_COPYING], 1);
    assert_int_equal(r->target->data[0], 0);
    ungate(r->source);
    rig_in_step(r);
    assert_true(before->done);
    assert_int_equal(r->target->data[0], 0xdd);
}

static void test_invariant_2_hole_is_looked_up_after_the_claim(void **state)
{
    (void)state;
    memset(r->source->data, 0, RIG_CHUNK);
    for (unsigned i = 0; i < RIG_CHUNK / 4096; i++)
        r->source->hole[i] = true;
    rig_mirror_on(r, true);
    r->source->gate = hold_writes;
    rig_write(r, 8192, 4096, 0xee); /* the hole is about to get data */
    rig_run(r, 5);
    ungate(r->source);
    rig_in_step(r);
    assert_int_equal(r->target->data[8192], 0xee);
}

/* ---- 3 ---- */

static void test_invariant_3_overlapping_writes_one_after_the_other(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->source->gate = hold_writes;
    uint64_t before = r->source->writes;
    rig_write(r, 4096, 8192, 1);
    rig_write(r, 8192, 8192, 2);
    rig_write(r, 16384, 4096, 3); /* waits for nobody */
    assert_int_equal(r->source->writes, before + 2);
    ungate(r->source);
    rig_run(r, 10);
    assert_int_equal(r->source->data[8192], 2);
    assert_true(rig_same(r));
}

static void test_invariant_3_overlaps_across_chunks(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->source->gate = hold_writes;
    uint64_t before = r->source->writes + r->source->zeros;
    rig_io(r, XM_IO_ZERO, RIG_CHUNK, 3 * RIG_CHUNK, 0);
    rig_write(r, 2 * RIG_CHUNK - 512, 1024, 2);
    rig_write(r, 4 * RIG_CHUNK - 512, 1024, 3);
    assert_int_equal(r->source->writes + r->source->zeros, before + 1);
    ungate(r->source);
    rig_run(r, 20);
    assert_int_equal(r->source->data[2 * RIG_CHUNK], 2);
    assert_int_equal(r->source->data[4 * RIG_CHUNK - 1], 3);
    assert_int_equal(r->source->data[3 * RIG_CHUNK], 0);
    assert_true(rig_same(r));
}

/* ---- 4 ---- */

static void test_invariant_4_both_sides_write_the_same_copy(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    for (unsigned i = 0; i < 50; i++) {
        struct rig_op *op = rig_write(r, 8192 * i, 8192, 1);
        memset(op->buf + 100, 2, 3000);
        rig_run(r, 0);
        memset(op->buf, 3, 5000);
        rig_run(r, 5);
        assert_true(op->done);
    }
    assert_true(rig_same(r));
    assert_int_equal(r->links->changed, 0);
}

/* ---- 5 ---- */

static void test_invariant_5_order_kept_over_links_that_reorder(void **state)
{
    (void)state;
    r->links->delay_max = 20 * XM_NS_PER_MS;
    rig_mirror_on(r, true);
    rig_in_step(r);
    for (unsigned i = 0; i < 200; i++) {
        rig_write(r, 4096, 4096, (int)i);
        rig_run(r, 1);
        if (i % 20 == 10)
            sim_links_down(r->links, i / 20 % 2);
        if (i % 20 == 15)
            sim_links_up(r->links, i / 20 % 2);
    }
    rig_quiesce(r);
    rig_run(r, 3000);
    assert_true(r->ended);
    assert_int_equal(r->status, 0);
    assert_true(r->links->reordered > 0 && r->links->resent > 0);
    assert_true(rig_same(r));
}

static void test_invariant_5_bulk_never_lands_over_a_newer_write(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    /* The target fails one mirrored write: its chunk is copied again, behind the failed one and what followed
     * it. */
    r->target->write_errors = 1000;
    rig_write(r, 0, 4096, 7);
    rig_run(r, 1);
    r->target->write_errors = 0;
    rig_write(r, 0, 4096, 8);
    rig_in_step(r);
    rig_write(r, 0, 4096, 9);
    rig_run(r, 50);
    assert_int_equal(r->target->data[0], 9);
    assert_true(rig_same(r));
}

/* The guest need not wait for a slow way: what has been read is on it, and the write follows. */
static void test_invariant_5_write_follows_the_copy_under_way(void **state)
{
    (void)state;
    memset(r->source->data, 1, RIG_SIZE);
    r->target->gate = hold_writes;
    rig_mirror_on(r, true);
    rig_run(r, 5); /* read, and nothing is applied */
    assert_int_equal(rig_status(r).chunks[XM_CHUNK_PRESENT], 0);
    assert_true(rig_status(r).chunks[XM_CHUNK_COPYING] >= 1);
    struct rig_op *w = rig_write(r, 4096, 4096, 7), *two = rig_write(r, 8192, 4096, 8);
    rig_run(r, 5);
    assert_true(w->done && two->done);
    assert_int_equal(rig_status(r).held, 0);
    assert_int_equal(r->target->data[4096], 0);
    ungate(r->target);
    rig_in_step(r);
    rig_run(r, 10);
    assert_int_equal(r->target->data[4096], 7);
    assert_int_equal(r->target->data[8192], 8);
    assert_true(rig_same(r));
    assert_int_equal(rig_status(r).given_up, 0);
}

/* Nor may it count as mirrored when the copy below it has failed. */
static void test_invariant_5_write_follows_a_copy_that_fails(void **state)
{
    (void)state;
    memset(r->source->data, 1, RIG_SIZE);
    r->target->gate = hold_writes;
    rig_mirror_on(r, true);
    rig_run(r, 5);
    rig_write(r, 4096, 4096, 7);
    rig_run(r, 5);
    r->target->write_errors = 1000;
    ungate(r->target);
    rig_run(r, 5);
    r->target->write_errors = 0;
    assert_true(rig_status(r).chunks[XM_CHUNK_PRESENT] < RIG_CHUNKS);
    rig_in_step(r);
    rig_run(r, 10);
    assert_true(rig_same(r));
}

/* ---- 8 ---- */

static void test_invariant_8_zeros_and_discards_are_mirrored(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    rig_io(r, XM_IO_ZERO, 4096, 2 * RIG_CHUNK, 0);
    rig_run(r, 5);
    assert_int_equal(r->target->data[4096], 0);
    assert_int_equal(r->target->data[2 * RIG_CHUNK], 0);
    assert_false(r->target->hole[2]); /* write zeroes: the space stays */
    assert_true(rig_same(r));
}

static void test_invariant_8_discard_makes_holes_on_both_sides(void **state)
{
    int status = 1;
    struct status_breq b = {.breq = {.op = XM_IO_ZERO,
                                     .unmap = true,
                                     .offset = RIG_CHUNK,
                                     .length = 2 * RIG_CHUNK,
                                     .done = keep_status},
                            .status = &status};

    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    xm_disk_submit(r->disk, &b.breq);
    rig_run(r, 5);
    assert_int_equal(status, 0);
    assert_true(r->source->hole[RIG_CHUNK / 4096]);
    assert_true(r->target->hole[RIG_CHUNK / 4096]);
    assert_true(r->target->hole[3 * RIG_CHUNK / 4096 - 1]);
    assert_true(rig_same(r));
}

static void test_invariant_8_thin_stays_thin(void **state)
{
    (void)state;
    memset(r->source->data, 0, 4 * RIG_CHUNK);
    for (unsigned i = 0; i < 2 * RIG_CHUNK / 4096; i++)
        r->source->hole[i] = true;
    for (unsigned i = 0; i < RIG_SIZE / 4096; i++)
        r->target->hole[i] = true;
    rig_mirror_on(r, true);
    rig_in_step(r);
    rig_run(r, 5);
    assert_true(rig_same(r));
    for (unsigned i = 0; i < 4 * RIG_CHUNK / 4096; i++)
        assert_true(r->target->hole[i]);
    assert_int_equal(r->target->zeros, 0);
    struct xm_disk_status st = rig_status(r);
    assert_int_equal(st.copied.bytes_hole, 2 * RIG_CHUNK);
    assert_int_equal(st.copied.bytes_zero, 2 * RIG_CHUNK);
    assert_int_equal(st.copied.bytes_data, 4 * RIG_CHUNK);
}

static void test_invariant_8_old_data_at_the_target_is_overwritten(void **state)
{
    (void)state;
    memset(r->source->data, 0, 4 * RIG_CHUNK);
    for (unsigned i = 0; i < 2 * RIG_CHUNK / 4096; i++)
        r->source->hole[i] = true;
    memset(r->target->data, 0x5a, RIG_SIZE);
    rig_mirror_on(r, false);
    rig_in_step(r);
    rig_run(r, 5);
    assert_true(rig_same(r));
    assert_true(r->target->hole[0]);
}

/* ---- 9 ---- */

static void test_invariant_9_counted_when_acknowledged(void **state)
{
    (void)state;
    r->links->hold_acks = true;
    rig_mirror_on(r, true);
    rig_run(r, 30);
    assert_true(r->target->writes > 0);
    struct xm_disk_status st = rig_status(r);
    assert_int_equal(st.copied.bytes_data, 0);
    assert_int_equal(st.chunks[XM_CHUNK_PRESENT], 0);
    assert_int_equal(st.digest.frames, 0);
    sim_links_go(r->links);
    rig_in_step(r);
    assert_int_equal(rig_status(r).copied.bytes_data, RIG_SIZE);
    r->links->hold_acks = true;
    rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    assert_int_equal(rig_status(r).mirrored_bytes, 0);
    sim_links_go(r->links);
    rig_run(r, 5);
    assert_int_equal(rig_status(r).mirrored_bytes, 4096);
    assert_int_equal(rig_status(r).mirrored_writes, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MIRROR(test_invariant_1_mirror_on_before_first_read),
        MIRROR(test_invariant_2_claimed_before_it_is_read),
        MIRROR(test_invariant_2_claim_waits_for_writes_in_flight),
        MIRROR(test_invariant_2_hole_is_looked_up_after_the_claim),
        MIRROR(test_invariant_3_overlapping_writes_one_after_the_other),
        MIRROR(test_invariant_3_overlaps_across_chunks),
        MIRROR(test_invariant_4_both_sides_write_the_same_copy),
        MIRROR(test_invariant_5_order_kept_over_links_that_reorder),
        MIRROR(test_invariant_5_bulk_never_lands_over_a_newer_write),
        MIRROR(test_invariant_5_write_follows_the_copy_under_way),
        MIRROR(test_invariant_5_write_follows_a_copy_that_fails),
        MIRROR(test_invariant_8_zeros_and_discards_are_mirrored),
        MIRROR(test_invariant_8_discard_makes_holes_on_both_sides),
        MIRROR(test_invariant_8_thin_stays_thin),
        MIRROR(test_invariant_8_old_data_at_the_target_is_overwritten),
        MIRROR(test_invariant_9_counted_when_acknowledged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
