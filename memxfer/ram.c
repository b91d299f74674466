/* SPDX-License-Identifier: MIT */
/* memxfer/ram.c: the guest's RAM: which memfds a QEMU maps shared, and our own hold on them. */
#include "memxfer/ram.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <linux/magic.h>
#include <unistd.h>

#define RAM_BLOCKS_MAX (sizeof((struct xm_ram *)0)->block / sizeof(struct xm_ram_block))
#define RAM_MIN        (1u << 20) /* smaller shared mappings are no RAM */

/* A shared mapping of a memfd, joined from the lines of /proc/PID/maps that continue each other. */
struct mapping {
    uint64_t start, end, off;
    ino_t ino;
    int fd; /* its number in the process; INT32_MAX: it has closed it */
    char name[64];
};

/* Takes the descriptor over, on failure too. */
static int add_block(struct xm_ram *ram, const char *name, int fd, uint64_t qemu_va, uint64_t qemu_off,
                     struct xm_error *e)
{
    struct stat st;
    struct xm_ram_block *b = &ram->block[ram->blocks];
    int err;

    if (ram->blocks == RAM_BLOCKS_MAX) {
        close(fd);
        return xm_error_set(e, E2BIG, "guest RAM has more than %zu blocks", RAM_BLOCKS_MAX);
    }
    if (fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size % XM_PAGE) {
        close(fd);
        return xm_error_set(e, EINVAL, "RAM block %s is not a file of whole pages", name);
    }
    memset(b, 0, sizeof *b);
    snprintf(b->name, sizeof b->name, "%s", name);
    b->memfd = fd;
    b->size = (uint64_t)st.st_size;
    b->qemu_va = qemu_va;
    b->qemu_off = qemu_off;
    b->map = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (b->map == MAP_FAILED) {
        err = errno;
        close(fd);
        return xm_error_errno(e, err, "cannot map RAM block %s (%s)", name,
                              xm_format_size((uint64_t)st.st_size).s);
    }
    if (xm_bitmap_init(&b->wrote, b->size >> XM_PAGE_SHIFT) < 0) {
        munmap(b->map, b->size);
        close(fd);
        return xm_error_set(e, ENOMEM, "no memory for the bitmap of RAM block %s", name);
    }
    ram->blocks++;
    return 0;
}

int xm_ram_add(struct xm_ram *ram, const char *name, int memfd, uint64_t qemu_va, struct xm_error *e)
{
    int fd = fcntl(memfd, F_DUPFD_CLOEXEC, 0);

    if (fd < 0)
        return xm_error_errno(e, errno, "RAM block %s", name);
    return add_block(ram, name, fd, qemu_va, 0, e);
}

/* One line of /proc/PID/maps: 1: a shared memfd mapping, 0: something else. */
static int parse_map_line(const char *line, struct mapping *m)
{
    uint64_t ino;
    char perm[8];
    int at = 0;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %*s %" SCNu64 " %n", &m->start, &m->end, perm,
               &m->off, &ino, &at) != 5 ||
        !at || perm[3] != 's' || strncmp(line + at, "/memfd:", 7))
        return 0;
    const char *name = line + at + 7;
    const char *end = strstr(name, " (deleted)");
    size_t len = end ? (size_t)(end - name) : strcspn(name, "\n");
    snprintf(m->name, sizeof m->name, "%.*s", (int)len, name);
    m->ino = (ino_t)ino;
    m->fd = INT32_MAX;
    return 1;
}

/* Reads all shared memfd mappings. Returns how many, or -errno. */
static int read_mappings(pid_t pid, struct mapping *out, unsigned max, struct xm_error *e)
{
    char path[64], line[600];
    unsigned n = 0;

    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return xm_error_errno(e, errno, "cannot read %s", path);
    while (fgets(line, sizeof line, f)) {
        struct mapping m;
        if (!parse_map_line(line, &m))
            continue;
        struct mapping *last = n ? &out[n - 1] : NULL;
        if (last && last->ino == m.ino && last->end == m.start &&
            last->off + (last->end - last->start) == m.off) {
            last->end = m.end; /* one mapping of QEMU, split by mbind or madvise */
        } else if (n < max) {
            out[n++] = m;
        } else {
            fclose(f);
            return xm_error_set(e, E2BIG, "process %d has more than %u shared memory mappings", pid, max);
        }
    }
    fclose(f);
    return (int)n;
}

