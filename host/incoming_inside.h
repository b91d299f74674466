/* host/incoming_inside.h: the inside of an incoming migration, shared by incoming.c (its life),
 * incoming_frames.c (what goes to disks, RAM and QEMU without passing its thread) and incoming_calls.c (the
 * source's calls, and the hand-off). */
#ifndef XM_HOST_INCOMING_INSIDE_H
#define XM_HOST_INCOMING_INSIDE_H

#include "host/handoff.h"
#include "host/incoming.h"
#include "host/stream.h"

enum in_state { IN_WAITING, IN_COPYING, IN_LOADING, IN_PROMISED, IN_UNDECIDED, IN_RUNNING, IN_FAILED };

struct incoming {
    struct shim *shim;
    pthread_t thread;
    bool started;
    struct xm_mailbox mailbox;
    char source[64], job[32];
    uint8_t token[XM_TOKEN_BYTES];
    _Atomic enum in_state state; /* set by its thread; any thread reads */
    bool storage;
    struct xm_links *links;
    struct xm_ramsink *ramsink;
    struct stream *stream;
    uint64_t began, ran;
    uint64_t epoch;         /* that the source will give it with */
    struct handoff handoff; /* its thread */
    bool announced;
    _Atomic bool stop;    /* main */
    pthread_mutex_t lock; /* protects failure, closed, stream */
    bool closed;          /* no more frames are handed on */
    struct xm_error failure;
    char qemu_status[32];
};

void incoming_set_state(struct incoming *, enum in_state);
const char *incoming_state_name(const struct incoming *);
/* The VM stays with its source, or this side cannot go on: state IN_FAILED, and the shim ends. */
void incoming_end(struct incoming *);

/* incoming_frames.c: for struct xm_sink, ctx is the incoming. */
int incoming_check_frame(void *ctx, const struct xm_frame_hdr *, struct xm_error *);
void incoming_take_frame(void *ctx, struct xm_rx *);

/* incoming_calls.c, on the incoming's thread. */
void incoming_call(struct xm_post *); /* a CALL frame's post */
/* The source's record says whose the VM is: for one that is undecided. */
int incoming_decide_here(struct incoming *, bool mine, struct xm_error *);

#endif
