/* SPDX-License-Identifier: MIT */
/* Holes, zeros, allocated bytes. */
#include "blkcopy/blkcopy.h"
#include "base/base.h"
#include "tests/unit/lib_disk.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (1ull << 20)

static struct xm_file f;

static int teardown(void **state)
{
    xm_file_close(&f);
    return lib_disk_clean(state);
}

static void write_at(uint64_t offset, size_t len)
{
    char *buf = aligned_alloc(4096, len);
    memset(buf, 7, len);
    assert_int_equal(pwrite(f.fd, buf, len, (off_t)offset), len);
    free(buf);
}

static void test_holes(void **state)
{
    uint64_t end = 0;

    (void)state;
    assert_int_equal(xm_file_open(&f, lib_path("sparse"), XM_FILE_CREATE, 16 * MIB, NULL), 0);
    assert_true(xm_extent_is_hole(&f, 0, MIB, &end));
    assert_int_equal(end, 16 * MIB);
    write_at(4 * MIB, MIB);
    assert_true(xm_extent_is_hole(&f, MIB, MIB, &end));
    assert_int_equal(end, 4 * MIB);
    assert_true(xm_extent_is_hole(&f, 3 * MIB, MIB, &end));
    assert_false(xm_extent_is_hole(&f, 3 * MIB, MIB + 4096, &end));
    assert_false(xm_extent_is_hole(&f, 4 * MIB, MIB, &end));
    assert_false(xm_extent_is_hole(&f, 5 * MIB - 4096, MIB, &end));
    assert_true(xm_extent_is_hole(&f, 5 * MIB, 11 * MIB, NULL));
    assert_false(xm_extent_is_hole(&f, 16 * MIB, MIB, &end));
    assert_true(xm_file_allocated(&f) >= MIB && xm_file_allocated(&f) < 2 * MIB);
}

static void test_zero_at_every_length_and_place(void **state)
{
    static char buf[4200];

    (void)state;
    for (size_t len = 0; len < 300; len++) {
        assert_true(xm_is_zero(buf + 1, len));
        for (size_t at = 0; at < len; at++) {
            buf[1 + at] = (char)0x80;
            assert_false(xm_is_zero(buf + 1, len));
            buf[1 + at] = 0;
        }
        buf[0] = buf[1 + len] = 1;
        assert_true(xm_is_zero(buf + 1, len));
        buf[0] = buf[1 + len] = 0;
    }
    memset(buf, 1, sizeof(buf));
    assert_false(xm_is_zero(buf, sizeof(buf)));
    memset(buf, 0, sizeof(buf));
    buf[sizeof(buf) - 1] = 1;
    assert_false(xm_is_zero(buf, sizeof(buf)));
    assert_true(xm_is_zero(buf, sizeof(buf) - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_holes, teardown),
        cmocka_unit_test(test_zero_at_every_length_and_place),
    };
    f.fd = -1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
