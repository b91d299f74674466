/* SPDX-License-Identifier: MIT */
/* migrate/space.h: what a migration that comes in may still write into its datastore, whatever its source has
 * said of its disks: `min_free` stays free there; and from what was promised to it on, it also leaves what is
 * promised to others.
 *
 * Bytes are counted as they come; the file system is asked when an eighth of the room at most has been used
 * up since it was asked last. So eight of them in one datastore that all ask at the same moment keep min_free
 * together. */
#ifndef XM_MIGRATE_SPACE_H
#define XM_MIGRATE_SPACE_H

#include "machine/machine.h"

#include <stdatomic.h>

struct space {
    struct machine *machine; /* constant, as the next four */
    const char *source;
    char datastore[64];
    uint64_t min_free, promised; /* bytes */
    _Atomic uint64_t others;     /* bytes promised to others there and not written yet; the agent says it */
    _Atomic uint64_t left;       /* bytes that may come before the file system is asked again */
    pthread_mutex_t lock;        /* who asks */
};

/* config: shim.json's `incoming`. The source's name is kept, not copied. */
void space_init(struct space *, struct machine *, const json_t *config, const char *source);
void space_destroy(struct space *);
/* Any thread, once the disks are open: so many bytes are to be written. -ENOSPC with a sentence: they must
 * not be. */
int space_take(struct space *, uint64_t bytes, struct xm_error *);

#endif
