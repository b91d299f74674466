/* SPDX-License-Identifier: MIT */
/* base/bufpool.h: page-aligned buffers, in classes of powers of two from 4 KiB to 2 MiB, kept warm, with a
 * bound on their sum. Any thread. A buffer belongs to whoever got it until it is put back; its ownership may
 * move with a message meanwhile. */
#ifndef XM_BASE_BUFPOOL_H
#define XM_BASE_BUFPOOL_H

#include <stddef.h>

#define XM_BUF_MAX (2u << 20)

struct xm_bufpool;
struct xm_bufpool *xm_bufpool_new(size_t max_bytes); /* NULL: no memory */
void xm_bufpool_free(struct xm_bufpool *);           /* all buffers are back */
/* len 1 to XM_BUF_MAX. NULL when the pool's bound would be passed or memory is short. Contents undefined. */
void *xm_bufpool_get(struct xm_bufpool *, size_t len);
void xm_bufpool_put(struct xm_bufpool *, void *buf, size_t len); /* the same len; NULL buf is allowed */
size_t xm_bufpool_used(struct xm_bufpool *);                     /* bytes handed out, in whole classes */
size_t xm_bufpool_limit(struct xm_bufpool *);

#endif
