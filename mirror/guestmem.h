/* SPDX-License-Identifier: MIT */
/* mirror/guestmem.h: a guest's memory as a front end has shared it, and the account of what we write to it.
 *
 * Two address spaces lead into it: guest physical addresses (descriptors) and the front end's own virtual
 * ones (where the rings lie). Every translation is bounds-checked. A table is built whole by the control
 * thread, then used by the engine's thread alone; it is never changed, only replaced while no request is in
 * flight.
 *
 * Writing: first write, then guestmem_dirty(), which marks the pages in the tracker's bitmap of that memfd
 * and, while a vhost dirty log is on, in the log.
 */
#ifndef XM_MIRROR_GUESTMEM_H
#define XM_MIRROR_GUESTMEM_H

#include <sys/uio.h>

#include "mirror/mirror.h"
#include "mirror/vhost_msg.h"

/* The dirty log of vhost: bit = 4 KiB page of guest physical memory, bytes in order. */
struct dirtylog {
    void *map;
    size_t map_len;
    uint8_t *base;
    uint64_t size; /* bytes */
};
/* Maps a log; takes nothing of fd (which stays the caller's). 0 or -errno. */
int dirtylog_map(struct dirtylog *, int fd, uint64_t size, uint64_t offset, bool sealed, struct xm_error *);
void dirtylog_unmap(struct dirtylog *);
/* Marks the pages of [gpa, gpa+len); what lies past the log's end is left out. */
void dirtylog_mark(const struct dirtylog *, uint64_t gpa, uint64_t len);

struct guestmem_region {
    uint64_t gpa, size, uva;
    uint64_t fd_offset; /* where in the memfd gpa is */
    uint8_t *host;
    void *map;
    size_t map_len;
    struct xm_bitmap *bitmap; /* NULL: not tracked */
};
struct guestmem {
    unsigned count;
    struct guestmem_region region[VHOST_MSG_MAX_REGIONS];
    const struct dirtylog *log; /* NULL: logging is off. Engine's thread */
};

/* Maps the regions of a checked SET_MEM_TABLE. The message's descriptors stay its own. NULL with a sentence
 * when a region is not all in its file, overlaps another or cannot be mapped. */
struct guestmem *guestmem_new(const struct vu_msg *, const struct xm_guest_mem_ops *, struct xm_error *);
void guestmem_free(struct guestmem *);

/* All of [gpa, gpa+len) or [uva, uva+len) in one region, or NULL. */
void *guestmem_at(const struct guestmem *, uint64_t gpa, uint64_t len);
void *guestmem_at_user(const struct guestmem *, uint64_t uva, uint64_t len);
/* [gpa, gpa+len) as at most max pieces, one per region that it passes. Number of pieces, or -EFAULT (not all
 * of it is memory), -E2BIG. */
int guestmem_map(const struct guestmem *, uint64_t gpa, uint64_t len, struct iovec *, int max);
/* We have written [host, host+len), which lies in one region. */
void guestmem_dirty(const struct guestmem *, const void *host, uint64_t len);
/* The same for the tracker alone (the used ring has its own rule in the log). */
void guestmem_dirty_tracked(const struct guestmem *, const void *host, uint64_t len);

/* Maps [offset, offset+size) of a regular file for reading and writing, if it is that long. *map, *map_len:
 * for munmap. */
int map_shared(int fd, uint64_t offset, uint64_t size, void **map, size_t *map_len, uint8_t **at,
               const char *what, bool sealed, struct xm_error *);

#endif
