/* SPDX-License-Identifier: MIT */
/* mirror/vhost_handle.h: what each vhost-user message does, and the way from the control thread to the
 * engine's. */
#ifndef XM_MIRROR_VHOST_HANDLE_H
#define XM_MIRROR_VHOST_HANDLE_H

#include "mirror/vhost_ring.h"

/* One message on its way through: the handler on the engine's thread reads it, may change it into its reply,
 * and leaves its verdict. */
struct job {
    struct xm_vhost *dev;
    struct vu_msg *msg;
    int (*fn)(struct job *);
    int ret;
    struct xm_error *e;
    /* For some: */
    int which; /* vhost_drained */
    int (*before)(struct job *), (*after)(struct job *);
    bool waits;
    struct gathered *gathered;
    struct guestmem *mem;
    struct dirtylog log;
    void *map;
    size_t map_len;
    uint8_t *at;
};

/* Runs fn on the engine's thread and waits for it. */
int vhost_on_engine(struct job *, int (*fn)(struct job *));
/* Runs `before` there, which has the ring (or all: DRAIN_ALL) take nothing more; waits until nothing of it is
 * in flight, and runs `after` there: in one go where nothing is. The first that fails is the last. */
int vhost_drained(struct job *, int which, int (*before)(struct job *), int (*after)(struct job *));

enum answer { ANSWER_ACK, ANSWER_REPLY };
/* All of them on the control thread, with a message that is well formed (vhost_msg_check). 0, or -errno with
 * a sentence, and then the front end is hung up on. */
/* Does what the message says. Its payload becomes the reply's where there is one; *fd: to go with it. */
int vhost_handle(struct job *, enum answer *, int *fd);
/* Of a request that is done by one function on the engine's thread, and has no reply: that function, which
 * may be run when vhost_ready has said 0. Else NULL. */
int (*vhost_simple(uint32_t request))(struct job *);
int vhost_ready(struct job *);
uint64_t vhost_protocol_features(void);

#endif
