/* SPDX-License-Identifier: MIT */
/* The sharpest tool: one seed is one schedule of a guest that reads, writes, zeroes, flushes and scribbles in
 * its buffers (lib_random.c), of disks that take their time and fail, of links that delay, reorder, fail and
 * send twice, and of a mirror that goes on, off and on again. At the end both images must be the same, byte
 * by byte, and both digests.
 *
 *   mirror_random               seeds 1 to 2000 (XM_SEEDS=n: so many; XM_FIRST=n: from there)
 *   XM_SEED=n mirror_random     that one alone, telling what it does
 */
#include "tests/unit/lib_random.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static uint8_t *arena; /* the slots' buffers, kept over the seeds */
static uint32_t *touched_arena;

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
                guest_stamp(w->source->data + i * SIM_SECTOR, 1, i);
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
        w->slot[i].scribble.fire = guest_scribble;
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
        if (!w->sectors[n].unknown && !guest_is_stamped(d->data + n * SIM_SECTOR, w->sectors[n].tag, n))
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
