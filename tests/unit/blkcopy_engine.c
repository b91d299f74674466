/* SPDX-License-Identifier: MIT */
/* The I/O engine: every test over every engine and, where it matters, over a file and a block device. */
#include "blkcopy/blkcopy.h"
#include "base/base.h"
#include "tests/unit/lib_disk.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB  (1u << 20)
#define SIZE (4u * MIB)

enum backing { NONE, ON_FILE, ON_LOOP };
struct variant {
    enum xm_engine_kind kind;
    enum backing on;
};

/* What a test works with; freed by teardown however the test ends. */
static struct rig {
    struct xm_engine *engine;
    struct xm_file file;
    struct xm_timer guard;
} rig;

static void guard_fired(struct xm_timer *t)
{
    (void)t;
    fail_msg("nothing happened for 20 s");
}

static void rig_open(void **state, unsigned depth)
{
    const struct variant *v = *state;
    struct xm_error e = {0};

    rig = (struct rig){.file.fd = -1};
    rig.engine = xm_engine_open(v->kind, depth, &e);
    if (!rig.engine && v->kind == XM_ENGINE_URING) {
        print_message("SKIPPED: %s\n", e.text);
        skip();
    }
    if (!rig.engine)
        fail_msg("%s", e.text);
    if (v->on == ON_FILE)
        assert_int_equal(xm_file_open(&rig.file, lib_path("disk"), XM_FILE_CREATE, SIZE, &e), 0);
    else if (v->on == ON_LOOP && xm_file_open(&rig.file, lib_loop("disk", SIZE), 0, 0, &e) < 0)
        fail_msg("%s", e.text);
    rig.guard.fire = guard_fired;
    xm_engine_timer_set(rig.engine, &rig.guard, xm_now() + LIMIT_HANG_NS);
}

static int teardown(void **state)
{
    if (rig.engine)
        xm_engine_free(rig.engine);
    if (rig.file.path)
        xm_file_close(&rig.file);
    rig = (struct rig){.file.fd = -1};
    return lib_disk_clean(state);
}

static void turn_until(const unsigned *counter, unsigned target)
{
    while (*counter < target)
        xm_engine_turn(rig.engine);
}

static void timer_fired(struct xm_timer *t)
{
    (void)t;
}

/* A turn that does not wait for anything. */
static void brief_turn(void)
{
    struct xm_timer now = {.fire = timer_fired};

    xm_engine_timer_set(rig.engine, &now, 0);
    xm_engine_turn(rig.engine);
    xm_engine_timer_cancel(rig.engine, &now);
}

/* ---- one request at a time ---- */

struct one {
    struct xm_io io;
    struct iovec iov;
    unsigned done;
    int res;
};

static void one_done(struct xm_io *io, int res)
{
    struct one *o = xm_container_of(io, struct one, io);
    o->res = res;
    o->done++;
}

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
    turn_until(&o.done, 1);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
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

    rig_open(state, 8);
    seed = 42;
    lanes_done = 0;
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i].base = (uint64_t)i * LANE_BYTES;
        lanes[i].mem = aligned(LANE_BYTES + 4096);
        lanes[i].shadow = calloc(1, LANE_BYTES);
        lanes[i].left = 60;
        lane_go(&lanes[i]);
    }
    turn_until(&lanes_done, LANES);
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

    rig_open(state, 8);
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
    turn_until(&many_done, count);
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

    rig_open(state, 64);
    brief_turn();
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
        turn_until(&o[i].done, 1);
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

    rig_open(state, 8);
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
    turn_until(&o.done, 1);
    assert_int_equal(o.res, 0);
    assert_memory_equal(in, out, PIECES * 512);
    free(iov);
    free(in);
    free(out);
}

/* ---- watches ---- */

struct seen {
    struct xm_watch watch;
    unsigned count;
    bool leave; /* unwatch within ready() */
};

static void seen_ready(struct xm_watch *w)
{
    struct seen *s = xm_container_of(w, struct seen, watch);
    s->count++;
    if (s->leave)
        xm_engine_unwatch(rig.engine, w);
}

static struct seen seen_on(int fd)
{
    return (struct seen){.watch = {.fd = fd, .ready = seen_ready}};
}

