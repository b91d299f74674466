/* SPDX-License-Identifier: MIT */
/* vm/handoff.h: handing a VM over from one host to another so that never two run it, and it can
 * always be found out who may.
 *
 * A pure state machine: no I/O, no clock, no threads. Each side of a migration has one `struct
 * handoff`; whoever drives it (the shim) puts events in, does the actions that come out, and puts their
 * results in as events. docs/design.md, «Ownership», has the rule that it keeps.
 *
 * The protocol. A owns epoch n and has stopped the VM; B has everything loaded and waits.
 *
 *      A                                   B
 *      record {given to B, n+1}
 *                  ── RUN n+1 ──>
 *                                          record {mine, n+1}
 *                                          runs the VM
 *                  <── RUN-ACK n+1 ──
 *      record {given to B, n+1, settled}
 *      destroys its copy
 *
 * What fails, and what becomes of it:
 * - A's migration fails or is aborted before: A resumes and says ANSWER {mine}; B discards.
 * - A dies before its record is durable: the record says mine. Restarted, A runs the VM; asked by B, it
 *   says so; B discards.
 * - A cannot write its record: it may be durable all the same, so A writes {mine, n+2} over it before
 *   it resumes, and stays stopped as long as that fails, too. Nothing was sent.
 * - A dies after its record, or RUN is lost: the VM is B's. A tells B again when it can; B asks when it
 *   can (ASK); A's record decides.
 * - B never ran it and cannot (its VMM has ended): it hands back. It writes {given to A, n+2} and says
 *   RUN n+2. A, whose copy is whole since it keeps it until RUN-ACK, writes {mine, n+2}, resumes,
 *   acknowledges.
 * - B has discarded its copy and hears RUN all the same (messages of an older migration had misled it):
 *   it never takes what it does not have, but hands back at once, in the same way.
 * - B dies after its record: the VM is B's, whether it ran or not. Restarted, B runs it (from disk, if
 *   the VMM has gone).
 * - RUN-ACK is lost: A tells again, B acknowledges again. A destroys its copy only then, and only once it has
 *   recorded that it may: restarted in between it asks again, or goes on destroying.
 * - Before B says that it has loaded everything it records {promised by A, n+1}. From then on B discards
 *   nothing before A's record is known, however often it is restarted; and A never takes a B without any record
 *   for one that was not given the VM.
 *
 * How to drive it:
 * - Source: handoff_start(HANDOFF_SOURCE) with the own record, at any time before the hand-off.
 *   HANDOFF_WANT when the VM is stopped, disks and RAM are flushed and compared, the device state is
 *   sent and B has answered that all is loaded. HANDOFF_ABORT when the migration ends before that (the
 *   VM may be stopped or running).
 * - Destination: handoff_start(HANDOFF_DESTINATION) with the own record, or NULL, before it answers
 *   that all is loaded. Until then it may discard the incoming VM without asking anybody, as the source
 *   cannot want yet. From then on only the actions say what becomes of it.
 * - Both: handoff_message for each message of the peer. HANDOFF_RETRY when the connection to the peer
 *   is there again after a loss, every few seconds while handoff_open() (at the destination only after
 *   a loss, or a write that failed: while it waits, RETRY asks the source, which then ends the migration),
 *   and when an operator says `recover`.
 * - After a restart of the driver: handoff_start with restarted = true and the record as owner_load
 *   finds it; HANDOFF_EMPTY as the role where the copy (the disks) had been destroyed or discarded
 *   already.
 * - handoff_drive does the actions with the driver's hands. `save`: owner_save. `run`: HANDOFF_DID_NOT only
 *   when it is certain that the guest has executed nothing (`cont` was never sent, or answered by an error); in
 *   doubt it counts as run, and the source is told nothing. `send`: one that fails is as good as lost. What else
 *   is to be done stands in struct handoff_done; `resume`: as well as can be, nothing is reported.
 * - Never run, resume, destroy or discard but by these.
 *
 * tests/unit/vm_handoff.c runs both sides through every order of messages, losses, crashes and failed
 * writes.
 */
#ifndef XM_VM_HANDOFF_H
#define XM_VM_HANDOFF_H

#include "vm/owner.h"

enum handoff_role { HANDOFF_SOURCE, HANDOFF_DESTINATION, HANDOFF_EMPTY };

