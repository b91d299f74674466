/* vm/owner.h: who owns a VM, as this host durably knows (DESIGN §8). One small file per VM. Rule: a host
 * may run a VM only if its own record says that it owns the highest epoch it knows of.
 *
 * Two of these records are written while the VM is stopped (the source's «given», the destination's «mine»),
 * so how long that takes is downtime. Replacing a file atomically costs two commits of the file system's
 * journal, 3 to 12 ms here; overwriting a block that the file has already costs one flush of the disk, 0.2 to
 * 3 ms. So `owner.json` has two slots of 4 KiB, each one line of JSON with a number and a checksum, written
 * in turn: a torn write spoils the slot that was not valid yet, and the record is what it was. */
#ifndef XM_VM_OWNER_H
#define XM_VM_OWNER_H

#include "base/base.h"

enum owner_side { OWNER_NONE, OWNER_MINE, OWNER_GIVEN };

struct owner_record {
    uint64_t epoch; /* grows by one with each hand-off */
    enum owner_side owner;
    char to[64];   /* GIVEN: the host it was given to */
    char from[64]; /* MINE: the host it came from; "" when it was started here */
};

/* dir: the VM's state directory, made when missing. Durable when it returns 0. After a failure the record may
 * be the old or the new one. One writer at a time. */
int owner_save(const char *dir, const char *vm, const struct owner_record *, struct xm_error *);
/* Makes the file when there is none, with no record in it: so that the first owner_save is as quick as the
 * others. */
int owner_prepare(const char *dir, struct xm_error *);
/* -ENOENT: no record (then there is no owner here). A file that cannot be understood is an error that names
 * it. */
int owner_load(const char *dir, const char *vm, struct owner_record *, struct xm_error *);
bool owner_may_run(const struct owner_record *);

#endif
