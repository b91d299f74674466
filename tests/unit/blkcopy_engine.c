/* SPDX-License-Identifier: MIT */
/* The I/O engine's requests: every test over every engine and, where it matters, over a file and a block
 * device. Watches, timers and threads: blkcopy_engine_events.c. */
#include "tests/unit/lib_engine.h"
#include "tests/progress.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- one request at a time ---- */

static int do_io(enum xm_io_op op, uint64_t offset, void *buf, uint64_t length, bool unmap)
{
    struct one o = {.iov = {buf, length}};

    o.io = (struct xm_io){.op = op,
                          .unmap = unmap,
                          .file = &rig.file,
                          .offset = offset,
                          .length = length,
                          .iov = &o.iov,
                          .iovcnt = 1,
                          .done = one_done};
    xm_engine_submit(rig.engine, &o.io);
    assert_int_equal(o.done, 0);
    engine_turn_until(&o.done, 1);
    assert_int_equal(o.done, 1);
    assert_int_equal(rig.engine->inflight, 0);
    return o.res;
}

static void *aligned(size_t len)
{
    void *p = aligned_alloc(4096, XM_ROUND_UP(len, 4096));
    assert_non_null(p);
    return p;
}

static void fill(char *buf, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        buf[i] = (char)(seed >> 56);
    }
}

static void test_writes_and_reads_back(void **state)
{
    char *out = aligned(MIB), *in = aligned(MIB);

    engine_rig_open(state, 8);
    fill(out, MIB, 1);
    assert_int_equal(do_io(XM_IO_WRITE, MIB, out, MIB, false), 0);
    assert_int_equal(do_io(XM_IO_FLUSH, 0, NULL, 0, false), 0);
    assert_int_equal(do_io(XM_IO_READ, MIB, in, MIB, false), 0);
    assert_memory_equal(in, out, MIB);
    assert_int_equal(do_io(XM_IO_READ, 0, in, MIB, false), 0);
    assert_true(xm_is_zero(in, MIB));
    free(out);
    free(in);
}

static void test_bad_requests_are_refused(void **state)
{
    char *buf = aligned(8192);

    engine_rig_open(state, 8);
    assert_int_equal(do_io(XM_IO_READ, SIZE - 512, buf, 1024, false), -EINVAL);
    assert_int_equal(do_io(XM_IO_READ, UINT64_MAX - 511, buf, 1024, false), -EINVAL);
    assert_int_equal(do_io(XM_IO_WRITE, SIZE, buf, 512, false), -EINVAL);
    assert_int_equal(do_io(XM_IO_ZERO, 0, NULL, SIZE + 512ull, false), -EINVAL);
    if (rig.file.direct) {
        assert_int_equal(do_io(XM_IO_WRITE, 100, buf, 512, false), -EINVAL);
        assert_int_equal(do_io(XM_IO_WRITE, 0, buf, 100, false), -EINVAL);
        assert_int_equal(do_io(XM_IO_ZERO, 512, NULL, 700, true), -EINVAL);
    }
    assert_int_equal(do_io((enum xm_io_op)17, 0, buf, 512, false), -EINVAL);
    assert_int_equal(do_io(XM_IO_READ, 0, buf, 0, false), 0);
    assert_int_equal(do_io(XM_IO_READ, SIZE, buf, 0, false), 0);
    rig.file.read_only = true;
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, 512, false), -EROFS);
    assert_int_equal(do_io(XM_IO_ZERO, 0, NULL, 512, false), -EROFS);
    rig.file.read_only = false;
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, 512, false), 0);
    free(buf);
}

static void test_a_shrunk_file_is_an_error(void **state)
{
    char *buf = aligned(8192);

    engine_rig_open(state, 8);
    assert_int_equal(ftruncate(rig.file.fd, SIZE - 4096), 0);
    assert_int_equal(do_io(XM_IO_READ, SIZE - 8192, buf, 8192, false), -EIO);
    free(buf);
}

