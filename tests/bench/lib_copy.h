/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_copy.h: our bulk copy between the two hosts, without agents and guests: a process in host
 * B that writes what comes, one in host A that copies. */
#ifndef XM_BENCH_LIB_COPY_H
#define XM_BENCH_LIB_COPY_H

#include "mirror/mirror.h"
#include "tests/bench/bench.h"

#define COPY_DISKS 8

struct copy_job {
    unsigned disks, links;
    const char *from[COPY_DISKS], *to[COPY_DISKS]; /* devices, or files (to: made if it is not there) */
    uint64_t size;                                 /* of files to be made */
};
struct copy_result {
    double seconds;
    uint64_t memory; /* bytes, the source process's most (VmHWM) */
};
/* False when it failed; it has said why on stderr. */
bool copy_run(const struct copy_job *, struct copy_result *);

/* The parts, for who puts a guest in front. In host B; ends when the links do. */
pid_t copy_start_sink(const struct copy_job *);
/* In a process that has entered host A. NULL and a sentence on stderr. */
struct xm_links *copy_connect(unsigned links);

#endif
