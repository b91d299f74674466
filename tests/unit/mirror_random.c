/* SPDX-License-Identifier: MIT */
/* The sharpest tool: one seed is one schedule of a guest that reads, writes, zeroes, flushes and scribbles in
 * its buffers, of disks that take their time and fail, of links that delay, reorder, fail and send twice, and
 * of a mirror that goes on, off and on again. At the end both images must be the same, byte by byte, and both
 * digests.
 *
 *   mirror_random               seeds 1 to 2000 (XM_SEEDS=n: so many; XM_FIRST=n: from there)
 *   XM_SEED=n mirror_random     that one alone, telling what it does
 */
#include "lib_sim.h"
#include "mirror/mirror.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK     (64u << 10)
#define CHUNKS    16u
#define SECTORS   (CHUNKS * CHUNK / SIM_SECTOR)
#define SLOTS     24u
#define BUF_MAX   (256u << 10)
#define TURNS_MAX 2000000u

/* What the whole run must have seen at least once, or it has proved less than it says. */
static struct {
    uint64_t to_sync, to_async, held, given_up, buffer_waits, links_lost, all_lost, resent, reordered,
        target_errors, read_errors, write_errors, mirror_offs, pivots, holes, zeros, retried_quiesces,
        verified, verify_failed, failed;
} seen;

struct guest_sector {
    uint32_t tag;     /* what it holds, when it is known */
    uint32_t touched; /* grows at each begin and end of a write */
    uint8_t writers;  /* in flight */
    bool unknown;     /* concurrent writes, a buffer that changed, an error: either value is right */
};

struct slot {
    struct world *world;
    struct xm_breq breq;
    struct iovec iov[3];
    uint8_t *buf;
    bool busy, scribbled;
    uint32_t tag;
    struct sim_event scribble;
    uint32_t *touched; /* READ: as it was at the beginning */
};

struct world {
    struct sim *sim;
    struct sim_disk *source, *target;
    struct xm_writer *writer;
    struct sim_links *links; /* NULL: near */
    struct xm_replica *replica;
    struct xm_disk *disk;
    struct guest_sector *sectors;
    uint64_t size, hot;
    struct slot slot[SLOTS];
    unsigned depth, busy, left; /* requests to do */
    uint32_t next_tag;
    struct sim_event guest, chaos;
    uint64_t think; /* ns between requests, at most */
    bool chaotic, mirror_up, turning_off, stopped;
    bool quiet; /* set when the guest has nothing in flight and nothing left to do */
    bool off, quiesced, pivoted, verifying;
    int quiesce_status, pivot_status;
    char why[300];
    uint64_t seed;
};

static bool talk;
static uint8_t *arena; /* the slots' buffers, kept over the seeds */
static uint32_t *touched_arena;

static void say(const struct world *w, const char *what, uint64_t a, uint64_t b)
{
    if (talk)
        printf("%8.3f ms  %-14s %llu %llu\n", (double)(w->sim->now - XM_NS_PER_S) / 1e6, what,
               (unsigned long long)a, (unsigned long long)b);
}

/* ---- the guest ---- */

static void stamp(uint8_t *to, uint32_t tag, uint64_t sector)
{
    uint64_t word = ((uint64_t)tag << 32 | sector) * 0x9e3779b97f4a7c15u;

    for (unsigned i = 0; i < SIM_SECTOR; i += 8)
        memcpy(to + i, &word, 8);
}

/* Tag 0: zeros. */
static bool is_stamped(const uint8_t *at, uint32_t tag, uint64_t sector)
{
    uint8_t want[SIM_SECTOR] = {0};

    if (tag)
        stamp(want, tag, sector);
    return memcmp(at, want, SIM_SECTOR) == 0;
}

static void guest_schedule(struct world *w);

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
        if (!is_stamped(s->buf + i * SIM_SECTOR, g->tag, n))
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

static void scribble(struct sim_event *e)
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
            stamp(s->buf + i * SIM_SECTOR, s->tag, first + i);
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

static void guest_step(struct sim_event *e)
{
    struct world *w = xm_container_of(e, struct world, guest);

    while (w->left > 0 && w->busy < w->depth && !w->stopped) {
        guest_issue(w);
        if (sim_chance(w->sim, 400))
            break;
    }
    guest_schedule(w);
}

