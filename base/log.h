/* base/log.h: one line per event on stderr: time, level, program, text. Any thread; a line is written whole.
 */
#ifndef XM_BASE_LOG_H
#define XM_BASE_LOG_H

enum xm_log_level { XM_LOG_ERROR, XM_LOG_WARN, XM_LOG_INFO, XM_LOG_DEBUG };

/* Names this program in its lines (the string is kept, not copied) and says up to which level they are
 * written. Before the first call: "xmigrate", up to XM_LOG_WARN. XMIGRATE_LOG=error|warn|info|debug in the
 * environment overrides. */
void xm_log_open(const char *ident, enum xm_log_level level);
void xm_log(enum xm_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
