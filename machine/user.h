/* SPDX-License-Identifier: MIT */
/* machine/user.h: the user that a VM's QEMU is, on its host. */
#ifndef XM_MACHINE_USER_H
#define XM_MACHINE_USER_H

#include "probe/probe.h"
#include "vm/vm.h"

/* Who the VM's QEMU is to be, by [host] qemu_user (NULL: not said), and the run directory opened to that
 * one, to reach what it is told the names of, and to nobody else. A QEMU that runs keeps its user: another
 * shim of its VM finds the same. Not by two threads of a process at once. 0, or a sentence: the user that was
 * asked for cannot run it. Where nobody asked, and none can, `uid` is 0 and the log says why. */
int qemu_user_choose(const struct vm_spec *, const char *run_dir, const char *wanted, struct qemu_user *,
                     struct xm_error *);
/* QEMU, too, may use this file of the run directory, to nobody else's. */
int qemu_user_give(const struct qemu_user *, const char *path, struct xm_error *);

#endif
