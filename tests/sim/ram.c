/* SPDX-License-Identifier: MIT */
/* RAM: rounds take time, over links that live. */
#include "tests/sim/links.h"
#include "migrate/source.h"
#include "shim/shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RAM (128ull << 20)

int __wrap_xm_ram_find(struct xm_ram *ram, pid_t pid, struct xm_error *e)
{
    if (!proc_of(pid))
        return xm_error_set(e, ESRCH, "QEMU has ended");
    ram->pid = pid;
    ram->blocks = 1;
    snprintf(ram->block[0].name, sizeof ram->block[0].name, "mem0");
    ram->block[0].size = RAM;
    return 0;
}

int __wrap_xm_ram_follow(struct xm_ram *ram, pid_t pid, struct xm_error *e)
{
    return __wrap_xm_ram_find(ram, pid, e);
}

void __wrap_xm_ram_close(struct xm_ram *ram)
{
    ram->blocks = 0;
}

struct xm_ramsink *__wrap_xm_ramsink_new(struct xm_ram *ram, struct xm_error *e)
{
    (void)ram, (void)e;
    return sim_alloc(16);
}

void __wrap_xm_ramsink_reopen(struct xm_ramsink *s)
{
    (void)s;
}

uint64_t __wrap_xm_ramsink_round(struct xm_ramsink *s)
{
    (void)s;
    return 1;
}

bool __wrap_xm_ram_warm(const struct xm_ram *ram, struct xm_warm *warm, uint64_t bytes)
{
    (void)ram, (void)warm, (void)bytes;
    return false;
}

struct xm_placer __wrap_xm_ramsink_placer(struct xm_ramsink *s)
{
    (void)s;
    return (struct xm_placer){0};
}

void __wrap_xm_ramsink_populate(struct xm_ramsink *s)
{
    (void)s;
}

void __wrap_xm_ramsink_free(struct xm_ramsink *s)
{
    (void)s;
}

struct xm_precopy {
    struct xm_links *l;
    unsigned rounds;
    bool complete; /* the round that was made of a guest that stands still has ended */
};

bool pages_complete(struct proc *shim)
{
    struct source *m = shim->shim ? shim->shim->source : NULL;

    return m && m->precopy && m->precopy->complete;
}

struct xm_precopy *__wrap_xm_precopy_new(struct xm_ram *ram, struct xm_transport *t, struct xm_error *e)
{
    struct xm_precopy *p = calloc(1, sizeof *p);

    (void)ram, (void)e;
    p->l = t->ctx;
    return p;
}

int __wrap_xm_precopy_round(struct xm_precopy *p, bool final, bool (*over)(void *), void *ctx,
                            struct xm_round *out, struct xm_error *e)
{
    uint64_t ns = final ? between(100, 2000) * XM_NS_PER_US : between(5, 100) * MS;
    uint64_t until = sim_time() + ns;

    sim_point("round");
    while (sim_time() < until || !links_live(p->l)) {
        if (over(ctx))
            return xm_error_set(e, ECANCELED, "given up");
        if (p->l->error.code)
            return xm_error_set(e, ENOLINK, "%s", p->l->error.text);
        task_sleep(XM_MAX(XM_MIN(10 * MS, ns), MS));
    }
    p->complete = final;
    *out = (struct xm_round){.number = ++p->rounds,
                             .pages_dirty = 100,
                             .pages_data = 100,
                             .wire_bytes = 400000,
                             .ns = ns,
                             .rate = 1e9};
    return 0;
}

int __wrap_xm_precopy_again(struct xm_precopy *p, bool (*over)(void *), void *ctx, struct xm_error *e)
{
    (void)over, (void)ctx;
    p->complete = false;
    return p->l->error.code ? xm_error_set(e, ENOLINK, "%s", p->l->error.text) : 0;
}

void __wrap_xm_precopy_deadline(struct xm_precopy *p, uint64_t deadline)
{
    (void)p, (void)deadline; /* lost links end a round sooner */
}

int __wrap_xm_precopy_peek(struct xm_precopy *p, uint64_t *pages, struct xm_error *e)
{
    (void)p, (void)e;
    *pages = 10;
    return 0;
}

void __wrap_xm_precopy_digest(const struct xm_precopy *p, struct xm_digest *d)
{
    (void)p;
    memset(d, 0, sizeof *d);
}

void __wrap_xm_precopy_progress(const struct xm_precopy *p, uint64_t *done, uint64_t *of)
{
    (void)p;
    *done = *of = 0;
}

void __wrap_xm_precopy_free(struct xm_precopy *p)
{
    free(p);
}
