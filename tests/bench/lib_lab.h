/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_lab.h: tests/system/lab.sh for benchmarks: its hosts and agents (the hosts of bench.h from
 * then on), real guests under xmigrate, the same guests in two plain QEMUs, and who watches them from
 * outside. */
#ifndef XM_BENCH_LIB_LAB_H
#define XM_BENCH_LIB_LAB_H

#include "tests/bench/lib_peer.h"

#define LAB_IP "10.9.0.2"

/* Or the end of the bench; down at exit. Its guests run on the QEMU that is in use when it is begun
 * (lib_version.h). */
void lab_up(void);
/* A path in host h's datastore ds1 ('A' or 'B'); static storage, four at a time. */
const char *lab_path(char h, const char *file);
/* xmigrate on host h; 0 when it succeeds. */
int lab_xmigrate(char h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* lab_xmigrate with --json of a move; its report's downtime, ms. < 0: it failed. */
double lab_move(char h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A number that the report of the last move has; -1: there is no such report. */
double lab_told(const char *what);
/* Both links' rate, as tc takes it; "" for none. */
void lab_shape(const char *link1, const char *link2);

struct lab_guest {
    char name[24], ip[24];
    unsigned memory;              /* MiB */
    unsigned disks, nics, queues; /* 0: one NIC, two queues a disk */
    char file[16][40];            /* of ds1 of host A */
    const char *append;
};
void lab_start(const struct lab_guest *); /* on host A; returns when the guest answers */
/* Runs on host B after a migration: is verified, ended, and its disks there are deleted. */
void lab_finish(const struct lab_guest *, bool verify);
bool lab_wait_guest(const char *ip, unsigned seconds);
bool lab_verify_guest(const char *ip);
json_t *lab_status(const char *ip); /* the guest's own words; NULL: no answer */

/* The longest silence of the guest on UDP, seen from the client's namespace. */
struct lab_pulse {
    pid_t pid;
    char path[200];
};
void lab_pulse_start(struct lab_pulse *, const char *ip);
double lab_pulse_end(struct lab_pulse *); /* ms; -1: it failed */

/* The same guest in a plain QEMU on host h, of the version in use; one that reads dirty bitmaps wrongly
 * gives it 128 KiB less memory (lib_lab.c says why). */
void lab_qemu_start(struct peer_qemu *, const struct lab_guest *, char h, bool incoming);
bool lab_qemu_clean_bitmap(struct peer_qemu *); /* before its migration is measured */
/* Mirror over NBD, then RAM with multifd; `to` is started here. False: QEMU said why. */
bool lab_qemu_migrate(struct peer_qemu *from, struct peer_qemu *to, const struct lab_guest *);

#endif
