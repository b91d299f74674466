/* SPDX-License-Identifier: MIT */
/* tests/guest/memory.c: pages with verifiable patterns, rewritten at a set rate; half of the rewriting
 * sweeps, half jumps. */
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/guest/guest.h"
#include "tests/guest/record.h"

#define PAGE  4096u
#define BURST 32u /* pages between two looks at the clock */

struct page_head {
    uint64_t page, generation, seed, sum; /* sum: of the whole page with this field 0 */
};

/* Owner: the writer thread inside the gate; whoever has closed the gate. */
static struct {
    struct gate gate;
    unsigned char *base;
    uint32_t *generation; /* what each page has to be */
    uint64_t pages, rate, seed;
    uint64_t rewrites; /* the sum of all generations */
} mem;

static void write_page(uint64_t n)
{
    unsigned char *p = mem.base + n * PAGE;
    struct page_head h = {n, ++mem.generation[n], mem.seed, 0};

    memcpy(p, &h, sizeof(h));
    rec_noise(p + sizeof(h), PAGE - sizeof(h), mem.seed ^ (n << 24) ^ h.generation);
    h.sum = XXH3_64bits(p, PAGE);
    memcpy(p, &h, sizeof(h));
    mem.rewrites++;
}

static void *writer(void *arg)
{
    uint64_t next = 0, sweep = 0, rng = mem.seed ^ 0x6d656d;
    bool jump = false;

    (void)arg;
    for (;;) {
        unsigned i;

        gate_enter(&mem.gate);
        for (i = 0; i < BURST; i++) {
            write_page(jump ? rec_random(&rng) % mem.pages : sweep);
            if (!jump)
                sweep = (sweep + 1) % mem.pages;
        }
        gate_leave(&mem.gate);
        jump = !jump;
        pace(&next, BURST * PAGE, mem.rate);
    }
    return NULL;
}

void memory_start(const struct params *p)
{
    uint64_t n;

    gate_init(&mem.gate);
    if (!p->mem_bytes)
        return;
    mem.seed = p->seed;
    mem.rate = p->mem_rate;
    mem.base = mmap(NULL, p->mem_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mem.generation = calloc(p->mem_bytes / PAGE, sizeof(*mem.generation));
    if (mem.base == MAP_FAILED || !mem.generation) {
        guest_fail("no %llu bytes of memory", (unsigned long long)p->mem_bytes);
        return;
    }
    mem.pages = p->mem_bytes / PAGE;
    for (n = 0; n < mem.pages; n++)
        write_page(n);
    if (mem.rate)
        start_thread(writer, NULL);
}

void memory_pause(void)
{
    if (gate_close(&mem.gate) < 0)
        guest_fail("the memory writer does not stop");
}

void memory_resume(void)
{
    gate_open(&mem.gate);
}

uint64_t memory_verify(uint64_t *pages)
{
    uint64_t n, wrong = 0, sum = 0;

    for (n = 0; n < mem.pages; n++) {
        unsigned char copy[PAGE];
        struct page_head h;
        uint64_t expect;

        memcpy(copy, mem.base + n * PAGE, PAGE);
        memcpy(&h, copy, sizeof(h));
        expect = h.sum;
        h.sum = 0;
        memcpy(copy, &h, sizeof(h));
        sum += mem.generation[n];
        if (h.page == n && h.generation == mem.generation[n] && h.seed == mem.seed &&
            XXH3_64bits(copy, PAGE) == expect)
            continue;
        wrong++;
        guest_fail("memory page %llu: has page %llu generation %llu, should be generation %u%s",
                   (unsigned long long)n, (unsigned long long)h.page, (unsigned long long)h.generation,
                   mem.generation[n],
                   h.page == n && h.generation == mem.generation[n] ? ", wrong checksum" : "");
    }
    if (sum != mem.rewrites) {
        wrong++;
        guest_fail("memory: generations sum up to %llu, should be %llu", (unsigned long long)sum,
                   (unsigned long long)mem.rewrites);
    }
    *pages = mem.pages;
    return wrong;
}

void memory_status(FILE *json)
{
    fprintf(json, "{\"pages\":%llu,\"rewrites\":%llu,\"rate\":%llu}", (unsigned long long)mem.pages,
            (unsigned long long)mem.rewrites, (unsigned long long)mem.rate);
}
