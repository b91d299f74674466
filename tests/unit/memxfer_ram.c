/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_ram.c: which of a process's mappings are guest RAM, and in what order. */
#include "memxfer/memxfer.h"
#include "tests/unit/lib_ramchild.h"

#include <fcntl.h>
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

static struct ramchild child;
static struct xm_ram ram;

static uint8_t *map_new(const char *name, size_t size, size_t mapped)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        _exit(1);
    return mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static void linger(struct ramchild *c)
{
    atomic_store(&c->page->go, 1);
    while (!atomic_load(&c->page->quit))
        usleep(100);
}

/* As a QEMU with two backends: one of them split by a policy, a vhost log, a small table. */
static void like_qemu(struct ramchild *c)
{
    uint8_t *first = map_new("memory-backend-memfd", 4 * MIB, 4 * MIB);
    map_new("vhost-log", 2 * MIB, 2 * MIB);
    uint8_t *second = map_new("memory-backend-memfd", 3 * MIB, 3 * MIB);
    map_new("table", 8192, 8192);
    if (madvise(first + MIB, MIB, MADV_DONTDUMP) < 0)
        ramchild_error(c, "madvise: %m");
    memset(first + 5, 0x11, 1);
    memset(second + 5, 0x22, 1);
    linger(c);
}

static void twice(struct ramchild *c)
{
    mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED, c->memfd, 0);
    linger(c);
}

static void in_part(struct ramchild *c)
{
    munmap(c->ram, c->size);
    mmap(NULL, c->size - MIB, PROT_READ | PROT_WRITE, MAP_SHARED, c->memfd, 0);
    linger(c);
}

static void begin(void (*body)(struct ramchild *))
{
    memset(&child, 0, sizeof child);
    memset(&ram, 0, sizeof ram);
    ramchild_start(&child, 4 * MIB, -1, body, 1);
    while (!atomic_load(&child.page->go))
        usleep(100);
}

static int teardown(void **state)
{
    (void)state;
    xm_ram_close(&ram);
    ramchild_kill(&child);
    return 0;
}

static void backends_are_found_in_their_order(void **state)
{
    (void)state;
    struct xm_error e = {0};
    begin(like_qemu);
    if (xm_ram_find(&ram, child.pid, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(ram.blocks, 2);
    assert_int_equal(ram.block[0].size, 4 * MIB);
    assert_int_equal(ram.block[1].size, 3 * MIB);
    assert_int_equal(ram.block[0].map[5], 0x11);
    assert_int_equal(ram.block[1].map[5], 0x22);
    assert_int_equal(ram.block[0].wrote.bits, 1024);
    ramchild_end(&child);
}

static void what_cannot_be_tracked_is_refused(void **state)
{
    struct xm_error e = {0};
    begin(twice);
    assert_int_equal(xm_ram_find(&ram, child.pid, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "twice"));
    ramchild_end(&child);
    teardown(state);
    begin(in_part);
    assert_int_equal(xm_ram_find(&ram, child.pid, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "in part"));
    assert_int_equal(ram.blocks, 0);
    ramchild_end(&child);
}

static char other[] = "/tmp/xmt-ram-XXXXXX";

/* The memory's descriptor becomes a name of another file, and the memory's again, all the time. */
static void swaps(struct ramchild *c)
{
    int memory = dup(c->memfd), name = open(other, O_PATH | O_CLOEXEC);

    atomic_store(&c->page->go, 1);
    while (ramchild_gate(c)) {
        dup2(name, c->memfd);
        dup2(memory, c->memfd);
    }
}

/* Opened by its name with our rights, that file became the guest's memory (of 490 tries one). */
static void a_descriptor_that_changes_gives_nothing_else(void **state)
{
    struct stat file, got;
    struct xm_error e = {0};
    unsigned found = 0;

    (void)state;
    int fd = mkstemp(other);
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    assert_int_equal(fstat(fd, &file), 0);
    close(fd);
    begin(swaps);
    for (unsigned i = 0; i < 3000; i++) {
        if (xm_ram_find(&ram, child.pid, &e) < 0)
            continue;
        assert_int_equal(fstat(ram.block[0].memfd, &got), 0);
        assert_int_not_equal(got.st_ino, file.st_ino);
        xm_ram_close(&ram);
        found++;
    }
    unlink(other);
    assert_true(found > 0);
    ramchild_end(&child);
}

static void bad_blocks_are_refused(void **state)
{
    (void)state;
    struct xm_error e = {0};
    int fd = memfd_create("odd", MFD_CLOEXEC);
    memset(&ram, 0, sizeof ram);
    assert_int_equal(xm_ram_add(&ram, "empty", fd, 0, &e), -EINVAL);
    assert_int_equal(ftruncate(fd, 5000), 0);
    assert_int_equal(xm_ram_add(&ram, "odd", fd, 0, &e), -EINVAL);
    assert_int_equal(ftruncate(fd, 8192), 0);
    for (int i = 0; i < 16; i++)
        assert_int_equal(xm_ram_add(&ram, "good", fd, 0, &e), 0);
    assert_int_equal(xm_ram_add(&ram, "too many", fd, 0, &e), -E2BIG);
    assert_int_equal(ram.blocks, 16);
    assert_true(xm_ram_find(&ram, 0x3fffffff, &e) < 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(backends_are_found_in_their_order, teardown),
        cmocka_unit_test_teardown(what_cannot_be_tracked_is_refused, teardown),
        cmocka_unit_test_teardown(a_descriptor_that_changes_gives_nothing_else, teardown),
        cmocka_unit_test_teardown(bad_blocks_are_refused, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
