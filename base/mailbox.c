/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <unistd.h>

int xm_mailbox_init(struct xm_mailbox *m)
{
    m->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (m->fd < 0)
        return -errno;
    pthread_mutex_init(&m->lock, NULL);
    STAILQ_INIT(&m->posts);
    atomic_init(&m->waking, 0);
    m->owner = pthread_self();
    return 0;
}

void xm_mailbox_destroy(struct xm_mailbox *m)
{
    while (atomic_load_explicit(&m->waking, memory_order_acquire))
        sched_yield();
    close(m->fd);
    pthread_mutex_destroy(&m->lock);
}

void xm_mailbox_own(struct xm_mailbox *m)
{
    m->owner = pthread_self();
}

void xm_mailbox_post(struct xm_mailbox *m, struct xm_post *p)
{
    pthread_mutex_lock(&m->lock);
    bool first = STAILQ_EMPTY(&m->posts);
    STAILQ_INSERT_TAIL(&m->posts, p, next);
    if (first)
        atomic_fetch_add_explicit(&m->waking, 1, memory_order_relaxed);
    pthread_mutex_unlock(&m->lock);
    /* Not under the lock: an owner that is woken on our processor would find it taken, and sleep again. */
    if (first) {
        eventfd_write(m->fd, 1);
        atomic_fetch_sub_explicit(&m->waking, 1, memory_order_release);
    }
}

unsigned xm_mailbox_run(struct xm_mailbox *m)
{
    STAILQ_HEAD(, xm_post) todo = STAILQ_HEAD_INITIALIZER(todo);
    eventfd_t ignored;
    unsigned n = 0;

    /* First: what is posted after this writes again. And always: a write may come when its post has been
     * run. */
    eventfd_read(m->fd, &ignored);
    pthread_mutex_lock(&m->lock);
    STAILQ_CONCAT(&todo, &m->posts);
    pthread_mutex_unlock(&m->lock);
    for (struct xm_post *p; (p = STAILQ_FIRST(&todo)); n++) {
        STAILQ_REMOVE_HEAD(&todo, next);
        p->run(p);
    }
    return n;
}

unsigned xm_mailbox_wait(struct xm_mailbox *m, int timeout_ms)
{
    struct pollfd p = {.fd = m->fd, .events = POLLIN};
    uint64_t now = xm_now(), until = now + (uint64_t)XM_MAX(timeout_ms, 0) * XM_NS_PER_MS;
    unsigned n = 0;

    while (!n && poll(&p, 1, timeout_ms) > 0) {
        n = xm_mailbox_run(m);
        now = xm_now();
        if (timeout_ms > 0)
            timeout_ms = now < until ? (int)((until - now) / XM_NS_PER_MS) : 0;
    }
    return n;
}

struct call {
    struct xm_post post;
    void (*fn)(void *);
    void *arg;
    sem_t done;
};

static void call_run(struct xm_post *p)
{
    struct call *c = xm_container_of(p, struct call, post);
    c->fn(c->arg);
    sem_post(&c->done);
}

void xm_mailbox_call(struct xm_mailbox *m, void (*fn)(void *), void *arg)
{
    if (pthread_equal(m->owner, pthread_self())) {
        fn(arg);
        return;
    }
    struct call c = {.post.run = call_run, .fn = fn, .arg = arg};
    sem_init(&c.done, 0, 0);
    xm_mailbox_post(m, &c.post);
    while (sem_wait(&c.done) < 0) {
    }
    sem_destroy(&c.done);
}
