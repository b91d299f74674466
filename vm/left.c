/* SPDX-License-Identifier: MIT */
/* See left.h. The order in a deletion: the file is opened and locked, and compared with what the journal
 * knew of it, then it is asked whether its path is used again, then the entry says durably which file it
 * is, then it goes. Whoever uses a path anew says so durably before he makes a file there, which fails
 * while this one is there. An entry that is still there when its file has gone deletes no other: another
 * host, whose definitions we do not read, or somebody by hand, may have put a disk at that path meanwhile.
 *
 * Which file it is: where the file system tells when it was made, that and its number, which together are
 * no other file's; else its handle (name_to_handle_at(2)), which NFS has, too. Both stay when it is written
 * to, and over mounts and boots. What FUSE and CIFS say of either may be made up anew with each mount: then
 * nothing is known, and the path alone counts. */
#include "vm/left.h"
#include "vm/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FUSE_SUPER_MAGIC 0x65735546
#define CIFS_SUPER_MAGIC 0xff534d42
#define SMB2_SUPER_MAGIC 0xfe534d42

char *left_dir(const char *dir)
{
    const char *end = dir + strlen(dir);

    for (int i = 0; i < 2; i++) {
        while (end > dir && *--end != '/')
            ;
    }
    return xm_printf("%.*s/left", (int)(end - dir), dir);
}

/* The same path has the same entry, however often it is added. */
static char *entry_of(const char *dir, const char *vm, const char *file)
{
    uint64_t h = 14695981039346656037u;
    const char *slash = strrchr(file, '/');
    char *in = left_dir(dir);

    for (const char *c = file; *c; c++)
        h = (h ^ (uint8_t)*c) * 1099511628211u;
    char *entry =
        xm_printf("%s/%s:%.60s-%016llx.json", in, vm, slash ? slash + 1 : file, (unsigned long long)h);
    free(in);
    return entry;
}

static int add_one(const char *dir, const char *vm, const json_t *of, bool planned, struct xm_error *e)
{
    const char *file = journal_path(of);
    size_t n = strlen(dir);

    if (!strncmp(file, dir, n) && file[n] == '/')
        return xm_file_remove(file, e);
    char *entry = entry_of(dir, vm, file);
    json_t *o = json_pack("{s:s s:s s:b s:O* s:O*}", "path", file, "vm", vm, "planned", planned, "born",
                          json_object_get(of, "born"), "handle", json_object_get(of, "handle"));
    if (json_object_get(of, "was"))
        json_object_set_new(o, "withdrawn", json_true());
    int r = xm_json_save(entry, o, e);
    json_decref(o);
    free(entry);
    return r;
}

int left_add(const char *dir, const char *vm, const json_t *files, bool planned, struct xm_error *e)
{
    char *in = left_dir(dir);
    json_t *v;
    size_t i;
    int r = json_array_size(files) ? xm_mkdir_all(in, e) : 0;

    json_array_foreach ((json_t *)files, i, v) {
        if (!r && journal_path(v)[0])
            r = add_one(dir, vm, v, planned, e);
    }
    free(in);
    return r;
}

/* Where a disk was there is nothing at all, or no directory: what looks as if it had been deleted lies in a
 * file system that is not mounted. A datastore in use has its mark in it, at least (agent/datastore.h). */
static bool unmounted(const char *path)
{
    char *dir = xm_printf("%s", path);
    char *slash = strrchr(dir, '/');
    bool empty = true;

    *(slash && slash != dir ? slash : dir) = 0;
    DIR *d = opendir(*dir ? dir : "/");
    for (struct dirent *f; d && empty && (f = readdir(d));)
        empty = !strcmp(f->d_name, ".") || !strcmp(f->d_name, "..");
    if (d)
        closedir(d);
    free(dir);
    return empty;
}

/* It is not there: since when has to be durable, before nothing names it any more. */
static int was_deleted(const char *path, bool planned, struct xm_error *e)
{
    if (!planned && unmounted(path))
        return xm_error_set(e, ENODEV, "it is not there, nor is anything else: is its file system mounted?");
    int r = xm_sync_directory_of(path, e);
    return r == -ENOENT ? 0 : r;
}

/* Who has a file open as a disk holds a lock on it (xm_file_open). Readers hold none. */
static int lock_file(const char *path, int *fd, struct xm_error *e)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    *fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return xm_error_errno(e, errno, "%s cannot be opened", path);
    if (fcntl(*fd, F_OFD_SETLK, &all) == 0)
        return 0;
    bool by_other = errno == EAGAIN || errno == EACCES;
    return xm_error_set(e, by_other ? EBUSY : errno, "%s",
                        by_other ? "a process has it open as a disk" : strerror(errno));
}

/* ---- which file ---- */

static bool is_made_up(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return true;
    return fs.f_type == FUSE_SUPER_MAGIC || fs.f_type == CIFS_SUPER_MAGIC || fs.f_type == SMB2_SUPER_MAGIC;
}

static json_t *birth(int fd)
{
    struct statx x;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &x) < 0 || !(x.stx_mask & STATX_BTIME))
        return NULL;
    return json_pack("[I, I, I]", (json_int_t)x.stx_ino, (json_int_t)x.stx_btime.tv_sec,
                     (json_int_t)x.stx_btime.tv_nsec);
}