static uint64_t blocks_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void test_zero_reads_zero_and_unmap_gives_space_back(void **state)
{
    const struct variant *v = *state;
    char *buf = aligned(SIZE);

    engine_rig_open(state, 8);
    const char *image = lib_path(v->on == ON_LOOP ? "disk.img" : "disk");
    fill(buf, SIZE, 3);
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, SIZE, false), 0);
    assert_int_equal(do_io(XM_IO_FLUSH, 0, NULL, 0, false), 0);
    uint64_t full = blocks_of(image);
    assert_true(full >= SIZE);
    assert_int_equal(do_io(XM_IO_ZERO, MIB, NULL, MIB, false), 0);
    assert_true(blocks_of(image) >= SIZE);
    assert_int_equal(do_io(XM_IO_ZERO, 2 * MIB, NULL, MIB, true), 0);
    assert_true(blocks_of(image) <= full - MIB);
    memset(buf + MIB, 0, 2 * MIB);
    char *in = aligned(SIZE);
    assert_int_equal(do_io(XM_IO_READ, 0, in, SIZE, false), 0);
    assert_memory_equal(in, buf, SIZE);
    free(in);
    free(buf);
}

static void test_zeros_are_written_where_fallocate_cannot(void **state)
{
    char *buf = aligned(SIZE);

    engine_rig_open(state, 8);
    fill(buf, SIZE, 4);
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, SIZE, false), 0);
    rig.file.no_punch = rig.file.no_zero_range = true;
    assert_int_equal(do_io(XM_IO_ZERO, 512, NULL, SIZE - 1024, true), 0);
    memset(buf + 512, 0, SIZE - 1024);
    char *in = aligned(SIZE);
    assert_int_equal(do_io(XM_IO_READ, 0, in, SIZE, false), 0);
    assert_memory_equal(in, buf, SIZE);
    free(in);
    free(buf);
}

/* tmpfs has no ZERO_RANGE: that is learnt once. */
static void test_learns_what_a_file_system_cannot(void **state)
{
    char *buf = aligned(MIB);

    engine_rig_open(state, 8);
    lib_tmpfs("ram", 2 * MIB);
    assert_int_equal(xm_file_open(&rig.file, lib_path("ram/disk"), XM_FILE_CREATE, MIB, NULL), 0);
    fill(buf, MIB, 5);
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, MIB, false), 0);
    assert_int_equal(do_io(XM_IO_ZERO, 0, NULL, MIB, false), 0);
    assert_true(rig.file.no_zero_range);
    assert_false(rig.file.no_punch);
    assert_int_equal(do_io(XM_IO_READ, 0, buf, MIB, false), 0);
    assert_true(xm_is_zero(buf, MIB));
    free(buf);
}

static void test_a_full_file_system_is_an_error(void **state)
{
    char *buf = aligned(2 * MIB);
    int res = 0;

    engine_rig_open(state, 8);
    lib_tmpfs("full", MIB);
    assert_int_equal(xm_file_open(&rig.file, lib_path("full/disk"), XM_FILE_CREATE, SIZE, NULL), 0);
    fill(buf, 2 * MIB, 6);
    for (uint64_t at = 0; at < SIZE && res == 0; at += 2 * MIB)
        res = do_io(XM_IO_WRITE, at, buf, 2 * MIB, false);
    assert_int_equal(res, -ENOSPC);
    assert_int_equal(do_io(XM_IO_READ, 0, buf, 4096, false), 0);
    assert_int_equal(do_io(XM_IO_ZERO, 0, NULL, SIZE, true), 0);
    assert_int_equal(do_io(XM_IO_WRITE, 0, buf, 4096, false), 0);
    free(buf);
}

/* ---- many requests ---- */

#define LANES      24
#define LANE_BYTES (SIZE / LANES / 4096 * 4096)

/* One lane: a part of the disk with its shadow, and one request at a time in it. */
struct lane {
    struct xm_io io;
    struct iovec iov[5];
    char *mem;    /* what the iovec points into, with room for odd alignment */
    char *shadow; /* what the lane holds */
    uint64_t base;
    unsigned left;
};
static unsigned long long seed;
static unsigned lanes_done;

