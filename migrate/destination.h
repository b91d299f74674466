/* SPDX-License-Identifier: MIT */
/* migrate/destination.h: a migration as the destination lives it: destination.c (its life),
 * destination_links.c (links that come), destination_frames.c (what goes to disks, RAM and QEMU without
 * passing its thread) and destination_calls.c (the source's calls, and the hand-off). */
#ifndef XM_MIGRATE_DESTINATION_H
#define XM_MIGRATE_DESTINATION_H

#include "migrate/migrate.h"
#include "migrate/space.h"
#include "migrate/stream.h"

enum dest_state {
    DEST_WAITING,
    DEST_COPYING,
    DEST_LOADING,
    DEST_PROMISED,
    DEST_UNDECIDED,
    DEST_RUNNING,
    DEST_FAILED,
    DEST_STATES
};

struct destination {
    struct machine *machine;
    pthread_t thread;
    bool started;
    struct xm_post over; /* to the main thread, once; then `how` */
    migrate_ended *ended;
    enum migrate_end how;
    struct xm_mailbox mailbox;
    char source[64], job[32];
    uint8_t token[XM_TOKEN_BYTES];
    _Atomic enum dest_state state; /* set by its thread; any thread reads */
    bool storage;
    struct space space; /* of its datastore */
    struct xm_links *links;
    LIST_HEAD(, coming) coming;       /* main: links that shake hands */
    struct xm_log_limit links_failed; /* any thread */
    /* The source has asked for a digest: all of its guest is here, as it was when it was stopped. What comes
     * after that is of a guest that goes on there, and device state that was loaded here does not fit to it;
     * link threads. */
    atomic_bool sealed;
    /* Switch-overs that the source has given up, to try again. What comes of one of these has its number. */
    _Atomic uint64_t attempt;
    _Atomic uint64_t next;  /* the one that it has asked for; any thread */
    _Atomic uint64_t heard; /* xm_now() when the source last sent a request; any thread */
    uint64_t silence;       /* ns that it may send none */
    struct xm_ramsink *ramsink;
    struct xm_warm warm; /* how far QEMU's page tables are */
    struct stream *stream;
    uint64_t began, ran, retried;
    uint64_t epoch;  /* that the source will give it with */
    bool had_record; /* `before` was durable here */
    struct owner_record before;
    bool promised;          /* the record says so */
    struct handoff handoff; /* its thread */
    struct {                /* likewise: the last call, of which a second copy may come by another link */
        uint64_t seq;
        char *text; /* malloc'ed: the answer */
    } answered;
    bool paused; /* its guest was when it left, and stays so */
    bool announced;
    _Atomic bool stop;    /* main */
    pthread_mutex_t lock; /* protects failure, closed, stream, and attempt and sealed together */
    bool closed;          /* no more frames are handed on */
    struct xm_error failure;
    char qemu_status[32];
};

/* The only one that changes it. -EPROTO with a sentence: no such way; the state stays. */
int destination_set_state(struct destination *, enum dest_state, struct xm_error *);
const char *destination_state_name(const struct destination *);
/* QEMU's page tables, for at most so long. True: there is more to do. */
bool destination_warm(struct destination *, uint64_t ns);
/* The VM stays with its source, or this side cannot go on: state DEST_FAILED, and the shim ends. */
void destination_end(struct destination *);

/* destination_links.c; main thread. None shakes hands after it. */
void destination_links_end(struct destination *);

/* destination_frames.c: for struct xm_sink, ctx is the destination. */
int destination_check_frame(void *ctx, const struct xm_frame_hdr *, struct xm_error *);
void destination_take_frame(void *ctx, struct xm_rx *);

/* destination_calls.c, on the destination's thread. */
void destination_call(struct xm_post *); /* a CALL frame's post */
/* destination_again.c, on the destination's thread */
/* The source keeps the VM: what was promised is so no more, durably. Nothing to do is fine, too. */
int destination_take_back(struct destination *, struct xm_error *);
/* The source gives its switch-over up, and will try another one. Answered before the second half, for which
 * its guest does not wait: a QEMU that can load a VM. */
int destination_again(struct destination *, struct xm_error *);
int destination_late(struct destination *, const json_t *call, struct xm_error *); /* late_frames.c */
void destination_wait_anew(struct destination *);
void destination_gives_way(struct destination *, bool yes); /* its links and disks, to guests that run here */
/* A record that could not be written is written now, if it can be: what it says is decided. */
void destination_retry(struct destination *);
/* The source's record says whose the VM is: for one that is undecided. */
int destination_decide_here(struct destination *, bool mine, struct xm_error *);

#endif
