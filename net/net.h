/* SPDX-License-Identifier: MIT */
/* net/net.h: links. Messages go to the other side over whichever link has room, and come back ended.
 *
 * Both ends of a migration hold one `xm_links`: a bundle of TCP connections (one or more per pair of
 * addresses) that carry frames. It is symmetric: either side submits messages and serves those of the other.
 * What the frames mean is the business of the folders above (a disk's writer, guest RAM); net moves and
 * checks them.
 *
 * A message's life: its owner fills an xm_msg and submits it. From then on message and payload are the
 * bundle's. They wait in the one shared queue (urgent ones in front of bulk), are taken by a link that has
 * room in its window, hashed, sent, and kept by that link until the peer has answered: an ACK (status) or a
 * REPLY (status and bytes). Then the message is posted to its home mailbox. A link that fails gives its
 * unanswered messages back to the head of the queue, and another link sends them again; the receiver may thus
 * see one twice, and (object, seq) tells it so. Without any link left for `link_timeout` (or at once when the
 * bundle is closed or aborted) messages end with -ENOLINK / -ECANCELED / the peer's reason.
 *
 * The queue is bounded by its submitters (each has a bounded number of bytes it may have under way); sum and
 * high-water mark are kept.
 *
 * Wire: see man/xmigrate-protocol.7. All integers little endian.
 */
#ifndef XM_NET_H
#define XM_NET_H

#include "base/base.h"
#include <sys/uio.h>

#define XM_PROTOCOL_VERSION 1
#define XM_FRAME_MAGIC      0x31464d58u /* "XMF1" */
#define XM_TOKEN_BYTES      32          /* of randomness; written as 64 hex digits */
#define XM_PAYLOAD_MAX      (1u << 20)  /* bytes of payload of one frame */
#define XM_OBJECTS_MAX      256         /* disks of a VM; RAM blocks of a VM */

/* Kinds of frames. The table in net/frame.c says, for each, the payload's bounds and which fields are
 * used. */
enum xm_frame_type {
    XM_FRAME_HELLO = 1, /* net's own: version, features, token */
    XM_FRAME_ABORT,     /* net's own: the reason, as text; ends the bundle on both sides */
    XM_FRAME_ACK,       /* net's own: a batch of {u32 id, u32 status} */
    XM_FRAME_REPLY,     /* net's own: answers one frame with bytes */
    XM_FRAME_PING,      /* net's own: keeps an idle link known to be alive */

    XM_FRAME_DISK_DATA = 16, /* object: disk; offset, payload; applied in the order of (seq, after) */
    /* offset, extent: reads as zeros afterwards; flag UNMAP: the space may be given back */
    XM_FRAME_DISK_ZERO,
    XM_FRAME_DISK_FLUSH,  /* everything applied so far is durable when this is answered */
    XM_FRAME_DISK_DIGEST, /* answered with struct xm_digest: what was applied so far */
    /* offset, extent: answered with 16 bytes, XXH3-128 of what is on the disk there */
    XM_FRAME_DISK_HASH,

    XM_FRAME_RAM_PAGES = 32, /* object: RAM block; payload: table of runs, then pages (memxfer) */
    XM_FRAME_RAM_DIGEST,     /* answered with struct xm_digest */

    /* QEMU's device state: bytes at `offset` of the stream; flag END on the last (may be empty) */
    XM_FRAME_STREAM = 48,
    XM_FRAME_CALL, /* shim to shim: payload is a JSON object; answered with one */
    XM_FRAME_TYPE_MAX
};

enum {
    XM_FLAG_UNMAP = 1,
    XM_FLAG_END = 2,
    XM_FLAG_BULK = 4,
    /* The frame's hash is that of the payload's head alone; the head says what the sink needs to judge the
     * rest. Only to a peer with XM_FEATURE_HEAD. */
    XM_FLAG_HEAD = 8
};

/* Optional features of a peer: what it can be sent. Bits of HELLO. */
#define XM_FEATURE_HEAD 1u /* XM_FLAG_HEAD, and RAM_PAGES answered with a REPLY */

/* 64 bytes on the wire, in this order. */
struct xm_frame_hdr {
    uint32_t magic;
    uint8_t type, flags;
    uint16_t object;
    uint32_t length; /* payload bytes behind the header */
    uint32_t id;     /* the link's own number of this frame; an answer names it */
    uint64_t offset; /* bytes in the object */
    /* bytes of the object concerned where there is no payload; REPLY: status in the low 32 bits */
    uint64_t extent;
    uint64_t seq;   /* counted per (type's class, object) from 1 by the sender of the object */
    uint64_t after; /* the frame that has to be applied before this one; 0: none */
    uint64_t hash;  /* XXH3-64 of the payload (XM_FLAG_HEAD: of its head), 0 without one */
    uint64_t check; /* XXH3-64 of the 56 bytes before */
};

/* Order-independent digest of what was sent and applied: each side adds up the same numbers for the same
 * frames, in whatever order they ended. Equal sums mean that what one side counts as sent is what the
 * other has applied. */
