/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_vhost_front.h"
#include "base/base.h"
#include "tests/progress.h"

#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Numbers of vhost-user.rst, on purpose not those of mirror/vhost_msg.h: two readings of one text. */
enum {
    GET_FEATURES = 1,
    SET_FEATURES,
    SET_OWNER,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    GET_PROTOCOL_FEATURES,
    SET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    SET_VRING_ENABLE,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD,
};
#define P_MQ       (1ull << 0)
#define P_LOG      (1ull << 1)
#define P_ACK      (1ull << 3)
#define P_CONFIG   (1ull << 9)
#define P_INFLIGHT (1ull << 12)
#define F_PROTOCOL (1ull << 30)
#define NEED_REPLY 8u
#define KNOWN_FEATS                                                                                          \
    (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |    \
     1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY |          \
     1ull << VIRTIO_BLK_F_MQ | 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_CONFIG_WCE |                \
     1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES | F_PROTOCOL)

struct region {
    uint64_t gpa, size, uva, offset;
};
struct header {
    uint32_t request, flags, size;
};

int vf_fail(const char *what)
{
    fprintf(stderr, "vhost front end: %s: %s\n", what, strerror(errno));
    return -1;
}

static int send_msg(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                    const int *fds, unsigned nfds)
{
    struct header h = {request, 1 | flags, size};
    struct iovec iov[2] = {{&h, sizeof h}, {(void *)payload, size}};
    union {
        char buf[CMSG_SPACE(sizeof(int) * 16)];
        struct cmsghdr align;
    } c = {0};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};

    if (nfds) {
        m.msg_control = c.buf;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * nfds);
    }
    return sendmsg(sock, &m, MSG_NOSIGNAL) == (ssize_t)(sizeof h + size) ? 0 : vf_fail("sending");
}

static int recv_some(int sock, void *to, size_t len, int *fd)
{
    for (size_t got = 0; got < len;) {
        struct iovec iov = {(char *)to + got, len - got};
        union {
            char buf[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } c;
        struct msghdr m = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
        ssize_t n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return -1;
        struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
        if (cm && cm->cmsg_type == SCM_RIGHTS) {
            int got_fd;
            memcpy(&got_fd, CMSG_DATA(cm), sizeof got_fd);
            if (fd)
                *fd = got_fd;
            else
                close(got_fd);
        }
        got += (size_t)n;
    }
    return 0;
}

int vf_msg(struct vf *f, uint32_t request, const void *payload, uint32_t size, const int *fds, unsigned nfds,
           void *reply, uint32_t reply_size, int *reply_fd)
{
    uint8_t buf[512];
    struct header h;
    bool ack = !reply && f->protocol & P_ACK && (!f->quiet || request == SET_MEM_TABLE);

    if (send_msg(f->sock, request, ack ? NEED_REPLY : 0, payload, size, fds, nfds))
        return -1;
    if (!reply && !ack)
        return 0;
    if (recv_some(f->sock, &h, sizeof h, reply_fd) || h.size > sizeof buf ||
        recv_some(f->sock, buf, h.size, reply_fd))
        return -1;
    if (h.request != request || !(h.flags & 4))
        return -1;
    if (ack) {
        uint64_t v = 1;
        memcpy(&v, buf, h.size == 8 ? 8 : 0);
        return v ? -1 : 0;
    }
    memcpy(reply, buf, h.size < reply_size ? h.size : reply_size);
    return (int)h.size;
}

static int get_u64(struct vf *f, uint32_t request, uint64_t *v)
{
    return vf_msg(f, request, NULL, 0, NULL, 0, v, 8, NULL) == 8 ? 0 : vf_fail("asking for a number");
}

int vf_connect(struct vf *f, const char *path, uint64_t without)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    f->protocol = 0;
    strncpy(a.sun_path, path, sizeof a.sun_path - 1);
    f->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (struct limit l = limit_start(5); connect(f->sock, (struct sockaddr *)&a, sizeof a) < 0;) {
        if (!limit_wait(&l))
            return vf_fail(path);
    }
    uint64_t p = 0;
    if (get_u64(f, GET_FEATURES, &f->features))
        return -1;
    if (f->features & F_PROTOCOL) {
        if (get_u64(f, GET_PROTOCOL_FEATURES, &p))
            return -1;
        p &= P_MQ | P_LOG | P_ACK | P_CONFIG | P_INFLIGHT;
        if (vf_msg(f, SET_PROTOCOL_FEATURES, &p, 8, NULL, 0, NULL, 0, NULL))
            return vf_fail("setting protocol features");
        f->protocol = p;
    }
    f->max_queues = 1;
    if (p & P_MQ && get_u64(f, GET_QUEUE_NUM, &f->max_queues))
        return -1;
    if (vf_msg(f, SET_OWNER, NULL, 0, NULL, 0, NULL, 0, NULL))
        return vf_fail("setting the owner");
    f->want = f->features & KNOWN_FEATS & ~without;
    return 0;
}

