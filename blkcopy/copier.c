/* SPDX-License-Identifier: MIT */
/* The bulk copier: brings chunks to the replica, several at a time.
 *
 * Happy path: a chunk is claimed from the driver (from then on, until it has been read, guest writes to it
 * are held), and only then looked at (invariant 2). A hole is not read. The rest is read in steps, each into
 * a buffer of its own; what is not zero of a step goes to the replica at once, without waiting for the
 * chunk's other steps. When all of the chunk has been read, its zeros and holes follow as ZERO requests with
 * UNMAP, neighbours as one, so that a thin disk stays thin; none at all where the target is known to read as
 * zeros. When the replica has acknowledged every piece the chunk is copied, and counted (invariant 9).
 *
 * What can happen instead:
 * - A read fails: it is tried again at once, READ_TRIES times in all; then its copy ends with the error,
 * when what was under way for it has ended. Whether and when it is claimed again is the driver's business.
 * - The replica refuses a piece: the same.
 * - Somebody else uses the disk: it is read from time to time only (READ_GAP).
 * - The way to the replica is slow: fewer chunks are claimed at a time (depth.c).
 * - It is to read no more than so many bytes a second (xm_copier_rate): chunks are claimed later.
 * - No buffer: the step waits until another has ended. None under way (memory is short): its copy ends
 * with -ENOMEM.
 *
 * Here: which chunk is claimed, and when. What becomes of a claimed one: copier_chunk.c. */
#include "blkcopy/copier.h"

#include <assert.h>
#include <stdlib.h>

/* 256 KiB reads beat larger ones by staying in the cache (docs/facts.md, «io_uring»). */
#define STEP_MAX (256u << 10)
#define GRANULE  4u /* a step is looked at for zeros in so many parts */
/* Chunks copied again are those that the guest writes to. Few of them at a time: each is in the guest's way
 * for a shorter time. */
#define AGAIN_MAX 4u
/* Holes cost a system call and no waiting: after so many chunks and steps the guest's requests get their
 * turn. */
#define LOOKS_MAX 256u
/* Chunks without data are tiny on the wire and do not count as depth. On a round trip of 100 ms so many
 * are 2.5 GB of holes a second. */
#define BARE_MAX 256u
/* Half of the driver's default write cap. */
#define DELAY_DEFAULT (25 * XM_NS_PER_MS)

static void more_fire(struct xm_timer *t);

struct xm_copier *xm_copier_new(struct xm_engine *engine, struct xm_file *file, struct xm_replica *replica,
                                struct xm_bufpool *pool, uint32_t chunk_size, bool target_zeroed,
                                const struct xm_copier_ops *ops, void *ctx)
{
    struct xm_copier *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->engine = engine;
    c->file = file;
    c->replica = replica;
    c->pool = pool;
    c->chunk_size = chunk_size;
    c->step_size = XM_MIN(XM_MAX(chunk_size / 4, 4096u), STEP_MAX);
    c->granule = XM_MAX(c->step_size / GRANULE, 4096u);
    /* Invariant: a job's granules fit its masks. */
    assert(chunk_size / c->granule <= 64);
    c->target_zeroed = target_zeroed;
    c->ops = ops;
    c->ctx = ctx;
    c->more.fire = more_fire;
    xm_bucket_init(&c->rate, 0, xm_engine_now(engine));
    /* A chunk with data holds at least one step's buffer. */
    depth_init(&c->depth, (unsigned)(xm_bufpool_limit(pool) / c->step_size), DELAY_DEFAULT,
               xm_engine_now(engine));
    return c;
}

void xm_copier_delay(struct xm_copier *c, uint64_t target_ns)
{
    c->depth.target = target_ns;
}

void xm_copier_rate(struct xm_copier *c, uint64_t bytes_per_s)
{
    xm_bucket_set(&c->rate, bytes_per_s, xm_engine_now(c->engine));
    copier_fill(c);
}

void xm_copier_free(struct xm_copier *c)
{
    if (!c)
        return;
    assert(c->busy == 0);
    xm_engine_timer_cancel(c->engine, &c->more);
    for (struct step *s; (s = c->free_steps);) {
        c->free_steps = s->next_free;
        free(s);
    }
    for (struct piece *p; (p = c->free_pieces);) {
        c->free_pieces = p->next_free;
        free(p);
    }
    free(c);
}

void xm_copier_stats(const struct xm_copier *c, struct xm_copier_stats *out)
{
    *out = c->stats;
}

unsigned xm_copier_busy(const struct xm_copier *c)
{
    return c->busy;
}

static unsigned depth_used(const struct xm_copier *c)
{
    return c->busy - c->bare;
}

unsigned xm_copier_room(const struct xm_copier *c)
{
    unsigned room = c->depth.now > depth_used(c) ? c->depth.now - depth_used(c) : 0;

    /* What is claimed has to be read at once: the guest's writes to it are held. */
    return c->rate.rate ? XM_MIN(room, 1) : room;
}

/* Whether its rate lets it begin a chunk; if only later, the timer will tell. In the middle of one it does
 * not stop: the guest's writes to that chunk are held. */
static bool may_claim(struct xm_copier *c)
{
    uint64_t now = xm_engine_now(c->engine), wait = xm_bucket_take(&c->rate, 0, now);

    if (wait)
        xm_engine_timer_set(c->engine, &c->more, now + wait);
    return !wait;
}

/* Claims a chunk. False: there is none, or not now. */
static bool start_job(struct xm_copier *c)
{
    bool fresh = false;

    if (c->paused || c->again >= AGAIN_MAX || c->bare >= BARE_MAX || xm_copier_room(c) == 0 || !may_claim(c))
        return false;
    int64_t chunk = c->ops->next(c->ctx, &fresh);
    if (chunk < 0)
        return false;
    struct job *j = calloc(1, sizeof *j);
    c->busy++;
    if (!j) {
        c->busy--;
        c->ops->ended(c->ctx, chunk, -ENOMEM);
        return false;
    }
    j->copier = c;
    j->chunk = chunk;
    j->again = !fresh;
    c->again += j->again;
    j->skip_zeros = fresh && c->target_zeroed;
    j->offset = j->next = (uint64_t)chunk * c->chunk_size;
    j->end = XM_MIN(j->offset + c->chunk_size, c->file->size);
    c->current = j;
    j->since = xm_engine_now(c->engine);
    if (copier_is_hole(c, j->offset, j->end - j->offset)) {
        copier_mark_hole(j, j->offset, j->end - j->offset);
        j->next = j->end;
        copier_job_advance(j);
    } else {
        depth_claimed(&c->depth, depth_used(c));
    }
    return true;
}

/* Starts all that can be started now. What it calls may call it again. */
void copier_fill(struct xm_copier *c)
{
    c->refill = true;
    if (c->filling)
        return;
    c->filling = true;
    unsigned looks = 0;
    while (c->refill && looks < LOOKS_MAX) {
        c->refill = false;
        while (looks < LOOKS_MAX && (c->current ? copier_start_step(c) : start_job(c)))
            looks++;
    }
    if (looks == LOOKS_MAX)
        xm_engine_timer_set(c->engine, &c->more, xm_engine_now(c->engine));
    c->filling = false;
}

static void more_fire(struct xm_timer *t)
{
    copier_fill(xm_container_of(t, struct xm_copier, more));
}

void xm_copier_kick(struct xm_copier *c)
{
    copier_fill(c);
}

void xm_copier_pause(struct xm_copier *c, bool paused)
{
    c->paused = paused;
    if (!paused)
        copier_fill(c);
}
