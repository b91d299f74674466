/* SPDX-License-Identifier: MIT */
/* What a guest notices of its disk's mirror: never an error of the other side, no wait beyond the cap
 * (invariant 6 of docs/design.md, «The storage plane»), and the errors of its own disk; when it is sync,
 * async, off. */
#include "tests/unit/lib_mirror.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- 6 ---- */

static void test_invariant_6_target_errors_are_not_the_guests(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->target->write_errors = 1000;
    struct rig_op *w = rig_write(r, 0, 4096, 7), *z = rig_io(r, XM_IO_ZERO, RIG_CHUNK, 4096, 0);
    rig_run(r, 5);
    assert_true(w->done && w->status == 0);
    assert_true(z->done && z->status == 0);
    struct xm_disk_status st = rig_status(r);
    assert_int_equal(st.given_up, 2);
    assert_int_equal(st.errors, 0);
    assert_false(xm_disk_in_step(r->disk));
    r->target->write_errors = 0;
    rig_in_step(r);
    rig_run(r, 50);
    assert_true(rig_same(r));
}

/* Its own disk's are, and the host's operator hears of them, not only who asks for a counter. */
static void test_an_error_of_its_own_disk_is_told(void **state)
{
    char text[2048] = "";
    FILE *log = tmpfile();
    int saved = dup(STDERR_FILENO);
    (void)state;
    assert_non_null(log);
    assert_true(dup2(fileno(log), STDERR_FILENO) >= 0);
    r->source->write_errors = 1000;
    struct rig_op *w = rig_write(r, 8192, 4096, 7);
    rig_run(r, 5);
    for (unsigned i = 0; i < 100; i++) /* not a line for each */
        rig_write(r, 0, 4096, 7);
    rig_run(r, 5);
    r->source->write_errors = 0;
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(log);
    text[fread(text, 1, sizeof text - 1, log)] = 0;
    fclose(log);
    assert_true(w->done && w->status < 0);
    assert_int_equal(rig_status(r).errors, 101);
    if (!strstr(text, "writing 4096 bytes at 8192 failed, and the guest has got an I/O error: "))
        fail_msg("%s", text);
    unsigned lines = 0;
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    assert_true(lines >= 1 && lines <= 11);
}

static void test_invariant_6_target_errors_are_not_the_guests_in_sync_mode(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->links->hold_acks = true;
    r->target->write_errors = 1000;
    for (unsigned i = 0; i < 4; i++)
        rig_write(r, i * 16384, 16384, 1);
    struct rig_op *op = r->ops;
    assert_int_equal(rig_status(r).mode, XM_MIRROR_SYNC);
    rig_run(r, 5);
    assert_false(op->done);
    sim_links_go(r->links);
    rig_run(r, 5);
    assert_true(op->done && op->status == 0);
    assert_int_equal(rig_status(r).errors, 0);
}

static void test_local_errors_are_the_guests_and_are_copied_again(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->source->write_errors = 1000;
    struct rig_op *op = rig_write(r, 0, 8192, 0x31);
    rig_run(r, 1);
    r->source->write_errors = 0;
    assert_true(op->done);
    assert_int_equal(op->status, -EIO);
    assert_int_equal(rig_status(r).given_up, 1);
    rig_in_step(r);
    rig_run(r, 5);
    assert_true(rig_same(r));
}

static void test_large_writes_go_in_parts(void **state)
{
    uint8_t *image = malloc(RIG_SIZE);

    (void)state;
    for (uint64_t i = 0; i < RIG_SIZE; i++)
        image[i] = (uint8_t)(i / 512 * 7);
    for (unsigned present = 0; present < 2; present++) {
        struct iovec iov[3] = {
            {image, 700}, {image + 700, 100000}, {image + 100700, RIG_SIZE - 512 - 100700}};
        int status = 1;
        struct status_breq b = {.breq = {.op = XM_IO_WRITE,
                                         .offset = 512,
                                         .length = RIG_SIZE - 512,
                                         .iov = iov,
                                         .iovcnt = 3,
                                         .done = keep_status},
                                .status = &status};
        if (present) {
            rig_in_step(r);
        } else {
            rig_mirror_on(r, true);
            xm_disk_replica_lost(r->disk, true); /* parts that go here only */
        }
        xm_disk_submit(r->disk, &b.breq);
        rig_run(r, 100);
        assert_int_equal(status, 0);
        assert_memory_equal(r->source->data + 512, image, RIG_SIZE - 512);
        memset(image, 3, 5000);
        if (!present)
            xm_disk_replica_lost(r->disk, false);
    }
    rig_in_step(r);
    rig_run(r, 50);
    assert_true(rig_same(r));
    free(image);
}

