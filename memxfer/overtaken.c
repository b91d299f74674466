/* SPDX-License-Identifier: MIT */
/* memxfer/overtaken.c: see overtaken.h. */
#include "memxfer/overtaken.h"
#include "memxfer/pages.h"
#include "memxfer/ram.h"

#include <string.h>

int overtaken_init(struct overtaken *o, const struct xm_ram *ram, struct xm_error *e)
{
    memset(o, 0, sizeof *o);
    for (; o->blocks < ram->blocks; o->blocks++) {
        const struct xm_ram_block *b = &ram->block[o->blocks];
        int r = xm_bitmap_init(&o->again[o->blocks], b->size >> XM_PAGE_SHIFT);
        if (!r && (r = xm_bitmap_init(&o->doubt[o->blocks], b->size >> XM_PAGE_SHIFT)) < 0)
            xm_bitmap_destroy(&o->again[o->blocks]);
        if (r < 0) {
            overtaken_free(o);
            return xm_error_set(e, ENOMEM, "no memory for the bitmap of RAM block %s", b->name);
        }
    }
    return 0;
}

void overtaken_free(struct overtaken *o)
{
    for (unsigned i = 0; i < o->blocks; i++) {
        xm_bitmap_destroy(&o->again[i]);
        xm_bitmap_destroy(&o->doubt[i]);
    }
    o->blocks = 0;
}

void overtaken_note(struct overtaken *o, unsigned block, uint64_t page)
{
    xm_bitmap_set(&o->again[block], page, 1);
    xm_bitmap_set(&o->doubt[block], page, 1);
    o->any_again = o->any_doubt = true;
}

void overtaken_collect(struct overtaken *o, struct xm_bitmap *dirty)
{
    bool left = false;

    if (!o->any_again && !o->any_doubt)
        return;
    for (unsigned i = 0; i < o->blocks; i++) {
        for (uint64_t w = 0; w < (dirty[i].bits + 63) / 64; w++) {
            /* Untouched parts of the bitmaps stay so. */
            if (o->doubt[i].word[w])
                left = (o->doubt[i].word[w] &= ~dirty[i].word[w]) || left;
            if (o->again[i].word[w])
                dirty[i].word[w] |= xm_bitmap_take_word(&o->again[i], w);
        }
    }
    o->any_again = false;
    o->any_doubt = left;
}

int overtaken_judge(struct overtaken *o, const struct xm_ram *ram, struct xm_error *e)
{
    for (unsigned i = 0; o->any_doubt && i < o->blocks; i++) {
        const struct xm_ram_block *b = &ram->block[i];
        for (uint64_t page = 0; (page = xm_bitmap_next(&o->doubt[i], page)) < o->doubt[i].bits; page++) {
            uint8_t there;
            ram_find_holes(b, page, 1, &there);
            /* A balloon has taken it: a page without data that was sent as data. */
            if (there && !pages_all_zero(b->map + (page << XM_PAGE_SHIFT)))
                return xm_error_set(e, EBADMSG,
                                    "page %llu of RAM block %s reached the other side otherwise than it was "
                                    "sent, and nobody has written to it: damaged on the way",
                                    (unsigned long long)page, b->name);
        }
    }
    return 0;
}
