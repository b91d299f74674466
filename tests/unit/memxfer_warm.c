/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_warm.c: another process's page tables are filled for the pages that are there, and for
 * no others; it goes on as if nothing had been. */
#include "tests/unit/lib_ramchild.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB (1ull << 20)

static struct ramchild child;
static struct xm_ram ram;

/* Counts, and touches nothing of its RAM. */
static void counts(struct ramchild *c)
{
    while (ramchild_gate(c)) {
        c->page->steps++;
        usleep(100);
    }
}

static int teardown(void **state)
{
    (void)state;
    xm_ram_close(&ram);
    ramchild_kill(&child);
    return 0;
}

static void begin(void)
{
    struct xm_error e = {0};

    ramchild_need_tracking();
    memset(&child, 0, sizeof child);
    memset(&ram, 0, sizeof ram);
    ramchild_start(&child, 16 * MIB, -1, counts, 1);
    ram.pid = child.pid;
    assert_int_equal(xm_ram_add(&ram, "ram", child.memfd, child.page->va, &e), 0);
}

static void fill(uint64_t offset, uint64_t len)
{
    static const uint8_t page[4096] = {1};

    for (uint64_t at = offset; at < offset + len; at += sizeof page)
        assert_int_equal(pwrite(child.memfd, page, sizeof page, (off_t)at), sizeof page);
}

static uint64_t allocated(void)
{
    struct stat st;

    assert_int_equal(fstat(child.memfd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Whether the child's page tables have the page. */
static bool mapped(uint64_t offset)
{
    char path[64];
    uint64_t entry = 0;

    snprintf(path, sizeof path, "/proc/%d/pagemap", child.pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &entry, 8, (off_t)((child.page->va + offset) / 4096 * 8)), 8);
    close(fd);
    return entry >> 63;
}

static bool goes_on(void)
{
    unsigned long long before = child.page->steps;

    for (struct limit l = limit_start(20); child.page->steps == before && limit_wait(&l);)
        ;
    return child.page->steps != before;
}

static void what_is_there_is_mapped_and_nothing_else(void **state)
{
    struct xm_warm w = {0};

    (void)state;
    begin();
    fill(1 * MIB, 2 * MIB);
    fill(8 * MIB, 1 * MIB);
    assert_false(mapped(1 * MIB) || mapped(8 * MIB));
    assert_false(xm_ram_warm(&ram, &w, UINT64_MAX));
    assert_int_equal(w.mapped, 3 * MIB);
    for (uint64_t at = 0; at < 16 * MIB; at += 4096)
        assert_int_equal(mapped(at), (at >= 1 * MIB && at < 3 * MIB) || (at >= 8 * MIB && at < 9 * MIB));
    assert_int_equal(allocated(), 3 * MIB);
    assert_true(goes_on());
}

static void in_steps(void **state)
{
    struct xm_warm w = {0};
    unsigned steps = 1;

    (void)state;
    begin();
    fill(0, 4 * MIB);
    while (xm_ram_warm(&ram, &w, 1 * MIB)) {
        assert_int_equal(w.mapped, steps * MIB);
        assert_true(mapped(steps * MIB - 4096));
        steps++;
    }
    assert_int_equal(w.mapped, 4 * MIB);
    assert_true(goes_on());
}

/* More pieces than go into one step; those that a single fault maps are left to it. */
static void scattered(void **state)
{
    struct xm_warm w = {0};
    unsigned steps = 0;

    (void)state;
    begin();
    for (uint64_t i = 0; i < 100; i++)
        fill(i * 128 * 1024, i % 2 ? 4096 : 64 * 1024);
    while (xm_ram_warm(&ram, &w, UINT64_MAX))
        assert_true(++steps < 10);
    assert_int_equal(w.mapped, 50 * 64 * 1024);
    assert_true(goes_on());
}

/* The process ends in the middle: nothing is left to do. */
static void a_process_that_has_ended(void **state)
{
    struct xm_warm w = {0};

    (void)state;
    begin();
    fill(0, 4 * MIB);
    assert_true(xm_ram_warm(&ram, &w, 1 * MIB));
    ramchild_kill(&child);
    assert_false(xm_ram_warm(&ram, &w, 1 * MIB));
    assert_int_equal(w.mapped, 1 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_is_there_is_mapped_and_nothing_else, teardown),
        cmocka_unit_test_teardown(in_steps, teardown),
        cmocka_unit_test_teardown(scattered, teardown),
        cmocka_unit_test_teardown(a_process_that_has_ended, teardown),
    };
    return cmocka_run_group_tests_name("memxfer_warm", tests, NULL, NULL);
}
