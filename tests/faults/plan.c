/* SPDX-License-Identifier: MIT */
/* A case: which faults, on whom, when. A random one is made of its seed alone. */
#include "tests/faults/faults.h"

#include <stdio.h>
#include <string.h>

/* A move takes about this long on a quiet machine; some faults come before its first step, some behind its
 * end. */
#define MOVE_MS 700

static uint64_t next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u); /* splitmix64 */

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static unsigned below(uint64_t *state, unsigned n)
{
    return (unsigned)(next(state) % n);
}

/* Long ones are rare: they are what a case lasts. */
static unsigned stop_ms(uint64_t *state)
{
    static const unsigned s[] = {1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 8, 11, 12, 15, 20, 30, 40};
    unsigned n = below(state, 100);

    return 1000 * s[n < 80 ? n % 10 : n < 95 ? 10 + n % 4 : 14 + n % 6];
}

static void one_fault(struct fault *f, uint64_t *state)
{
    /* Of a hundred. */
    static const struct {
        enum kind kind;
        unsigned share;
    } shares[] = {{KILL, 32},   {TERM, 8}, {STOP, 15},  {DOWN, 6},  {ONE, 4},    {DROP, 6}, {SLOW, 3},
                  {CONTROL, 4}, {FULL, 5}, {SEALED, 4}, {ABORT, 4}, {SECOND, 2}, {CUT, 7}};
    unsigned n = below(state, 100), i = 0;

    while (n >= shares[i].share)
        n -= shares[i++].share;
    *f = (struct fault){.kind = shares[i].kind};
    f->side = (enum side)below(state, 2);
    f->at_ms = below(state, MOVE_MS);
    f->hold_ms = 200 + below(state, 1800);
    switch (f->kind) {
    case KILL:
    case TERM:
        f->who = (enum who)below(state, 4);
        f->hold_ms = 20 + below(state, 1000);
        break;
    case STOP:
        f->who = (enum who)below(state, 4);
        f->hold_ms = stop_ms(state);
        break;
    case DOWN:
    case DROP:
    case CONTROL:
    case ONE:
        f->hold_ms = below(state, 4) ? 200 + below(state, 1800) : 2000 + below(state, 10000);
        break;
    case FULL:
    case SEALED:
        f->where = (enum where)below(state, 3);
        f->at_ms = below(state, 2) ? 0 : f->at_ms;
        break;
    default:
        break;
    }
}

void plan_random(struct plan *p, uint64_t seed)
{
    uint64_t state = seed * 0x2545f4914f6cdd1du;

    memset(p, 0, sizeof *p);
    p->seed = seed;
    p->storage_only = below(&state, 10) == 0;
    p->faults = below(&state, 4) ? 1 : 2;
    for (unsigned i = 0; i < p->faults; i++)
        one_fault(&p->fault[i], &state);
    snprintf(p->name, sizeof p->name, "seed %llu", (unsigned long long)seed);
}

void plan_point(struct plan *p, unsigned number)
{
    const struct point *at = &points[number];

    memset(p, 0, sizeof *p);
    p->storage_only = at->storage_only;
    p->home = at->home;
    p->faults = 1;
    p->fault[0] = (struct fault){.kind = POINT,
                                 .side = at->side,
                                 .hold_ms = at->hold_ms,
                                 .point = at->name,
                                 .action = at->action,
                                 .passage = at->passage};
    if (at->late) /* a first switch-over has twice the lab's budget of 1 s */
        p->fault[p->faults++] = (struct fault){.kind = POINT,
                                               .side = at->side == SOURCE ? DESTINATION : SOURCE,
                                               .point = at->side == SOURCE ? "loaded" : "switch-compared",
                                               .action = "delay=2500",
                                               .hold_ms = 3000,
                                               .passage = 1};
    snprintf(p->name, sizeof p->name, "%s:%u:%s%s%s", at->name, at->passage, at->action,
             at->side == SOURCE ? " at the source" : " at the destination",
             at->late ? ", a second switch-over" : "");
}

static const char *who_text(const struct fault *f)
{
    static const char *const names[2][4] = {
        {"the source's agent", "the source's shim", "the source's QEMU", "the command line"},
        {"the destination's agent", "the destination's shim", "the destination's QEMU", "the command line"}};

    return names[f->side][f->who];
}

static int tell_one(const struct fault *f, char *text, size_t size)
{
    static const char *const places[] = {"state directory", "run directory", "datastores"};
    const char *side = f->side == SOURCE ? "source" : "destination";

    switch (f->kind) {
    case KILL:
    case TERM:
        return snprintf(text, size, "at %u ms %s of %s%s", f->at_ms, f->kind == KILL ? "kill -9" : "SIGTERM",
                        who_text(f), f->who == AGENT ? ", which is started again" : "");
    case STOP:
        return snprintf(text, size, "at %u ms SIGSTOP of %s for %u ms", f->at_ms, who_text(f), f->hold_ms);
    case DOWN:
        return snprintf(text, size, "at %u ms both links down for %u ms", f->at_ms, f->hold_ms);
    case ONE:
        return snprintf(text, size, "at %u ms one link down for %u ms", f->at_ms, f->hold_ms);
    case DROP:
        return snprintf(text, size, "at %u ms both links drop all for %u ms", f->at_ms, f->hold_ms);
    case SLOW:
        return snprintf(text, size, "at %u ms both links slow for %u ms", f->at_ms, f->hold_ms);
    case CONTROL:
        return snprintf(text, size, "at %u ms control network down for %u ms", f->at_ms, f->hold_ms);
    case FULL:
    case SEALED:
        return snprintf(text, size, "at %u ms the %s's %s %s for %u ms", f->at_ms, side, places[f->where],
                        f->kind == FULL ? "full" : "read-only", f->hold_ms);
    case ABORT:
        return snprintf(text, size, "at %u ms abort", f->at_ms);
    case SECOND:
        return snprintf(text, size, "at %u ms a second move", f->at_ms);
    case CUT:
        return snprintf(text, size, "at %u ms power cut at the %s for %u ms", f->at_ms, side, f->hold_ms);
    default:
        return snprintf(text, size, "%s at %s (passage %u, %s)", f->action, f->point, f->passage, side);
    }
}

void plan_tell(const struct plan *p, char *text, size_t size)
{
    size_t n = (size_t)snprintf(text, size, "%s: ", p->storage_only ? "disks alone" : "move");

    for (unsigned i = 0; i < p->faults && n + 4 < size; i++) {
        if (i)
            n += (size_t)snprintf(text + n, size - n, "; ");
        n += (size_t)tell_one(&p->fault[i], text + n, size - n);
    }
}