enum handoff_state {
    HANDOFF_OWNER,    /* our record says mine; the VM runs here, or is stopped for the switch */
    HANDOFF_GIVING,   /* «given» is being written; the VM is stopped from here on */
    HANDOFF_GIVEN,    /* «given» is durable; the peer is told until it has acknowledged */
    HANDOFF_UNDOING,  /* «given» failed: «mine» with a higher epoch is being written */
    HANDOFF_SETTLING, /* the peer runs it; that is being written, and then our copy is destroyed */
    HANDOFF_GONE,     /* our copy is destroyed: the end */
    HANDOFF_WAITING,  /* destination: not ours yet */
    HANDOFF_TAKING,   /* «mine» is being written */
    HANDOFF_STARTING, /* destination: «mine» is durable, the VM is about to run, or may run: nobody has seen it */
    HANDOFF_DISCARDED, /* destination: the source keeps the VM, our copy is discarded: the end */
    HANDOFF_STATES
};

enum handoff_event {
    HANDOFF_WANT,
    HANDOFF_ABORT,
    HANDOFF_WRITTEN,
    HANDOFF_WRITE_FAILED,
    HANDOFF_RAN,
    HANDOFF_CANNOT_RUN,
    HANDOFF_RETRY,
};

enum handoff_msg_type { HANDOFF_MSG_RUN, HANDOFF_MSG_RUN_ACK, HANDOFF_MSG_ASK, HANDOFF_MSG_ANSWER };

struct handoff_msg {
    enum handoff_msg_type type;
    uint64_t epoch;        /* all but ASK */
    enum owner_side owner; /* ANSWER: as the sender's record says it */
    char to[64];           /* ANSWER, owner given */
};

struct handoff_actions {
    bool write; /* make `record` durable */
    struct owner_record record;
    bool run;    /* destination: let the incoming VM run */
    bool resume; /* the VM is ours: see that it runs, from where it was stopped, or from its disks when it has
                    gone */
    bool destroy; /* source: end the stopped VMM, delete the disks (unless they are to be kept) */
    bool discard; /* destination: end the incoming VMM, delete what was made for the migration */
    bool send;    /* send `msg` to the peer */
    struct handoff_msg msg;
};

struct handoff {
    enum handoff_state state;
    bool destination;
    bool over;   /* OWNER: this migration does not hand over any more */
    bool failed; /* the last write failed: RETRY writes again */
    char self[64], peer[64];
    struct owner_record record; /* ours, as last known to be durable; owner none, epoch 0: none */
    struct owner_record next;   /* being written */
};

/* record: ours, NULL when there is none. 0, or -errno with a sentence: a source that does not own the VM, a
 * destination that does. */
int handoff_start(struct handoff *, enum handoff_role, bool restarted, const char *self, const char *peer,
                  const struct owner_record *record, struct handoff_actions *, struct xm_error *);
/* Destination, while it waits: `record` (owner PROMISED) is durable. */
void handoff_promised(struct handoff *, const struct owner_record *);
/* What a driver can do; ctx is its own. */
enum handoff_ran { HANDOFF_DID_RUN, HANDOFF_PERHAPS, HANDOFF_DID_NOT };
struct handoff_hands {
    int (*save)(void *ctx, const struct owner_record *);
    enum handoff_ran (*run)(void *ctx); /* destination */
    /* True: *answer is what the peer has said to it. */
    bool (*send)(void *ctx, const struct handoff_msg *, struct handoff_msg *answer);
};
/* What has come out, for the driver to do when handoff_drive has returned. */
struct handoff_done {
    bool resume, destroy, discard;
};
/* Does the actions, and what follows from them, until nothing does. Adds to *done. */
void handoff_drive(struct handoff *, struct handoff_actions, const struct handoff_hands *, void *ctx,
                   struct handoff_done *done);

/* 0, or -ECANCELED: WANT after the migration is over; -EPROTO: the event makes no sense in this state. No
 * actions then. */
int handoff_event(struct handoff *, enum handoff_event, struct handoff_actions *);
/* A message of the peer. What makes no sense (any more) is ignored. */
void handoff_message(struct handoff *, const struct handoff_msg *, struct handoff_actions *);
/* Something is still to be done by RETRY or by the peer: a record to write, a peer to convince, an answer to
 * get. */
bool handoff_open(const struct handoff *);
const char *handoff_state_name(enum handoff_state);

/* {"handoff":"run","epoch":5}; unpack: 0 or -EPROTO with a sentence. */
json_t *handoff_msg_pack(const struct handoff_msg *);
int handoff_msg_unpack(struct handoff_msg *, const json_t *, struct xm_error *);

#endif
