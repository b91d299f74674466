/* SPDX-License-Identifier: MIT */
/* How closely the replica is followed: async, sync, or not at all for a chunk that it cannot keep up with. */
#include "mirror/disk.h"

/* The buffer's marks, in per cent, and how long it must have stayed below the low one. */
#define HIGH_MARK 75u
#define LOW_MARK  25u
#define LOW_TIME  (500 * XM_NS_PER_MS)
/* The replica is behind when something has been pending for so many write caps. */
#define BEHIND_CAPS 4u

void mode_update(struct xm_disk *d, uint64_t now)
{
    uint64_t high = d->opts.mirror_buffer / 100 * HIGH_MARK, low = d->opts.mirror_buffer / 100 * LOW_MARK;
    struct mirrored *oldest = TAILQ_FIRST(&d->buffer.pending);
    uint64_t age = oldest && now > oldest->since ? now - oldest->since : 0;
    uint64_t behind = BEHIND_CAPS * d->opts.write_cap;

    if (d->mirror.mode == XM_MIRROR_ASYNC) {
        if (d->buffer.used <= high && age <= behind)
            return;
        d->mirror.mode = XM_MIRROR_SYNC;
        d->stats.to_sync++;
        d->buffer.low_since = 0;
    } else if (d->mirror.mode == XM_MIRROR_SYNC) {
        if (d->buffer.used >= low || age > behind / 2) {
            d->buffer.low_since = 0;
        } else if (d->buffer.low_since == 0) {
            d->buffer.low_since = now;
        } else if (now - d->buffer.low_since >= LOW_TIME) {
            d->mirror.mode = XM_MIRROR_ASYNC;
            d->stats.to_async++;
        }
    }
}

/* The replica will not have this chunk as it is here: it has to be copied (again). */
void give_up_chunk(struct xm_disk *d, uint64_t chunk)
{
    if (!is_mirroring(d))
        return;
    switch (chunkmap_state(&d->copy.map, chunk)) {
    case XM_CHUNK_PRESENT:
        chunkmap_set_state(&d->copy.map, chunk, XM_CHUNK_ABSENT);
        d->stats.given_up++;
        disk_progress(d);
        break;
    case XM_CHUNK_COPYING:
        chunkmap_set_stale(&d->copy.map, chunk);
        break;
    case XM_CHUNK_ABSENT:
        break;
    }
}

void give_up_range(struct xm_disk *d, uint64_t offset, uint64_t length)
{
    for (uint64_t c = offset >> d->chunk_shift; c <= (offset + length - 1) >> d->chunk_shift; c++)
        give_up_chunk(d, c);
}

void xm_disk_replica_lost(struct xm_disk *d, bool lost)
{
    struct mirrored *m;

    if (!is_mirroring(d) && d->mirror.mode != XM_MIRROR_STARTING)
        return;
    if (d->mirror.lost == lost)
        return;
    d->mirror.lost = lost;
    if (!lost) {
        copier_resume(d, PAUSE_LOST);
        return;
    }
    copier_pause(d, PAUSE_LOST);
    TAILQ_FOREACH (m, &d->buffer.pending, link)
        if (m->pending > 0)
            give_up_range(d, m->offset, m->length);
    request_release_all(d);
    disk_progress(d);
}
