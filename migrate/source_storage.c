/* SPDX-License-Identifier: MIT */
/* Storage-only: the disks move on this host, the VM stays. The second side of each disk is a file here, and
 * the switch is a pointer swap on the disk's thread. */
#include "migrate/source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct move {
    struct xm_file *file; /* the new one; swapped for the old one on the disk's thread; malloc'ed */
    int fd;               /* of the new one */
    struct xm_writer *writer;
    char *path;
    const char *datastore;
    uint64_t rate; /* of the bulk copy: bytes a second; 0: no limit */
    bool created;
    bool last; /* of those that move: with it the move is done */
    struct source *source;
    struct machine_disk *disk;
    sem_t done;
    struct xm_error error; /* of commit */
    int result;
    char why[300];
};

static void make_writer(struct machine_disk *d, void *arg)
{
    struct move *v = arg;
    v->writer = xm_writer_new(d->engine, v->file, NULL);
}

static void free_writer(struct machine_disk *d, void *arg)
{
    struct move *v = arg;
    (void)d;
    xm_writer_free(v->writer);
    v->writer = NULL;
}

/* On the disk's thread, which knows alone where the disk is: who asks is told one place or the other. */
static void pivoted(void *arg, int status, const char *why)
{
    struct move *v = arg;
    struct xm_file *old = v->disk->file;

    if (!status) {
        v->disk->file = v->file;
        v->file = old;
    }
    v->result = status;
    snprintf(v->why, sizeof v->why, "%s", why ? why : "");
    sem_post(&v->done);
}

/* Which file spec.json names after a power cut is not known, and the guest is about to write to the old one
 * alone. The new one must not be taken for the disk then, nor by a shim that comes after this one: an empty
 * file takes its place, while it has nothing that the old one has not. By that whoever finds it named knows
 * that the disk is where it was (journal_mend); that a file is not there may have other reasons. Nothing is
 * deleted before spec.json can be written again (shim_run tries it, and who starts the VM). */
static void withdraw_new_file(struct move *v)
{
    enum { TRIES = 3 };
    struct machine *vm = v->disk->machine;
    struct xm_error e = {0};
    int r = -EIO;

    vm->spec_uncertain = true;
    for (int i = 0; r < 0 && i < TRIES; i++)
        r = xm_file_replace(v->path, "", 0, &e);
    if (r < 0 && xm_file_remove(v->path, &e) < 0)
        xm_log(XM_LOG_ERROR, "VM %s: disk %s stays in %s; %s is not to be used: %s", vm->spec.name,
               v->disk->spec->name, v->disk->spec->path, v->path, e.text);
}

/* On the disk's thread, with the guest's requests held and both files alike; the source's thread waits for
 * it. spec.json names the new file before a write comes that only that one has. */
static int commit(void *arg)
{
    struct move *v = arg;
    struct vm_disk *d = v->disk->spec;
    struct machine *vm = v->disk->machine;
    char *old = d->path, store[sizeof d->datastore];

    if (v->last && !source_past_abort(v->source))
        return xm_error_set(&v->error, ECANCELED, "aborted: %s", v->source->asked.reason);
    memcpy(store, d->datastore, sizeof store);
    d->path = xm_printf("%s", v->path);
    snprintf(d->datastore, sizeof d->datastore, "%s", v->datastore);
    xm_fault("pivot-before-record");
    int r = machine_save_spec(vm, &v->error);
    xm_fault("pivot-after-record");
    if (!r) {
        free(old);
        return 0;
    }
    if (v->last)
        source_abort_again(v->source);
    /* It may be durable all the same: so the old one is written over it. */
    free(d->path);
    d->path = old;
    memcpy(d->datastore, store, sizeof store);
    struct xm_error again = {0};
    if (machine_save_spec(vm, &again) == 0)
        return r;
    withdraw_new_file(v);
    xm_fault("pivot-uncertain");
    return xm_error_set(
        &v->error, v->error.code,
        "%.200s; where the disk stays cannot be recorded either: %.200s. VM %s runs on in %s, "
        "and is not to be stopped before %s can be written",
        v->error.text, again.text, vm->spec.name, old, vm->state_dir);
}

static void pivot(struct machine_disk *d, void *arg)
{
    struct move *v = arg;
    xm_disk_pivot(d->disk, v->file, commit, pivoted, v);
}

static void set_rate(struct machine_disk *d, void *arg)
{
    const struct move *v = arg;
    xm_disk_copy_rate(d->disk, v->rate);
}

/* What --bandwidth gives is for all disks that still copy, each the same; `set` may change it. */
static void share_rate(struct source *m, struct move *v)
{
    unsigned copying = 0;

    for (unsigned i = 0; i < m->machine->disks; i++)
        copying += v[i].writer && !source_disk_in_step(&m->machine->disk[i]);
    uint64_t rate = copying && m->asked.rate ? XM_MAX(m->asked.rate / copying, 1) : m->asked.rate;
    for (unsigned i = 0; i < m->machine->disks; i++) {
        if (!v[i].writer || v[i].rate == rate)
            continue;
        v[i].rate = rate;
        machine_disk_call(&m->machine->disk[i], set_rate, &v[i]);
    }
}