static void test_a_watch_fires_on_every_write(void **state)
{
    struct seen s = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));

    rig_open(state, 8);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    brief_turn();
    assert_int_equal(s.count, 0);
    for (unsigned i = 1; i <= 200; i++) {
        assert_int_equal(eventfd_write(s.watch.fd, 1), 0);
        turn_until(&s.count, i);
        assert_int_equal(s.count, i);
    }
    brief_turn();
    assert_int_equal(s.count, 200);
    xm_engine_unwatch(rig.engine, &s.watch);
    eventfd_write(s.watch.fd, 1);
    brief_turn();
    assert_int_equal(s.count, 200);
    close(s.watch.fd);
}

static void test_a_watch_fires_for_what_was_written_before(void **state)
{
    struct seen s = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));

    rig_open(state, 8);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    turn_until(&s.count, 1);
    xm_engine_unwatch(rig.engine, &s.watch);
    assert_int_equal(xm_engine_watch(rig.engine, &s.watch), 0);
    turn_until(&s.count, 2);
    xm_engine_unwatch(rig.engine, &s.watch);
    close(s.watch.fd);
}

static void test_watches_come_and_go(void **state)
{
    enum { MANY_WATCHES = 100 };
    struct seen *s = calloc(MANY_WATCHES, sizeof(*s));
    unsigned total = 0;

    rig_open(state, 8);
    for (unsigned i = 0; i < MANY_WATCHES; i++) {
        s[i] = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
        s[i].leave = i % 2;
        assert_int_equal(xm_engine_watch(rig.engine, &s[i].watch), 0);
    }
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MANY_WATCHES; i++)
            eventfd_write(s[i].watch.fd, 1);
        for (total = 0; total < (round + 2) * MANY_WATCHES / 2;) {
            xm_engine_turn(rig.engine);
            total = 0;
            for (unsigned i = 0; i < MANY_WATCHES; i++)
                total += s[i].count;
        }
    }
    /* Those that left have seen one write, and left once. */
    for (unsigned i = 0; i < MANY_WATCHES; i++) {
        assert_int_equal(s[i].count, i % 2 ? 1 : 3);
        xm_engine_unwatch(rig.engine, &s[i].watch);
        close(s[i].watch.fd);
    }
    struct seen bad = seen_on(-1);
    assert_int_equal(xm_engine_watch(rig.engine, &bad.watch), -EBADF);
    free(s);
}

/* Both are ready in one turn; the first to be called takes the other away. */
static struct seen pair[2];

static void pair_ready(struct xm_watch *w)
{
    struct seen *me = xm_container_of(w, struct seen, watch), *other = me == &pair[0] ? &pair[1] : &pair[0];
    me->count++;
    xm_engine_unwatch(rig.engine, &other->watch);
}

static void test_ready_is_not_called_after_unwatch(void **state)
{
    rig_open(state, 8);
    for (unsigned i = 0; i < 2; i++) {
        pair[i] = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
        pair[i].watch.ready = pair_ready;
        assert_int_equal(xm_engine_watch(rig.engine, &pair[i].watch), 0);
    }
    while (pair[0].count + pair[1].count == 0)
        xm_engine_turn(rig.engine);
    brief_turn();
    assert_int_equal(pair[0].count + pair[1].count, 1);
    for (unsigned i = 0; i < 2; i++) {
        xm_engine_unwatch(rig.engine, &pair[i].watch);
        close(pair[i].watch.fd);
    }
}

/* As above, and the one that is called puts a new watch in the other's place: the other's event is not for
 * it. */
static struct seen successor;

static void replace_ready(struct xm_watch *w)
{
    pair_ready(w);
    if (!successor.watch.active && successor.watch.fd >= 0)
        assert_int_equal(xm_engine_watch(rig.engine, &successor.watch), 0);
}

