/* SPDX-License-Identifier: MIT */
/* The writer and both replicas: order, duplicates, errors, what breaks the rules. */
#include "lib_sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <cmocka.h>

#define SIZE (4u << 20)

struct fixture {
    struct sim *sim;
    struct sim_disk *disk;
    struct xm_writer *w;
    struct xm_wreq *all[64];
    unsigned count;
};

struct sent {
    struct xm_wreq r;
    uint8_t payload[4096];
    bool done;
    int status;
    uint8_t reply[64];
    uint32_t reply_len;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    f->sim = sim_new(7);
    f->disk = sim_disk_new(f->sim, SIZE);
    f->w = xm_writer_new(&f->sim->engine, &f->disk->file, NULL);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    xm_writer_free(f->w);
    sim_disk_free(f->disk);
    sim_free(f->sim);
    for (unsigned i = 0; i < f->count; i++)
        free(xm_container_of(f->all[i], struct sent, r));
    free(f);
    return 0;
}

static void done(struct xm_wreq *r, int status, const void *reply, uint32_t reply_len)
{
    struct sent *s = xm_container_of(r, struct sent, r);

    assert_false(s->done);
    s->done = true;
    s->status = status;
    s->reply_len = reply_len;
    if (reply_len)
        memcpy(s->reply, reply, reply_len);
}

static struct sent *make(struct fixture *f, uint8_t type)
{
    struct sent *s = calloc(1, sizeof *s);

    f->all[f->count++] = &s->r;
    s->r.hdr.type = type;
    s->r.payload = s->payload;
    s->r.done = done;
    return s;
}

static struct sent *data(struct fixture *f, uint64_t seq, uint64_t after, uint64_t offset, int byte)
{
    struct sent *s = make(f, XM_FRAME_DISK_DATA);

    memset(s->payload, byte, sizeof s->payload);
    s->r.hdr.length = sizeof s->payload;
    s->r.hdr.offset = offset;
    s->r.hdr.seq = seq;
    s->r.hdr.after = after;
    xm_writer_submit(f->w, &s->r);
    return s;
}

static struct sent *other(struct fixture *f, uint8_t type, uint64_t offset, uint64_t extent)
{
    struct sent *s = make(f, type);

    s->r.hdr.offset = offset;
    s->r.hdr.extent = extent;
    xm_writer_submit(f->w, &s->r);
    return s;
}

static void run(struct fixture *f)
{
    static const bool never = false;

    sim_run_until(f->sim, &never, 100000);
}

static void test_successor_waits_though_it_came_first(void **state)
{
    struct fixture *f = *state;
    struct sent *second = data(f, 2, 1, 0, 2);

    run(f);
    assert_false(second->done);
    assert_int_equal(f->disk->writes, 0);
    struct sent *first = data(f, 1, 0, 0, 1);
    run(f);
    assert_true(first->done && second->done);
    assert_int_equal(f->disk->data[0], 2);
}

static void test_chain_of_many_in_any_order(void **state)
{
    struct fixture *f = *state;
    static const uint64_t order[] = {5, 3, 1, 8, 2, 7, 4, 6};

    for (unsigned i = 0; i < 8; i++)
        data(f, order[i], order[i] - 1, 0, (int)order[i]);
    run(f);
    assert_int_equal(f->disk->data[100], 8);
    assert_int_equal(xm_writer_pending(f->w), 0);
}

static void test_other_chunks_pass(void **state)
{
    struct fixture *f = *state;
    struct sent *waits = data(f, 2, 1, 0, 2), *passes = data(f, 3, 0, 1 << 20, 3);

    run(f);
    assert_true(passes->done);
    assert_false(waits->done);
    data(f, 1, 0, 0, 1);
    run(f);
    assert_true(waits->done);
}

