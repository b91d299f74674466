/* SPDX-License-Identifier: MIT */
/* net/bundle.h: the bundle and its links from inside. Private to net.
 *
 * Threads: a link has one thread, which alone touches what stands under «the link thread's own». Anybody
 * submits, answers (xm_rx_done) and aborts. Locks, in this order: bundle.lock; then a mailbox's or the pool's
 * own. A place's lock (link_place.c) is taken under a sink's, and nothing under it. No callback is called and
 * no message is ended with bundle.lock held.
 */
#ifndef NET_BUNDLE_H
#define NET_BUNDLE_H

#include "net/frame.h"

#include <semaphore.h>
#include <stdatomic.h>
#include <sys/uio.h>

#define LINKS_MAX  1024   /* in a bundle's life; a link that went down keeps its number */
#define SLOTS_MAX  65536u /* unanswered frames of a link: 16 bits of an id */
#define SLOT_BLOCK 256u
#define POOL_LINKS 16                  /* windows' worth of received payload that may be worked on */
#define OUT_MAX    64u                 /* frames given to one sendmsg */
#define OUT_BYTES  ((size_t)256 << 10) /* hashed at once, so that it is in the cache when it is copied */
/* What is taken from the queue and not on its way yet, in the socket (cubic fills it) and in link.tx.out
 * alike: urgent frames wait for it. At 20 MB/s under 16 MiB of bulk they wait 28 ms
 * (tests/unit/net_slow.c); 75 to 95 ms without the bound, 58 to 72 with link.tx.out alone bounded. The
 * bench on unshaped links sees no difference. */
#define UNSENT_BYTES ((size_t)128 << 10)
/* Not the host's default, which may be bbr: that paces by a timer, which costs more than the sending. Two
 * unshaped links of a veth pair, both ends on two cores: 5.5 to 7.3 GB/s and 0.27 to 0.35 CPU s a GB with
 * cubic, 2.6 to 3.2 and 0.60 to 0.75 with bbr. */
#define CONGESTION      "cubic"
#define AHEAD_BYTES     ((size_t)16 << 10)
#define DEFAULT_WINDOW  ((size_t)8 << 20)
#define DEFAULT_FRAMES  512u
#define DEFAULT_SILENCE (10 * XM_NS_PER_S)
#define HELLO_TIME      (5 * XM_NS_PER_S)
#define GOODBYE_TIME                                                                                         \
    (300 * XM_NS_PER_MS) /* what is left to say, then what the peer still has to read: each at most this */

STAILQ_HEAD(msgs, xm_msg);

/* What the other side said of itself. */
struct hello {
    uint32_t version, required, optional, max_payload;
    uint64_t window_bytes;
    uint32_t window_frames;
};

/* A frame that has been taken by a link and is not answered yet. */
struct slot {
    struct xm_msg *msg;         /* NULL: free */
    uint16_t index, generation; /* make the frame's id */
    bool sent;                  /* all of it was given to the kernel: only then may an answer name it */
    /* in the order taken, to give them back in it; or in the list of free ones */
    TAILQ_ENTRY(slot) order;
};
TAILQ_HEAD(slots, slot);

/* A frame on its way into the socket. */
struct out {
    uint8_t hdr[64];
    const void *payload;
    uint32_t length, head; /* of the payload; and how much of it is at `payload`, before the pieces */
    const struct iovec *piece;
    unsigned pieces;
    bool acks;         /* payload is link.tx.ack */
    void *owned;       /* to be freed when sent */
    struct slot *slot; /* of a message */
};

/* What a link has under way, against its window. */
struct room {
    unsigned frames, urgent, bulk;
    size_t bytes;
};

enum rx_state {
    RX_HEADER,
    RX_BUFFER,  /* waits for one */
    RX_PAYLOAD, /* into `to`, up to `head` */
    RX_PLACE    /* the rest, in place (link_place.c) */
};

struct link {
    struct xm_links *bundle;
    int number, fd, wake;
    pthread_t thread;
    char name[64];
    size_t window_bytes;
    unsigned window_frames;

    /* Any thread's: */
    struct {
        atomic_bool asleep;               /* in poll, or about to; whoever turns it false writes to `wake` */
        _Atomic(struct xm_rx *) answered; /* a stack of frames whose handler is done with them */
        atomic_ullong wire_tx, wire_rx, frames_tx, resent;
    } any;

    /* Under bundle.lock: */
    struct {
        pid_t tid;          /* 0: not started or ended */
        bool ended, joined; /* the thread */
        bool up, wants;     /* wants: asleep and free to send; room: what it then had under way */
        struct room room;
    } locked;

    /* The link thread's own: */
    struct xm_error why; /* why it went down */
    bool hung;           /* poll says that the connection has ended */

    /* Frames that are taken and not answered yet. */
    struct {
        struct slot **block; /* of SLOT_BLOCK each; they never move */
        unsigned n;
        struct slots flying, idle;
        struct room room; /* what the flying ones take of the window */
    } slots;

    /* The sending half (link_tx.c): */
    struct {
        uint64_t spoke; /* when */
        struct out out[OUT_MAX];
        unsigned first, n; /* of out */
        size_t done;       /* bytes of the first that are sent */
        bool blocked;      /* the socket is full */
        uint64_t stuck;    /* since when a full one has taken nothing; 0: it is not full */
        uint32_t ack[ACKS_MAX * 2];
        bool ack_busy;
        struct xm_rx *answers, **answers_tail; /* taken from any.answered, in order */
    } tx;

