/* memxfer/populate.h: gives the destination's RAM its pages ahead of the data. Private to memxfer. */
#ifndef XM_MEMXFER_POPULATE_H
#define XM_MEMXFER_POPULATE_H

#include "memxfer/memxfer.h"

struct populate;
struct populate *populate_new(struct xm_ram *); /* NULL: no memory */
void populate_start(struct populate *);         /* the thread; once */
/* The range was said to be zeros: it needs no pages. Any thread. */
void populate_skip(struct populate *, unsigned block, uint64_t offset, uint64_t len);
void populate_free(struct populate *); /* stops the thread, at most one step later */

#endif
