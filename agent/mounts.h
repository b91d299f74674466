/* SPDX-License-Identifier: MIT */
/* agent/mounts.h: what is mounted on the way to a path, and what is to be. */
#ifndef XM_AGENT_MOUNTS_H
#define XM_AGENT_MOUNTS_H

#include "base/base.h"

/* Bytes of the path that name the mount point which it is or lies below, as far as no link leads elsewhere;
 * 1: the root. By names alone: the path is not looked at, whose storage may hang. */
size_t mounts_below(const char *path);
/* The mount point, the path or a directory above it, that /etc/fstab or a systemd unit of this host's names
 * and where nothing is mounted: malloc'ed, *by (malloc'ed) what names it. NULL: there is none. */
char *mounts_missing(const char *path, char **by);

#endif