static uint64_t pick(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

static void lane_check(struct lane *l)
{
    uint64_t at = l->io.offset - l->base;

    for (int i = 0; i < l->io.iovcnt; i++) {
        assert_memory_equal(l->io.iov[i].iov_base, l->shadow + at, l->io.iov[i].iov_len);
        at += l->io.iov[i].iov_len;
    }
}

static void lane_go(struct lane *l);

static void lane_done(struct xm_io *io, int res)
{
    struct lane *l = xm_container_of(io, struct lane, io);

    assert_int_equal(res, 0);
    if (io->op == XM_IO_READ)
        lane_check(l);
    if (l->left--)
        lane_go(l);
    else
        lanes_done++;
}

/* Reads at any offset; writes by sectors; each from up to five pieces of memory, aligned or odd. */
static void lane_go(struct lane *l)
{
    static const enum xm_io_op ops[] = {XM_IO_READ,  XM_IO_READ, XM_IO_WRITE, XM_IO_WRITE,
                                        XM_IO_WRITE, XM_IO_ZERO, XM_IO_FLUSH};
    enum xm_io_op op = ops[pick(sizeof(ops) / sizeof(*ops))];
    uint64_t unit = op == XM_IO_READ && pick(2) ? 1 : 512;
    uint64_t length = (1 + pick(pick(4) ? 8192 / unit : LANE_BYTES / unit)) * unit;
    uint64_t at = pick((LANE_BYTES - length) / unit + 1) * unit, cut = length;
    char *mem = l->mem + (pick(2) ? 0 : pick(4096));

    l->io = (struct xm_io){.op = op,
                           .unmap = pick(2),
                           .file = &rig.file,
                           .offset = l->base + at,
                           .length = length,
                           .iov = l->iov,
                           .done = lane_done};
    uint64_t piece_unit = pick(2) ? 512 : 1;
    while (l->io.iovcnt < 4 && cut >= 2 * piece_unit && pick(3)) {
        uint64_t piece = (1 + pick(cut / piece_unit - 1)) * piece_unit;
        l->iov[l->io.iovcnt++] = (struct iovec){mem, piece};
        mem += piece;
        cut -= piece;
    }
    l->iov[l->io.iovcnt++] = (struct iovec){mem, cut};
    if (op == XM_IO_WRITE) {
        fill(l->iov[0].iov_base, length, seed);
        memcpy(l->shadow + at, l->iov[0].iov_base, length);
    } else if (op == XM_IO_ZERO) {
        memset(l->shadow + at, 0, length);
    }
    xm_engine_submit(rig.engine, &l->io);
}

static void test_random_requests_match_a_shadow(void **state)
{
    struct lane *lanes = calloc(LANES, sizeof(*lanes));

    engine_rig_open(state, 8);
    seed = 42;
    lanes_done = 0;
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i].base = (uint64_t)i * LANE_BYTES;
        lanes[i].mem = aligned(LANE_BYTES + 4096);
        lanes[i].shadow = calloc(1, LANE_BYTES);
        lanes[i].left = 60;
        lane_go(&lanes[i]);
    }
    engine_turn_until(&lanes_done, LANES);
    char *in = aligned(SIZE);
    assert_int_equal(do_io(XM_IO_READ, 0, in, SIZE, false), 0);
    for (unsigned i = 0; i < LANES; i++) {
        assert_memory_equal(in + lanes[i].base, lanes[i].shadow, LANE_BYTES);
        free(lanes[i].mem);
        free(lanes[i].shadow);
    }
    free(lanes);
    free(in);
}

static unsigned many_done;

static void many_one_done(struct xm_io *io, int res)
{
    (void)io;
    assert_int_equal(res, 0);
    many_done++;
}

static void test_ten_thousand_requests_at_depth_8(void **state)
{
    const unsigned count = 10000;
    struct xm_io *ios = calloc(count, sizeof(*ios));
    struct iovec iov = {aligned(512), 512};

    engine_rig_open(state, 8);
    many_done = 0;
    for (unsigned i = 0; i < count; i++) {
        ios[i] = (struct xm_io){.op = XM_IO_READ,
                                .file = &rig.file,
                                .offset = i % 8192 * 512ull,
                                .length = 512,
                                .iov = &iov,
                                .iovcnt = 1,
                                .done = many_one_done};
        xm_engine_submit(rig.engine, &ios[i]);
    }
    assert_int_equal(rig.engine->inflight, count);
    engine_turn_until(&many_done, count);
    assert_int_equal(rig.engine->inflight, 0);
    free(iov.iov_base);
    free(ios);
}

