/* SPDX-License-Identifier: MIT */
/* migrate/pace.h: does the copy of the disks come to an end beside a guest that writes? Pure: no clock, no
 * disks.
 *
 * Looked at in windows of PACE_WINDOW. What was taken by the second side in a window is bulk data and guest
 * writes; guest writes that could not be mirrored in time have made chunks absent again. When in
 * PACE_PATIENCE windows in a row less than a tenth of what was taken has made what is left fewer, the guest
 * outruns the copy. */
#ifndef XM_MIGRATE_PACE_H
#define XM_MIGRATE_PACE_H

#include "base/base.h"

#define PACE_WINDOW   (5 * XM_NS_PER_S)
#define PACE_PATIENCE 6u

/* Of all disks; bytes. All but left only grow. */
struct pace_sample {
    uint64_t at;    /* xm_now() scale */
    uint64_t left;  /* not at the second side */
    uint64_t taken; /* by the second side, acknowledged: bulk and guest writes */
    uint64_t
        guest; /* of these, guest writes; and what they made absent again, which is to be copied once more */
};

struct pace {
    bool started;
    struct pace_sample first; /* of this window */
    struct pace_sample last;
    unsigned without_gain;
    bool known;         /* there was a whole window */
    double had, needed; /* bytes a second in the last whole window: taken; of the guest */
    double gain;        /* bytes a second by which what is left became fewer; negative: more */
};

void pace_reset(struct pace *);
void pace_look(struct pace *, const struct pace_sample *); /* now and then, several times a window */
bool pace_outrun(const struct pace *); /* in the last window; what is left does not become fewer */
bool pace_stuck(const struct pace *);  /* and so for PACE_PATIENCE windows */
double pace_eta(const struct pace *);  /* seconds; < 0: not known, or never */
double pace_rate(const struct pace *); /* bytes a second that are taken; 0: not known yet */

/* What one disk still has to be copied of, and of how much: `total` is what its file had allocated, since the
 * holes of a sparse one pass in no time. Never 0 while chunks are missing. Pure. */
struct pace_disk {
    uint64_t size, allocated;
    uint64_t missing; /* bytes of chunks that are not at the second side */
    uint64_t copied;  /* of what is allocated, sent or found to be zeros */
    uint64_t again;   /* of these, what guest writes made absent again */
    uint64_t chunk;   /* 0: what is allocated is not known */
};
uint64_t pace_disk_total(const struct pace_disk *);
uint64_t pace_disk_left(const struct pace_disk *);

#endif
