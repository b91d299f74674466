/* SPDX-License-Identifier: MIT */
/* The bulk copier alone: what it reads, what it sends, what it says when something fails. */
#include "lib_sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK  (1u << 20)
#define CHUNKS 8
#define SIZE   (CHUNKS * CHUNK - 4096)

struct fixture {
    struct sim *sim;
    struct sim_disk *source, *target;
    struct xm_writer *w;
    struct xm_replica *replica;
    struct xm_bufpool *pool;
    struct xm_copier *c;
    int64_t next, last;
    bool again; /* what next() says is not fresh */
    unsigned copied, failed, busy_max;
    int status;
    uint64_t used_max;
};

static int64_t next(void *ctx, bool *fresh)
{
    struct fixture *f = ctx;

    *fresh = !f->again;
    return f->next < f->last ? f->next++ : -1;
}

static void copied(void *ctx, int64_t chunk, int status)
{
    struct fixture *f = ctx;

    assert_in_range(chunk, 0, CHUNKS - 1);
    f->copied++;
    if (status < 0) {
        f->failed++;
        f->status = status;
    }
}

static const struct xm_copier_ops ops = {.next = next, .ended = copied};

static bool watch(struct sim_disk *d, struct xm_io *io)
{
    struct fixture *f = d->ctx;

    assert_int_equal(io->op, XM_IO_READ);
    assert_true(io->length <= 256 << 10);
    f->busy_max = XM_MAX(f->busy_max, xm_copier_busy(f->c));
    f->used_max = XM_MAX(f->used_max, xm_bufpool_used(f->pool));
    return false;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    f->sim = sim_new(3);
    f->source = sim_disk_new(f->sim, SIZE);
    f->target = sim_disk_new(f->sim, SIZE);
    f->source->gate = watch;
    f->source->ctx = f;
    for (uint64_t i = 0; i < SIZE; i++)
        f->source->data[i] = (uint8_t)(1 + i / 512 % 250);
    f->w = xm_writer_new(&f->sim->engine, &f->target->file, NULL);
    f->replica = xm_replica_near(&f->sim->engine, f->w, CHUNK);
    f->last = CHUNKS;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    xm_copier_pause(f->c, true);
    xm_copier_free(f->c);
    xm_bufpool_free(f->pool);
    xm_replica_free(f->replica);
    xm_writer_free(f->w);
    sim_disk_free(f->source);
    sim_disk_free(f->target);
    sim_free(f->sim);
    free(f);
    return 0;
}

static struct xm_copier_stats copy(struct fixture *f, size_t pool, bool zeroed)
{
    static const bool never = false;
    struct xm_copier_stats st;

    f->pool = xm_bufpool_new(pool);
    f->c = xm_copier_new(&f->sim->engine, &f->source->file, f->replica, f->pool, CHUNK, zeroed, &ops, f);
    xm_copier_kick(f->c);
    sim_run_until(f->sim, &never, 1000000);
    xm_copier_stats(f->c, &st);
    assert_int_equal(xm_copier_busy(f->c), 0);
    return st;
}

static void test_copies_all_within_the_pools_bound(void **state)
{
    struct fixture *f = *state;
    struct xm_copier_stats st = copy(f, 1 << 20, true);

    assert_int_equal(f->copied, CHUNKS);
    assert_int_equal(f->failed, 0);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
    assert_int_equal(st.bytes_data, SIZE);
    assert_int_equal(f->used_max, 1 << 20);
    assert_true(f->busy_max > 1);
}

static void test_one_buffer_is_enough(void **state)
{
    struct fixture *f = *state;

    copy(f, 256 << 10, true);
    assert_int_equal(f->copied, CHUNKS);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
}

static void test_holes_are_not_read_and_zeros_not_sent(void **state)
{
    struct fixture *f = *state;

    memset(f->source->data, 0, 2 * CHUNK);
    for (unsigned i = 0; i < CHUNK / 4096; i++)
        f->source->hole[i] = true;
    struct xm_copier_stats st = copy(f, 4 << 20, true);
    assert_int_equal(st.bytes_hole, CHUNK);
    assert_int_equal(st.bytes_zero, CHUNK);
    assert_int_equal(st.bytes_data, SIZE - 2 * CHUNK);
    assert_int_equal(f->source->reads, 4 * (CHUNKS - 1));
    assert_int_equal(f->target->zeros, 0);
}

static void test_zeros_are_sent_where_the_target_may_hold_something(void **state)
{
    struct fixture *f = *state;

    memset(f->source->data, 0, 2 * CHUNK);
    memset(f->target->data, 9, SIZE);
    struct xm_copier_stats st = copy(f, 4 << 20, false);
    assert_int_equal(st.bytes_zero, 2 * CHUNK);
    assert_int_equal(f->target->zeros, 2); /* one for each chunk, not one for each piece */
    assert_true(f->target->hole[0]);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
}

