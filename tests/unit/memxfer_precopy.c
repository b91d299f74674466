/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_precopy.c: rounds from a process that keeps writing, over a wire that delays, reorders
 * and repeats, into a receiving side that was not empty: at the end both memories are the same. */
#include "memxfer/memxfer.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/unit/lib_ramwire.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB (1u << 20)

struct world {
    struct ramchild child;
    struct xm_ram from, to;
    int to_fd;
    struct xm_ramsink *sink;
    struct ramwire wire;
    bool wired;
    struct xm_precopy *precopy;
};
static struct world w;

static void begin(uint64_t size, void (*body)(struct ramchild *), uint64_t seed)
{
    struct xm_error e = {0};

    memset(&w, 0, sizeof w);
    w.to_fd = -1;
    ramchild_start(&w.child, size, -1, body, seed);
    w.from.pid = w.child.pid;
    assert_int_equal(xm_ram_add(&w.from, "ram", w.child.memfd, atomic_load(&w.child.page->va), &e), 0);
    w.to_fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(w.to_fd, (off_t)size), 0);
    assert_int_equal(xm_ram_add(&w.to, "ram", w.to_fd, 0, &e), 0);
    w.sink = xm_ramsink_new(&w.to, &e);
    assert_non_null(w.sink);
    ramwire_start(&w.wire, w.sink, seed);
    w.wired = true;
    w.precopy = xm_precopy_new(&w.from, &w.wire.transport, &e);
    if (!w.precopy)
        fail_msg("%s", e.text);
}

static int teardown(void **state)
{
    (void)state;
    xm_precopy_free(w.precopy);
    if (w.wired)
        ramwire_stop(&w.wire);
    xm_ramsink_free(w.sink);
    ramchild_kill(&w.child);
    xm_ram_close(&w.from);
    xm_ram_close(&w.to);
    if (w.to_fd >= 0)
        close(w.to_fd);
    memset(&w, 0, sizeof w);
    w.to_fd = -1;
    return 0;
}

static struct xm_round run_round(bool final)
{
    struct xm_error e = {0};
    struct xm_round r;

    if (xm_precopy_round(w.precopy, final, NULL, NULL, &r, &e) < 0)
        fail_msg("%s", e.text);
    return r;
}

static void same_on_both_sides(uint64_t seed)
{
    const uint8_t *a = w.from.block[0].map, *b = w.to.block[0].map;
    struct xm_digest sent, applied;

    for (uint64_t p = 0; p < w.from.block[0].size / XM_PAGE; p++) {
        if (memcmp(a + p * XM_PAGE, b + p * XM_PAGE, XM_PAGE))
            fail_msg("seed %llu: page %llu differs", (unsigned long long)seed, (unsigned long long)p);
    }
    xm_precopy_digest(w.precopy, &sent);
    ramwire_digest(&w.wire, &applied);
    assert_true(sent.frames > 0);
    assert_true(xm_digest_equal(&sent, &applied));
    assert_int_equal(atomic_load(&w.wire.refused), 0);
}

/* ---- random ---- */

/* Writes numbers, zeroes pages, writes runs, by a hot and a cold part of memory. */
static void write_all_kinds(struct ramchild *c)
{
    uint64_t pages = c->size / XM_PAGE, hot = 1 + ramchild_random(c) % pages, n = 0;

    while (ramchild_gate(c)) {
        uint64_t r = ramchild_random(c), page = r % (r & 1 ? pages : hot);
        uint8_t *p = c->ram + page * XM_PAGE;
        switch ((r >> 32) % 8) {
        case 0:
            memset(p, 0, XM_PAGE);
            break;
        case 1:
            for (uint64_t k = 0; k < 70 && page + k < pages; k++)
                p[k * XM_PAGE + k] = (uint8_t)r;
            break;
        default:
            *(uint64_t *)(void *)(p + (r >> 40) % 512 * 8) = ++n;
        }
        if (n % 16 == 0)
            usleep(20);
    }
}

/* Like a block driver that reads disks into guest memory: writes through our own mapping, then marks. */
struct driver {
    pthread_t thread;
    atomic_bool stop;
    uint64_t seed;
};

static void *drive(void *arg)
{
    struct driver *d = arg;
    const struct xm_ram_block *b = &w.from.block[0];
    struct xm_bitmap *wrote = xm_ram_bitmap(&w.from, w.child.memfd);

    for (uint64_t n = 1; !atomic_load(&d->stop); n++) {
        d->seed = d->seed * 6364136223846793005ull + 1;
        uint64_t page = (d->seed >> 33) % (b->size / XM_PAGE);
        memcpy(b->map + page * XM_PAGE + 2048 + (d->seed >> 20) % 256 * 8, &n, 8);
        xm_bitmap_set(wrote, page, 1);
        if (n % 8 == 0)
            usleep(30);
    }
    return NULL;
}

