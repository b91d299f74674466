/* SPDX-License-Identifier: MIT */
/* net/frame.h: what a frame looks like on the wire. Private to net. */
#ifndef NET_FRAME_H
#define NET_FRAME_H

#include "net/net.h"

#define FRAME_HDR   ((size_t)64)
#define ACKS_MAX    512u /* answers in one ACK frame */
#define ABORT_MAX   480u /* bytes of an ABORT's text */
#define HELLO_BYTES 64u
#define HELLO_MAX   512u /* a later version may say more in its HELLO; what we do not know of it is skipped */

/* Which header fields a kind of frame uses; the others are zero on the wire. */
enum { USES_OBJECT = 1, USES_ID = 2, USES_OFFSET = 4, USES_EXTENT = 8, USES_SEQ = 16, USES_AFTER = 32 };

struct frame_kind {
    const char *name;
    uint32_t min, max, unit; /* payload bytes, and what their number is a multiple of */
    unsigned uses;
    uint8_t flags;      /* allowed */
    bool request;       /* goes to the sink and is answered */
    uint32_t reply_max; /* bytes that may come with its answer; 0: an ACK alone */
};

/* NULL: no such type. */
const struct frame_kind *frame_kind(uint8_t type);
/* Makes the 64 bytes of the wire, with their checksum. */
void frame_encode(uint8_t wire[static 64], const struct xm_frame_hdr *);
/* The one place where a header is judged before anything acts on it. 0, -EBADMSG (no frame, or damaged on the
 * way) or -EPROTO (whole, but not what this protocol allows). */
int frame_decode(struct xm_frame_hdr *, const uint8_t wire[static 64], struct xm_error *);
uint64_t frame_hash(const void *payload, size_t len); /* 0 for no bytes */
/* The same in parts: reset, add each part in order, end. */
struct frame_hasher;
struct frame_hasher *frame_hasher_new(void); /* NULL: no memory */
void frame_hasher_reset(struct frame_hasher *);
void frame_hasher_add(struct frame_hasher *, const void *part, size_t len);
uint64_t frame_hasher_end(const struct frame_hasher *);
void frame_hasher_free(struct frame_hasher *);
/* Whether a message can be sent at all: 0 or -EINVAL. */
int frame_judge_msg(const struct xm_msg *);

#endif
