/* SPDX-License-Identifier: MIT */
/* Replacing a file so that a crash at any moment leaves the old or the new one, whole.
 *
 * Happy path: write PATH.tmp-XXXXXX, fsync it (its bytes are on the disk), rename (the name changes at once
 * for every reader), fsync the directory (the change of name is on the disk). Killed before the rename: the
 * old file stands, and a temporary one lies beside it, which nobody reads. Killed between rename and the
 * directory's fsync: readers see the new one; after a power cut it may be either. Any error before the rename
 * removes the temporary file; an error after it is reported although the new file is visible, because it may
 * not be durable, and who asked must not go on as if it were.
 */
#include "base/base.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

int xm_sync_directory_of(const char *path, struct xm_error *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = !slash          ? xm_printf(".")
                : slash == path ? xm_printf("/")
                                : xm_printf("%.*s", (int)(slash - path), path);
    int err = 0;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        err = xm_error_errno(e, errno, "cannot make the change of %s durable: %s", path, dir);
    if (fd >= 0)
        close(fd);
    free(dir);
    return err;
}

/* As a directory that cannot be synced: fault point renamed-NAME, NAME being the file's. */
static bool fault_renamed(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *point = xm_printf("renamed-%s", slash ? slash + 1 : path);
    bool fails = xm_fault(point);

    free(point);
    return fails;
}

int xm_file_replace(const char *path, const void *data, size_t len, struct xm_error *e)
{
    char *tmp = xm_printf("%s.tmp-XXXXXX", path);
    int fd = mkostemp(tmp, O_CLOEXEC);
    int err = 0;

    if (fd < 0) {
        err = xm_error_errno(e, errno, "cannot make a file beside %s", path);
        free(tmp);
        return err;
    }
    err = write_all(fd, data, len);
    if (!err && fsync(fd) < 0)
        err = -errno;
    if (close(fd) < 0 && !err)
        err = -errno;
    if (!err && xm_fault("file-replace"))
        err = -EIO;
    if (!err && rename(tmp, path) < 0)
        err = -errno;
    if (err) {
        unlink(tmp);
        xm_error_errno(e, -err, "cannot write %s", path);
    } else if (fault_renamed(path)) {
        err = xm_error_set(e, EIO, "cannot make the change of %s durable: fault point", path);
    } else {
        err = xm_sync_directory_of(path, e);
    }
    free(tmp);
    return err;
}

