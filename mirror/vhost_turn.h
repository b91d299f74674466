/* SPDX-License-Identifier: MIT */
/* mirror/vhost_turn.h: what the rings of all devices on an engine do together at the end of each of its
 * turns, before it sleeps.
 *
 * Many completions cost one used index, one look at the guest's wish and one eventfd write; what has become
 * available meanwhile is taken without a kick. Then, when nothing is in flight and the guest was quick to
 * come back the last time, the rings are watched for a moment (TURN_POLL_NS) before we ask for kicks and
 * sleep: a guest with one request at a time spares its kick and we the wake-up. One pause that was longer
 * ends that, so that a guest that thinks, or sleeps, costs nothing.
 *
 * Engine's thread.
 */
#ifndef XM_MIRROR_VHOST_TURN_H
#define XM_MIRROR_VHOST_TURN_H

#include "mirror/vhost_ring.h"

struct turn *turn_get(struct xm_engine *);
void turn_put(struct turn *);
/* It will be looked at at the turn's end. */
void turn_add(struct turn *, struct ring *);
void turn_remove(struct turn *, struct ring *);
void turn_running(struct turn *, struct ring *, bool);
/* A kick has come. */
void turn_woken(struct turn *);

#endif