/* io_uring only: the disk has something to do while the rest is being made ready. */
static void test_many_requests_do_not_wait_for_the_turn(void **state)
{
    enum { COUNT = 8 };
    struct one o[COUNT] = {0};
    char *out = aligned(COUNT * 512), *in = aligned(COUNT * 512);

    engine_rig_open(state, 64);
    engine_brief_turn();
    fill(out, COUNT * 512, 5);
    for (unsigned i = 0; i < COUNT; i++) {
        o[i].iov = (struct iovec){out + i * 512, 512};
        o[i].io = (struct xm_io){.op = XM_IO_WRITE,
                                 .file = &rig.file,
                                 .offset = i * 512ull,
                                 .length = 512,
                                 .iov = &o[i].iov,
                                 .iovcnt = 1,
                                 .done = one_done};
        xm_engine_submit(rig.engine, &o[i].io);
    }
    struct limit l = limit_start(10);
    do {
        assert_int_equal(pread(rig.file.fd, in, COUNT * 512, 0), COUNT * 512);
    } while (memcmp(in, out, COUNT * 512) && !limit_over(&l));
    assert_memory_equal(in, out, COUNT * 512);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(o[i].done, 0); /* that is for a turn */
    for (unsigned i = 0; i < COUNT; i++) {
        engine_turn_until(&o[i].done, 1);
        assert_int_equal(o[i].res, 0);
    }
    free(out);
    free(in);
}

/* More pieces than the kernel takes in one call: the rest is another call, from the middle of an element if
 * need be. */
static void test_a_request_of_three_thousand_pieces(void **state)
{
    enum { PIECES = 3000 };
    struct iovec *iov = calloc(PIECES, sizeof(*iov));
    char *out = aligned(PIECES * 512), *in = aligned(PIECES * 512);
    struct one o = {0};

    engine_rig_open(state, 8);
    fill(out, PIECES * 512, 9);
    assert_int_equal(do_io(XM_IO_WRITE, 0, out, PIECES * 512, false), 0);
    for (int i = 0; i < PIECES; i++)
        iov[i] = (struct iovec){in + i * 512, 512};
    o.io = (struct xm_io){.op = XM_IO_READ,
                          .file = &rig.file,
                          .length = PIECES * 512,
                          .iov = iov,
                          .iovcnt = PIECES,
                          .done = one_done};
    xm_engine_submit(rig.engine, &o.io);
    engine_turn_until(&o.done, 1);
    assert_int_equal(o.res, 0);
    assert_memory_equal(in, out, PIECES * 512);
    free(iov);
    free(in);
    free(out);
}

static const struct engine_test tests[] = {
    ENGINE_TEST(writes_and_reads_back, 1 << ON_FILE | 1 << ON_LOOP),
    ENGINE_TEST(bad_requests_are_refused, 1 << ON_FILE | 1 << ON_LOOP),
    ENGINE_TEST(a_shrunk_file_is_an_error, 1 << ON_FILE),
    ENGINE_TEST(zero_reads_zero_and_unmap_gives_space_back, 1 << ON_FILE | 1 << ON_LOOP),
    ENGINE_TEST(zeros_are_written_where_fallocate_cannot, 1 << ON_FILE | 1 << ON_LOOP),
    ENGINE_TEST(learns_what_a_file_system_cannot, 1 << NONE),
    ENGINE_TEST(a_full_file_system_is_an_error, 1 << NONE),
    ENGINE_TEST(random_requests_match_a_shadow, 1 << ON_FILE | 1 << ON_LOOP),
    ENGINE_TEST(ten_thousand_requests_at_depth_8, 1 << ON_FILE),
    ENGINE_TEST(a_request_of_three_thousand_pieces, 1 << ON_FILE | 1 << ON_LOOP),
};

int main(void)
{
    struct CMUnitTest uring = cmocka_unit_test_prestate_setup_teardown(
        test_many_requests_do_not_wait_for_the_turn, NULL, engine_teardown, (void *)&engine_uring_on_file);
    return engine_tests_run("blkcopy_engine", tests, sizeof(tests) / sizeof(*tests), &uring);
}
