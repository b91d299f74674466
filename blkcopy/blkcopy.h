/* SPDX-License-Identifier: MIT */
/* blkcopy/blkcopy.h: moving blocks. The I/O engine, the files it works on, the replica (a second copy of a
 * disk, near or far), the writer that applies what arrives, and the bulk copier.
 *
 * Everything about one disk happens on one thread, the owner of its engine: submissions, completions, timers,
 * posts. Only the mailbox may be used from outside. Offsets and lengths are bytes. Results are 0 or -errno.
 */
#ifndef XM_BLKCOPY_H
#define XM_BLKCOPY_H

#include "net/net.h"
#include <sys/uio.h>

/* ---- files ---- */

struct xm_file {
    int fd;
    uint64_t size; /* bytes; a multiple of `block` */
    /* logical block: what offsets and lengths must be aligned to (512 to 4096; 1 when buffered) */
    uint32_t block;
    /* what memory must be aligned to, or it is bounced: at most `block`; 1 when buffered */
    uint32_t mem_align;
    bool direct; /* O_DIRECT */
    bool block_device;
    bool read_only;
    bool reads_zero_new; /* a fresh sparse file: what was never written reads as zeros */
    /* learnt by the engine: the file cannot do that; zeros are made in another way */
    bool no_punch, no_zero_range;
    char *path;
};
enum {
    XM_FILE_RDONLY = 1,
    XM_FILE_BUFFERED = 2,
    XM_FILE_CREATE = 4, /* needs size; must not exist */
    XM_FILE_SHARED = 8, /* not locked (yet): another host has it open until it hands the VM over */
    XM_FILE_PLAIN = 16, /* it has to be a file: no link, no device */
    /* requests of 512 bytes have to work: where what it lies on has larger blocks it goes through the page
     * cache */
    XM_FILE_SECTORS = 32,
};
/* Opens a raw file or a block device, O_DIRECT unless BUFFERED or the file system cannot.
 * size: only with CREATE (sparse); the file and its name are durable when it returns. Takes a lock (OFD
 * write lock on the whole file; a block device is opened exclusively, too, which fails when it is mounted)
 * so that no second process of ours opens it for writing: -EBUSY. Readers take no lock. What cannot be
 * done with O_DIRECT is logged and done buffered. */
int xm_file_open(struct xm_file *, const char *path, unsigned flags, uint64_t size, struct xm_error *);
void xm_file_close(struct xm_file *);
/* The block of direct I/O (512 to 4096) to this file or device, or to new files in this directory; 512
 * when none can be done. */
uint32_t xm_file_block_of(const char *path);
/* Takes or gives up the lock of an open file: for a disk that both hosts reach. Any thread. */
int xm_file_lock(struct xm_file *, struct xm_error *);
void xm_file_unlock(struct xm_file *);

/* ---- engine ---- */

enum xm_io_op { XM_IO_READ, XM_IO_WRITE, XM_IO_FLUSH, XM_IO_ZERO };

/* One request. Owned by the engine from submit until done() is called; done may free or submit it again. */
struct xm_io {
    enum xm_io_op op;
    bool unmap; /* ZERO: the space may be given back (punch); it reads as zeros either way */
    struct xm_file *file;
    uint64_t offset, length; /* length: the iov's sum for READ and WRITE */
    struct iovec *iov;       /* not changed; stays the caller's; must live until done */
    int iovcnt;
    /* res: 0 when all of it was done (short transfers are continued inside), or -errno. Reading past the
     * end is -EINVAL. READ and WRITE whose memory is not aligned are bounced, a READ of partial blocks
     * likewise; a partial block of a WRITE or ZERO is -EINVAL. FLUSH covers what was done() before it was
     * submitted. Called within turn(), never within submit. */
    void (*done)(struct xm_io *, int res);
    /* The engine's own: */
    TAILQ_ENTRY(xm_io) link;
    uint64_t progress; /* bytes done */
    struct bounce *bounce;
    struct iovec vec[2];
    int res;
    uint8_t way;    /* how the transfer under way does it: enum way in blkcopy/transfer.h */
    bool unaligned; /* goes through the bounce buffer */
    uint16_t retries;
};

struct xm_timer {
    uint64_t when; /* xm_engine_now() scale */
    void (*fire)(struct xm_timer *);
    TAILQ_ENTRY(xm_timer) link;
    bool armed;
};

/* A watched eventfd: ready() is called after it has been written to (edge; the counter itself need not be
 * read: several writes may be one call, none is lost), and once at the start when its counter is not 0.
 * Unwatch before closing fd. */
struct xm_watch {
    int fd;
    void (*ready)(struct xm_watch *);
    /* The engine's own: */
    TAILQ_ENTRY(xm_watch) link;
    bool active;
    uint32_t slot;
};

