/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

struct seen seen;
bool talk;

void say(const struct world *w, const char *what, uint64_t a, uint64_t b)
{
    if (talk)
        printf("%8.3f ms  %-14s %llu %llu\n", (double)(w->sim->now - XM_NS_PER_S) / 1e6, what,
               (unsigned long long)a, (unsigned long long)b);
}

void guest_stamp(uint8_t *to, uint32_t tag, uint64_t sector)
{
    uint64_t word = ((uint64_t)tag << 32 | sector) * 0x9e3779b97f4a7c15u;

    for (unsigned i = 0; i < SIM_SECTOR; i += 8)
        memcpy(to + i, &word, 8);
}

bool guest_is_stamped(const uint8_t *at, uint32_t tag, uint64_t sector)
{
    uint8_t want[SIM_SECTOR] = {0};

    if (tag)
        guest_stamp(want, tag, sector);
    return memcmp(at, want, SIM_SECTOR) == 0;
}

static void end_write(struct world *w, struct slot *s, int status)
{
    const struct xm_breq *b = &s->breq;

    for (uint64_t i = 0; i < b->length / SIM_SECTOR; i++) {
        struct guest_sector *g = &w->sectors[b->offset / SIM_SECTOR + i];
        g->writers--;
        g->touched++;
        g->tag = b->op == XM_IO_ZERO ? 0 : s->tag;
        if (status < 0 || s->scribbled)
            g->unknown = true;
    }
}

static void check_read(struct world *w, struct slot *s)
{
    const struct xm_breq *b = &s->breq;

    for (uint64_t i = 0; i < b->length / SIM_SECTOR; i++) {
        uint64_t n = b->offset / SIM_SECTOR + i;
        const struct guest_sector *g = &w->sectors[n];
        if (g->unknown || g->writers || g->touched != s->touched[i])
            continue;
        if (!guest_is_stamped(s->buf + i * SIM_SECTOR, g->tag, n))
            fail_msg("seed %llu: the guest read something else than it had written in sector %llu",
                     (unsigned long long)w->seed, (unsigned long long)n);
    }
}

static void guest_done(struct xm_breq *b, int status)
{
    struct slot *s = xm_container_of(b, struct slot, breq);
    struct world *w = s->world;

    sim_event_cancel(w->sim, &s->scribble);
    if (b->op == XM_IO_WRITE || b->op == XM_IO_ZERO) {
        end_write(w, s, status);
        seen.write_errors += status < 0;
    } else if (b->op == XM_IO_READ && status == 0) {
        check_read(w, s);
    }
    /* Invariant 6: the guest sees errors of its own disk only. */
    if (status < 0 && w->source->errors == 0)
        fail_msg("seed %llu: the guest got %s without its disk having failed", (unsigned long long)w->seed,
                 strerror(-status));
    s->busy = false;
    w->busy--;
    guest_schedule(w);
}

void guest_scribble(struct sim_event *e)
{
    struct slot *s = xm_container_of(e, struct slot, scribble);
    struct world *w = s->world;
    uint64_t at = sim_below(w->sim, s->breq.length / 8) * 8;
    uint64_t length = 8 + sim_below(w->sim, 2048);

    s->scribbled = true;
    memset(s->buf + at, (int)sim_below(w->sim, 256), XM_MIN(length, s->breq.length - at));
    sim_event_set(w->sim, e, sim_between(w->sim, 1000, 400000));
}

static void choose_range(struct world *w, struct xm_breq *b)
{
    struct sim *s = w->sim;
    uint64_t sectors = w->size / SIM_SECTOR, length, at;

    switch (sim_below(s, 8)) {
    case 0:
        length = 1 + sim_below(s, BUF_MAX / SIM_SECTOR);
        break;
    case 1:
    case 2:
        length = 1 + sim_below(s, 128);
        break;
    default:
        length = 8 * (1 + sim_below(s, 2));
    }
    if (b->op == XM_IO_ZERO && sim_chance(s, 60))
        length = 1 + sim_below(s, sectors);
    length = XM_MIN(length, sectors);
    at = sim_chance(s, 500) ? w->hot + sim_below(s, 24) : sim_below(s, sectors);
    b->offset = XM_MIN(at, sectors - length) * SIM_SECTOR;
    b->length = length * SIM_SECTOR;
}

