/* SPDX-License-Identifier: MIT */
/* memxfer/populate.c: MADV_POPULATE_WRITE on our mapping, step by step, in a thread that nobody waits for.
 *
 * recvmsg into pages that are there and mapped takes half the time of pwrite into pages that are there, and a
 * third of what it takes where each page has to be faulted in on the way (ramsink.c has figures). Populated
 * pages read as zeros, so this is invisible to who receives pages or punches holes meanwhile. Zero runs give
 * the pages back; steps that were wholly in such a run before are left out. A step that loses this race costs
 * memory until the guest uses it, nothing else.
 *
 * Page tables take 0.2 % of what is mapped. Beyond POPULATE_AHEAD the thread keeps, in the first round, that
 * much mapped before the place where data comes, and gives the tables behind it back (by mapping the same
 * again: works on all kernels, and a page that is still to come there is faulted in). In later rounds of such
 * a guest pages are faulted in as they come.
 *
 * No memory: nothing is populated any more; what is to come says so, where it matters. Tables are given back
 * all the same.
 */
#include "memxfer/populate.h"
#include "memxfer/ram.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define STEP       (2ull << 20)
#define LOOK_EVERY 64u /* steps: how often the host's free memory is looked at */

/* Places are counted through all blocks: the bytes of those before, and the offset. */
struct populate {
    struct xm_ram *ram;
    uint64_t ahead, slack, total; /* slack: what stays mapped behind, and is given back at once */
    uint64_t first[16];           /* place where the block begins */
    pthread_t thread;
    bool started;
    struct xm_bitmap skip[16]; /* bit: a step that needs no pages */
    atomic_ullong passed;
    pthread_mutex_t lock; /* protects stop */
    pthread_cond_t moved; /* passed or stop */
    bool stop;
};

/* Whether the host has memory to give ahead of need: more than an eighth of it all. A source whose guest uses
 * little of its RAM may fit where all of it does not; that must not wake the OOM killer. */
static bool memory_left(void)
{
    unsigned long long total = 0, available = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    if (!f)
        return false;
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "MemTotal: %llu", &total);
        sscanf(line, "MemAvailable: %llu", &available);
    }
    fclose(f);
    return available > total / 8;
}

/* Gives the tables of [from, to) back. */
static void populate_unmap(struct populate *p, uint64_t from, uint64_t to)
{
    for (unsigned i = 0; i < p->ram->blocks; i++) {
        const struct xm_ram_block *b = &p->ram->block[i];
        uint64_t start = XM_MAX(from, p->first[i]), end = XM_MIN(to, p->first[i] + b->size);
        if (start < end)
            ram_give_back(b, start - p->first[i], end - p->first[i]);
    }
}

/* Until `place` may be mapped. Meanwhile, gives back what lies behind. False: stop. */
static bool populate_wait(struct populate *p, uint64_t place, uint64_t *given_back)
{
    for (;;) {
        uint64_t passed = atomic_load(&p->passed);
        if (p->total > p->ahead && passed >= *given_back + 2 * p->slack) {
            populate_unmap(p, *given_back, *given_back + p->slack);
            *given_back += p->slack;
            continue;
        }
        pthread_mutex_lock(&p->lock);
        bool may = place < passed + p->ahead, stop = p->stop;
        if (!may && !stop && passed == atomic_load(&p->passed))
            pthread_cond_wait(&p->moved, &p->lock);
        pthread_mutex_unlock(&p->lock);
        if (may || stop)
            return !stop;
    }
}

static void *populate_main(void *arg)
{
    struct populate *p = arg;
    uint64_t given_back = 0;
    bool memory = true;

    xm_sched_background(0, true);
    for (unsigned i = 0; i < p->ram->blocks; i++) {
        const struct xm_ram_block *b = &p->ram->block[i];
        for (uint64_t pos = 0; pos < b->size; pos += STEP) {
            if (!populate_wait(p, p->first[i] + pos, &given_back))
                return NULL;
            memory = memory && (pos / STEP % LOOK_EVERY != 0 || memory_left());
            /* No more where the data was faster, or where there are none. */
            if (!memory || p->first[i] + pos + STEP <= atomic_load(&p->passed) ||
                xm_bitmap_test(&p->skip[i], pos / STEP))
                continue;
            if (madvise(b->map + pos, XM_MIN(STEP, b->size - pos), MADV_POPULATE_WRITE) < 0 &&
                errno != EINTR) {
                xm_log(XM_LOG_DEBUG, "RAM block %s is not populated ahead: errno %d", b->name, errno);
                memory = false;
            }
        }
    }
    if (p->total > p->ahead)
        populate_wait(p, p->total + p->ahead,
                      &given_back); /* the last of it to be given back; ends by stop */
    return NULL;
}

struct populate *populate_new(struct xm_ram *ram, uint64_t ahead)
{
    struct populate *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->ram = ram;
    p->ahead = ahead;
    p->slack = XM_ROUND_UP(ahead / 16, STEP);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->moved, NULL);
    for (unsigned i = 0; i < ram->blocks; i++) {
        p->first[i] = p->total;
        p->total += ram->block[i].size;
        if (xm_bitmap_init(&p->skip[i], XM_ROUND_UP(ram->block[i].size, STEP) / STEP) < 0) {
            populate_free(p);
            return NULL;
        }
    }
    return p;
}

void populate_start(struct populate *p)
{
    if (!p->started && pthread_create(&p->thread, NULL, populate_main, p) == 0)
        p->started = true;
}

void populate_skip(struct populate *p, unsigned block, uint64_t offset, uint64_t len)
{
    uint64_t first = XM_ROUND_UP(offset, STEP) / STEP, end = (offset + len) / STEP;

    if (end > first)
        xm_bitmap_set(&p->skip[block], first, end - first);
}

void populate_passed(struct populate *p, unsigned block, uint64_t offset)
{
    uint64_t place = p->first[block] + offset;

    /* Told in steps. */
    if (place < atomic_load_explicit(&p->passed, memory_order_relaxed) + STEP)
        return;
    pthread_mutex_lock(&p->lock);
    if (place > atomic_load(&p->passed))
        atomic_store(&p->passed, place);
    pthread_cond_signal(&p->moved);
    pthread_mutex_unlock(&p->lock);
}

void populate_free(struct populate *p)
{
    if (p->started) {
        pthread_mutex_lock(&p->lock);
        p->stop = true;
        pthread_cond_signal(&p->moved);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->thread, NULL);
    }
    pthread_cond_destroy(&p->moved);
    pthread_mutex_destroy(&p->lock);
    for (unsigned i = 0; i < sizeof p->skip / sizeof *p->skip; i++) {
        if (p->skip[i].word)
            xm_bitmap_destroy(&p->skip[i]);
    }
    free(p);
}
