/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_tracker.c: every page that another process writes is seen, by whatever way and at
 * whatever moment it writes it, and little else. */
#include "memxfer/inject.h"
#include "memxfer/tracker.h"
#include "tests/unit/lib_ramchild.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB (1u << 20)

struct world {
    struct ramchild child;
    struct xm_ram ram;
    struct xm_tracker *tracker;
    struct xm_bitmap dirty;
};
static struct world w;

static void begin(uint64_t size, int fd, void (*body)(struct ramchild *))
{
    struct xm_error e = {0};

    ramchild_need_tracking();
    memset(&w, 0, sizeof w);
    ramchild_start(&w.child, size, fd, body, 7);
    w.ram.pid = w.child.pid;
    assert_int_equal(xm_ram_add(&w.ram, "ram", w.child.memfd, atomic_load(&w.child.page->va), &e), 0);
    assert_int_equal(xm_bitmap_init(&w.dirty, size / XM_PAGE), 0);
}

static void track(void)
{
    struct xm_error e = {0};

    if (xm_tracker_open(&w.tracker, &w.ram, &e) < 0)
        fail_msg("%s", e.text);
}

static uint64_t collect(void)
{
    struct xm_error e = {0};
    uint64_t pages = 0;

    if (xm_tracker_collect(w.tracker, &w.dirty, &pages, &e) < 0)
        fail_msg("%s", e.text);
    return pages;
}

static void forget(void)
{
    for (uint64_t i = 0; i < (w.dirty.bits + 63) / 64; i++)
        xm_bitmap_take_word(&w.dirty, i);
}

static int teardown(void **state)
{
    (void)state;
    xm_tracker_close(w.tracker);
    w.tracker = NULL;
    ramchild_kill(&w.child);
    xm_ram_close(&w.ram);
    if (w.dirty.word)
        xm_bitmap_destroy(&w.dirty);
    return 0;
}

/* ---- exactly what is written ---- */

/* The parent gives (first page, step, count); the child writes one byte into each of these. arg[3]: by
 * read(2). */
static void write_on_order(struct ramchild *c)
{
    int zero = open("/dev/zero", O_RDONLY);

    while (!atomic_load(&c->page->quit)) {
        if (!atomic_load(&c->page->go)) {
            usleep(20);
            continue;
        }
        for (uint64_t i = 0; i < c->page->arg[2]; i++) {
            uint8_t *p = c->ram + (c->page->arg[0] + i * c->page->arg[1]) * XM_PAGE;
            if (!c->page->arg[3])
                p[i % XM_PAGE] = 1;
            else if (read(zero, p + 100, 1) != 1)
                ramchild_error(c, "read failed");
        }
        atomic_store(&c->page->go, 0);
    }
}

static void order(uint64_t first, uint64_t step, uint64_t count)
{
    w.child.page->arg[0] = first;
    w.child.page->arg[1] = step;
    w.child.page->arg[2] = count;
    atomic_store(&w.child.page->go, 1);
    while (atomic_load(&w.child.page->go))
        usleep(20);
}

/* As QEMU does when the guest's balloon grows: holes in the file, and MADV_REMOVE. What the guest writes
 * there later is written. (What it reads there before is nobody's promise.) */
static void sees_what_is_written_where_a_balloon_was(void **state)
{
    (void)state;
    begin(64 * MIB, -1, write_on_order);
    order(0, 1, 16384);
    track();
    assert_int_equal(collect(), 0);
    for (int round = 0; round < 2; round++) {
        uint64_t first = 4096 + (uint64_t)round * 1000, seen = 0;
        uint8_t *map = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, w.child.memfd, 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        assert_int_equal(fallocate(w.child.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                   (off_t)(first * XM_PAGE), 600 * XM_PAGE),
                         0);
        assert_int_equal(madvise(map + first * XM_PAGE, 600 * XM_PAGE, MADV_REMOVE), 0);
        munmap(map, 64 * MIB);
        if (round)
            collect(); /* between the two, and not */
        forget();
        order(first + 100, 2, 50);
        collect();
        for (uint64_t i = 0; i < 50; i++)
            seen += xm_bitmap_test(&w.dirty, first + 100 + 2 * i);
        assert_int_equal(seen, 50);
        forget();
        assert_int_equal(collect(), 0); /* armed again */
        order(first + 100, 2, 50);
        assert_int_equal(collect(), 50);
        forget();
    }
}

