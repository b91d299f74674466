/* SPDX-License-Identifier: MIT */
/* A source that promises 1 GiB and sends 10 does not fill the datastore below min_free. The file system is
 * played here; what the disk has of it is a real file's. */
#include "migrate/space.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)

static uint64_t free_bytes;
static unsigned asked;

int fstatvfs(int fd, struct statvfs *fs)
{
    (void)fd;
    asked++;
    *fs = (struct statvfs){.f_bavail = free_bytes / 4096, .f_frsize = 4096};
    return 0;
}

static char path[64];
static struct xm_file file = {.fd = -1};
static struct vm_disk disk;
static struct machine vm = {.spec.name = "web1", .host = "hostb", .disks = 1};
static struct space space;
static struct xm_error e;

static void incoming(uint64_t promised, uint64_t others)
{
    json_t *o =
        json_pack("{s:s, s:I, s:I, s:[{s:s, s:I}]}", "datastore", "ds1", "min_free", (json_int_t)(100 * MIB),
                  "others", (json_int_t)others, "reserve", "path", path, "used", (json_int_t)promised);

    space_init(&space, &vm, o, "hosta");
    json_decref(o);
    assert_int_equal(ftruncate(file.fd, 0), 0);
    asked = 0;
    e = (struct xm_error){0};
}

/* MiB that it gets before it is refused; what it gets is written. */
static uint64_t takes(uint64_t at_most)
{
    uint64_t n = 0;

    while (n < at_most && space_take(&space, MIB, &e) == 0) {
        assert_int_equal(posix_fallocate(file.fd, (off_t)(n * MIB), (off_t)MIB), 0);
        free_bytes -= MIB;
        n++;
    }
    space_destroy(&space);
    return n;
}

static void min_free_is_kept_whatever_was_promised(void **state)
{
    (void)state;
    for (uint64_t promised = 0; promised <= 1000; promised += 500) {
        free_bytes = 150 * MIB;
        incoming(promised * MIB, 0);
        assert_int_equal(takes(200), 50);
        assert_int_equal(free_bytes, 100 * MIB);
        assert_non_null(
            strstr(e.text, "datastore 'ds1' on hostb is full: 100.00 MiB of it stay free (min_free)"));
        assert_true(!!strstr(e.text, "hosta had announced 0 B, has 50.00 MiB") == !promised);
    }
}

/* They come by migrations that nobody looks at here; each has its promise. */
static void what_is_promised_to_others_is_left_to_them(void **state)
{
    (void)state;
    free_bytes = 200 * MIB;
    incoming(20 * MIB, 60 * MIB);
    assert_int_equal(takes(200), 40);
    assert_int_equal(free_bytes, 160 * MIB);
    free_bytes = 130 * MIB; /* others have come since, or a guest of this host has grown */
    incoming(20 * MIB, 60 * MIB);
    assert_int_equal(takes(200), 20);
    assert_non_null(strstr(e.text,
                           "60.00 MiB are promised to other migrations, and VM web1, of which hosta had "
                           "announced 20.00 MiB, has 20.00 MiB"));
}

static void the_file_system_is_asked_now_and_then(void **state)
{
    (void)state;
    free_bytes = 4096 * MIB;
    incoming(300 * MIB, 0);
    assert_int_equal(takes(300), 300);
    assert_in_range(asked, 4, 6);
}

/* What it writes again takes no more room: it does not count against its promise. */
static void the_same_blocks_again_are_no_growth(void **state)
{
    (void)state;
    free_bytes = 120 * MIB;
    incoming(10 * MIB, 20 * MIB);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(space_take(&space, MIB, &e), 0);
    space_destroy(&space);
}

static int set_up(void **state)
{
    (void)state;
    vm.disk[0].file = &file;
    vm.disk[0].spec = &disk;
    snprintf(path, sizeof path, "/var/tmp/xmt-space-XXXXXX");
    file.fd = mkstemp(path);
    return file.fd < 0 ? -1 : unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(min_free_is_kept_whatever_was_promised),
        cmocka_unit_test(what_is_promised_to_others_is_left_to_them),
        cmocka_unit_test(the_file_system_is_asked_now_and_then),
        cmocka_unit_test(the_same_blocks_again_are_no_growth),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
