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
 */
#include "blkcopy/blkcopy.h"
#include "blkcopy/depth.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* 256 KiB reads beat larger ones by staying in the cache (docs/facts.md, «io_uring»). */
#define STEP_MAX (256u << 10)
/* Reads in the disk's queue are in the way of the guest's requests, and hold its writes to their chunks.
 * From 2 to 64 of them a copy takes the same time within the noise, between loop devices in memory (1.76
 * to 2.15 GB/s) as between files of the real disk (0.57 to 0.70); one alone loses up to a third there. */
#define READS_MAX 4u
/* Beside a guest: one at a time, begun no more often than that: 1.3 GB/s, more than a link of 10 Gbit/s
 * carries. A guest that writes 4 KiB at depth 1 beside a copy that takes both processors: p99 0.3 to 0.8
 * ms, 0.7 to 6.3 without the gap, 9.8 with 64 reads (bench/guestio -s 0 0 4). */
#define READ_GAP   (200 * XM_NS_PER_US)
#define GRANULE    4u /* a step is looked at for zeros in so many parts */
#define READ_TRIES 3u
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

struct job {
    struct xm_copier *copier;
    int64_t chunk;
    bool again;
    bool bare;                  /* no data: does not count as depth */
    bool skip_zeros;            /* what is zero here need not be sent */
    bool told;                  /* that all of it was read */
    uint64_t since, data;       /* when it was claimed; bytes sent */
    uint64_t offset, end, next; /* next: up to where steps were started */
    uint64_t data_end;          /* up to here it is known not to be a hole */
    unsigned reading, pending;
    int status;
    uint64_t zeros, holes; /* by granule; holes is a subset of zeros */
};

struct step {
    struct xm_io io;
    struct iovec iov;
    struct job *job;
    void *buf;
    unsigned tries, pieces;
    struct step *next_free;
};

struct piece {
    struct xm_rreq rreq;
    struct job *job;
    struct step *step; /* whose buffer it is sent from; NULL: zeros */
    struct piece *next_free;
};

struct xm_copier {
    struct xm_engine *engine;
    struct xm_file *file;
    struct xm_replica *replica;
    struct xm_bufpool *pool;
    uint32_t chunk_size, step_size, granule;
    bool target_zeroed, paused, filling, refill;
    const struct xm_copier_ops *ops;
    void *ctx;
    struct xm_timer more;
    struct depth depth;
    struct xm_bucket rate;
    struct job *current;                           /* claimed, and not all steps of it started; NULL: none */
    uint64_t read_at;                              /* when the last read began */
    unsigned busy, bare, again, steps_busy, reads; /* reads: steps with the engine */
    struct step *free_steps;
    struct piece *free_pieces;
    struct xm_copier_stats stats;
};

static void copier_fill(struct xm_copier *c);
static void more_fire(struct xm_timer *t);
static void job_advance(struct job *j);

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

static struct piece *piece_get(struct job *j)
{
    struct xm_copier *c = j->copier;
    struct piece *p = c->free_pieces;

    if (p)
        c->free_pieces = p->next_free;
    else if (!(p = malloc(sizeof *p)))
        return NULL;
    p->job = j;
    return p;
}

static void piece_put(struct xm_copier *c, struct piece *p)
{
    p->next_free = c->free_pieces;
    c->free_pieces = p;
}

static void step_put(struct xm_copier *c, struct step *s)
{
    xm_bufpool_put(c->pool, s->buf, s->io.length);
    c->steps_busy--;
    s->next_free = c->free_steps;
    c->free_steps = s;
}

static void job_fail(struct job *j, int status)
{
    if (j->status == 0)
        j->status = status;
}

static void copy_piece_ended(struct xm_rreq *r, int status)
{
    struct piece *p = xm_container_of(r, struct piece, rreq);
    struct job *j = p->job;
    struct xm_copier *c = j->copier;

    if (status < 0)
        job_fail(j, status);
    else if (p->step)
        c->stats.bytes_data += r->length;
    if (p->step && --p->step->pieces == 0)
        step_put(c, p->step);
    piece_put(c, p);
    j->pending--;
    job_advance(j);
    copier_fill(c);
}

