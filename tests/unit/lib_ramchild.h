/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_ramchild.h: a process that stands for QEMU: it maps a memfd shared and does with it what a
 * test wants. */
#ifndef LIB_RAMCHILD_H
#define LIB_RAMCHILD_H

#include "memxfer/memxfer.h"
#include <stdatomic.h>

/* Shared by parent and child. */
struct ramchild_page {
    atomic_int go, quit; /* the parent's: begin; end soon */
    atomic_int ready, paused;
    atomic_int pause; /* the child's loop shall wait (ramchild_gate) */
    atomic_ullong va; /* of the RAM in the child */
    atomic_ullong steps, errors, signals;
    char error[200]; /* the first */
    uint64_t arg[8];
};

struct ramchild {
    pid_t pid;
    int memfd;
    uint64_t size;
    struct ramchild_page *page;
    uint8_t *ram; /* in the child only */
    uint64_t seed;
};

/* Forks; the child maps `size` bytes of a new memfd (or of fd, when it is >= 0), runs body and exits. Returns
 * when it has mapped them; body begins at once. */
void ramchild_start(struct ramchild *, uint64_t size, int fd, void (*body)(struct ramchild *), uint64_t seed);
/* Asks it to end, waits, and fails the test if it has found errors or died. */
void ramchild_end(struct ramchild *);
void ramchild_kill(struct ramchild *); /* without asking; nothing when it has ended */
/* The parent's: the child is at its gate and touches nothing (true), or goes on (false). */
void ramchild_pause(struct ramchild *, bool pause);
/* The child's: waits while it shall pause. False: it shall end. */
bool ramchild_gate(struct ramchild *);
void ramchild_error(struct ramchild *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
uint64_t ramchild_random(struct ramchild *);
/* Skips the test, saying why, where the kernel cannot track or ptrace is not allowed. */
void ramchild_need_tracking(void);

#endif