static void guest_schedule(struct world *w)
{
    w->quiet = w->busy == 0 && (w->left == 0 || w->stopped);
    if (w->left == 0 || w->stopped || w->busy >= w->depth || w->guest.armed)
        return;
    /* Now and then it rests for so long that a mirror in sync mode comes back to async. */
    uint64_t pause = sim_chance(w->sim, 10) ? 700 * XM_NS_PER_MS : sim_below(w->sim, w->think + 1);
    sim_event_set(w->sim, &w->guest, pause);
}

/* ---- what befalls it ---- */

static void take_status(struct world *w)
{
    struct xm_disk_status st;

    xm_disk_status(w->disk, &st);
    seen.to_sync += st.to_sync;
    seen.to_async += st.to_async;
    seen.held += st.held;
    seen.given_up += st.given_up;
    seen.buffer_waits += st.buffer_waits;
    seen.holes += st.copied.bytes_hole;
    seen.zeros += st.copied.bytes_zero;
    seen.read_errors += st.copied.read_errors;
    seen.failed += st.failed != 0;
}

static void mirror_on(struct world *w, bool zeroed)
{
    struct xm_error e;

    say(w, "mirror on", zeroed, 0);
    if (xm_disk_mirror_on(w->disk, w->replica, zeroed, &e) < 0)
        fail_msg("seed %llu: %s", (unsigned long long)w->seed, e.text);
    if (w->links && sim_links_alive(w->links) == 0)
        xm_disk_replica_lost(w->disk, true);
    w->mirror_up = true;
}

static void mirror_is_off(void *arg)
{
    struct world *w = arg;

    say(w, "mirror is off", 0, 0);
    take_status(w);
    seen.mirror_offs++;
    w->mirror_up = w->turning_off = false;
    w->off = true;
}

static void mirror_off(struct world *w)
{
    say(w, "mirror off", 0, 0);
    w->turning_off = true;
    w->off = false;
    xm_disk_mirror_off(w->disk, mirror_is_off, w);
}

static void link_chaos(struct world *w)
{
    struct sim_links *l = w->links;
    unsigned link = (unsigned)sim_below(w->sim, l->count), before = sim_links_alive(l);

    if (l->link[link].up && !sim_chance(w->sim, 300)) {
        say(w, "link down", link, 0);
        sim_links_down(l, link);
        seen.links_lost++;
        if (before == 1) {
            seen.all_lost++;
            if (w->mirror_up && !w->turning_off)
                xm_disk_replica_lost(w->disk, true);
        }
    } else if (!l->link[link].up) {
        say(w, "link up", link, 0);
        sim_links_up(l, link);
        if (before == 0 && w->mirror_up && !w->turning_off)
            xm_disk_replica_lost(w->disk, false);
    }
}

static void verified(void *arg, int status, uint64_t differed, const char *why)
{
    struct world *w = arg;

    (void)why;
    say(w, "verified", (uint64_t)-status, differed);
    w->verifying = false;
    seen.verified += status == 0;
    seen.verify_failed += status < 0;
    if (status == 0 && differed > 0 && w->target->errors + w->source->errors == 0)
        fail_msg("seed %llu: %llu present chunks differed", (unsigned long long)w->seed,
                 (unsigned long long)differed);
}

static void chaos_step(struct sim_event *e)
{
    struct world *w = xm_container_of(e, struct world, chaos);
    struct xm_disk_status st;

    if (!w->chaotic)
        return;
    if (w->links && sim_chance(w->sim, 700))
        link_chaos(w);
    if (w->mirror_up && !w->turning_off && sim_chance(w->sim, 60))
        mirror_off(w);
    else if (!w->mirror_up && sim_chance(w->sim, 500))
        mirror_on(w, false);
    if (!w->verifying && w->mirror_up && !w->turning_off && sim_chance(w->sim, 100)) {
        w->verifying = true;
        xm_disk_verify(w->disk, verified, w);
    }
    if (sim_chance(w->sim, 100))
        xm_disk_status(w->disk, &st);
    sim_event_set(w->sim, e, sim_between(w->sim, XM_NS_PER_US, 40 * XM_NS_PER_MS));
}

