/* SPDX-License-Identifier: MIT */
/* base/file.h: small files that must survive a crash, read and written whole. */
#ifndef XM_BASE_FILE_H
#define XM_BASE_FILE_H

#include <stddef.h>
#include "base/error.h"

/* Replaces path atomically: a temporary file beside it, fsync, rename, fsync of the directory. Durable when
 * it returns 0. */
int xm_file_replace(const char *path, const void *data, size_t len, struct xm_error *e);
/* Room for a result that must not be lost to a full file system: a file of that many bytes beside it is
 * made when the work begins, and removed just before the result is written. Neither can fail whoever calls
 * it. */
void xm_room_keep(const char *path, size_t bytes);
void xm_room_use(const char *path);
/* Reads a file of at most max bytes; *text is malloc'ed, with a 0 behind its *len bytes. */
int xm_file_read(const char *path, size_t max, char **text, size_t *len, struct xm_error *e);
/* fsyncs the directory that path lies in: what was made or removed there is durable when it returns 0. */
int xm_sync_directory_of(const char *path, struct xm_error *);
/* Removes it, durably. Missing is fine. */
int xm_file_remove(const char *path, struct xm_error *e);
/* mkdir -p with mode 0700; durable when it returns 0. */
int xm_mkdir_all(const char *path, struct xm_error *e);
/* Makes the directory as above, or takes one that is this user's, from which others' read permissions are
 * then taken. -EPERM, with the name of what is wrong: others may write into it, or may rename it since
 * they may write into one above it (a sticky one, like /tmp, is fine), or it belongs to somebody else. */
int xm_mkdir_private(const char *path, struct xm_error *e);
/* Removes the directory and the plain files in it (no folders below). Missing is fine. */
int xm_rmdir_files(const char *path, struct xm_error *e);
/* Allocating printf that never returns NULL: when memory is short it ends the program as the kernel's OOM
 * killer would. */
char *xm_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
