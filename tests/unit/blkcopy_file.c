/* SPDX-License-Identifier: MIT */
/* Opening files and block devices: what is found out, what is locked, what is refused. */
#include "blkcopy/blkcopy.h"
#include "base/base.h"
#include "tests/unit/lib_disk.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ull << 20)

static struct xm_file f, g;

static int setup(void **state)
{
    (void)state;
    f.fd = g.fd = -1;
    f.path = g.path = NULL;
    return 0;
}

static int teardown(void **state)
{
    xm_file_close(&f);
    xm_file_close(&g);
    return lib_disk_clean(state);
}

static void make_file(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

static void test_creates_a_sparse_file(void **state)
{
    struct stat st;

    (void)state;
    assert_int_equal(xm_file_open(&f, lib_path("new"), XM_FILE_CREATE, 8 * MIB, NULL), 0);
    assert_int_equal(stat(lib_path("new"), &st), 0);
    assert_int_equal(st.st_size, 8 * MIB);
    assert_int_equal(st.st_blocks, 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(f.size, 8 * MIB);
    assert_true(f.reads_zero_new);
    assert_false(f.block_device);
    assert_int_equal(f.size % f.block, 0);
    assert_true(f.block >= 512 || !f.direct);
    assert_true(f.mem_align <= f.block);
    assert_int_equal(!!(fcntl(f.fd, F_GETFL) & O_DIRECT), f.direct);
    assert_int_equal(xm_file_allocated(&f), 0);
}

/* A disk in a datastore may have been named by another host. */
static void test_a_plain_file_is_no_link_and_no_device(void **state)
{
    struct xm_error e = {0};

    (void)state;
    make_file(lib_path("disk"), MIB);
    assert_int_equal(symlink(lib_path("disk"), lib_path("link")), 0);
    assert_int_equal(mkfifo(lib_path("fifo"), 0600), 0);
    assert_int_equal(xm_file_open(&f, lib_path("link"), 0, 0, NULL), 0); /* as /dev/vg0/disk is one */
    assert_int_equal(f.size, MIB);
    xm_file_close(&f);
    assert_int_equal(xm_file_open(&f, lib_path("link"), XM_FILE_PLAIN, 0, &e), -EINVAL);
    assert_non_null(strstr(e.text, "is no plain file, and a disk in a datastore is one"));
    assert_int_equal(xm_file_open(&f, lib_path("fifo"), XM_FILE_PLAIN, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_path("fifo"), 0, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, "/dev/null", XM_FILE_PLAIN, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_path("disk"), XM_FILE_PLAIN, 0, NULL), 0);
}

static void test_create_overwrites_nothing_and_leaves_nothing(void **state)
{
    struct xm_error e = {0};
    struct stat st;

    (void)state;
    make_file(lib_path("old"), MIB);
    assert_int_equal(xm_file_open(&f, lib_path("old"), XM_FILE_CREATE, 2 * MIB, &e), -EEXIST);
    assert_non_null(strstr(e.text, "/old exists already"));
    assert_int_equal(stat(lib_path("old"), &st), 0);
    assert_int_equal(st.st_size, MIB);
    assert_int_equal(xm_file_open(&f, lib_path("odd"), XM_FILE_CREATE, 1000, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_path("zero"), XM_FILE_CREATE, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_path("huge"), XM_FILE_CREATE, 1ull << 62, &e), -EFBIG);
    assert_int_equal(access(lib_path("huge"), F_OK), -1);
    assert_int_equal(access(lib_path("odd"), F_OK), -1);
    assert_int_equal(xm_file_open(&f, lib_path("no/such"), XM_FILE_CREATE, MIB, &e), -ENOENT);
    assert_int_equal(f.fd, -1);
    assert_null(f.path);
}

static void test_refuses_what_is_no_disk(void **state)
{
    struct xm_error e = {0};

    (void)state;
    make_file(lib_path("empty"), 0);
    make_file(lib_path("odd"), 1000);
    assert_int_equal(mkfifo(lib_path("fifo"), 0600), 0);
    assert_int_equal(xm_file_open(&f, lib_path("empty"), 0, 0, &e), -EINVAL);
    assert_non_null(strstr(e.text, "is empty"));
    assert_int_equal(xm_file_open(&f, lib_path("odd"), 0, 0, &e), -EINVAL);
    assert_non_null(strstr(e.text, "1000 bytes"));
    assert_int_equal(xm_file_open(&f, lib_path("fifo"), 0, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, "/dev/null", 0, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_dir(), 0, 0, &e), -EINVAL);
    assert_int_equal(xm_file_open(&f, lib_path("none"), 0, 0, &e), -ENOENT);
}

static void test_one_writer_at_a_time(void **state)
{
    struct xm_error e = {0};

    (void)state;
    make_file(lib_path("d"), MIB);
    assert_int_equal(xm_file_open(&f, lib_path("d"), 0, 0, NULL), 0);
    assert_int_equal(xm_file_open(&g, lib_path("d"), 0, 0, &e), -EBUSY);
    assert_non_null(strstr(e.text, "in use"));
    assert_int_equal(xm_file_open(&g, lib_path("d"), XM_FILE_RDONLY, 0, NULL), 0);
    assert_true(g.read_only);
    xm_file_close(&g);
    pid_t pid = fork();
    if (pid == 0) {
        close(f.fd); /* the child's copy: the lock is the parent's as long as the parent has it open */
        _exit(xm_file_open(&g, lib_path("d"), 0, 0, NULL) == -EBUSY ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    xm_file_close(&f);
    assert_int_equal(xm_file_open(&g, lib_path("d"), 0, 0, NULL), 0);
}

static void test_block_device(void **state)
{
    struct xm_error e = {0};

    (void)state;
    const char *loop = lib_loop("disk", 4 * MIB);
    assert_int_equal(xm_file_open(&f, loop, 0, 0, NULL), 0);
    assert_true(f.block_device);
    assert_int_equal(f.size, 4 * MIB);
    assert_true(f.direct);
    assert_true(f.block >= 512 && f.block <= 4096);
    assert_int_equal(xm_file_allocated(&f), 4 * MIB);
    assert_int_equal(xm_file_open(&g, loop, 0, 0, &e), -EBUSY);
    assert_int_equal(xm_file_open(&g, loop, XM_FILE_RDONLY, 0, NULL), 0);
    assert_false(xm_extent_is_hole(&g, 0, MIB, NULL));
}

/* What its guest sees as a block of 512 bytes stays one on any storage. */
static void test_sectors_on_larger_blocks(void **state)
{
    char wrote[512], all[4096];

    (void)state;
    const char *loop = lib_loop_blocks("large", 4 * MIB, 4096);
    assert_int_equal(xm_file_block_of(loop), 4096);
    assert_int_equal(xm_file_open(&f, loop, 0, 0, NULL), 0);
    assert_true(f.direct && f.block == 4096);
    xm_file_close(&f);
    assert_int_equal(xm_file_open(&f, loop, XM_FILE_SECTORS, 0, NULL), 0);
    assert_true(!f.direct && f.block == 1);
    memset(wrote, 7, sizeof wrote);
    assert_int_equal(pwrite(f.fd, wrote, sizeof wrote, 512), sizeof wrote);
    assert_int_equal(fdatasync(f.fd), 0);
    xm_file_close(&f);
    assert_int_equal(xm_file_open(&f, loop, XM_FILE_RDONLY | XM_FILE_BUFFERED, 0, NULL), 0);
    assert_int_equal(pread(f.fd, all, sizeof all, 0), sizeof all);
    assert_true(all[511] == 0 && all[512] == 7 && all[1023] == 7 && all[1024] == 0);
    xm_file_close(&f);
    loop = lib_loop("small", 4 * MIB);
    assert_int_equal(xm_file_block_of(loop), 512);
    assert_int_equal(xm_file_open(&f, loop, XM_FILE_SECTORS, 0, NULL), 0);
    assert_true(f.direct && f.block == 512);
}

static void test_the_block_of_files_to_come(void **state)
{
    uint32_t dir = xm_file_block_of(lib_dir());

    (void)state;
    make_file(lib_path("d"), MIB);
    assert_int_equal(xm_file_block_of(lib_path("d")), dir);
    assert_int_equal(xm_file_block_of("/dev/null"), 512);
    assert_int_equal(xm_file_block_of(lib_path("none")), 512);
}

static void test_a_shared_disk_is_locked_later(void **state)
{
    (void)state;
    make_file(lib_path("d"), MIB);
    assert_int_equal(xm_file_open(&f, lib_path("d"), 0, 0, NULL), 0);
    assert_int_equal(xm_file_open(&g, lib_path("d"), XM_FILE_SHARED, 0, NULL), 0);
    assert_int_equal(xm_file_lock(&g, NULL), -EBUSY);
    xm_file_unlock(&f);
    assert_int_equal(xm_file_lock(&g, NULL), 0);
    assert_int_equal(xm_file_lock(&f, NULL), -EBUSY);
}

static void test_buffered_on_request(void **state)
{
    (void)state;
    make_file(lib_path("d"), MIB);
    assert_int_equal(xm_file_open(&f, lib_path("d"), XM_FILE_BUFFERED, 0, NULL), 0);
    assert_false(f.direct);
    assert_int_equal(f.block, 1);
    assert_int_equal(f.mem_align, 1);
}

/* A size that is no multiple of the direct block: a disk all the same, buffered. */
static void test_falls_back_to_buffered(void **state)
{
    (void)state;
    make_file(lib_path("d"), MIB + 512);
    assert_int_equal(xm_file_open(&f, lib_path("d"), 0, 0, NULL), 0);
    assert_int_equal(f.size, MIB + 512);
    assert_int_equal(f.size % f.block, 0);
    assert_int_equal(f.direct, f.block != 1);
}

static void test_a_tmpfs_file_opens(void **state)
{
    (void)state;
    lib_tmpfs("ram", 4 * MIB);
    assert_int_equal(xm_file_open(&f, lib_path("ram/d"), XM_FILE_CREATE, MIB, NULL), 0);
    assert_int_equal(f.size % f.block, 0);
    assert_int_equal(f.direct, f.block != 1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(creates_a_sparse_file),
        T(create_overwrites_nothing_and_leaves_nothing),
        T(a_plain_file_is_no_link_and_no_device),
        T(refuses_what_is_no_disk),
        T(one_writer_at_a_time),
        T(block_device),
        T(sectors_on_larger_blocks),
        T(the_block_of_files_to_come),
        T(a_shared_disk_is_locked_later),
        T(buffered_on_request),
        T(falls_back_to_buffered),
        T(a_tmpfs_file_opens),
    };
    xm_log_open("blkcopy_file", XM_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