static json_t *handle(int fd)
{
    union {
        struct file_handle h;
        unsigned char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } u = {.h.handle_bytes = MAX_HANDLE_SZ};
    char hex[2 * MAX_HANDLE_SZ + 1];
    int mount;

    if (name_to_handle_at(fd, "", &u.h, &mount, AT_EMPTY_PATH) < 0 || u.h.handle_bytes > MAX_HANDLE_SZ)
        return NULL;
    xm_hex_put(hex, u.h.f_handle, u.h.handle_bytes);
    return json_string(hex);
}

static json_t *identity_now(int fd, bool born)
{
    return fd < 0 || is_made_up(fd) ? NULL : born ? birth(fd) : handle(fd);
}

json_t *left_file(const char *path, int fd)
{
    json_t *born = xm_fault("left-unborn") ? NULL : identity_now(fd, true);
    json_t *id = born ? born : identity_now(fd, false);
    json_t *file =
        id ? json_pack("{s:s, s:o}", "path", path, born ? "born" : "handle", id) : json_string(path);

    return file;
}

/* What is known of it says that it is not the one. withdrawn: an empty one has taken its place, for the
 * journal (migrate/source_storage.c). */
static bool is_other_file(const json_t *o, int fd, const struct stat *st)
{
    const json_t *born = json_object_get(o, "born"), *was = born ? born : json_object_get(o, "handle");
    json_t *is = was ? identity_now(fd, born) : NULL;
    bool other = is && !json_equal(was, is) && !(xm_json_bool(o, "withdrawn", false) && !st->st_size);

    json_decref(is);
    return other;
}

/* ---- deleting ---- */

/* Nobody writes to it any more: one that was made or changed since has another time. */
static json_t *identity(const struct stat *st)
{
    return json_pack("[I, I, I]", (json_int_t)st->st_ino, (json_int_t)st->st_ctim.tv_sec,
                     (json_int_t)st->st_ctim.tv_nsec);
}

/* st NULL: of none. Where there is no room even for that, the file goes all the same: it may be what makes
 * room. */
static int note_file(const char *entry, json_t *o, const struct stat *st, struct xm_error *e)
{
    struct xm_error why = {0};

    json_object_set_new(o, "file", st ? identity(st) : json_null());
    int r = xm_json_save(entry, o, &why);
    if (r == -ENOSPC || r == -EDQUOT)
        return 0;
    if (r && e)
        *e = why;
    return r;
}

static bool is_another(const json_t *o, const struct stat *st)
{
    const json_t *was = json_object_get(o, "file");
    json_t *is = identity(st);
    bool another = json_is_array(was) && !json_equal(was, is);

    json_decref(is);
    return another;
}

static int delete_file(const char *entry, json_t *o, left_used *used, void *ctx, struct xm_error *e)
{
    const char *path = xm_json_str(o, "path", "");
    bool planned = xm_json_bool(o, "planned", false);
    struct stat st;
    int fd = -1;

    if (stat(path, &st) < 0)
        return errno == ENOENT || errno == ENOTDIR ? was_deleted(path, planned, e)
                                                   : xm_error_errno(e, errno, "%s", path);
    if (planned && st.st_blocks) /* it was to be made */
        return 0;
    if (is_another(o, &st)) { /* it has been deleted; or somebody has changed it before it was */
        xm_log(XM_LOG_WARN, "%s stays: it is not the file, or not as it was, whose deletion was begun", path);
        return 0;
    }
    int r = S_ISREG(st.st_mode) ? lock_file(path, &fd, e) : 0;
    if (fd >= 0 && is_other_file(o, fd, &st)) {
        xm_log(XM_LOG_WARN, "%s stays: it is another file than the one that was to be deleted", path);
        close(fd);
        return 0;
    }
    struct xm_error why = {0};
    int is = used && (!r || r == -EBUSY) ? used(ctx, path, &why) : 0;
    if (is < 0 && !r)
        *e = why;
    if (is > 0 || !r)
        r = is;
    if (!r)
        r = note_file(entry, o, &st, e);
    if (!r && (r = xm_file_remove(path, e)) && access(path, F_OK) == 0)
        note_file(entry, o, NULL, NULL); /* what somebody does about that may change its time */
    if (fd >= 0)
        close(fd);
    return r < 0 ? r : 0;
}

int left_delete(const char *entry, left_used *used, void *ctx, struct xm_error *e)
{
    json_t *o = NULL;
    int r = xm_json_load(entry, &o, e);
    const char *path = xm_json_str(o, "path", "");

    if (!r && path[0] != '/')
        r = xm_error_set(e, EINVAL, "%s names no file", entry);
    if (!r) {
        xm_fault("left-delete");
        struct xm_error why = {0};
        r = delete_file(entry, o, used, ctx, &why);
        if (r)
            xm_error_set(e, -r, "cannot delete %s: %s", path, why.text);
    }
    if (!r) {
        xm_fault("left-deleted");
        r = xm_file_remove(entry, e);
    }
    json_decref(o);
    return r;
}
