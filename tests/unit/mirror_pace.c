/* SPDX-License-Identifier: MIT */
/* The bulk copy beside a guest that writes, over links of all kinds: it must neither fill a slow link with
 * chunks that the guest then waits for, nor leave a fast or long one empty. Time is virtual (lib_sim).
 *
 * Chunks are 64 KiB and the bulk buffer 1 MiB, a sixteenth of what they are in earnest, and so are the links'
 * rates: the times are the same, the memory is less. */
#include "lib_sim.h"
#include "mirror/mirror.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK (64u << 10)
#define BULK  (1u << 20)
#define CAP   (50 * XM_NS_PER_MS)
#define SLOW  (20000000u / 16) /* bytes a second */
#define FAST  (1000000000u / 16)
#define PAGE  4096u
#define SLOTS 64u
#define MS    XM_NS_PER_MS

struct pace;

struct slot {
    struct pace *p;
    struct xm_breq breq;
    struct iovec iov;
    uint8_t buf[PAGE];
    bool busy;
    uint64_t began;
};

struct pace {
    struct sim *sim;
    struct sim_disk *source, *target;
    struct xm_writer *writer;
    struct sim_links *links;
    struct xm_replica *replica;
    struct xm_disk *disk;
    uint64_t size;
    struct slot slot[SLOTS];
    struct sim_event guest;
    uint64_t gap; /* ns between the guest's writes; 0: it writes nothing */
    uint64_t writes, waited, waited_max, skipped;
    bool off;
};

static void link_is(struct pace *p, uint64_t rate, uint64_t round_trip)
{
    p->links->rate = rate;
    p->links->delay_min = p->links->delay_max = round_trip / 2;
}

static struct pace *pace_new(unsigned chunks, uint64_t rate, uint64_t round_trip)
{
    struct pace *p = calloc(1, sizeof *p);
    struct xm_disk_opts opts = {.chunk_size = CHUNK, .bulk_buffer = BULK, .write_cap = CAP};

    assert_non_null(p);
    p->size = (uint64_t)chunks * CHUNK;
    p->sim = sim_new(1);
    p->source = sim_disk_new(p->sim, p->size);
    p->target = sim_disk_new(p->sim, p->size);
    memset(p->source->data, 0x55, p->size);
    p->writer = xm_writer_new(&p->sim->engine, &p->target->file, NULL);
    p->links = sim_links_new(p->sim, p->writer, 1);
    p->replica = xm_replica_far(&p->sim->engine, &p->links->transport, 0, CHUNK);
    p->disk = xm_disk_new(&p->sim->engine, &p->source->file, &opts, NULL);
    assert_true(p->writer && p->replica && p->disk);
    link_is(p, rate, round_trip);
    /* Urgent frames pass what the links have not taken. Slow: they take half a chunk. */
    p->links->window = rate == SLOW ? 2 : 1000;
    return p;
}

static void is_off(void *arg)
{
    *(bool *)arg = true;
}

static void pace_free(struct pace *p)
{
    p->gap = 0;
    sim_event_cancel(p->sim, &p->guest);
    xm_disk_mirror_off(p->disk, is_off, &p->off);
    assert_true(sim_run_until(p->sim, &p->off, 1000000));
    sim_run_for(p->sim, XM_NS_PER_S);
    xm_disk_free(p->disk);
    xm_replica_free(p->replica);
    sim_links_free(p->links);
    xm_writer_free(p->writer);
    sim_disk_free(p->source);
    sim_disk_free(p->target);
    sim_free(p->sim);
    free(p);
}

static void written(struct xm_breq *b, int status)
{
    struct slot *s = xm_container_of(b, struct slot, breq);
    struct pace *p = s->p;
    uint64_t took = p->sim->now - s->began;

    assert_int_equal(status, 0);
    s->busy = false;
    p->writes++;
    p->waited += took;
    p->waited_max = XM_MAX(p->waited_max, took);
}