struct xm_engine;
struct xm_engine_ops {
    const char *name; /* "io_uring", "libaio", "sim" */
    /* Queued; goes to the kernel in the next turn at the latest. Ends with xm_engine_end(), within turn(). */
    void (*submit)(struct xm_engine *, struct xm_io *);
    int (*watch)(struct xm_engine *, struct xm_watch *); /* 0, -EBADF, -ENOMEM */
    /* ready() is not called any more when it returns */
    void (*unwatch)(struct xm_engine *, struct xm_watch *);
    /* Submits what is queued, waits until something happens or the nearest timer is due, handles all of
     * it. */
    void (*turn)(struct xm_engine *);
    uint64_t (*now)(struct xm_engine *); /* NULL: xm_now() */
    /* NULL: xm_extent_is_hole(). For files that the kernel does not know. */
    bool (*is_hole)(struct xm_engine *, const struct xm_file *, uint64_t offset, uint64_t length,
                    uint64_t *hole_end);
    void (*free)(struct xm_engine *); /* the implementation's part; then frees the engine's memory */
};
struct xm_engine {
    const struct xm_engine_ops *ops;
    struct xm_mailbox mailbox;              /* run within turn() */
    TAILQ_HEAD(xm_timers, xm_timer) timers; /* sorted by when */
    uint64_t firing;                        /* while timers fire: the time they are judged by; else 0 */
    unsigned inflight; /* requests submitted and not done: counted by xm_engine_submit and xm_engine_end */
    /* Called once before each wait, when set: a last chance to batch (one notification for many
     * completions). */
    void (*before_wait)(struct xm_engine *, void *);
    void *before_wait_ctx;
    /* Somebody waits for the few requests that are in flight, and for nothing else: the wait may begin by
     * watching for them instead of sleeping. Set by before_wait, for one wait; an engine may ignore it. */
    bool watched;
};
enum xm_engine_kind { XM_ENGINE_AUTO, XM_ENGINE_URING, XM_ENGINE_LIBAIO };
/* depth: requests the kernel is given at once (1 to 4096; more wait inside). AUTO: io_uring, libaio where
 * it is disabled. Created on the thread that will own it, or owned with xm_engine_own before its first
 * turn. libaio with buffered files waits in submit. */
struct xm_engine *xm_engine_open(enum xm_engine_kind, unsigned depth, struct xm_error *);
void xm_engine_own(struct xm_engine *); /* the calling thread is the owner from now on */
void xm_engine_submit(struct xm_engine *, struct xm_io *);
int xm_engine_watch(struct xm_engine *, struct xm_watch *);
/* also of what is not watched; also within ready() */
void xm_engine_unwatch(struct xm_engine *, struct xm_watch *);
void xm_engine_turn(struct xm_engine *); /* not from within a callback of it */
uint64_t xm_engine_now(struct xm_engine *);
/* moves it when it is armed */
void xm_engine_timer_set(struct xm_engine *, struct xm_timer *, uint64_t when);
void xm_engine_timer_cancel(struct xm_engine *, struct xm_timer *);
void xm_engine_free(struct xm_engine *); /* nothing in flight; NULL is allowed */

/* For implementations. init: 0 or -errno; fini is init's reverse, to be called in ops->free. */
int xm_engine_init(struct xm_engine *, const struct xm_engine_ops *);
void xm_engine_fini(struct xm_engine *);
/* counts the request as done and calls done() */
void xm_engine_end(struct xm_engine *, struct xm_io *, int res);
/* Fires all timers that are due; what they set anew waits for the next call. Returns how many. */
unsigned xm_engine_fire_timers(struct xm_engine *);

/* ---- extents ---- */

/* Is [offset, offset+length) a hole? A hint (SEEK_DATA): false when it cannot be known. *hole_end: up to
 * where, when true. */
bool xm_extent_is_hole(const struct xm_file *, uint64_t offset, uint64_t length, uint64_t *hole_end);
bool xm_is_zero(const void *buf, size_t len);
/* Bytes allocated (st_blocks) for files, size for block devices. */
uint64_t xm_file_allocated(const struct xm_file *);

/* ---- writer: applies writes in their order (invariant 5), there or on a second local disk ---- */

struct xm_writer; /* owned by an engine's thread */

/* A write to apply. Owned by the writer until done. */
struct xm_wreq {
    /* DISK_DATA, DISK_ZERO, DISK_FLUSH, DISK_DIGEST, DISK_HASH; only its meaning fields are used */
    struct xm_frame_hdr hdr;
    void *payload; /* aligned as the file wants, or it is bounced */
    /* reply: valid during the call */
    void (*done)(struct xm_wreq *, int status, const void *reply, uint32_t reply_len);
    /* The writer's own: */
    struct xm_io io;
    struct iovec iov;
    struct xm_writer *writer;
    struct xm_wreq *dups; /* later copies of the same frame, answered together with this one */
    uint64_t started;     /* counts writes handed to the engine */
    TAILQ_ENTRY(xm_wreq) link, wait;
};
struct xm_writer *xm_writer_new(struct xm_engine *, struct xm_file *, struct xm_error *);
void xm_writer_submit(struct xm_writer *, struct xm_wreq *);
void xm_writer_digest(const struct xm_writer *, struct xm_digest *);
uint64_t xm_writer_pending(const struct xm_writer *); /* requests not done */
/* Fails what still waits for a predecessor with -ECANCELED. What is in flight ends by itself; free when
 * pending is 0. */
