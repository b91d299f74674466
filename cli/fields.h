/* SPDX-License-Identifier: MIT */
/* cli/fields.h: what an agent's answer holds, as text. Fields that are missing are the empty text. */
#ifndef XM_CLI_FIELDS_H
#define XM_CLI_FIELDS_H

#include "cli/cli.h"

/* Strings as they are, numbers, yes and no; the rest: "". Lives until the next eight calls. */
const char *scalar_text(const json_t *);
/* Bytes, "1.00 GiB"; lives until the next eight calls. */
const char *size_text(const json_t *o, const char *key);
/* Seconds since 1970 as local time; text stays text. Lives until the next call. */
const char *time_text(const json_t *);

/* An array's scalars, one a line behind `before`. */
void print_lines(const json_t *array, const char *before, FILE *out);
/* The paths of disks, below a title; nothing when there are none. */
void print_paths(const json_t *disks, const char *title, FILE *out);
/* All that an object has to say, one field a line, but for the key `without` (NULL: all). */
void print_tree(const json_t *o, const char *without, int indent, FILE *out);
/* "switches 2, gave up 0": an object or a list in one line; the caller's to free. */
char *flat_text(const json_t *);

#endif