static void guest_writes(struct sim_event *e)
{
    struct pace *p = xm_container_of(e, struct pace, guest);
    struct slot *s = p->slot;

    while (s < p->slot + SLOTS && s->busy)
        s++;
    if (s < p->slot + SLOTS) {
        s->p = p;
        s->busy = true;
        s->began = p->sim->now;
        memset(s->buf, (int)sim_below(p->sim, 256), PAGE);
        s->iov = (struct iovec){s->buf, PAGE};
        s->breq = (struct xm_breq){.op = XM_IO_WRITE,
                                   .offset = sim_below(p->sim, p->size / PAGE) * PAGE,
                                   .length = PAGE,
                                   .iov = &s->iov,
                                   .iovcnt = 1,
                                   .done = written};
        xm_disk_submit(p->disk, &s->breq);
    } else {
        p->skipped++;
    }
    if (p->gap)
        sim_event_set(p->sim, e, sim_between(p->sim, p->gap / 2, p->gap + p->gap / 2));
}

static void begin(struct pace *p, uint64_t gap)
{
    assert_int_equal(xm_disk_mirror_on(p->disk, p->replica, true, NULL), 0);
    p->gap = gap;
    p->guest.fire = guest_writes;
    if (gap)
        sim_event_set(p->sim, &p->guest, gap);
}

/* Until both sides are the same; returns how long that took, in ns. */
static uint64_t copy_all(struct pace *p)
{
    uint64_t from = p->sim->now;

    for (unsigned i = 0; i < 10000000 && !xm_disk_in_step(p->disk); i++)
        xm_engine_turn(&p->sim->engine);
    assert_true(xm_disk_in_step(p->disk));
    return p->sim->now - from;
}

static struct xm_disk_status status(struct pace *p)
{
    struct xm_disk_status st;

    xm_disk_status(p->disk, &st);
    return st;
}

static uint64_t ideal(const struct pace *p, uint64_t bytes)
{
    return bytes * XM_NS_PER_S / p->links->rate;
}

/* Bytes a second that were sent in the next so many ms. */
static double measure(struct pace *p, uint64_t ms)
{
    uint64_t before = p->links->sent_bytes;

    sim_run_for(p->sim, ms * MS);
    return (double)(p->links->sent_bytes - before) * 1e3 / (double)ms;
}

static void test_a_slow_link_wastes_nothing_and_does_not_hold_the_guest(void **state)
{
    struct pace *p = pace_new(512, SLOW, MS);

    (void)state;
    begin(p, 5 * MS);
    uint64_t took = copy_all(p);
    struct xm_disk_status st = status(p);
    print_message(
        "copied in %.1f s, ideally %.1f; %llu writes, %llu held, longest %.1f ms, on average %.2f ms; "
        "%llu of 512 chunks stale\n",
        (double)took / 1e9, (double)ideal(p, p->size + st.mirrored_bytes) / 1e9,
        (unsigned long long)p->writes, (unsigned long long)st.held, (double)st.held_ns_max / 1e6,
        (double)p->waited / (double)p->writes / 1e6, (unsigned long long)st.given_up);
    assert_true(st.held_ns_max < MS); /* what is on its way has been read */
    assert_true(st.given_up <= 512 * 4 / 100);
    assert_true(p->waited / p->writes < CAP / 20);
    assert_true(took < ideal(p, p->size + st.mirrored_bytes) * 115 / 100);
    assert_int_equal(p->skipped, 0);
    pace_free(p);
}

static void test_a_long_round_trip_is_filled(void **state)
{
    struct pace *p = pace_new(1024, FAST, 100 * MS);

    (void)state;
    begin(p, 0);
    uint64_t took = copy_all(p), at_best = p->size / BULK * 100 * MS;
    print_message("at most %llu KiB under way; %.2f s, at best %.2f\n",
                  (unsigned long long)p->links->unanswered_max >> 10, (double)took / 1e9,
                  (double)at_best / 1e9);
    assert_int_equal(p->links->unanswered_max, BULK);
    /* Some round trips to find out. */
    assert_true(took < at_best + 15 * 100 * MS);
    pace_free(p);
}

static void test_a_slow_link_with_a_long_round_trip_is_filled_too(void **state)
{
    struct pace *p = pace_new(512, SLOW * 4, 100 * MS);

    (void)state;
    p->links->window = 1000;
    begin(p, 0);
    sim_run_for(p->sim, 2000 * MS);
    double rate = measure(p, 4000);
    print_message("%.0f of %u bytes a second, at most %llu KiB under way\n", rate, SLOW * 4,
                  (unsigned long long)p->links->unanswered_max >> 10);
    assert_true(rate > 0.93 * SLOW * 4);
    pace_free(p);
}

