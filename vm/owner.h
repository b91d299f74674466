/* SPDX-License-Identifier: MIT */
/* vm/owner.h: who owns a VM, as this host durably knows (docs/design.md, «Ownership»). One small file per VM.
 * Rule: a host may run a VM only if its own record says that it owns the highest epoch it knows of.
 *
 * Two of these records are written while the VM is stopped (the source's «given», the destination's «mine»),
 * so how long that takes is downtime. Replacing a file atomically costs two commits of the file system's
 * journal, 3 to 12 ms here; overwriting a block that the file has already costs one flush of the disk, 0.2 to
 * 3 ms. So `owner.json` has two slots of 4 KiB, each one line of JSON with a number and a checksum, written
 * in turn: a torn write spoils the slot that was not valid yet, and the record is what it was. */
#ifndef XM_VM_OWNER_H
#define XM_VM_OWNER_H

#include "base/base.h"

/* PROMISED: a whole VM is here or about to be, and `from` may give it to us with this epoch at any moment:
 * what is here may be the only copy, and only the record of `from` says so. */
enum owner_side { OWNER_NONE, OWNER_MINE, OWNER_GIVEN, OWNER_PROMISED };

/* No VM comes to it: what a host says beyond is a lie, and one that would stay. A hand-off has one more, one
 * that is handed back two. */
#define OWNER_EPOCH_MAX (1ull << 48)

struct owner_record {
    uint64_t epoch; /* grows by one with each hand-off */
    enum owner_side owner;
    char to[64];   /* GIVEN: the host it was given to */
    char from[64]; /* MINE, PROMISED: the host it comes from; "" when it was started here */
    /* GIVEN: the other host has said that the guest runs there: our copy may go. MINE: the guest has been
     * seen to run here (or was started here): the copy that it came from may go. */
    bool settled;
};

/* dir: the VM's state directory, made when missing. Durable when it returns 0. After a failure the record may
 * be the old or the new one. One writer at a time. */
int owner_save(const char *dir, const char *vm, const struct owner_record *, struct xm_error *);
/* Makes the file when there is none, with no record in it: so that the first owner_save is as quick as the
 * others. */
int owner_prepare(const char *dir, struct xm_error *);
/* -ENOENT: no record (then there is no owner here). A file that cannot be read or understood is an error that
 * names it: then nothing is known, which is not the same as «not ours». */
int owner_load(const char *dir, const char *vm, struct owner_record *, struct xm_error *);
/* What owner_load has read before is durable when it returns 0: a writer that was killed has left it to the
 * kernel. For who acts on the record, or tells it to others. No record is 0. */
int owner_sync(const char *dir, struct xm_error *);
/* What was before a promise that came to nothing: `before`, or no record (NULL). Durable when it returns 0.
 */
int owner_restore(const char *dir, const char *vm, const struct owner_record *before, struct xm_error *);
bool owner_may_run(const struct owner_record *);
const char *owner_side_name(enum owner_side);
int owner_side_of(const char *name); /* -1: none of them */

#endif
