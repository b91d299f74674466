/* SPDX-License-Identifier: MIT */
/* vm/vm.h: what a VM is: its specification, whose it is, and how it passes from one host to another. No
 * processes, no sockets; of the file system only the files that say so. */
#ifndef XM_VM_H
#define XM_VM_H

#include "vm/cost.h"
#include "vm/format.h"
#include "vm/handoff.h"
#include "vm/journal.h"
#include "vm/left.h"
#include "vm/life.h"
#include "vm/owner.h"
#include "vm/spec.h"
#include "vm/verdict.h"

#endif
