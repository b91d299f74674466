/* SPDX-License-Identifier: MIT */
/* Threads as coroutines in virtual time. A task runs until it waits; who is woken runs a little later, how
 * much is chance, so that orders differ between seeds. A task of a killed process is never resumed. */
#include "tests/sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define STACK (160u << 10)
#define TASKS 4096

enum state { READY, RUNNING, BLOCKED, DONE };

struct task {
    void *sp;
    char *stack;
    struct proc *proc;
    void *(*run)(void *);
    void *arg, *result;
    enum state state;
    const void *on;            /* what it waits for */
    unsigned turn;             /* each wait has another: a wake-up that comes late is told by it */
    bool woken;                /* not by its deadline */
    bool held;                 /* it was to be resumed, and its process is stopped */
    struct task *next, **back; /* of all that are not done */
};

struct event {
    uint64_t when, order;
    event_fn *fn; /* NULL: resume `arg`, a task, at its turn */
    void *arg;
    unsigned turn;
};

static struct task *task, *first, pool[TASKS];
static unsigned used;
static char *stacks[TASKS];
static unsigned free_stacks;
static struct event *heap;
static size_t events, room;
static uint64_t now, order;
static void *world_sp;
unsigned mutex_waiters, run_number;

/* ---- switching ---- */

void sim_switch(void **save, void *load);
__asm__(".text\n.globl sim_switch\n.type sim_switch,@function\nsim_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp,(%rdi)\n  movq %rsi,%rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size sim_switch,.-sim_switch\n");

static void leave(struct task *t)
{
    task = NULL;
    sim_switch(&t->sp, world_sp);
}

static void drop_stack(struct task *t)
{
    if (t->stack)
        stacks[free_stacks++] = t->stack;
    t->stack = NULL;
}

static void finish(struct task *t)
{
    t->state = DONE;
    *t->back = t->next;
    if (t->next)
        t->next->back = t->back;
    task_wake(t);
}

static void begin(void)
{
    struct task *t = task;

    t->result = t->run(t->arg);
    finish(t);
    leave(t);
    abort();
}

static void resume(struct task *t)
{
    t->state = RUNNING;
    task = t;
    sim_switch(&world_sp, t->sp);
    task = NULL;
    if (t->state == DONE)
        drop_stack(t);
}

/* ---- events ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->when != b->when ? a->when < b->when : a->order < b->order;
}

static void add(uint64_t when, event_fn *fn, void *arg, unsigned turn)
{
    struct event e = {XM_MAX(when, now), order++, fn, arg, turn};
    size_t i = events++;

    if (events > room) {
        room = room ? 2 * room : 1024;
        heap = realloc(heap, room * sizeof *heap);
    }
    for (; i && before(&e, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

static struct event take(void)
{
    struct event e = heap[0], last = heap[--events];
    size_t i = 0, c;

    while ((c = 2 * i + 1) < events) {
        if (c + 1 < events && before(&heap[c + 1], &heap[c]))
            c++;
        if (!before(&heap[c], &last))
            break;
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = last;
    return e;
}

void at(uint64_t when, event_fn *fn, void *arg)
{
    add(when, fn, arg, 0);
}

void after(uint64_t ns, event_fn *fn, void *arg)
{
    add(now + ns, fn, arg, 0);
}

uint64_t sim_time(void)
{
    return now;
}

static void ready(struct task *t, uint64_t delay)
{
    t->state = READY;
    t->turn++;
    add(now + delay, NULL, t, t->turn);
}

/* Its deadline has come, or it is its turn to run. */
static void due(struct task *t, unsigned turn)
{
    if (t->state == DONE || t->turn != turn)
        return;
    if (t->state == BLOCKED) {
        t->woken = false;
        t->on = NULL;
    }
    if (t->proc && t->proc->stopped) {
        t->held = true;
        t->state = READY;
        return;
    }
    resume(t);
}

bool tasks_run(uint64_t until, bool (*over)(void))
{
    while (events && !w.failed) {
        if (over && over())
            return true;
        if (heap[0].when > until) {
            now = until;
            return true;
        }
        struct event e = take();
        now = e.when;
        if (e.fn)
            e.fn(e.arg);
        else
            due(e.arg, e.turn);
        check_always();
    }
    return false;
}

void tasks_reset(void)
{
    for (unsigned i = 0; i < used; i++)
        drop_stack(&pool[i]);
    memset(pool, 0, used * sizeof *pool);
    used = 0;
    first = task = NULL;
    heap = NULL;
    events = room = 0;
    now = 1000 * SEC;
    order = 0;
    mutex_waiters = 0;
    run_number++;
}

/* ---- tasks ---- */

struct task *task_current(void)
{
    return task;
}

struct proc *proc_current(void)
{
    return task ? task->proc : NULL;
}

bool task_done(const struct task *t, void **result)
{
    if (t->state == DONE && result)
        *result = t->result;
    return t->state == DONE;
}

struct task *task_new(struct proc *proc, void *(*run)(void *), void *arg)
{
    if (used == TASKS) {
        sim_violated("more than %d threads", TASKS);
        used--;
    }
    struct task *t = &pool[used++];
    if (!free_stacks)
        stacks[free_stacks++] = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *stack = stacks[--free_stacks];
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(stack, STACK);
#endif
    *t = (struct task){.stack = stack, .proc = proc, .run = run, .arg = arg, .next = first, .back = &first};
    if (first)
        first->back = &t->next;
    first = t;
    void **sp = (void **)(void *)(stack + STACK - 64);
    *--sp = NULL; /* where a call would have left its return address */
    *--sp = (void *)begin;
    sp -= 6;
    memset(sp, 0, 6 * sizeof *sp);
    t->sp = sp;
    ready(t, below(20 * XM_NS_PER_US));
    return t;
}

bool task_wait(const void *on, uint64_t deadline)
{
    struct task *t = task;

    if (!t)
        return false;
    t->state = BLOCKED;
    t->on = on;
    t->turn++;
    t->woken = true;
    if (deadline != NEVER)
        add(deadline, NULL, t, t->turn);
    leave(t);
    return t->woken;
}

void task_sleep(uint64_t ns)
{
    task_wait(NULL, now + ns);
}

void task_wake_one(struct task *t)
{
    if (t->state != BLOCKED)
        return;
    t->on = NULL;
    t->woken = true;
    ready(t, chance(w.preempt) ? below(2 * MS) : below(30 * XM_NS_PER_US));
}

void task_wake(const void *on)
{
    struct task *next;

    for (struct task *t = first; t; t = next) {
        next = t->next;
        if (t->on == on)
            task_wake_one(t);
    }
}

void tasks_drop(struct proc *p)
{
    struct task *next, *self = NULL;

    for (struct task *t = first; t; t = next) {
        next = t->next;
        if (t->proc != p)
            continue;
        if (t == task) {
            self = t;
            continue;
        }
        finish(t);
        drop_stack(t);
    }
    /* What waits for a mutex of theirs in another process (they are static) goes on. */
    for (struct task *t = first; t && mutex_waiters; t = t->next) {
        if (t->on && t->state == BLOCKED)
            task_wake_one(t);
    }
    if (self) {
        finish(self);
        leave(self);
    }
}

void tasks_freeze(struct proc *p, bool frozen)
{
    for (struct task *t = first; t && !frozen; t = t->next) {
        if (t->proc == p && t->held) {
            t->held = false;
            ready(t, below(100 * XM_NS_PER_US));
        }
    }
}
