/* SPDX-License-Identifier: MIT */
/* memxfer/pages.h: the payload of a RAM_PAGES frame. Private to memxfer; see also man/xmigrate-protocol.7.
 *
 * The header's fields. object: the RAM block's number; offset: of the first page concerned; extent: the
 * bytes from there to the end of the last one; seq: counted from 1 per block; after: the number of the
 * round, from 1. Offset and extent are multiples of 4096; a frame covers at most 16 TiB.
 *
 * Payload, all integers little endian:
 *
 * -  0: u32 runs: number of runs, 1 to 511
 *
 * -  4: u32 pages: number of pages of data that follow the table, 0 to 255
 *
 * -  8: for each run, u32 first: page number, counted from `offset`; u32 count: bits 0 to 30: number of
 *    pages, at least 1; bit 31: they read as zeros and have no data here
 *
 * -  with XM_FLAG_HEAD: for each page of data, u64: its XXH3-64
 *
 * -  zeros up to the next multiple of 64 bytes, and at most 4096 bytes up to here
 *
 * -  pages * 4096 bytes: the data of the runs without bit 31, in the runs' order
 *
 * With XM_FLAG_HEAD the frame's own hash is that of the table alone, and the data may differ from what the
 * table says of it, because the guest wrote to a page after it was hashed. Such a frame is applied and
 * counted like any other, and answered with a REPLY, status 0: a bitmap of (pages + 7) / 8 bytes, bit 0 of
 * byte 0 for the first page of data, of those pages that do not have their hash. At least one bit is set; a
 * frame without such pages is answered with an ACK.
 *
 * The runs ascend and do not overlap; the first begins at page 0 and the last ends at `extent`. Pages between
 * runs are not concerned. The length is exactly what the table says. In round 1 the runs of all frames of a
 * block together cover all of it: what the source never touched is a zero run, since the destination's
 * firmware may have written there.
 */
#ifndef XM_MEMXFER_PAGES_H
#define XM_MEMXFER_PAGES_H

#include "memxfer/memxfer.h"

#define PAGES_RUNS_MAX  511u
#define PAGES_TABLE_MAX 4096u
#define PAGES_DATA_MAX  255u /* what a receiver takes: 1 MiB with the table */
#define PAGES_BATCH     64u  /* what our sender fills: 256 KiB stay in a core's cache */
#define PAGES_BUFFER    (PAGES_TABLE_MAX + PAGES_BATCH * XM_PAGE)
#define PAGES_COUNT_MAX 0x7fffffffu
#define PAGES_ZERO      0x80000000u
/* A frame whose seq is this much or more ahead of the first that has not come yet is refused by the receiver.
 */
#define PAGES_SEQ_WINDOW 4096u

bool pages_all_zero(const uint8_t *page);

/* ---- writing one frame ---- */

struct pages_frame {
    uint8_t *buf; /* PAGES_BUFFER bytes, page-aligned: data from PAGES_TABLE_MAX on, the table right before it
                     at the end */
    uint64_t base; /* first page; valid with runs > 0 */
    unsigned runs, data;
    bool direct; /* the data stay where they lie: `piece` */
    unsigned pieces;
    struct iovec piece[PAGES_BATCH];
    uint64_t data_pages, zero_pages;
    struct {
        uint32_t first, count;
    } run[PAGES_RUNS_MAX];
};

void pages_begin(struct pages_frame *, uint8_t *buf);
/* The same for a frame whose data are not copied: pages_point() instead of pages_put(). */
void pages_begin_direct(struct pages_frame *, uint8_t *buf);
/* Where the next pages of data go, and how many may (0: the frame is full). */
uint8_t *pages_tail(struct pages_frame *);
unsigned pages_room(const struct pages_frame *, uint64_t page);
/* Takes the n pages that were put at the tail as the block's pages from `page` on. Those that are all zeros
 * become zero runs. n <= pages_room(); pages come in ascending order. */
void pages_put(struct pages_frame *, uint64_t page, unsigned n);
/* Direct frames: takes n pages from `page` on, which lie at `from` and may change there. Those that are not
 * there (NULL: all are) are zeros, and are not looked at. n <= pages_room(). -EIO: one of them cannot be read
 * (lost by the hardware); the frame is of no use then. */
int pages_point(struct pages_frame *, uint64_t page, unsigned n, uint8_t *from, const uint8_t *there);
/* The block's page that is the frame's i-th page of data. */
uint64_t pages_nth(const struct pages_frame *, unsigned i);
/* Adds a zero run. Returns how many pages it took: fewer than asked when the frame is full. */
uint64_t pages_zero(struct pages_frame *, uint64_t page, uint64_t n);
/* Writes the table and sets payload, length, offset and extent of the message. At least one run. */
void pages_end(struct pages_frame *, struct xm_msg *);

/* ---- reading one ---- */

struct pages_run {
    uint64_t page, count; /* in the block */
    bool zero;
    const uint8_t *data; /* where it would be right behind the table */
};
/* How many bytes of the payload come before the data, by the header alone; a table of another length is
 * refused by pages_check. */
uint32_t pages_head(const struct xm_frame_hdr *);
/* The whole judgement of a header (without knowing the block's size beyond `block_bytes`), and of a payload
 * against its header: it looks at the head alone. Nothing of a payload may be used before. */
int pages_check_header(const struct xm_frame_hdr *, uint64_t block_bytes, struct xm_error *);
int pages_check(const struct xm_frame_hdr *, const uint8_t *payload, struct xm_error *);
/* After pages_check: how many runs, and the i-th; `data` walks on from run to run (begin with pages_data, i
 * ascending). */
unsigned pages_runs(const uint8_t *payload);
const uint8_t *pages_data(const struct xm_frame_hdr *, const uint8_t *payload);
/* With XM_FLAG_HEAD: whether this is the frame's i-th page of data as the table says. */
bool pages_is(const uint8_t *payload, unsigned i, const uint8_t *page);
struct pages_run pages_run_at(const struct xm_frame_hdr *, const uint8_t *payload, unsigned i,
                              const uint8_t **data);

#endif
