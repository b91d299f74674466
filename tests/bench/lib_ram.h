/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_ram.h: guest memory without a guest, moved by our rounds from host A (which the caller
 * lives in) to B. */
#ifndef XM_BENCH_LIB_RAM_H
#define XM_BENCH_LIB_RAM_H

#include "memxfer/memxfer.h"
#include "tests/bench/bench.h"

struct ram_guest {
    pid_t pid;
    int memfd, order[2], answer[2];
    uint8_t *va;
};
void ram_guest_start(struct ram_guest *, uint64_t size); /* full of what does not compress */
void ram_guest_end(struct ram_guest *, uint64_t size);

struct ram_costs {
    double open_s, round_s, second_s; /* tracking set up; round 1; round 2 with all dirty */
    double own_cpu, peer_cpu;         /* CPU seconds of round 1: this side, the other one */
    double far_cpu;                   /* the other side, both rounds and populating */
};
/* Bytes per ns of round 1. The memory on both sides is compared, after a second round that carries it all
 * again. */
double ram_run(struct ram_guest *, uint64_t size, int connections, struct ram_costs *);

#endif
