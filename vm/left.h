/* SPDX-License-Identifier: MIT */
/* vm/left.h: files that are to be deleted: what a VM has left behind by moving, and what a migration made in
 * vain. Each stands in a small file of its own, `left/VM:NAME-HASH.json` beside `vms/` in the state
 * directory, from when the owner record says that nobody needs it (vm/journal.h) until it is gone. Storage
 * that hangs or has become read-only so holds up no migration, no VM and no other file, and nothing is
 * forgotten because of it. An operator who wants one forgotten removes its file there.
 *
 * Anybody who holds the VM adds; who deletes is the agent alone (agent/left.c). They write no file of each
 * other's. */
#ifndef XM_VM_LEFT_H
#define XM_VM_LEFT_H

#include "base/base.h"

/* A file as a journal names it: its path, and which one it is, so that no other one that is at that path by
 * then is deleted in its place. fd: it, open, whose storage is asked; -1: not known. A new reference. */
json_t *left_file(const char *path, int fd);
/* dir: the VM's, vms/NAME of the state directory. files: as a journal has them. planned: they were about to
 * be made, and may not be there; one with something in it is somebody else's. Durable when it returns 0.
 * What lies in `dir` itself is deleted at once: the next migration needs its name. */
int left_add(const char *dir, const char *vm, const json_t *files, bool planned, struct xm_error *);
/* The directory of them, of this VM's directory; malloc'ed. */
char *left_dir(const char *dir);

/* Is the path used again? 0: no; 1: yes, and it is not ours to delete any more; -errno with a sentence: that
 * is not known now. Asked with the file locked, so that no process opens it as a disk from then on, or when
 * another one has it open as a disk. */
typedef int left_used(void *ctx, const char *path, struct xm_error *);

/* entry: one file of that directory. 0: what it names is gone, or used again, and the entry with it. Else it
 * stays: -EBUSY: a process has it open as a disk; -ENODEV: there is nothing at all where it was, so that is
 * not mounted; … used may be NULL: nobody. */
int left_delete(const char *entry, left_used *used, void *ctx, struct xm_error *);

#endif
