/* SPDX-License-Identifier: MIT */
/* How many chunks the copier may have claimed at once: as many as keep the way to the replica busy, and no
 * more.
 *
 * What the guest writes to a claimed chunk follows the chunk's copy; in sync mode, or with a full mirror
 * buffer, the guest waits for that, for the write cap at most; past it the copy is worth nothing and is made
 * again. On a way of 20 MB/s, 16 MiB of chunks are 0.8 s of queue: each chunk written to meanwhile was sent
 * in vain. So what is bounded is the time that a chunk waits for others: its latency, from claimed to copied,
 * less the shortest latency seen (`base`). A long round trip is in both, and does not count.
 *
 * Happy path: rounds of as many chunks as the depth, all claimed in the same round. When even the one that
 * waited for the shortest time has waited for less than the target, and the depth was used, the next round is
 * deeper: twice at first, then by one. A round in which all waited for longer ends the doubling; the depth is
 * cut to what would have kept half the target by the latency measured, and what was too deep is not tried
 * again for a while. The shortest of a round, not the mean: a host that was busy for a moment is no queue.
 *
 * What can happen instead:
 * - The way gets longer (another route; others share it): every chunk seems to wait. When none has been near
 * `base` for BASE_AGE, one chunk goes alone, and its latency is the new base.
 * - Chunks are sparse: with less data they are sooner there. The base is kept by quarters of a chunk; a chunk
 * with more data shows how long those with less take at most.
 */
#include "blkcopy/depth.h"

#include "base/base.h"

#define LATE     4u /* so many chunks in a row that waited too long are no accident */
#define START    2u
#define BASE_AGE (10 * XM_NS_PER_S)
/* On 20 MB/s the second chunk of 1 MiB makes 52 ms of queue: trying it once in 3 s cost one chunk in 20 that
 * the guest waits for twice as long for. */
#define RETRY (3 * XM_NS_PER_S)

static void round_begin(struct depth *d, uint64_t now)
{
    d->round.from = now;
    d->round.copied = d->round.used = 0;
    d->round.queued = UINT64_MAX;
}

void depth_init(struct depth *d, unsigned max, uint64_t target, uint64_t now)
{
    *d = (struct depth){.target = target, .max = XM_MAX(max, 1u), .confirmed = now, .doubling = true};
    d->now = XM_MIN(START, d->max);
    for (unsigned i = 0; i < DEPTH_CLASSES; i++)
        d->base[i] = UINT64_MAX;
    round_begin(d, now);
}

void depth_claimed(struct depth *d, unsigned claimed)
{
    d->round.used = XM_MAX(d->round.used, claimed);
}

static void depth_shrink(struct depth *d, uint64_t now)
{
    uint64_t base = d->round.latency - d->round.queued;
    unsigned used = XM_MAX(XM_MIN(d->round.used, d->now), 1u);
    unsigned fits =
        (unsigned)((double)used * ((double)base + (double)d->target / 2) / (double)d->round.latency);

    d->doubling = false;
    d->ceiling = XM_MAX(used - 1, 1u);
    d->retry_at = now + RETRY;
    d->now = XM_MAX(XM_MIN(fits, d->ceiling), 1u);
}

static void depth_grow(struct depth *d, uint64_t now)
{
    unsigned to = d->now + (d->doubling ? d->now : 1);

    if (now < d->retry_at)
        to = XM_MIN(to, d->ceiling);
    d->now = XM_MAX(XM_MIN(to, d->max), d->now);
}

static void depth_probe(struct depth *d, uint64_t now)
{
    d->probing = d->now;
    d->now = 1;
    round_begin(d, now);
}

/* The way is another one: what is known of its depth is not true any more. */
static void depth_forget(struct depth *d)
{
    d->doubling = true;
    d->retry_at = 0;
}

static void depth_probed(struct depth *d, uint64_t class, uint64_t latency, uint64_t now)
{
    if (d->base[class] == UINT64_MAX || latency > d->base[class] + d->target)
        depth_forget(d);
    for (uint64_t i = 0; i < DEPTH_CLASSES; i++)
        d->base[i] = i <= class ? latency : UINT64_MAX;
    d->now = d->probing;
    d->probing = 0;
    d->confirmed = now;
    round_begin(d, now);
}

static void round_add(struct depth *d, uint64_t queued, uint64_t latency, uint64_t now)
{
    if (queued < d->round.queued) {
        d->round.queued = queued;
        d->round.latency = latency;
    }
    unsigned whole = XM_MIN(d->now, XM_MAX(d->round.used, 1u));
    bool late = d->round.queued > d->target;
    /* A whole deep round takes long on a link that has become slow. */
    if (++d->round.copied < (late ? XM_MIN(whole, LATE) : whole))
        return;
    if (late)
        depth_shrink(d, now);
    else if (d->round.used >= d->now)
        depth_grow(d, now);
    round_begin(d, now);
}

void depth_copied(struct depth *d, uint64_t since, uint64_t now, uint64_t data, uint64_t chunk_size)
{
    uint64_t latency = now - since;
    uint64_t class = XM_MIN((data - 1) * DEPTH_CLASSES / chunk_size, DEPTH_CLASSES - 1);
    bool judged = since >= d->round.from; /* else it waited for what an earlier round had claimed */

    if (d->probing) {
        if (judged) /* it was alone */
            depth_probed(d, class, latency, now);
        return;
    }
    if (d->base[class] != UINT64_MAX && latency < d->base[class] / 2)
        depth_forget(d);
    for (uint64_t i = 0; i <= class; i++)
        d->base[i] = XM_MIN(d->base[i], latency);
    uint64_t queued = latency - d->base[class];
    if (queued <= d->target / 4)
        d->confirmed = now;
    if (now - d->confirmed > BASE_AGE)
        depth_probe(d, now);
    else if (judged)
        round_add(d, queued, latency, now);
}
