/* SPDX-License-Identifier: MIT */
/* See journal.h. */
#include "vm/journal.h"
#include "vm/left.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const side_names[] = {"none", "source", "destination", "storage"};

/* Within a process: a source that begins, and a destination that hears how the VM's coming has ended, may
 * change it at once. The agent holds the VM meanwhile. */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

static char *path_of(const char *dir)
{
    return xm_printf("%s/journal.json", dir);
}

static json_t *pack_older(const struct journal_open *older, unsigned n)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:s s:I s:s}", "side", side_names[older[i].side], "epoch",
                                              (json_int_t)older[i].epoch, "peer", older[i].peer));
    return list;
}

static int save(const char *dir, enum journal_side side, uint64_t epoch, const char *peer,
                const struct owner_record *before, const json_t *spec, const json_t *files, bool planned,
                const struct journal_open *older, unsigned olders, struct xm_error *e)
{
    char *path = path_of(dir);
    json_t *o = json_pack("{s:s s:I s:s s:O? s:O*}", "side", side_names[side], "epoch", (json_int_t)epoch,
                          "peer", peer, "files", files, "spec", spec);
    int r = xm_mkdir_all(dir, e);

    if (before)
        json_object_set_new(o, "before",
                            json_pack("{s:s s:I s:s s:s s:b}", "owner", owner_side_name(before->owner),
                                      "epoch", (json_int_t)before->epoch, "to", before->to, "from",
                                      before->from, "settled", before->settled));
    if (planned)
        json_object_set_new(o, "planned", json_true());
    if (olders)
        json_object_set_new(o, "older", pack_older(older, olders));
    if (!r && xm_fault("journal-write"))
        r = xm_error_set(e, EIO, "%s: fault point journal-write", path);
    if (!r)
        r = xm_json_save(path, o, e);
    xm_fault("journal-written");
    json_decref(o);
    free(path);
    return r;
}

static bool is_handoff(enum journal_side side)
{
    return side == JOURNAL_SOURCE || side == JOURNAL_DESTINATION;
}

static bool is_of(const struct journal_open *o, const char *peer, uint64_t upto)
{
    return !strcmp(o->peer, peer) && o->epoch <= upto;
}

/* Its open hand-offs but those with `but` up to that epoch, the latest first; how many. A later one with the
 * same host says all that an earlier one would. */
static unsigned open_of(const struct journal *j, const char *but, uint64_t upto, struct journal_open *open)
{
    struct journal_open top = {.side = j->side, .epoch = j->epoch};
    unsigned n = 0;

    memcpy(top.peer, j->peer, sizeof top.peer);
    if (is_handoff(j->side) && !is_of(&top, but, upto))
        open[n++] = top;
    for (unsigned i = 0; i < j->olders; i++) {
        if (!is_of(&j->older[i], but, upto) && (!n || strcmp(j->older[i].peer, open[0].peer) != 0))
            open[n++] = j->older[i];
    }
    return n;
}

/* The definition that stands there, of an earlier stay; null: there is none. A new reference. */
static json_t *spec_before(const char *dir)
{
    char *path = xm_printf("%s/spec.json", dir);
    json_t *spec = NULL;

    xm_json_load(path, &spec, NULL);
    free(path);
    return spec ? spec : json_null();
}

static int write_coming(const char *dir, uint64_t epoch, const char *peer, const struct owner_record *before,
                        const json_t *files, bool planned, struct xm_error *e)
{
    json_t *spec = spec_before(dir);
    int r = save(dir, JOURNAL_DESTINATION, epoch, peer, before, spec, files, planned, NULL, 0, e);

    json_decref(spec);
    return r;
}

static int write_it(const char *dir, enum journal_side side, bool planned, uint64_t epoch, const char *peer,
                    const struct owner_record *before, const json_t *files, struct xm_error *e)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    struct journal j;

    if (side == JOURNAL_DESTINATION)
        return write_coming(dir, epoch, peer, before, files, planned, e);
    if (journal_read(dir, &j, e) < 0)
        return -EIO;
    unsigned n = open_of(&j, peer, UINT64_MAX, open);
    journal_free(&j);
    if (n > JOURNAL_OPEN_MAX)
        return xm_error_set(e, EBUSY, "%s/journal.json: hand-offs with %u hosts are open", dir, n);
    return save(dir, side, epoch, peer, before, NULL, files, planned, open, n, e);
}

