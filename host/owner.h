/* host/owner.h: who owns a VM, as this host durably knows (DESIGN §8). One small JSON file per VM, replaced
 * atomically, fsynced with its directory. Rule: a host may run a VM only if its own record says that it owns
 * the highest epoch it knows of. */
#ifndef XM_HOST_OWNER_H
#define XM_HOST_OWNER_H

#include "base/base.h"

enum owner_side { OWNER_NONE, OWNER_MINE, OWNER_GIVEN };

struct owner_record {
    uint64_t epoch; /* grows by one with each hand-off */
    enum owner_side owner;
    char to[64];   /* GIVEN: the host it was given to */
    char from[64]; /* MINE: the host it came from; "" when it was started here */
};

/* dir: the VM's state directory, made when missing. Durable when it returns 0. */
int owner_save(const char *dir, const char *vm, const struct owner_record *, struct xm_error *);
/* -ENOENT: no record (then there is no owner here). A file that cannot be understood is an error that names
 * it. */
int owner_load(const char *dir, const char *vm, struct owner_record *, struct xm_error *);
bool owner_may_run(const struct owner_record *);

#endif
