/* SPDX-License-Identifier: MIT */
/* machine/confine.h: what a QEMU may do on its host: it parses what a guest and a peer send, so it keeps no
 * capability, gains none, and lives in its own sandbox. */
#ifndef XM_MACHINE_CONFINE_H
#define XM_MACHINE_CONFINE_H

#include "base/base.h"

/* The value of QEMU's -sandbox: no old system calls, no change of user, no other program, no priorities. */
#define CONFINE_SANDBOX "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

/* In the forked child, before it becomes QEMU: only system calls. NULL, or what the kernel refused
 * (errno). */
const char *confine_self(void);

#endif
