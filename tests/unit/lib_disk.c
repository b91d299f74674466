/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_disk.h"
#include "tests/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#define MANY 8

static char dir[300];
static char loops[MANY][32], mounts[MANY][400];
static int loop_fds[MANY];
static unsigned loop_count, mount_count;

const char *lib_dir(void)
{
    char exe[200] = "";

    if (dir[0])
        return dir;
    if (readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0)
        fail_msg("no /proc/self/exe");
    snprintf(dir, sizeof(dir), "%s/tmp-XXXXXX", dirname(exe));
    if (!mkdtemp(dir))
        fail_msg("%s: %s", dir, strerror(errno));
    return dir;
}

const char *lib_path(const char *name)
{
    static char path[MANY][400];
    static unsigned at;

    at = (at + 1) % MANY;
    snprintf(path[at], sizeof(path[at]), "%s/%s", lib_dir(), name);
    return path[at];
}

static void skip_aloud(const char *why, int code)
{
    print_message("SKIPPED: %s: %s\n", why, strerror(code));
    skip();
}

const char *lib_loop(const char *name, uint64_t size)
{
    return lib_loop_blocks(name, size, 0);
}

const char *lib_loop_blocks(const char *name, uint64_t size, unsigned block)
{
    char image[80];

    snprintf(image, sizeof(image), "%s.img", name);
    assert_true(loop_count < MANY);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        skip_aloud("no loop devices here", errno);
    int file = open(lib_path(image), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    assert_int_equal(ftruncate(file, (off_t)size), 0);
    /* Other processes look for a free one, too. Whoever ends how ever: the device goes with its last
     * descriptor, which is ours. */
    for (struct limit l = limit_start(10); limit_wait(&l);) {
        struct loop_config c = {.fd = (unsigned)file,
                                .block_size = block,
                                .info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR};
        char *dev = loops[loop_count];
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            skip_aloud("no loop device can be made here", errno);
        snprintf(dev, sizeof(loops[0]), "/dev/loop%d", number);
        int fd = open(dev, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &c) == 0) {
            close(control);
            close(file);
            loop_fds[loop_count] = fd;
            return loops[loop_count++];
        }
        int code = errno;
        if (fd >= 0)
            close(fd);
        /* Taken meanwhile; taken, used and given back; its node is not there yet. */
        if (code != EBUSY && code != ENXIO && code != ENOENT && code != EAGAIN)
            skip_aloud("no loop device can be made here", code);
    }
    fail_msg("no free loop device");
    return NULL;
}

const char *lib_tmpfs(const char *name, uint64_t size)
{
    char options[40], *at = mounts[mount_count];

    assert_true(mount_count < MANY);
    snprintf(at, sizeof(mounts[0]), "%s", lib_path(name));
    snprintf(options, sizeof(options), "size=%llu", (unsigned long long)size);
    if (mkdir(at, 0700) < 0)
        fail_msg("%s: %s", at, strerror(errno));
    if (mount("xmigrate-test", at, "tmpfs", 0, options) < 0)
        skip_aloud("no tmpfs can be mounted here", errno);
    mount_count++;
    return at;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    remove(path);
    return 0;
}

int lib_disk_clean(void **state)
{
    (void)state;
    while (loop_count)
        close(loop_fds[--loop_count]);
    while (mount_count)
        umount2(mounts[--mount_count], MNT_DETACH);
    if (dir[0])
        nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    dir[0] = 0;
    return 0;
}
