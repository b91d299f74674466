/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_front.h: a guest's 4 KiB requests, driven by the tests' small vhost-user front end. It
 * sleeps on its call eventfd as a guest does on its interrupt, so that each request at depth 1 costs two
 * wake-ups. */
#ifndef XM_BENCH_LIB_FRONT_H
#define XM_BENCH_LIB_FRONT_H

#include "tests/bench/bench.h"
#include "tests/unit/lib_vhost_front.h"

struct front_result {
    double iops, p50, p99, cpu; /* a second, us, us, us of the back end a request */
    double kicks, waits;        /* a request */
};
/* As KVM keeps a halted vCPU awake for a while (halt_poll_ns), which takes the idle processors' wake-ups, 50
 * us each in a virtual machine, out of both sides' figures. */
#define FRONT_HALT_POLL (200 * XM_NS_PER_US)
/* watch_ns: how long the front end watches its ring before it sleeps. Or the end of the bench. */
void front_connect(struct vf *, const char *socket, uint64_t watch_ns);
/* Random places of a disk of that size; depth at most 64. backend: whose CPU time is counted, or 0. */
struct front_result front_measure(struct vf *, uint32_t type, unsigned depth, uint64_t disk_size, uint64_t ns,
                                  pid_t backend);
/* Depths and directions that are asked for. */
struct front_case {
    const char *name;
    uint32_t type;
    unsigned depth;
};

#endif
