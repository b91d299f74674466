/* SPDX-License-Identifier: MIT */
/* agent/nvram.h: the variables of a VM's firmware (UEFI's boot entries, keys of secure boot): one small file
 * in the VM's state directory, nvram.fd, which QEMU has open as its second flash.
 *
 * It is made once, of the template that the specification names, and never by guess again. In a move it goes
 * twice: as it is when the destination prepares, in the request itself, so that there is a whole file at the
 * destination before the VM can be that host's; and, what the guest has changed meanwhile, in QEMU's own
 * stream (a flash is RAM to QEMU), from which the destination's QEMU writes the file anew before the guest
 * runs; the agent syncs it when it hears that it runs. So what a power cut at the destination can lose is
 * what the guest has changed since the move began, and only until then; later, as with any QEMU, what it
 * changed in the last half minute. */
#ifndef XM_AGENT_NVRAM_H
#define XM_AGENT_NVRAM_H

#include "agent/agent.h"

#define NVRAM_MAX (1u << 20)

/* For a start or a definition: makes the file when the VM never had one; its path is appended to `created`
 * (NULL where the VM has one for certain: then it is only looked for). 0 when it has no `nvram`. */
int nvram_make(struct agent *, const struct vm_spec *, json_t *created, struct xm_error *);
/* The file for another host: {"size": N, "pieces": [[OFFSET, "base64"]]}; what is in no piece is 0xff. NULL
 * with a sentence. */
json_t *nvram_pack(struct agent *, const char *vm, struct xm_error *);
/* What a peer has sent, malloc'ed: hostile until it has come through here. NULL with a sentence. */
unsigned char *nvram_unpack(const json_t *, size_t *size, struct xm_error *);
/* Puts it in the place of whatever an earlier stay of this VM has left. */
int nvram_put(struct agent *, const char *vm, const unsigned char *data, size_t size, struct xm_error *);

void nvram_sync(struct agent *, const char *vm); /* durable when it returns, if there is one */

#endif