static void queue_init(struct vf *f, unsigned i)
{
    struct vf_queue *q = &f->q[i];

    q->area = i * VF_Q_AREA;
    q->desc = (void *)(f->mem + q->area);
    q->avail = (void *)(f->mem + q->area + 16384);
    q->used = (void *)(f->mem + q->area + 20480);
    q->kick = eventfd(0, EFD_CLOEXEC);
    q->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (uint16_t d = 0; d < f->size; d++)
        q->desc[d].next = (uint16_t)(d + 1);
    q->free_count = f->size;
}

int vf_init(struct vf *f, unsigned queues, uint16_t size)
{
    memset(f, 0, sizeof *f);
    f->sock = f->inflight_fd = f->log_fd = -1;
    f->queues = queues;
    f->size = size;
    f->memfd = memfd_create("guest", MFD_CLOEXEC);
    if (f->memfd < 0 || ftruncate(f->memfd, VF_MEM))
        return vf_fail("guest memory");
    f->mem = mmap(NULL, VF_MEM, PROT_READ | PROT_WRITE, MAP_SHARED, f->memfd, 0);
    if (f->mem == MAP_FAILED)
        return vf_fail("guest memory");
    for (unsigned i = 0; i < queues; i++)
        queue_init(f, i);
    return 0;
}

void vf_disconnect(struct vf *f)
{
    if (f->sock >= 0)
        close(f->sock);
    f->sock = -1;
}

void vf_free(struct vf *f)
{
    vf_disconnect(f);
    for (unsigned i = 0; i < f->queues; i++) {
        close(f->q[i].kick);
        close(f->q[i].call);
        close(f->q[i].err);
    }
    if (f->log)
        munmap(f->log, f->log_size);
    if (f->log_fd >= 0)
        close(f->log_fd);
    if (f->inflight_fd >= 0)
        close(f->inflight_fd);
    munmap(f->mem, VF_MEM);
    close(f->memfd);
}

uint64_t vf_gpa(uint64_t off)
{
    return VF_GPA + off;
}

int vf_send_mem_table(struct vf *f)
{
    struct {
        uint32_t count, padding;
        struct region r[2];
    } t = {2, 0, {{VF_GPA, VF_SPLIT, VF_UVA1, 0}, {VF_GPA + VF_SPLIT, VF_MEM - VF_SPLIT, VF_UVA2, VF_SPLIT}}};
    int fds[2] = {f->memfd, f->memfd};

    return vf_msg(f, SET_MEM_TABLE, &t, sizeof t, fds, 2, NULL, 0, NULL);
}

int vf_set_features(struct vf *f, uint64_t v)
{
    return vf_msg(f, SET_FEATURES, &v, 8, NULL, 0, NULL, 0, NULL);
}

int vf_set_addr(struct vf *f, unsigned q, bool log)
{
    struct {
        uint32_t index, flags;
        uint64_t desc, used, avail, log;
    } a = {q,
           log,
           VF_UVA1 + f->q[q].area,
           VF_UVA1 + f->q[q].area + 20480,
           VF_UVA1 + f->q[q].area + 16384,
           vf_gpa(f->q[q].area + 20480)};

    return vf_msg(f, SET_VRING_ADDR, &a, sizeof a, NULL, 0, NULL, 0, NULL);
}

