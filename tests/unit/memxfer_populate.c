/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_populate.c: RAM is there and mapped ahead of its data, as far as asked and no farther.
 */
#include "memxfer/populate.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB (1ull << 20)

static struct xm_ram ram;
static struct populate *populate;

static void add(uint64_t size)
{
    int fd = memfd_create("ram", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    assert_int_equal(xm_ram_add(&ram, "ram", fd, 0, NULL), 0);
    close(fd);
}

static int teardown(void **state)
{
    (void)state;
    populate_free(populate);
    xm_ram_close(&ram);
    return 0;
}

/* Whether our own page tables have the page. */
static bool mapped(unsigned block, uint64_t offset)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entry = 0, va = (uintptr_t)ram.block[block].map + offset;

    assert_int_equal(pread(fd, &entry, 8, (off_t)(va / 4096 * 8)), 8);
    close(fd);
    return entry >> 63;
}

#define wait_for(cond)                                                                                       \
    for (struct limit limit_ = limit_start(20); !(cond); sched_yield())                                      \
    assert_false(limit_over(&limit_))

static void all_of_a_small_guest(void **state)
{
    struct stat st;
    (void)state;
    add(8 * MIB);
    add(4 * MIB);
    populate = populate_new(&ram, 64 * MIB);
    populate_skip(populate, 0, 3 * MIB, 3 * MIB); /* steps of 2 MiB: from 4 to 6 */
    populate_start(populate);
    wait_for(mapped(1, 4 * MIB - 1));
    assert_true(mapped(0, 0) && mapped(0, 4 * MIB - 1) && mapped(0, 6 * MIB) && mapped(0, 8 * MIB - 1));
    assert_false(mapped(0, 4 * MIB) || mapped(0, 6 * MIB - 1));
    assert_int_equal(fstat(ram.block[0].memfd, &st), 0);
    assert_int_equal(st.st_blocks / 2048, 6);
    for (uint64_t i = 0; i < 4 * MIB; i++)
        assert_int_equal(ram.block[0].map[i], 0);
}

static void a_window_of_a_large_one(void **state)
{
    (void)state;
    add(80 * MIB);
    add(48 * MIB);
    populate = populate_new(&ram, 32 * MIB); /* gives back in steps of 2 */
    populate_start(populate);
    wait_for(mapped(0, 32 * MIB - 1));
    memset(ram.block[0].map, 0x55, 32 * MIB);
    assert_false(mapped(0, 32 * MIB));
    populate_passed(populate, 0, 30 * MIB);
    wait_for(mapped(0, 62 * MIB - 1));
    assert_false(mapped(0, 62 * MIB));
    wait_for(!mapped(0, 28 * MIB - 1));
    assert_true(mapped(0, 28 * MIB)); /* a frame may still be on its way there */
    assert_false(mapped(0, 0));
    populate_passed(populate, 0, 72 * MIB); /* farther than was mapped: what lies between needs it no more */
    wait_for(mapped(0, 80 * MIB - 1));
    assert_true(mapped(0, 72 * MIB));
    assert_false(mapped(0, 62 * MIB) || mapped(0, 70 * MIB - 1));
    populate_passed(populate, 1, 40 * MIB);
    wait_for(mapped(1, 48 * MIB - 1));
    wait_for(!mapped(0, 80 * MIB - 1) && !mapped(1, 36 * MIB - 1));
    for (uint64_t i = 0; i < 32 * MIB; i += 4096)
        assert_int_equal(ram.block[0].map[i], 0x55); /* what came stays */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(all_of_a_small_guest, teardown),
        cmocka_unit_test_teardown(a_window_of_a_large_one, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
