/* SPDX-License-Identifier: MIT */
/* A stock kernel's ext4 on the block driver, alone and through a migration, with both I/O engines; fsck has
 * the last word. */
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FS_LAB                                                                                               \
    "XM_LAB_FS=yes XM_LAB_APPEND='xm.disk=vda:rate=2M:span=64M:trim=8M:prefilled xm.mem=32M:rate=8M' "

static int setup_uring(void **state)
{
    (void)state;
    return lab_group_setup("uring", FS_LAB "XM_ENGINE=io_uring");
}

static int setup_libaio(void **state)
{
    (void)state;
    return lab_group_setup("libaio", FS_LAB "XM_ENGINE=libaio");
}

static int teardown(void **state)
{
    (void)state;
    return lab_down();
}

static bool shim_has_uring(void)
{
    return sh(NULL, 5, "ls -l /proc/$(cat %s/a/run/vms/web1/shim.pid)/fd | grep -q 'anon_inode:.io_uring'",
              lab_run_dir()) == 0;
}

static void it_is_io_uring(void **state)
{
    (void)state;
    need_lab();
    assert_true(shim_has_uring());
}

static void it_is_libaio(void **state)
{
    (void)state;
    need_lab();
    assert_false(shim_has_uring());
}

static void verified_load_at_depth(void **state)
{
    (void)state;
    need_lab();
    guest_must("io 2 1 vda");
    guest_must("io 4 16 vda");
    guest_verify();
}

static void files_on_ext4(void **state)
{
    (void)state;
    need_lab();
    guest_must("fs vdb 3");
}

static void files_on_ext4_while_it_moves(void **state)
{
    char data[512];
    struct job files;
    char *out = NULL;
    int code;

    (void)state;
    need_lab();
    job_start(&files, "%s", as_client("cmd %s fs vdb 10", GUEST));
    assert_int_equal(xmigrate_run("a", 0, NULL, "--with-storage web1 hostb"), 0);
    code = job_end(&files, 90, &out);
    if (code != 0)
        fprintf(stderr, "files: %s\n", out ? out : "");
    free(out);
    assert_int_equal(code, 0);
    guest_verify();
    disk_path("b", "web1", "data", data, sizeof(data));
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop web1"), 0);
    assert_int_equal(sh(&out, 60, "e2fsck -fn %s", data), 0);
    free(out);
}

int main(void)
{
    const struct CMUnitTest uring[] = {
        cmocka_unit_test(it_is_io_uring),
        cmocka_unit_test(verified_load_at_depth),
        cmocka_unit_test(files_on_ext4),
        cmocka_unit_test(files_on_ext4_while_it_moves),
    };
    const struct CMUnitTest libaio[] = {
        cmocka_unit_test(it_is_libaio),
        cmocka_unit_test(verified_load_at_depth),
        cmocka_unit_test(files_on_ext4),
        cmocka_unit_test(files_on_ext4_while_it_moves),
    };
    int failed = cmocka_run_group_tests(uring, setup_uring, teardown);

    return failed + cmocka_run_group_tests(libaio, setup_libaio, teardown);
}
