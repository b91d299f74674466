/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_vhost_pair.h: one disk and one guest, joined by vhost-user-blk: our back end
 * (lib_vhost_disk.h) and a front end (lib_vhost_front.h). */
#ifndef LIB_VHOST_PAIR_H
#define LIB_VHOST_PAIR_H

#include "tests/unit/lib_disk.h"
#include "tests/unit/lib_vhost_disk.h"
#include "tests/unit/lib_vhost_front.h"

#define T_IN   VIRTIO_BLK_T_IN
#define T_OUT  VIRTIO_BLK_T_OUT
#define OK     VIRTIO_BLK_S_OK
#define IOERR  VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP

extern struct vdisk vd; /* the running test's */
extern struct vf vf;

/* Connected; and its rings started, too. Without these feature bits. */
void pair_connect(unsigned queues, uint16_t size, uint64_t without);
void pair_begin(unsigned queues, uint16_t size, uint64_t without);
int pair_end(void **state); /* cmocka's tear-down */
/* So many requests wait at the gate, and the engine has been through a turn since. */
void pair_wait_held(unsigned n);
void pair_fill(uint8_t *p, size_t len, uint32_t seed);
/* What each back end has to do, one request after the other. */
void pair_check_basic(struct vf *f);

/* vf is a guest that will break the rules (two queues, not connected), beside a good one of a second device
 * on the same engine, which must not notice. */
#define HOSTILE_RING 64 /* size of the rings */
int hostile_begin(void **state);
int hostile_end(void **state);
void hostile_check_good(void);
/* The guest resets the device: stopped, rings from new, started. */
void hostile_reset(void);

#endif