static void test_a_late_event_is_not_for_the_next_watch(void **state)
{
    rig_open(state, 8);
    successor = seen_on(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    for (unsigned i = 0; i < 2; i++) {
        pair[i] = seen_on(eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
        pair[i].watch.ready = replace_ready;
        assert_int_equal(xm_engine_watch(rig.engine, &pair[i].watch), 0);
    }
    while (pair[0].count + pair[1].count == 0)
        xm_engine_turn(rig.engine);
    brief_turn();
    assert_true(successor.watch.active);
    assert_int_equal(successor.count, 0);
    eventfd_write(successor.watch.fd, 1);
    turn_until(&successor.count, 1);
    xm_engine_unwatch(rig.engine, &successor.watch);
    close(successor.watch.fd);
    for (unsigned i = 0; i < 2; i++) {
        xm_engine_unwatch(rig.engine, &pair[i].watch);
        close(pair[i].watch.fd);
    }
}

/* ---- timers ---- */

struct tick {
    struct xm_timer timer;
    struct tick *cancels, *sets;
    unsigned count;
    char name;
};
static char order[64];

static void tick_fired(struct xm_timer *t)
{
    struct tick *k = xm_container_of(t, struct tick, timer);

    k->count++;
    if (strlen(order) + 1 < sizeof(order))
        order[strlen(order)] = k->name;
    if (k->cancels)
        xm_engine_timer_cancel(rig.engine, &k->cancels->timer);
    if (k->sets)
        xm_engine_timer_set(rig.engine, &k->sets->timer, 0);
}

static void test_timers_fire_in_order(void **state)
{
    struct tick k[5];
    uint64_t now = xm_now();

    rig_open(state, 8);
    memset(order, 0, sizeof(order));
    for (int i = 0; i < 5; i++)
        k[i] = (struct tick){.timer.fire = tick_fired, .name = (char)('a' + i)};
    xm_engine_timer_set(rig.engine, &k[3].timer, now + 9 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[0].timer, now + 3 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[1].timer, now + 3 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[4].timer, now + 1 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[2].timer, now + 5 * XM_NS_PER_MS);
    xm_engine_timer_set(rig.engine, &k[4].timer, now + 12 * XM_NS_PER_MS);
    turn_until(&k[4].count, 1);
    assert_true(xm_now() >= now + 12 * XM_NS_PER_MS);
    assert_string_equal(order, "abcde");
}

static void test_timers_cancel_and_set_each_other(void **state)
{
    struct tick a = {.timer.fire = tick_fired, .name = 'a'}, b = a, c = a;

    rig_open(state, 8);
    memset(order, 0, sizeof(order));
    b.name = 'b', c.name = 'c';
    a.sets = &a; /* always due: must not keep c from firing */
    a.cancels = &b;
    xm_engine_timer_set(rig.engine, &a.timer, 1);
    xm_engine_timer_set(rig.engine, &b.timer, 2);
    xm_engine_timer_set(rig.engine, &c.timer, 3);
    xm_engine_turn(rig.engine);
    assert_string_equal(order, "ac");
    xm_engine_turn(rig.engine);
    assert_string_equal(order, "aca");
    a.sets = NULL;
    turn_until(&a.count, 3);
    assert_false(a.timer.armed);
    assert_int_equal(b.count, 0);
}

/* ---- threads, hooks, choice ---- */

static bool stop;
static unsigned calls;

static void count_call(void *arg)
{
    (void)arg;
    calls++;
}

static void stop_call(void *arg)
{
    (void)arg;
    stop = true;
}

static void *owner(void *arg)
{
    sem_t *owned = arg;

    xm_engine_own(rig.engine);
    sem_post(owned);
    while (!stop)
        xm_engine_turn(rig.engine);
    return NULL;
}

static void test_mailbox_runs_on_the_owners_thread(void **state)
{
    pthread_t t;
    sem_t owned;

    rig_open(state, 8);
    stop = false;
    calls = 0;
    sem_init(&owned, 0, 0);
    assert_int_equal(pthread_create(&t, NULL, owner, &owned), 0);
    sem_wait(&owned);
    for (unsigned i = 0; i < 1000; i++)
        xm_mailbox_call(&rig.engine->mailbox, count_call, NULL);
    xm_mailbox_call(&rig.engine->mailbox, stop_call, NULL);
    pthread_join(t, NULL);
    assert_int_equal(calls, 1000);
    sem_destroy(&owned);
}

static struct one *late;

static void submit_late(struct xm_engine *e, void *ctx)
{
    (void)ctx;
    if (late) {
        xm_engine_submit(e, &late->io);
        late = NULL;
    }
}

static void test_before_wait_may_submit(void **state)
{
    struct one o = {.io = {.op = XM_IO_FLUSH, .file = &rig.file, .done = one_done}};
    struct one refused = {
        .io = {.op = XM_IO_READ, .file = &rig.file, .offset = 2ull * SIZE, .done = one_done}};

    rig_open(state, 8);
    rig.engine->before_wait = submit_late;
    late = &o;
    turn_until(&o.done, 1);
    late = &refused;
    turn_until(&refused.done, 1);
    assert_int_equal(refused.res, -EINVAL);
}

/* In a thread of its own: the filter stays until the thread ends. */
static void *open_without_uring(void *arg)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(code) / sizeof(*code), code};
    struct xm_engine **engines = arg;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        return (void *)(intptr_t)errno;
    engines[0] = xm_engine_open(XM_ENGINE_AUTO, 8, NULL);
    engines[1] = xm_engine_open(XM_ENGINE_URING, 8, NULL);
    return NULL;
}

