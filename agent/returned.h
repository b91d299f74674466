/* SPDX-License-Identifier: MIT */
/* agent/returned.h: a VM that is this host's by its record, and may be another's by now: this host was away,
 * an operator declared it dead (`recover --peer-is-dead` there), and the VM was taken over with a higher
 * epoch.
 *
 * Who can have done that is known: the other host of a hand-off that is not known to be over there. The
 * journal stays, and names it, until it has been asked (tidy.c); so a VM without a journal needs nobody's
 * word to be started. All the same all peers are asked then: what this host's record says may be of long ago,
 * as when its file system was put back to a snapshot. */
#ifndef XM_AGENT_RETURNED_H
#define XM_AGENT_RETURNED_H

#include "agent/agent.h"

enum returned {
    RETURNED_OURS,
    /* It was taken over, and this host has recorded that; the sentence says by whom. With EINPROGRESS: what
     * is left of it here has not ended yet, which is tried again. */
    RETURNED_THEIRS,
    /* Who may have taken it over does not answer (EHOSTUNREACH), or it is to be tried again; the sentence
     * says who, and what to do. */
    RETURNED_UNKNOWN,
};

/* Before a VM is started, and for `recover`; its record says that it is ours, or there is none. Waits for
 * peers. silent (CONFIG_MANY of them; may be NULL): every peer is asked, not only who may have taken it, but
 * those that did not answer before. UNKNOWN with EEXIST: one that had no part in it says that it owns the
 * VM; with EBUSY: it is to be tried again. */
enum returned returned_judge(struct agent *, const char *vm, bool *silent, struct xm_error *);
/* The VM is claimed (settle_claim). When nobody can have taken it, nor can any more, its journal ends. */
enum returned returned_judge_claimed(struct agent *, const char *vm, struct xm_error *);
/* The VM is claimed, and our record is `ours`, if not: UNKNOWN. Another host owns it with a higher epoch. */
enum returned returned_give_way(struct agent *, const char *vm, const struct owner_record *ours,
                                const char *owner, uint64_t epoch, struct xm_error *);
struct returned_word {
    char dead[400];   /* "hostb, hostc": about whom it is */
    char silent[200]; /* likewise: whom the VM may have gone on to, and cannot be asked */
};

/* The operator's word that who may have taken it, and does not answer, is gone for good: the VM, which runs
 * or does not, is ours with an epoch above all that such a host can have used, if it has not gone on to
 * another one. -ENOENT: there are none. */
int returned_by_word(struct agent *, const char *vm, struct returned_word *, struct xm_error *);

#endif
