/* SPDX-License-Identifier: MIT */
/* Disks for tests: files and loop devices in a directory of their own beside the test program, and their
 * removal. */
#ifndef LIB_DISK_H
#define LIB_DISK_H

#include <stdarg.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* A fresh directory on the file system of the build; the same one until lib_disk_clean. */
const char *lib_dir(void);
/* "DIR/name", in a static buffer of which there are eight. */
const char *lib_path(const char *name);
/* A loop device over a new sparse file DIR/name.img. Skips the test, aloud, where there are no loop devices.
 */
const char *lib_loop(const char *name, uint64_t size);
/* Likewise, with logical blocks of that many bytes. */
const char *lib_loop_blocks(const char *name, uint64_t size, unsigned block);
/* A tmpfs of that size at DIR/name. Skips the test, aloud, without the right to mount. */
const char *lib_tmpfs(const char *name, uint64_t size);
/* Undoes all of it, in the reverse order. A cmocka teardown, too. */
int lib_disk_clean(void **state);

#endif
