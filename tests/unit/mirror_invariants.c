/* SPDX-License-Identifier: MIT */
/* The ten things that must always hold (mirror/mirror.h; docs/design.md, «The storage plane»), one named test
 * or more for each. */
#include "lib_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static struct rig *r; /* the test's */

static int setup(void **state)
{
    (void)state;
    r = rig_new(NULL);
    return 0;
}

static int setup_near(void **state)
{
    (void)state;
    r = rig_new(&(struct rig_opts){.near = true});
    return 0;
}

/* Room for four writes of 16 KiB. */
static int setup_tiny(void **state)
{
    (void)state;
    r = rig_new(&(struct rig_opts){.mirror_buffer = 64 << 10});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rig_free(r);
    return 0;
}

static bool hold_writes(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_WRITE || io->op == XM_IO_ZERO;
}

static bool hold_reads(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_READ;
}

static bool hold_first_chunk_reads(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_READ && io->offset < RIG_CHUNK;
}

static bool hold_flushes(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    return io->op == XM_IO_FLUSH;
}

static void go(struct sim_disk *d)
{
    d->gate = NULL;
    sim_disk_go(d);
}

/* Requests that rig_io does not make. */
struct status_breq {
    struct xm_breq breq;
    int *status;
};

static void keep_status(struct xm_breq *b, int status)
{
    *xm_container_of(b, struct status_breq, breq)->status = status;
}

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
    go(r->source);
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
    go(r->source);
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
    go(r->source);
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
    go(r->source);
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
    go(r->source);
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
    go(r->source);
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
    go(r->target);
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
    go(r->target);
    rig_run(r, 5);
    r->target->write_errors = 0;
    assert_true(rig_status(r).chunks[XM_CHUNK_PRESENT] < RIG_CHUNKS);
    rig_in_step(r);
    rig_run(r, 10);
    assert_true(rig_same(r));
}

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
    go(r->source);
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
    go(r->source);
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
    go(r->target);
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
    go(r->source);
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
    go(r->target);
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
    go(r->source);
    rig_run(r, 20);
    assert_true(r->ended && r->status == 0 && op->done);
}

static void test_quiesce_without_a_mirror_says_so(void **state)
{
    (void)state;
    rig_quiesce(r);
    rig_run(r, 5);
    assert_true(r->ended);
    assert_int_equal(r->status, -EINVAL);
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
    go(r->source);
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
    go(r->target);
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
    go(r->target);
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

#define T(name)    cmocka_unit_test_setup_teardown(name, setup, teardown)
#define NEAR(name) cmocka_unit_test_setup_teardown(name, setup_near, teardown)
#define TINY(name) cmocka_unit_test_setup_teardown(name, setup_tiny, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_invariant_1_mirror_on_before_first_read),
        T(test_invariant_2_claimed_before_it_is_read),
        T(test_invariant_2_claim_waits_for_writes_in_flight),
        T(test_invariant_2_hole_is_looked_up_after_the_claim),
        T(test_invariant_3_overlapping_writes_one_after_the_other),
        T(test_invariant_3_overlaps_across_chunks),
        T(test_invariant_4_both_sides_write_the_same_copy),
        T(test_invariant_5_order_kept_over_links_that_reorder),
        T(test_invariant_5_bulk_never_lands_over_a_newer_write),
        T(test_invariant_5_write_follows_the_copy_under_way),
        T(test_invariant_5_write_follows_a_copy_that_fails),
        T(test_invariant_6_target_errors_are_not_the_guests),
        TINY(test_an_error_of_its_own_disk_is_told),
        TINY(test_invariant_6_target_errors_are_not_the_guests_in_sync_mode),
        T(test_local_errors_are_the_guests_and_are_copied_again),
        TINY(test_large_writes_go_in_parts),
        T(test_invariant_6_copy_that_cannot_succeed_ends_with_a_sentence),
        T(test_invariant_6_unreadable_source_ends_with_a_sentence),
        T(test_invariant_6_guest_waits_no_longer_than_the_cap_for_a_copy),
        TINY(test_invariant_6_guest_waits_no_longer_than_the_cap_in_sync_mode),
        TINY(test_invariant_6_full_buffer_holds_no_longer_than_the_cap),
        T(test_invariant_6_all_links_lost),
        T(test_invariant_7_guest_flush_is_the_local_flush),
        T(test_invariant_7_quiesced_means_flushed_there),
        T(test_invariant_7_failed_flush_there_is_no_quiescing),
        T(test_invariant_8_zeros_and_discards_are_mirrored),
        T(test_invariant_8_discard_makes_holes_on_both_sides),
        T(test_invariant_8_thin_stays_thin),
        T(test_invariant_8_old_data_at_the_target_is_overwritten),
        T(test_invariant_9_counted_when_acknowledged),
        T(test_invariant_10_quiesces_only_at_rest),
        T(test_invariant_10_quiescing_waits_for_an_absent_chunk),
        T(test_invariant_10_quiescing_waits_for_every_chunk),
        T(test_invariant_10_a_guest_that_writes_spoils_it),
        T(test_invariant_10_waits_for_the_guests_last_request),
        T(test_quiesce_without_a_mirror_says_so),
        TINY(test_sync_and_back_to_async),
        T(test_replica_that_falls_behind_makes_sync),
        T(test_absent_chunks_are_written_here_only),
        T(test_off_gives_the_guest_its_way_at_once),
        T(test_requests_outside_the_disk_are_refused),
        NEAR(test_pivot_while_the_guest_writes),
        NEAR(test_pivot_holds_requests_only_while_it_swaps),
        NEAR(test_pivot_lets_the_guest_go_on_when_the_flush_is_slow),
        NEAR(test_pivot_to_a_disk_that_never_flushes_in_time_is_given_up),
        NEAR(test_pivot_that_fails_leaves_the_disk_where_it_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