struct xm_digest {
    /* sum: of XXH3-64(type, object, offset, extent, seq, payload hash), modulo 2^64 */
    uint64_t frames, bytes, sum;
};
void xm_digest_add(struct xm_digest *, const struct xm_frame_hdr *);
bool xm_digest_equal(const struct xm_digest *, const struct xm_digest *);
uint64_t xm_hash(const void *, size_t); /* XXH3-64, the hash of all that goes over the wire; 0 for no bytes */

/* A message: owned by the bundle (or another transport) between submit and post. */
struct xm_msg {
    /* run() is set by the owner; called on `home`'s thread when the message has ended */
    struct xm_post post;
    struct xm_mailbox *home;
    uint8_t type, flags;
    bool urgent; /* goes before the bulk in the queue */
    uint16_t object;
    uint32_t length;
    const void *payload; /* not touched, not freed by the transport; must not change until it has ended */
    /* With XM_FLAG_HEAD: the last `apart` bytes of the payload's `length` lie in pieces elsewhere, and may
     * change while the message is under way: what arrives is what lies there at some moment until then. */
    const struct iovec *piece;
    unsigned pieces; /* at most XM_PIECES_MAX */
    uint32_t apart;
    /* NULL, or called once, on a link's thread, just before the payload is read for the first time: may
     * complete what is at `payload`. A message that is sent again is sent with the same head. */
    void (*complete)(struct xm_msg *);
    uint64_t offset, extent, seq, after;
    /* The answer: */
    int status;  /* 0: applied by the peer; -errno: refused by it, or never got there */
    void *reply; /* REPLY's bytes, malloc'ed, now the owner's; NULL with a plain ACK */
    uint32_t reply_len;
    uint64_t hash; /* of the payload or its head, as it was sent */
    /* The transport's own: */
    STAILQ_ENTRY(xm_msg) link;
    uint32_t wire_id;
    bool hashed;
};

/* What messages are submitted to. Implementations: the links; the simulator of the tests. */
struct xm_transport {
    void (*submit)(struct xm_transport *, struct xm_msg *); /* any thread */
    void *ctx;
    _Atomic uint32_t features; /* XM_FEATURE_*: of the other side, on each link that there was; 0 before */
};

/* The header that goes on the wire for a message (id is the link's; hash as computed). Also what digests
 * are made of. */
void xm_frame_of_msg(struct xm_frame_hdr *, const struct xm_msg *, uint32_t id, uint64_t hash);

/* A frame that has come in. The handler owns it until xm_rx_done, which it may call later and from any
 * thread. */
struct xm_rx {
    struct xm_frame_hdr hdr;
    /* hdr.length bytes (its head, where the rest was received in place), 4 KiB aligned, from the bundle's
     * pool; writable; NULL without one */
    void *payload;
    struct xm_post post; /* for the handler: to hand the frame on to an owner thread */
    void *owner;         /* for the handler */
    /* Private to the transport: */
    void (*done)(struct xm_rx *, int status, const void *reply, uint32_t reply_len);
    void (*cut)(struct xm_rx *);
    void *transport;
    uint32_t asked;    /* hdr.length as it came; hdr tells of the answer once there is one */
    uint32_t buffered; /* bytes of payload: less than hdr.length where the rest was received in place */
    bool is_cut;
    STAILQ_ENTRY(xm_rx) link;
    int32_t status;
    struct xm_rx *next_ack;
};
/* Answers the frame: status 0 or -errno, and bytes when the type is answered with some. Frees rx and its
 * payload. Must be called once for each frame, also after the link it came by has gone. Any thread. */
void xm_rx_done(struct xm_rx *, int status, const void *reply, uint32_t reply_len);

/* Payloads that are received where they stay, and not into a buffer: copied once, by the kernel. On link
 * threads, like all of a sink. The bytes are written before their hash is known, and a link may die in the
 * middle of them. */
#define XM_PIECES_MAX 256u
struct xm_placer {
    /* How many bytes of this frame's payload come into a buffer first (rx->payload), for place() to tell
     * from; as many as there are: all of it. NULL: always all of it. */
    uint32_t (*head)(void *ctx, const struct xm_frame_hdr *);
    /* The head is there. Fills in at most XM_PIECES_MAX pieces of memory, as long together as the rest,
     * and returns how many: the link writes there from now on until frame() or dropped(), or until
     * xm_rx_cut() has returned. 0: nobody wants the rest, it is received, hashed and thrown away. */
    unsigned (*place)(void *ctx, struct xm_rx *, struct iovec *piece);
    /* Instead of frame(), after place(): the link has ended before all of the frame had come, or its hash
     * was wrong; rx is freed afterwards. With XM_FLAG_HEAD the hash is judged before place(), and what has
     * been placed is the sink's to judge, in frame(). */
    void (*dropped)(void *ctx, struct xm_rx *);
    void *ctx;
};
/* Takes the place back, from another thread than the link's, before frame() or dropped() have returned: no
 * byte is written there any more. The rest is thrown away, and frame() comes all the same, with nothing of
 * the payload hashed. */
void xm_rx_cut(struct xm_rx *);

