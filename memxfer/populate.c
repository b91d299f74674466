/* memxfer/populate.c: fallocate on the memfd, step by step, in a thread that nobody waits for.
 *
 * Pages that fallocate gives are neither cleared nor mapped: writing to them with pwrite takes 0.5 us where a
 * fresh page takes 1.25 (touching them through a mapping would cost more than it saves). They still count as
 * holes and read as zeros, so this is invisible to who writes pages or punches holes meanwhile. Zero runs
 * give the pages back; steps that were wholly in such a run before are left out. A step that loses this race
 * costs memory until the guest uses it, nothing else.
 */
#include "memxfer/populate.h"

#include <sys/resource.h>
#include <unistd.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define STEP       (2ull << 20)
#define LOOK_EVERY 64u /* steps: how often the host's free memory is looked at */

struct populate {
    struct xm_ram *ram;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    struct xm_bitmap skip[16]; /* bit: a step that needs no pages */
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

/* Other guests of the host need the processors more. */
#define POPULATE_NICE 10

static void *populate_main(void *arg)
{
    struct populate *p = arg;

    setpriority(PRIO_PROCESS, (id_t)gettid(), POPULATE_NICE);
    for (unsigned i = 0; i < p->ram->blocks; i++) {
        const struct xm_ram_block *b = &p->ram->block[i];
        for (uint64_t pos = 0; pos < b->size; pos += STEP) {
            if (atomic_load(&p->stop) || (pos / STEP % LOOK_EVERY == 0 && !memory_left()))
                return NULL;
            if (xm_bitmap_test(&p->skip[i], pos / STEP))
                continue;
            if (fallocate(b->memfd, 0, (off_t)pos, (off_t)XM_MIN(STEP, b->size - pos)) < 0 &&
                errno != EINTR) {
                /* No memory: the writes to come will say so, where it matters. */
                xm_log(XM_LOG_DEBUG, "RAM block %s is not populated ahead: errno %d", b->name, errno);
                return NULL;
            }
        }
    }
    return NULL;
}

struct populate *populate_new(struct xm_ram *ram)
{
    struct populate *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->ram = ram;
    for (unsigned i = 0; i < ram->blocks; i++) {
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

void populate_free(struct populate *p)
{
    if (p->started) {
        atomic_store(&p->stop, true);
        pthread_join(p->thread, NULL);
    }
    for (unsigned i = 0; i < sizeof p->skip / sizeof *p->skip; i++) {
        if (p->skip[i].word)
            xm_bitmap_destroy(&p->skip[i]);
    }
    free(p);
}
