/* SPDX-License-Identifier: MIT */
/* mirror/vhost_ring.h: the rings of a vhost-user-blk device as they run on the disk's engine.
 *
 * Everything here is the engine's thread's, reached from the control thread (vhost.c) by xm_mailbox_call, but
 * for what struct xm_vhost calls `any` and `control`.
 *
 * A ring runs when its addresses and size are known, it has been given a kick descriptor and it is enabled.
 * Kicked, it takes what is available and gives it to the driver. Completions are written to the used ring at
 * once; the used index and the call to the guest wait for the turn's end (vhost_turn.h).
 *
 * What can go wrong: the guest breaks the rules -> no ring of the device takes anything more, what is in
 * flight ends and is answered, the count of broken grows; a reset of the device (its rings stopped and
 * started anew) makes it work again. The front end hangs up -> nothing more is taken or answered; what was in
 * flight is drained, and comes again from the in-flight region.
 */
#ifndef XM_MIRROR_VHOST_RING_H
#define XM_MIRROR_VHOST_RING_H

#include <semaphore.h>

#include "mirror/virtio_blk.h"

#define VHOST_QUEUES_MAX 16

struct ring {
    struct virtqueue vq;
    struct xm_vhost *dev;
    unsigned index;
    bool have_num, have_addr, started, enabled, running;
    uint16_t base;
    struct xm_watch kick;
    int kick_fd, call_fd, err_fd; /* owned, or -1 */
    unsigned in_flight;           /* taken and neither published nor dropped */
    unsigned kept;                /* in the in-flight region alone, for want of room (mirror/room.c) */
    struct blk_req *reqs;         /* vq.num slots, by head */
    uint16_t slots;
    bool listed; /* in the turn's list of those to look at */
    TAILQ_ENTRY(ring) link;
    LIST_ENTRY(ring) run_link; /* in the turn's list of those that run */
    struct xm_post again;      /* to go on in the next turn without a kick */
    bool again_posted;
};

struct turn;
struct xm_vhost {
    struct xm_disk *disk;
    struct xm_engine *engine;
    struct turn *turn;
    struct blk_dev blk;
    struct xm_guest_mem_ops mem_ops;
    char *path;

    /* The engine's thread's: */
    uint64_t features; /* what the front end has set */
    bool wce;
    bool broken, paused, hung_up;
    struct guestmem *mem;
    struct dirtylog log;
    struct { /* the in-flight region (vhost_inflight.h) */
        void *map;
        size_t len;
        uint8_t *at;           /* in map; NULL: none */
        uint16_t queues, size; /* how many queues it has, and requests for each */
    } inflight;
    unsigned queues;
    struct ring ring[VHOST_QUEUES_MAX];
    struct chain chain; /* scratch of one pop */
    int draining;       /* what the last drain was of; for who asks while one is under way */
    int drain;          /* which ring the control thread waits for; DRAIN_ALL, DRAIN_NONE */
    sem_t drained;
    uint64_t complained; /* when a broken ring was last logged */

    /* Any thread's, atomic: */
    struct {
        uint64_t broken; /* how often */
        unsigned busy;   /* rings that run + requests in flight */
        bool attached, heard, connected;
    } any;

    /* The control thread's: */
    struct {
        pthread_t thread;
        int listen_fd, stop_fd, sock;
        uint64_t protocol;
        struct xm_post gone;
        bool has_gone; /* the engine's thread's */
        struct xm_log_limit hung_up;
    } control;
};
enum { DRAIN_NONE = -1, DRAIN_ALL = -2 };

int rings_init(struct xm_vhost *);
void rings_destroy(struct xm_vhost *);
/* Starts the ring if it has become able to run, and looks at it: to be called when something about it has
 * changed. */
void ring_update(struct ring *);
void ring_stop(struct ring *);
/* A descriptor takes the old one's place; -1 closes. */
void ring_set_kick(struct ring *, int fd);
void ring_set_call(struct ring *, int fd);
/* For the turn's end: */
bool ring_has_work(const struct ring *); /* something is available to take */
bool ring_waits(const struct ring *);    /* something taken is not done */
/* Tells what is done, takes what is there. True: it took something. watched: the guest need not kick
 * meanwhile. */
bool ring_catch_up(struct ring *, bool watched);
void ring_sleep(struct ring *); /* the guest has to kick from now on */
/* Nothing of the device (DRAIN_ALL) or ring is in flight. */
bool rings_idle(const struct xm_vhost *, int which);
/* No ring takes anything more, until it is called with false. */
void rings_pause(struct xm_vhost *, bool);
/* Finds all rings in a new memory table (paused, idle). */
void rings_remap(struct xm_vhost *);
/* Hung up: all rings stop, completions from now on are dropped. */
void rings_hang_up(struct xm_vhost *);
/* The features have changed: logging, cache mode. */
void rings_apply_features(struct xm_vhost *);
void vhost_broken(struct xm_vhost *, unsigned ring, const char *why);

#endif