static void test_a_chunk_copied_again_sends_its_zeros(void **state)
{
    struct fixture *f = *state;

    memset(f->source->data, 0, SIZE);
    memset(f->target->data, 9, SIZE);
    f->again = true;
    copy(f, 4 << 20, true);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
    assert_int_equal(f->copied, CHUNKS);
}

static void test_zeros_between_data_are_found(void **state)
{
    struct fixture *f = *state;

    /* Granules of 64 KiB: data, two of zeros, data, and a last one half zero, which is data. */
    memset(f->source->data + (64 << 10), 0, 128 << 10);
    memset(f->source->data + (256 << 10), 0, 32 << 10);
    memset(f->target->data, 9, SIZE);
    struct xm_copier_stats st = copy(f, 4 << 20, false);
    assert_int_equal(st.bytes_zero, 128 << 10);
    assert_int_equal(f->target->zeros, 1);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
}

static void test_reads_are_tried_again(void **state)
{
    struct fixture *f = *state;

    f->source->read_errors = 100;
    struct xm_copier_stats st = copy(f, 2 << 20, true);
    assert_int_equal(f->copied, CHUNKS);
    assert_int_equal(f->failed, 0);
    assert_int_equal(st.read_errors, 0);
    assert_true(f->source->errors > 0);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
}

static void test_reads_that_keep_failing_are_told(void **state)
{
    struct fixture *f = *state;

    f->source->read_errors = 1000;
    struct xm_copier_stats st = copy(f, 2 << 20, true);
    assert_int_equal(f->copied, CHUNKS);
    assert_int_equal(f->failed, CHUNKS);
    assert_int_equal(f->status, -EIO);
    assert_true(st.read_errors >= CHUNKS);
    assert_int_equal(st.bytes_data + st.bytes_zero + st.bytes_hole, 0);
}

static void test_errors_of_the_target_are_told(void **state)
{
    struct fixture *f = *state;

    f->target->write_errors = 1000;
    struct xm_copier_stats st = copy(f, 2 << 20, true);
    assert_int_equal(f->failed, CHUNKS);
    assert_int_equal(st.read_errors, 0);
    assert_int_equal(st.bytes_data, 0);
}

static void test_chunks_copied_again_are_few_at_a_time(void **state)
{
    struct fixture *f = *state;

    f->again = true;
    copy(f, 16 << 20, true);
    assert_int_equal(f->copied, CHUNKS);
    assert_in_range(f->busy_max, 1, 4);
}

static void test_paused_claims_nothing(void **state)
{
    struct fixture *f = *state;
    static const bool never = false;

    f->pool = xm_bufpool_new(1 << 20);
    f->c = xm_copier_new(&f->sim->engine, &f->source->file, f->replica, f->pool, CHUNK, true, &ops, f);
    xm_copier_pause(f->c, true);
    xm_copier_kick(f->c);
    sim_run_until(f->sim, &never, 1000);
    assert_int_equal(f->next, 0);
    xm_copier_pause(f->c, false);
    xm_copier_pause(f->c, true); /* what was claimed is copied to its end */
    sim_run_until(f->sim, &never, 100000);
    assert_int_equal(f->copied, f->next);
    assert_in_range(f->next, 1, 2);
}

/* 2 MiB a second: 8 MiB take 4 s, but for a chunk and the first burst; four times that and it is over soon.
 */
static void test_reads_no_faster_than_its_rate(void **state)
{
    struct fixture *f = *state;
    static const bool never = false;

    f->pool = xm_bufpool_new(16 << 20);
    f->c = xm_copier_new(&f->sim->engine, &f->source->file, f->replica, f->pool, CHUNK, true, &ops, f);
    xm_copier_rate(f->c, 2 << 20);
    sim_run_for(f->sim, 2 * XM_NS_PER_S);
    assert_in_range(f->copied, 4, 5);
    uint64_t then = f->sim->now;
    xm_copier_rate(f->c, 8 << 20);
    sim_run_for(f->sim, 600 * XM_NS_PER_MS);
    sim_run_until(f->sim, &never, 1000000);
    assert_true(f->sim->now - then <= 700 * XM_NS_PER_MS);
    assert_int_equal(f->copied, CHUNKS);
    assert_memory_equal(f->source->data, f->target->data, SIZE);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_copies_all_within_the_pools_bound),
        T(test_one_buffer_is_enough),
        T(test_holes_are_not_read_and_zeros_not_sent),
        T(test_zeros_are_sent_where_the_target_may_hold_something),
        T(test_a_chunk_copied_again_sends_its_zeros),
        T(test_zeros_between_data_are_found),
        T(test_reads_are_tried_again),
        T(test_reads_that_keep_failing_are_told),
        T(test_errors_of_the_target_are_told),
        T(test_chunks_copied_again_are_few_at_a_time),
        T(test_paused_claims_nothing),
        T(test_reads_no_faster_than_its_rate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
