/* The disks' part of a migration at the source: mirrors on, bulk copy, until every chunk is present; and
 * storage-only, where the second side is a file on this host and the switch is a pointer swap.
 *
 * The replicas belong to this file: made here, freed in source_disks_off, which waits until nothing of them
 * is in flight. */
#include "host/migration.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct mirror_on {
    struct migration *m;
    bool zeroed;
    struct xm_writer *near_writer; /* storage-only */
    int result;
    struct xm_error error;
};

static void mirror_on(struct shim_disk *d, void *arg)
{
    struct mirror_on *o = arg;

    d->replica = o->near_writer ? xm_replica_near(d->engine, o->near_writer, 1u << 20)
                                : xm_replica_far(d->engine, o->m->to, d->object, 1u << 20);
    if (!d->replica)
        o->result = xm_error_set(&o->error, ENOMEM, "disk %s: no memory for the mirror", d->spec->name);
    else
        o->result = xm_disk_mirror_on(d->disk, d->replica, o->zeroed, &o->error);
    if (o->result && d->replica) {
        xm_replica_free(d->replica);
        d->replica = NULL;
    }
}

/* ---- off ---- */

struct mirror_off {
    sem_t done;
    struct shim_disk *d;
};

static void off_done(void *arg)
{
    struct mirror_off *o = arg;
    xm_replica_free(o->d->replica);
    o->d->replica = NULL;
    sem_post(&o->done);
}

static void mirror_off(struct shim_disk *d, void *arg)
{
    struct mirror_off *o = arg;
    if (d->replica)
        xm_disk_mirror_off(d->disk, off_done, o);
    else
        sem_post(&o->done);
}

static void disk_mirror_off(struct shim_disk *d)
{
    struct mirror_off o = {.d = d};

    sem_init(&o.done, 0, 0);
    shim_disk_call(d, mirror_off, &o);
    while (sem_wait(&o.done) < 0) {
    }
    sem_destroy(&o.done);
}

void source_disks_off(struct migration *m)
{
    for (unsigned i = 0; i < m->shim->disks; i++)
        disk_mirror_off(&m->shim->disk[i]);
}

/* ---- the copy ---- */

static void in_step(struct shim_disk *d, void *arg)
{
    *(bool *)arg = xm_disk_in_step(d->disk);
}

static int check_disk(struct migration *m, struct shim_disk *d)
{
    struct xm_disk_status st;

    xm_disk_status(d->disk, &st);
    /* The driver tries a chunk again, behind all others, before it says so. */
    if (st.failed)
        return xm_error_set(&m->error, -st.failed, "disk %s: %s; the VM stays here", d->spec->name, st.why);
    return 0;
}

/* Judged on the disk's own thread: of two changes that come at once the later look sees both. In the switch the
 * guest is stopped, and what is on its way may wait for links that come back. */
static void note_links(struct shim_disk *d, void *arg)
{
    struct migration *m = arg;
    bool guest_runs = m->state == MIG_DISKS || m->state == MIG_MEMORY;

    xm_disk_replica_lost(d->disk, guest_runs && xm_links_up(m->links) == 0);
}

void source_disks_links(struct migration *m)
{
    for (unsigned i = 0; m->storage && i < m->shim->disks; i++)
        shim_disk_call(&m->shim->disk[i], note_links, m);
}

bool source_disks_in_step(struct migration *m)
{
    bool all = true;

    for (unsigned i = 0; m->storage && i < m->shim->disks; i++) {
        bool one = false;
        shim_disk_call(&m->shim->disk[i], in_step, &one);
        all &= one;
    }
    return all;
}

int source_disks_wait(struct migration *m)
{
    for (;;) {
        int r = migration_interrupted(m);
        for (unsigned i = 0; !r && i < m->shim->disks; i++)
            r = check_disk(m, &m->shim->disk[i]);
        if (r)
            return r;
        if (source_disks_in_step(m))
            return 0;
        migration_progress(m, false);
        qmp_pump(&m->shim->qemu.qmp, 10, NULL); /* waits, and hears what QEMU has to say */
    }
}

