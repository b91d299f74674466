/* SPDX-License-Identifier: MIT */
/* vm/journal.h: what a migration that is not over has made or will leave on this host, durably, so that
 * whoever comes after it (the next shim, the next agent, after a power cut) knows what to take away, and
 * only that. One file beside the owner record, vms/NAME/journal.json. One writer at a time.
 *
 * These are the only functions that delete a disk after a migration. Each asks the owner record, and refuses
 * where it is unreadable or does not say that the copy here is not needed. */
#ifndef XM_VM_JOURNAL_H
#define XM_VM_JOURNAL_H

#include "vm/owner.h"

enum journal_side { JOURNAL_NONE, JOURNAL_SOURCE, JOURNAL_DESTINATION, JOURNAL_STORAGE };

struct journal {
    enum journal_side side;
    uint64_t epoch; /* that the VM is handed over with */
    char peer[64];
    bool planned;    /* destination: its files are about to be made, and may not be there yet */
    bool had_record; /* destination: `before` was the record when it began */
    struct owner_record before;
    /* source: paths to delete once the VM has gone; destination: paths made for it; storage-only: old and new
     * paths, of which those go that the specification does not name in the end */
    json_t *files;
};

/* before: destination, the record as it is, NULL without one. Durable when it returns 0. */
int journal_write(const char *dir, enum journal_side, uint64_t epoch, const char *peer,
                  const struct owner_record *before, const json_t *files, struct xm_error *);
/* Destination, before the files are made: killed in between, what of them is there is deleted as long as it
 * holds nothing; a file with something in it is somebody else's, who was quicker. journal_write follows when
 * they are made. */
int journal_plan(const char *dir, uint64_t epoch, const char *peer, const struct owner_record *before,
                 const json_t *files, struct xm_error *);
/* 0: filled, or side NONE when there is none. journal_free after success. */
int journal_read(const char *dir, struct journal *, struct xm_error *);
void journal_free(struct journal *);
int journal_end(const char *dir, struct xm_error *); /* forgets it; its files stay */

/* Destination: the migration came to nothing. Deletes the files that were made for it, then what the
 * directory holds of this VM unless there is a record of an earlier stay. -EBUSY: the record says that the
 * VM may be ours; nothing is deleted. Without a journal: nothing to do. */
int journal_undo(const char *dir, const char *vm, struct xm_error *);
/* Source: the VM runs elsewhere. Deletes the files named. -EBUSY: the record does not say that it has gone
 * and was seen to run there. */
int journal_settle(const char *dir, const char *vm, struct xm_error *);
/* Storage-only has ended, or was cut: deletes the files named that spec.json does not name as a disk's.
 * -EBUSY: the record does not say that the VM is ours. */
int journal_sweep(const char *dir, const char *vm, struct xm_error *);

#endif
