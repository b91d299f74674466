/* SPDX-License-Identifier: MIT */
/* base/clock.h: time is uint64_t nanoseconds of CLOCK_MONOTONIC; waiting by watching. */
#ifndef XM_BASE_CLOCK_H
#define XM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define XM_NS_PER_US 1000ull
#define XM_NS_PER_MS 1000000ull
#define XM_NS_PER_S  1000000000ull

static inline uint64_t xm_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Between two looks of who watches for something instead of sleeping. */
static inline void xm_relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    __asm__ __volatile__("" ::: "memory");
#endif
}

#endif