/* Finds the process's descriptor number of each mapping: the order in which a QEMU has opened its backends,
 * which is that of its command line and so the same at both ends of a migration. */
static void find_descriptors(pid_t pid, struct mapping *m, unsigned n)
{
    char path[300];

    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *d; (d = readdir(dir));) {
        struct stat st;
        char target[80];
        snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, d->d_name);
        ssize_t len = readlink(path, target, sizeof target - 1);
        if (len < 7 || strncmp(target, "/memfd:", 7) || stat(path, &st) < 0)
            continue;
        int fd = (int)strtol(d->d_name, NULL, 10);
        for (unsigned i = 0; i < n; i++) {
            if (m[i].ino == st.st_ino && fd < m[i].fd)
                m[i].fd = fd;
        }
    }
    closedir(dir);
}

static int by_descriptor(const void *a, const void *b)
{
    const struct mapping *x = a, *y = b;

    if (x->fd != y->fd)
        return x->fd < y->fd ? -1 : 1;
    return x->start < y->start ? 1 : x->start > y->start ? -1 : 0; /* the kernel maps downwards */
}

/* QEMU's own descriptor, by its number: nothing is opened by a name that QEMU could make lead elsewhere (a
 * file that it may not open, say), and nothing that it does not have itself. */
static int take_descriptor(pid_t pid, const struct mapping *m, struct xm_error *e)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, m->fd, 0);

    if (fd < 0)
        fd = xm_error_errno(e, errno, "cannot take guest RAM %s of process %d over", m->name, pid);
    if (pidfd >= 0)
        close(pidfd);
    return fd;
}

/* What the process has mapped there, whatever it has done to its descriptors meanwhile; and a memfd, as
 * only they have seals. */
static bool is_mapped_memfd(const struct mapping *m, int fd)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    return fstat(fd, &st) == 0 && st.st_ino == m->ino && fcntl(fd, F_GET_SEALS) >= 0 && flags >= 0 &&
           (flags & O_ACCMODE) == O_RDWR && !(flags & O_PATH);
}

static int open_mapping(pid_t pid, const struct mapping *m, struct xm_error *e)
{
    if (m->fd == INT32_MAX)
        return xm_error_set(e, ENOTSUP, "process %d has no descriptor of its RAM %s any more", pid, m->name);
    int fd = take_descriptor(pid, m, e);
    if (fd < 0 || is_mapped_memfd(m, fd))
        return fd;
    close(fd);
    return xm_error_set(e, ENOTSUP, "descriptor %d of process %d is not the memory %s that it has mapped",
                        m->fd, pid, m->name);
}

int xm_ram_find(struct xm_ram *ram, pid_t pid, struct xm_error *e)
{
    struct mapping map[128] = {0};
    bool qemu = false;
    int n = read_mappings(pid, map, sizeof map / sizeof *map, e);

    memset(ram, 0, sizeof *ram);
    ram->pid = pid;
    if (n < 0)
        return n;
    find_descriptors(pid, map, (unsigned)n);
    qsort(map, (size_t)n, sizeof *map, by_descriptor);
    /* A QEMU maps other memfds too: vhost logs and in-flight regions. Its RAM has its own name. */
    for (int i = 0; i < n; i++)
        qemu = qemu || !strcmp(map[i].name, XM_RAM_NAME);
    for (int i = 0; i < n; i++) {
        if (map[i].end - map[i].start <= RAM_MIN || (qemu && strcmp(map[i].name, XM_RAM_NAME)) ||
            !strncmp(map[i].name, "vhost-", 6))
            continue;
        int r = 0;
        for (int k = 0; k < i && !r; k++) {
            if (map[k].ino == map[i].ino)
                r = xm_error_set(
                    e, ENOTSUP,
                    "process %d maps its RAM %s twice: writes through one of them could not be seen", pid,
                    map[i].name);
        }
        int fd = r ? r : open_mapping(pid, &map[i], e);
        struct stat st;
        if (fd >= 0 &&
            (map[i].off || fstat(fd, &st) < 0 || (uint64_t)st.st_size != map[i].end - map[i].start)) {
            close(fd);
            fd = xm_error_set(e, ENOTSUP, "process %d maps its RAM %s only in part", pid, map[i].name);
        }
        r = fd < 0 ? fd : add_block(ram, map[i].name, fd, map[i].start, 0, e);
        if (r < 0) {
            xm_ram_close(ram);
            return r;
        }
    }
    if (!ram->blocks)
        return xm_error_set(e, ENOENT,
                            "process %d has no shared guest RAM: its QEMU needs -object "
                            "memory-backend-file,share=on,... on a memfd as memory",
                            pid);
    return 0;
}

