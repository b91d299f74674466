/* SPDX-License-Identifier: MIT */
/* memxfer/ram.h: what memxfer asks of a RAM block besides the public part. Private to memxfer. */
#ifndef XM_MEMXFER_RAM_H
#define XM_MEMXFER_RAM_H

#include "memxfer/memxfer.h"

/* Page tables of our own mapping may stay for so much RAM (32 MiB of tables); others are given back. */
#define RAM_MAPPED_MAX (16ull << 30)

/* Whether pages can be read and sent where they lie, in our mapping. Not where the file may become smaller
 * under us (unsealed: a read beyond its end is a SIGBUS), nor where it does not tell what it holds, as
 * hugetlbfs: a read takes a huge page for what is not there, or is a SIGBUS when there are no more. */
bool ram_is_direct(const struct xm_ram_block *);
/* Gives the page tables of [from, to) back, by mapping the same again (works on all kernels). Pages that are
 * used there later, or by another thread right now, are faulted in again. */
void ram_give_back(const struct xm_ram_block *, uint64_t from, uint64_t to);
/* there[i]: the file holds something for page + i (in memory or swapped out); else it is a hole. Only for a
 * block that is direct. */
void ram_find_holes(const struct xm_ram_block *, uint64_t page, unsigned n, uint8_t *there);
/* Writes into the file. 0 or -errno. */
int ram_write(const struct xm_ram_block *, const uint8_t *data, uint64_t offset, uint64_t len);
/* Whole pages read as zeros afterwards; they take no memory, where the file can do that. */
void ram_zero(const struct xm_ram_block *, uint64_t offset, uint64_t len);

#endif
