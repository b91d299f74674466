/* SPDX-License-Identifier: MIT */
/* A mirrored disk on lib_sim with everything in reach, for tests that say step by step what happens. */
#ifndef TESTS_LIB_RIG_H
#define TESTS_LIB_RIG_H

#include "lib_sim.h"
#include "mirror/mirror.h"

#define RIG_CHUNK  (64u << 10)
#define RIG_CHUNKS 8u
#define RIG_SIZE   (RIG_CHUNK * RIG_CHUNKS)

struct rig_op {
    struct xm_breq breq;
    struct iovec iov;
    uint8_t *buf;
    bool done;
    int status;
    uint64_t began, took; /* ns */
    struct rig *rig;
    struct rig_op *next;
};

struct rig {
    struct sim *sim;
    struct sim_disk *source, *target;
    struct xm_writer *writer;
    struct sim_links *links; /* NULL: near */
    struct xm_replica *replica;
    struct xm_disk *disk;
    struct rig_op *ops;
    bool off, ended; /* mirror off; quiesce or pivot has called back */
    int status;
    char why[300];
};

struct rig_opts {
    bool near;
    uint64_t mirror_buffer, bulk_buffer;
};
struct rig *rig_new(const struct rig_opts *);
void rig_free(struct rig *); /* ends all that is under way: mirror off, gates open */
struct rig_op *rig_io(struct rig *, enum xm_io_op, uint64_t offset, uint64_t length, int byte);
#define rig_write(r, offset, length, byte) rig_io(r, XM_IO_WRITE, offset, length, byte)
void rig_run(struct rig *, uint64_t ms); /* lets that much time pass */
void rig_mirror_on(struct rig *, bool target_zeroed);
void rig_mirror_off(struct rig *);
void rig_in_step(struct rig *); /* turns until all chunks are present */
void rig_quiesce(struct rig *); /* begins; ended, status, why follow */
void rig_pivot(struct rig *);
struct xm_disk_status rig_status(struct rig *);
bool rig_same(struct rig *); /* both images and both digests */

#endif
