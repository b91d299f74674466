/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_qemu.h: this host's QEMU, and a VM to start it with. */
#ifndef LIB_QEMU_H
#define LIB_QEMU_H

#include "probe/probe.h"
#include "vm/vm.h"

/* What qemu-system-x86_64 says of itself; the test is skipped, aloud, where there is none. */
const struct qemu_facts *qemu_real(void);
/* A VM with each device that a specification may name; the seed image has to be made. */
struct vm_spec spec_with_all_devices(void);

#endif
