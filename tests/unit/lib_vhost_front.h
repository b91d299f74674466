/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_vhost_front.h: a small vhost-user front end, to drive any vhost-user-blk back end as a guest
 * would.
 *
 * Its guest has one memfd, shown as two regions that adjoin in guest physical memory and lie apart in virtual
 * memory, so that a buffer can pass from one to the other. Rings, headers and status bytes lie at its
 * beginning, data from VF_DATA on. Functions return 0 (or what they say), or -1 and a sentence on stderr;
 * nothing here is a cmocka check, so that it serves benchmarks, too.
 */
#ifndef LIB_VHOST_FRONT_H
#define LIB_VHOST_FRONT_H

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VF_QUEUES   16
#define VF_MEM      (64u << 20)
#define VF_SPLIT    (48u << 20) /* memfd offset at which the second region begins */
#define VF_GPA      0x40000000ull
#define VF_UVA1     0x7f0000000000ull
#define VF_UVA2     0x7e0000000000ull
#define VF_Q_AREA   (128u << 10) /* per queue: descriptors, rings, headers, indirect tables */
#define VF_DATA     (4u << 20)
#define VF_MAX_SEGS 20

struct vf_queue {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t area; /* memfd offset */
    int kick, call, err;
    uint16_t avail_idx, last_used, kicked;
    uint16_t free_head, free_count; /* descriptors, chained by next */
    unsigned pending;
    void *cookie[1024];    /* by head */
    uint16_t length[1024]; /* descriptors of the chain at this head */
};

struct vf {
    int sock, memfd, inflight_fd, log_fd;
    uint8_t *mem;
    uint64_t inflight_size;
    uint16_t inflight_asked; /* queue size that the in-flight region is asked for; 0: as the queues have */
    uint8_t *log;
    uint64_t log_size;
    uint64_t features, protocol, max_queues; /* what the back end offers; want: what is taken */
    uint64_t want;
    unsigned queues;
    uint16_t size; /* of each queue */
    bool indirect; /* put chains into indirect tables */
    bool quiet;    /* wants an answer, beside those that carry something, to SET_MEM_TABLE alone, as QEMU */
    /* how long vf_wait watches the ring, with a call asked for, before it sleeps. What KVM does when a vCPU
     * halts (halt_poll_ns, 200 us by default on x86) */
    uint64_t watch_ns;
    struct vf_queue q[VF_QUEUES];
};

struct vf_seg {
    uint64_t off; /* in the memfd */
    uint32_t len;
    bool write; /* the device writes */
};

/* Connects (waiting up to a second for the socket to appear) and negotiates all that both know, but for the
 * feature bits in `without`. */
int vf_connect(struct vf *, const char *path, uint64_t without);
/* A guest's life: memory and rings from new. */
int vf_init(struct vf *, unsigned queues, uint16_t size);
void vf_free(struct vf *);
/* Hands memory and rings over and starts them; base: where the available rings begin. With an in-flight
 * region where the back end has it: a new one, or the one that there is. */
int vf_start(struct vf *);
/* GET_VRING_BASE of each queue. */
int vf_stop(struct vf *);
int vf_stop_one(struct vf *, unsigned q, uint32_t *base);
void vf_disconnect(struct vf *);

/* One message; the reply's payload into reply, if one is wanted. Bytes of the reply, or -1. */
int vf_msg(struct vf *, uint32_t request, const void *payload, uint32_t size, const int *fds, unsigned nfds,
           void *reply, uint32_t reply_size, int *reply_fd);
int vf_send_mem_table(struct vf *);
int vf_set_features(struct vf *, uint64_t);
int vf_set_addr(struct vf *, unsigned q, bool log);
int vf_start_log(struct vf *);

/* A chain of these buffers becomes available on the queue (not kicked). Its head, or -1 when the ring is
 * full. */
int vf_add(struct vf *, unsigned q, const struct vf_seg *, unsigned n, void *cookie);
/* A block request: header and status are at the slot of its head. */
int vf_request(struct vf *, unsigned q, uint32_t type, uint64_t sector, const struct vf_seg *data, unsigned n,
               void *cookie);
/* Kicks if the device wants it. True when it did. */
bool vf_kick(struct vf *, unsigned q);
/* Takes one used element: 1 (head, status and cookie filled), 0: none. */
int vf_used(struct vf *, unsigned q, uint16_t *head, uint8_t *status, void **cookie, uint32_t *len);
/* Waits for the call of any of the queues in the mask. False: timeout. */
bool vf_wait(struct vf *, unsigned q, int timeout_ms);
uint8_t *vf_status(struct vf *, unsigned q, uint16_t head);
uint64_t vf_header_off(struct vf *, unsigned q, uint16_t head);
uint64_t vf_gpa(uint64_t off);
int vf_fail(const char *what); /* says so, with errno; -1 */
/* One request from beginning to end: its status byte, or -1 (no answer in 5 s). */
int vf_do(struct vf *, unsigned q, uint32_t type, uint64_t sector, uint64_t data_off, uint32_t len);

#endif