/* Who serves the peer's frames. Called on link threads, several at once; must not block for long. */
struct xm_sink {
    /* Judges a header before its payload is received: object exists, offset and extent lie in it, the type
     * is welcome now. 0, or -errno with a sentence: the whole bundle is aborted with it. */
    int (*check)(void *ctx, const struct xm_frame_hdr *, struct xm_error *);
    /* A whole frame, hash-checked unless it was cut (xm_rx_cut). Takes ownership. */
    void (*frame)(void *ctx, struct xm_rx *); /* NULL: this side only asks; a request is a violation */
    void *ctx;
    struct xm_placer placer; /* zeros: none */
};

enum xm_link_state { XM_LINK_UP, XM_LINK_DOWN };

struct xm_link_info {
    char name[64]; /* "10.1.0.1 -> 10.1.0.2" */
    enum xm_link_state state;
    uint64_t wire_tx, wire_rx; /* bytes incl. headers */
    uint64_t frames_tx, resent;
};

struct xm_links_opts {
    uint8_t token[XM_TOKEN_BYTES]; /* both sides must hold the same */
    struct xm_sink sink;
    size_t window_bytes;    /* unanswered payload per link; 0: 8 MiB */
    unsigned window_frames; /* unanswered frames per link; 0: 512 */
    /* ns without any link until messages fail; 0: at once. Before the first link they just wait */
    uint64_t link_timeout;
    uint64_t silence; /* ns without a sign of life until a link counts as failed; 0: 10 s */
    /* Called on a link thread when a link goes up or down (e: why), and once with link -1 when the bundle
     * is lost for good. */
    void (*event)(void *ctx, int link, enum xm_link_state, const struct xm_error *e);
    void *event_ctx;
};

struct xm_links;
struct xm_links *xm_links_new(const struct xm_links_opts *, struct xm_error *);
/* Adds a connected stream socket (owned from now on, also on failure): shakes hands (client speaks first;
 * at most 5 s), starts its thread. Returns the link's number or -errno: another version, another token, no
 * answer. Any thread. */
int xm_links_add(struct xm_links *, int fd, bool client, const char *name, struct xm_error *);
struct xm_transport *xm_links_transport(struct xm_links *);
int xm_links_up(struct xm_links *);                                      /* how many are up */
int xm_links_info(struct xm_links *, struct xm_link_info *out, int max); /* returns how many there are */
double xm_links_rate(struct xm_links *); /* payload bytes a second answered lately, all links */
/* limit of what is sent, all links together; 0: none */
void xm_links_set_rate(struct xm_links *, uint64_t bytes_per_s);
/* Whether the links' threads, present and future, give way to others (base/sched.h). A migration's bulk
 * shall not take the processors from the guests; what happens while the guest is stopped shall have them.
 * Not at first. */
void xm_links_set_background(struct xm_links *, bool background);
uint64_t xm_links_wire_bytes(struct xm_links *); /* sent and received so far */
/* payload bytes that no link has taken; the most there ever were */
uint64_t xm_links_queued(struct xm_links *, uint64_t *max);
/* Frames of the peer that the sink has and that are not answered yet. */
unsigned long xm_links_serving(struct xm_links *);
/* Tells the peer why (ABORT) and ends every message with -ECANCELED. Any thread, more than once. */
void xm_links_abort(struct xm_links *, const char *reason);
/* Why the bundle was lost (the peer's ABORT, a corrupt frame, time-out), or code 0. */
void xm_links_error(struct xm_links *, struct xm_error *out);
/* When it was the peer that ended it: its own words alone; else code 0. */
void xm_links_peer_said(struct xm_links *, struct xm_error *out);
/* Ends all messages, joins the threads, frees. Frames handed to the sink are all done by then (it waits),
 * so whoever keeps one for another that never came has to let go of it before (a disk's writer:
 * xm_writer_cancel). Not from a link thread. */
void xm_links_free(struct xm_links *);

/* Submits and waits for the answer: for owners without a mailbox of their own. Returns the status. reply
 * as in xm_msg. */
int xm_transport_call(struct xm_transport *, struct xm_msg *, uint64_t timeout_ns, struct xm_error *);
/* The same of several at once: the answers take one way there and back together. Each has its status and
 * reply; the first that is negative is returned, when all have ended or the time is over. */
#define XM_CALLS_MAX 40u
int xm_transport_calls(struct xm_transport *, struct xm_msg *, unsigned n, uint64_t timeout_ns,
                       struct xm_error *);
/* The same of one for as long as it takes, until over(ctx), asked several times a second, is true: then
 * -ECANCELED. */
int xm_transport_call_until(struct xm_transport *, struct xm_msg *, bool (*over)(void *), void *ctx,
                            struct xm_error *);

/* Connects to host:port from the local address (numeric), within timeout. Returns the socket or -errno. */
int xm_tcp_connect(const char *local, const char *remote, uint16_t port, uint64_t timeout_ns,
                   struct xm_error *);
int xm_tcp_listen(const char *address, uint16_t port, struct xm_error *);

#endif
