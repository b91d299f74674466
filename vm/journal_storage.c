/* SPDX-License-Identifier: MIT */
/* The journal of a storage-only move, see journal.h: which of a disk's two files is the disk after the
 * move was cut. */
#include "vm/journal.h"
#include "vm/left.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What spec.json says, and after a power cut will still say: its writer may have been killed before it had
 * made that durable, or have failed in it. */
static json_t *durable_spec(const char *dir, struct xm_error *e)
{
    char *path = xm_printf("%s/spec.json", dir);
    json_t *spec = NULL;
    int r = xm_json_load(path, &spec, e);

    if (!r && !json_is_array(json_object_get(spec, "disks")))
        r = xm_error_set(e, EINVAL, "%s names no disks", path);
    if (!r)
        r = xm_sync_directory_of(path, e);
    if (r) {
        json_decref(spec);
        spec = NULL;
    }
    free(path);
    return spec;
}

/* The disk in it is named by the specification. */
static bool is_named(const json_t *spec, const char *file)
{
    const json_t *d;
    size_t i;

    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        if (!strcmp(xm_json_str(d, "path", ""), file))
            return true;
    }
    return false;
}

/* The disk was about to move into this file, and has not: what stands in its place is empty, as no disk is
 * (migrate/source_storage.c). NULL, or what the journal has of it. */
static const json_t *withdrawn(const struct journal *j, const char *path)
{
    struct stat st;
    json_t *v;
    size_t i;

    json_array_foreach (j->files, i, v) {
        if (json_object_get(v, "was") && !strcmp(journal_path(v), path))
            return stat(path, &st) == 0 && S_ISREG(st.st_mode) && !st.st_size ? v : NULL;
    }
    return NULL;
}

static int mend_disks(const struct journal *j, json_t *spec)
{
    json_t *d;
    size_t i;
    int n = 0;

    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        const json_t *v = withdrawn(j, xm_json_str(d, "path", ""));
        if (!v)
            continue;
        json_object_set(d, "path", json_object_get(v, "was"));
        json_object_set(d, "datastore", json_object_get(v, "datastore"));
        n++;
    }
    return n;
}

int journal_mend(const char *dir, struct xm_error *e)
{
    struct journal j;
    json_t *spec = NULL;
    int r = journal_read(dir, &j, e);

    if (!r && j.side == JOURNAL_STORAGE) {
        char *path = xm_printf("%s/spec.json", dir);
        r = xm_json_load(path, &spec, e);
        xm_fault("journal-mend");
        if (!r && mend_disks(&j, spec))
            r = xm_json_save(path, spec, e);
        json_decref(spec);
        free(path);
    }
    journal_free(&j);
    return r;
}

/* Takes those out of the list that the specification names. One that cannot be read, or names a file that is
 * not there, deletes nothing: the other one may be the only copy. */
static int keep_named(struct journal *j, const char *dir, struct xm_error *e)
{
    json_t *spec = durable_spec(dir, e), *left = json_array(), *v;
    size_t i;
    int r = spec ? 0 : -EIO;

    json_array_foreach (j->files, i, v) {
        const char *file = journal_path(v);
        if (!is_named(spec, file))
            json_array_append(left, v);
        else if (!r && (access(file, F_OK) < 0 || withdrawn(j, file)))
            r = xm_error_set(e, ENOENT, "%s/spec.json names %s, where the disk is not: nothing is deleted",
                             dir, file);
    }
    json_decref(spec);
    if (r) {
        json_decref(left);
        return r;
    }
    json_decref(j->files);
    j->files = left;
    return 0;
}

int journal_sweep(const char *dir, const char *vm, struct xm_error *e)
{
    struct owner_record rec;
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (r || j.side != JOURNAL_STORAGE) {
        journal_free(&j);
        return r;
    }
    r = owner_load(dir, vm, &rec, e);
    if (!r && rec.owner != OWNER_MINE)
        r = xm_error_set(e, EBUSY, "VM %s is not known to be this host's: no disk is deleted", vm);
    if (!r)
        r = keep_named(&j, dir, e);
    if (!r)
        r = left_add(dir, vm, j.files, j.planned, e);
    if (!r)
        r = journal_end(dir, e);
    journal_free(&j);
    return r;
}
