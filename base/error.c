/* SPDX-License-Identifier: MIT */
#include "base/error.h"
#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int xm_error_set(struct xm_error *e, int code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        char text[sizeof e->text]; /* the arguments may point into *e */
        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        memcpy(e->text, text, sizeof text);
        xm_text_mend(e->text);
        e->code = code;
    }
    return -code;
}

int xm_error_errno(struct xm_error *e, int code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        char what[sizeof e->text - 64];
        char why[64];
        va_start(ap, fmt);
        vsnprintf(what, sizeof what, fmt, ap);
        va_end(ap);
        snprintf(e->text, sizeof e->text, "%s: %s", what, strerror_r(code, why, sizeof why));
        xm_text_mend(e->text);
        e->code = code;
    }
    return -code;
}

int xm_error_prefix(struct xm_error *e, const char *fmt, ...)
{
    if (!e)
        return -EIO;
    va_list ap;
    char prefix[200];
    char rest[sizeof e->text];
    va_start(ap, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, ap);
    va_end(ap);
    memcpy(rest, e->text, sizeof rest);
    snprintf(e->text, sizeof e->text, "%s: %.*s", prefix, (int)(sizeof rest - sizeof prefix - 3), rest);
    xm_text_mend(e->text);
    return -e->code;
}
