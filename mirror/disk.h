/* SPDX-License-Identifier: MIT */
/* mirror/disk.h: the inside of a disk, shared by the files that make up the driver:
 *   disk.c      opening, the guest's requests while nothing is mirrored, status
 *   request.c   the life of a guest write while the mirror is on: one function of (request, event)
 *   busy.c      which writes are under way in which chunk: overlaps, and claims that wait for them
 *   buffer.c    the mirror buffer, and the pieces under way to the replica
 *   mode.c      async and sync, giving up on chunks, the replica lost and back
 *   copy.c      the copier's side: claims, chunks copied, failures; mirror on and off
 *   verify.c    comparing both sides
 *   room.c      writes that the file system has no room for
 *   quiesce.c   the switch: quiescing, and the pivot of storage-only
 * All of it runs on the engine's thread. */
#ifndef MIRROR_DISK_H
#define MIRROR_DISK_H

#include "mirror/chunkmap.h"
#include "mirror/mirror.h"

#define XM_CHUNK_MIN 4096u
#define XM_CHUNK_MAX (4u << 20)

/* ---- requests ---- */

enum req_state {
    REQ_PLAIN,   /* not the mirror's business: reads, flushes, and writes that began while it was off */
    REQ_GATED,   /* waits outside while the disk is swapped */
    REQ_BLOCKED, /* an earlier write overlaps it */
    REQ_HELD,    /* waits for a chunk that is being read, or compared */
    REQ_NOBUF,   /* waits for room in the mirror buffer */
    REQ_LOCAL,   /* with the engine */
    REQ_SYNC,    /* written here, waits for the replica */
    REQ_NO_ROOM  /* ended, for want of room; waits to be tried again */
};

enum req_event {
    REQ_EV_START,     /* a part of it is to be done */
    REQ_EV_UNBLOCKED, /* the last overlapping write before it has ended */
    REQ_EV_RETRY,     /* what it waited for may be there */
    REQ_EV_CAP,       /* it has waited for as long as the mirror may hold a guest */
    REQ_EV_LOCAL,     /* the engine is done with it */
    REQ_EV_MIRRORED   /* the replica is done with all of it */
};

/* A part's hold on one chunk; in the order in which the parts came. */
struct chunk_ref {
    TAILQ_ENTRY(chunk_ref) link;
    struct busy_chunk *busy;
    struct xm_disk_req *req;
    uint64_t start, end; /* the part's bytes in this chunk */
};

/* One request of the guest. A large write is done in parts, one after the other, so that each fits the mirror
 * buffer. */
struct xm_disk_req {
    struct xm_disk *disk;
    struct xm_breq *breq;
    enum req_state state;
    int status;
    struct xm_io io;
    struct iovec vec;
    struct iovec *slice;         /* of the guest's iov, for a part that is not mirrored; or NULL */
    uint64_t offset, length, at; /* the part at hand; `at`: how much of the request is done before it */
    unsigned blockers;           /* overlapping writes before it */
    bool active;                 /* its part counts as active in its chunks */
    uint64_t budget;             /* ns that the mirror may still hold it */
    uint64_t wait_from, deadline;
    struct mirrored *mirrored; /* the part's way to the replica, or NULL */
    struct chunk_ref *refs, inline_refs[2];
    unsigned nrefs;
    /* in guest.waits (HELD, NOBUF, SYNC), by deadline; in guest.gated; in room.waiting; or in guest.free */
    TAILQ_ENTRY(xm_disk_req) wait;
    TAILQ_ENTRY(xm_disk_req) queue; /* in guest.nobuf, first come first served */
    TAILQ_ENTRY(xm_disk_req) ready; /* on a local list of those about to get an event */
};
TAILQ_HEAD(disk_reqs, xm_disk_req);

struct xm_disk_req *request_new(struct xm_disk *, struct xm_breq *);
void request_free(struct xm_disk_req *);
void request_event(struct xm_disk_req *, enum req_event, int status);
/* The guest's request is done: answers it. */
void request_complete(struct xm_disk_req *, int status);
/* room.c. A write has ended so: true when it waits to be tried again. */
bool room_wait(struct xm_disk_req *, int status);
/* So many wait. */
unsigned room_waiting(const struct xm_disk *);
/* Sends the event to all on the list (linked by `ready`). */
void request_event_all(struct disk_reqs *, enum req_event);
/* A write that begins while the mirror is on. */
void request_tracked(struct xm_disk_req *);
void request_cap_fire(struct xm_timer *);
/* Every request that the mirror holds goes on without it. */
void request_release_all(struct xm_disk *);