/* It was looked at when the move was asked for. Unmounted since, the new file would lie where it was mounted,
 * and be hidden by the next mount. */
static int in_datastore(struct source *m, const struct move *v)
{
    const json_t *mark = json_object_get(m->request, "mark");
    const char *path = xm_json_str(mark, "path", ""), *want = xm_json_str(mark, "names", "");
    char names[64] = "";

    if (!mark || (readlink(path, names, sizeof names - 1) > 0 && !strcmp(names, want)))
        return 0;
    return xm_error_set(
        &m->error, ENOENT,
        "datastore '%s' on %s: what is at %s is not what was there a moment ago: is it mounted?",
        v->datastore, m->machine->host, path);
}

static int make_file(struct source *m, struct machine_disk *d, struct move *v)
{
    uint64_t size = d->file->size;
    unsigned sectors = d->spec->block_size == 512 ? XM_FILE_SECTORS : 0; /* the guest's block stays */
    int r = -ENOMEM;

    v->file = calloc(1, sizeof *v->file);
    if (v->file)
        r = xm_file_open(v->file, v->path, XM_FILE_CREATE | sectors, size, &m->error);
    v->fd = r ? -1 : v->file->fd;
    v->created = r != -EEXIST; /* one that could not be made durable may be there again after a power cut */
    if (r) {
        free(v->file);
        v->file = NULL;
    } else if (v->file->size != size) {
        r = xm_error_set(&m->error, EINVAL, "%s has %llu bytes, disk %s has %llu", v->path,
                         (unsigned long long)v->file->size, d->spec->name, (unsigned long long)size);
    } else {
        r = in_datastore(m, v);
    }
    return r;
}

static int move_begin(struct source *m, struct machine_disk *d, struct move *v)
{
    machine_disk_call(d, make_writer, v);
    if (!v->writer)
        return xm_error_set(&m->error, ENOMEM, "disk %s: no memory for the second side", d->spec->name);
    return source_disk_mirror(m, d, v->file->reads_zero_new, v->writer);
}

/* What may be left over, whoever ends this: the files that are to be made, or were, with where each disk is
 * until then; and the old ones if they shall go. */
static int open_journal(struct source *m, const struct move *v, bool planned)
{
    struct machine *vm = m->machine;
    json_t *files = json_array();
    struct xm_error why = {0};

    for (unsigned i = 0; i < vm->disks; i++) {
        const struct machine_disk *d = &vm->disk[i];
        if (!v[i].path || (planned ? !v[i].path[0] : !v[i].created))
            continue;
        json_t *new = json_pack("{s:s s:s s:s}", "path", v[i].path, "was", d->spec->path, "datastore",
                                d->spec->datastore);
        json_t *made = left_file(v[i].path, v[i].file ? v[i].file->fd : -1);
        json_object_update(new, made);
        json_decref(made);
        json_array_append_new(files, new);
        if (!source_disk_stays(m, d))
            json_array_append_new(files, left_file(d->spec->path, d->file->fd));
    }
    int r = (planned ? journal_plan : journal_write)(vm->state_dir, JOURNAL_STORAGE, vm->epoch,
                                                     m->destination, NULL, files, &why);
    json_decref(files);
    if (r && !m->error.code) /* the first is the cause */
        m->error = why;
    return r;
}

/* The journal first says what is to be made, then what was: what stands in the way of one is somebody
 * else's. */
static int make_files(struct source *m, struct move *v)
{
    int r = open_journal(m, v, true);

    xm_fault("storage-journaled");
    if (r)
        return r;
    for (unsigned i = 0; !r && i < m->machine->disks; i++)
        r = v[i].path[0] ? make_file(m, &m->machine->disk[i], &v[i]) : 0;
    xm_fault("storage-made");
    int noted = open_journal(m, v, false);
    return r ? r : noted;
}

static const char *wanted(const struct source *m, const char *disk, const char *key)
{
    json_t *list = json_object_get(m->request, "disks");
    json_t *o;
    size_t i;

    json_array_foreach (list, i, o) {
        if (!strcmp(xm_json_str(o, "name", ""), disk))
            return xm_json_str(o, key, NULL);
    }
    return NULL;
}

/* min_free stays free, whatever fills the datastore meanwhile: looked at between two pumps, some 10 ms apart.
 */
static int leaves_min_free(struct source *m, const struct move *v)
{
    uint64_t min_free = (uint64_t)xm_json_int(m->request, "min_free", 0);
    struct statvfs fs;

    if (fstatvfs(v->fd, &fs) < 0)
        return xm_error_errno(&m->error, errno, "datastore '%s' on %s", v->datastore, m->machine->host);
    if ((uint64_t)fs.f_bavail * fs.f_frsize >= min_free)
        return 0;
    return xm_error_set(&m->error, ENOSPC, "datastore '%s' on %s is full: %s of it stay free (min_free)",
                        v->datastore, m->machine->host, xm_format_size(min_free).s);
}

