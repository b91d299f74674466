/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *log_ident = "xmigrate";
static enum xm_log_level log_level = XM_LOG_WARN;
static const char *const level_name[] = {"error", "warn", "info", "debug"};

void xm_log_open(const char *ident, enum xm_log_level level)
{
    const char *env = getenv("XMIGRATE_LOG");

    log_ident = ident;
    log_level = level;
    for (int i = 0; env && i < 4; i++) {
        if (!strcmp(env, level_name[i]))
            log_level = (enum xm_log_level)i;
    }
}

/* At most `room` bytes; how many. What does not fit into a line (base/text.h) is written as its bytes. */
static size_t put_escaped(char *out, size_t room, const char *s)
{
    size_t n = 0;

    while (*s) {
        bool fits;
        size_t length = xm_text_char(s, &fits), len = length;
        char what[20];
        if (fits) {
            memcpy(what, s, length);
        } else if (*s == '\n' || *s == '\t' || *s == '\r') {
            len = (size_t)snprintf(what, sizeof what, "\\%c", *s == '\n' ? 'n' : *s == '\t' ? 't' : 'r');
        } else {
            len = 0;
            for (size_t i = 0; i < length; i++)
                len += (size_t)snprintf(what + len, sizeof what - len, "\\x%02x", (unsigned char)s[i]);
        }
        if (len > room - n)
            break;
        memcpy(out + n, what, len);
        n += len;
        s += length;
    }
    return n;
}

static void log_line(enum xm_log_level level, const char *text)
{
    char line[1024];
    struct timespec ts;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ld %s %s: ", ts.tv_nsec / 1000000,
                          level_name[level], log_ident);
    n += put_escaped(line + n, sizeof line - n - 1, text);
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, n) < 0)
        return; /* nowhere left to complain */
}

void xm_log(enum xm_log_level level, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    if (level > log_level)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    log_line(level, text);
}

void xm_log_limited(struct xm_log_limit *limit, enum xm_log_level level, const char *fmt, ...)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    uint64_t now = xm_now();
    char text[1024];
    va_list ap;

    if (level > log_level)
        return;
    pthread_mutex_lock(&lock);
    unsigned left_out = 0;
    if (!limit->since || now - limit->since >= 60 * XM_NS_PER_S) {
        left_out = limit->left_out;
        *limit = (struct xm_log_limit){.since = now};
    }
    unsigned line = ++limit->lines;
    limit->left_out += line > XM_LOG_BURST;
    pthread_mutex_unlock(&lock);
    if (line > XM_LOG_BURST)
        return;
    if (left_out)
        xm_log(level, "%u more lines like the next one were left out", left_out);
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    log_line(level, text);
    if (line == XM_LOG_BURST)
        xm_log(level, "more lines like the last one are only counted for a minute");
}
