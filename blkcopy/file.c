/* SPDX-License-Identifier: MIT */
/* Opening what a disk lies in: a raw file or a block device. What is refused, and what is done buffered, is
 * said in a sentence. */
#include "blkcopy/blkcopy.h"
#include "base/base.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTOR    512u
#define BLOCK_MAX 4096u

static int file_create(struct xm_file *f, uint64_t size, struct xm_error *e)
{
    if (size == 0 || size % SECTOR || size > INT64_MAX)
        return xm_error_set(e, EINVAL,
                            "%s cannot be created with %llu bytes: a disk's size is a multiple of %u",
                            f->path, (unsigned long long)size, SECTOR);
    f->fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f->fd < 0 && errno == EEXIST)
        return xm_error_set(e, EEXIST, "%s exists already: it is not overwritten", f->path);
    if (f->fd < 0)
        return xm_error_errno(e, errno, "%s cannot be created", f->path);
    if (ftruncate(f->fd, (off_t)size) < 0)
        return xm_error_errno(e, errno, "%s cannot be given %s", f->path, xm_format_size(size).s);
    if (fsync(f->fd) < 0)
        return xm_error_errno(e, errno, "%s cannot be synced", f->path);
    f->reads_zero_new = true;
    return xm_sync_directory_of(f->path, e);
}

/* What is looked at is what is opened: first a descriptor that reads and writes nothing (opening a FIFO
 * would wait, opening a device of another kind may do things), then the same file through it. Whoever may
 * write in its directory cannot put another one, or a link, in between. */
static int open_existing(struct xm_file *f, unsigned how, struct xm_error *e)
{
    bool plain = how & XM_FILE_PLAIN;
    struct stat st;
    int look = open(f->path, O_PATH | O_CLOEXEC | (plain ? O_NOFOLLOW : 0));

    if (look < 0 || fstat(look, &st) < 0) {
        int code = errno;
        if (look >= 0)
            close(look);
        return xm_error_errno(e, code, "%s cannot be opened", f->path);
    }
    if (!S_ISREG(st.st_mode) && (plain || !S_ISBLK(st.st_mode))) {
        close(look);
        return xm_error_set(e, EINVAL,
                            plain ? "%s is no plain file, and a disk in a datastore is one"
                                  : "%s is neither a file nor a block device",
                            f->path);
    }
    char self[40];
    int flags = O_CLOEXEC | (f->read_only ? O_RDONLY : O_RDWR);
    if (S_ISBLK(st.st_mode) && !f->read_only && !(how & XM_FILE_SHARED))
        flags |= O_EXCL;
    snprintf(self, sizeof self, "/proc/self/fd/%d", look);
    f->fd = open(self, flags);
    int code = errno;
    close(look);
    if (f->fd < 0 && code == EBUSY)
        return xm_error_set(
            e, EBUSY, "%s is in use: mounted, part of another device, or opened by another VM", f->path);
    if (f->fd < 0)
        return xm_error_errno(e, code, "%s cannot be opened", f->path);
    return 0;
}

int xm_file_lock(struct xm_file *f, struct xm_error *e)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (f->read_only || fcntl(f->fd, F_OFD_SETLK, &l) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return xm_error_set(e, EBUSY, "%s is in use: another process has it open as a disk", f->path);
    return xm_error_errno(e, errno, "%s cannot be locked", f->path);
}

void xm_file_unlock(struct xm_file *f)
{
    struct flock l = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    fcntl(f->fd, F_OFD_SETLK, &l);
}

static int find_size(struct xm_file *f, struct xm_error *e)
{
    struct stat st;

    if (fstat(f->fd, &st) < 0)
        return xm_error_errno(e, errno, "the size of %s cannot be found out", f->path);
    f->block_device = S_ISBLK(st.st_mode);
    f->size = (uint64_t)st.st_size;
    if (f->block_device && ioctl(f->fd, BLKGETSIZE64, &f->size) < 0)
        return xm_error_errno(e, errno, "the size of %s cannot be found out", f->path);
    if (f->size == 0)
        return xm_error_set(e, EINVAL, "%s is empty: it cannot be a disk", f->path);
    if (f->size % SECTOR)
        return xm_error_set(e, EINVAL,
                            "the size of %s, %llu bytes, is not a multiple of %u: it is no raw disk image",
                            f->path, (unsigned long long)f->size, SECTOR);
    return 0;
}

/* A file system that does not say: the smallest read of written data that works. A hole may be read at any
 * alignment and says nothing, but then so may data, in all file systems known that do not answer
 * STATX_DIOALIGN (tmpfs). 0: none works. */