/* Until every disk's second side has all of it. */
static int copy_all(struct source *m, struct move *v)
{
    struct machine *vm = m->machine;

    pace_reset(&m->progress.pace);
    pace_reset(&m->progress.shown);
    for (;;) {
        bool all = true;
        share_rate(m, v);
        int r = source_interrupted(m);
        if (!r)
            r = source_disks_pace(m);
        for (unsigned i = 0; !r && i < vm->disks; i++) {
            if (!v[i].writer)
                continue;
            all &= source_disk_in_step(&vm->disk[i]);
            r = source_disk_check(m, &vm->disk[i]);
            if (!r)
                r = leaves_min_free(m, &v[i]);
        }
        if (all || r)
            return r;
        source_turn(m, 10);
    }
}

/* The disk may have to come into step anew, which a guest can keep it from. Given up: its mirror goes off,
 * which ends the swap, unless that has come about by then. */
static int move_pivot(struct source *m, struct machine_disk *d, struct move *v)
{
    int r = 0;

    pace_reset(&m->progress.pace);
    machine_disk_call(d, pivot, v);
    while (!r && sem_trywait(&v->done) < 0) {
        r = source_interrupted(m);
        if (!r && source_disk_in_step(d)) /* it flushes, say: the guest's writes are no copy's then */
            pace_reset(&m->progress.pace);
        else if (!r)
            r = source_disks_pace(m);
        if (!r)
            r = leaves_min_free(m, v);
        source_turn(m, 10);
    }
    if (r) {
        source_disk_mirror_off(d);
        while (sem_wait(&v->done) < 0) {
        }
        if (v->result)
            return r;
        m->error = (struct xm_error){0};
    }
    if (v->result == -ECANCELED && (r = source_interrupted(m)) < 0)
        return r;
    if (v->result)
        return xm_error_set(&m->error, -v->result, "disk %s: %s%s%s", d->spec->name, v->why,
                            v->error.code ? ": " : "", v->error.text);
    return 0;
}

bool source_disk_moves(const struct source *m, const struct machine_disk *d)
{
    const char *path = m->local ? wanted(m, d->spec->name, "path") : NULL;

    return m->local ? path && path[0] : m->storage;
}

int source_storage(struct source *m)
{
    struct machine *vm = m->machine;
    struct move v[VM_DISKS_MAX] = {0};
    int r = 0;
    unsigned moved = 0;

    for (unsigned i = 0; i < vm->disks; i++) {
        const char *path = wanted(m, vm->disk[i].spec->name, "path");
        v[i].disk = &vm->disk[i];
        v[i].source = m;
        v[i].datastore = xm_json_str(m->request, "datastore", "");
        sem_init(&v[i].done, 0, 0);
        v[i].path = xm_printf("%s", path ? path : "");
    }
    r = journal_sweep(vm->state_dir, vm->spec.name, &m->error); /* of one before it that was cut */
    if (!r)
        r = make_files(m, v);
    for (unsigned i = 0; !r && i < vm->disks; i++) {
        r = v[i].file ? move_begin(m, &vm->disk[i], &v[i]) : 0;
        for (unsigned j = 0; v[i].file && j <= i; j++)
            v[j].last = j == i;
        share_rate(m, v);
    }
    xm_fault("storage-created");
    if (!r)
        r = copy_all(m, v);
    xm_fault("storage-copied");
    if (!r && m->opt.verify)
        r = source_disks_verify(m);
    for (unsigned i = 0; !r && i < vm->disks; i++) {
        if (!v[i].writer)
            continue;
        char *old = source_disk_stays(m, &vm->disk[i]) ? xm_printf("%s", vm->disk[i].file->path) : NULL;
        r = move_pivot(m, &vm->disk[i], &v[i]);
        moved += r == 0;
        if (!r && old)
            json_array_append_new(m->kept, json_string(old));
        free(old);
    }
    for (unsigned i = 0; i < vm->disks; i++) {
        if (v[i].writer) {
            source_disk_mirror_off(&vm->disk[i]);
            machine_disk_call(&vm->disk[i], free_writer, &v[i]);
        }
        if (v[i].file) /* the one that the disk does not use: the old one, or an unfinished copy */
            xm_file_close(v[i].file);
        free(v[i].file);
        free(v[i].path);
        sem_destroy(&v[i].done);
    }
    xm_fault("storage-sweep");
    if (!vm->spec_uncertain && journal_sweep(vm->state_dir, vm->spec.name, &m->left) < 0)
        xm_log(XM_LOG_WARN, "job %s: %s", m->job, m->left.text);
    if (r && moved)
        xm_error_prefix(&m->error, "%u disks have moved, then", moved);
    return r;
}
