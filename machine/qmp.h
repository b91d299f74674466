/* SPDX-License-Identifier: MIT */
/* machine/qmp.h: a QMP client (QEMU docs/interop/qmp-spec.txt). One connection; calls from any thread, one
 * at a time. */
#ifndef XM_MACHINE_QMP_H
#define XM_MACHINE_QMP_H

#include "base/base.h"

struct qmp {
    pthread_mutex_t lock; /* protects all below; held for the length of a call */
    struct xm_jsonl conn;
    uint64_t calls;          /* so many so far: each is told apart by its number */
    uint64_t told;           /* the number of the command whose answer nobody waits for */
    struct xm_error refused; /* what QEMU said against it */
    char version[32];        /* "7.2.22", by its greeting; set by qmp_open alone */
    /* Called for each event, with the lock held; data may be NULL. `when`: ns of CLOCK_REALTIME, QEMU's own
     * stamp. */
    void (*event)(void *ctx, const char *name, const json_t *data, uint64_t when);
    void *ctx;
};

/* Connects (retrying until the deadline while `alive` says that QEMU lives) and leaves negotiation mode. */
int qmp_open(struct qmp *, const char *path, uint64_t deadline, bool (*alive)(void *), void *alive_ctx,
             struct xm_error *);
void qmp_close(struct qmp *);
/* Runs a command. args: a reference that is taken, or NULL. Returns its "return" (a new reference), or NULL
 * with QEMU's words in e. Too late is -ETIMEDOUT in e; what QEMU still answers then is taken for no other
 * call's. */
json_t *qmp_call(struct qmp *, const char *command, json_t *args, uint64_t timeout_ns, struct xm_error *);
/* The same when only success matters. */
int qmp_do(struct qmp *, const char *command, json_t *args, uint64_t timeout_ns, struct xm_error *);
/* Sends a command whose answer nobody waits for, one at a time: what QEMU does about it is seen by its
 * events. What it says against it is in qmp_refusal as soon as it is heard (qmp_pump): 0, or -EIO with its
 * words. */
int qmp_tell(struct qmp *, const char *command, json_t *args, struct xm_error *);
int qmp_refusal(struct qmp *, struct xm_error *);
/* A stream to QEMU, for its migration: the URI fd:NAME leads to the other end of it. Descriptor or -errno. */
int qmp_make_stream(struct qmp *, const char *name, uint64_t timeout_ns, struct xm_error *);
/* Handles events that have come in, waiting at most timeout_ms for the first one. */
int qmp_pump(struct qmp *, int timeout_ms, struct xm_error *);

#endif
