/* host/incoming.h: a migration as the destination lives it. */
#ifndef XM_HOST_INCOMING_H
#define XM_HOST_INCOMING_H

#include "host/shim.h"

struct incoming;
int incoming_new(struct shim *, const json_t *config,
                 struct xm_error *);                      /* sets shim->incoming and shim->created */
int incoming_start(struct incoming *, struct xm_error *); /* QEMU is up: writers, RAM, links may come */
int incoming_add_link(struct incoming *, int fd, const char *name,
                      struct xm_error *);               /* main thread; takes fd */
void incoming_fail(struct incoming *, const char *why); /* any thread; honoured until the VM was promised */
/* Main thread: what the source's record says, for an undecided one: run it (mine), or drop it. */
int incoming_decide(struct incoming *, bool mine, struct xm_error *);
void incoming_qmp_event(struct incoming *, const char *name, const json_t *data);
void incoming_status(struct incoming *, json_t *into);
void incoming_free(struct incoming *); /* main thread; joins; the disks' threads still turn */

#endif