int journal_write(const char *dir, enum journal_side side, uint64_t epoch, const char *peer,
                  const struct owner_record *before, const json_t *files, struct xm_error *e)
{
    pthread_mutex_lock(&changing);
    int r = write_it(dir, side, false, epoch, peer, before, files, e);
    pthread_mutex_unlock(&changing);
    return r;
}

int journal_plan(const char *dir, enum journal_side side, uint64_t epoch, const char *peer,
                 const struct owner_record *before, const json_t *files, struct xm_error *e)
{
    pthread_mutex_lock(&changing);
    int r = write_it(dir, side, true, epoch, peer, before, files, e);
    pthread_mutex_unlock(&changing);
    return r;
}

static void read_before(struct journal *j, const json_t *o)
{
    int side = owner_side_of(xm_json_str(o, "owner", ""));

    j->had_record = json_is_object(o) && side > OWNER_NONE;
    if (!j->had_record)
        return;
    j->before = (struct owner_record){.epoch = (uint64_t)xm_json_int(o, "epoch", 0),
                                      .owner = (enum owner_side)side,
                                      .settled = xm_json_bool(o, "settled", true)};
    snprintf(j->before.to, sizeof j->before.to, "%s", xm_json_str(o, "to", ""));
    snprintf(j->before.from, sizeof j->before.from, "%s", xm_json_str(o, "from", ""));
}

static enum journal_side side_of(const json_t *o)
{
    const char *name = xm_json_str(o, "side", "");

    for (unsigned i = 1; i < sizeof side_names / sizeof *side_names; i++) {
        if (!strcmp(name, side_names[i]))
            return (enum journal_side)i;
    }
    return JOURNAL_NONE;
}

static void read_older(struct journal *j, const json_t *list)
{
    json_t *o;
    size_t i;

    json_array_foreach ((json_t *)list, i, o) {
        struct journal_open *older = &j->older[j->olders];
        if (j->olders == JOURNAL_OPEN_MAX || !is_handoff(side_of(o)))
            continue;
        *older = (struct journal_open){.side = side_of(o), .epoch = (uint64_t)xm_json_int(o, "epoch", 0)};
        snprintf(older->peer, sizeof older->peer, "%s", xm_json_str(o, "peer", ""));
        j->olders++;
    }
}

int journal_read(const char *dir, struct journal *j, struct xm_error *e)
{
    char *path = path_of(dir);
    struct xm_error why = {0};
    json_t *o = NULL;
    int r = xm_json_load(path, &o, &why);

    memset(j, 0, sizeof *j);
    if (!r) {
        j->side = side_of(o);
        j->epoch = (uint64_t)xm_json_int(o, "epoch", 0);
        snprintf(j->peer, sizeof j->peer, "%s", xm_json_str(o, "peer", ""));
        j->files = json_incref(json_object_get(o, "files"));
        j->spec = json_incref(json_object_get(o, "spec"));
        j->planned = xm_json_bool(o, "planned", false);
        read_before(j, json_object_get(o, "before"));
        read_older(j, json_object_get(o, "older"));
        if (j->side == JOURNAL_NONE || !j->epoch) {
            journal_free(j);
            r = xm_error_set(&why, EINVAL, "%s: not a migration's journal", path);
        }
    }
    json_decref(o);
    free(path);
    if (r == -ENOENT)
        return 0;
    if (r && e)
        *e = why;
    return r;
}

const char *journal_path(const json_t *file)
{
    return json_is_string(file) ? json_string_value(file) : xm_json_str(file, "path", "");
}

void journal_free(struct journal *j)
{
    json_decref(j->files);
    json_decref(j->spec);
    memset(j, 0, sizeof *j);
}

/* Nothing of it is open any more. */
static int forget(const char *dir, struct xm_error *e)
{
    char *path = path_of(dir);
    int r = xm_fault("journal-end") ? xm_error_set(e, EIO, "%s: fault point journal-end", path)
                                    : xm_file_remove(path, e);

    xm_fault("journal-ended");
    free(path);
    return r;
}

/* Without its migration: the latest of those that are open takes its place. */
static int without_top(const char *dir, const struct journal_open *open, unsigned n, struct xm_error *e)
{
    json_t *none = json_array();
    int r =
        n ? save(dir, open[0].side, open[0].epoch, open[0].peer, NULL, NULL, none, false, open + 1, n - 1, e)
          : forget(dir, e);

    json_decref(none);
    return r;
}

