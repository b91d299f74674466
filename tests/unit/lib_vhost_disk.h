/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_vhost_disk.h: a disk with vhost-user-blk devices in front of it, on an engine with a thread
 * of its own, as a shim has it. Its engine has a gate that holds requests back, and counts them.
 */
#ifndef LIB_VHOST_DISK_H
#define LIB_VHOST_DISK_H

#include <semaphore.h>

#include "mirror/mirror.h"

#define VD_SIZE (64ull << 20)

struct vdisk {
    struct xm_engine *engine;
    struct xm_file file;
    struct xm_disk *disk;
    struct xm_vhost *vhost;
    struct xm_bitmap bitmap; /* pages of the guest's memfd that the device wrote */
    const char *path;        /* socket */
    unsigned submitted[4];   /* by enum xm_io_op; atomic */
    int flush_error;         /* what held flushes end with, when not 0 */
    int fail;                /* what requests end with instead of being done, when not 0 */
    pthread_t thread;
    sem_t owned;       /* the thread has taken its engine */
    bool stop, closed; /* engine's thread */
    const struct xm_engine_ops *real;
    struct xm_engine_ops ops;
    TAILQ_HEAD(, xm_io) held;
};

extern enum xm_engine_kind vd_kind; /* of the engines to be opened */
/* NULL, or the sentence of what failed. Files and socket are NAME.img, NAME.sock in lib_dir(). */
const char *vd_open(struct vdisk *, const char *name, unsigned queues);
void vd_close(struct vdisk *); /* the image stays */
/* A second device's socket on the same engine, over the same disk. */
struct xm_vhost *vd_second(struct vdisk *, const char *name);
void vd_gate(struct vdisk *, bool closed); /* opening gives what was held to the engine */
unsigned vd_held(struct vdisk *);
unsigned vd_submitted(struct vdisk *, enum xm_io_op);
void vd_fail(struct vdisk *, int error);
void vd_fail_flush(struct vdisk *, int error); /* those that are held at the gate, when it opens */

#endif