/* ---- what is under way, by chunk ---- */

#define BUSY_BUCKETS 1024u
#define DRAIN_MAX    16u

struct busy_chunk {
    LIST_ENTRY(busy_chunk) link;
    uint64_t chunk;
    TAILQ_HEAD(, chunk_ref) refs;
    unsigned active; /* of the refs, those whose part is with the engine */
    bool draining;   /* claimed; its copy starts when none is active */
    bool fresh;
};

struct busy_table {
    LIST_HEAD(busy_list, busy_chunk) bucket[BUSY_BUCKETS], free;
    struct {
        uint64_t chunk;
        bool fresh;
    } drained[DRAIN_MAX]; /* claimed, and nothing active in them any more */
    unsigned ndrained, draining;
};

void busy_init(struct busy_table *);
void busy_destroy(struct busy_table *);
/* Enters the part at hand; counts its blockers. 0 or -ENOMEM. */
int busy_enter(struct xm_disk_req *);
void busy_activate(struct xm_disk_req *);
/* Takes it out. Those that it blocked last are put on the list. True: a claimed chunk has become free of
 * writes. */
bool busy_leave(struct xm_disk_req *, struct disk_reqs *unblocked);
/* Puts those that are held by this chunk on the list. */
void busy_held(struct xm_disk *, uint64_t chunk, struct disk_reqs *);
/* A chunk was claimed: true when nothing is active in it; else it will be among the drained. */
bool busy_drain(struct xm_disk *, uint64_t chunk, bool fresh);
bool busy_is_idle(struct xm_disk *, uint64_t chunk); /* no write is with the engine in it */
void busy_forget_claims(struct xm_disk *);

/* ---- the way to the replica ---- */

struct piece {
    struct xm_rreq rreq;
    struct mirrored *mirrored;
    struct piece *next_free;
};

/* One part on its way to the replica. */
struct mirrored {
    struct xm_disk *disk;
    struct xm_disk_req *req; /* who waits for it; NULL: nobody any more */
    void *buf;               /* the private copy (invariant 4); NULL: zeros */
    uint64_t offset, length, cost, since;
    unsigned pending;           /* pieces */
    bool local;                 /* the local write still uses the buffer */
    TAILQ_ENTRY(mirrored) link; /* in buffer.pending, or buffer.free */
};

/* Room for the part, or NULL. */
struct mirrored *mirrored_new(struct xm_disk_req *);
/* Copies the part's bytes out of guest memory. */
void mirrored_fill(struct mirrored *, const struct iovec *, int iovcnt, uint64_t skip);
/* Sends the pieces of the chunks that are followed (chunkmap.h). */
void mirrored_send(struct mirrored *);
/* The local write is done with the buffer; nobody waits for it any more. */
void mirrored_local_done(struct mirrored *);
void mirrored_detach(struct mirrored *);
void buffer_wake(struct xm_disk *);
void buffer_free_lists(struct xm_disk *);
uint64_t buffer_part_max(const struct xm_disk *);

/* ---- the disk ---- */

enum { PAUSE_STARTING = 1, PAUSE_LOST = 2, PAUSE_BACKOFF = 4, PAUSE_FAILED = 8, PAUSE_OFF = 16 };

enum pivot_step { PIVOT_NONE, PIVOT_IN_STEP, PIVOT_PREFLUSH, PIVOT_DRAIN, PIVOT_FLUSH };

struct xm_disk {
    struct xm_engine *engine;
    struct xm_file *file;
    struct xm_disk_opts opts;
    unsigned chunk_shift;
    uint64_t chunks;

    /* Its requests (disk.c, request.c, busy.c): */
    struct {
        unsigned requests;  /* not done, without the gated */
        unsigned untracked; /* of them, writes that began while the mirror was off */
        uint64_t at;        /* when the last one came, while the mirror is on */
        unsigned held;      /* in REQ_HELD */
        struct disk_reqs free, gated, waits, nobuf;
        struct busy_table busy;
        struct xm_timer cap;      /* for the first of waits */
        struct xm_log_limit told; /* of its I/O errors */
    } guest;

