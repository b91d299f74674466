/* SPDX-License-Identifier: MIT */
/* memxfer/torn.c: see torn.h. */
#include "memxfer/torn.h"

#include <string.h>

void torn_compare(const struct xm_ram_block *b, const struct xm_rx *rx, const uint8_t *copy, struct torn *t)
{
    const uint8_t *data = copy ? copy : pages_data(&rx->hdr, rx->payload);
    unsigned nth = 0;

    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        const uint8_t *page = copy ? run.data : b->map + (run.page << XM_PAGE_SHIFT);
        for (uint64_t k = 0; !run.zero && k < run.count; k++, nth++, page += XM_PAGE) {
            if (pages_is(rx->payload, nth, page))
                continue;
            t->bits[nth / 8] |= (uint8_t)(1u << nth % 8);
            t->pages++;
        }
    }
}

int torn_map_init(struct torn_map *m, const struct xm_ram *ram)
{
    memset(m, 0, sizeof *m);
    for (; m->blocks < ram->blocks; m->blocks++) {
        if (xm_bitmap_init(&m->torn[m->blocks], ram->block[m->blocks].size >> XM_PAGE_SHIFT) < 0) {
            torn_map_free(m);
            return -ENOMEM;
        }
    }
    return 0;
}

void torn_map_free(struct torn_map *m)
{
    for (unsigned i = 0; i < m->blocks; i++)
        xm_bitmap_destroy(&m->torn[i]);
    m->blocks = 0;
}

static void make_whole(struct torn_map *m, unsigned block, const struct pages_run *run)
{
    struct xm_bitmap *torn = &m->torn[block];

    for (uint64_t page = run->page; m->pages; m->pages--) {
        page = xm_bitmap_next(torn, page);
        if (page >= run->page + run->count)
            return;
        xm_bitmap_clear(torn, page, 1);
    }
}

void torn_map_note(struct torn_map *m, const struct xm_rx *rx, const struct torn *t)
{
    const uint8_t *data = pages_data(&rx->hdr, rx->payload);
    unsigned nth = 0;

    if (!m->pages && !t->pages) /* nearly always */
        return;
    for (unsigned i = 0; i < pages_runs(rx->payload); i++) {
        struct pages_run run = pages_run_at(&rx->hdr, rx->payload, i, &data);
        make_whole(m, rx->hdr.object, &run);
        for (uint64_t k = 0; !run.zero && k < run.count; k++, nth++) {
            if (t->bits[nth / 8] >> nth % 8 & 1) {
                xm_bitmap_set(&m->torn[rx->hdr.object], run.page + k, 1);
                m->pages++;
            }
        }
    }
}
