/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <string.h>

void xm_meter_init(struct xm_meter *m, uint64_t window_ns, uint64_t now)
{
    memset(m, 0, sizeof *m);
    m->window = window_ns;
    m->first = m->slot_start = now;
}

static void meter_advance(struct xm_meter *m, uint64_t now)
{
    uint64_t width = m->window / 10;
    for (unsigned moved = 0; now - m->slot_start >= width; moved++) {
        if (moved > 10) {
            m->slot_start = now;
            break;
        }
        m->slot_start += width;
        m->at = (m->at + 1) % 10;
        m->slot[m->at] = 0;
    }
}

void xm_meter_add(struct xm_meter *m, uint64_t bytes, uint64_t now)
{
    meter_advance(m, now);
    m->slot[m->at] += bytes;
    m->total += bytes;
}

double xm_meter_rate(struct xm_meter *m, uint64_t now)
{
    uint64_t sum = 0;
    uint64_t width = m->window / 10;

    meter_advance(m, now);
    for (int i = 0; i < 10; i++)
        sum += m->slot[i];
    uint64_t span = XM_MIN(now - m->first, 9 * width + (now - m->slot_start));
    return span ? (double)sum * 1e9 / (double)span : 0;
}

static double bucket_burst(const struct xm_bucket *b)
{
    return XM_MAX((double)b->rate / 100, 262144.0);
}

void xm_bucket_init(struct xm_bucket *b, uint64_t rate, uint64_t now)
{
    *b = (struct xm_bucket){.rate = rate, .last = now};
    b->tokens = bucket_burst(b);
}

void xm_bucket_set(struct xm_bucket *b, uint64_t rate, uint64_t now)
{
    xm_bucket_take(b, 0, now);
    b->rate = rate;
    b->tokens = XM_MIN(b->tokens, bucket_burst(b));
}

uint64_t xm_bucket_take(struct xm_bucket *b, uint64_t bytes, uint64_t now)
{
    if (!b->rate) {
        b->last = now;
        b->tokens = 0;
        return 0;
    }
    b->tokens = XM_MIN(bucket_burst(b), b->tokens + (double)(now - b->last) * (double)b->rate / 1e9);
    b->last = now;
    b->tokens -= (double)bytes;
    return b->tokens >= 0 ? 0 : (uint64_t)(-b->tokens * 1e9 / (double)b->rate) + 1;
}
