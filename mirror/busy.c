/* SPDX-License-Identifier: MIT */
/* Which guest writes are under way in which chunk, in the order in which they came.
 *
 * Two uses. A write that overlaps an earlier one waits for it, so that both sides end with the same bytes
 * (invariant 3). And a chunk that has been claimed for copying is read only when no write is with the engine
 * in it: what came before the claim has landed and will be read, what comes after it is held.
 *
 * A part is entered once per chunk it touches. A chunk's list holds what is in flight there and what waits,
 * so its length is bounded by the guest's queue depth; a walk over it costs less than the request itself. */
#include "mirror/disk.h"

#include <assert.h>
#include <stdlib.h>

void busy_init(struct busy_table *f)
{
    for (unsigned i = 0; i < BUSY_BUCKETS; i++)
        LIST_INIT(&f->bucket[i]);
    LIST_INIT(&f->free);
}

void busy_destroy(struct busy_table *f)
{
    for (struct busy_chunk *b; (b = LIST_FIRST(&f->free));) {
        LIST_REMOVE(b, link);
        free(b);
    }
}

static struct busy_chunk *busy_find(struct busy_table *f, uint64_t chunk)
{
    struct busy_chunk *b;

    LIST_FOREACH (b, &f->bucket[chunk % BUSY_BUCKETS], link)
        if (b->chunk == chunk)
            return b;
    return NULL;
}

static struct busy_chunk *busy_find_or_add(struct busy_table *f, uint64_t chunk)
{
    struct busy_chunk *b = busy_find(f, chunk);

    if (b)
        return b;
    if ((b = LIST_FIRST(&f->free)))
        LIST_REMOVE(b, link);
    else if (!(b = malloc(sizeof *b)))
        return NULL;
    *b = (struct busy_chunk){.chunk = chunk};
    TAILQ_INIT(&b->refs);
    LIST_INSERT_HEAD(&f->bucket[chunk % BUSY_BUCKETS], b, link);
    return b;
}

static void drop_if_idle(struct busy_table *f, struct busy_chunk *b)
{
    if (!TAILQ_EMPTY(&b->refs))
        return;
    /* Invariant: a chunk that drains has something active. */
    assert(!b->draining);
    LIST_REMOVE(b, link);
    LIST_INSERT_HEAD(&f->free, b, link);
}

static bool refs_overlap(const struct chunk_ref *a, const struct chunk_ref *b)
{
    return a->start < b->end && b->start < a->end;
}

int busy_enter(struct xm_disk_req *r)
{
    struct xm_disk *d = r->disk;
    uint64_t first = r->offset >> d->chunk_shift, last = (r->offset + r->length - 1) >> d->chunk_shift;
    uint64_t end = r->offset + r->length;
    struct chunk_ref *other;

    r->nrefs = 0;
    r->blockers = 0;
    r->refs = r->inline_refs;
    if (last - first >= sizeof r->inline_refs / sizeof *r->inline_refs &&
        !(r->refs = calloc(last - first + 1, sizeof *r->refs))) {
        r->refs = r->inline_refs;
        return -ENOMEM;
    }
    for (uint64_t chunk = first; chunk <= last; chunk++) {
        struct chunk_ref *ref = &r->refs[r->nrefs];
        struct busy_chunk *b = busy_find_or_add(&d->guest.busy, chunk);
        if (!b) {
            struct disk_reqs none = TAILQ_HEAD_INITIALIZER(none);
            busy_leave(r, &none);
            return -ENOMEM;
        }
        *ref = (struct chunk_ref){.busy = b,
                                  .req = r,
                                  .start = XM_MAX(r->offset, chunk << d->chunk_shift),
                                  .end = XM_MIN(end, (chunk + 1) << d->chunk_shift)};
        TAILQ_FOREACH (other, &b->refs, link)
            r->blockers += refs_overlap(other, ref);
        TAILQ_INSERT_TAIL(&b->refs, ref, link);
        r->nrefs++;
    }
    return 0;
}

void busy_activate(struct xm_disk_req *r)
{
    for (unsigned i = 0; i < r->nrefs; i++)
        r->refs[i].busy->active++;
    r->active = true;
}

static void add_drained(struct busy_table *f, struct busy_chunk *b)
{
    b->draining = false;
    f->draining--;
    f->drained[f->ndrained].chunk = b->chunk;
    f->drained[f->ndrained].fresh = b->fresh;
    f->ndrained++;
}

bool busy_leave(struct xm_disk_req *r, struct disk_reqs *unblocked)
{
    struct busy_table *f = &r->disk->guest.busy;
    bool drained = false;

    for (unsigned i = 0; i < r->nrefs; i++) {
        struct chunk_ref *ref = &r->refs[i], *later = ref;
        struct busy_chunk *b = ref->busy;
        while ((later = TAILQ_NEXT(later, link)))
            if (refs_overlap(ref, later) && --later->req->blockers == 0)
                TAILQ_INSERT_TAIL(unblocked, later->req, ready);
        TAILQ_REMOVE(&b->refs, ref, link);
        if (r->active && --b->active == 0 && b->draining) {
            add_drained(f, b);
            drained = true;
        }
        drop_if_idle(f, b);
    }
    if (r->refs != r->inline_refs)
        free(r->refs);
    r->refs = r->inline_refs;
    r->nrefs = 0;
    r->active = false;
    return drained;
}

void busy_held(struct xm_disk *d, uint64_t chunk, struct disk_reqs *list)
{
    struct busy_chunk *b = busy_find(&d->guest.busy, chunk);
    struct chunk_ref *ref;

    if (!b)
        return;
    TAILQ_FOREACH (ref, &b->refs, link)
        if (ref->req->state == REQ_HELD)
            TAILQ_INSERT_TAIL(list, ref->req, ready);
}

bool busy_drain(struct xm_disk *d, uint64_t chunk, bool fresh)
{
    struct busy_chunk *b = busy_find(&d->guest.busy, chunk);

    if (!b || b->active == 0)
        return true;
    assert(!b->draining && d->guest.busy.draining + d->guest.busy.ndrained < DRAIN_MAX);
    b->draining = true;
    b->fresh = fresh;
    d->guest.busy.draining++;
    return false;
}

bool busy_is_idle(struct xm_disk *d, uint64_t chunk)
{
    struct busy_chunk *b = busy_find(&d->guest.busy, chunk);

    return !b || b->active == 0;
}

void busy_forget_claims(struct xm_disk *d)
{
    struct busy_chunk *b;

    for (unsigned i = 0; i < BUSY_BUCKETS; i++)
        LIST_FOREACH (b, &d->guest.busy.bucket[i], link)
            b->draining = false;
    d->guest.busy.draining = d->guest.busy.ndrained = 0;
}
