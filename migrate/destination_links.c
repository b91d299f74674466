/* SPDX-License-Identifier: MIT */
/* Links that come to a destination. Each shakes hands on a thread of its own, since the other side may take
 * its time (5 s, net/hello.c), and the shim's main thread has the VM's commands to answer.
 *
 * The list is the main thread's, which joins threads that are done when the next link comes, and at the
 * end, after it has shut down the sockets that still shake hands. For that each has a second descriptor of
 * its socket, under the destination's lock; the thread closes it when the handshake is over, or the other
 * side would not see it when the link ends. */
#include "migrate/destination.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define COMING_MAX 32u /* a host has no more links */

struct coming {
    LIST_ENTRY(coming) link;
    struct destination *dst;
    pthread_t thread;
    atomic_bool done;
    int fd;  /* the bundle's, from xm_links_add on */
    int own; /* the same socket; under dst->lock; -1: closed */
    char name[64];
};

static void *coming_main(void *arg)
{
    struct coming *c = arg;
    struct destination *dst = c->dst;
    struct xm_error e = {0};

    pthread_setname_np(pthread_self(), "hello");
    if (xm_links_add(dst->links, c->fd, false, c->name, &e) < 0)
        xm_log_limited(&dst->links_failed, XM_LOG_WARN, "VM %s, job %s from %s: %s", dst->machine->spec.name,
                       dst->job, dst->source, e.text);
    pthread_mutex_lock(&dst->lock);
    close(c->own);
    c->own = -1;
    pthread_mutex_unlock(&dst->lock);
    atomic_store(&c->done, true);
    return NULL;
}

static unsigned join(struct destination *dst, bool all)
{
    struct coming *c, *next;
    unsigned left = 0;

    for (c = LIST_FIRST(&dst->coming); c; c = next) {
        next = LIST_NEXT(c, link);
        if (!all && !atomic_load(&c->done)) {
            left++;
            continue;
        }
        pthread_join(c->thread, NULL);
        LIST_REMOVE(c, link);
        free(c);
    }
    return left;
}

int destination_add_link(struct destination *dst, int fd, const char *name, struct xm_error *e)
{
    struct coming *c = join(dst, false) < COMING_MAX ? calloc(1, sizeof *c) : NULL;
    int r = 0;

    if (!c) {
        close(fd);
        return xm_error_set(e, EBUSY, "%u links are shaking hands already", COMING_MAX);
    }
    c->dst = dst;
    c->fd = fd;
    c->own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    snprintf(c->name, sizeof c->name, "%s", name);
    if (c->own < 0)
        r = errno;
    else if ((r = pthread_create(&c->thread, NULL, coming_main, c)))
        close(c->own);
    if (r) {
        close(fd);
        free(c);
        return xm_error_errno(e, r, "link %s", name);
    }
    LIST_INSERT_HEAD(&dst->coming, c, link);
    return 0;
}

void destination_links_end(struct destination *dst)
{
    struct coming *c;

    pthread_mutex_lock(&dst->lock);
    LIST_FOREACH (c, &dst->coming, link) {
        if (c->own >= 0)
            shutdown(c->own, SHUT_RDWR);
    }
    pthread_mutex_unlock(&dst->lock);
    join(dst, true);
}
