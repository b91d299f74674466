/* SPDX-License-Identifier: MIT */
#include "mirror/chunkmap.h"

#include <assert.h>
#include <stdlib.h>

#define GROUP      1024u
#define STATE_MASK 3u

int chunkmap_init(struct chunkmap *m, uint64_t chunks)
{
    uint64_t groups = (chunks + GROUP - 1) / GROUP;

    *m = (struct chunkmap){.chunks = chunks, .count = {[XM_CHUNK_ABSENT] = chunks}};
    m->byte = calloc(chunks, 1);
    m->absent_in_group = calloc(groups, sizeof *m->absent_in_group);
    if (!m->byte || !m->absent_in_group) {
        chunkmap_destroy(m);
        return -ENOMEM;
    }
    for (uint64_t g = 0; g < groups; g++)
        m->absent_in_group[g] = (uint32_t)XM_MIN(GROUP, chunks - g * GROUP);
    return 0;
}

void chunkmap_destroy(struct chunkmap *m)
{
    free(m->byte);
    free(m->absent_in_group);
    *m = (struct chunkmap){0};
}

enum xm_chunk_state chunkmap_state(const struct chunkmap *m, uint64_t chunk)
{
    return m->byte[chunk] & STATE_MASK;
}

static bool is_legal(enum xm_chunk_state from, enum xm_chunk_state to)
{
    switch (from) {
    case XM_CHUNK_ABSENT:
        return to == XM_CHUNK_COPYING;
    case XM_CHUNK_COPYING:
        return to != XM_CHUNK_COPYING;
    case XM_CHUNK_PRESENT:
        return to != XM_CHUNK_PRESENT;
    }
    return false;
}

void chunkmap_set_state(struct chunkmap *m, uint64_t chunk, enum xm_chunk_state to)
{
    enum xm_chunk_state from = chunkmap_state(m, chunk);

    /* Invariant: a chunk is never present without having been copied; what went stale meanwhile is not
     * present. */
    assert(is_legal(from, to));
    assert(to != XM_CHUNK_PRESENT || !chunkmap_is_stale(m, chunk));
    m->byte[chunk] = (uint8_t)(to | CHUNK_SENT);
    m->count[from]--;
    m->count[to]++;
    if (from == XM_CHUNK_ABSENT)
        m->absent_in_group[chunk / GROUP]--;
    if (to == XM_CHUNK_ABSENT)
        m->absent_in_group[chunk / GROUP]++;
}

bool chunkmap_is_stale(const struct chunkmap *m, uint64_t chunk)
{
    return m->byte[chunk] & CHUNK_STALE;
}

void chunkmap_set_stale(struct chunkmap *m, uint64_t chunk)
{
    assert(chunkmap_state(m, chunk) == XM_CHUNK_COPYING);
    m->byte[chunk] |= CHUNK_STALE;
}

void chunkmap_set_read(struct chunkmap *m, uint64_t chunk)
{
    assert(chunkmap_state(m, chunk) == XM_CHUNK_COPYING);
    m->byte[chunk] |= CHUNK_READ;
}

bool chunkmap_is_followed(const struct chunkmap *m, uint64_t chunk)
{
    switch (chunkmap_state(m, chunk)) {
    case XM_CHUNK_PRESENT:
        return true;
    case XM_CHUNK_COPYING:
        return (m->byte[chunk] & (CHUNK_READ | CHUNK_STALE)) == CHUNK_READ;
    case XM_CHUNK_ABSENT:
        break;
    }
    return false;
}

int64_t chunkmap_claim_next(struct chunkmap *m, bool *fresh)
{
    if (m->count[XM_CHUNK_ABSENT] == 0)
        return -1;
    for (uint64_t at = m->cursor;;) {
        if (at >= m->chunks)
            at = 0;
        if (m->absent_in_group[at / GROUP] == 0) {
            at = (at / GROUP + 1) * GROUP;
            continue;
        }
        if (chunkmap_state(m, at) == XM_CHUNK_ABSENT) {
            *fresh = !(m->byte[at] & CHUNK_SENT);
            chunkmap_set_state(m, at, XM_CHUNK_COPYING);
            m->cursor = at + 1;
            return (int64_t)at;
        }
        at++;
    }
}