/* The last round has ended, or could not in its time; the guest goes on, and who has loaded something
 * there has written to its memory. */
static void a_switch_that_is_given_up(uint64_t seed)
{
    struct xm_error e = {0};
    struct xm_round r;

    ramchild_pause(&w.child, true);
    xm_precopy_deadline(w.precopy, xm_now() + seed % 7 * 50000);
    int late = xm_precopy_round(w.precopy, true, NULL, NULL, &r, &e);
    assert_true(late == 0 || late == -ETIMEDOUT);
    ramchild_pause(&w.child, false);
    if (xm_precopy_again(w.precopy, NULL, NULL, &e) < 0)
        fail_msg("%s", e.text);
    for (uint64_t p = seed % 5; p < w.to.block[0].size / XM_PAGE; p += 1 + seed % 13)
        memset(w.to.block[0].map + p * XM_PAGE, 0x3c, 200);
    run_round(false);
    run_round(false);
}

static void one_migration(uint64_t seed)
{
    struct driver d = {.seed = seed};
    uint64_t size = (1 + seed % 4) * MIB;

    begin(size, write_all_kinds, seed);
    w.wire.max_delay_us = seed % 3 ? 200 : 0;
    w.wire.duplicate_percent = seed % 2 ? 20 : 0;
    /* The destination's firmware was there before us. */
    for (uint64_t p = seed % 7; p < size / XM_PAGE; p += 1 + seed % 11)
        memset(w.to.block[0].map + p * XM_PAGE, 0xf0, 100);
    if (seed % 5 == 0)
        xm_ramsink_populate(w.sink);
    if (seed % 3 == 0) {
        run_round(false);
        a_switch_that_is_given_up(seed);
    }
    assert_int_equal(pthread_create(&d.thread, NULL, drive, &d), 0);
    for (unsigned i = 0; i < 1 + seed % 4; i++)
        run_round(false);
    ramchild_pause(&w.child, true);
    atomic_store(&d.stop, true);
    pthread_join(d.thread, NULL);
    run_round(true);
    same_on_both_sides(seed);
    ramwire_stop(&w.wire); /* second copies that are later than all */
    w.wired = false;
    same_on_both_sides(seed);
    ramchild_end(&w.child);
    teardown(NULL);
}

static void random_migrations_end_equal(void **state)
{
    (void)state;
    const char *only = getenv("SEED");
    ramchild_need_tracking();
    for (uint64_t seed = only ? strtoull(only, NULL, 10) : 1; seed <= 200; seed++) {
        one_migration(seed);
        if (only)
            break;
    }
}

/* ---- one thing at a time ---- */

static void write_half_once(struct ramchild *c)
{
    for (uint64_t p = 0; p < c->size / XM_PAGE; p += 2)
        memset(c->ram + p * XM_PAGE, p % 8 ? (int)(p | 1) : 0, XM_PAGE); /* a quarter of these is zeros */
    while (ramchild_gate(c))
        usleep(50);
}

