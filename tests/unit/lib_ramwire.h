/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_ramwire.h: a transport without a network for guest RAM: threads that take messages in
 * random order, keep them for a while, hand them to a ramsink, and end them. At times they do so twice, the
 * second time much later, or begin with one copy, stop in the middle of it, and bring the rest of it when
 * the other has been answered long ago. */
#ifndef LIB_RAMWIRE_H
#define LIB_RAMWIRE_H

#include "memxfer/memxfer.h"
#include <stdatomic.h>

#define RAMWIRE_THREADS 3

struct ramwire {
    struct xm_transport transport;
    struct xm_ramsink *sink;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t changed;
    STAILQ_HEAD(, xm_msg) queue;
    STAILQ_HEAD(, ramwire_copy) late; /* second copies that wait for their moment */
    pthread_t thread[RAMWIRE_THREADS];
    uint64_t seed;
    bool end, hold;
    unsigned max_delay_us, duplicate_percent;
    uint64_t fail_after; /* messages until all others fail with -ENOLINK; 0: none does */
    uint64_t taken;
    size_t in_flight, most_in_flight; /* bytes */
    atomic_int refused, direct;       /* direct: frames that had their pages elsewhere (xm_msg.apart) */
    atomic_bool damage;               /* the next direct frame's last byte is changed on its way */
    /* Each direct frame, when it has been hashed and before its pages are taken; on the wire's threads. */
    void (*on_the_way)(const struct xm_msg *);
};

void ramwire_start(struct ramwire *, struct xm_ramsink *, uint64_t seed);
void ramwire_stop(struct ramwire *); /* delivers what is late */
/* Nothing is taken from the queue, or is again. */
void ramwire_hold(struct ramwire *, bool hold);
/* Asks the sink for its digest. */
void ramwire_digest(struct ramwire *, struct xm_digest *);
int ramwire_digest_status(struct ramwire *); /* the answer's */

#endif