    /* The receiving half (link_rx.c, link_place.c): */
    struct {
        uint64_t heard;          /* when */
        unsigned unanswered;     /* frames handed to the sink minus answers taken */
        size_t unanswered_bytes; /* their payloads */
        enum rx_state state;
        struct xm_frame_hdr hdr;
        struct xm_rx *frame; /* of a request */
        uint8_t *to;         /* where the payload goes, or only its head */
        uint32_t got, head;
        struct place *place; /* made when the first payload is received in place */
        void *reply;         /* of a REPLY */
        bool starved;        /* no buffer for the payload: not reading until one is back */
        size_t ahead_at, ahead_n;
        uint8_t ahead[AHEAD_BYTES];
        uint8_t own[ACKS_MAX * 8]; /* payloads of net's own frames */
    } rx;
};

struct xm_links {
    struct xm_links_opts opts;
    struct xm_transport transport;
    struct xm_bufpool *pool;
    atomic_bool ending;   /* lost or closing; link threads look at it once a turn */
    atomic_bool starved;  /* some link waits for a buffer */
    atomic_ulong rx_open; /* 1 + frames handed to the sink and not done */
    sem_t rx_drained;

    pthread_mutex_t lock;   /* protects all below */
    pthread_cond_t changed; /* up, lost, closing */
    struct link *link[LINKS_MAX];
    int links, up, next_wake;
    uint64_t down_since;
    bool background; /* the links' threads give way to others */
    struct xm_meter answered;

    /* What no link has taken (queue.c): */
    struct {
        struct msgs again; /* from a link that failed: before all others, and past any window */
        struct msgs urgent, bulk;
        uint64_t bytes, bytes_max;
        struct xm_bucket bucket;
        uint64_t hold_until; /* the rate limit's */
    } queue;

    /* How it ends: */
    struct {
        bool lost, closing, told, tell_peer;
        int status; /* of messages once lost or closing */
        struct xm_error why;
        struct xm_error last_why;  /* of the link that went last */
        struct xm_error peer_said; /* its ABORT, when that is why */
    } end;
};

/* links.c */
void msg_end(struct xm_msg *, int status);
void link_wake(struct link *);
void bundle_wake(struct xm_links *); /* all links */
/* The bundle is lost: every message ends with `status`; the peer is told why if tell_peer. The first reason
 * stays; why NULL: no link. Any thread. */
void bundle_lose(struct xm_links *, int status, bool tell_peer, const struct xm_error *why);
void bundle_ended_by_peer(struct xm_links *, const struct xm_error *said); /* likewise: the peer's ABORT */

/* queue.c */
void queue_submit(struct xm_transport *, struct xm_msg *);
/* Moves to `to` what the link has room for, a pull's worth at most. */
void queue_take(struct link *, struct msgs *to);
/* Before sleeping: false when there is something to take. *until: when the rate limit ends, if that is what
 * it waits for. */
bool queue_sleep(struct link *, uint64_t *until);
/* Messages have come back: wakes a link that has room for them. */
void queue_kick(struct xm_links *);
void queue_answered(struct xm_links *, uint64_t bytes);

/* link.c */
struct link *link_new(struct xm_links *, int fd, const char *name);
void link_free(struct link *);
void *link_main(void *link);
/* The peer broke the rules, or bytes were damaged: the whole bundle ends. Returns -code. */
int link_violation(struct link *, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The slot of a frame that an answer names; NULL: there is no such frame. */
struct slot *link_slot_of(struct link *, uint32_t id);
/* Frees the slot; the message is the caller's. */
struct xm_msg *link_slot_take(struct link *, struct slot *);

/* link_tx.c */
void tx_answers(struct link *);  /* queues the answers that have come */
void tx_messages(struct link *); /* takes messages and queues them */
void tx_frame(struct link *, uint8_t type, uint64_t extent, const void *payload, uint32_t len);
int tx_send(struct link *);  /* 0 or -errno: the link failed */
void tx_cut(struct link *);  /* drops what has not begun to be sent */
void tx_drop(struct link *); /* drops all */
bool tx_idle(const struct link *);
size_t tx_unsent(const struct link *); /* bytes queued in link.tx.out */

/* link_rx.c */
/* Receives what is there, up to a bound. 1: something, 0: nothing, -errno: failed (link.why), or the bundle
 * is lost. */
int rx_receive(struct link *);
void rx_drop(struct link *); /* what was half received */

/* link_place.c */
int place_begin(struct link *); /* the head is there: RX_PLACE. 0 or -errno (link.why) */
/* Where the rest goes: iovecs from piece[0] on, at most XM_PIECES_MAX; returns how many. From a place_lock
 * to a place_took. */
unsigned place_lock(struct link *, struct iovec *piece);
void place_took(struct link *, size_t n); /* so many bytes are there */
bool place_intact(const struct link *);   /* all is there: does it have its hash (or needs none)? */
void place_cut(struct xm_rx *);
void place_free(struct link *);

/* hello.c */
int hello_exchange(int fd, bool client, const struct xm_links_opts *, const char *name, struct hello *peer,
                   struct xm_error *);

/* call.c */
void calls_sweep(void);

#endif