static void test_duplicate_of_done_is_answered_and_not_applied(void **state)
{
    struct fixture *f = *state;
    struct xm_digest once, twice;

    data(f, 1, 0, 0, 1);
    run(f);
    data(f, 2, 0, 0, 2);
    run(f);
    xm_writer_digest(f->w, &once);
    struct sent *dup = data(f, 1, 0, 0, 1);
    run(f);
    xm_writer_digest(f->w, &twice);
    assert_true(dup->done && dup->status == 0);
    assert_int_equal(f->disk->data[0], 2);
    assert_true(xm_digest_equal(&once, &twice));
    assert_int_equal(once.frames, 2);
}

static bool hold(struct sim_disk *d, struct xm_io *io)
{
    (void)d;
    (void)io;
    return true;
}

static void test_duplicates_of_flying_and_held_are_answered_with_them(void **state)
{
    struct fixture *f = *state;

    f->disk->gate = hold;
    struct sent *first = data(f, 1, 0, 0, 1), *second = data(f, 2, 1, 0, 2);
    struct sent *dup1 = data(f, 1, 0, 0, 1), *dup2 = data(f, 2, 1, 0, 2), *dup3 = data(f, 2, 1, 0, 2);
    run(f);
    assert_false(first->done || second->done || dup1->done || dup2->done || dup3->done);
    f->disk->gate = NULL;
    sim_disk_go(f->disk);
    run(f);
    assert_true(first->done && second->done && dup1->done && dup2->done && dup3->done);
    assert_int_equal(f->disk->writes, 2);
}

static void test_failed_has_passed_and_its_duplicate_fails_too(void **state)
{
    struct fixture *f = *state;
    struct xm_digest d;

    f->disk->write_errors = 1000;
    struct sent *first = data(f, 1, 0, 0, 1);
    run(f);
    assert_int_equal(first->status, -EIO);
    f->disk->write_errors = 0;
    struct sent *second = data(f, 2, 1, 0, 2), *dup = data(f, 1, 0, 0, 1);
    run(f);
    assert_int_equal(second->status, 0);
    assert_int_equal(dup->status, -EIO);
    xm_writer_digest(f->w, &d);
    assert_int_equal(d.frames, 1);
}

static void test_beyond_the_window_is_refused(void **state)
{
    struct fixture *f = *state;
    struct sent *last = data(f, XM_WRITER_WINDOW, 0, 0, 1), *far = data(f, XM_WRITER_WINDOW + 1, 0, 0, 2);
    struct sent *none = data(f, 0, 0, 0, 3), *later = data(f, 5, 6, 0, 4), *itself = data(f, 5, 5, 0, 4);

    run(f);
    assert_int_equal(last->status, 0);
    assert_int_equal(far->status, -EPROTO);
    assert_int_equal(none->status, -EPROTO);
    assert_int_equal(later->status, -EPROTO);
    assert_int_equal(itself->status, -EPROTO);
    assert_int_equal(f->disk->writes, 1);
}

static void test_late_duplicate_after_the_window_went_round(void **state)
{
    struct fixture *f = *state;

    for (uint64_t seq = 1; seq <= XM_WRITER_WINDOW + 10; seq++) {
        struct sent *s = data(f, seq, 0, 4096, (int)seq);
        run(f);
        assert_int_equal(s->status, 0);
        f->count--;
        free(s);
    }
    struct sent *old = data(f, 5, 0, 0, 77), *known = data(f, 11, 0, 0, 77);
    run(f);
    assert_int_equal(old->status, -EPROTO);
    assert_int_equal(known->status, 0);
    assert_int_equal(f->disk->data[0], 0);
}

static void test_outside_the_disk_is_refused_and_has_passed(void **state)
{
    struct fixture *f = *state;
    struct sent *out = data(f, 1, 0, SIZE - 512, 1), *wrap = data(f, 2, 0, UINT64_MAX - 511, 1);
    struct sent *zero = other(f, XM_FRAME_DISK_HASH, 4096, UINT64_MAX), *next = data(f, 3, 2, 0, 9);

    run(f);
    assert_int_equal(out->status, -EINVAL);
    assert_int_equal(wrap->status, -EINVAL);
    assert_int_equal(zero->status, -EINVAL);
    assert_int_equal(next->status, 0);
    assert_int_equal(f->disk->data[0], 9);
}

