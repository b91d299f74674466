/* SPDX-License-Identifier: MIT */
/* base/log.h: one line per event on stderr: time, level, program, text. Any thread; a line is written
 * whole. Text may come from a peer or a guest: control characters in it are written as \n, \t or \xNN, so
 * that it makes no line of its own and steers no terminal. */
#ifndef XM_BASE_LOG_H
#define XM_BASE_LOG_H

#include <stdint.h>

enum xm_log_level { XM_LOG_ERROR, XM_LOG_WARN, XM_LOG_INFO, XM_LOG_DEBUG };

/* Names this program in its lines (the string is kept, not copied) and says up to which level they are
 * written. Before the first call: "xmigrate", up to XM_LOG_WARN. XMIGRATE_LOG=error|warn|info|debug in the
 * environment overrides. */
void xm_log_open(const char *ident, enum xm_log_level level);
void xm_log(enum xm_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* For what strangers can bring about as often as they like: XM_LOG_BURST lines a minute, what is beyond is
 * counted, and the count is told by the first line after it. One static struct for each kind of event;
 * zeros at first. */
#define XM_LOG_BURST 10u
struct xm_log_limit {
    uint64_t since; /* xm_now() when its minute began */
    unsigned lines, left_out;
};
void xm_log_limited(struct xm_log_limit *, enum xm_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
