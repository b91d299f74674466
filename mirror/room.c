/* SPDX-License-Identifier: MIT */
/* A guest's write that its file system has no room for (a quota, a thin pool likewise).
 *
 * To many a guest an I/O error is a broken disk, which it writes to no more; room is what an operator can
 * make. So the write waits for it, however long. The first of those that wait is tried again every second;
 * when it is written, the others follow. Reads, and writes that need no room, go on. (QEMU's own disks stop
 * the guest then.)
 *
 * A front end that stops a ring, or changes the guest's memory under it, does not wait for it: what waits
 * then of this ring has its error, and stays in the in-flight region where there is one, for when the ring
 * runs again (vhost_ring.c). In that state the guest must not be taken elsewhere: xm_disk_quiesce refuses
 * it, and it counts as waiting. (A shim that comes after asks QEMU: machine_disk_left.) */
#include "mirror/disk.h"

#include <string.h>

#define RETRY XM_NS_PER_S

static struct xm_breq *take(struct xm_disk *d, struct xm_disk_req *r)
{
    TAILQ_REMOVE(&d->room.waiting, r, wait);
    d->room.n--;
    return r->breq;
}

static void try_again(struct xm_disk *d, struct xm_disk_req *r)
{
    struct xm_breq *b = take(d, r);

    request_free(r);
    xm_disk_submit(d, b);
}

static void probe(struct xm_timer *t)
{
    struct xm_disk *d = xm_container_of(t, struct xm_disk, room.retry);
    struct xm_disk_req *r = TAILQ_FIRST(&d->room.waiting);

    if (!r || d->room.probe)
        return;
    d->room.probe = r->breq;
    try_again(d, r);
}

/* The next try, unless one is under way. */
static void try_later(struct xm_disk *d)
{
    if (d->room.probe || d->room.retry.armed || !d->room.n)
        return;
    d->room.retry.fire = probe;
    xm_engine_timer_set(d->engine, &d->room.retry, xm_engine_now(d->engine) + RETRY);
}

static void wait_for_room(struct xm_disk_req *r, int status, bool first)
{
    struct xm_disk *d = r->disk;

    if (!d->room.since) {
        d->room.since = xm_now();
        xm_log_limited(&d->room.told, XM_LOG_ERROR,
                       "%s: no room for what the guest writes (%s): its writes wait until there is",
                       d->file->path, strerror(-status));
    }
    r->status = status;
    r->state = REQ_NO_ROOM;
    if (first)
        TAILQ_INSERT_HEAD(&d->room.waiting, r, wait);
    else
        TAILQ_INSERT_TAIL(&d->room.waiting, r, wait);
    d->room.n++;
}

static void go_on(struct xm_disk *d)
{
    if (d->room.since)
        xm_log(XM_LOG_INFO, "%s: there is room again: the guest's writes go on after %s", d->file->path,
               xm_format_time(xm_now() - d->room.since).s);
    d->room.since = 0;
    /* One that finds none all the same waits again, behind those that are tried now. */
    for (unsigned n = d->room.n; n; n--)
        try_again(d, TAILQ_FIRST(&d->room.waiting));
}

bool room_wait(struct xm_disk_req *r, int status)
{
    struct xm_disk *d = r->disk;
    bool probed = r->breq == d->room.probe, none = xm_is_no_room(status),
         refused = none && d->room.refuse && d->room.refuse(r->breq, d->room.refuse_arg);

    if (probed)
        d->room.probe = NULL;
    if (none && !refused)
        wait_for_room(r, status, probed);
    if (probed && !status)
        go_on(d);
    try_later(d);
    return none && !refused;
}

unsigned room_waiting(const struct xm_disk *d)
{
    return d->room.n + !!d->room.probe + (d->room.kept ? d->room.kept(d->room.kept_arg) : 0);
}

void xm_disk_room_refuse(struct xm_disk *d, bool (*of)(const struct xm_breq *, void *), void *arg)
{
    struct xm_disk_req *r, *next;

    d->room.refuse = of;
    d->room.refuse_arg = arg;
    for (r = of ? TAILQ_FIRST(&d->room.waiting) : NULL; r; r = next) {
        next = TAILQ_NEXT(r, wait);
        if (!of(r->breq, arg))
            continue;
        take(d, r);
        d->guest.requests++;
        request_complete(r, r->status);
    }
    if (!d->room.n && !d->room.probe)
        d->room.since = 0;
}

void xm_disk_kept(struct xm_disk *d, unsigned (*how_many)(void *), void *arg)
{
    d->room.kept = how_many;
    d->room.kept_arg = arg;
}
