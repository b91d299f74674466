/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_netpair.h: two bundles of links in one process, joined by sockets, and a peer made of a bare
 * socket. */
#ifndef LIB_NETPAIR_H
#define LIB_NETPAIR_H

#include "net/net.h"
#include "tests/progress.h"
#include <semaphore.h>

/* One end: a bundle with a sink that answers, and notes what it saw. */
struct end {
    struct xm_links *links;
    struct xm_links_opts opts;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t changed;
    uint8_t *seen; /* times that frame seq was seen, for seq < seen_max */
    uint64_t seen_max, frames, duplicates;
    uint8_t order[4096]; /* object of the n-th frame */
    int refuse_object;   /* check() refuses it; -1: none */
    bool hold;           /* keeps frames instead of answering */
    STAILQ_HEAD(, xm_rx) held;
    int down_events, lost_events;
    struct xm_error lost_why;
};
void end_init(struct end *, uint64_t seen_max); /* opts may be changed until end_open */
void end_open(struct end *);
void end_free(struct end *);   /* answers what it holds, frees the bundle */
void end_reopen(struct end *); /* a new bundle, with opts as they are now */
/* Both, with room for 100000 frames in b; not joined yet. */
void ends_open(struct end *a, struct end *b);
void ends_free(struct end *a, struct end *b);
void end_release(struct end *); /* answers what it holds, and does not hold any more */
void end_changed(struct end *); /* with its lock held: gives it up until something changes, 50 ms at most */
/* Waits until cond, at most 10 s of progress; false: it did not come. Use the macro with an expression of
 * the fields. */
#define end_wait(e, cond)                                                                                    \
    ({                                                                                                       \
        struct limit limit_ = limit_start(10);                                                               \
        pthread_mutex_lock(&(e)->lock);                                                                      \
        while (!(cond) && !limit_over(&limit_))                                                              \
            end_changed(e);                                                                                  \
        bool ok_ = (cond);                                                                                   \
        pthread_mutex_unlock(&(e)->lock);                                                                    \
        ok_;                                                                                                 \
    })

void net_socketpair(int fd[2]);
void net_tcp_pair(int fd[2]);
/* Adds fd[0] to a as the client and fd[1] to b as the server. Returns a's result; b's in *b_result when not
 * NULL. */
int end_join(struct end *a, struct end *b, const int fd[2], int *b_result, struct xm_error *ea,
             struct xm_error *eb);
/* n links over TCP. fds: a's descriptors, for killing; may be NULL. */
void end_join_tcp(struct end *a, struct end *b, int n, int *fds);

/* Messages of one owner: `total` of them, at most `depth` under way, seq from first on. total UINT64_MAX:
 * until one fails. */
struct load {
    struct xm_transport *to;
    struct xm_mailbox box;
    uint64_t first, total, depth;
    uint32_t length;    /* 0: DISK_ZERO; else DISK_DATA of 1 to length bytes */
    bool urgent, fixed; /* fixed: all of `length` */
    sem_t begun;        /* posted when the first `depth` are submitted */
    uint64_t sent, ended, failed, twice;
    int status; /* the first that was not 0 */
    struct load_msg *msg;
    uint8_t *data;
};
void load_init(struct load *, struct xm_transport *, uint64_t first, uint64_t total, uint64_t depth,
               uint32_t length);
void load_run(struct load *); /* until all have ended; on the calling thread */
void *load_thread(void *load);
void load_free(struct load *);

/* A bare peer: has shaken hands as the server with `token` zero. Returns its socket. */
int bare_peer(struct end *a, int *result);
void bare_send(int fd, const struct xm_frame_hdr *, const void *payload); /* makes both hashes */
/* Reads one frame (payload up to max). 0, or -1: closed or 5 s of silence. */
int bare_recv(int fd, struct xm_frame_hdr *, void *payload, size_t max);

#endif
