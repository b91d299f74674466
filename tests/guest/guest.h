/* SPDX-License-Identifier: MIT */
/* tests/guest/guest.h: the parts of the test guest's only program, which is its init.
 *
 * Kernel command line (sizes take K, M, G):
 *   xm.disk=DEV[:rate=4M][:span=256M][:trim=16M][:threads=2][:prefilled|:blank][:name=NAME]
 *                              write records to the first `span` bytes of /dev/DEV at `rate` bytes a second; the last `trim` of
 *                              them see discards and write-zeroes too. NAME (default DEV) is the disk's name in the records.
 *   xm.mem=64M:rate=32M        keep that much memory full of patterns, rewriting `rate` a second
 *   xm.ip=10.9.0.2/24          address of the first NIC
 *   xm.seed=N                  of every pseudo-random choice
 *   no_timer_check             the kernel's own. It wants five timer interrupts within 50 to 80 ms while it boots, and panics when
 *                              that fails four times: QEMU's main thread, which makes them, may be kept from a busy processor for
 *                              longer. Beside 16 spinning processes, 3 of 32 boots panicked; with it none of 20.
 * Ports: 7001 TCP echo; 7002 heartbeat, TCP and UDP; 7003 TCP commands, the same as on the serial console.
 * Anything wrong is printed at once as a line «XMGUEST FAIL ...» and counted; «XMGUEST READY ...» ends the start.
 */
#ifndef XM_TESTS_GUEST_GUEST_H
#define XM_TESTS_GUEST_GUEST_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PORT_ECHO    7001
#define PORT_BEAT    7002
#define PORT_COMMAND 7003

/* One heartbeat, little-endian, on TCP and UDP. */
struct beat {
    uint64_t magic; /* BEAT_MAGIC */
    uint64_t count; /* one more each time, for all clients */
    uint64_t guest_ns;
    uint64_t gap_ns; /* the longest pause between two beats by the guest's own clock */
};
#define BEAT_MAGIC 0x5441454247584dULL

struct params {
    char disk[8][160]; /* the texts after xm.disk= */
    unsigned disks;
    uint64_t mem_bytes, mem_rate;
    char ip[32];
    uint64_t seed;
};

/* Writers pass through a gate before each operation; who closes it knows that none is under way. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned closed, inside;
};
void gate_init(struct gate *);
void gate_enter(struct gate *);
void gate_leave(struct gate *);
int gate_close(
    struct gate *); /* nests; -1 when those inside do not leave within a minute (closed all the same) */
void gate_open(struct gate *);

/* init.c */
uint64_t now_ns(void);
void guest_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void guest_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
unsigned guest_fails(void);
const char *guest_first_fail(void);
void start_thread(void *(*fn)(void *), void *arg);
uint64_t parse_size(const char *s);
/* Sleeps so that bytes pass at the rate; *next is its memory (0 at first). */
void pace(uint64_t *next, uint64_t bytes, uint64_t rate);

/* boot.c */
void boot_mounts(void);
void boot_modules(void);
int boot_network(const char *cidr);
void boot_params(struct params *);
int boot_wait_device(const char *dev);
void boot_watch_power_button(void);

/* disk.c; diskload.c */
int disks_start(const struct params *);
void disks_pause(void);
void disks_resume(void);
/* Reads all blocks back; returns how many were wrong. The writers must be paused. */
uint64_t disks_verify(uint64_t *blocks);
void disks_status(FILE *json);
void disks_reset(void);
/* Verified mixed load with `depth` threads on one disk (NULL: each); writes its figures. -1: no such disk. */
int disks_load(const char *dev, unsigned seconds, unsigned depth, FILE *json);

/* memory.c */
void memory_start(const struct params *);
void memory_pause(void);
void memory_resume(void);
uint64_t memory_verify(uint64_t *pages);
void memory_status(FILE *json);

/* files.c: «fs DEV SECONDS» */
int files_load(const char *dev, unsigned seconds, FILE *json);

/* tcp.c */
void tcp_start(void);
uint64_t tcp_clock_gap(bool reset);

/* command.c: runs one command line; the answer is one JSON line, malloc'ed. */
char *command_run(const char *line);

#endif
