/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number as users write it: "20", "1.5". Value = digits / scale. Returns what stands behind it, blanks
 * skipped, or NULL. */
static const char *read_number(const char *text, uint64_t *digits, uint64_t *scale)
{
    const char *s = text;

    *digits = 0;
    *scale = 1;
    for (bool fraction = false;; s++) {
        if (*s == '.' && !fraction && s > text && s[1] >= '0' && s[1] <= '9') {
            fraction = true;
            continue;
        }
        if (*s < '0' || *s > '9')
            break;
        if (__builtin_mul_overflow(*digits, 10u, digits) ||
            __builtin_add_overflow(*digits, (uint64_t)(*s - '0'), digits))
            return NULL;
        if (fraction && __builtin_mul_overflow(*scale, 10u, scale))
            return NULL;
    }
    if (s == text)
        return NULL;
    while (*s == ' ')
        s++;
    return s;
}

/* digits / scale * unit, a fraction of the smallest unit cut off. */
static int times(uint64_t digits, uint64_t scale, uint64_t unit, uint64_t *out)
{
    unsigned __int128 v = (unsigned __int128)digits * unit / scale;

    if (v > UINT64_MAX)
        return -ERANGE;
    *out = (uint64_t)v;
    return 0;
}

/* The power that a prefix letter stands for, or -1. */
static int power_of(char c)
{
    switch (c) {
    case 'k':
    case 'K':
        return 1;
    case 'm':
    case 'M':
        return 2;
    case 'g':
    case 'G':
        return 3;
    case 't':
    case 'T':
        return 4;
    default:
        return -1;
    }
}

static uint64_t power(uint64_t base, int n)
{
    uint64_t v = 1;
    while (n-- > 0)
        v *= base;
    return v;
}

/* "" "B" "K" "KiB" "KB" ...: bytes in one of it, or 0. */
static uint64_t size_unit(const char *s)
{
    if (!*s || !strcmp(s, "B"))
        return 1;
    int n = power_of(*s);
    if (n < 0)
        return 0;
    if (!s[1] || !strcmp(s + 1, "iB"))
        return power(1024, n);
    return strcmp(s + 1, "B") ? 0 : power(1000, n);
}

int xm_parse_size(const char *text, uint64_t *bytes, struct xm_error *e)
{
    uint64_t digits, scale;
    const char *unit = read_number(text, &digits, &scale);
    uint64_t each = unit ? size_unit(unit) : 0;

    if (!each || (each == 1 && scale != 1))
        return xm_error_set(
            e, EINVAL, "\"%.60s\" is no size: write a number and K, M, G or T (or KiB, KB, ...), as in 20G",
            text);
    if (times(digits, scale, each, bytes) < 0)
        return xm_error_set(e, ERANGE, "\"%.60s\" is too large a size", text);
    return 0;
}

int xm_parse_rate(const char *text, uint64_t *bytes_per_s, struct xm_error *e)
{
    uint64_t digits, scale, each = 0, per = 1;
    const char *rest = read_number(text, &digits, &scale);
    char unit[8];

    if (rest && strlen(rest) < sizeof unit) {
        memcpy(unit, rest, strlen(rest) + 1);
        size_t n = strlen(unit);
        if (n >= 2 && !strcmp(unit + n - 2, "/s"))
            unit[n -= 2] = 0;
        if (n >= 3 && !strcmp(unit + n - 3, "bit")) {
            int p = n == 3 ? 0 : n == 4 ? power_of(unit[0]) : -1;
            each = p < 0 ? 0 : power(1000, p);
            per = 8;
        } else {
            each = size_unit(unit);
        }
    }
    if (!each || (each == 1 && scale != 1))
        return xm_error_set(
            e, EINVAL,
            "\"%.60s\" is no rate: write bytes a second, as in 100M or 1.2GB/s, or bits, as in 10Gbit", text);
    if (times(digits, scale * per, each, bytes_per_s) < 0)
        return xm_error_set(e, ERANGE, "\"%.60s\" is too high a rate", text);
    if (digits && !*bytes_per_s)
        return xm_error_set(e, EINVAL, "\"%.60s\" is less than one byte a second", text);
    return 0;
}

int xm_parse_time(const char *text, uint64_t *ns, struct xm_error *e)
{
    static const struct {
        const char *name;
        uint64_t ns;
    } units[] = {{"ns", 1},
                 {"us", XM_NS_PER_US},
                 {"ms", XM_NS_PER_MS},
                 {"s", XM_NS_PER_S},
                 {"m", 60 * XM_NS_PER_S},
                 {"min", 60 * XM_NS_PER_S},
                 {"h", 3600 * XM_NS_PER_S}};
    uint64_t digits, scale, each = 0;
    const char *unit = read_number(text, &digits, &scale);

    for (size_t i = 0; unit && i < sizeof units / sizeof units[0]; i++) {
        if (!strcmp(unit, units[i].name))
            each = units[i].ns;
    }
    if (!each)
        return xm_error_set(
            e, EINVAL, "\"%.60s\" is no time: write a number with its unit, us, ms, s, m or h, as in 50ms",
            text);
    if (times(digits, scale, each, ns) < 0)
        return xm_error_set(e, ERANGE, "\"%.60s\" is too long a time", text);
    return 0;
}

/* "1.50 GiB": steps before the rounding would show a number with too many digits. */
static struct xm_text scaled(double v, double step, const char *const *names, int last)
{
    struct xm_text t;
    int n = 0;

    while (n < last && v >= step - (n ? 0.005 : 0.5)) {
        v /= step;
        n++;
    }
    snprintf(t.s, sizeof t.s, n ? "%.2f %s" : "%.0f %s", v, names[n]);
    return t;
}

struct xm_text xm_format_size(uint64_t bytes)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    return scaled((double)bytes, 1024, names, 5);
}

struct xm_text xm_format_rate(double bytes_per_s)
{
    static const char *const names[] = {"B/s", "KB/s", "MB/s", "GB/s", "TB/s"};
    return scaled(bytes_per_s > 0 ? bytes_per_s : 0, 1000, names, 4);
}

struct xm_text xm_format_time(uint64_t ns)
{
    struct xm_text t;
    uint64_t s = ns / XM_NS_PER_S + (ns % XM_NS_PER_S >= XM_NS_PER_S / 2); /* rounded */

    if (ns < XM_NS_PER_US)
        snprintf(t.s, sizeof t.s, "%u ns", (unsigned)ns);
    else if (ns < 999950)
        snprintf(t.s, sizeof t.s, "%.1f us", (double)ns / 1e3);
    else if (ns < 999950000)
        snprintf(t.s, sizeof t.s, "%.1f ms", (double)ns / 1e6);
    else if (ns < 59995 * XM_NS_PER_MS)
        snprintf(t.s, sizeof t.s, "%.2f s", (double)ns / 1e9);
    else if (s < 3600)
        snprintf(t.s, sizeof t.s, "%u min %02u s", (unsigned)(s / 60), (unsigned)(s % 60));
    else
        snprintf(t.s, sizeof t.s, "%llu h %02u min", (unsigned long long)(s / 3600),
                 (unsigned)(s % 3600 / 60));
    return t;
}
