/* SPDX-License-Identifier: MIT */
#include "migrate/pace.h"

/* Less tells too little. */
#define PACE_ENOUGH XM_NS_PER_S

void pace_reset(struct pace *p)
{
    *p = (struct pace){0};
}

static double per_second(uint64_t from, uint64_t to, uint64_t ns)
{
    return ((double)to - (double)from) * 1e9 / (double)ns;
}

void pace_look(struct pace *p, const struct pace_sample *s)
{
    if (!p->started) {
        p->started = true;
        p->first = p->last = *s;
        return;
    }
    p->last = *s;
    uint64_t ns = s->at - p->first.at;
    if (ns < PACE_WINDOW)
        return;
    p->known = true;
    p->had = per_second(p->first.taken, s->taken, ns);
    p->needed = per_second(p->first.guest, s->guest, ns);
    p->gain = per_second(s->left, p->first.left, ns);
    /* Where nothing is taken, no guest is in the way: links or storage stand still. */
    if (p->needed > 0 && p->had > 0 && p->gain < p->had / 10)
        p->without_gain++;
    else
        p->without_gain = 0;
    p->first = *s;
}

bool pace_outrun(const struct pace *p)
{
    return p->without_gain > 0;
}

bool pace_stuck(const struct pace *p)
{
    return p->without_gain >= PACE_PATIENCE;
}

double pace_eta(const struct pace *p)
{
    uint64_t ns = p->last.at - p->first.at;
    double gain = p->gain;

    if (!p->known && ns < PACE_ENOUGH)
        return -1;
    if (!p->known)
        gain = per_second(p->last.left, p->first.left, ns);
    return gain > 0 ? (double)p->last.left / gain : -1;
}

double pace_rate(const struct pace *p)
{
    uint64_t ns = p->last.at - p->first.at;

    if (p->known)
        return p->had;
    return ns < PACE_ENOUGH ? 0 : per_second(p->first.taken, p->last.taken, ns);
}

uint64_t pace_disk_total(const struct pace_disk *d)
{
    return d->chunk ? XM_MIN(XM_MAX(d->allocated, d->chunk), d->size) : d->size;
}

/* What the guest has allocated since may make it more than this says, so the chunks have the last word. */
uint64_t pace_disk_left(const struct pace_disk *d)
{
    uint64_t total = pace_disk_total(d), copied = d->copied > d->again ? d->copied - d->again : 0;
    uint64_t left = total > copied ? total - copied : 0;

    if (!d->chunk)
        left = d->missing;
    left = XM_MAX(left, XM_MIN(d->chunk, total));
    return XM_MIN(left, d->missing);
}