static void calm(struct world *w)
{
    w->chaotic = false;
    sim_event_cancel(w->sim, &w->chaos);
    w->source->read_errors = w->source->write_errors = 0;
    w->target->write_errors = w->target->flush_errors = 0;
    if (!w->links)
        return;
    bool none = sim_links_alive(w->links) == 0;
    for (unsigned i = 0; i < w->links->count; i++)
        sim_links_up(w->links, i);
    if (none && w->mirror_up && !w->turning_off)
        xm_disk_replica_lost(w->disk, false);
}

/* ---- the world ---- */

static void fill_source(struct world *w)
{
    for (uint64_t n = 0; n < w->size / SIM_SECTOR;) {
        uint64_t length = 8 * (1 + sim_below(w->sim, 64));
        length = XM_MIN(length, w->size / SIM_SECTOR - n);
        uint64_t kind = sim_below(w->sim, 4);
        for (uint64_t i = n; i < n + length; i++) {
            w->sectors[i].tag = kind < 2 ? 1 : 0;
            if (kind < 2)
                stamp(w->source->data + i * SIM_SECTOR, 1, i);
            if (kind == 3)
                w->source->hole[i / 8] = true;
        }
        n += length;
    }
}

static struct world *world_new(uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    struct xm_error e;

    w->seed = seed;
    struct sim *s = w->sim = sim_new(seed);
    w->size = CHUNKS * CHUNK - sim_below(s, 3) * 5 * 4096;
    w->hot = sim_below(s, SECTORS - 256);
    w->source = sim_disk_new(s, w->size);
    w->target = sim_disk_new(s, w->size);
    w->sectors = calloc(SECTORS, sizeof *w->sectors);
    w->source->latency_max = sim_between(s, 20, 800) * XM_NS_PER_US;
    w->target->latency_max = sim_chance(s, 200) ? 20 * XM_NS_PER_MS : sim_between(s, 20, 3000) * XM_NS_PER_US;
    fill_source(w);
    w->writer = xm_writer_new(&s->engine, &w->target->file, &e);
    if (sim_chance(s, 750)) {
        w->links = sim_links_new(s, w->writer, 1 + (unsigned)sim_below(s, 4));
        w->links->window = 1 + (unsigned)sim_below(s, 32);
        w->links->delay_max =
            sim_chance(s, 200) ? 15 * XM_NS_PER_MS : sim_between(s, 30, 2000) * XM_NS_PER_US;
        w->links->dup_late = 500;
        w->replica = xm_replica_far(&s->engine, &w->links->transport, 3, CHUNK);
    } else {
        w->replica = xm_replica_near(&s->engine, w->writer, CHUNK);
    }
    struct xm_disk_opts opts = {.chunk_size = CHUNK,
                                .write_cap = sim_between(s, 1, 20) * XM_NS_PER_MS,
                                .mirror_buffer = (64u << 10) << sim_below(s, 4),
                                .bulk_buffer = (64u << 10) << sim_below(s, 4)};
    w->disk = xm_disk_new(&s->engine, &w->source->file, &opts, &e);
    w->next_tag = 2;
    w->depth = 1 + (unsigned)sim_below(s, SLOTS);
    w->left = 80 + (unsigned)sim_below(s, 150);
    w->think = sim_chance(s, 500) ? 200 * XM_NS_PER_US : sim_between(s, 100, 8000) * XM_NS_PER_US;
    w->guest.fire = guest_step;
    w->chaos.fire = chaos_step;
    for (unsigned i = 0; i < SLOTS; i++) {
        w->slot[i].world = w;
        w->slot[i].buf = arena + (size_t)i * SECTORS * SIM_SECTOR;
        w->slot[i].touched = touched_arena + (size_t)i * SECTORS;
        w->slot[i].scribble.fire = scribble;
    }
    if (sim_chance(s, 500))
        w->target->write_errors = (unsigned)sim_below(s, 30);
    if (sim_chance(s, 150))
        w->source->write_errors = (unsigned)sim_below(s, 30);
    if (sim_chance(s, 300))
        w->source->read_errors = (unsigned)sim_below(s, 300);
    if (sim_chance(s, 100))
        w->target->flush_errors = 300;
    return w;
}

