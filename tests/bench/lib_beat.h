/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_beat.h: the KVM guest (tests/guest/kvm) seen from outside: the longest time in which
 * none of its serial ports said anything. Each byte is a sign of life; the guest sends one a millisecond. */
#ifndef XM_BENCH_LIB_BEAT_H
#define XM_BENCH_LIB_BEAT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Listens to the serial sockets of both hosts' QEMUs, connecting as soon as one is there. */
struct beat {
    char path[2][200];
    pthread_t thread;
    atomic_bool end;
    atomic_uint lines; /* in which the guest said how far it is */
    atomic_bool wrong; /* it has found an error */
    pthread_mutex_t lock;
    uint64_t last, longest; /* ns; by the lock */
};

void beat_listen(struct beat *, const char *path_a, const char *path_b);
/* Until the guest has said `lines` lines more (four a second). False: it has been silent for a minute, or
 * has found an error. */
bool beat_wait(struct beat *, unsigned lines);
/* From now on. */
void beat_mark(struct beat *);
double beat_longest(struct beat *); /* ms since the mark, the silence that lasts now counted */
void beat_end(struct beat *);

#endif
