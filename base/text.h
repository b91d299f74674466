/* SPDX-License-Identifier: MIT */
/* base/text.h: text from outside, before a person's terminal or a log shows it, or a message carries it. */
#ifndef XM_BASE_TEXT_H
#define XM_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character that `s`, which is not empty, begins with. *fits: it may be shown. A control
 * character does not (a terminal obeys it), nor does what ends a line or turns the direction of what follows
 * (a reader would take it for other text), nor a byte that is not UTF-8. */
size_t xm_text_char(const char *s, bool *fits);
/* Each byte that is not UTF-8 becomes '?': of what a stranger has written, and of a character that was cut.
 * No JSON can be made of a text that has one. */
void xm_text_mend(char *s);

/* getopt_long has just returned the long option of that name: the word by which it was given, if that is only
 * the name's beginning, which the next option to be added may begin with, too. NULL: it is all of it. next,
 * value: getopt's optind, optarg. */
const char *xm_option_cut(char *const *argv, int next, const char *value, const char *name);

#endif