/* ---- flush ahead ---- */

static bool flush_over(void *ctx)
{
    struct migration *m = ctx;

    migration_progress(m, false);
    return migration_interrupted(m);
}

/* What the destination has of the disks becomes durable while the guest runs, so that the flush of the switch is short. However long
 * it takes its answer is waited for: the kernel tells of a failed write only once, and who does not hear it takes the next flush for
 * good. */
static int flush_ahead(struct migration *m, struct shim_disk *d)
{
    struct xm_msg msg = {.type = XM_FRAME_DISK_FLUSH, .object = d->object};
    struct xm_error e = {0};
    int r = xm_transport_call_until(m->to, &msg, flush_over, m, &e);
    int gone = migration_interrupted(m);

    free(msg.reply);
    if (gone || r == 0)
        return gone;
    return xm_error_set(&m->error, -r, "disk %s: flushing it at %s: %s", d->spec->name, m->destination,
                        e.text);
}

int source_disks_flush(struct migration *m)
{
    int r = 0;

    for (unsigned i = 0; m->storage && !r && i < m->shim->disks; i++)
        r = flush_ahead(m, &m->shim->disk[i]);
    return r;
}

/* ---- --verify ---- */

struct verify {
    sem_t done;
    int status;
    uint64_t differed;
    char why[300];
};

static void verified(void *arg, int status, uint64_t differed, const char *why)
{
    struct verify *v = arg;

    v->status = status;
    v->differed = differed;
    snprintf(v->why, sizeof v->why, "%s", why ? why : "");
    sem_post(&v->done);
}

static void verify_begin(struct shim_disk *d, void *arg)
{
    xm_disk_verify(d->disk, verified, arg);
}

/* Waits for one disk's comparison. Interrupted: its mirror goes off, which ends the comparison. */
static int verify_wait(struct migration *m, struct shim_disk *d, struct verify *v)
{
    int r = 0;

    while (!r && sem_trywait(&v->done) < 0) {
        r = migration_interrupted(m);
        migration_progress(m, false);
        qmp_pump(&m->shim->qemu.qmp, 10, NULL);
    }
    if (r) {
        disk_mirror_off(d);
        while (sem_wait(&v->done) < 0) {
        }
        return r;
    }
    if (v->status)
        return xm_error_set(&m->error, -v->status, "disk %s: %s", d->spec->name, v->why);
    if (v->differed)
        return xm_error_set(
            &m->error, EBADMSG,
            "disk %s: %llu chunks at %s differ from the source; the VM stays here. This must not happen: the "
            "destination's storage or memory may be bad",
            d->spec->name, (unsigned long long)v->differed, m->destination);
    return 0;
}

/* One disk after the other: each reads both sides whole. */
static int verify_disks(struct migration *m)
{
    int r = 0;

    for (unsigned i = 0; !r && i < m->shim->disks; i++) {
        struct shim_disk *d = &m->shim->disk[i];
        struct verify v = {0};
        if (!d->replica)
            continue;
        sem_init(&v.done, 0, 0);
        shim_disk_call(d, verify_begin, &v);
        r = verify_wait(m, d, &v);
        sem_destroy(&v.done);
        if (!r)
            m->report.verified += d->file->size;
    }
    return r;
}

int source_disks(struct migration *m)
{
    for (unsigned i = 0; i < m->shim->disks; i++) {
        struct mirror_on o = {.m = m, .zeroed = m->zeroed[i]};
        shim_disk_call(&m->shim->disk[i], mirror_on, &o);
        if (o.result) {
            m->error = o.error;
            return o.result;
        }
    }
    source_disks_links(m); /* they may have gone before there was a mirror to tell */
    int r = source_disks_wait(m);
    if (!r && m->opt.verify) {
        r = verify_disks(m);
        if (!r)
            r = source_disks_wait(m);
    }
    return r;
}

/* ---- storage-only ---- */

