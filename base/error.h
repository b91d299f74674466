/* SPDX-License-Identifier: MIT */
/* base/error.h: errors that carry the sentence their reader needs.
 *
 * A function that can fail returns 0 (or a count) or -errno and fills the xm_error it was given. Callers on
 * the way up may prefix what they know (the VM, the peer, the file). The text is one sentence without a final
 * newline that says what happened, where, and, where it helps, what to do. An xm_error is plain memory owned
 * by the caller; NULL is allowed everywhere.
 */
#ifndef XM_BASE_ERROR_H
#define XM_BASE_ERROR_H

#include <errno.h>

struct xm_error {
    int code; /* errno, positive; 0: no error */
    char text[500];
};

/* Fills *e and returns -code. Longer texts are cut. */
int xm_error_set(struct xm_error *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same with ": strerror(code)" behind the text. */
int xm_error_errno(struct xm_error *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "fmt: " before the text that is there. Returns -code. */
int xm_error_prefix(struct xm_error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
