/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_peer.h: what we are measured against, in the hosts of bench.h. */
#ifndef XM_BENCH_LIB_PEER_H
#define XM_BENCH_LIB_PEER_H

#include "machine/qmp.h"
#include "tests/bench/bench.h"

/* Waits, at most 20 s, until something listens there. */
bool peer_wait_port(char host, uint16_t port);
/* Bytes a second from A to B; 0 when it failed. From memory, for about `seconds`. congestion: the algorithm,
 * or NULL for the hosts' default. */
double peer_iperf(const char *address, unsigned streams, unsigned seconds, const char *congestion);
/* Sequential, direct, 256 KiB, 16 deep, over the first `size` bytes, bytes a second; 0 when it failed. */
double peer_fio(const char *path, bool write, uint64_t size);
/* The same, reading one and writing the other at once: the slower rate. */
double peer_fio_both(const char *from, const char *to, uint64_t size);
/* 4 KiB at random places, requests a second. */
double peer_fio_iops(const char *path, bool write, unsigned depth, uint64_t size, unsigned ms);
/* What TCP connections made from now on use in both hosts; NULL: what they used at first. */
void peer_congestion(const char *algorithm);

/* A QEMU (or qemu-storage-daemon) that we talk to. */
struct peer_qemu {
    pid_t pid;
    struct qmp qmp;
    bool open;
    /* Set by events. */
    bool job_ready, job_over, stopped, resumed;
    char migration[32]; /* the state */
    char error[200];    /* of a block job */
};
/* Connects to its QMP socket; false and a sentence on stderr. */
bool peer_qmp(struct peer_qemu *, const char *socket);
/* args: jansson's format and values, or NULL. False and QEMU's words on stderr. */
bool peer_do(struct peer_qemu *, const char *command, const char *format, ...);
/* CPU seconds of the process that serves its QMP socket: `pid` may be a wrapper around it. */
double peer_cpu(const struct peer_qemu *);
json_t *peer_get(struct peer_qemu *, const char *command); /* may be NULL */
/* Turns until *flag, at most `seconds`; no longer when a block job has failed. */
bool peer_until(struct peer_qemu *, const bool *flag, unsigned seconds);
bool peer_until_migration(struct peer_qemu *, const char *state, unsigned seconds);
void peer_end(struct peer_qemu *);

/* blockdev-mirror of a node to node «dst» as QEMU does it best here. */
bool peer_mirror(struct peer_qemu *, const char *node, const char *copy_mode);
/* multifd as it does it best here, events, and 100 ms for the estimated downtime. On both sides. */
bool peer_migration_settings(struct peer_qemu *, unsigned channels);

#endif