struct move {
    struct xm_file *file; /* the new one, then the old one; malloc'ed */
    struct xm_writer *writer;
    char *path;
    bool created;
    struct migration *m;
    sem_t done;
    int result;
    char why[300];
};

static void make_writer(struct shim_disk *d, void *arg)
{
    struct move *v = arg;
    v->writer = xm_writer_new(d->engine, v->file, NULL);
}

static void free_writer(struct shim_disk *d, void *arg)
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

static void pivot(struct shim_disk *d, void *arg)
{
    struct move *v = arg;
    xm_disk_pivot(d->disk, v->file, pivoted, v);
}

static int move_begin(struct migration *m, struct shim_disk *d, struct move *v)
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
    shim_disk_call(d, make_writer, v);
    struct mirror_on o = {.m = m, .zeroed = v->file->reads_zero_new, .near_writer = v->writer};
    if (!v->writer)
        return xm_error_set(&m->error, ENOMEM, "disk %s: no memory for the second side", d->spec->name);
    shim_disk_call(d, mirror_on, &o);
    if (o.result)
        m->error = o.error;
    return o.result;
}

static int move_pivot(struct migration *m, struct shim_disk *d, struct move *v)
{
    shim_disk_call(d, pivot, v);
    while (sem_wait(&v->done) < 0) {
    }
    if (v->result)
        return xm_error_set(&m->error, -v->result, "disk %s: %s", d->spec->name, v->why);
    return 0;
}

/* After the pivot of one disk: v->file is the old file and d->file must name the new one; the spec follows.
 */
static int move_record(struct migration *m, struct shim_disk *d, struct move *v, const char *datastore)
{
    struct xm_file *old = d->file;

    d->file = v->file;
    v->file = old;
    free(d->spec->path);
    d->spec->path = xm_printf("%s", v->path);
    snprintf(d->spec->datastore, sizeof d->spec->datastore, "%s", datastore);
    return shim_save_spec(m->shim, &m->error);
}

static const char *wanted(const struct migration *m, const char *disk, const char *key)
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

int source_storage(struct migration *m)
{
    struct shim *s = m->shim;
    struct move v[VM_DISKS_MAX] = {0};
    char old_store[VM_DISKS_MAX][64];
    int r = 0;
    unsigned moved = 0;

    for (unsigned i = 0; i < s->disks; i++) {
        const char *path = wanted(m, s->disk[i].spec->name, "path");
        v[i].m = m;
        sem_init(&v[i].done, 0, 0);
        v[i].path = xm_printf("%s", path ? path : "");
        snprintf(old_store[i], sizeof old_store[i], "%s", s->disk[i].spec->datastore);
    }
    for (unsigned i = 0; !r && i < s->disks; i++) {
        if (v[i].path[0])
            r = move_begin(m, &s->disk[i], &v[i]);
    }
    while (!r) {
        bool all = true;
        for (unsigned i = 0; !r && i < s->disks; i++) {
            bool one = true;
            if (v[i].writer) {
                shim_disk_call(&s->disk[i], in_step, &one);
                r = check_disk(m, &s->disk[i]);
            }
            all &= one;
        }
        if (!r)
            r = migration_interrupted(m);
        if (all || r)
            break;
        migration_progress(m, false);
        qmp_pump(&s->qemu.qmp, 10, NULL);
    }
    if (!r && m->opt.verify)
        r = verify_disks(m);
    for (unsigned i = 0; !r && i < s->disks; i++) {
        if (!v[i].writer)
            continue;
        r = move_pivot(m, &s->disk[i], &v[i]);
        if (!r) {
            moved++;
            r = move_record(m, &s->disk[i], &v[i], xm_json_str(m->request, "datastore", ""));
        }
        v[i].created &= r != 0;
    }
    for (unsigned i = 0; i < s->disks; i++) {
        bool swapped = v[i].path[0] && s->disk[i].spec->path && !strcmp(s->disk[i].spec->path, v[i].path);
        if (v[i].writer) {
            disk_mirror_off(&s->disk[i]);
            shim_disk_call(&s->disk[i], free_writer, &v[i]);
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
