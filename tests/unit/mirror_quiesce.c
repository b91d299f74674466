/* SPDX-License-Identifier: MIT */
/* How a mirror ends: quiesced and flushed there, with nothing on its way (invariants 7 and 10 of
 * docs/design.md, «The storage plane»), or pivoted to the other file while the guest goes on. */
#include "tests/unit/lib_mirror.h"

#include <string.h>

/* ---- 7 ---- */

static void test_invariant_7_guest_flush_is_the_local_flush(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->links->hold_acks = true;
    rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    r->source->gate = hold_flushes;
    struct rig_op *f = rig_io(r, XM_IO_FLUSH, 0, 0, 0);
    rig_run(r, 5);
    assert_false(f->done);
    ungate(r->source);
    rig_run(r, 5);
    assert_true(f->done); /* the replica has acknowledged nothing */
    assert_int_equal(r->source->flushes, 1);
    assert_int_equal(r->target->flushes, 0);
}

static void test_invariant_7_quiesced_means_flushed_there(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    assert_true(r->target->unflushed > 0);
    r->target->gate = hold_flushes;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    ungate(r->target);
    rig_run(r, 20);
    assert_true(r->ended && r->status == 0);
    assert_int_equal(r->target->unflushed, 0);
}

static void test_invariant_7_failed_flush_there_is_no_quiescing(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->flush_errors = 1000;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_true(r->ended);
    assert_int_equal(r->status, -EIO);
    assert_non_null(strstr(r->why, "flush"));
}

/* ---- 10 ---- */

static void test_invariant_10_quiesces_only_at_rest(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    /* A flush would overtake this write, and be answered. */
    r->links->delay_min = r->links->delay_max = 40 * XM_NS_PER_MS;
    rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    r->links->delay_min = r->links->delay_max = 1000;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended); /* the mirror buffer is not empty */
    rig_run(r, 80);
    assert_true(r->ended && r->status == 0);
    assert_int_equal(rig_status(r).buffer_bytes, 0);
    assert_int_equal(r->target->unflushed, 0);
    assert_true(rig_same(r));
}

static void test_invariant_10_quiescing_waits_for_an_absent_chunk(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->write_errors = 1000;
    rig_write(r, 0, 4096, 1);
    rig_run(r, 5); /* given up, failed to copy, and left alone for a while */
    assert_int_equal(rig_status(r).chunks[XM_CHUNK_ABSENT], 1);
    rig_quiesce(r);
    rig_run(r, 10);
    assert_false(r->ended);
    r->target->write_errors = 0;
    rig_run(r, 500);
    assert_true(r->ended && r->status == 0);
    assert_true(rig_same(r));
}

static void test_invariant_10_quiescing_waits_for_every_chunk(void **state)
{
    (void)state;
    r->source->gate = hold_reads;
    rig_mirror_on(r, true);
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    ungate(r->source);
    rig_run(r, 50);
    assert_true(r->ended && r->status == 0);
    assert_true(xm_disk_in_step(r->disk));
    assert_true(rig_same(r));
}

static void test_invariant_10_a_guest_that_writes_spoils_it(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->gate = hold_flushes;
    rig_quiesce(r);
    rig_run(r, 5);
    rig_write(r, 0, 4096, 1);
    ungate(r->target);
    rig_run(r, 20);
    assert_true(r->ended);
    assert_int_equal(r->status, -EBUSY);
}

static void test_invariant_10_waits_for_the_guests_last_request(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->source->gate = hold_reads;
    struct rig_op *op = rig_io(r, XM_IO_READ, 0, 4096, 0);
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    ungate(r->source);
    rig_run(r, 20);
    assert_true(r->ended && r->status == 0 && op->done);
}

/* The guest goes on, mirrored, and may be stopped again: the flush that was too slow does not count then. */
static void test_a_quiesce_that_is_not_waited_for_any_more(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->gate = hold_flushes;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    xm_disk_quiesce_cancel(r->disk);
    assert_true(r->ended);
    assert_int_equal(r->status, -ETIMEDOUT);
    xm_disk_quiesce_cancel(r->disk); /* of none */
    rig_write(r, 0, 4096, 1);
    rig_run(r, 20);
    assert_true(r->target->unflushed > 0);
    r->ended = false;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    ungate(r->target);
    rig_run(r, 20);
    assert_true(r->ended && r->status == 0);
    assert_int_equal(r->target->unflushed, 0);
    assert_true(rig_same(r));
}

/* What the kernel could not write it says once. */
static void one_flush_fails_unheard(bool late)
{
    rig_mirror_on(r, true);
    rig_in_step(r);
    rig_write(r, 0, 4096, 1);
    rig_run(r, 20);
    r->target->flush_errors = 1000;
    r->target->gate = hold_flushes;
    rig_quiesce(r);
    rig_run(r, 20);
    assert_false(r->ended);
    xm_disk_quiesce_cancel(r->disk);
    assert_int_equal(r->status, -ETIMEDOUT);
    r->ended = false;
    if (late)
        rig_quiesce(r);
    r->target->flush_errors = 0;
    ungate(r->target);
    rig_run(r, 20);
    if (!late)
        rig_quiesce(r);
    rig_run(r, 20);
    assert_true(r->ended);
    assert_int_equal(r->status, -EIO);
    assert_non_null(strstr(r->why, "flush"));
}

static void test_a_flush_that_fails_when_nobody_waits_for_it_any_more(void **state)
{
    (void)state;
    one_flush_fails_unheard(false);
}

