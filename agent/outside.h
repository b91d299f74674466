/* SPDX-License-Identifier: MIT */
/* agent/outside.h: what another host's specification of a VM may ask of this one (SECURITY.md: a peer gives
 * data, never a command line).
 *
 * QEMU's command line is made here, of typed fields. Which bridges, kernels, firmware and images a VM of
 * another host may use is this host's configuration ([incoming]); words in which options of QEMU's can stand
 * (machine, accel, cpu, extra) are held to lists. Pure: nothing here looks at the host. */
#ifndef XM_AGENT_OUTSIDE_H
#define XM_AGENT_OUTSIDE_H

#include "agent/config.h"
#include "vm/vm.h"

/* Appends a sentence to `reasons` for each thing in the specification that this host does not take from
 * `peer` (a [peer] of the configuration), and how it could be allowed; returns how many. */
unsigned outside_judge(const struct vm_spec *, const struct config *, const char *peer, json_t *reasons);
/* The program's name is one that may be run for a peer: a qemu-system-ARCH without a path. 0, or why not. */
int outside_program(const struct vm_spec *, struct xm_error *);
/* The file stands in one of these directories or below it; `dirs` ends with NULL, or is NULL: none. */
bool outside_allows(char **dirs, const char *path);

#endif
