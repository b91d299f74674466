/* SPDX-License-Identifier: MIT */
#include "lib_sim.h"
#include "net/net.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define HOLE_PAGE 4096u

/* ---- chance and time ---- */

uint64_t sim_random(struct sim *s)
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t sim_below(struct sim *s, uint64_t n)
{
    return sim_random(s) % n;
}

uint64_t sim_between(struct sim *s, uint64_t low, uint64_t high)
{
    return low + sim_below(s, high - low + 1);
}

bool sim_chance(struct sim *s, unsigned per_mille)
{
    return per_mille > 0 && sim_below(s, 1000) < per_mille;
}

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->when != b->when ? a->when < b->when : a->order < b->order;
}

static void place(struct sim *s, struct sim_event *e, size_t at)
{
    s->heap[at] = e;
    e->at = at;
}

static void sift(struct sim *s, struct sim_event *e)
{
    size_t at = e->at, child;

    while (at > 0 && before(e, s->heap[(at - 1) / 2])) {
        place(s, s->heap[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    while ((child = 2 * at + 1) < s->events) {
        if (child + 1 < s->events && before(s->heap[child + 1], s->heap[child]))
            child++;
        if (!before(s->heap[child], e))
            break;
        place(s, s->heap[child], at);
        at = child;
    }
    place(s, e, at);
}

void sim_event_cancel(struct sim *s, struct sim_event *e)
{
    if (!e->armed)
        return;
    struct sim_event *last = s->heap[--s->events];
    e->armed = false;
    if (last != e) {
        place(s, last, e->at);
        sift(s, last);
    }
}

void sim_event_set(struct sim *s, struct sim_event *e, uint64_t delay)
{
    sim_event_cancel(s, e);
    if (s->events == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->heap = realloc(s->heap, s->room * sizeof(struct sim_event *));
        assert(s->heap);
    }
    e->when = s->now + delay;
    e->order = s->order++;
    e->armed = true;
    place(s, e, s->events++);
    sift(s, e);
}

/* ---- the engine ---- */

struct sim_op {
    struct sim_event event;
    struct xm_io *io;
    struct sim_disk *disk;
    uint64_t early; /* a bit per sector, over and over: moved at submission, the others at the end */
    bool fails;
    TAILQ_ENTRY(sim_op) link;
};

static struct sim_disk *disk_of(struct xm_io *io)
{
    return xm_container_of(io->file, struct sim_disk, file);
}

/* Moves one sector between guest memory and disk. Vectors need not end on sectors. */
static void move(struct xm_io *io, uint64_t at, uint64_t len, bool to_disk)
{
    uint8_t *disk = disk_of(io)->data + io->offset + at;
    uint64_t skip = at;

    for (int i = 0; i < io->iovcnt && len > 0; i++) {
        if (skip >= io->iov[i].iov_len) {
            skip -= io->iov[i].iov_len;
            continue;
        }
        uint64_t n = XM_MIN(io->iov[i].iov_len - skip, len);
        uint8_t *mem = (uint8_t *)io->iov[i].iov_base + skip;
        memcpy(to_disk ? disk : mem, to_disk ? mem : disk, n);
        disk += n;
        len -= n;
        skip = 0;
    }
}

static void apply(struct sim_op *op, uint64_t sectors)
{
    struct xm_io *io = op->io;

    if (io->op == XM_IO_FLUSH || sectors == 0)
        return;
    if (sectors == ~0ull && io->op != XM_IO_ZERO) {
        move(io, 0, io->length, io->op == XM_IO_WRITE);
        return;
    }
    for (uint64_t at = 0; at < io->length; at += SIM_SECTOR) {
        if (!(sectors >> (at / SIM_SECTOR % 64) & 1))
            continue;
        if (io->op == XM_IO_ZERO)
            memset(disk_of(io)->data + io->offset + at, 0, SIM_SECTOR);
        else
            move(io, at, SIM_SECTOR, io->op == XM_IO_WRITE);
    }
}

static void mark_data(struct sim_op *op)
{
    struct xm_io *io = op->io;

    if (io->op == XM_IO_WRITE)
        for (uint64_t p = io->offset / HOLE_PAGE; p <= (io->offset + io->length - 1) / HOLE_PAGE; p++)
            op->disk->hole[p] = false;
    if (io->op == XM_IO_ZERO && io->unmap && !op->fails)
        for (uint64_t p = XM_ROUND_UP(io->offset, HOLE_PAGE) / HOLE_PAGE;
             (p + 1) * HOLE_PAGE <= io->offset + io->length; p++)
            op->disk->hole[p] = true;
}

static void op_end(struct sim_event *e)
{
    struct sim_op *op = xm_container_of(e, struct sim_op, event);
    struct xm_io *io = op->io;
    struct sim_disk *d = op->disk;
    int res = op->fails ? -EIO : 0;

    apply(op, op->fails ? ~op->early & sim_random(d->sim) : ~op->early);
    mark_data(op);
    if (op->fails)
        d->errors++;
    if (io->op == XM_IO_WRITE || io->op == XM_IO_ZERO)
        d->unflushed++;
    free(op);
    xm_engine_end(&d->sim->engine, io, res);
}

static void op_go(struct sim_op *op)
{
    struct sim_disk *d = op->disk;

    apply(op, op->early);
    sim_event_set(d->sim, &op->event, sim_between(d->sim, d->latency_min, d->latency_max));
}

static void sim_submit(struct xm_engine *e, struct xm_io *io)
{
    struct sim *s = xm_container_of(e, struct sim, engine);
    struct sim_disk *d = disk_of(io);
    struct sim_op *op = calloc(1, sizeof *op);
    uint64_t kind = sim_below(s, 4);

    assert(op);
    assert(io->op == XM_IO_FLUSH || (io->length > 0 && io->offset + io->length <= d->file.size));
    assert(io->offset % SIM_SECTOR == 0 && io->length % SIM_SECTOR == 0);
    op->event.fire = op_end;
    op->io = io;
    op->disk = d;
    op->early = kind == 0 ? 0 : kind == 1 ? ~0ull : sim_random(s);
    switch (io->op) {
    case XM_IO_READ:
        d->reads++;
        op->fails = sim_chance(s, d->read_errors);
        break;
    case XM_IO_FLUSH:
        d->flushes++;
        d->unflushed = 0;
        op->fails = sim_chance(s, d->flush_errors);
        break;
    case XM_IO_ZERO:
        d->zeros++;
        op->fails = sim_chance(s, d->write_errors);
        break;
    case XM_IO_WRITE:
        d->writes++;
        op->fails = sim_chance(s, d->write_errors);
        break;
    }
    /* Like a file system: what is being written is no hole. */
    if (io->op == XM_IO_WRITE)
        mark_data(op);
    if (io->op == XM_IO_ZERO)
        op->early = 0;
    if (d->gate && d->gate(d, io))
        TAILQ_INSERT_TAIL(&d->gated, op, link);
    else
        op_go(op);
}

void sim_disk_go(struct sim_disk *d)
{
    struct sim_op *op;

    while ((op = TAILQ_FIRST(&d->gated))) {
        TAILQ_REMOVE(&d->gated, op, link);
        op_go(op);
    }
}

static uint64_t sim_now(struct xm_engine *e)
{
    return xm_container_of(e, struct sim, engine)->now;
}

static bool sim_is_hole(struct xm_engine *e, const struct xm_file *file, uint64_t offset, uint64_t length,
                        uint64_t *end)
{
    const struct sim_disk *d = xm_container_of(file, struct sim_disk, file);

    (void)e;
    for (uint64_t p = offset / HOLE_PAGE; p <= (offset + length - 1) / HOLE_PAGE; p++)
        if (!d->hole[p])
            return false;
    *end = offset + length;
    return true;
}

static void sim_turn(struct xm_engine *e)
{
    struct sim *s = xm_container_of(e, struct sim, engine);
    uint64_t next = UINT64_MAX;

    if (xm_mailbox_run(&e->mailbox) + xm_engine_fire_timers(e) > 0)
        return;
    if (s->events > 0)
        next = s->heap[0]->when;
    if (!TAILQ_EMPTY(&e->timers))
        next = XM_MIN(next, TAILQ_FIRST(&e->timers)->when);
    if (next == UINT64_MAX)
        return;
    s->now = XM_MAX(s->now, next);
    while (s->events > 0 && s->heap[0]->when <= s->now) {
        struct sim_event *event = s->heap[0];
        sim_event_cancel(s, event);
        event->fire(event);
    }
    xm_engine_fire_timers(e);
}

static const struct xm_engine_ops sim_ops = {
    .name = "sim", .submit = sim_submit, .turn = sim_turn, .now = sim_now, .is_hole = sim_is_hole};

struct sim *sim_new(uint64_t seed)
{
    struct sim *s = calloc(1, sizeof *s);

    assert(s);
    s->random = seed * 0x2545f4914f6cdd1du + 1;
    s->now = XM_NS_PER_S;
    if (xm_engine_init(&s->engine, &sim_ops) < 0)
        abort();
    return s;
}

void sim_free(struct sim *s)
{
    assert(s->events == 0);
    xm_engine_fini(&s->engine);
    free(s->heap);
    free(s);
}

bool sim_run_until(struct sim *s, const bool *flag, unsigned max_turns)
{
    while (!*flag && max_turns-- > 0) {
        if (s->events == 0 && TAILQ_EMPTY(&s->engine.timers) && STAILQ_EMPTY(&s->engine.mailbox.posts))
            break;
        xm_engine_turn(&s->engine);
    }
    return *flag;
}

static void set_flag(struct xm_timer *t)
{
    t->when = 0;
}

void sim_run_for(struct sim *s, uint64_t ns)
{
    struct xm_timer end = {.fire = set_flag};

    xm_engine_timer_set(&s->engine, &end, s->now + ns);
    while (end.when)
        xm_engine_turn(&s->engine);
}

/* ---- disks ---- */

struct sim_disk *sim_disk_new(struct sim *s, uint64_t size)
{
    static char name[] = "sim-disk";
    struct sim_disk *d = calloc(1, sizeof *d);

    assert(d);
    d->sim = s;
    d->file = (struct xm_file){.fd = -1, .size = size, .block = SIM_SECTOR, .path = name};
    d->data = calloc(1, size);
    d->hole = calloc((size + HOLE_PAGE - 1) / HOLE_PAGE, sizeof *d->hole);
    assert(d->data && d->hole);
    d->latency_min = 10 * XM_NS_PER_US;
    d->latency_max = 100 * XM_NS_PER_US;
    TAILQ_INIT(&d->gated);
    return d;
}

void sim_disk_free(struct sim_disk *d)
{
    assert(TAILQ_EMPTY(&d->gated));
    free(d->data);
    free(d->hole);
    free(d);
}
