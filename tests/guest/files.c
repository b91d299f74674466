/* SPDX-License-Identifier: MIT */
/* tests/guest/files.c: a file system under load: files written, fsynced, renamed over, deleted; all verified
 * after a remount. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/guest/guest.h"
#include "tests/guest/record.h"

#define FILES     64u
#define MAX_BYTES (512u * 1024)

/* What file n has to be: its content follows from seed, its name is dN/fN. size 0: no such file. */
struct file {
    uint64_t seed;
    size_t size;
};

static struct file files[FILES];
static unsigned char *content, *found;

static void name_of(unsigned n, const char *suffix, char *path, size_t size)
{
    snprintf(path, size, "/mnt/d%u/f%u%s", n % 8, n, suffix);
}

static int fail_file(const char *what, const char *path)
{
    guest_fail("%s %s: %s", what, path, strerror(errno));
    return -1;
}

/* Writes a new version beside the old one, fsyncs it and renames it over: the way of every careful program.
 */
static int write_file(unsigned n, uint64_t *rng)
{
    struct file next = {rec_random(rng), 1 + (size_t)(rec_random(rng) % MAX_BYTES)};
    char path[64], draft[64];
    size_t done = 0;
    int fd;

    name_of(n, "", path, sizeof(path));
    name_of(n, ".new", draft, sizeof(draft));
    fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return fail_file("create", draft);
    rec_noise(content, next.size, next.seed);
    while (done < next.size) {
        ssize_t k = write(fd, content + done, next.size - done);

        if (k <= 0) {
            close(fd);
            return fail_file("write", draft);
        }
        done += (size_t)k;
    }
    if (rec_random(rng) % 2 && fsync(fd) < 0) {
        close(fd);
        return fail_file("fsync", draft);
    }
    close(fd);
    if (rename(draft, path) < 0)
        return fail_file("rename", draft);
    files[n] = next;
    return 0;
}

static int delete_file(unsigned n)
{
    char path[64];

    name_of(n, "", path, sizeof(path));
    if (unlink(path) < 0)
        return fail_file("unlink", path);
    files[n].size = 0;
    return 0;
}

static int verify_file(unsigned n)
{
    char path[64];
    ssize_t got;
    int fd;

    name_of(n, "", path, sizeof(path));
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT && files[n].size == 0)
            return 0;
        return fail_file("open", path);
    }
    got = 0;
    while ((size_t)got < MAX_BYTES + 1) {
        ssize_t k = read(fd, found + got, MAX_BYTES + 1 - (size_t)got);

        if (k < 0) {
            close(fd);
            return fail_file("read", path);
        }
        if (k == 0)
            break;
        got += k;
    }
    close(fd);
    rec_noise(content, files[n].size, files[n].seed);
    if ((size_t)got != files[n].size || memcmp(content, found, files[n].size) != 0) {
        guest_fail("file %s: content differs (%zd bytes, should be %zu)", path, got, files[n].size);
        return -1;
    }
    return 0;
}

static int mount_disk(const char *path)
{
    char dir[32];
    unsigned i;

    if (mount(path, "/mnt", "ext4", 0, NULL) < 0)
        return fail_file("mount", path);
    for (i = 0; i < 8; i++) {
        snprintf(dir, sizeof(dir), "/mnt/d%u", i);
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            return fail_file("mkdir", dir);
    }
    return 0;
}

/* What an earlier run has left. */
static void delete_all(void)
{
    char path[64];
    unsigned n;

    for (n = 0; n < FILES; n++) {
        name_of(n, "", path, sizeof(path));
        unlink(path);
        name_of(n, ".new", path, sizeof(path));
        unlink(path);
    }
    memset(files, 0, sizeof(files));
}

/* A remount drops the page cache of the file system: what is read afterwards comes from the disk. */
static int remount_and_verify(const char *path)
{
    unsigned n;
    int rc = 0;

    if (umount("/mnt") < 0)
        return fail_file("umount", path);
    if (mount_disk(path) < 0)
        return -1;
    for (n = 0; n < FILES; n++)
        rc |= verify_file(n);
    return rc;
}

int files_load(const char *dev, unsigned seconds, FILE *json)
{
    uint64_t until = now_ns() + (uint64_t)seconds * 1000000000u, rng = now_ns(), writes = 0, deletes = 0,
             remounts = 0;
    char path[48];
    int rc = 0;

    snprintf(path, sizeof(path), "/dev/%s", dev);
    content = malloc(MAX_BYTES + 1);
    found = malloc(MAX_BYTES + 1);
    if (!content || !found || boot_wait_device(dev) < 0 || mount_disk(path) < 0) {
        rc = -1;
        goto out;
    }
    delete_all();
    do {
        unsigned i;

        for (i = 0; i < 40 && rc == 0 && (now_ns() < until || writes < 40); i++) {
            unsigned n = (unsigned)(rec_random(&rng) % FILES);

            if (files[n].size && rec_random(&rng) % 4 == 0) {
                rc = delete_file(n);
                deletes++;
            } else {
                rc = write_file(n, &rng);
                writes++;
            }
        }
        if (rc == 0)
            rc = remount_and_verify(path);
        remounts++;
    } while (rc == 0 && now_ns() < until);
    if (umount("/mnt") < 0)
        rc = fail_file("umount", path);
out:
    free(content);
    free(found);
    fprintf(json, "\"files_written\":%llu,\"files_deleted\":%llu,\"remounts\":%llu",
            (unsigned long long)writes, (unsigned long long)deletes, (unsigned long long)remounts);
    return rc;
}