static void test_a_fast_link_loses_nothing(void **state)
{
    struct pace *p = pace_new(1024, FAST, MS / 5);

    (void)state;
    begin(p, 0);
    uint64_t took = copy_all(p);
    print_message("%.3f s, ideally %.3f\n", (double)took / 1e9, (double)ideal(p, p->size) / 1e9);
    assert_true(took < ideal(p, p->size) * 105 / 100);
    assert_int_equal(status(p).given_up, 0);
    pace_free(p);
}

static void test_a_limit_that_is_lifted_is_noticed(void **state)
{
    struct pace *p = pace_new(1024, SLOW, MS);

    (void)state;
    begin(p, 0);
    sim_run_for(p->sim, 4000 * MS);
    link_is(p, FAST, MS);
    p->links->window = 1000;
    sim_run_for(p->sim, 100 * MS);
    double rate = measure(p, 300);
    print_message("%.0f of %u bytes a second\n", rate, FAST);
    assert_true(rate > 0.7 * FAST);
    pace_free(p);
}

static void test_a_link_that_becomes_slow_is_noticed(void **state)
{
    struct pace *p = pace_new(2048, FAST, MS);

    (void)state;
    begin(p, 5 * MS);
    sim_run_for(p->sim, 200 * MS);
    link_is(p, SLOW, MS);
    p->links->window = 2;
    sim_run_for(p->sim, 2500 * MS); /* 0.8 s are queued, and have to be seen to be late */
    uint64_t stale = status(p).given_up, absent = status(p).chunks[XM_CHUNK_ABSENT];
    sim_run_for(p->sim, 5000 * MS);
    uint64_t copied = absent - status(p).chunks[XM_CHUNK_ABSENT];
    stale = status(p).given_up - stale;
    print_message("%llu of %llu chunks stale\n", (unsigned long long)stale, (unsigned long long)copied);
    assert_true(copied > 75);
    assert_true(stale <= copied * 4 / 100);
    pace_free(p);
}

static void test_a_longer_way_is_not_taken_for_a_queue_forever(void **state)
{
    struct pace *p = pace_new(2048, FAST, MS);

    (void)state;
    p->links->rate = SLOW * 8;
    begin(p, 0);
    sim_run_for(p->sim, 1000 * MS);
    link_is(p, SLOW * 8, 100 * MS);
    sim_run_for(p->sim, 12000 * MS);
    assert_false(xm_disk_in_step(p->disk));
    double rate = measure(p, 2000);
    print_message("%.0f of %u bytes a second\n", rate, SLOW * 8);
    assert_true(rate > 0.8 * SLOW * 8);
    pace_free(p);
}

static void test_sparse_chunks_do_not_starve_full_ones(void **state)
{
    struct pace *p = pace_new(1024, SLOW, 60 * MS);

    (void)state;
    p->links->window = 1000;
    for (uint64_t c = 0; c < 1024; c += 2)
        memset(p->source->data + c * CHUNK + PAGE, 0, CHUNK - PAGE);
    begin(p, 0);
    sim_run_for(p->sim, 2000 * MS);
    double rate = measure(p, 8000);
    print_message("%.0f of %u bytes a second\n", rate, SLOW);
    assert_true(rate > 0.85 * SLOW);
    pace_free(p);
}

static void test_holes_do_not_wait_for_each_other(void **state)
{
    struct pace *p = pace_new(1024, FAST, 100 * MS);

    (void)state;
    memset(p->source->data, 0, p->size);
    memset(p->source->hole, 1, p->size / PAGE);
    assert_int_equal(xm_disk_mirror_on(p->disk, p->replica, false, NULL), 0);
    uint64_t took = copy_all(p);
    print_message("%.2f s\n", (double)took / 1e9);
    assert_true(took < 600 * MS);
    pace_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_slow_link_wastes_nothing_and_does_not_hold_the_guest),
        cmocka_unit_test(test_a_long_round_trip_is_filled),
        cmocka_unit_test(test_a_slow_link_with_a_long_round_trip_is_filled_too),
        cmocka_unit_test(test_a_fast_link_loses_nothing),
        cmocka_unit_test(test_a_limit_that_is_lifted_is_noticed),
        cmocka_unit_test(test_a_link_that_becomes_slow_is_noticed),
        cmocka_unit_test(test_a_longer_way_is_not_taken_for_a_queue_forever),
        cmocka_unit_test(test_sparse_chunks_do_not_starve_full_ones),
        cmocka_unit_test(test_holes_do_not_wait_for_each_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
