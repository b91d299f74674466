/* SPDX-License-Identifier: MIT */
/* migrate/stream.h: QEMU's own migration stream (device state, and RAM that is not the guest's: ROMs),
 * carried over the links. At the source what QEMU writes into its socket becomes STREAM frames; at the
 * destination frames are put in order and written to the socket that the other QEMU reads. One thread each.
 */
#ifndef XM_MIGRATE_STREAM_H
#define XM_MIGRATE_STREAM_H

#include "net/net.h"

/* QEMU's name for it. */
#define STREAM_NAME      "xmigrate"
#define STREAM_STATE_MAX 16

struct stream;
/* Both take the socket over, on failure too. Source: what comes is sent, then END. attempt: which
 * switch-over it is of; each has a stream of its own. */
struct stream *stream_send(int fd, struct xm_transport *, unsigned attempt, struct xm_error *);
/* Source: what QEMU writes from here on (it has not been told to write it yet) is read, and kept here; as
 * much as the stream's buffers take, 2 MiB. stream_release: it goes. Both from one other thread. */
void stream_hold(struct stream *);
void stream_release(struct stream *);
struct stream *stream_receive(int fd, struct xm_error *);
void stream_frame(struct stream *, struct xm_rx *); /* any thread; takes the frame */
void stream_stop(struct stream *);                  /* source: QEMU finds its socket closed; does not wait */
/* Stops and frees; frames that wait are answered with -ECANCELED. */
void stream_free(struct stream *);
uint64_t stream_bytes(const struct stream *);
/* Source: QEMU's run state when it stopped the guest for this, "running" or "paused", say, by what it has
 * sent so far; "": it has not told it. False: there may be more to come. */
bool stream_runstate(struct stream *, char state[STREAM_STATE_MAX]);
/* Why it broke, or code 0. */
void stream_error(struct stream *, struct xm_error *);

#endif
