/* SPDX-License-Identifier: MIT */
/* mirror/vhost_msg.h: vhost-user messages: their layout, what each request may carry, receiving and sending
 * them.
 *
 * Written after docs/interop/vhost-user.rst of QEMU. All numbers are in the machine's byte order. A message
 * is a header of 12 bytes and a payload; descriptors come beside it. Nothing here acts on a message:
 * vhost_msg_check() says whether it is well formed, and only then is it looked at by vhost.c.
 */
#ifndef XM_MIRROR_VHOST_MSG_H
#define XM_MIRROR_VHOST_MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"

enum vhost_request {
    VHOST_GET_FEATURES = 1,
    VHOST_SET_FEATURES = 2,
    VHOST_SET_OWNER = 3,
    VHOST_RESET_OWNER = 4,
    VHOST_SET_MEM_TABLE = 5,
    VHOST_SET_LOG_BASE = 6,
    VHOST_SET_LOG_FD = 7,
    VHOST_SET_VRING_NUM = 8,
    VHOST_SET_VRING_ADDR = 9,
    VHOST_SET_VRING_BASE = 10,
    VHOST_GET_VRING_BASE = 11,
    VHOST_SET_VRING_KICK = 12,
    VHOST_SET_VRING_CALL = 13,
    VHOST_SET_VRING_ERR = 14,
    VHOST_GET_PROTOCOL_FEATURES = 15,
    VHOST_SET_PROTOCOL_FEATURES = 16,
    VHOST_GET_QUEUE_NUM = 17,
    VHOST_SET_VRING_ENABLE = 18,
    VHOST_GET_CONFIG = 24,
    VHOST_SET_CONFIG = 25,
    VHOST_GET_INFLIGHT_FD = 31,
    VHOST_SET_INFLIGHT_FD = 32,
    VHOST_REQUESTS
};

enum { /* flags of a header */
       VHOST_FLAG_VERSION = 1,
       VHOST_FLAG_VERSION_MASK = 3,
       VHOST_FLAG_REPLY = 1 << 2,
       VHOST_FLAG_NEED_REPLY = 1 << 3,
};

enum { /* protocol features, bit numbers */
       VHOST_PROTOCOL_MQ = 0,
       VHOST_PROTOCOL_LOG_SHMFD = 1,
       VHOST_PROTOCOL_REPLY_ACK = 3,
       VHOST_PROTOCOL_CONFIG = 9,
       VHOST_PROTOCOL_INFLIGHT_SHMFD = 12,
};

#define VHOST_F_PROTOCOL_FEATURES                                                                            \
    30 /* bit of the virtio features that says that there are protocol features */
#define VHOST_MSG_MAX_FDS     8
#define VHOST_MSG_MAX_REGIONS 8
#define VHOST_MSG_MAX_CONFIG  256
#define VHOST_MSG_NO_FD       0x100 /* in the u64 of SET_VRING_KICK, CALL, ERR */
/* flag of a vring's address: log writes to the used ring (VHOST_VRING_F_LOG) */
#define VHOST_LOG_USED 1

struct vhost_vring_index {
    uint32_t index, num;
};
struct vhost_ring_addr {
    uint32_t index, flags;
    uint64_t desc, used, avail, log;
};
struct vhost_region {
    uint64_t gpa, size, uva, offset;
};
struct vhost_mem_table {
    uint32_t count, padding;
    struct vhost_region region[VHOST_MSG_MAX_REGIONS];
};
struct vhost_log {
    uint64_t size, offset;
};
struct vhost_config {
    uint32_t offset, size, flags;
    uint8_t data[VHOST_MSG_MAX_CONFIG];
};
struct vhost_inflight {
    uint64_t size, offset;
    uint16_t queues, queue_size; /* QEMU sends 4 bytes of padding behind them, others do not */
};

struct vu_msg {
    struct {
        uint32_t request, flags, size;
    } hdr;
    union {
        uint64_t u64;
        struct vhost_vring_index vring;
        struct vhost_ring_addr addr;
        struct vhost_mem_table mem;
        struct vhost_log log;
        struct vhost_config config;
        struct vhost_inflight inflight;
        uint8_t bytes[512];
    } p;
    int fd[VHOST_MSG_MAX_FDS]; /* owned by the message; whoever takes one sets -1 */
    unsigned fds;
};

/* Waits for a message to begin, or until stop_fd becomes readable. */
#define VHOST_FOR_EVER UINT64_MAX
enum vhost_wait { VHOST_COMES, VHOST_SILENT, VHOST_STOP };
enum vhost_wait vhost_msg_wait(int sock, int stop_fd, uint64_t ns);
/* Receives one message, waiting as long as it takes or until stop_fd becomes readable. 1: got it, 0: the peer
 * has closed or we shall stop, -errno with a sentence: what came is no message. Then, and after a 0, the
 * message holds no descriptors. */
int vhost_msg_recv(int sock, int stop_fd, struct vu_msg *, struct xm_error *);
/* Is it well formed: known, the size that its kind has, the descriptors that its kind carries? 0 or -EPROTO
 * with a sentence. */
int vhost_msg_check(const struct vu_msg *, struct xm_error *);
const char *vhost_msg_name(uint32_t request);
/* Sends a message, with `fd` beside it unless that is -1. 0 or -errno. */
int vhost_msg_send(int sock, const struct vu_msg *, int fd);
void vhost_msg_close_fds(struct vu_msg *);
/* Takes the i-th descriptor out, or -1. */
int vhost_msg_take_fd(struct vu_msg *, unsigned i);

#endif