static void test_invariant_6_copy_that_cannot_succeed_ends_with_a_sentence(void **state)
{
    (void)state;
    r->target->write_errors = 1000;
    rig_mirror_on(r, true);
    rig_quiesce(r);
    rig_run(r, 3000);
    assert_true(r->ended);
    assert_int_equal(r->status, -EIO);
    assert_non_null(strstr(r->why, "writing at the destination"));
    assert_int_equal(rig_status(r).failed, -EIO);
    struct rig_op *w = rig_write(r, 0, 4096, 7);
    rig_run(r, 5);
    assert_true(w->done && w->status == 0);
    /* What broke: a move that copies no disks failed for it, days later. */
    rig_mirror_off(r);
    assert_int_equal(rig_status(r).failed, 0);
}

static void test_invariant_6_unreadable_source_ends_with_a_sentence(void **state)
{
    (void)state;
    r->source->read_errors = 1000;
    rig_mirror_on(r, true);
    rig_quiesce(r);
    rig_run(r, 3000);
    assert_true(r->ended);
    assert_int_equal(r->status, -EIO);
    assert_non_null(strstr(r->why, "reading it"));
}

static void test_invariant_6_guest_waits_no_longer_than_the_cap_for_a_copy(void **state)
{
    (void)state;
    r->source->gate = hold_first_chunk_reads;
    rig_mirror_on(r, true);
    rig_run(r, 1);
    struct rig_op *held = rig_write(r, 0, 4096, 1), *both = rig_write(r, RIG_CHUNK - 4096, 8192, 2);
    rig_run(r, 49);
    assert_false(held->done || both->done);
    rig_run(r, 3);
    assert_true(held->done && both->done);
    assert_in_range(held->took, 50 * XM_NS_PER_MS, 51 * XM_NS_PER_MS);
    /* Its copy is stale now: nobody waits for it any more. */
    struct rig_op *next = rig_write(r, 8192, 4096, 3);
    rig_run(r, 2);
    assert_true(next->done);
    ungate(r->source);
    rig_in_step(r);
    rig_run(r, 10);
    assert_true(rig_same(r));
    assert_true(rig_status(r).given_up >= 1);
    assert_true(rig_status(r).held_ns_max >= 50 * XM_NS_PER_MS);
}

static void test_invariant_6_guest_waits_no_longer_than_the_cap_in_sync_mode(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->links->hold_acks = true;
    for (unsigned i = 0; i < 4; i++)
        rig_write(r, i * 16384, 16384, 1); /* fills the buffer: sync */
    assert_int_equal(rig_status(r).mode, XM_MIRROR_SYNC);
    rig_run(r, 45);
    struct rig_op *op = r->ops;
    assert_false(op->done);
    rig_run(r, 6);
    assert_true(op->done);
    assert_int_equal(op->status, 0);
    assert_true(rig_status(r).given_up >= 1);
    sim_links_go(r->links);
    rig_in_step(r);
    rig_run(r, 50);
    assert_true(rig_same(r));
}

static void test_invariant_6_full_buffer_holds_no_longer_than_the_cap(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->links->hold_acks = true;
    for (unsigned i = 0; i < 4; i++)
        rig_write(r, i * 16384, 16384, 1);
    struct rig_op *over = rig_write(r, 2 * RIG_CHUNK, 16384, 2);
    rig_run(r, 49);
    assert_false(over->done);
    assert_int_equal(rig_status(r).buffer_waits, 1);
    rig_run(r, 3);
    assert_true(over->done && over->status == 0);
    assert_int_equal(rig_status(r).buffer_bytes, 64 << 10);
    sim_links_go(r->links);
    rig_in_step(r);
    rig_run(r, 50);
    assert_true(rig_same(r));
}

static void test_invariant_6_all_links_lost(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    struct rig_op *flying = rig_write(r, 0, 4096, 1);
    sim_links_down(r->links, 0);
    sim_links_down(r->links, 1);
    xm_disk_replica_lost(r->disk, true);
    struct rig_op *after = rig_write(r, RIG_CHUNK, 4096, 2);
    rig_run(r, 5);
    assert_true(flying->done && after->done);
    assert_int_equal(rig_status(r).given_up, 2);
    rig_quiesce(r);
    rig_run(r, 5);
    assert_true(r->ended);
    assert_int_equal(r->status, -ENOLINK);
    sim_links_up(r->links, 0);
    xm_disk_replica_lost(r->disk, false);
    rig_in_step(r);
    rig_run(r, 10);
    assert_true(rig_same(r));
}

