/* SPDX-License-Identifier: MIT */
/* base/hex.h: bytes as text: tokens, names of boots and probes. */
#ifndef XM_BASE_HEX_H
#define XM_BASE_HEX_H

#include <stddef.h>
#include "base/error.h"

/* Writes n bytes as 2 * n small hex digits and a 0. */
void xm_hex_put(char *text, const void *bytes, size_t n);
/* Reads n bytes from exactly 2 * n hex digits. -EINVAL for anything else (text may be NULL); `bytes` may
 * be half written then. */
int xm_hex_get(void *bytes, size_t n, const char *text);
/* n random bytes (at most 64), written as above. */
int xm_hex_random(char *text, size_t n, struct xm_error *e);

#endif
