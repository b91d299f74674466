/* SPDX-License-Identifier: MIT */
/* The ownership record: what was saved is loaded; a torn write leaves the record before it; damage is
 * refused, never guessed at. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "vm/owner.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/unit/lib_tmpdir.h"

static struct owner_record saved(uint64_t epoch, enum owner_side side)
{
    struct owner_record r = {.epoch = epoch, .owner = side};

    strcpy(side == OWNER_GIVEN ? r.to : r.from, "hostb");
    return r;
}

static void save(uint64_t epoch, enum owner_side side)
{
    struct owner_record r = saved(epoch, side);
    struct xm_error e = {0};
    assert_int_equal(owner_save(tmpdir_path("web1"), "web1", &r, &e), 0);
}

static void assert_loads(uint64_t epoch, enum owner_side side)
{
    struct owner_record want = saved(epoch, side);
    struct owner_record got;
    struct xm_error e = {0};

    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &got, &e), 0);
    assert_int_equal(got.epoch, epoch);
    assert_int_equal(got.owner, side);
    assert_string_equal(got.to, want.to);
    assert_string_equal(got.from, want.from);
}

/* Overwrites n bytes at an offset of the file. */
static void damage(off_t offset, size_t n)
{
    char junk[8192];
    int fd = open(tmpdir_path("web1/owner.json"), O_WRONLY);

    memset(junk, 'x', sizeof junk);
    assert_int_equal(pwrite(fd, junk, n, offset), (ssize_t)n);
    close(fd);
}

static void test_none_at_first(void **state)
{
    struct owner_record r;
    struct xm_error e = {0};

    (void)state;
    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &r, &e), -ENOENT);
    assert_int_equal(owner_prepare(tmpdir_path("web1"), &e), 0);
    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &r, &e), -ENOENT);
    assert_false(owner_may_run(&r));
}

static void test_last_one_counts(void **state)
{
    struct stat st;

    (void)state;
    for (uint64_t epoch = 1; epoch < 20; epoch++) {
        save(epoch, epoch % 2 ? OWNER_MINE : OWNER_GIVEN);
        assert_loads(epoch, epoch % 2 ? OWNER_MINE : OWNER_GIVEN);
    }
    assert_int_equal(stat(tmpdir_path("web1/owner.json"), &st), 0);
    assert_int_equal(st.st_size, 8192);
}

/* Power fails in the middle of a write: half of the newer slot is rubbish. The record before it holds. */
static void test_torn_write(void **state)
{
    (void)state;
    save(1, OWNER_MINE);  /* slot 0 */
    save(2, OWNER_GIVEN); /* slot 1 */
    damage(4096 + 40, 2000);
    assert_loads(1, OWNER_MINE);
    save(2, OWNER_GIVEN);
    assert_loads(2, OWNER_GIVEN);
}

/* A changed letter is found by the checksum: nobody becomes owner by a flipped bit. */
static void test_checksum(void **state)
{
    struct owner_record r;
    struct xm_error e = {0};
    char text[4096];

    (void)state;
    save(7, OWNER_GIVEN);
    int fd = open(tmpdir_path("web1/owner.json"), O_RDWR);
    assert_int_equal(pread(fd, text, sizeof text, 0), sizeof text);
    char *at = memmem(text, sizeof text, "\"epoch\": 7", 10);
    assert_non_null(at);
    at[9] = '9';
    assert_int_equal(pwrite(fd, text, sizeof text, 0), sizeof text);
    close(fd);
    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &r, &e), -EINVAL);
    assert_non_null(strstr(e.text, "repaired by hand"));
}

static void test_damage_is_refused(void **state)
{
    struct owner_record r;
    struct xm_error e = {0};

    (void)state;
    save(1, OWNER_MINE);
    damage(0, 8192);
    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &r, &e), -EINVAL);
    assert_int_equal(truncate(tmpdir_path("web1/owner.json"), 100), 0);
    assert_int_equal(owner_load(tmpdir_path("web1"), "web1", &r, &e), -EINVAL);
    assert_false(owner_may_run(&r));
}

/* The record of another VM, copied there by hand, is not this VM's. */
static void test_other_vm(void **state)
{
    struct owner_record r;
    struct xm_error e = {0};

    (void)state;
    save(1, OWNER_MINE);
    assert_int_equal(owner_load(tmpdir_path("web1"), "web2", &r, &e), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_none_at_first, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_last_one_counts, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_torn_write, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_checksum, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_damage_is_refused, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(test_other_vm, tmpdir_make, tmpdir_remove),
    };
    return cmocka_run_group_tests_name("vm_owner", tests, NULL, NULL);
}
