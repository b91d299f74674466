/* SPDX-License-Identifier: MIT */
/* memxfer/torn.h: at the destination, pages that came otherwise than their source had hashed them (pages.h,
 * XM_FLAG_HEAD), until they come again. Private to memxfer. */
#ifndef XM_MEMXFER_TORN_H
#define XM_MEMXFER_TORN_H

#include "memxfer/pages.h"

/* Of one frame's pages of data: bit 0 of byte 0 for the first. The answer to the frame. */
struct torn {
    unsigned pages; /* how many bits are set */
    uint8_t bits[(PAGES_DATA_MAX + 7) / 8];
};

/* Of all RAM blocks. Its owner has a lock for it. */
struct torn_map {
    unsigned blocks;
    uint64_t pages;
    struct xm_bitmap torn[16];
};

/* Which of the frame's pages do not have the hash that its table says. They lie in `copy`, or (NULL) where
 * they belong. The frame has passed pages_check. */
void torn_compare(const struct xm_ram_block *, const struct xm_rx *, const uint8_t *copy, struct torn *);
int torn_map_init(struct torn_map *, const struct xm_ram *); /* 0 or -ENOMEM */
void torn_map_free(struct torn_map *);
/* The frame is applied: these of its pages are torn, and all others of it are not, whatever they were. */
void torn_map_note(struct torn_map *, const struct xm_rx *, const struct torn *);

#endif