void xm_writer_cancel(struct xm_writer *);
void xm_writer_free(struct xm_writer *);
/* The highest number of frames that may be pending at once per disk; the writer refuses what lies beyond
 * (-EPROTO). */
#define XM_WRITER_WINDOW 65536u

/* ---- replica: the sending proxy of a disk's second copy; a writer applies what it sends ---- */

struct xm_replica;
/* one piece, within one chunk; owned by the replica until done (called on the engine's thread) */
struct xm_rreq {
    enum xm_io_op op; /* WRITE, ZERO, FLUSH */
    bool unmap, urgent;
    uint64_t offset, length;
    const void *buf;  /* WRITE: private copy, unchanged until done */
    uint8_t hash[16]; /* xm_replica_hash: the answer, when done with 0 */
    void (*done)(struct xm_rreq *, int status);
    /* The replica's own: */
    struct xm_msg msg;
    struct xm_wreq wreq;
    struct xm_replica *replica;
    bool latest; /* the latest pending one of its chunk */
    bool is_hash;
    TAILQ_ENTRY(xm_rreq) link, by_chunk;
};
/* Far: over a transport, as object number `object`. Near: through a writer on the same engine. Gives each
 * request its seq and its predecessor in the chunk (after), so that what is applied is applied in the
 * order submitted, per chunk. */
struct xm_replica *xm_replica_far(struct xm_engine *, struct xm_transport *, uint16_t object,
                                  uint32_t chunk_size);
struct xm_replica *xm_replica_near(struct xm_engine *, struct xm_writer *, uint32_t chunk_size);
void xm_replica_submit(struct xm_replica *, struct xm_rreq *);
/* Asks for the XXH3-128 (canonical) of what is there in [offset, offset+length), within one chunk, after
 * all that was submitted for that chunk before. Only offset, length and done of the request are used. */
void xm_replica_hash(struct xm_replica *, struct xm_rreq *);
/* of what ended with status 0 */
void xm_replica_digest(const struct xm_replica *, struct xm_digest *);
uint64_t xm_replica_pending(const struct xm_replica *); /* requests not done */
void xm_replica_free(struct xm_replica *);              /* nothing pending */

/* ---- bulk copier ---- */

struct xm_copier_ops {
    /* Claims the next chunk that has to be copied (invariant 2: it is marked `copying` before this
     * returns); -1: none now. */
    /* *fresh: nothing of it was ever sent, so the target may still read as zeros there */
    int64_t (*next)(void *ctx, bool *fresh);
    /* Whether somebody else uses the disk now, for whom the copier has to leave it free as much as it can.
     * May be NULL. */
    bool (*shared)(void *ctx);
    /* All of the chunk has been read, and the replica has all its pieces in their order: what is submitted
     * for the chunk from now on lands on top of them. Once, before ended(); not for a chunk that failed
     * before. May be NULL. */
    void (*read)(void *ctx, int64_t chunk);
    /* The chunk's pieces are all acknowledged (0), or something of it failed (-errno). */
    void (*ended)(void *ctx, int64_t chunk, int status);
};
struct xm_copier_stats {
    uint64_t bytes_data, bytes_zero, bytes_hole; /* acknowledged */
    uint64_t read_errors;                        /* reads of the source that failed for good */
};
struct xm_copier;
/* target_zeroed: the destination reads as zeros where nothing was written: holes and zeros of fresh chunks
 * need not be sent. The pool's limit is the bound of bulk data in flight (docs/design.md, «Bounds»: 16
 * MiB). */
struct xm_copier *xm_copier_new(struct xm_engine *, struct xm_file *, struct xm_replica *,
                                struct xm_bufpool *, uint32_t chunk_size, bool target_zeroed,
                                const struct xm_copier_ops *, void *ctx);
/* How long chunks may wait for each other on the way to the replica; 25 ms until it is set. The copier
 * finds how many it may have claimed at once for that, between 1 and what the pool has buffers for; a long
 * round trip does not count as waiting. */
void xm_copier_delay(struct xm_copier *, uint64_t target_ns);
/* How many more it would claim now. Whoever claims on its behalf and lets it wait counts these as claimed. */
unsigned xm_copier_room(const struct xm_copier *);
/* Reads at most so many bytes of data a second, over a second; 0, as at first: as fast as can be. */
void xm_copier_rate(struct xm_copier *, uint64_t bytes_per_s);
void xm_copier_kick(struct xm_copier *);        /* there may be chunks to claim (again) */
void xm_copier_pause(struct xm_copier *, bool); /* claims nothing while paused */
void xm_copier_stats(const struct xm_copier *, struct xm_copier_stats *);
unsigned xm_copier_busy(const struct xm_copier *); /* chunks claimed whose copy has not ended */
void xm_copier_free(struct xm_copier *);           /* paused and not busy */

#endif