    /* Writes for which there was no room (room.c): */
    struct {
        struct disk_reqs waiting;
        unsigned n;                  /* so many */
        const struct xm_breq *probe; /* the one that is tried again, or NULL */
        struct xm_timer retry;
        uint64_t since;                                 /* xm_now(), of the first; 0: none */
        bool (*refuse)(const struct xm_breq *, void *); /* NULL: all may wait */
        void *refuse_arg;
        unsigned (*kept)(void *); /* by the front end, to be done again; NULL: none */
        void *kept_arg;
        struct xm_log_limit told;
    } room;

    struct {
        enum xm_mirror_mode mode;
        bool lost;
        struct xm_replica *replica;
    } mirror;

    /* Chunks on their way (copy.c): */
    struct {
        struct xm_copier *copier;
        unsigned pauses; /* reasons why the copier is paused */
        struct chunkmap map;
        struct xm_bufpool *pool;
        unsigned failures; /* chunks that failed to copy, one after the other */
        struct xm_timer backoff;
        int failed; /* -errno: the copy cannot succeed */
        char why[300];
    } copy;

    /* Guest writes on their way (buffer.c): */
    struct {
        struct xm_bufpool *pool;
        uint64_t used;
        uint64_t low_since; /* since when it has been low; 0: it is not */
        TAILQ_HEAD(, mirrored) pending, free;
        struct piece *free_pieces;
    } buffer;

    /* What waits for the disk to come to something (quiesce.c, verify.c): */
    struct xm_timer progress;
    struct {
        void (*done)(void *);
        void *arg;
    } off;
    struct {
        void (*done)(void *, int, const char *);
        void *arg;
        bool spoiled; /* the guest wrote meanwhile */
    } quiesce;
    struct {
        enum pivot_step step;
        unsigned tries;
        bool gate;                  /* closed: new requests wait outside */
        struct xm_timer gate_limit; /* of a closed gate; then of the wait before the next try */
        struct xm_file *file;
        int (*commit)(void *);
        void (*done)(void *, int, const char *);
        void *arg;
    } pivot;
    struct verify *verify; /* under way, or NULL */
    struct {
        bool busy;  /* `request` is with the replica */
        bool old;   /* it was there before what is waited for now began, and does not count */
        bool done;  /* it has come back */
        int failed; /* what one has failed with since the mirror is on: there may be less than was written */
        struct xm_rreq request;
    } flush;

    struct xm_disk_status stats; /* the counters of it */
};

static inline bool is_mirroring(const struct xm_disk *d)
{
    return d->mirror.mode == XM_MIRROR_ASYNC || d->mirror.mode == XM_MIRROR_SYNC;
}

/* mode.c */
void mode_update(struct xm_disk *, uint64_t now);
void give_up_chunk(struct xm_disk *, uint64_t chunk);
void give_up_range(struct xm_disk *, uint64_t offset, uint64_t length);

/* A chunk that was `copying` is so no more: present when ok and not stale; goes on with who was held by it.
 */
void chunk_release(struct xm_disk *, uint64_t chunk, bool ok);

/* verify.c */
void verify_step(struct xm_disk *);
void verify_fail(struct xm_disk *, int status, const char *why);
bool verify_busy(const struct xm_disk *);

/* copy.c */
void copier_pause(struct xm_disk *, unsigned reason);
void copier_resume(struct xm_disk *, unsigned reason);
void mirror_begin(struct xm_disk *); /* STARTING, and all that began before has ended */
void mirror_teardown(struct xm_disk *);
bool mirror_quiet(const struct xm_disk *); /* nothing under way to the replica */

/* quiesce.c: something happened that the copier, quiesce, pivot, mirror off or on may wait for; looked at in
 * the next turn. */
void disk_progress(struct xm_disk *);
/* Something ended that only those wait for, not the copier. */
void disk_progress_if_awaited(struct xm_disk *);
void disk_progress_fire(struct xm_timer *);
/* Ends quiesce and pivot with an error. */
void switch_fail(struct xm_disk *, int status, const char *why);

#endif