static void test_a_flush_that_fails_while_the_next_one_is_waited_for(void **state)
{
    (void)state;
    one_flush_fails_unheard(true);
}

static void test_quiesce_without_a_mirror_says_so(void **state)
{
    (void)state;
    rig_quiesce(r);
    rig_run(r, 5);
    assert_true(r->ended);
    assert_int_equal(r->status, -EINVAL);
}

/* ---- pivot ---- */

static void test_pivot_while_the_guest_writes(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_pivot(r);
    for (unsigned i = 0; i < 2000 && !r->ended; i++) {
        rig_write(r, i * 4096 % RIG_SIZE, 4096, (int)i);
        sim_run_for(r->sim, 20 * XM_NS_PER_US);
    }
    assert_true(r->ended);
    assert_int_equal(r->status, 0);
    assert_ptr_equal(xm_disk_file(r->disk), &r->target->file);
    uint64_t before = r->source->writes;
    rig_write(r, 0, 4096, 0x77);
    rig_run(r, 50);
    assert_int_equal(r->source->writes, before);
    assert_int_equal(r->target->data[0], 0x77);
}

static void test_pivot_holds_requests_only_while_it_swaps(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->gate = hold_flushes;
    rig_pivot(r);
    rig_run(r, 5);
    /* The flush before it: the guest goes on. */
    struct rig_op *first = rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    assert_true(first->done);
    sim_disk_go(r->target);
    rig_run(r, 5);
    /* The flush within: the guest waits outside. */
    struct rig_op *w = rig_write(r, 4096, 4096, 2), *read = rig_io(r, XM_IO_READ, 0, 4096, 0);
    rig_run(r, 5);
    assert_false(w->done || read->done || r->ended);
    ungate(r->target);
    rig_run(r, 5);
    assert_true(r->ended && r->status == 0 && w->done && read->done);
    assert_int_equal(read->buf[0], 1);
    assert_int_equal(r->target->data[4096], 2);
    assert_int_not_equal(r->source->data[4096], 2);
}

static void test_pivot_lets_the_guest_go_on_when_the_flush_is_slow(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->gate = hold_flushes;
    rig_pivot(r);
    rig_run(r, 5);
    sim_disk_go(r->target);
    rig_run(r, 5);
    struct rig_op *w = rig_write(r, 4096, 4096, 2);
    rig_run(r, 900);
    assert_false(w->done);
    rig_run(r, 200);
    assert_true(w->done && !r->ended);
    assert_int_equal(r->source->data[4096], 2);
    /* The flush that was too slow must not end it now. */
    ungate(r->target);
    rig_run(r, 100);
    assert_false(r->ended);
    rig_run(r, 2000);
    assert_true(r->ended && r->status == 0);
    assert_int_equal(r->target->data[4096], 2);
}

static void test_pivot_to_a_disk_that_never_flushes_in_time_is_given_up(void **state)
{
    uint64_t waited = 0;

    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->latency_min = r->target->latency_max = 1500 * XM_NS_PER_MS;
    rig_pivot(r);
    for (unsigned i = 0; i < 1000 && !r->ended; i++) {
        struct rig_op *read = rig_io(r, XM_IO_READ, 0, 4096, 0);
        rig_run(r, 1100);
        assert_true(read->done);
        waited = XM_MAX(waited, read->took);
    }
    assert_true(r->ended);
    assert_int_equal(r->status, -ETIMEDOUT);
    assert_true(waited <= 1010 * XM_NS_PER_MS);
    assert_ptr_equal(xm_disk_file(r->disk), &r->source->file);
}

static void test_pivot_that_fails_leaves_the_disk_where_it_was(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->flush_errors = 1000;
    rig_pivot(r);
    rig_run(r, 5);
    struct rig_op *w = rig_write(r, 0, 4096, 1);
    rig_run(r, 50);
    assert_true(r->ended);
    assert_int_equal(r->status, -EIO);
    assert_ptr_equal(xm_disk_file(r->disk), &r->source->file);
    assert_true(w->done && w->status == 0);
    assert_int_equal(r->source->data[0], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MIRROR(test_invariant_7_guest_flush_is_the_local_flush),
        MIRROR(test_invariant_7_quiesced_means_flushed_there),
        MIRROR(test_invariant_7_failed_flush_there_is_no_quiescing),
        MIRROR(test_invariant_10_quiesces_only_at_rest),
        MIRROR(test_invariant_10_quiescing_waits_for_an_absent_chunk),
        MIRROR(test_invariant_10_quiescing_waits_for_every_chunk),
        MIRROR(test_invariant_10_a_guest_that_writes_spoils_it),
        MIRROR(test_invariant_10_waits_for_the_guests_last_request),
        MIRROR(test_a_quiesce_that_is_not_waited_for_any_more),
        MIRROR(test_a_flush_that_fails_when_nobody_waits_for_it_any_more),
        MIRROR(test_a_flush_that_fails_while_the_next_one_is_waited_for),
        MIRROR(test_quiesce_without_a_mirror_says_so),
        MIRROR_NEAR(test_pivot_while_the_guest_writes),
        MIRROR_NEAR(test_pivot_holds_requests_only_while_it_swaps),
        MIRROR_NEAR(test_pivot_lets_the_guest_go_on_when_the_flush_is_slow),
        MIRROR_NEAR(test_pivot_to_a_disk_that_never_flushes_in_time_is_given_up),
        MIRROR_NEAR(test_pivot_that_fails_leaves_the_disk_where_it_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
