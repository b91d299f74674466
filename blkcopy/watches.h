/* SPDX-License-Identifier: MIT */
/* blkcopy/watches.h: the table of an engine's watches. The kernel is given a key (slot and generation), never
 * a pointer, so that an event that comes late finds nothing where its watch is gone or has been replaced. */
#ifndef BLKCOPY_WATCHES_H
#define BLKCOPY_WATCHES_H

#include "blkcopy/blkcopy.h"

struct watch_slot {
    struct xm_watch *watch; /* NULL: free, once it is not armed any more */
    uint32_t generation;    /* of what is, or was last, armed */
    bool armed;             /* the kernel has it */
};
struct watches {
    struct watch_slot *slot;
    uint32_t count;
    uint32_t generation; /* the last one given */
};

/* Bits 0 to 2 of a key are the engine's, for telling keys from pointers. */
#define WATCH_KEY_SHIFT 3

int watches_add(struct watches *, struct xm_watch *); /* 0, -EBADF, -ENOMEM; a new generation, not armed */
void watches_remove(struct watches *, struct xm_watch *); /* active false, slot's watch NULL */
uint64_t watches_key(const struct watches *, uint32_t slot);
struct watch_slot *watches_find(struct watches *, uint64_t key); /* NULL: of a former generation */
void watches_fini(struct watches *);                             /* all watches are inactive afterwards */

#endif