static void test_zero_gives_space_back_only_with_the_flag(void **state)
{
    struct fixture *f = *state;
    struct sent *s;

    memset(f->disk->data, 5, SIZE);
    for (unsigned i = 0; i < 2; i++) {
        s = make(f, XM_FRAME_DISK_ZERO);
        s->r.hdr.flags = i ? XM_FLAG_UNMAP : 0;
        s->r.hdr.offset = i * 65536;
        s->r.hdr.extent = 65536;
        s->r.hdr.seq = i + 1;
        xm_writer_submit(f->w, &s->r);
    }
    run(f);
    assert_int_equal(f->disk->data[0], 0);
    assert_int_equal(f->disk->data[131071], 0);
    assert_int_equal(f->disk->data[131072], 5);
    assert_false(f->disk->hole[0]);
    assert_true(f->disk->hole[16]);
}

static void test_flush_waits_for_what_was_flying(void **state)
{
    struct fixture *f = *state;

    f->disk->gate = hold;
    data(f, 1, 0, 0, 1);
    struct sent *flush = other(f, XM_FRAME_DISK_FLUSH, 0, 0);
    run(f);
    assert_int_equal(f->disk->flushes, 0);
    f->disk->gate = NULL;
    struct sent *held = data(f, 3, 2, 4096, 1); /* not flying: the flush does not wait for it */
    sim_disk_go(f->disk);
    run(f);
    assert_true(flush->done && flush->status == 0);
    assert_int_equal(f->disk->flushes, 1);
    assert_int_equal(f->disk->unflushed, 0);
    assert_false(held->done);
    data(f, 2, 0, 4096, 1);
    run(f);
}

static void test_hash_is_of_what_is_on_the_disk(void **state)
{
    struct fixture *f = *state;
    XXH128_canonical_t want;

    for (unsigned i = 0; i < SIZE; i++)
        f->disk->data[i] = (uint8_t)(i * 7 + i / 4096);
    struct sent *a = other(f, XM_FRAME_DISK_HASH, 512, 3u << 20), *b = other(f, XM_FRAME_DISK_HASH, 0, 4096);
    run(f);
    XXH128_canonicalFromHash(&want, XXH3_128bits(f->disk->data + 512, 3u << 20));
    assert_int_equal(a->reply_len, 16);
    assert_memory_equal(a->reply, &want, 16);
    XXH128_canonicalFromHash(&want, XXH3_128bits(f->disk->data, 4096));
    assert_memory_equal(b->reply, &want, 16);
    f->disk->read_errors = 1000;
    struct sent *c = other(f, XM_FRAME_DISK_HASH, 0, 4096);
    run(f);
    assert_int_equal(c->status, -EIO);
}

static void test_digest_is_answered(void **state)
{
    struct fixture *f = *state;
    struct xm_digest want;

    data(f, 1, 0, 0, 1);
    run(f);
    struct sent *s = other(f, XM_FRAME_DISK_DIGEST, 0, 0);
    xm_writer_digest(f->w, &want);
    assert_int_equal(s->reply_len, sizeof want);
    assert_memory_equal(s->reply, &want, sizeof want);
    assert_int_equal(want.frames, 1);
}

static void test_cancel_ends_what_waits(void **state)
{
    struct fixture *f = *state;

    f->disk->gate = hold;
    struct sent *flying = data(f, 1, 0, 0, 1), *held = data(f, 3, 2, 0, 3), *dup = data(f, 3, 2, 0, 3);
    xm_writer_cancel(f->w);
    assert_int_equal(held->status, -ECANCELED);
    assert_int_equal(dup->status, -ECANCELED);
    assert_false(flying->done);
    sim_disk_go(f->disk);
    run(f);
    assert_int_equal(flying->status, 0);
    assert_int_equal(data(f, 2, 0, 0, 2)->status, -ECANCELED);
    assert_int_equal(xm_writer_pending(f->w), 0);
}

