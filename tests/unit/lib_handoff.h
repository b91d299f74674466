/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_handoff.h: two hosts with the hand-off's machine (vm/handoff.h), a lossy channel between
 * them, disks that are durable when they say so. What can happen next is numbered: who walks it chooses. */
#ifndef TESTS_LIB_HANDOFF_H
#define TESTS_LIB_HANDOFF_H

#include "vm/handoff.h"

enum vm { VM_NONE, VM_STOPPED, VM_RUNNING };

struct node {
    struct handoff h;
    bool up;
    struct owner_record disk;    /* what is durable */
    struct owner_record before;  /* what was durable before the promise */
    struct owner_record pending; /* being written */
    bool writing, reached;       /* reached: the write has reached the disk, but that is not reported yet */
    enum vm vm;
    bool starting, executed; /* asked to run; it did, and that is not reported yet */
    bool copy;               /* has the disks */
    bool current;            /* its copy holds all that the guest has ever done */
};

#define CHANNEL 2
struct world {
    struct node n[2];
    struct handoff_msg channel[2][CHANNEL]; /* to node 0, to node 1 */
    uint8_t count[2];
    uint8_t crashes, duplicates, write_failures; /* left */
};

/* Rules that can be broken. */
enum sin {
    NO_SIN,
    SEND_BEFORE_RECORD,
    RUN_BEFORE_RECORD,
    RESUME_AFTER_SILENCE,
    RESUME_AFTER_FAILED_WRITE,
    ACKNOWLEDGE_BEFORE_RUN,
    DENY_HAVING_RUN,
    REPORT_BEFORE_DURABLE,
    DESTROY_BEFORE_SETTLED,
    SINS
};
extern enum sin sin_committed;

extern char violation[200]; /* the first that was found; "": none */

/* All that was ever sent, to node 0 and to node 1, for messages that come much too late. */
#define HISTORY 64
extern struct handoff_msg history[2][HISTORY];
extern unsigned sent[2];
extern bool on_record; /* what happens does happen, and is not only looked at */

struct world world_new(void);                   /* the VM runs at node 0, and a migration to node 1 begins */
void world_migrate(struct world *, int source); /* the next one begins */
/* Does the step number `step` in world *w, if there are so many that can be done now; NULL: there are not. */
const char *world_step(struct world *w, unsigned step);
void world_perform(struct world *, int node, const struct handoff_actions *);
/* Must always hold. What does not is kept in `violation`. */
void world_check(const struct world *);
/* No more faults: everybody is up, writes succeed, messages arrive in order, and what is open is tried again.
 * Then it must hold what world_check_recovered asks. */
void world_recover(struct world *);
void world_check_recovered(const struct world *);

#endif
