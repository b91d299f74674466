/* SPDX-License-Identifier: MIT */
/* agent/known.h: what a host knows of a VM: its durable record, and what its shim says. */
#ifndef XM_AGENT_KNOWN_H
#define XM_AGENT_KNOWN_H

#include "agent/agent.h"

#define ASK_NS  (15 * XM_NS_PER_S)
#define TELL_NS (3 * XM_NS_PER_S) /* for a sentence that somebody waits for */

/* By how much an operator's word puts our epoch above the one that we gave the VM away with, or have it with:
 * what others have made of it since, a move or a word at a time, stays below. Two, since two hosts that go by
 * one epoch may each be given a word. */
#define BY_WORD_GIVEN 1000
#define BY_WORD_MINE  2000

struct known {
    struct owner_record rec; /* owner NONE: no record */
    bool present;            /* it has a shim there, or is about to */
    bool qemu;               /* a QEMU of it is there, with a shim or without */
    bool hangs;              /* the shim lives and does not answer: it may be in the middle of anything */
    char role[16];           /* the shim's; "" without one, "?" when it does not answer */
    char step[16];           /* of the migration that it works on; "" without one */
    char state[16];
    char source[CONFIG_NAME_MAX + 1];
    char job[16]; /* that holds the VM there; "" without one */
    bool tells_job;
    /* With whom hand-offs of it are open there (vm/journal.h), so who may have taken it by a word. */
    char open[JOURNAL_OPEN_MAX + 1][CONFIG_NAME_MAX + 1];
    unsigned opens;
    bool tells_open; /* an older agent does not */
};

/* A record that cannot be read is an error, and nothing is known then. */
int known_here(struct agent *, const char *vm, struct known *, struct xm_error *);
/* -EBUSY: it has answered: at this moment it cannot say. -EREMOTEIO: it has answered, and does not say.
 * -EIO: no answer that makes sense. The error is needed. */
int known_there(struct agent *, const struct conf_peer *, const char *vm, struct known *, struct xm_error *);
/* Of what these return: it is there, and may have the VM: it cannot tell, now or at all. */
static inline bool known_answered(int r)
{
    return r == -EBUSY || r == -EREMOTEIO;
}
/* The same, of a peer that answers soon. */
int known_there_soon(struct agent *, const struct conf_peer *, const char *vm, struct known *,
                     struct xm_error *);
struct known_answer {
    int result; /* known_there_soon's */
    struct known there;
    struct xm_error error;
};
/* The same, of all peers at once (answer: CONFIG_MANY of them, in their order) but those in skip (likewise;
 * NULL: none), whose answers are not touched. */
void known_everywhere(struct agent *, const char *vm, const bool *skip, struct known_answer *answer);
/* What `host` has said, *k, is that it has given it on, with a later epoch than that: who has it by then, as
 * that one says itself, is put to both; but not `end`, nor this host. -EHOSTUNREACH, with a sentence: who was
 * given it cannot be asked. */
int known_follow(struct agent *, const char *vm, uint64_t epoch, const char *end,
                 char host[CONFIG_NAME_MAX + 1], struct known *k, struct xm_error *);
/* A hand-off with that host is open there, or whether one is is not told. */
bool known_open_with(const struct known *, const char *host);
/* Its shim works on the hand-off at this moment: what the record says may be another thing in a moment. */
bool known_busy(const struct known *);
/* Ours, loaded here, and its guest stands still though nobody has paused it. */
bool known_stands(const struct known *);
/* Its guest is there for good. A paused one is not let run by anything but its user. */
bool known_guest_there(const struct known *there);
/* third.c: what the hosts that had no part in this hand-off say, for settle.c: the answer, or NULL. giver:
 * what the one that gives it to us has said; NULL: the VM is taken on an operator's word, and `silent` names
 * those that did not answer. */
json_t *third_hosts(struct agent *, const char *vm, const struct known *here, const struct known *giver,
                    char *silent, size_t size);
/* settle.c: such a one is let run. The answer of `recover`. */
json_t *settle_let_run(struct agent *, const char *vm);

#endif