/* Sends [offset, offset+length) of the job: from the step's buffer, or as zeros. */
static void send_piece(struct job *j, struct step *s, uint64_t offset, uint64_t length)
{
    struct piece *p = piece_get(j);

    if (!p) {
        job_fail(j, -ENOMEM);
        return;
    }
    p->step = s;
    p->rreq = (struct xm_rreq){.op = s ? XM_IO_WRITE : XM_IO_ZERO,
                               .unmap = !s,
                               .offset = offset,
                               .length = length,
                               .buf = s ? (char *)s->buf + (offset - s->io.offset) : NULL,
                               .done = copy_piece_ended};
    if (s) {
        s->pieces++;
        j->data += length;
    }
    j->pending++;
    xm_replica_submit(j->copier->replica, &p->rreq);
}

static uint64_t granule_bit(const struct job *j, uint64_t offset)
{
    return 1ull << ((offset - j->offset) / j->copier->granule);
}

/* Calls for each run of granules in [offset, end) with the same bit in `zeros` send_piece, if the bit is as
 * wanted. */
static void send_runs(struct job *j, struct step *s, uint64_t offset, uint64_t end, bool zeros)
{
    uint64_t granule = j->copier->granule;

    for (uint64_t from = offset, to; from < end && j->status == 0; from = to) {
        bool zero = j->zeros & granule_bit(j, from);
        for (to = from + granule; to < end && !!(j->zeros & granule_bit(j, to)) == zero; to += granule) {
        }
        to = XM_MIN(to, end);
        if (zero == zeros)
            send_piece(j, s, from, to - from);
    }
}

static void find_zeros(struct job *j, const struct step *s)
{
    uint64_t end = s->io.offset + s->io.length;

    for (uint64_t at = s->io.offset; at < end; at += j->copier->granule)
        if (xm_is_zero((char *)s->buf + (at - s->io.offset), XM_MIN(end - at, j->copier->granule)))
            j->zeros |= granule_bit(j, at);
}

static void step_read(struct xm_io *io, int res)
{
    struct step *s = xm_container_of(io, struct step, io);
    struct job *j = s->job;
    struct xm_copier *c = j->copier;

    if (res < 0 && ++s->tries < READ_TRIES) {
        xm_engine_submit(c->engine, io);
        return;
    }
    s->pieces = 1; /* this function's hold on the buffer */
    if (res < 0) {
        c->stats.read_errors++;
        job_fail(j, res);
    } else {
        find_zeros(j, s);
        send_runs(j, s, io->offset, io->offset + io->length, false);
    }
    if (--s->pieces == 0)
        step_put(c, s);
    j->reading--;
    c->reads--;
    job_advance(j);
    copier_fill(c);
}

static void count_zeros(struct job *j)
{
    struct xm_copier *c = j->copier;

    for (uint64_t at = j->offset; at < j->end; at += c->granule) {
        uint64_t length = XM_MIN(j->end - at, c->granule), bit = granule_bit(j, at);
        if (j->holes & bit)
            c->stats.bytes_hole += length;
        else if (j->zeros & bit)
            c->stats.bytes_zero += length;
    }
}

static void set_bare(struct job *j)
{
    j->copier->bare += !j->bare;
    j->bare = true;
}

/* Moves a job on when something of it has ended. May free it. */
static void job_advance(struct job *j)
{
    struct xm_copier *c = j->copier;

    if (j->status < 0)
        j->next = j->end;
    if (j->next < j->end)
        return;
    if (j == c->current)
        c->current = NULL;
    if (j->reading > 0)
        return;
    if (j->data == 0)
        set_bare(j);
    if (j->zeros && !j->skip_zeros && j->status == 0) {
        j->skip_zeros = true; /* once */
        j->pending++;         /* this function's hold on the job */
        send_runs(j, NULL, j->offset, j->end, true);
        j->pending--;
    }
    if (j->status == 0 && !j->told && c->ops->read) {
        j->told = true;
        j->pending++; /* what is called may end pieces */
        c->ops->read(c->ctx, j->chunk);
        j->pending--;
    }
    if (j->pending > 0)
        return;
    if (j->status == 0)
        count_zeros(j);
    int64_t chunk = j->chunk;
    int status = j->status;
    if (j->data > 0 && status == 0)
        depth_copied(&c->depth, j->since, xm_engine_now(c->engine), j->data, c->chunk_size);
    c->busy--;
    c->bare -= j->bare;
    c->again -= j->again;
    free(j);
    c->ops->ended(c->ctx, chunk, status);
}

