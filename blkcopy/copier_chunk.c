/* SPDX-License-Identifier: MIT */
/* One chunk on its way: its holes, its steps, what is sent of them, its end. The head of copier.c tells the
 * whole. */
#include "blkcopy/copier.h"

#include <stdlib.h>

/* Reads in the disk's queue are in the way of the guest's requests, and hold its writes to their chunks.
 * From 2 to 64 of them a copy takes the same time within the noise, between loop devices in memory (1.76
 * to 2.15 GB/s) as between files of the real disk (0.57 to 0.70); one alone loses up to a third there. */
#define READS_MAX 4u
/* Beside a guest: one at a time, begun no more often than that: 1.3 GB/s, more than a link of 10 Gbit/s
 * carries. A guest that writes 4 KiB at depth 1 beside a copy that takes both processors: p99 0.3 to 0.8
 * ms, 0.7 to 6.3 without the gap, 9.8 with 64 reads (bench/guestio -s 0 0 4). */
#define READ_GAP   (200 * XM_NS_PER_US)
#define READ_TRIES 3u

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
    copier_job_advance(j);
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
    copier_job_advance(j);
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
void copier_job_advance(struct job *j)
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

bool copier_is_hole(struct xm_copier *c, uint64_t offset, uint64_t length)
{
    uint64_t end;

    if (c->engine->ops->is_hole)
        return c->engine->ops->is_hole(c->engine, c->file, offset, length, &end);
    return xm_extent_is_hole(c->file, offset, length, &end);
}

void copier_mark_hole(struct job *j, uint64_t offset, uint64_t length)
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
bool copier_start_step(struct xm_copier *c)
{
    struct job *j = c->current;
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): a job is out of `current` before job_advance frees it */
    uint64_t offset = j->next, length = XM_MIN(j->end - offset, c->step_size);
    struct step *s = c->free_steps;

    if (j->data_end <= offset && copier_is_hole(c, offset, length)) {
        copier_mark_hole(j, offset, length);
        j->next += length;
        copier_job_advance(j);
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
        copier_job_advance(j);
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