static void world_free(struct world *w)
{
    static const bool never = false;

    calm(w);
    /* Late duplicates are still on their way. */
    sim_run_until(w->sim, &never, TURNS_MAX);
    xm_disk_free(w->disk);
    xm_replica_free(w->replica);
    if (w->links) {
        seen.resent += w->links->resent;
        seen.reordered += w->links->reordered;
        sim_links_free(w->links);
    }
    assert_int_equal(xm_writer_pending(w->writer), 0);
    xm_writer_free(w->writer);
    seen.target_errors += w->target->errors;
    sim_disk_free(w->source);
    sim_disk_free(w->target);
    sim_free(w->sim);
    free(w->sectors);
    free(w);
}

static void run_until(struct world *w, const bool *flag, const char *what)
{
    if (!sim_run_until(w->sim, flag, TURNS_MAX))
        fail_msg("seed %llu: hangs: %s", (unsigned long long)w->seed, what);
}

static void compare(struct world *w, const char *when)
{
    struct xm_digest here, there;

    for (uint64_t n = 0; n < w->size / SIM_SECTOR; n++)
        if (memcmp(w->source->data + n * SIM_SECTOR, w->target->data + n * SIM_SECTOR, SIM_SECTOR) != 0)
            fail_msg("seed %llu: %s: the disks differ in sector %llu (chunk %llu)",
                     (unsigned long long)w->seed, when, (unsigned long long)n,
                     (unsigned long long)(n * SIM_SECTOR / CHUNK));
    xm_replica_digest(w->replica, &here);
    xm_writer_digest(w->writer, &there);
    if (!xm_digest_equal(&here, &there))
        fail_msg("seed %llu: %s: the digests differ: %llu frames acknowledged, %llu applied",
                 (unsigned long long)w->seed, when, (unsigned long long)here.frames,
                 (unsigned long long)there.frames);
    if (w->target->unflushed)
        fail_msg("seed %llu: %s: not flushed", (unsigned long long)w->seed, when);
    if (w->links && w->links->changed)
        fail_msg("seed %llu: a payload changed under way", (unsigned long long)w->seed);
}

/* Everything that the guest knows must be on this disk. */
static void check_all(struct world *w, const struct sim_disk *d)
{
    for (uint64_t n = 0; n < w->size / SIM_SECTOR; n++)
        if (!w->sectors[n].unknown && !is_stamped(d->data + n * SIM_SECTOR, w->sectors[n].tag, n))
            fail_msg("seed %llu: sector %llu is not what the guest wrote", (unsigned long long)w->seed,
                     (unsigned long long)n);
}

static void quiesced(void *arg, int status, const char *why)
{
    struct world *w = arg;

    say(w, "quiesced", (uint64_t)-status, 0);
    w->quiesce_status = status;
    snprintf(w->why, sizeof w->why, "%s", why ? why : "");
    w->quiesced = true;
    if (status == 0)
        compare(w, "when quiesced");
}

/* The mirror may have given up for good before calm came: then it is turned off and on again, as a new
 * attempt of the user. */
static void mirror_again(struct world *w)
{
    if (w->turning_off)
        run_until(w, &w->off, "mirror off");
    if (w->mirror_up) {
        mirror_off(w);
        run_until(w, &w->off, "mirror off");
    }
    mirror_on(w, false);
}

static void quiesce(struct world *w)
{
    struct xm_disk_status st;

    if (w->turning_off)
        run_until(w, &w->off, "mirror off");
    xm_disk_status(w->disk, &st);
    if (!w->mirror_up || st.failed)
        mirror_again(w);
    for (int tries = 0; tries < 4; tries++) {
        w->quiesced = false;
        xm_disk_quiesce(w->disk, quiesced, w);
        run_until(w, &w->quiesced, "quiesce");
        if (w->quiesce_status == 0)
            return;
        seen.retried_quiesces++;
        mirror_again(w);
    }
    fail_msg("seed %llu: does not quiesce: %s", (unsigned long long)w->seed, w->why);
}

static void pivoted(void *arg, int status, const char *why)
{
    struct world *w = arg;

    say(w, "pivoted", (uint64_t)-status, 0);
    w->pivot_status = status;
    snprintf(w->why, sizeof w->why, "%s", why ? why : "");
    w->pivoted = true;
    if (status == 0)
        compare(w, "at the pivot");
}