static void nothing_unneeded_is_sent_or_allocated(void **state)
{
    (void)state;
    struct stat st;
    ramchild_need_tracking();
    begin(8 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    uint64_t peek;
    assert_int_equal(xm_precopy_peek(w.precopy, &peek, NULL), 0);
    assert_int_equal(peek, 1024);
    struct xm_round r = run_round(false);
    assert_int_equal(r.number, 1);
    assert_int_equal(r.pages_dirty, 1024);
    assert_int_equal(r.pages_data, 768);
    assert_int_equal(r.pages_zero, 2048 - 768);
    assert_in_range(r.wire_bytes, 768 * 4096, 768 * 4096 + 768 * 32);
    assert_true(r.ns > 0 && r.rate > 0);
    same_on_both_sides(0);
    teardown(NULL);

    /* Memory stays thin: only what has bytes is allocated at the destination, and nothing new at the source.
     */
    begin(8 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    run_round(false);
    fstat(w.to_fd, &st);
    assert_int_equal(st.st_blocks / 8, 768);
    r = run_round(false);
    fstat(w.child.memfd, &st);
    assert_int_equal(st.st_blocks / 8, 1024);
    r = run_round(true);
    assert_int_equal(r.pages_dirty, 0);
    assert_int_equal(r.wire_bytes, 0);
    ramchild_end(&w.child);
}

static void own_writes_are_sent(void **state)
{
    (void)state;
    ramchild_need_tracking();
    begin(4 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    run_round(false);
    run_round(false);
    memset(w.from.block[0].map + 77 * XM_PAGE, 0x77, XM_PAGE); /* which no tracking sees */
    xm_bitmap_set(xm_ram_bitmap(&w.from, w.child.memfd), 77, 1);
    uint64_t peek;
    assert_int_equal(xm_precopy_peek(w.precopy, &peek, NULL), 0);
    assert_int_equal(peek, 1);
    struct xm_round r = run_round(true);
    assert_int_equal(r.pages_dirty, 1);
    assert_int_equal(r.pages_data, 1);
    same_on_both_sides(0);
    assert_int_equal(xm_bitmap_count(&w.from.block[0].wrote), 0);
    assert_null(xm_ram_bitmap(&w.from, w.to_fd));
    ramchild_end(&w.child);
}

static void in_flight_is_bounded(void **state)
{
    (void)state;
    ramchild_need_tracking();
    begin(64 * MIB, write_half_once, 1);
    w.wire.max_delay_us = 500;
    ramchild_pause(&w.child, true);
    run_round(false);
    assert_in_range(w.wire.most_in_flight, 1, 17 * MIB);
    same_on_both_sides(0);
    ramchild_end(&w.child);
}

static void a_lost_wire_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    ramchild_need_tracking();
    begin(8 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    w.wire.fail_after = 3;
    assert_int_equal(xm_precopy_round(w.precopy, false, NULL, NULL, NULL, &e), -ENOLINK);
    assert_non_null(strstr(e.text, "RAM block ram"));
    assert_int_equal(xm_precopy_round(w.precopy, false, NULL, NULL, NULL, &e), -ENOLINK);
    ramchild_end(&w.child);
}

/* One that is only late may go on; what was lost on its way stays lost. */
static void what_is_lost_is_not_tried_again(void **state)
{
    (void)state;
    struct xm_error e = {0};
    ramchild_need_tracking();
    begin(8 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    ramwire_hold(&w.wire, true);
    w.wire.fail_after = 1;
    xm_precopy_deadline(w.precopy, xm_now() + XM_NS_PER_MS);
    assert_int_equal(xm_precopy_round(w.precopy, false, NULL, NULL, NULL, &e), -ETIMEDOUT);
    ramwire_hold(&w.wire, false);
    assert_int_equal(xm_precopy_again(w.precopy, NULL, NULL, &e), -ENOLINK);
    assert_int_equal(xm_precopy_round(w.precopy, false, NULL, NULL, NULL, &e), -ENOLINK);
    ramchild_end(&w.child);
}

static _Atomic bool now_abort;
static unsigned asked;

static bool is_aborted(void *unused)
{
    (void)unused;
    asked++;
    return now_abort;
}

static void *abort_soon(void *arg)
{
    (void)arg;
    usleep(20000);
    now_abort = true;
    return NULL;
}

static void an_abort_is_heard_at_once(void **state)
{
    (void)state;
    struct xm_error e = {0};
    pthread_t thread;
    ramchild_need_tracking();
    begin(32 * MIB, write_half_once, 1);
    ramchild_pause(&w.child, true);
    ramwire_hold(&w.wire, true); /* a wire that carries nothing */
    now_abort = false;
    uint64_t start = xm_now();
    pthread_create(&thread, NULL, abort_soon, NULL);
    assert_int_equal(xm_precopy_round(w.precopy, false, is_aborted, NULL, NULL, &e), -ECANCELED);
    assert_true(asked > 1); /* who is asked has other things to do as well */
    pthread_join(thread, NULL);
    ramwire_hold(&w.wire, false);
    assert_true(xm_now() - start < LIMIT_HANG_NS / 10); /* by itself it would never end */
    ramchild_end(&w.child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(nothing_unneeded_is_sent_or_allocated, teardown),
        cmocka_unit_test_teardown(own_writes_are_sent, teardown),
        cmocka_unit_test_teardown(in_flight_is_bounded, teardown),
        cmocka_unit_test_teardown(a_lost_wire_is_told, teardown),
        cmocka_unit_test_teardown(what_is_lost_is_not_tried_again, teardown),
        cmocka_unit_test_teardown(an_abort_is_heard_at_once, teardown),
        cmocka_unit_test_teardown(random_migrations_end_equal, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