static void sees_exactly_what_is_written(void **state)
{
    (void)state;
    begin(64 * MIB, -1, write_on_order);
    order(0, 1, 16384); /* populated */
    track();
    assert_int_equal(collect(), 0);
    const struct {
        uint64_t first, step, count;
    } writes[] = {{0, 1, 1},    {16383, 1, 1}, {5, 7, 2000},   {511, 1, 2},
                  {0, 512, 32}, {0, 1, 16384}, {3000, 1, 5000}};
    for (unsigned k = 0; k < sizeof writes / sizeof *writes; k++) {
        forget();
        order(writes[k].first, writes[k].step, writes[k].count);
        uint64_t peeked;
        assert_int_equal(tracker_peek(w.tracker, &peeked, NULL), 0);
        assert_int_equal(peeked, writes[k].count);
        assert_int_equal(collect(), writes[k].count);
        assert_int_equal(xm_bitmap_count(&w.dirty), writes[k].count);
        for (uint64_t i = 0; i < writes[k].count; i++)
            assert_true(xm_bitmap_test(&w.dirty, writes[k].first + i * writes[k].step));
        assert_int_equal(collect(), 0);
    }
    ramchild_end(&w.child);
}

static void sees_first_writes_to_unpopulated_memory(void **state)
{
    (void)state;
    begin(64 * MIB, -1, write_on_order);
    order(1000, 1, 10); /* something is there already */
    track();
    order(0, 1, 2);
    order(5000, 100, 50);
    collect();
    assert_true(xm_bitmap_test(&w.dirty, 0) && xm_bitmap_test(&w.dirty, 1));
    for (uint64_t i = 0; i < 50; i++)
        assert_true(xm_bitmap_test(&w.dirty, 5000 + i * 100));
    assert_false(xm_bitmap_test(&w.dirty, 1005));
    collect();
    assert_int_equal(collect(), 0); /* surplus is reported once */
    /* Neither the tracker nor its scans have given the memfd pages. */
    struct stat st;
    fstat(w.child.memfd, &st);
    assert_int_equal(st.st_blocks / 8, 62);
    ramchild_end(&w.child);
}

static void sees_writes_by_system_calls(void **state)
{
    (void)state;
    begin(16 * MIB, -1, write_on_order);
    order(0, 1, 4096);
    track();
    collect();
    forget();
    w.child.page->arg[3] = 1;
    order(3, 9, 400);
    assert_int_equal(collect(), 400);
    for (uint64_t i = 0; i < 400; i++)
        assert_true(xm_bitmap_test(&w.dirty, 3 + i * 9));
    ramchild_end(&w.child);
}

/* A page table's worth of memory in one piece must not be reported for one byte. */
static void huge_pages_are_split(void **state)
{
    (void)state;
    int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), mount = -1, fd = -1;
    if (fs >= 0 && fsconfig(fs, FSCONFIG_SET_STRING, "huge", "always", 0) == 0 &&
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mount = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    if (mount >= 0)
        fd = openat(mount, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    close(fs);
    close(mount);
    if (fd < 0) {
        print_message("skipped: no tmpfs with huge pages here\n");
        skip();
    }
    begin(64 * MIB, fd, write_on_order);
    order(0, 1, 16384);
    track();
    collect();
    forget();
    order(3, 16, 1000);
    uint64_t pages = collect();
    assert_in_range(pages, 1000, 1100);
    ramchild_end(&w.child);
}

/* ---- against a process that never stops writing ---- */

/* Threads that write numbers to random places; each thread has its own eighth of every page. */
struct writer {
    struct ramchild *c;
    unsigned number;
    uint64_t seed;
};

static void *write_numbers(void *arg)
{
    struct writer *r = arg;
    uint64_t pages = r->c->size / XM_PAGE, n = 0;

    while (!atomic_load(&r->c->page->quit) && !atomic_load(&r->c->page->pause)) {
        r->seed ^= r->seed << 13;
        r->seed ^= r->seed >> 7;
        r->seed ^= r->seed << 17;
        uint64_t *slot =
            (void *)(r->c->ram + r->seed % pages * XM_PAGE + r->number * 512 + (r->seed >> 40) % 64 * 8);
        __atomic_store_n(slot, ++n, __ATOMIC_RELAXED);
        if (r->c->page->arg[0] && n % r->c->page->arg[0] == 0)
            usleep(50);
    }
    return NULL;
}

static void write_from_threads(struct ramchild *c)
{
    pthread_t thread[4];
    struct writer r[4];

    do {
        for (unsigned i = 0; i < 4; i++) {
            r[i] = (struct writer){c, i, ramchild_random(c)};
            pthread_create(&thread[i], NULL, write_numbers, &r[i]);
        }
        for (unsigned i = 0; i < 4; i++)
            pthread_join(thread[i], NULL);
    } while (ramchild_gate(c));
}

static void loses_no_write(void **state)
{
    (void)state;
    const uint64_t size = 16 * MIB;
    begin(size, -1, write_from_threads);
    w.child.page->arg[0] = 100;
    track();
    /* A copy kept up to date by what the tracker reports, from nothing. */
    uint8_t *copy = calloc(1, size);
    for (unsigned round = 0; round < 60; round++) {
        bool last = round % 6 == 5;
        if (last)
            ramchild_pause(&w.child, true);
        forget();
        collect();
        for (uint64_t p = 0; (p = xm_bitmap_next(&w.dirty, p)) < w.dirty.bits; p++)
            memcpy(copy + p * XM_PAGE, w.ram.block[0].map + p * XM_PAGE, XM_PAGE);
        if (last) {
            /* The first round has taken over what was there before the tracking. */
            if (round > 5)
                assert_memory_equal(copy, w.ram.block[0].map, size);
            else
                memcpy(copy, w.ram.block[0].map, size);
            ramchild_pause(&w.child, false);
        }
    }
    free(copy);
    ramchild_end(&w.child);
}

/* ---- ends ---- */

static void a_process_that_ends_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    uint64_t pages;
    begin(4 * MIB, -1, write_on_order);
    order(0, 1, 1024);
    track();
    ramchild_kill(&w.child);
    assert_int_equal(xm_tracker_collect(w.tracker, &w.dirty, &pages, &e), -ESRCH);
    assert_non_null(strstr(e.text, "has ended"));
}

