/* SPDX-License-Identifier: MIT */
/* vm/format.h: disks here are raw, and an image of another format that is taken for one is lost to its
 * guest, which sees a small disk full of what it cannot read, and writes over it.
 *
 * Only a disk that has not been in use here is looked at: a guest may write what it likes to its disk, a
 * header of such a format too, and that changes nothing. */
#ifndef XM_VM_FORMAT_H
#define XM_VM_FORMAT_H

#include <stddef.h>

#define VM_FORMAT_HEAD 512

/* What the first VM_FORMAT_HEAD bytes (fewer, in a shorter file) and the last 512 say: "a qcow2 image"; NULL:
 * nothing known, so it may be raw. tail may be NULL. */
const char *vm_foreign_format(const void *head, size_t len, const void *tail);

#define VM_BLOCK_HEAD 8192

/* Of which logical blocks (sectors) a disk was that somebody has written before: what a partition table
 * counts in. By its first VM_BLOCK_HEAD bytes (fewer, in a shorter one): 4096 where a GPT stands in the
 * second such block, else 512, as of nearly all images, and of QEMU's disks that were given no other; 0:
 * nothing is there. */
unsigned vm_written_block(const void *head, size_t len);

#endif
