/* SPDX-License-Identifier: MIT */
/* The disks' part of a migration at the source: mirrors on, bulk copy, until every chunk is present.
 *
 * The replicas belong to this file: made here, freed in source_disks_off, which waits until nothing of them
 * is in flight. */
#include "migrate/source.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct mirror_on {
    struct source *m;
    bool zeroed;
    struct xm_writer *near_writer; /* storage-only */
    int result;
    struct xm_error error;
};

static void mirror_on(struct machine_disk *d, void *arg)
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

int source_disk_mirror(struct source *m, struct machine_disk *d, bool zeroed, struct xm_writer *near)
{
    struct mirror_on o = {.m = m, .zeroed = zeroed, .near_writer = near};

    machine_disk_call(d, mirror_on, &o);
    if (o.result)
        m->error = o.error;
    return o.result;
}

/* ---- off ---- */

struct mirror_off {
    sem_t done;
    struct machine_disk *d;
};

static void off_done(void *arg)
{
    struct mirror_off *o = arg;
    xm_replica_free(o->d->replica);
    o->d->replica = NULL;
    sem_post(&o->done);
}

static void mirror_off(struct machine_disk *d, void *arg)
{
    struct mirror_off *o = arg;
    if (d->replica)
        xm_disk_mirror_off(d->disk, off_done, o);
    else
        sem_post(&o->done);
}

void source_disk_mirror_off(struct machine_disk *d)
{
    struct mirror_off o = {.d = d};

    sem_init(&o.done, 0, 0);
    machine_disk_call(d, mirror_off, &o);
    while (sem_wait(&o.done) < 0) {
    }
    sem_destroy(&o.done);
}

void source_disks_off(struct source *m)
{
    for (unsigned i = 0; i < m->machine->disks; i++)
        source_disk_mirror_off(&m->machine->disk[i]);
}

/* ---- the copy ---- */

static void in_step(struct machine_disk *d, void *arg)
{
    *(bool *)arg = xm_disk_in_step(d->disk);
}

int source_disk_check(struct source *m, struct machine_disk *d)
{
    struct xm_disk_status st;

    xm_disk_status(d->disk, &st);
    /* By storage-only such a write gets to where there is room. */
    if (st.waiting && !m->local)
        return xm_error_set(
            &m->error, ENOSPC,
            "disk %s: there is no room in the file system of %s for what the guest writes, which "
            "waits for it; the VM stays here",
            d->spec->name, d->file->path);
    /* The driver tries a chunk again, behind all others, before it says so. */
    if (!st.failed)
        return 0;
    /* A destination that ends says why, and then its links go: that is the cause, whoever sees which first.
     */
    int r = source_interrupted(m);
    return r ? r
             : xm_error_set(&m->error, -st.failed, "disk %s: %s; the VM stays here", d->spec->name, st.why);
}

/* Judged on the disk's own thread: of two changes that come at once the later look sees both. In the switch
 * the guest is stopped, and what is on its way may wait for links that come back. */
static void note_links(struct machine_disk *d, void *arg)
{
    struct source *m = arg;
    bool guest_runs = m->state == SOURCE_DISKS || m->state == SOURCE_MEMORY;

    xm_disk_replica_lost(d->disk, guest_runs && xm_links_up(m->links) == 0);
}

void source_disks_links(struct source *m)
{
    for (unsigned i = 0; m->storage && i < m->machine->disks; i++)
        machine_disk_call(&m->machine->disk[i], note_links, m);
}

bool source_disk_in_step(struct machine_disk *d)
{
    bool is = false;

    machine_disk_call(d, in_step, &is);
    return is;
}

bool source_disks_in_step(struct source *m)
{
    bool all = true;

    for (unsigned i = 0; m->storage && i < m->machine->disks; i++)
        all &= source_disk_in_step(&m->machine->disk[i]);
    return all;
}