static int inflight_region(struct vf *f)
{
    uint16_t size = f->inflight_asked ? f->inflight_asked : f->size;
    struct {
        uint64_t size, offset;
        uint16_t queues, queue_size;
        uint32_t pad;
    } in = {f->inflight_size, 0, (uint16_t)f->queues, size, 0};

    if (!(f->protocol & P_INFLIGHT))
        return 0;
    if (f->inflight_fd < 0) {
        if (vf_msg(f, GET_INFLIGHT_FD, &in, sizeof in, NULL, 0, &in, sizeof in, &f->inflight_fd) < 0 ||
            f->inflight_fd < 0)
            return vf_fail("getting an in-flight region");
        f->inflight_size = in.size;
        in.queues = (uint16_t)f->queues;
        in.queue_size = size;
    }
    return vf_msg(f, SET_INFLIGHT_FD, &in, sizeof in, &f->inflight_fd, 1, NULL, 0, NULL);
}

static int set_num(struct vf *f, uint32_t request, unsigned q, uint32_t n)
{
    uint32_t v[2] = {q, n};
    return vf_msg(f, request, v, sizeof v, NULL, 0, NULL, 0, NULL);
}

static int set_fd(struct vf *f, uint32_t request, unsigned q, int fd)
{
    uint64_t v = q;
    return vf_msg(f, request, &v, 8, &fd, 1, NULL, 0, NULL);
}

int vf_start(struct vf *f)
{
    if (inflight_region(f) || vf_set_features(f, f->want) || vf_send_mem_table(f))
        return vf_fail("starting");
    for (unsigned i = 0; i < f->queues; i++) {
        struct vf_queue *q = &f->q[i];
        /* As QEMU does after a hang-up: from the used index. */
        uint16_t base = __atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE);
        if (set_num(f, SET_VRING_NUM, i, f->size) || set_num(f, SET_VRING_BASE, i, base) ||
            vf_set_addr(f, i, false) || set_fd(f, SET_VRING_CALL, i, q->call) ||
            set_fd(f, SET_VRING_ERR, i, q->err) || set_fd(f, SET_VRING_KICK, i, q->kick))
            return vf_fail("starting a queue");
        if (f->want & F_PROTOCOL && set_num(f, SET_VRING_ENABLE, i, 1))
            return vf_fail("enabling a queue");
    }
    return 0;
}

int vf_stop_one(struct vf *f, unsigned q, uint32_t *base)
{
    uint32_t v[2] = {q, 0};

    if (vf_msg(f, GET_VRING_BASE, v, sizeof v, NULL, 0, v, sizeof v, NULL) != sizeof v)
        return vf_fail("stopping a queue");
    if (base)
        *base = v[1];
    return 0;
}

int vf_stop(struct vf *f)
{
    int ret = 0;

    for (unsigned i = 0; i < f->queues; i++)
        ret |= vf_stop_one(f, i, NULL);
    return ret;
}

int vf_start_log(struct vf *f)
{
    struct {
        uint64_t size, offset;
    } l = {(VF_GPA + VF_MEM) / 4096 / 8, 0};
    uint8_t reply[16];

    f->log_size = l.size;
    f->log_fd = memfd_create("log", MFD_CLOEXEC);
    if (f->log_fd < 0 || ftruncate(f->log_fd, (off_t)l.size))
        return vf_fail("log memory");
    f->log = mmap(NULL, l.size, PROT_READ | PROT_WRITE, MAP_SHARED, f->log_fd, 0);
    if (f->log == MAP_FAILED)
        return vf_fail("log memory");
    if (vf_msg(f, SET_LOG_BASE, &l, sizeof l, &f->log_fd, 1, reply, sizeof reply, NULL) < 0)
        return vf_fail("setting the log");
    if (vf_set_features(f, f->want | 1ull << VHOST_F_LOG_ALL))
        return vf_fail("turning the log on");
    for (unsigned i = 0; i < f->queues; i++) {
        if (vf_set_addr(f, i, true))
            return vf_fail("logging a ring");
    }
    return 0;
}
