/* SPDX-License-Identifier: MIT */
/* tests/faults: `make check-faults`: the small guest (tests/system/small.h) is moved between the two hosts of
 * a lab again and again, each time with one fault or two, at a named point of the code or at a random time.
 * Afterwards only what a user may do is done: agents are started again, the commands that messages advise,
 * `recover`, `start`. Then it is judged: one runner, nothing lost, nothing left, the next move works.
 *
 *   main.c    which cases, in which order; the lab, made anew when one of them has broken it
 *   plan.c    one case: its faults, from its seed or from the table of points
 *   points.c  the table of named points
 *   hosts.c   what a fault does to a host, and takes back
 *   run.c     one case: the move, with its faults at their times
 *   rest.c    brings the VM to rest by commands
 *   judge.c   what must hold then
 *   report.c  docs/faults.md
 *
 * In the environment: XM_FAULTS=whole (all points, 300 random cases; else a few of both), XM_FAULTS_SEED=N
 * (the first random case's seed: 1), XM_FAULTS_COUNT=N (of random cases; with a seed: 1),
 * XM_FAULTS_POINT=PATTERN (those points alone), XM_FAULTS_REPORT=PATH (the table goes there). A random case
 * is its seed: the same faults at the same times after the move's begin. */
#ifndef XM_TESTS_FAULTS_H
#define XM_TESTS_FAULTS_H

#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <stdint.h>

#define VM "f1"

/* ---- plan.c ---- */

enum kind {
    KILL,    /* a process, SIGKILL; an agent is started again after hold_ms, as init would */
    TERM,    /* SIGTERM, likewise */
    STOP,    /* SIGSTOP, hold_ms, SIGCONT */
    DOWN,    /* both links set down for hold_ms */
    ONE,     /* one link set down */
    DROP,    /* both links take packets and deliver none */
    SLOW,    /* both links at 2 Mbit/s */
    CONTROL, /* the control network set down */
    FULL,    /* a file system has no room left */
    SEALED,  /* a file system is read-only for whoever opens something */
    ABORT,   /* xmigrate abort */
    SECOND,  /* the same move once more, beside the first */
    CUT,     /* power: all processes stop, what was not synced is lost, boot after hold_ms */
    POINT,   /* base/fault.h: point, passage, action */
    KINDS
};
enum side { SOURCE, DESTINATION };
enum who { AGENT, SHIM, QEMU, CLI };
enum where { STATE, RUN, STORES };

struct fault {
    enum kind kind;
    enum side side;
    enum who who;     /* KILL, TERM, STOP */
    enum where where; /* FULL, SEALED */
    unsigned at_ms, hold_ms;
    const char *point, *action; /* POINT; action cut: stopped there, and then power is cut */
    unsigned passage;
};

#define FAULTS_MAX 2
struct plan {
    uint64_t seed;     /* 0: a named point */
    char name[80];     /* for people */
    bool storage_only; /* instead of a move to the other host */
    const char *home;  /* where it has to end: "source", "destination"; NULL: either */
    unsigned faults;
    struct fault fault[FAULTS_MAX];
};

void plan_random(struct plan *, uint64_t seed);
void plan_point(struct plan *, unsigned number);
/* «kill -9 of the source's shim at 130 ms», ... */
void plan_tell(const struct plan *, char *text, size_t size);

/* ---- points.c ---- */

struct point {
    const char *name;
    enum side side;
    unsigned passage;
    const char *action;
    unsigned hold_ms; /* of stop and cut */
    const char *home; /* NULL: either */
    bool storage_only;
    bool late; /* the first switch-over takes too long, and is tried again; the other host sees to that */
};
extern const struct point points[];
extern const unsigned points_count;

/* ---- hosts.c ---- */

struct world {
    struct small guest;
    char home;    /* where it runs: a, b */
    unsigned ds;  /* of its disks there, 1 or 2 */
    bool torn;    /* power was cut in this case: writes that no flush covers may be lost */
    bool may_end; /* a fault of this case ends the guest's QEMU: it may begin anew */
};

char host_of(const struct world *, enum side);
bool hosts_up(struct world *); /* a lab with the guest running at a */
/* Cuts the power of b, where nothing runs. NULL, or why that is no power cut on this machine. */
const char *power_is_power(struct world *);
/* Makes each directory of b read-only, and writable again. NULL, or why that does not work. */
const char *sealed_is_sealed(void);
/* The process, 0: none. */
pid_t host_pid(char host, enum who);
/* Begins and ends one. `move` is the job of the command line. */
void fault_begin(struct world *, const struct fault *, struct job *move);
void fault_end(struct world *, const struct fault *, struct job *move);
/* The point has been reached. */
bool fault_struck(const struct world *, const struct fault *);
/* What follows then: power is cut. */
void fault_follow(struct world *, const struct fault *);
void host_wake(char host); /* whoever is stopped there */
bool agent_up(char host);  /* starts it when there is none */

/* ---- run.c, rest.c, judge.c ---- */

struct outcome {
    bool struck;  /* POINT: it was reached; others: true */
    int exit;     /* the move's; -1: it was killed */
    char home;    /* 0: nowhere */
    bool asked;   /* commands were needed to find out where it is */
    bool started; /* it had ended, and was started */
    unsigned boots;
    double seconds;
    char *said;       /* by the move, malloc'ed */
    char wrong[1200]; /* "": nothing */
};

void run_plan(struct world *, const struct plan *, struct outcome *);
/* What the command line said last: "" or the sentence. */
void rest(struct world *, struct outcome *);
void judge(struct world *, const struct plan *, struct outcome *);
void wrong(struct outcome *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- report.c ---- */

void report_add(const struct plan *, const struct outcome *, char source); /* where the VM was */
bool report_write(const char *path); /* NULL: only prints; false: something was wrong */

#endif
