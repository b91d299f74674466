/* SPDX-License-Identifier: MIT */
/* vm/journal.h: what a migration that is not over has made or will leave on this host, durably, so that
 * whoever comes after it (the next shim, the next agent, after a power cut) knows what to take away, and
 * only that. One file beside the owner record, vms/NAME/journal.json. One writer at a time.
 *
 * It outlives the migration as long as the other host may not know how that ended: who owns the VM by then
 * asks that host before it starts it again (agent/returned.h). When the VM sets out anew before that, the
 * earlier hand-offs are kept behind the new one.
 *
 * After a migration files of disks are deleted by three functions alone. Each asks the owner record, and
 * refuses where it is unreadable or does not say that the copy here is not needed; then each puts the files
 * on the list of what is to be deleted (vm/left.h), and the journal ends. They look at no storage but the
 * state directory, so that none of them hangs with an old datastore; journal_sweep at the one that has the
 * VM's disk, too. */
#ifndef XM_VM_JOURNAL_H
#define XM_VM_JOURNAL_H

#include "vm/owner.h"

enum journal_side { JOURNAL_NONE, JOURNAL_SOURCE, JOURNAL_DESTINATION, JOURNAL_STORAGE };

#define JOURNAL_OPEN_MAX 16

/* A hand-off of which the other host may not know how it ended. */
struct journal_open {
    enum journal_side side; /* what this host was in it: source or destination */
    uint64_t epoch;
    char peer[64];
};

struct journal {
    enum journal_side side;
    uint64_t epoch; /* that the VM is handed over with */
    char peer[64];
    bool planned;    /* its files are about to be made, and may not be there yet */
    bool had_record; /* destination, or one that gives way instead: `before` was the record when it began */
    struct owner_record before;
    /* Destination: the spec.json that stood there when it began, null without one; NULL: not said. */
    json_t *spec;
    /* source: files to delete once the VM has gone; destination: files made for it; storage-only: old and
     * new ones, of which those go that the specification does not name in the end. Each is its path, or an
     * object with that as "path", and which file it is (left_file). A new one has "was" and "datastore",
     * too: where the disk is before it moves there. */
    json_t *files;
    struct journal_open older[JOURNAL_OPEN_MAX]; /* earlier hand-offs, the latest first */
    unsigned olders;
};

/* before: destination, the record as it is, NULL without one. Durable when it returns 0. Source,
 * storage-only: open hand-offs that the journal has are kept; -EBUSY when there are too many. */
int journal_write(const char *dir, enum journal_side, uint64_t epoch, const char *peer,
                  const struct owner_record *before, const json_t *files, struct xm_error *);
/* Destination, storage-only, before the files are made: killed in between, what of them is there is deleted
 * as long as it holds nothing; a file with something in it is somebody else's, who was quicker.
 * journal_write follows when they are made. */
int journal_plan(const char *dir, enum journal_side, uint64_t epoch, const char *peer,
                 const struct owner_record *before, const json_t *files, struct xm_error *);
/* 0: filled, or side NONE when there is none. journal_free after success. */
int journal_read(const char *dir, struct journal *, struct xm_error *);
void journal_free(struct journal *);
const char *journal_path(const json_t *file); /* of one of its files; "": it is none */
/* The migration is over: forgets it, but not the hand-offs before it that are open; its files stay. */
int journal_end(const char *dir, struct xm_error *);
/* The VM is ours by its record: the hand-offs after which other hosts have to be asked before it is believed.
 * How many there are in `open`. */
unsigned journal_asks(const struct journal *, const struct owner_record *,
                      struct journal_open open[JOURNAL_OPEN_MAX + 1]);
/* That host knows how they ended, or is gone for good: its hand-offs up to this epoch are not open any
 * more. One that has begun since is another one: its word about the last may come late. */
int journal_close(const char *dir, const char *peer, uint64_t upto, struct xm_error *);

/* Storage-only was cut, or ended without knowing what spec.json says: when that names a file that the disk
 * did not move into after all (an empty one is in its place), it is made to name the one that the disk is
 * in. No shim of the VM is there, which would be the one to write it. Without such: nothing to do. */
int journal_mend(const char *dir, struct xm_error *);

/* Destination: the migration came to nothing. Deletes the files that were made for it, then what the
 * directory holds of this VM unless there is a record of an earlier stay; beside that stands the definition
 * of that stay again. -EBUSY: the record says that the VM may be ours; nothing is deleted. Without a
 * journal: nothing to do. */
int journal_undo(const char *dir, const char *vm, struct xm_error *);
/* Source: the VM runs elsewhere. Deletes the files named. -EBUSY: the record does not say that it has gone
 * and was seen to run there. */
int journal_settle(const char *dir, const char *vm, struct xm_error *);
/* Storage-only has ended, or was cut: deletes the files named that spec.json does not name as a disk's, once
 * that is durable. -EBUSY: the record does not say that the VM is ours. -ENOENT: a file that it names is not
 * there, or not the disk (journal_mend). */
int journal_sweep(const char *dir, const char *vm, struct xm_error *);

#endif