int source_disks_pace(struct source *m)
{
    const struct pace *p = &m->progress.pace;

    if (m->asked.persist || !pace_stuck(p))
        return 0;
    return xm_error_set(
        &m->error, ETIMEDOUT,
        "the guest writes to its disks faster than the copy at %s takes it: %s are left and do "
        "not become less; its writes, and what they have to be copied again, are %s, and %s "
        "are taken: it needs a faster link or disk there, a guest that writes less, or "
        "--outrun=go-on",
        m->local ? xm_json_str(m->request, "datastore", "the datastore") : m->destination,
        xm_format_size(p->last.left).s, xm_format_rate(p->needed).s, xm_format_rate(p->had).s);
}

int source_disks_wait(struct source *m)
{
    pace_reset(&m->progress.pace);
    pace_reset(&m->progress.shown);
    for (;;) {
        int r = source_interrupted(m);
        if (!r)
            r = source_disks_pace(m);
        for (unsigned i = 0; !r && i < m->machine->disks; i++)
            r = source_disk_check(m, &m->machine->disk[i]);
        if (r)
            return r;
        if (source_disks_in_step(m))
            return 0;
        source_turn(m, 10);
    }
}

/* ---- flush ahead ---- */

/* What the destination has of the disks becomes durable while the guest runs, so that the flush of the
 * switch is short. However long it takes its answer is waited for: the kernel tells of a failed write only
 * once, and who does not hear it takes the next flush for good. */
static int flush_ahead(struct source *m, struct machine_disk *d)
{
    struct xm_msg msg = {.type = XM_FRAME_DISK_FLUSH, .object = d->object};
    struct xm_error e = {0};
    int r = xm_transport_call_until(m->to, &msg, source_waits, m, &e);
    int gone = source_interrupted(m);

    free(msg.reply);
    if (gone || r == 0)
        return gone;
    return xm_error_set(&m->error, -r, "disk %s: flushing it at %s: %s", d->spec->name, m->destination,
                        e.text);
}

int source_disks_flush(struct source *m)
{
    int r = 0;

    for (unsigned i = 0; m->storage && !r && i < m->machine->disks; i++)
        r = flush_ahead(m, &m->machine->disk[i]);
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

static void verify_begin(struct machine_disk *d, void *arg)
{
    xm_disk_verify(d->disk, verified, arg);
}

/* Waits for one disk's comparison. Interrupted: its mirror goes off, which ends the comparison. What hangs
 * there (its storage, say) is not waited for: the migration has failed. */
static int verify_wait(struct source *m, struct machine_disk *d, struct verify *v)
{
    int r = 0;

    while (!r && sem_trywait(&v->done) < 0) {
        r = source_interrupted(m);
        source_turn(m, 10);
    }
    if (r) {
        if (m->links)
            xm_links_abort(m->links, m->error.text);
        source_disk_mirror_off(d);
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
int source_disks_verify(struct source *m)
{
    int r = 0;

    pace_reset(&m->progress.shown);
    m->progress.verifying = true;
    for (unsigned i = 0; !r && i < m->machine->disks; i++) {
        struct machine_disk *d = &m->machine->disk[i];
        struct verify v = {0};
        if (!d->replica)
            continue;
        sem_init(&v.done, 0, 0);
        machine_disk_call(d, verify_begin, &v);
        r = verify_wait(m, d, &v);
        sem_destroy(&v.done);
        if (!r)
            m->report.verified += d->file->size;
    }
    m->progress.verifying = false;
    return r;
}

int source_disks(struct source *m)
{
    for (unsigned i = 0; i < m->machine->disks; i++) {
        int r = source_disk_mirror(m, &m->machine->disk[i], m->zeroed[i], NULL);
        if (r)
            return r;
    }
    xm_fault("disks-mirrored");
    source_disks_links(m); /* they may have gone before there was a mirror to tell */
    int r = source_disks_wait(m);
    if (!r && m->opt.verify) {
        r = source_disks_verify(m);
        if (!r)
            r = source_disks_wait(m);
    }
    return r;
}
