/* SPDX-License-Identifier: MIT */
/* vm/verdict.h: what becomes of a VM whose hand-off was cut in the middle: decided by what both hosts durably
 * know, and by nothing else. Pure.
 *
 *   ours                          theirs                          verdict
 *   promised by A, n+1            mine (n or later)               DISCARD  A keeps it
 *                                 given to us, n+1                TAKE     it is ours; with nothing
 *                                                                          loaded, and A's QEMU whole, it is
 *                                                                          handed back (agent/settle.c)
 *                                 given to C, later               DISCARD  A has lived on
 *   given to B, n+1, not settled  mine, and it has run there      SETTLED  our copy may go
 *                                 mine, and it has not run yet    THEIRS   our copy stays
 *                                 given to us, later              BACK     B could not run it
 *                                 given to C, later               SETTLED
 *                                 promised, n+1                   TELL     B has to ask us first
 *   anything else                                                 DOUBT    nothing is changed */
#ifndef XM_VM_VERDICT_H
#define XM_VM_VERDICT_H

#include "vm/owner.h"

enum verdict {
    VERDICT_NOTHING, /* nothing is open here */
    VERDICT_TAKE,
    VERDICT_DISCARD,
    VERDICT_SETTLED,
    VERDICT_THEIRS,
    VERDICT_BACK,
    VERDICT_TELL,
    VERDICT_DOUBT,
};

/* Ours is open: its peer's record decides. */
bool verdict_open(const struct owner_record *ours);
/* Whom to ask. */
const char *verdict_peer(const struct owner_record *ours);
/* TAKE, BACK: *epoch is what our record has to say. DOUBT: `why` has a sentence. runs: the guest runs there
 * now. theirs->owner NONE: it has no record. */
enum verdict verdict_of(const char *self, const struct owner_record *ours, const struct owner_record *theirs,
                        bool runs, uint64_t *epoch, struct xm_error *why);

#endif
