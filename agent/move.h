/* SPDX-License-Identifier: MIT */
/* agent/move.h: a move that this host's agent has been asked for, from the request to the shim. */
#ifndef XM_AGENT_MOVE_H
#define XM_AGENT_MOVE_H

#include "agent/agent.h"

struct probe {
    char *path; /* a file of ours beside a disk; NULL: none */
};

struct move {
    struct agent *agent;
    char vm[VM_NAME_MAX + 1];
    char host[CONFIG_NAME_MAX + 1]; /* destination; this host with `local` */
    char datastore[CONFIG_NAME_MAX + 1];
    bool only_stored;             /* `local`: disks outside any datastore stay where they are */
    const struct conf_peer *peer; /* NULL with `local` */
    bool storage, local;
    bool nothing; /* `local`: all disks are there already */
    bool held;    /* vm->job is this move's */
    bool counted; /* in agent->pending */
    json_t *options;
    json_t *notes; /* sentences for who asks, from here and the destination; the caller's, or NULL */
    json_t *disks; /* `local`: [{name, path}] */
    struct vm_spec spec;
    char qemu[32];     /* version of the QEMU that runs it, by its shim; "": not known */
    uint64_t firmware; /* bytes of the firmware that the guest has as ROM; 0: none is named, or not known */
    uint64_t epoch;
    struct probe probe[VM_DISKS_MAX];
    struct job *job;
};

/* ---- move.c ---- */

void move_free(struct move *);
void move_let_go(struct move *); /* of the VM, unless a job holds it */
/* Reads, checks, and (unless only_check) begins what the request asks for. The job, with a reference for the
 * caller; or NULL with the refusal in *no; or NULL in both: there is nothing against it and only_check was
 * set, or nothing has to be moved, and then *nothing (if asked for) is the event «done» to tell of it.
 * notes (may be NULL): gets sentences that speak against nothing. */
struct job *move_begin(struct agent *, const json_t *request, bool only_check, json_t *notes,
                       json_t **nothing, json_t **no);

/* ---- reasons.c ---- */

json_t *move_reasons(struct move *); /* all that speaks against it; an empty array: nothing */
void move_count_off(struct move *);  /* it has a job now, or will have none; under the lock */
/* The request `verb` (peer.check, peer.prepare) to the destination, with fresh probes; job "" without one. */
json_t *move_peer_request(struct move *, const char *verb, const char *job);

/* ---- launch.c ---- */

/* The VM is held, nothing is against it. The job, or NULL with the refusal. Takes the move over. */
struct job *move_start(struct move *, json_t **no);

#endif
