/* SPDX-License-Identifier: MIT */
/* base/wait.h: waiting for one descriptor, not longer than until a moment of base/clock.h. */
#ifndef XM_BASE_WAIT_H
#define XM_BASE_WAIT_H

#include <stdint.h>

/* Until `events` (poll's; an error or a hang-up counts) are there. 0, -ETIMEDOUT, or -errno of poll;
 * signals do not end it. A deadline that has passed already: looks once. UINT64_MAX: for as long as it
 * takes. */
int xm_wait_fd(int fd, short events, uint64_t deadline);

#endif