int journal_end(const char *dir, struct xm_error *e)
{
    struct journal j;
    pthread_mutex_lock(&changing);
    int r = journal_read(dir, &j, e);

    if (!r)
        r = without_top(dir, j.older, j.olders, e);
    journal_free(&j);
    pthread_mutex_unlock(&changing);
    return r;
}

unsigned journal_asks(const struct journal *j, const struct owner_record *rec,
                      struct journal_open open[JOURNAL_OPEN_MAX + 1])
{
    unsigned n = open_of(j, "", 0, open);

    /* It comes, and is not ours yet. */
    if (n && j->side == JOURNAL_DESTINATION && j->epoch > rec->epoch)
        memmove(open, open + 1, --n * sizeof *open);
    return n;
}

static int close_it(const char *dir, const char *peer, uint64_t upto, struct xm_error *e)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (r)
        return r;
    unsigned n = open_of(&j, peer, upto, open);
    if (j.side == JOURNAL_STORAGE)
        r = save(dir, j.side, j.epoch, j.peer, NULL, NULL, j.files, j.planned, open, n, e);
    else if (j.side != JOURNAL_NONE && !strcmp(j.peer, peer) && j.epoch <= upto)
        r = without_top(dir, open, n, e);
    else if (j.side != JOURNAL_NONE) /* open[0] is the migration itself */
        r = save(dir, j.side, j.epoch, j.peer, j.had_record ? &j.before : NULL, j.spec, j.files, j.planned,
                 open + 1, n - 1, e);
    journal_free(&j);
    return r;
}

int journal_close(const char *dir, const char *peer, uint64_t upto, struct xm_error *e)
{
    pthread_mutex_lock(&changing);
    int r = close_it(dir, peer, upto, e);
    pthread_mutex_unlock(&changing);
    return r;
}

/* What a migration that came to nothing leaves in the directory of a VM that was never here. */
static void empty_dir(const char *dir)
{
    static const char *const names[] = {"spec.json", "owner.json"};

    for (unsigned i = 0; i < 2; i++) {
        char *path = xm_printf("%s/%s", dir, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(dir);
}

/* What it has put into spec.json names files that go: what was there before is there again. */
static int restore_spec(const char *dir, const json_t *spec, struct xm_error *e)
{
    char *path = xm_printf("%s/spec.json", dir);
    json_t *now = spec_before(dir);
    int r = !spec || json_equal(now, spec) ? 0
            : json_is_null(spec)           ? xm_file_remove(path, e)
                                           : xm_json_save(path, spec, e);

    json_decref(now);
    free(path);
    return r;
}

int journal_undo(const char *dir, const char *vm, struct xm_error *e)
{
    struct owner_record rec;
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (r || j.side != JOURNAL_DESTINATION) {
        journal_free(&j);
        return r;
    }
    struct xm_error why = {0};
    r = owner_load(dir, vm, &rec, &why);
    bool before = r == 0;
    if (r == -ENOENT)
        r = 0;
    else if (r)
        r = xm_error_set(e, why.code, "%s", why.text);
    else if (rec.owner == OWNER_PROMISED)
        r = xm_error_set(e, EBUSY, "VM %s may have been given to this host by %s: its disks are kept", vm,
                         rec.from);
    else if (rec.owner == OWNER_MINE || (rec.epoch >= j.epoch && !rec.settled))
        r = xm_error_set(e, EBUSY, "VM %s has come here since: its disks are kept", vm);
    if (!r)
        r = left_add(dir, vm, j.files, j.planned, e);
    if (!r)
        r = restore_spec(dir, j.spec, e);
    if (!r)
        r = forget(dir, e);
    if (!r && !before)
        empty_dir(dir);
    journal_free(&j);
    return r;
}

int journal_settle(const char *dir, const char *vm, struct xm_error *e)
{
    struct owner_record rec;
    struct journal j;
    int r = journal_read(dir, &j, e);

    if (r || j.side != JOURNAL_SOURCE) {
        journal_free(&j);
        return r;
    }
    r = owner_load(dir, vm, &rec, e);
    if (!r && (rec.owner != OWNER_GIVEN || !rec.settled || rec.epoch != j.epoch))
        r = xm_error_set(e, EBUSY, "VM %s is not known to run at %s: its disks here are kept", vm, j.peer);
    if (!r)
        r = left_add(dir, vm, j.files, j.planned, e);
    if (!r)
        r = forget(dir, e);
    journal_free(&j);
    return r;
}