static bool is_hole(struct xm_copier *c, uint64_t offset, uint64_t length)
{
    uint64_t end;

    if (c->engine->ops->is_hole)
        return c->engine->ops->is_hole(c->engine, c->file, offset, length, &end);
    return xm_extent_is_hole(c->file, offset, length, &end);
}

static void mark_hole(struct job *j, uint64_t offset, uint64_t length)
{
    for (uint64_t at = offset; at < offset + length; at += j->copier->granule) {
        j->zeros |= granule_bit(j, at);
        j->holes |= granule_bit(j, at);
    }
}

/* Whether one more read may begin now. If only later, the timer will tell. */
static bool may_read(struct xm_copier *c)
{
    if (!c->ops->shared || !c->ops->shared(c->ctx))
        return c->reads < READS_MAX;
    if (c->reads > 0)
        return false;
    uint64_t next = c->read_at + READ_GAP;
    if (!c->read_at || xm_engine_now(c->engine) >= next)
        return true;
    xm_engine_timer_set(c->engine, &c->more, next);
    return false;
}

/* Starts the next step of the current job. False: it has to wait, for a buffer or its turn to read. */
static bool start_step(struct xm_copier *c)
{
    struct job *j = c->current;
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): a job is out of `current` before job_advance frees it */
    uint64_t offset = j->next, length = XM_MIN(j->end - offset, c->step_size);
    struct step *s = c->free_steps;

    if (j->data_end <= offset && is_hole(c, offset, length)) {
        mark_hole(j, offset, length);
        j->next += length;
        job_advance(j);
        return true;
    }
    if (!may_read(c))
        return false;
    j->data_end = offset + length;
    void *buf = xm_bufpool_get(c->pool, length);
    if (!buf && c->steps_busy > 0)
        return false;
    if (buf && s)
        c->free_steps = s->next_free;
    if (!buf || (!s && !(s = malloc(sizeof *s)))) {
        xm_bufpool_put(c->pool, buf, length);
        job_fail(j, -ENOMEM);
        job_advance(j);
        return true;
    }
    *s = (struct step){.job = j, .buf = buf, .iov = {.iov_base = buf, .iov_len = length}};
    s->io = (struct xm_io){.op = XM_IO_READ,
                           .file = c->file,
                           .offset = offset,
                           .length = length,
                           .iov = &s->iov,
                           .iovcnt = 1,
                           .done = step_read};
    c->steps_busy++;
    c->reads++;
    c->read_at = xm_engine_now(c->engine);
    xm_bucket_take(&c->rate, length, c->read_at);
    j->next += length;
    j->reading++;
    if (j->next == j->end)
        c->current = NULL;
    xm_engine_submit(c->engine, &s->io);
    return true;
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
    if (is_hole(c, j->offset, j->end - j->offset)) {
        mark_hole(j, j->offset, j->end - j->offset);
        j->next = j->end;
        job_advance(j);
    } else {
        depth_claimed(&c->depth, depth_used(c));
    }
    return true;
}

/* Starts all that can be started now. What it calls may call it again. */
static void copier_fill(struct xm_copier *c)
{
    c->refill = true;
    if (c->filling)
        return;
    c->filling = true;
    unsigned looks = 0;
    while (c->refill && looks < LOOKS_MAX) {
        c->refill = false;
        while (looks < LOOKS_MAX && (c->current ? start_step(c) : start_job(c)))
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
