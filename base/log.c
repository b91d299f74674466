#include "base/log.h"

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

void xm_log(enum xm_log_level level, const char *fmt, ...)
{
    if (level > log_level)
        return;
    char line[1024];
    struct timespec ts;
    struct tm tm;
    va_list ap;

    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ld %s %s: ", ts.tv_nsec / 1000000,
                          level_name[level], log_ident);
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - n - 1, fmt, ap);
    va_end(ap);
    n += m < 0 ? 0 : (size_t)m < sizeof line - n - 1 ? (size_t)m : sizeof line - n - 2;
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, n) < 0)
        return; /* nowhere left to complain */
}