static void test_auto_takes_libaio_where_io_uring_is_disabled(void **state)
{
    struct xm_engine *engines[2] = {NULL, NULL};
    pthread_t t;
    void *code;

    (void)state;
    assert_int_equal(pthread_create(&t, NULL, open_without_uring, engines), 0);
    pthread_join(t, &code);
    if (code) {
        print_message("SKIPPED: no seccomp filter can be set: %s\n", strerror((int)(intptr_t)code));
        skip();
    }
    assert_non_null(engines[0]);
    assert_string_equal(engines[0]->ops->name, "libaio");
    assert_null(engines[1]);
    xm_engine_free(engines[0]);
    struct xm_error e;
    assert_null(xm_engine_open(XM_ENGINE_AUTO, 0, &e));
}

static struct variant variants[] = {
    {XM_ENGINE_URING, NONE},  {XM_ENGINE_URING, ON_FILE},  {XM_ENGINE_URING, ON_LOOP},
    {XM_ENGINE_LIBAIO, NONE}, {XM_ENGINE_LIBAIO, ON_FILE}, {XM_ENGINE_LIBAIO, ON_LOOP},
};

/* The tests, each with the backings it is run over: bit 1 << enum backing. */
static const struct {
    const char *name;
    CMUnitTestFunction run;
    unsigned over;
} tests[] = {
#define T(name, over)                                                                                        \
    {                                                                                                        \
#name, test_##name, over                                                                             \
    }
    T(writes_and_reads_back, 1 << ON_FILE | 1 << ON_LOOP),
    T(bad_requests_are_refused, 1 << ON_FILE | 1 << ON_LOOP),
    T(a_shrunk_file_is_an_error, 1 << ON_FILE),
    T(zero_reads_zero_and_unmap_gives_space_back, 1 << ON_FILE | 1 << ON_LOOP),
    T(zeros_are_written_where_fallocate_cannot, 1 << ON_FILE | 1 << ON_LOOP),
    T(learns_what_a_file_system_cannot, 1 << NONE),
    T(a_full_file_system_is_an_error, 1 << NONE),
    T(random_requests_match_a_shadow, 1 << ON_FILE | 1 << ON_LOOP),
    T(ten_thousand_requests_at_depth_8, 1 << ON_FILE),
    T(a_request_of_three_thousand_pieces, 1 << ON_FILE | 1 << ON_LOOP),
    T(a_watch_fires_on_every_write, 1 << NONE),
    T(a_watch_fires_for_what_was_written_before, 1 << NONE),
    T(watches_come_and_go, 1 << NONE),
    T(ready_is_not_called_after_unwatch, 1 << NONE),
    T(a_late_event_is_not_for_the_next_watch, 1 << NONE),
    T(timers_fire_in_order, 1 << NONE),
    T(timers_cancel_and_set_each_other, 1 << NONE),
    T(mailbox_runs_on_the_owners_thread, 1 << NONE),
    T(before_wait_may_submit, 1 << ON_FILE),
#undef T
};
#define TESTS    (sizeof(tests) / sizeof(*tests))
#define VARIANTS (sizeof(variants) / sizeof(*variants))

int main(void)
{
    static struct CMUnitTest all[TESTS * VARIANTS + 2];
    static char names[TESTS * VARIANTS][120];
    static const char *const kinds[] = {"auto", "io_uring", "libaio"}, *const on[] = {"", ", file",
                                                                                      ", loop device"};
    unsigned n = 0;

    for (size_t t = 0; t < TESTS; t++) {
        for (size_t v = 0; v < VARIANTS; v++) {
            if (!(tests[t].over & 1u << variants[v].on))
                continue;
            snprintf(names[n], sizeof(names[n]), "%s (%s%s)", tests[t].name, kinds[variants[v].kind],
                     on[variants[v].on]);
            all[n] = (struct CMUnitTest){names[n], tests[t].run, NULL, teardown, &variants[v]};
            n++;
        }
    }
    all[n++] = (struct CMUnitTest)cmocka_unit_test_prestate_setup_teardown(
        test_many_requests_do_not_wait_for_the_turn, NULL, teardown, &variants[1]);
    all[n++] = (struct CMUnitTest)cmocka_unit_test(test_auto_takes_libaio_where_io_uring_is_disabled);
    return _cmocka_run_group_tests("blkcopy_engine", all, n, NULL, NULL);
}
