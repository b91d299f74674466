/* SPDX-License-Identifier: MIT */
/* One case: the move begins, faults begin and end at their times, what still lasts is ended, the agents are
 * started again. Then the VM is brought to rest, and judged. */
#include "tests/faults/faults.h"
#include "tests/progress.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOVE_S 150 /* of progress: then the command line hangs */

void wrong(struct outcome *o, const char *fmt, ...)
{
    size_t n = strlen(o->wrong);
    va_list ap;

    if (n + 4 >= sizeof o->wrong)
        return;
    if (n)
        n += (size_t)snprintf(o->wrong + n, sizeof o->wrong - n, "; ");
    va_start(ap, fmt);
    vsnprintf(o->wrong + n, sizeof o->wrong - n, fmt, ap);
    va_end(ap);
}

static unsigned now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned)(t.tv_sec % 1000000 * 1000 + t.tv_nsec / 1000000);
}

enum phase { AHEAD, ON, OVER };

struct course {
    enum phase phase[FAULTS_MAX];
    unsigned began[FAULTS_MAX]; /* ms after the move's begin */
    bool struck[FAULTS_MAX];
    bool ended; /* the move */
    unsigned ended_at;
};

/* One look at a fault whose time may have come. */
static void turn(struct world *w, const struct plan *p, struct course *c, unsigned i, struct job *move,
                 unsigned at)
{
    const struct fault *f = &p->fault[i];
    bool point = f->kind == POINT;

    if (c->phase[i] == AHEAD && (point ? fault_struck(w, f) : at >= f->at_ms)) {
        if (point)
            fault_follow(w, f);
        else
            fault_begin(w, f, move);
        c->phase[i] = ON;
        c->began[i] = at;
        c->struck[i] = true;
    } else if (c->phase[i] == ON && at >= c->began[i] + f->hold_ms) {
        fault_end(w, f, move);
        c->phase[i] = OVER;
    } else if (point && c->phase[i] == AHEAD && c->ended && at > c->ended_at + 1500) {
        fault_end(w, f, move); /* it is not reached any more */
        c->phase[i] = OVER;
    }
}

static bool all_over(const struct plan *p, const struct course *c)
{
    for (unsigned i = 0; i < p->faults; i++) {
        if (c->phase[i] != OVER)
            return false;
    }
    return c->ended;
}

static bool has_ended(const struct job *move)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)move->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid;
}

static void start_move(struct world *w, const struct plan *p, struct job *move)
{
    char host[2] = {w->home, 0};

    if (p->storage_only)
        job_start(move, "%s", xmigrate(host, "--json --storage-only " VM " ds%u", 3 - w->ds));
    else
        job_start(move, "%s", xmigrate(host, "--json --with-storage " VM " host%c", host_of(w, DESTINATION)));
}

static void walk(struct world *w, const struct plan *p, struct outcome *o)
{
    struct course c = {0};
    struct job move;
    struct limit l = limit_start(MOVE_S);

    for (unsigned i = 0; i < p->faults; i++) {
        if (p->fault[i].kind == POINT)
            fault_begin(w, &p->fault[i], NULL);
    }
    unsigned began = now_ms();
    start_move(w, p, &move);
    while (!all_over(p, &c)) {
        unsigned at = now_ms() - began;
        small_read(&w->guest);
        if (!c.ended && has_ended(&move)) {
            c.ended = true;
            c.ended_at = at;
        }
        for (unsigned i = 0; i < p->faults; i++)
            turn(w, p, &c, i, &move, at);
        if (limit_over(&l)) {
            if (!c.ended)
                wrong(o, "the command line does not end");
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    for (unsigned i = 0; i < p->faults; i++) {
        if (c.phase[i] == ON)
            fault_end(w, &p->fault[i], &move);
        o->struck |= c.struck[i] && (i == 0 || p->seed); /* a named point's other one only leads there */
    }
    o->exit = job_end(&move, 5, &o->said);
}

void run_plan(struct world *w, const struct plan *p, struct outcome *o)
{
    struct limit l = limit_start(1);

    memset(o, 0, sizeof *o);
    w->torn = w->may_end = false;
    o->boots = w->guest.boots;
    walk(w, p, o);
    for (const char *h = "ab"; *h; h++) {
        host_wake(*h);
        if (!agent_up(*h))
            wrong(o, "the agent of host%c does not start again", *h);
    }
    if (!o->wrong[0])
        rest(w, o);
    if (!o->wrong[0])
        judge(w, p, o);
    o->boots = w->guest.boots - o->boots;
    o->seconds = limit_elapsed(&l);
}
