/* SPDX-License-Identifier: MIT */
/* base/units.h: sizes, rates and times as users write and read them.
 *
 * Size: "4096", "512K", "1M", "20G", "1T" (powers of 1024; KiB, MiB, GiB, TiB likewise), "10KB", "10GB"
 * (powers of 1000). Rate: bytes a second, "100M" (MiB/s), "1GB/s"; with bit, bits a second in powers of 1000:
 * "10Gbit", "250Mbit/s". Time: a unit is required: "50ms", "2s", "5m", "1h", "100us". All parsers refuse
 * signs, garbage and overflow. They return 0 or -EINVAL/-ERANGE with a sentence that names what was read.
 */
#ifndef XM_BASE_UNITS_H
#define XM_BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

int xm_parse_size(const char *text, uint64_t *bytes, struct xm_error *e);
int xm_parse_rate(const char *text, uint64_t *bytes_per_s, struct xm_error *e);
int xm_parse_time(const char *text, uint64_t *ns, struct xm_error *e);

struct xm_text {
    char s[32];
};
struct xm_text xm_format_size(uint64_t bytes);     /* "1.50 GiB" */
struct xm_text xm_format_rate(double bytes_per_s); /* "1.25 GB/s" */
struct xm_text xm_format_time(uint64_t ns);        /* "12.3 ms", "4.20 s", "1 h 03 min" */

#endif
