/* SPDX-License-Identifier: MIT */
/* migrate/migrate.h: a migration, as the two shims live it. `source` is one that goes out (or moves disks on
 * this host), `destination` one that comes in; each has a thread of its own. */
#ifndef XM_MIGRATE_H
#define XM_MIGRATE_H

#include "machine/machine.h"

enum migrate_end {
    MIGRATE_STAYS,   /* source: the VM runs here as before, or with its new disks */
    MIGRATE_GONE,    /* source: it runs at the destination, and nothing of it is left here */
    MIGRATE_STOPPED, /* source: its QEMU has ended meanwhile */
    MIGRATE_CAME,    /* destination: it is an ordinary VM of this host */
    MIGRATE_NOT,     /* destination: it stays with its source */
};
/* Main thread: the migration is over. It is to be freed, now or later. */
typedef void migrate_ended(struct machine *, enum migrate_end);

/* ---- source ---- */

struct source;
/* Main thread. The machine is this host's and in no other migration. NULL with a sentence, and nothing
 * changed. local: its disks move on this host, the VM stays. */
struct source *source_start(struct machine *, const json_t *request, bool local, migrate_ended *,
                            struct xm_error *);
/* Any thread. job "" or NULL: whichever it is. -ENOENT: another one goes on; -EBUSY: it is too late. */
int source_abort(struct source *, const char *job, const char *reason, struct xm_error *);
/* Any thread: the links' rate, 0: no limit; whether it goes on also when the guest outruns it. */
void source_set_rate(struct source *, uint64_t bytes_per_s);
void source_persist(struct source *, bool yes);
/* From the thread that reads QMP: QEMU has been told to stop the guest for the switch. */
bool source_stops(const struct source *);
void source_qmp_event(struct source *, const char *name, const json_t *data, uint64_t when);
void source_qemu_gone(struct source *);
/* It has said how it ended; its thread may still take down what it had, or try to bring back a VM that stands
 * still. */
bool source_over(const struct source *);
bool source_stands(const struct source *); /* it tries that */
bool source_ending(const struct source *); /* it has ended, the VM runs on, and in a moment it has gone */
void source_leave(struct source *);        /* main: nothing is tried any more, since the shim ends */
const char *source_job(const struct source *);
void source_status(const struct source *, json_t *into);
void source_free(struct source *); /* main thread: waits for its end */

/* ---- destination ---- */

struct destination;
/* config: shim.json's `incoming`. destination_free after success; NULL with a sentence. */
struct destination *destination_new(struct machine *, const json_t *config, migrate_ended *,
                                    struct xm_error *);
int destination_start(struct destination *, struct xm_error *); /* QEMU is up: writers, RAM, links may come */
/* Main thread; takes fd. */
int destination_add_link(struct destination *, int fd, const char *name, struct xm_error *);
void destination_fail(struct destination *,
                      const char *why); /* any thread; honoured until the VM was promised */
/* Any thread: so much of its datastore is promised to others, and not written yet. */
void destination_set_others(struct destination *, uint64_t bytes);
/* Main thread: what the source's record says, for an undecided one: run it (mine), or drop it. */
int destination_decide(struct destination *, bool mine, struct xm_error *);
void destination_qmp_event(struct destination *, const char *name, const json_t *data);
void destination_status(struct destination *, json_t *into); /* with its role: incoming, undecided, owner */
bool destination_owns(const struct destination *);           /* the VM is this host's */
/* The source may have given it to us: what is here may be the only copy. False only where it was never
 * promised, or the source's record says that it stays there. */
bool destination_may_own(const struct destination *);
bool destination_is(const struct destination *, const char *source, const char *job);
/* Main thread: ends its thread; what the functions above say stands from then on. */
void destination_join(struct destination *);
void destination_free(struct destination *); /* main thread; joins; the disks' threads still turn */

#endif
