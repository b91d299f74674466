/* SPDX-License-Identifier: MIT */
/* What a run allocates: processes that are killed never free theirs, so all of it goes at once when the
 * next run begins. Blocks that are freed are used again by size, which keeps the run in the cache. */
#include "tests/sim/sim.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA   (512ul << 20)
#define CLASSES 24 /* of 16 << n bytes */

struct block {
    size_t class;
    struct block *next; /* while it is free */
};
#define HEAD   16
#define IN_USE ((struct block *)(void *)&unused) /* next, of one that is not free */

static char *arena, *top;
static struct block *unused[CLASSES];

/* The linker gives these names. */
void *__real_malloc(size_t);
void *__real_realloc(void *, size_t);
void __real_free(void *);

void memory_reset(void)
{
    if (!arena)
        arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    top = arena;
    memset(unused, 0, sizeof unused);
}

static size_t class_of(size_t n)
{
    size_t c = 0;

    while (((size_t)16 << c) < n)
        c++;
    return c;
}

void *sim_alloc(size_t n)
{
    size_t c = class_of(n ? n : 1), size = ((size_t)16 << c) + HEAD;
    struct block *b = c < CLASSES ? unused[c] : NULL;

    if (b) {
        unused[c] = b->next;
    } else {
        if (c >= CLASSES || top + size > arena + ARENA) {
            fprintf(stderr, "sim: out of memory\n");
            _Exit(99);
        }
        b = (struct block *)(void *)top;
        top += size;
    }
    b->class = c;
    b->next = IN_USE;
    return (char *)b + HEAD;
}

static bool ours(const void *p)
{
    return (const char *)p >= arena && (const char *)p < arena + ARENA;
}

void *__wrap_malloc(size_t n)
{
    return arena ? sim_alloc(n) : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t m)
{
    void *p = __wrap_malloc(n * m);

    return memset(p, 0, n * m);
}

void __wrap_free(void *p)
{
    if (!ours(p)) {
        __real_free(p);
        return;
    }
    struct block *b = (struct block *)(void *)((char *)p - HEAD);
    if (b->next != IN_USE) {
        fprintf(stderr, "sim: %p is freed twice, or written beyond\n", p);
        abort();
    }
    b->next = unused[b->class];
    unused[b->class] = b;
}

void *__wrap_realloc(void *p, size_t n)
{
    if (p && !ours(p))
        return __real_realloc(p, n);
    void *q = __wrap_malloc(n);
    if (p) {
        struct block *b = (struct block *)(void *)((char *)p - HEAD);
        memcpy(q, p, XM_MIN(n, (size_t)16 << b->class));
        __wrap_free(p);
    }
    return q;
}

char *__wrap_strdup(const char *s)
{
    size_t n = strlen(s) + 1;

    return memcpy(__wrap_malloc(n), s, n);
}

int __wrap_vasprintf(char **s, const char *fmt, va_list ap)
{
    char text[4096];
    int n = vsnprintf(text, sizeof text, fmt, ap);

    *s = memcpy(__wrap_malloc((size_t)n + 1), text, XM_MIN((size_t)n + 1, sizeof text));
    return n;
}
