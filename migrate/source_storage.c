/* Storage-only: the disks move on this host, the VM stays. The second side of each disk is a file here, and the
 * switch is a pointer swap on the disk's thread. */
#include "migrate/source.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct move {
    struct xm_file *file; /* the new one, then the old one; malloc'ed */
    struct xm_writer *writer;
    char *path;
    bool created;
    struct source *m;
    sem_t done;
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

static void pivoted(void *arg, int status, const char *why)
{
    struct move *v = arg;
    v->result = status;
    snprintf(v->why, sizeof v->why, "%s", why ? why : "");
    sem_post(&v->done);
}

static void pivot(struct machine_disk *d, void *arg)
{
    struct move *v = arg;
    xm_disk_pivot(d->disk, v->file, pivoted, v);
}

static int move_begin(struct source *m, struct machine_disk *d, struct move *v)
{
    uint64_t size = d->file->size;
    int r = -ENOMEM;

    v->file = calloc(1, sizeof *v->file);
    if (v->file)
        r = xm_file_open(v->file, v->path, XM_FILE_CREATE, size, &m->error);
    if (r) {
        free(v->file);
        v->file = NULL;
        return r;
    }
    v->created = true;
    if (v->file->size != size)
        return xm_error_set(&m->error, EINVAL, "%s has %llu bytes, disk %s has %llu", v->path,
                            (unsigned long long)v->file->size, d->spec->name, (unsigned long long)size);
    machine_disk_call(d, make_writer, v);
    if (!v->writer)
        return xm_error_set(&m->error, ENOMEM, "disk %s: no memory for the second side", d->spec->name);
    return source_disk_mirror(m, d, v->file->reads_zero_new, v->writer);
}

static int move_pivot(struct source *m, struct machine_disk *d, struct move *v)
{
    machine_disk_call(d, pivot, v);
    while (sem_wait(&v->done) < 0) {
    }
    if (v->result)
        return xm_error_set(&m->error, -v->result, "disk %s: %s", d->spec->name, v->why);
    return 0;
}

/* After the pivot of one disk: v->file is the old file and d->file must name the new one; the spec follows.
 */
static int move_record(struct source *m, struct machine_disk *d, struct move *v, const char *datastore)
{
    struct xm_file *old = d->file;

    d->file = v->file;
    v->file = old;
    free(d->spec->path);
    d->spec->path = xm_printf("%s", v->path);
    snprintf(d->spec->datastore, sizeof d->spec->datastore, "%s", datastore);
    return machine_save_spec(m->machine, &m->error);
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

int source_storage(struct source *m)
{
    struct machine *vm = m->machine;
    struct move v[VM_DISKS_MAX] = {0};
    char old_store[VM_DISKS_MAX][64];
    int r = 0;
    unsigned moved = 0;

    for (unsigned i = 0; i < vm->disks; i++) {
        const char *path = wanted(m, vm->disk[i].spec->name, "path");
        v[i].m = m;
        sem_init(&v[i].done, 0, 0);
        v[i].path = xm_printf("%s", path ? path : "");
        snprintf(old_store[i], sizeof old_store[i], "%s", vm->disk[i].spec->datastore);
    }
    for (unsigned i = 0; !r && i < vm->disks; i++) {
        if (v[i].path[0])
            r = move_begin(m, &vm->disk[i], &v[i]);
    }
    while (!r) {
        bool all = true;
        for (unsigned i = 0; !r && i < vm->disks; i++) {
            bool one = true;
            if (v[i].writer) {
                one = source_disk_in_step(&vm->disk[i]);
                r = source_disk_check(m, &vm->disk[i]);
            }
            all &= one;
        }
        if (!r)
            r = source_interrupted(m);
        if (all || r)
            break;
        source_progress(m, false);
        qmp_pump(&vm->qemu.qmp, 10, NULL);
    }
    if (!r && m->opt.verify)
        r = source_disks_verify(m);
    for (unsigned i = 0; !r && i < vm->disks; i++) {
        if (!v[i].writer)
            continue;
        r = move_pivot(m, &vm->disk[i], &v[i]);
        if (!r) {
            moved++;
            r = move_record(m, &vm->disk[i], &v[i], xm_json_str(m->request, "datastore", ""));
        }
        v[i].created &= r != 0;
    }
    for (unsigned i = 0; i < vm->disks; i++) {
        bool swapped = v[i].path[0] && vm->disk[i].spec->path && !strcmp(vm->disk[i].spec->path, v[i].path);
        if (v[i].writer) {
            source_disk_mirror_off(&vm->disk[i]);
            machine_disk_call(&vm->disk[i], free_writer, &v[i]);
        }
        /* What is left in v is the file that the disk does not use: the old one after a pivot, else the
         * unfinished copy. */
        if (v[i].file) {
            bool ours =
                swapped ? !m->opt.keep_source && old_store[i][0] && !v[i].file->block_device : v[i].created;
            if (ours && unlink(v[i].file->path) < 0)
                xm_log(XM_LOG_WARN, "job %s: cannot delete %s", m->job, v[i].file->path);
            xm_file_close(v[i].file);
            free(v[i].file);
        }
        free(v[i].path);
        sem_destroy(&v[i].done);
    }
    if (r && moved)
        xm_error_prefix(&m->error, "%u disks have moved, then", moved);
    return r;
}
