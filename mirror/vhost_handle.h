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
    int which;
    struct guestmem *mem;
    struct dirtylog log;
    void *map;
    size_t map_len;
    uint8_t *at;
};

/* Runs fn on the engine's thread and waits for it. */
int vhost_on_engine(struct job *, int (*fn)(struct job *));
/* Returns when nothing of the ring (or DRAIN_ALL) is in flight. It must take nothing more. */
void vhost_drain(struct job *, int which);

enum answer { ANSWER_ACK, ANSWER_REPLY };
/* Does what the message says. Its payload becomes the reply's where there is one; *fd: to go with it. Control
 * thread. 0, or -errno with a sentence, and then the front end is hung up on. */
uint64_t vhost_protocol_features(void);
int vhost_handle(struct job *, enum answer *, int *fd);

#endif
