/* SPDX-License-Identifier: MIT */
/* cli/text.h: writing for people. */
#ifndef XM_CLI_TEXT_H
#define XM_CLI_TEXT_H

#include "cli/cli.h"

/* Writes text that came from outside: what must not reach a terminal (base/text.h) becomes '?'. */
void put_text(FILE *out, const char *text);

/* A table: columns as wide as their widest field, two blanks between. Strings are copied. */
struct table {
    unsigned columns, rows, cap;
    char **field;
};
void table_begin(struct table *t, unsigned columns, const char *const *titles);
void table_add(struct table *t, const char *const *fields); /* NULL: "-" */
void table_end(struct table *t, FILE *out);                 /* prints, frees */

#endif
