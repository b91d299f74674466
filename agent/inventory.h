/* SPDX-License-Identifier: MIT */
/* agent/inventory.h: the VMs that this host owns, running or not. It is the state directory:
 *
 *   vms/NAME/spec.json   what the VM is, and where each of its disks is. Written by who defines it, by the
 *                        shim when a disk has moved, by the destination before it takes a VM over
 *   vms/NAME/owner.json  whose it is (vm/owner.h): with «mine» it is in the inventory; what may be ours is
 *                        listed, and its files are nobody else's
 *   vms/NAME/life.json   since when it runs, or why it has ended (vm/life.h)
 *   epochs.json          the last epoch of each name that was undefined: a VM of that name begins above it,
 *                        else a host that remembers the old one would take the new one for older
 *
 * Nothing here is kept in memory: what is asked is read. Without agent.lock, all of it.
 *
 * Invariants:
 * - A disk's file is made by `define` and by the first start of a definition, and never again: a file that
 *   the inventory names and that is not there is a refusal that says so.
 * - Two definitions never name the same file. */
#ifndef XM_INVENTORY_H
#define XM_INVENTORY_H

#include "agent/agent.h"

struct inventory_vm {
    char name[VM_NAME_MAX + 1];
    struct owner_record rec;
    struct vm_life life;
    json_t *spec;           /* NULL: it cannot be read, `damage` says why */
    struct xm_error damage; /* of the record or the spec */
};

/* 0, or -ENOENT: this host has no record of it. A damaged one is 0, with `damage`. inventory_free after
 * success. */
int inventory_read(struct agent *, const char *name, struct inventory_vm *);
void inventory_free(struct inventory_vm *);
/* What a storage-only move that was cut has left uncertain in it is mended, where no shim is (journal_mend):
 * to be called before it is read for a start, or for what is to be deleted. A sentence when that cannot be
 * done now: the storage of its disks hangs, say. */
int inventory_mend(struct agent *, const char *name, struct xm_error *);
/* In this host's inventory: its own, and in doubt (promised and not settled, a record that cannot be read)
 * also. */
bool inventory_owns(const struct inventory_vm *);
/* The names of all that have a record or a spec here, sorted: an array of strings. */
json_t *inventory_names(struct agent *);

enum whereabouts {
    WHERE_UNKNOWN, /* undecided, or who may have it does not say */
    WHERE_OWNED,   /* another host has it */
    WHERE_NOWHERE, /* who had it last has no record of it */
};

/* Where the VM is that is not this host's to run (its record says given, or promised), as far as its peers
 * know: a clause, malloc'ed; `is` may be NULL. Waits for peers. */
char *inventory_whereabouts(struct agent *, const char *name, const struct owner_record *,
                            enum whereabouts *is);

/* Would this definition contradict what stands in the inventory: another path or size of a disk of the same
 * name (but for a larger size that its file has by now), a file that another VM has, or may be handed back
 * with? A sentence that names both; 0 when not. */
int inventory_contradiction(struct agent *, const struct vm_spec *, struct xm_error *);
/* The same of the other VMs alone: has one of them a file that this one is to have? */
int inventory_taken(struct agent *, const struct vm_spec *, struct xm_error *);
/* Has this VM a disk in that file, by a definition that counts? 1: yes; -EAGAIN with a sentence:
 * yes, and whether it counts is not known; else -errno: its definition cannot be read. */
int inventory_names_file(struct agent *, const char *vm, const char *path, struct xm_error *);
/* This disk in the recorded definition of its VM: then its file exists, or something is wrong. NULL: it is
 * new. */
const json_t *inventory_disk(const json_t *spec, const char *disk);

/* The epoch that a VM of this name begins with. */
int inventory_first_epoch(struct agent *, const char *name, uint64_t *epoch, struct xm_error *);
/* Forgets it, disks stay. The name is claimed, and its record has been looked at. */
int inventory_remove(struct agent *, const char *name, uint64_t epoch, struct xm_error *);

/* life.json, by the agent: it is about to run; what is left of it has gone. */
int inventory_runs(struct agent *, const char *name, struct xm_error *);
void inventory_ended(struct agent *, const char *name);
/* The VM has come by a move: it runs here. now: since this moment; else since what is noted, if it is. */
void inventory_came(struct agent *, const char *name, bool now);
/* Why it does not run, as it stands in the record: {"why", "text", "at"}; NULL: it never ran here. */
json_t *inventory_why_json(struct agent *, const struct inventory_vm *);

/* Which boot of the host this is (agent.boot), told by a file in the run directory, which does not outlive
 * one. At the start, before VMs are adopted. */
int inventory_boot(struct agent *, struct xm_error *);
/* Starts those with autostart, once in each boot; in a thread of its own. After the sockets are open. */
void inventory_autostart(struct agent *);

#endif
