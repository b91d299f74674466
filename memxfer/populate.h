/* SPDX-License-Identifier: MIT */
/* memxfer/populate.h: gives the destination's RAM its pages, and our mapping of it its page tables, ahead
 * of the data. Private to memxfer. */
#ifndef XM_MEMXFER_POPULATE_H
#define XM_MEMXFER_POPULATE_H

#include "memxfer/memxfer.h"

struct populate;
#define POPULATE_AHEAD (16ull << 30)
/* ahead: bytes that are mapped at once at most, before what was passed last; a multiple of 2 MiB. NULL: no
 * memory. */
struct populate *populate_new(struct xm_ram *, uint64_t ahead);
void populate_start(struct populate *); /* the thread; once */
/* The range was said to be zeros: it needs no pages. Any thread. */
void populate_skip(struct populate *, unsigned block, uint64_t offset, uint64_t len);
/* Data comes for this place: what lies before it has come, in the first round. Any thread. */
void populate_passed(struct populate *, unsigned block, uint64_t offset);
void populate_free(struct populate *); /* stops the thread, at most one step later */

#endif
