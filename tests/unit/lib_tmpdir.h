/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_tmpdir.h: a directory of its own for each test, removed with all in it whatever the test's
 * end. */
#ifndef LIB_TMPDIR_H
#define LIB_TMPDIR_H

/* cmocka's set-up and tear-down. */
int tmpdir_make(void **state);
int tmpdir_remove(void **state);
/* DIR/name; lives until the next eight calls. */
const char *tmpdir_path(const char *name);
/* Writes DIR/name and returns its path likewise. */
const char *tmpdir_write(const char *name, const char *text);

#endif