/* The guest runs on while its disk is swapped. */
static void pivot(struct world *w)
{
    if (w->turning_off || !w->mirror_up)
        mirror_again(w);
    do {
        w->pivoted = false;
        xm_disk_pivot(w->disk, &w->target->file, NULL, pivoted, w);
        run_until(w, &w->pivoted, "pivot");
        if (w->pivot_status < 0)
            mirror_again(w);
    } while (w->pivot_status < 0);
    seen.pivots++;
    take_status(w);
    w->mirror_up = false;
    w->left += 30;
    guest_schedule(w);
    run_until(w, &w->quiet, "the guest after the pivot");
    check_all(w, w->target);
}

static void run_seed(uint64_t seed)
{
    struct world *w = world_new(seed);
    bool storage_only = !w->links && sim_chance(w->sim, 500);

    w->chaotic = true;
    guest_schedule(w);
    sim_run_for(w->sim, sim_below(w->sim, 2 * XM_NS_PER_MS));
    mirror_on(w, true);
    sim_event_set(w->sim, &w->chaos, sim_below(w->sim, 20 * XM_NS_PER_MS));
    if (storage_only) {
        sim_run_for(w->sim, sim_below(w->sim, 50 * XM_NS_PER_MS));
        calm(w);
        pivot(w);
    } else {
        run_until(w, &w->quiet, "the guest");
        calm(w);
        quiesce(w);
        check_all(w, w->source);
        check_all(w, w->target);
        mirror_off(w);
        run_until(w, &w->off, "mirror off");
    }
    world_free(w);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void test_images_equal_whatever_happens(void **state)
{
    uint64_t one = from_environment("XM_SEED", 0), first = from_environment("XM_FIRST", 1);
    uint64_t count = from_environment("XM_SEEDS", 2000);

    (void)state;
    if (one) {
        talk = true;
        run_seed(one);
        return;
    }
    uint64_t start = xm_now();
    for (uint64_t seed = first; seed < first + count; seed++)
        run_seed(seed);
    printf("%llu seeds in %.2f s\n", (unsigned long long)count, (double)(xm_now() - start) / 1e9);
}

static void test_every_path_was_walked(void **state)
{
    (void)state;
    if (getenv("XM_SEED") || from_environment("XM_SEEDS", 2000) < 500) {
        print_message("too few seeds to ask for every path\n");
        skip();
    }
    print_message(
        "to_sync %llu to_async %llu held %llu given_up %llu buffer_waits %llu links_lost %llu all_lost %llu "
        "resent %llu reordered %llu\n",
        (unsigned long long)seen.to_sync, (unsigned long long)seen.to_async, (unsigned long long)seen.held,
        (unsigned long long)seen.given_up, (unsigned long long)seen.buffer_waits,
        (unsigned long long)seen.links_lost, (unsigned long long)seen.all_lost,
        (unsigned long long)seen.resent, (unsigned long long)seen.reordered);
    print_message(
        "target_errors %llu read_errors %llu write_errors %llu mirror_offs %llu pivots %llu holes %llu "
        "zeros %llu retried_quiesces %llu failed %llu verified %llu verify_failed %llu\n",
        (unsigned long long)seen.target_errors, (unsigned long long)seen.read_errors,
        (unsigned long long)seen.write_errors, (unsigned long long)seen.mirror_offs,
        (unsigned long long)seen.pivots, (unsigned long long)seen.holes, (unsigned long long)seen.zeros,
        (unsigned long long)seen.retried_quiesces, (unsigned long long)seen.failed,
        (unsigned long long)seen.verified, (unsigned long long)seen.verify_failed);
    assert_true(seen.to_sync && seen.to_async && seen.held && seen.given_up && seen.buffer_waits);
    assert_true(seen.links_lost && seen.all_lost && seen.resent && seen.reordered);
    assert_true(seen.target_errors && seen.read_errors && seen.write_errors && seen.mirror_offs);
    assert_true(seen.pivots && seen.holes && seen.zeros && seen.verified && seen.verify_failed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_equal_whatever_happens),
        cmocka_unit_test(test_every_path_was_walked),
    };

    /* Keeps the disks' memory warm from seed to seed. */
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    arena = malloc((size_t)SLOTS * SECTORS * SIM_SECTOR);
    touched_arena = malloc((size_t)SLOTS * SECTORS * sizeof *touched_arena);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(arena);
    free(touched_arena);
    return rc;
}