/* Takes its RAM away, or maps it anew, when told to. */
static void lose_memory(struct ramchild *c)
{
    memset(c->ram, 1, c->size);
    atomic_store(&c->page->steps, 1);
    while (!atomic_load(&c->page->go))
        usleep(100);
    if (c->page->arg[0] == 1)
        munmap(c->ram, c->size);
    else if (c->page->arg[0] == 2)
        munmap(c->ram, c->size / 2);
    else
        mmap(c->ram + c->size / 2, c->size / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, c->memfd,
             (off_t)(c->size / 2));
    atomic_store(&c->page->go, 0);
    while (!atomic_load(&c->page->quit))
        usleep(100);
}

static void memory_that_goes_away_is_told(void **state)
{
    for (uint64_t how = 1; how <= 3; how++) {
        struct xm_error e = {0};
        uint64_t pages;
        begin(4 * MIB, -1, lose_memory);
        while (!atomic_load(&w.child.page->steps))
            usleep(100);
        track();
        w.child.page->arg[0] = how;
        atomic_store(&w.child.page->go, 1);
        while (atomic_load(&w.child.page->go))
            usleep(100);
        if (xm_tracker_collect(w.tracker, &w.dirty, &pages, &e) == 0)
            fail_msg("case %llu is not noticed", (unsigned long long)how);
        assert_true(e.text[0]);
        ramchild_end(&w.child);
        teardown(state);
    }
}

static void tracking_ends_without_a_trace(void **state)
{
    (void)state;
    begin(8 * MIB, -1, write_on_order);
    order(0, 1, 2048);
    for (int i = 0; i < 5; i++) {
        track();
        order(0, 3, 600);
        assert_int_equal(collect(), 600);
        forget();
        xm_tracker_close(w.tracker);
        w.tracker = NULL;
        char path[64], line[600];
        snprintf(path, sizeof path, "/proc/%d/smaps", w.child.pid);
        FILE *f = fopen(path, "r");
        while (fgets(line, sizeof line, f))
            assert_false(!strncmp(line, "VmFlags", 7) && (strstr(line, " uw") || strstr(line, " um")));
        fclose(f);
    }
    order(0, 1, 2048);
    ramchild_end(&w.child);
}

static void memory_that_is_not_there_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    begin(4 * MIB, -1, write_on_order);
    w.ram.block[0].qemu_va = 4096; /* where no process maps anything */
    assert_true(xm_tracker_open(&w.tracker, &w.ram, &e) < 0);
    assert_true(e.text[0]);
    assert_null(w.tracker);
    ramchild_end(&w.child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(sees_exactly_what_is_written, teardown),
        cmocka_unit_test_teardown(sees_what_is_written_where_a_balloon_was, teardown),
        cmocka_unit_test_teardown(sees_first_writes_to_unpopulated_memory, teardown),
        cmocka_unit_test_teardown(sees_writes_by_system_calls, teardown),
        cmocka_unit_test_teardown(huge_pages_are_split, teardown),
        cmocka_unit_test_teardown(loses_no_write, teardown),
        cmocka_unit_test_teardown(a_process_that_ends_is_told, teardown),
        cmocka_unit_test_teardown(memory_that_goes_away_is_told, teardown),
        cmocka_unit_test_teardown(tracking_ends_without_a_trace, teardown),
        cmocka_unit_test_teardown(memory_that_is_not_there_is_told, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
