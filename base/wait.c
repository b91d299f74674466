/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <limits.h>
#include <poll.h>

/* Rounded up: a wait that ends too early would only begin again. */
static int ms_until(uint64_t deadline)
{
    uint64_t now = xm_now();

    if (deadline == UINT64_MAX)
        return -1;
    if (now >= deadline)
        return 0;
    return (int)XM_MIN((deadline - now - 1) / XM_NS_PER_MS + 1, INT_MAX);
}

int xm_wait_fd(int fd, short events, uint64_t deadline)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, ms_until(deadline));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0 && xm_now() >= deadline)
            return -ETIMEDOUT;
    }
}