void xm_room_keep(const char *path, size_t bytes)
{
    char *room = xm_printf("%s.room", path);
    int fd = open(room, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    int err = fd < 0 ? errno : posix_fallocate(fd, 0, (off_t)bytes);

    if (err)
        xm_log(XM_LOG_WARN, "no room can be kept for %s: %s", path, strerror(err));
    if (fd >= 0)
        close(fd);
    free(room);
}

void xm_room_use(const char *path)
{
    char *room = xm_printf("%s.room", path);

    unlink(room);
    free(room);
}

int xm_file_read(const char *path, size_t max, char **text, size_t *len, struct xm_error *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t cap = 0, n = 0;
    char *buf = NULL; /* once the loop has begun: cap bytes, n of them read */
    int err = 0;

    *text = NULL;
    *len = 0;
    if (fd < 0)
        return xm_error_errno(e, errno, "cannot open %s", path);
    for (;;) {
        if (n + 1 >= cap) {
            cap = XM_MIN(cap ? cap * 2 : 4096, max + 2);
            char *more = realloc(buf, cap);
            if (!more) {
                err = xm_error_set(e, ENOMEM, "no memory to read %s", path);
                break;
            }
            buf = more;
        }
        ssize_t got = read(fd, buf + n, cap - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            err = xm_error_errno(e, errno, "cannot read %s", path);
            break;
        }
        if (!got)
            break;
        n += (size_t)got;
        if (n > max) {
            err = xm_error_set(e, EFBIG, "%s is larger than the %zu bytes that such a file may have", path,
                               max);
            break;
        }
    }
    close(fd);
    if (err || !buf) {
        free(buf);
        return err;
    }
    buf[n] = 0;
    *text = buf;
    *len = n;
    return 0;
}

int xm_mkdir_all(const char *path, struct xm_error *e)
{
    char *p = xm_printf("%s", path);
    struct stat st;
    int err = 0;

    for (char *s = p + (*p == '/');; s++) {
        if (*s && *s != '/')
            continue;
        char was = *s;
        *s = 0;
        if (*p && mkdir(p, 0700) == 0) {
            err = xm_sync_directory_of(p, e); /* or what is durable in it would have no name */
            if (err)
                rmdir(p); /* a second try is to find out again */
        } else if (*p && (errno != EEXIST || stat(p, &st) < 0 || !S_ISDIR(st.st_mode))) {
            err = xm_error_errno(e, errno == EEXIST ? ENOTDIR : errno, "cannot make the directory %s", p);
        }
        if (err)
            break;
        *s = was;
        if (!was)
            break;
    }
    free(p);
    return err;
}

/* One directory, or a symbolic link, on the way to a private one. */
static int judge_step(const char *step, struct xm_error *e)
{
    struct stat st;
    uid_t me = geteuid();

    if (lstat(step, &st) < 0)
        return xm_error_errno(e, errno, "cannot look at %s", step);
    if (st.st_uid != me && st.st_uid != 0)
        return xm_error_set(e, EPERM, "%s belongs to user %u, who could put another in its place", step,
                            st.st_uid);
    if (S_ISDIR(st.st_mode) && st.st_mode & 022 && !(st.st_mode & S_ISVTX))
        return xm_error_set(e, EPERM, "others than its owner may write into %s (mode %04o)", step,
                            st.st_mode & 07777);
    return 0;
}

/* From the root down to the directory itself. */
static int judge_way(const char *path, struct xm_error *e)
{
    char *p = xm_printf("%s", path);
    int r = *p == '/' ? judge_step("/", e) : 0;

    for (char *s = p + (*p == '/'); !r && *s; s++) {
        s += strcspn(s, "/");
        char was = *s;
        *s = 0;
        r = judge_step(p, e);
        *s = was;
        if (!was)
            break;
    }
    free(p);
    return r;
}

int xm_mkdir_private(const char *path, struct xm_error *e)
{
    struct stat st = {0};
    int r = xm_mkdir_all(path, e);
    char *real = r ? NULL : realpath(path, NULL);
    int fd = real ? open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (!r && (fd < 0 || fstat(fd, &st) < 0))
        r = xm_error_errno(e, errno, "cannot open the directory %s", path);
    /* The links of the given name, and then where they lead. */
    if (!r && !(r = judge_way(path, e)))
        r = judge_way(real, e);
    if (!r && st.st_uid != geteuid())
        r = xm_error_set(e, EPERM, "%s belongs to user %u", path, st.st_uid);
    if (!r && st.st_mode & 022)
        r = xm_error_set(e, EPERM, "others than its owner may write into %s (mode %04o)", path,
                         st.st_mode & 07777);
    if (!r && st.st_mode & 077 && fchmod(fd, st.st_mode & 0700) < 0)
        r = xm_error_errno(e, errno, "cannot close %s to others", path);
    if (fd >= 0)
        close(fd);
    free(real);
    return r;
}

int xm_rmdir_files(const char *path, struct xm_error *e)
{
    DIR *d = opendir(path);
    int err = 0;

    if (!d)
        return errno == ENOENT ? 0 : xm_error_errno(e, errno, "cannot open the directory %s", path);
    for (struct dirent *f; !err && (f = readdir(d));) {
        if (!strcmp(f->d_name, ".") || !strcmp(f->d_name, ".."))
            continue;
        if (unlinkat(dirfd(d), f->d_name, 0) < 0 && errno != ENOENT)
            err = xm_error_errno(e, errno, "cannot remove %s/%s", path, f->d_name);
    }
    closedir(d);
    if (!err && rmdir(path) < 0 && errno != ENOENT)
        err = xm_error_errno(e, errno, "cannot remove the directory %s", path);
    return err;
}

char *xm_printf(const char *fmt, ...)
{
    va_list ap;
    char *s;

    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    if (n < 0) {
        raise(SIGKILL);
        _exit(127); /* not reached */
    }
    return s;
}

int xm_file_remove(const char *path, struct xm_error *e)
{
    if (unlink(path) < 0 && errno != ENOENT)
        return xm_error_errno(e, errno, "cannot remove %s", path);
    /* One that is not there may have been removed a moment ago by who did not live to sync it. */
    int r = xm_sync_directory_of(path, e);
    return r == -ENOENT ? 0 : r;
}