/* ---- replicas ---- */

struct piece {
    struct xm_rreq r;
    bool done;
    int status;
};

static void piece_done(struct xm_rreq *r, int status)
{
    struct piece *p = xm_container_of(r, struct piece, r);

    p->done = true;
    p->status = status;
}

static void test_replica_keeps_the_window(void **state)
{
    struct fixture *f = *state;
    enum { MANY = XM_WRITER_WINDOW + 100 };
    struct piece *p = calloc(MANY, sizeof *p);
    static uint8_t buf[512];
    struct xm_digest here, there;
    struct xm_replica *near = xm_replica_near(&f->sim->engine, f->w, 1 << 20);

    f->disk->gate = hold;
    for (unsigned i = 0; i < MANY; i++) {
        p[i].r = (struct xm_rreq){
            .op = XM_IO_WRITE, .offset = i % 4096 * 512, .length = 512, .buf = buf, .done = piece_done};
        xm_replica_submit(near, &p[i].r);
    }
    run(f);
    assert_int_equal(xm_writer_pending(f->w), XM_WRITER_WINDOW);
    assert_int_equal(xm_replica_pending(near), MANY);
    f->disk->gate = NULL;
    sim_disk_go(f->disk);
    while (xm_replica_pending(near) > 0)
        run(f);
    for (unsigned i = 0; i < MANY; i++)
        assert_true(p[i].done && p[i].status == 0);
    xm_replica_digest(near, &here);
    xm_writer_digest(f->w, &there);
    assert_true(xm_digest_equal(&here, &there));
    assert_int_equal(here.frames, MANY);
    xm_replica_free(near);
    free(p);
}

static void test_lost_transport_ends_the_replica(void **state)
{
    struct fixture *f = *state;
    struct sim_links *links = sim_links_new(f->sim, f->w, 2);
    struct xm_replica *far = xm_replica_far(&f->sim->engine, &links->transport, 0, 1 << 20);
    static uint8_t buf[512];
    struct piece p[2] = {0};

    for (unsigned i = 0; i < 2; i++)
        p[i].r = (struct xm_rreq){.op = XM_IO_WRITE, .length = 512, .buf = buf, .done = piece_done};
    xm_replica_submit(far, &p[0].r);
    sim_links_kill(links, -ENOLINK);
    run(f);
    assert_int_equal(p[0].status, -ENOLINK);
    /* Nothing could be put in order behind what may or may not have been applied. */
    links->dead = 0;
    xm_replica_submit(far, &p[1].r);
    assert_false(p[1].done);
    run(f);
    assert_int_equal(p[1].status, -ENOLINK);
    xm_replica_free(far);
    sim_links_free(links);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_successor_waits_though_it_came_first),
        T(test_chain_of_many_in_any_order),
        T(test_other_chunks_pass),
        T(test_duplicate_of_done_is_answered_and_not_applied),
        T(test_duplicates_of_flying_and_held_are_answered_with_them),
        T(test_failed_has_passed_and_its_duplicate_fails_too),
        T(test_beyond_the_window_is_refused),
        T(test_late_duplicate_after_the_window_went_round),
        T(test_outside_the_disk_is_refused_and_has_passed),
        T(test_zero_gives_space_back_only_with_the_flag),
        T(test_flush_waits_for_what_was_flying),
        T(test_hash_is_of_what_is_on_the_disk),
        T(test_digest_is_answered),
        T(test_cancel_ends_what_waits),
        T(test_replica_keeps_the_window),
        T(test_lost_transport_ends_the_replica),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