/* Up to three vectors that need not end on sectors. */
static void cut_iov(struct world *w, struct slot *s)
{
    uint64_t at = 0, left = s->breq.length;
    int n = 0;

    while (n < 2 && left > SIM_SECTOR && sim_chance(w->sim, 300)) {
        uint64_t len = 16 * (1 + sim_below(w->sim, left / 16 - 1));
        s->iov[n++] = (struct iovec){s->buf + at, len};
        at += len;
        left -= len;
    }
    s->iov[n++] = (struct iovec){s->buf + at, left};
    s->breq.iov = s->iov;
    s->breq.iovcnt = n;
}

static void begin_write(struct world *w, struct slot *s)
{
    const struct xm_breq *b = &s->breq;
    uint64_t first = b->offset / SIM_SECTOR;

    s->tag = w->next_tag++;
    for (uint64_t i = 0; i < b->length / SIM_SECTOR; i++) {
        struct guest_sector *g = &w->sectors[first + i];
        g->unknown = g->writers > 0;
        if (g->writers++ > 0)
            g->unknown = true;
        g->touched++;
        if (b->op == XM_IO_WRITE)
            guest_stamp(s->buf + i * SIM_SECTOR, s->tag, first + i);
    }
}

static void begin_read(struct world *w, struct slot *s)
{
    const struct xm_breq *b = &s->breq;

    memset(s->buf, 0xee, b->length);
    for (uint64_t i = 0; i < b->length / SIM_SECTOR; i++) {
        const struct guest_sector *g = &w->sectors[b->offset / SIM_SECTOR + i];
        s->touched[i] = g->writers ? g->touched - 1 : g->touched;
    }
}

static void guest_issue(struct world *w)
{
    struct slot *s = w->slot;
    unsigned kind = (unsigned)sim_below(w->sim, 100);

    while (s->busy)
        s++;
    s->busy = true;
    s->scribbled = false;
    w->busy++;
    w->left--;
    s->breq = (struct xm_breq){.done = guest_done};
    s->breq.op = kind < 55 ? XM_IO_WRITE : kind < 75 ? XM_IO_READ : kind < 93 ? XM_IO_ZERO : XM_IO_FLUSH;
    s->breq.unmap = sim_chance(w->sim, 500);
    if (s->breq.op != XM_IO_FLUSH) {
        choose_range(w, &s->breq);
        cut_iov(w, s);
    }
    if (s->breq.op == XM_IO_WRITE || s->breq.op == XM_IO_ZERO)
        begin_write(w, s);
    if (s->breq.op == XM_IO_READ)
        begin_read(w, s);
    if (s->breq.op == XM_IO_WRITE && sim_chance(w->sim, 250))
        sim_event_set(w->sim, &s->scribble, sim_between(w->sim, 0, 200000));
    xm_disk_submit(w->disk, &s->breq);
}

void guest_step(struct sim_event *e)
{
    struct world *w = xm_container_of(e, struct world, guest);

    while (w->left > 0 && w->busy < w->depth && !w->stopped) {
        guest_issue(w);
        if (sim_chance(w->sim, 400))
            break;
    }
    guest_schedule(w);
}

void guest_schedule(struct world *w)
{
    w->quiet = w->busy == 0 && (w->left == 0 || w->stopped);
    if (w->left == 0 || w->stopped || w->busy >= w->depth || w->guest.armed)
        return;
    /* Now and then it rests for so long that a mirror in sync mode comes back to async. */
    uint64_t pause = sim_chance(w->sim, 10) ? 700 * XM_NS_PER_MS : sim_below(w->sim, w->think + 1);
    sim_event_set(w->sim, &w->guest, pause);
}
