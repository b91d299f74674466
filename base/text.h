/* SPDX-License-Identifier: MIT */
/* base/text.h: text from outside, before a person's terminal or a log shows it, or a message carries it. */
#ifndef XM_BASE_TEXT_H
#define XM_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

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

/* base64 (RFC 4648), without breaks. out: four bytes for each three begun, and an end. */
void xm_base64_encode(const unsigned char *in, size_t n, char *out);
/* At most max bytes; how many, or -1: that is none, or longer. */
ssize_t xm_base64_decode(const char *in, unsigned char *out, size_t max);

#endif