static uint32_t probe_block(int fd, uint64_t size)
{
    void *buf = aligned_alloc(BLOCK_MAX, BLOCK_MAX);
    off_t data = lseek(fd, 0, SEEK_DATA);
    uint32_t block = SECTOR;

    if (data < 0 || (uint64_t)data + BLOCK_MAX > size)
        data = 0;
    data = data / BLOCK_MAX * BLOCK_MAX;
    while (buf && block <= BLOCK_MAX && pread(fd, buf, block, data) < 0)
        block *= 2;
    free(buf);
    return buf && block <= BLOCK_MAX ? block : 0;
}

/* What direct I/O wants offsets and memory to be aligned to. False: the file cannot do it. */
static bool find_alignment(struct xm_file *f)
{
    struct statx x = {0};
    int sector;

    if (f->block_device) {
        if (ioctl(f->fd, BLKSSZGET, &sector) < 0 || sector < (int)SECTOR)
            return false;
        f->block = f->mem_align = (uint32_t)sector;
    }
    if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 && (x.stx_mask & STATX_DIOALIGN)) {
        if (x.stx_dio_offset_align == 0)
            return false;
        f->block = XM_MAX(x.stx_dio_offset_align, SECTOR);
        f->mem_align = x.stx_dio_mem_align;
    } else if (!f->block_device) {
        f->block = f->mem_align = probe_block(f->fd, f->size);
    }
    return f->block >= SECTOR && f->block <= BLOCK_MAX && f->size % f->block == 0 &&
           f->mem_align <= BLOCK_MAX;
}

/* O_DIRECT is set on the open descriptor: where the file system refuses it, open would have created the file
 * all the same. Blocks larger than block_max are no use: the page cache reads and writes the rest of such
 * a block. */
static void make_direct(struct xm_file *f, uint32_t block_max)
{
    int flags = fcntl(f->fd, F_GETFL);
    uint32_t larger = 0;

    if (fcntl(f->fd, F_SETFL, flags | O_DIRECT) == 0) {
        f->direct = find_alignment(f);
        if (f->direct && f->block <= block_max)
            return;
        larger = f->direct ? f->block : 0;
        f->direct = false;
        fcntl(f->fd, F_SETFL, flags);
    }
    f->block = f->mem_align = 1;
    if (larger)
        xm_log(XM_LOG_WARN,
               "%s lies on blocks of %u bytes and is a disk of blocks of %u: it goes through the page cache",
               f->path, larger, block_max);
    else
        xm_log(XM_LOG_WARN,
               "%s cannot be read and written directly (O_DIRECT): it goes through the page cache", f->path);
}

uint32_t xm_file_block_of(const char *path)
{
    struct xm_file f = {.path = (char *)path};
    struct stat st;

    f.fd = stat(path, &st)                              ? -1
           : S_ISDIR(st.st_mode)                        ? open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)
           : S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
                                                        : -1;
    if (f.fd < 0)
        return SECTOR;
    if (S_ISDIR(st.st_mode) && ftruncate(f.fd, BLOCK_MAX) < 0)
        f.fd = (close(f.fd), -1);
    bool direct = f.fd >= 0 && find_size(&f, NULL) == 0 &&
                  fcntl(f.fd, F_SETFL, fcntl(f.fd, F_GETFL) | O_DIRECT) == 0 && find_alignment(&f);
    if (f.fd >= 0)
        close(f.fd);
    return direct ? f.block : SECTOR;
}

int xm_file_open(struct xm_file *f, const char *path, unsigned flags, uint64_t size, struct xm_error *e)
{
    *f = (struct xm_file){.fd = -1, .block = 1, .mem_align = 1, .read_only = flags & XM_FILE_RDONLY};
    bool creating = flags & XM_FILE_CREATE;
    int rc;

    if (creating && f->read_only)
        return xm_error_set(e, EINVAL, "%s: to create a file read-only makes no sense", path);
    f->path = strdup(path);
    if (!f->path)
        return xm_error_set(e, ENOMEM, "no memory");
    rc = creating ? file_create(f, size, e) : open_existing(f, flags, e);
    if (rc == 0 && !(flags & XM_FILE_SHARED))
        rc = xm_file_lock(f, e);
    if (rc == 0)
        rc = find_size(f, e);
    if (rc == 0) {
        if (!(flags & XM_FILE_BUFFERED))
            make_direct(f, flags & XM_FILE_SECTORS ? SECTOR : BLOCK_MAX);
        return 0;
    }
    if (creating && f->fd >= 0)
        unlink(path);
    xm_file_close(f);
    return rc;
}

void xm_file_close(struct xm_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
    free(f->path);
    f->path = NULL;
}
