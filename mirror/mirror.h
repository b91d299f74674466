/* SPDX-License-Identifier: MIT */
/* mirror/mirror.h: the block driver. A disk that guests read and write, that can have a second side, and its
 * front end, vhost-user-blk.
 *
 * docs/design.md, «The storage plane», has the chunk states, what a guest write does in each, the modes and
 * the ten things that must always hold.
 *
 * Threads: everything of a disk on its engine's thread. xm_disk_* below may be called from any thread only
 * where it says so (they go through the engine's mailbox and wait).
 */
#ifndef XM_MIRROR_H
#define XM_MIRROR_H

#include "blkcopy/blkcopy.h"

/* ---- the driver ---- */

/* A request of a front end. Owned by the driver from submit until done(). */
struct xm_breq {
    enum xm_io_op op;
    bool unmap;
    uint64_t offset, length;
    struct iovec *iov; /* guest memory; may change under us at any time (invariant 4) */
    int iovcnt;
    /* 0 or -errno of the local disk, never of the replica (invariant 6). May be called within
     * xm_disk_submit when the request is refused (it lies outside the disk) or empty. May submit; must not
     * call the functions below. */
    void (*done)(struct xm_breq *, int status);
};

enum xm_chunk_state { XM_CHUNK_ABSENT, XM_CHUNK_COPYING, XM_CHUNK_PRESENT };
enum xm_mirror_mode { XM_MIRROR_OFF, XM_MIRROR_STARTING, XM_MIRROR_ASYNC, XM_MIRROR_SYNC };

struct xm_disk_opts {
    uint32_t chunk_size;    /* power of two, 256 KiB to 4 MiB (tests: from 4 KiB); 0: 1 MiB */
    uint64_t write_cap;     /* ns a guest write may be held; 0: 50 ms */
    uint64_t mirror_buffer; /* bytes; 0: 64 MiB */
    uint64_t bulk_buffer;   /* bytes; 0: 16 MiB */
};

/* A snapshot; numbers only grow while a mirror is on, but for chunks[] and the buffer's. */
struct xm_disk_status {
    enum xm_mirror_mode mode;
    uint64_t size, chunks_total;
    uint64_t allocated;                       /* bytes of the file when the mirror was turned on */
    uint64_t chunks[3];                       /* by enum xm_chunk_state */
    struct xm_copier_stats copied;            /* acknowledged by the other side (invariant 9) */
    uint64_t mirrored_bytes, mirrored_writes; /* acknowledged */
    uint64_t buffer_bytes;
    uint64_t to_sync, to_async; /* mode switches */
    uint64_t held, held_ns_max; /* guest writes that waited for a chunk being read */
    uint64_t buffer_waits;      /* guest writes that waited for room in the mirror buffer */
    unsigned waiting;  /* guest writes that wait for room in the file system; also with the front end */
    uint64_t given_up; /* chunks that went back to absent */
    uint64_t verified; /* bytes that have been compared since that began */
    int failed;        /* -errno when copying was given up for good, and why; 0: it goes on, or is off */
    char why[300];
    /* of the guest, since the disk was opened */
    uint64_t reads, writes, flushes, read_bytes, write_bytes, errors;
    struct xm_digest digest; /* what the replica has acknowledged */
};

struct xm_disk;
struct xm_disk *xm_disk_new(struct xm_engine *, struct xm_file *, const struct xm_disk_opts *,
                            struct xm_error *);
void xm_disk_submit(struct xm_disk *, struct xm_breq *); /* engine's thread */
struct xm_file *xm_disk_file(struct xm_disk *);
struct xm_engine *xm_disk_engine(struct xm_disk *);
void xm_disk_free(struct xm_disk *); /* mirror off, nothing in flight */

/* Turns the mirror on: waits for the requests that began before (invariant 1), then starts the bulk copy
 * of all chunks. The replica is the caller's, and must live until xm_disk_mirror_off has called back.
 * Engine's thread. */
int xm_disk_mirror_on(struct xm_disk *, struct xm_replica *, bool target_zeroed, struct xm_error *);
/* Off again: guest writes go local only at once; `done` when nothing is in flight to the replica. Engine's
 * thread. */
void xm_disk_mirror_off(struct xm_disk *, void (*done)(void *), void *arg);
/* Engine's thread, while the mirror is on. Bulk copy at most at that rate; 0: no limit. Guest writes go on
 * as they come. */
void xm_disk_copy_rate(struct xm_disk *, uint64_t bytes_per_s);
/* Engine's thread. True when no chunk is absent or copying. */
bool xm_disk_in_step(const struct xm_disk *);
/* Engine's thread. Calls back once: 0 when nothing of the guest is in flight, mirror buffer empty, every
 * chunk present and the replica flushed: invariant 10, checked. -errno with a sentence when it cannot come
 * to that. The guest must be stopped (no new requests), and stay so. */
