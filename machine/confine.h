/* SPDX-License-Identifier: MIT */
/* machine/confine.h: what a QEMU may do on its host: it parses what a guest and a peer send, so it is a user
 * of its own, keeps no capability, gains none, and lives in its own sandbox. And what its shim may. */
#ifndef XM_MACHINE_CONFINE_H
#define XM_MACHINE_CONFINE_H

#include "machine/user.h"

/* The value of QEMU's -sandbox: no old system calls, no change of user, no other program, no priorities. */
#define CONFINE_SANDBOX "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

/* In the forked child, before it becomes QEMU: only system calls. `user`: whose it is from then on; NULL or
 * uid 0: it stays the same. NULL, or what the kernel refused (errno). */
const char *confine_self(const struct qemu_user *user);

/* The shim gives up what it does not need. Before it has started QEMU it keeps besides what changes a user
 * and gives up capabilities; after it, not. It is for the calling thread and those that it makes: called with
 * `started` by each that is there when QEMU is started. */
void confine_shim(bool started);

#endif
