/* SPDX-License-Identifier: MIT */
/* A stock kernel's ext4 on the block driver, alone and through migrations, with both I/O engines: host A has
 * io_uring, host B libaio, and the guest goes there and back. fsck has the last word. */
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FS_LAB                                                                                               \
    "XM_LAB_FS=yes XM_LAB_APPEND='xm.disk=vda:rate=2M:span=64M:trim=8M:prefilled xm.mem=32M:rate=8M' "

static int setup(void **state)
{
    int r = lab_group_setup("fs", FS_LAB "XM_ENGINE=io_uring");

    (void)state;
    if (r || !*lab_prefix())
        return r;
    sh(NULL, 5, "kill -9 $(cat %s/b/agent.pid)", lab_run_dir());
    return sh(NULL, 30,
              "sed -i 's/^engine = .*/engine = libaio/' %s/b/xmigrated.conf && tests/system/lab.sh agent b",
              lab_run_dir());
}

static int teardown(void **state)
{
    (void)state;
    return lab_down();
}

static bool shim_has_uring(const char *host)
{
    return sh(NULL, 5, "ls -l /proc/$(cat %s/%s/run/vms/web1/shim.pid)/fd | grep -q 'anon_inode:.io_uring'",
              lab_run_dir(), host) == 0;
}

static void it_is_io_uring(void **state)
{
    (void)state;
    need_lab();
    assert_true(shim_has_uring("a"));
}

static void it_is_libaio(void **state)
{
    (void)state;
    need_lab();
    vm_must_run_at("b", "web1");
    assert_false(shim_has_uring("b"));
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

static void files_while_it_moves(const char *from, const char *to)
{
    struct job files;
    char *out = NULL;

    job_start(&files, "%s", as_client("cmd %s fs vdb 10", GUEST));
    assert_int_equal(xmigrate_run(from, 0, NULL, "--with-storage web1 host%s", to), 0);
    int code = job_end(&files, 90, &out);
    if (code != 0)
        fprintf(stderr, "files: %s\n", out ? out : "");
    free(out);
    assert_int_equal(code, 0);
    guest_verify();
}

static void files_on_ext4_while_it_moves(void **state)
{
    (void)state;
    need_lab();
    files_while_it_moves("a", "b");
}

static void files_on_ext4_while_it_moves_back(void **state)
{
    char data[512], *out = NULL;

    (void)state;
    need_lab();
    files_while_it_moves("b", "a");
    disk_path("a", "web1", "data", data, sizeof(data));
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop web1"), 0);
    assert_int_equal(sh(&out, 60, "e2fsck -fn %s", data), 0);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_io_uring), cmocka_unit_test(verified_load_at_depth),
        cmocka_unit_test(files_on_ext4),  cmocka_unit_test(files_on_ext4_while_it_moves),
        cmocka_unit_test(it_is_libaio),   cmocka_unit_test(verified_load_at_depth),
        cmocka_unit_test(files_on_ext4),  cmocka_unit_test(files_on_ext4_while_it_moves_back),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