static bool is_same_file(int a, int b)
{
    struct stat one, other;

    return fstat(a, &one) == 0 && fstat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

int xm_ram_follow(struct xm_ram *ram, pid_t pid, struct xm_error *e)
{
    struct xm_ram now;
    int r = xm_ram_find(&now, pid, e);

    if (r < 0)
        return r;
    bool same = now.blocks == ram->blocks;
    for (unsigned i = 0; same && i < now.blocks; i++)
        same = is_same_file(now.block[i].memfd, ram->block[i].memfd);
    for (unsigned i = 0; same && i < now.blocks; i++) {
        ram->block[i].qemu_va = now.block[i].qemu_va;
        ram->block[i].qemu_off = now.block[i].qemu_off;
    }
    if (same)
        ram->pid = pid;
    xm_ram_close(&now);
    return same ? 0 : xm_error_set(e, ENOTSUP, "process %d has other RAM than the one before it", pid);
}

void xm_ram_close(struct xm_ram *ram)
{
    for (unsigned i = 0; i < ram->blocks; i++) {
        struct xm_ram_block *b = &ram->block[i];
        xm_bitmap_destroy(&b->wrote);
        munmap(b->map, b->size);
        close(b->memfd);
    }
    ram->blocks = 0;
}

struct xm_bitmap *xm_ram_bitmap(struct xm_ram *ram, int memfd)
{
    for (unsigned i = 0; i < ram->blocks; i++) {
        if (is_same_file(ram->block[i].memfd, memfd))
            return &ram->block[i].wrote;
    }
    return NULL;
}

bool ram_is_direct(const struct xm_ram_block *b)
{
    struct statfs fs;
    int seals = fcntl(b->memfd, F_GET_SEALS);

    return seals >= 0 && seals & F_SEAL_SHRINK && fstatfs(b->memfd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

void ram_give_back(const struct xm_ram_block *b, uint64_t from, uint64_t to)
{
    if (mmap(b->map + from, to - from, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
             b->memfd, (off_t)from) == MAP_FAILED)
        xm_log(XM_LOG_WARN, "RAM block %s stays mapped: errno %d", b->name, errno);
}

void ram_find_holes(const struct xm_ram_block *b, uint64_t page, unsigned n, uint8_t *there)
{
    if (mincore(b->map + (page << XM_PAGE_SHIFT), (size_t)n << XM_PAGE_SHIFT, there) < 0)
        memset(there, 0, n);
    for (unsigned i = 0; i < n; i++) {
        off_t at = (off_t)((page + i) << XM_PAGE_SHIFT);
        /* Not in memory: it is swapped out, which is data for the file, or a hole. (Only that is asked of the
         * file: it would look through all of a range for where that ends.) */
        there[i] = there[i] & 1 || lseek(b->memfd, at, SEEK_DATA) == at;
    }
}

int ram_write(const struct xm_ram_block *b, const uint8_t *data, uint64_t offset, uint64_t len)
{
    while (len) {
        ssize_t n = pwrite(b->memfd, data, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) { /* hugetlbfs has no write() */
            memcpy(b->map + offset, data, len);
            return 0;
        }
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        offset += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

/* For files that cannot punch single pages (huge pages): zeros over what is there. */
static void write_zeros(const struct xm_ram_block *b, uint64_t offset, uint64_t len)
{
    for (uint64_t end = offset + len; offset < end;) {
        off_t data = lseek(b->memfd, (off_t)offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return;
        if (data >= 0)
            offset = XM_MAX(offset, (uint64_t)data);
        if (offset >= end)
            return;
        uint64_t part = XM_MIN(end - offset, 65536ull);
        memset(b->map + offset, 0, part);
        offset += part;
    }
}

void ram_zero(const struct xm_ram_block *b, uint64_t offset, uint64_t len)
{
    while (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) < 0) {
        if (errno != EINTR) {
            write_zeros(b, offset, len);
            return;
        }
    }
}
