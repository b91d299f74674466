/* SPDX-License-Identifier: MIT */
/* agent/storage.h: questions to file systems that may hang (NFS, a dead disk), with a time limit. Any
 * thread, and never under agent.lock.
 *
 * A question is asked on a thread of its own, which stays with it when it hangs; who asks again below the
 * same mount point meanwhile learns at once that it hangs. So storage that hangs makes only what needs it
 * wait, for STORAGE_PATIENCE at most, and then there is a sentence for it. -ETIMEDOUT always means: it
 * hangs. */
#ifndef XM_AGENT_STORAGE_H
#define XM_AGENT_STORAGE_H

#include "base/base.h"
#include <sys/stat.h>

#define STORAGE_PATIENCE (5 * XM_NS_PER_S)

int storage_stat(const char *path, struct stat *);                        /* 0 or -errno */
int storage_space(const char *dir, uint64_t *size, uint64_t *free_bytes); /* likewise; bytes */
int storage_takes_files(const char *dir, struct xm_error *); /* -ENOSPC with a sentence; 0: it may */
int storage_hangs(const char *path, struct xm_error *);      /* 0, or -ETIMEDOUT with a sentence */

#endif
