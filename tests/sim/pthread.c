/* SPDX-License-Identifier: MIT */
/* Clocks, threads, mutexes, conditions and semaphores on top of tasks (task.c). */
#include "tests/sim/sim.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    uint64_t t = sim_time() + (clock == CLOCK_REALTIME ? 1700000000 * SEC : 0);

    ts->tv_sec = (time_t)(t / SEC);
    ts->tv_nsec = (long)(t % SEC);
    return 0;
}

time_t __wrap_time(time_t *t)
{
    time_t v = (time_t)(1700000000 + sim_time() / SEC);

    if (t)
        *t = v;
    return v;
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    (void)attr;
    *t = (pthread_t)task_new(proc_current(), run, arg);
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    struct task *t = (struct task *)thread;

    while (!task_done(t, result))
        task_wait(t, NEVER);
    return 0;
}

pthread_t __wrap_pthread_self(void)
{
    return (pthread_t)task_current();
}

int __wrap_pthread_setname_np(pthread_t t, const char *name)
{
    (void)t, (void)name;
    return 0;
}

/* In the memory of the product's own; what an earlier run has left in a static one is told by its number. */
struct mutex {
    unsigned run;
    struct task *owner;
};

static bool taken(struct mutex *m)
{
    return m->run == run_number && m->owner && !task_done(m->owner, NULL);
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
{
    (void)attr;
    memset(mutex, 0, sizeof *mutex);
    return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex)
{
    (void)mutex;
    return 0;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    struct mutex *m = (struct mutex *)(void *)mutex;

    while (taken(m) && task_current()) {
        mutex_waiters++;
        task_wait(m, NEVER);
        mutex_waiters -= mutex_waiters > 0;
    }
    m->run = run_number;
    m->owner = task_current();
    return 0;
}

int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
    struct mutex *m = (struct mutex *)(void *)mutex;
    uint64_t deadline = (uint64_t)until->tv_sec * SEC + (uint64_t)until->tv_nsec;
    bool woken = true;

    (void)clock;
    while (taken(m) && woken) {
        mutex_waiters++;
        woken = task_wait(m, deadline);
        mutex_waiters -= mutex_waiters > 0;
    }
    return taken(m) ? ETIMEDOUT : __wrap_pthread_mutex_lock(mutex);
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    struct mutex *m = (struct mutex *)(void *)mutex;

    m->owner = NULL;
    if (mutex_waiters)
        task_wake(m);
    return 0;
}

int __wrap_pthread_cond_init(pthread_cond_t *c, const void *attr)
{
    (void)c, (void)attr;
    return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *c)
{
    (void)c;
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    task_wake(c);
    return 0;
}

static int cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t deadline)
{
    __wrap_pthread_mutex_unlock(m);
    bool woken = task_wait(c, deadline);
    __wrap_pthread_mutex_lock(m);
    return woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    return cond_wait(c, m, NEVER);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *ts)
{
    return cond_wait(c, m, (uint64_t)ts->tv_sec * SEC + (uint64_t)ts->tv_nsec);
}

/* Semaphores are counted in the product's own memory. */
int __wrap_sem_init(int *s, int shared, unsigned value)
{
    (void)shared;
    *s = (int)value;
    return 0;
}

int __wrap_sem_destroy(int *s)
{
    (void)s;
    return 0;
}

int __wrap_sem_post(int *s)
{
    ++*s;
    task_wake(s);
    return 0;
}

int __wrap_sem_wait(int *s)
{
    while (!*s)
        task_wait(s, NEVER);
    --*s;
    return 0;
}

int __wrap_sem_trywait(int *s)
{
    if (!*s) {
        errno = EAGAIN;
        return -1;
    }
    --*s;
    return 0;
}

int __wrap_sched_yield(void)
{
    task_sleep(1000);
    return 0;
}
