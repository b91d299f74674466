/* SPDX-License-Identifier: MIT */
/* vm/life.h: what last happened to a VM on this host: it runs, or it has ended, and why. One small file per
 * VM, life.json beside owner.json, replaced atomically.
 *
 * For people and for autostart alone: nobody decides by it whose a VM is, or whether it may run (owner.h does
 * that). Writers, one after the other: the agent before it starts the VM; the VM's shim when the VM has
 * ended; the agent again where the shim could not (it was killed, too, or the host went down). */
#ifndef XM_VM_LIFE_H
#define XM_VM_LIFE_H

#include "base/base.h"

enum life_state {
    LIFE_NEVER, /* no file: defined, or come by a move that nobody has noted yet */
    LIFE_RUNS,
    LIFE_ENDED,
};

enum life_why {
    LIFE_UNKNOWN, /* it ran, and neither its shim nor its QEMU is there any more */
    LIFE_USER,    /* its user asked the guest to power down, and it did */
    LIFE_FORCED,  /* its user ended it at once */
    LIFE_GUEST,   /* the guest powered itself down */
    LIFE_DIED,    /* QEMU ended by itself */
    LIFE_SIGNAL,  /* its shim was told to end, as when a host is shut down */
    LIFE_REBOOT,  /* the host was restarted meanwhile */
};

#define LIFE_BOOT_MAX 32

struct vm_life {
    enum life_state state;
    enum life_why why;            /* ENDED */
    int64_t at;                   /* seconds since 1970: since when it is so */
    char boot[LIFE_BOOT_MAX + 1]; /* which boot of the host that was in (agent/inventory.h) */
};

/* dir: the VM's state directory; it exists. Durable when it returns 0. */
int life_save(const char *dir, const struct vm_life *, struct xm_error *);
/* No file is LIFE_NEVER. A file that cannot be understood is an error that names it, and LIFE_NEVER. */
int life_load(const char *dir, struct vm_life *, struct xm_error *);
/* It ran, as the file says: from now on it has ended. Nothing is done where it says something else. */
int life_end(const char *dir, enum life_why, struct xm_error *);
const char *life_why_name(enum life_why); /* "guest" */
const char *life_why_text(enum life_why); /* "its guest powered itself down" */

#endif