/* ---- modes ---- */

static void test_sync_and_back_to_async(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_ASYNC);
    r->links->hold_acks = true;
    for (unsigned i = 0; i < 4; i++)
        rig_write(r, i * 16384, 16384, 1);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_SYNC);
    sim_links_go(r->links);
    rig_run(r, 300);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_SYNC); /* not long enough */
    rig_run(r, 300);
    struct xm_disk_status st = rig_status(r);
    assert_int_equal(st.mode, XM_MIRROR_ASYNC);
    assert_int_equal(st.to_sync, 1);
    assert_int_equal(st.to_async, 1);
}

static void test_replica_that_falls_behind_makes_sync(void **state)
{
    (void)state;
    rig_mirror_on(r, true);
    rig_in_step(r);
    r->links->hold_acks = true;
    rig_write(r, 0, 4096, 1);
    rig_run(r, 190);
    rig_write(r, RIG_CHUNK, 4096, 1);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_ASYNC);
    rig_run(r, 20);
    rig_write(r, 2 * RIG_CHUNK, 4096, 1);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_SYNC);
}

static void test_absent_chunks_are_written_here_only(void **state)
{
    (void)state;
    r->source->gate = hold_reads;
    rig_mirror_on(r, true);
    rig_run(r, 5);
    xm_disk_replica_lost(r->disk, true);
    struct rig_op *op = rig_write(r, RIG_SIZE - 4096, 4096, 1);
    rig_run(r, 5);
    assert_true(op->done);
    assert_int_equal(rig_status(r).mirrored_writes + rig_status(r).buffer_bytes, 0);
    xm_disk_replica_lost(r->disk, false);
}

static void test_off_gives_the_guest_its_way_at_once(void **state)
{
    (void)state;
    r->source->gate = hold_first_chunk_reads;
    rig_mirror_on(r, true);
    rig_run(r, 1);
    struct rig_op *held = rig_write(r, 0, 4096, 1);
    rig_run(r, 5);
    assert_false(held->done);
    rig_mirror_off(r);
    rig_run(r, 5);
    assert_true(held->done);
    assert_false(r->off); /* its read is still under way */
    ungate(r->source);
    rig_run(r, 5);
    assert_true(r->off);
    assert_int_equal(rig_status(r).mode, XM_MIRROR_OFF);
}

static void test_requests_outside_the_disk_are_refused(void **state)
{
    (void)state;
    assert_int_equal(rig_write(r, RIG_SIZE - 512, 1024, 1)->status, -EINVAL);
    assert_int_equal(rig_io(r, XM_IO_ZERO, UINT64_MAX - 511, 512, 1)->status, -EINVAL);
    struct rig_op *empty = rig_write(r, 0, 0, 1);
    assert_true(empty->done && empty->status == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        MIRROR(test_invariant_6_target_errors_are_not_the_guests),
        MIRROR_TINY(test_an_error_of_its_own_disk_is_told),
        MIRROR_TINY(test_invariant_6_target_errors_are_not_the_guests_in_sync_mode),
        MIRROR(test_local_errors_are_the_guests_and_are_copied_again),
        MIRROR_TINY(test_large_writes_go_in_parts),
        MIRROR(test_invariant_6_copy_that_cannot_succeed_ends_with_a_sentence),
        MIRROR(test_invariant_6_unreadable_source_ends_with_a_sentence),
        MIRROR(test_invariant_6_guest_waits_no_longer_than_the_cap_for_a_copy),
        MIRROR_TINY(test_invariant_6_guest_waits_no_longer_than_the_cap_in_sync_mode),
        MIRROR_TINY(test_invariant_6_full_buffer_holds_no_longer_than_the_cap),
        MIRROR(test_invariant_6_all_links_lost),
        MIRROR_TINY(test_sync_and_back_to_async),
        MIRROR(test_replica_that_falls_behind_makes_sync),
        MIRROR(test_absent_chunks_are_written_here_only),
        MIRROR(test_off_gives_the_guest_its_way_at_once),
        MIRROR(test_requests_outside_the_disk_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
