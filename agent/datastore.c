/* SPDX-License-Identifier: MIT */
/* See datastore.h. The mark in the datastore is durable before datastores.json has it: killed in between, the
 * next use takes over what it finds. */
#include "agent/datastore.h"
#include "agent/mounts.h"
#include "agent/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define MARK      ".xmigrate-datastore"
#define UUID_LEN  36
#define UUID_SIZE (UUID_LEN + 1)

static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER; /* datastores.json */

/* As make_mark writes it. Anybody who may write into the datastore may have made another link. */
static bool is_uuid(const char *s)
{
    for (size_t i = 0; i < UUID_LEN; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? s[i] != '-' : !strchr("0123456789abcdef", s[i]) || !s[i])
            return false;
    }
    return !s[UUID_LEN];
}

/* "": there is none. */
static int read_mark(const struct conf_datastore *ds, char uuid[UUID_SIZE], struct xm_error *e)
{
    char *path = xm_printf("%s/%s", ds->path, MARK);
    ssize_t n = readlink(path, uuid, UUID_SIZE);
    int r = 0;

    uuid[n > 0 && n < UUID_SIZE ? n : 0] = 0;
    if (n < 0 && errno != ENOENT)
        r = xm_error_errno(e, errno, "cannot read %s", path);
    else if (n >= 0 && !is_uuid(uuid))
        r = xm_error_set(e, EINVAL,
                         "%s names no UUID: it is not xmigrate's; remove it if this is the right datastore",
                         path);
    free(path);
    return r;
}

static int make_mark(const struct conf_datastore *ds, char uuid[UUID_SIZE], struct xm_error *e)
{
    unsigned char b[16];

    if (getrandom(b, sizeof b, 0) != sizeof b)
        return xm_error_errno(e, errno, "no random numbers");
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, UUID_SIZE, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    char *path = xm_printf("%s/%s", ds->path, MARK);
    int r = symlink(uuid, path) < 0 && errno != EEXIST ? xm_error_errno(e, errno, "cannot make %s", path)
                                                       : xm_sync_directory_of(path, e);

    free(path);
    return r ? r : read_mark(ds, uuid, e); /* the other host's, which was quicker */
}

/* All that is noted; NULL when it cannot be read: then no datastore is taken for one that is used for the
 * first time, and none is forgotten. */
static json_t *known(const struct agent *a, struct xm_error *e)
{
    char *path = xm_printf("%s/datastores.json", a->conf.state_dir);
    json_t *o = access(path, F_OK) < 0 && errno == ENOENT ? json_object() : read_json(path, e);

    free(path);
    return o;
}

static int note(struct agent *a, const struct conf_datastore *ds, const char *uuid, struct xm_error *e)
{
    char *path = xm_printf("%s/datastores.json", a->conf.state_dir);

    pthread_mutex_lock(&writing);
    json_t *o = known(a, e);
    json_object_set_new(o, ds->name, json_string(uuid));
    int r = o ? write_json(path, o, e) : -EIO;
    pthread_mutex_unlock(&writing);
    json_decref(o);
    free(path);
    return r;
}

/* What is mounted there now may be the right one all the same: when it was not mounted the first time that
 * the datastore was used, what it was mounted over has the mark. */
static int refuse_other(struct agent *a, const struct conf_datastore *ds, const char *was, const char *is,
                        struct xm_error *e)
{
    char *mend = is[0] ? xm_printf("write %s for it into %s/datastores.json", is, a->conf.state_dir)
                       : xm_printf("ln -sfn %s %s/" MARK, was, ds->path);

    xm_error_set(
        e, ENOENT,
        "datastore '%s' of %s: what is at %s is not what was there when it was first used: is it mounted? "
        "If this is the right one, made anew or not mounted that time: %s",
        ds->name, a->conf.name, ds->path, mend);
    free(mend);
    return -ENOENT;
}

/* The first use of what is not mounted would mark the mount point, and its disks would be hidden by the
 * mount. */
static int refuse_unmounted(const struct agent *a, const struct conf_datastore *ds, struct xm_error *e)
{
    char *by, *dir = mounts_missing(ds->path, &by);

    if (dir)
        xm_error_set(
            e, ENOENT,
            "datastore '%s' of %s: nothing is mounted at %s, a mount point in %s: `mount %s`; or, if it is "
            "to stay a plain directory, take it out of there",
            ds->name, a->conf.name, dir, by, dir);
    free(by);
    free(dir);
    return dir ? -ENOENT : 0;
}

/* *was, *is: "" where there is none. */
static int compare(struct agent *a, const struct conf_datastore *ds, char was[UUID_SIZE], char is[UUID_SIZE],
                   struct xm_error *e)
{
    json_t *all = known(a, e);

    if (!all)
        return -EIO;
    snprintf(was, UUID_SIZE, "%s", xm_json_str(all, ds->name, ""));
    json_decref(all);
    if (storage_hangs(ds->path, e) < 0)
        return -ETIMEDOUT;
    if (access(ds->path, W_OK | X_OK) < 0)
        return xm_error_errno(e, errno, "datastore '%s' of %s cannot be written: %s", ds->name, a->conf.name,
                              ds->path);
    int r = read_mark(ds, is, e);
    if (r)
        return xm_error_prefix(e, "datastore '%s' of %s", ds->name, a->conf.name);
    bool other = was[0] && strcmp(was, is) != 0;
    if (other || !is[0])
        r = refuse_unmounted(a, ds, e);
    return !r && other ? refuse_other(a, ds, was, is, e) : r;
}

int datastore_judge(struct agent *a, const struct conf_datastore *ds, struct xm_error *e)
{
    char was[UUID_SIZE], is[UUID_SIZE];

    return compare(a, ds, was, is, e);
}

int datastore_use(struct agent *a, const struct conf_datastore *ds, struct xm_error *e)
{
    char was[UUID_SIZE], is[UUID_SIZE];
    int r = compare(a, ds, was, is, e);

    if (!r && !is[0])
        r = make_mark(ds, is, e);
    if (!r && !was[0])
        r = note(a, ds, is, e);
    return r;
}

json_t *datastore_mark(struct agent *a, const struct conf_datastore *ds)
{
    struct xm_error ignored = {0};
    json_t *all = known(a, &ignored), *mark = NULL;
    const char *uuid = xm_json_str(all, ds->name, "");

    if (uuid[0])
        mark = json_pack("{s:o, s:s}", "path", json_sprintf("%s/%s", ds->path, MARK), "names", uuid);
    json_decref(all);
    return mark;
}
