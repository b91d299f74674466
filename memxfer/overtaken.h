/* SPDX-License-Identifier: MIT */
/* memxfer/overtaken.h: pages that the guest changed between their hash and their sending. Private to memxfer.
 *
 * A page that is sent from where it lies may reach the other side otherwise than it was hashed. The other
 * side tells which (pages.h). Two things follow, and neither trusts the other:
 *
 * - Such a page is sent again in the next round, whatever the tracker says. So each page's last frame was one
 *   in which it had its hash.
 * - It has to be explained: somebody has written to it. A vCPU's write is seen by the very next collect.
 *   What our own driver writes (disk reads into guest memory) is marked when the request has ended, which
 *   may be many rounds later; a page that a balloon takes away reads as zeros afterwards. When the VM is
 *   stopped and the driver has drained, all of them are seen. A page that is not explained by then was
 *   damaged on the way, and the migration ends.
 *
 * In the last round nobody writes: a page without its hash is damage there, at once.
 */
#ifndef XM_MEMXFER_OVERTAKEN_H
#define XM_MEMXFER_OVERTAKEN_H

#include "memxfer/memxfer.h"

/* One owner thread. */
struct overtaken {
    unsigned blocks;
    struct xm_bitmap again[16]; /* to be sent in the next round */
    struct xm_bitmap doubt[16]; /* not explained yet */
    bool any_again, any_doubt;  /* false: none */
};

int overtaken_init(struct overtaken *, const struct xm_ram *, struct xm_error *);
void overtaken_free(struct overtaken *);
/* This page came otherwise than it was hashed. */
void overtaken_note(struct overtaken *, unsigned block, uint64_t page);
/* dirty[block]: all that was written since the last time, by anybody who is seen. Explains by it, and adds
 * what is to be sent again. */
void overtaken_collect(struct overtaken *, struct xm_bitmap *dirty);
/* After the collect that had the VM stopped and the driver drained. -EBADMSG: a page was damaged. */
int overtaken_judge(struct overtaken *, const struct xm_ram *, struct xm_error *);

#endif
