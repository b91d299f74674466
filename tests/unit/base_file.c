/* SPDX-License-Identifier: MIT */
/* Small files: replaced whole and durably, or not at all. fsync and rename are watched by standing in front
 * of libc's. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/unit/lib_tmpdir.h"

static char calls[64]; /* f: fsync of a file, d: of a directory, r: rename */
static int fsync_fails;

static void note(char c)
{
    size_t n = strlen(calls);
    if (n < sizeof calls - 1)
        calls[n] = c;
}

int fsync(int fd)
{
    struct stat st;
    fstat(fd, &st);
    note(S_ISDIR(st.st_mode) ? 'd' : 'f');
    if (fsync_fails) {
        errno = fsync_fails;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
    note('r');
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static void expect_content(const char *path, const char *text)
{
    char *got;
    size_t len;
    struct xm_error e = {0};
    if (xm_file_read(path, 1000, &got, &len, &e))
        fail_msg("%s", e.text);
    assert_string_equal(got, text);
    assert_int_equal(len, strlen(text));
    free(got);
}

static unsigned files_in(const char *path)
{
    unsigned n = 0;
    DIR *d = opendir(path);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void replace_syncs_the_file_renames_and_syncs_the_directory(void **state)
{
    (void)state;
    const char *path = tmpdir_path("a");
    memset(calls, 0, sizeof calls);
    assert_int_equal(xm_file_replace(path, "one", 3, NULL), 0);
    assert_string_equal(calls, "frd");
    expect_content(path, "one");
    assert_int_equal(xm_file_replace(path, "", 0, NULL), 0);
    expect_content(path, "");
    assert_int_equal(files_in(tmpdir_path("")), 1);
}

static void a_failed_sync_leaves_the_old_file_and_nothing_else(void **state)
{
    (void)state;
    const char *path = tmpdir_write("a", "old");
    struct xm_error e = {0};
    fsync_fails = EIO;
    assert_int_equal(xm_file_replace(path, "new", 3, &e), -EIO);
    fsync_fails = 0;
    assert_non_null(strstr(e.text, path));
    expect_content(path, "old");
    assert_int_equal(files_in(tmpdir_path("")), 1);
}

static void killed_before_the_rename_the_old_file_stands(void **state)
{
    (void)state;
    const char *path = tmpdir_write("a", "old");
    int status;
    pid_t pid = fork();
    if (pid == 0) { /* a new program, because fault points are read once in a process */
        setenv("XMIGRATE_FAULT", "file-replace:1:kill", 1);
        execl("/proc/self/exe", "base_file", path, NULL);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    expect_content(path, "old");
    assert_int_equal(xm_file_replace(path, "newer", 5, NULL),
                     0); /* what the killed one left is in nobody's way */
    expect_content(path, "newer");
}

static void replace_names_a_missing_directory(void **state)
{
    (void)state;
    struct xm_error e = {0};
    assert_int_equal(xm_file_replace(tmpdir_path("no/a"), "x", 1, &e), -ENOENT);
    assert_non_null(strstr(e.text, "no/a: No such file or directory"));
}

static void reading_is_bounded_and_missing_files_are_named(void **state)
{
    (void)state;
    struct xm_error e = {0};
    char *text;
    size_t len;
    const char *path = tmpdir_write("a", "12345");

    assert_int_equal(xm_file_read(path, 5, &text, &len, &e), 0);
    assert_int_equal(len, 5);
    free(text);
    assert_int_equal(xm_file_read(path, 4, &text, &len, &e), -EFBIG);
    assert_null(text);
    assert_int_equal(xm_file_read(tmpdir_path("b"), 4, &text, &len, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/b: No such file"));
    assert_int_equal(xm_file_read(tmpdir_path(""), 4, &text, &len, &e), -EISDIR);
}

static void larger_files_are_read_whole(void **state)
{
    (void)state;
    static char big[100000];
    char *text;
    size_t len;
    memset(big, 'x', sizeof big - 1);
    assert_int_equal(xm_file_read(tmpdir_write("a", big), 1 << 20, &text, &len, NULL), 0);
    assert_int_equal(len, sizeof big - 1);
    assert_memory_equal(text, big, sizeof big);
    free(text);
}

static void mkdir_all_makes_what_is_missing(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct stat st;
    mode_t was = umask(022);

    assert_int_equal(xm_mkdir_all(tmpdir_path("x/y/z"), &e), 0);
    assert_int_equal(xm_mkdir_all(tmpdir_path("x/y/z/"), &e), 0);
    assert_int_equal(stat(tmpdir_path("x/y/z"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    tmpdir_write("x/file", "");
    assert_int_equal(xm_mkdir_all(tmpdir_path("x/file/below"), &e), -ENOTDIR);
    assert_non_null(strstr(e.text, "x/file"));
    umask(was);
}

static void private_must_say(const char *path, const char *part)
{
    struct xm_error e = {0};

    assert_int_equal(xm_mkdir_private(path, &e), -EPERM);
    if (!strstr(e.text, part))
        fail_msg("it says: %s", e.text);
}

/* Who may write into a run or state directory, or rename it, is believed as the host itself is. */
static void a_private_directory_is_nobody_elses(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct stat st;

    assert_int_equal(xm_mkdir_private(tmpdir_path("way/state"), &e), 0);
    assert_int_equal(stat(tmpdir_path("way/state"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    assert_int_equal(chmod(tmpdir_path("way/state"), 0755), 0); /* as older versions made it */
    assert_int_equal(xm_mkdir_private(tmpdir_path("way/state"), &e), 0);
    assert_int_equal(stat(tmpdir_path("way/state"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);

    static const mode_t open_to_others[] = {0777, 0720, 0702, 01777};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(chmod(tmpdir_path("way/state"), open_to_others[i]), 0);
        private_must_say(tmpdir_path("way/state"), "way/state (mode");
    }
    assert_int_equal(chmod(tmpdir_path("way/state"), 0700), 0);
    assert_int_equal(chmod(tmpdir_path("way"), 0777), 0);
    private_must_say(tmpdir_path("way/state"), "way (mode 0777)");
    assert_int_equal(chmod(tmpdir_path("way"), 01777), 0);
    assert_int_equal(xm_mkdir_private(tmpdir_path("way/state"), &e), 0);
    assert_int_equal(symlink("way/state", tmpdir_path("link")), 0);
    assert_int_equal(xm_mkdir_private(tmpdir_path("link"), &e), 0);
    if (geteuid() != 0) {
        print_message("skipped: giving files away needs root\n");
        return;
    }
    assert_int_equal(lchown(tmpdir_path("link"), 12345, 12345), 0);
    private_must_say(tmpdir_path("link"), "link belongs to user 12345");
    assert_int_equal(chown(tmpdir_path("way/state"), 12345, 12345), 0);
    private_must_say(tmpdir_path("way/state"), "belongs to user 12345");
}

/* In a mount namespace of its own: nothing is left of it. */
static void room_is_there_when_the_file_system_is_full(void **state)
{
    (void)state;
    struct xm_error e = {0};
    static char big[32 << 10];

    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", tmpdir_path(""), "tmpfs", 0, "size=256k") < 0) {
        print_message("skipped: no file system can be mounted: %s\n", strerror(errno));
        skip();
    }
    memset(big, 'x', sizeof big);
    xm_room_keep(tmpdir_path("result"), 64 << 10);
    int fd = open(tmpdir_path("filler"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, big, 4096) > 0) {
    }
    assert_int_equal(errno, ENOSPC);
    close(fd);
    assert_int_equal(xm_file_replace(tmpdir_path("result"), big, sizeof big, &e), -ENOSPC);
    xm_room_use(tmpdir_path("result"));
    assert_int_equal(xm_file_replace(tmpdir_path("result"), big, sizeof big, &e), 0);
    assert_int_equal(access(tmpdir_path("result.room"), F_OK), -1);
    xm_room_keep(tmpdir_path("nowhere/result"), 64 << 10); /* said, and that is all */
    xm_room_use(tmpdir_path("nowhere/result"));
    assert_int_equal(umount(tmpdir_path("")), 0);
}

static void rmdir_files_takes_files_but_no_folders(void **state)
{
    (void)state;
    struct xm_error e = {0};

    assert_int_equal(xm_rmdir_files(tmpdir_path("none"), &e), 0);
    assert_int_equal(xm_mkdir_all(tmpdir_path("d"), &e), 0);
    tmpdir_write("d/1", "x");
    tmpdir_write("d/2", "x");
    assert_int_equal(xm_rmdir_files(tmpdir_path("d"), &e), 0);
    assert_int_equal(access(tmpdir_path("d"), F_OK), -1);
    assert_int_equal(xm_mkdir_all(tmpdir_path("d/below"), &e), 0);
    assert_true(xm_rmdir_files(tmpdir_path("d"), &e) < 0);
    assert_int_equal(access(tmpdir_path("d/below"), F_OK), 0);
}

#define WITH_DIR(f) cmocka_unit_test_setup_teardown(f, tmpdir_make, tmpdir_remove)

int main(int argc, char **argv)
{
    if (argc == 2)
        return -xm_file_replace(argv[1], "new", 3, NULL);
    const struct CMUnitTest tests[] = {
        WITH_DIR(replace_syncs_the_file_renames_and_syncs_the_directory),
        WITH_DIR(a_failed_sync_leaves_the_old_file_and_nothing_else),
        WITH_DIR(killed_before_the_rename_the_old_file_stands),
        WITH_DIR(replace_names_a_missing_directory),
        WITH_DIR(reading_is_bounded_and_missing_files_are_named),
        WITH_DIR(larger_files_are_read_whole),
        WITH_DIR(mkdir_all_makes_what_is_missing),
        WITH_DIR(a_private_directory_is_nobody_elses),
        WITH_DIR(room_is_there_when_the_file_system_is_full),
        WITH_DIR(rmdir_files_takes_files_but_no_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