void xm_disk_quiesce(struct xm_disk *, void (*done)(void *, int status, const char *why), void *arg);
/* Engine's thread. Not waited for any more: it calls back now, if it has not yet, with -ETIMEDOUT. The
 * guest may go on, mirrored as before. */
void xm_disk_quiesce_cancel(struct xm_disk *);
/* Storage-only: from now on the disk is `file` (the near replica's); the old one is the caller's again.
 * While the guest runs: holds new requests for the moment that it takes to finish what is in flight and
 * flush, then swaps; never longer than 1 s at a time, and after 10 such tries it says -ETIMEDOUT. Engine's
 * thread. commit (may be NULL): called at that moment, when both files hold all that the guest has written
 * and nothing is in flight: it makes the new file durably known as the disk's, before the first write that
 * only it has. An error leaves the disk as it was. */
void xm_disk_pivot(struct xm_disk *, struct xm_file *file, int (*commit)(void *arg),
                   void (*done)(void *, int status, const char *why), void *arg);
/* Compares both sides chunk by chunk (XXH3-128), while the guest runs and the mirror is on: each chunk is
 * held for it as for a copy. A chunk that differs goes absent and is copied again. Calls back once: 0 and
 * how many differed, or -errno with a sentence. Engine's thread. */
void xm_disk_verify(struct xm_disk *, void (*done)(void *, int status, uint64_t differed, const char *why),
                    void *arg);
/* A guest's write for which the file system has no room waits until it has, instead of failing; but not those
 * of which this says true, from now on: they fail. NULL: all wait. Engine's thread. */
void xm_disk_room_refuse(struct xm_disk *, bool (*of)(const struct xm_breq *, void *arg), void *arg);
/* The front end keeps so many of those without an answer, to do them again: they wait, too (xm_disk_status).
 * NULL: it keeps none. Engine's thread. */
void xm_disk_kept(struct xm_disk *, unsigned (*how_many)(void *arg), void *arg);
static inline bool xm_is_no_room(int status)
{
    return status == -ENOSPC || status == -EDQUOT;
}
void xm_disk_status(struct xm_disk *, struct xm_disk_status *); /* any thread */
/* Links are all gone (true) or back (false): in-flight gives up, chunks go absent; the copier pauses.
 * Engine's thread. */
void xm_disk_replica_lost(struct xm_disk *, bool lost);

/* ---- vhost-user-blk ---- */

/* A guest's memory as a front end gave it to us is written by us behind QEMU's back. Whoever tracks dirty
 * pages gives, per memfd, a bitmap (bit: 4 KiB page of the memfd) in which the front end sets what it has
 * written, after writing it. */
struct xm_guest_mem_ops {
    /* NULL: not tracked. Any front end's thread */
    struct xm_bitmap *(*bitmap)(void *ctx, int memfd, uint64_t size);
    void *ctx;
    bool
        sealed; /* memory that could become smaller under us is refused: its front end could end us (SIGBUS) */
};

struct xm_vhost_opts {
    const char *socket_path; /* listens here; one front end at a time, may come again */
    const char *serial;      /* GET_ID, at most 20 bytes */
    unsigned queues;         /* 1 to 16 */
    uint32_t block;          /* the guest's logical block, 512 or 4096; 0: what the file has */
    bool read_only;          /* for the guest; a migration may fill the disk all the same */
    struct xm_guest_mem_ops mem;
};

/* One vhost-user-blk device in front of a disk. It has a control thread (the socket's) of its own; rings
 * run on the disk's engine. */
struct xm_vhost;
struct xm_vhost *xm_vhost_new(struct xm_disk *, const struct xm_vhost_opts *, struct xm_error *);
bool xm_vhost_attached(struct xm_vhost *);  /* a front end is there */
bool xm_vhost_silent(struct xm_vhost *);    /* it is there, and has said nothing yet */
bool xm_vhost_connected(struct xm_vhost *); /* a front end is there and has set its features */
bool xm_vhost_stopped(struct xm_vhost *);   /* no ring runs and none has requests in flight; any thread */
/* What its rings have begun with is where they are: nothing was taken since, or is to be. Of a guest that
 * stands still: QEMU (10, not 7.2) starts the rings of one for a new back end, and does not stop them again
 * for a migration. */
bool xm_vhost_rests(struct xm_vhost *);
/* how often a guest or front end broke the rules and its device was stopped */
uint64_t xm_vhost_broken(struct xm_vhost *);
/* hangs up, waits for its requests; the engine's thread must be turning */
void xm_vhost_free(struct xm_vhost *);

#endif
