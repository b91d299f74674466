/* SPDX-License-Identifier: MIT */
/* base/mailbox.h: how one thread hands work to another. A thread that owns state has one mailbox; everybody
 * else posts to it.
 *
 * A post is embedded in the object it is about; posting moves that object's ownership to the mailbox's owner,
 * until run() is called on the owner's thread. Nothing is allocated, nothing can be refused, order is kept
 * per poster. What bounds a mailbox is that each poster has a bounded number of objects to post.
 *
 * Threads: xm_mailbox_post and xm_mailbox_call from any, the others from the owner.
 */
#ifndef XM_BASE_MAILBOX_H
#define XM_BASE_MAILBOX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>

struct xm_post {
    STAILQ_ENTRY(xm_post) next;
    void (*run)(struct xm_post *);
};

struct xm_mailbox {
    pthread_mutex_t lock; /* protects posts */
    STAILQ_HEAD(, xm_post) posts;
    /* eventfd, O_NONBLOCK: written when the first post arrives in an empty box, soon after the post itself */
    int fd;
    atomic_uint waking; /* posters between their post and that: destroy waits for them */
    pthread_t owner;
};

/* fd may be watched for readability by level or by edge; xm_mailbox_run empties it. Returns 0 or -errno. */
int xm_mailbox_init(struct xm_mailbox *);
void xm_mailbox_destroy(struct xm_mailbox *); /* must be empty */
void xm_mailbox_post(struct xm_mailbox *, struct xm_post *);
/* Runs all that was posted before the call. Returns how many. A run() may post again: that waits for the next
 * call. */
unsigned xm_mailbox_run(struct xm_mailbox *);
/* Waits until something is posted or timeout_ms has passed (-1: no limit), then runs it. For owners without
 * an event loop. */
unsigned xm_mailbox_wait(struct xm_mailbox *, int timeout_ms);
/* Runs fn(arg) on the owner's thread and waits for its end; from the owner itself it is a plain call (set by
 * xm_mailbox_own). */
void xm_mailbox_call(struct xm_mailbox *, void (*fn)(void *), void *arg);
/* The calling thread is the owner from now on. */
void xm_mailbox_own(struct xm_mailbox *);

#endif
