/* SPDX-License-Identifier: MIT */
#include "mirror/vhost_msg.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What each request may carry. Sizes in bytes, both ends included; sizes that depend on a count inside are
 * checked below. */
static const struct spec {
    const char *name;
    uint16_t size_min, size_max;
    uint8_t fds_min, fds_max;
} spec[VHOST_REQUESTS] = {
    [VHOST_GET_FEATURES] = {"GET_FEATURES", 0, 0, 0, 0},
    [VHOST_SET_FEATURES] = {"SET_FEATURES", 8, 8, 0, 0},
    [VHOST_SET_OWNER] = {"SET_OWNER", 0, 0, 0, 0},
    [VHOST_RESET_OWNER] = {"RESET_OWNER", 0, 0, 0, 0},
    [VHOST_SET_MEM_TABLE] = {"SET_MEM_TABLE", 8, sizeof(struct vhost_mem_table), 0, VHOST_MSG_MAX_REGIONS},
    [VHOST_SET_LOG_BASE] = {"SET_LOG_BASE", 16, 16, 1, 1},
    [VHOST_SET_LOG_FD] = {"SET_LOG_FD", 0, 8, 0, 1},
    [VHOST_SET_VRING_NUM] = {"SET_VRING_NUM", 8, 8, 0, 0},
    [VHOST_SET_VRING_ADDR] = {"SET_VRING_ADDR", 40, 40, 0, 0},
    [VHOST_SET_VRING_BASE] = {"SET_VRING_BASE", 8, 8, 0, 0},
    [VHOST_GET_VRING_BASE] = {"GET_VRING_BASE", 8, 8, 0, 0},
    [VHOST_SET_VRING_KICK] = {"SET_VRING_KICK", 8, 8, 0, 1},
    [VHOST_SET_VRING_CALL] = {"SET_VRING_CALL", 8, 8, 0, 1},
    [VHOST_SET_VRING_ERR] = {"SET_VRING_ERR", 8, 8, 0, 1},
    [VHOST_GET_PROTOCOL_FEATURES] = {"GET_PROTOCOL_FEATURES", 0, 0, 0, 0},
    [VHOST_SET_PROTOCOL_FEATURES] = {"SET_PROTOCOL_FEATURES", 8, 8, 0, 0},
    [VHOST_GET_QUEUE_NUM] = {"GET_QUEUE_NUM", 0, 0, 0, 0},
    [VHOST_SET_VRING_ENABLE] = {"SET_VRING_ENABLE", 8, 8, 0, 0},
    [VHOST_GET_CONFIG] = {"GET_CONFIG", 12, sizeof(struct vhost_config), 0, 0},
    [VHOST_SET_CONFIG] = {"SET_CONFIG", 12, sizeof(struct vhost_config), 0, 0},
    [VHOST_GET_INFLIGHT_FD] = {"GET_INFLIGHT_FD", 20, 24, 0, 0},
    [VHOST_SET_INFLIGHT_FD] = {"SET_INFLIGHT_FD", 20, 24, 1, 1},
};

const char *vhost_msg_name(uint32_t request)
{
    return request < VHOST_REQUESTS && spec[request].name ? spec[request].name : "unknown request";
}

int vhost_msg_check(const struct vu_msg *m, struct xm_error *e)
{
    const struct spec *s = m->hdr.request < VHOST_REQUESTS ? &spec[m->hdr.request] : NULL;

    if (!s || !s->name)
        return xm_error_set(e, EPROTO, "vhost-user request %u is not known here", m->hdr.request);
    if (m->hdr.flags & VHOST_FLAG_REPLY)
        return xm_error_set(e, EPROTO, "vhost-user %s came marked as a reply", s->name);
    if (m->hdr.size < s->size_min || m->hdr.size > s->size_max)
        return xm_error_set(e, EPROTO, "vhost-user %s has %u bytes", s->name, m->hdr.size);
    if (m->fds < s->fds_min || m->fds > s->fds_max)
        return xm_error_set(e, EPROTO, "vhost-user %s came with %u descriptors", s->name, m->fds);

    switch (m->hdr.request) {
    case VHOST_SET_MEM_TABLE:
        if (m->p.mem.count > VHOST_MSG_MAX_REGIONS || m->p.mem.count != m->fds ||
            m->hdr.size != 8 + m->p.mem.count * sizeof(struct vhost_region))
            return xm_error_set(e, EPROTO,
                                "vhost-user SET_MEM_TABLE of %u bytes has %u regions and %u descriptors",
                                m->hdr.size, m->p.mem.count, m->fds);
        break;
    case VHOST_GET_CONFIG:
    case VHOST_SET_CONFIG:
        if (m->hdr.size != 12 + m->p.config.size || m->p.config.size > VHOST_MSG_MAX_CONFIG ||
            m->p.config.offset > VHOST_MSG_MAX_CONFIG - m->p.config.size)
            return xm_error_set(e, EPROTO, "vhost-user %s of %u bytes is about %u bytes at %u", s->name,
                                m->hdr.size, m->p.config.size, m->p.config.offset);
        break;
    case VHOST_SET_VRING_KICK:
    case VHOST_SET_VRING_CALL:
    case VHOST_SET_VRING_ERR:
        if (!(m->p.u64 & VHOST_MSG_NO_FD) != (m->fds == 1))
            return xm_error_set(e, EPROTO, "vhost-user %s says %s descriptor and came with %u", s->name,
                                m->p.u64 & VHOST_MSG_NO_FD ? "no" : "one", m->fds);
        break;
    default:
        break;
    }
    return 0;
}

enum vhost_wait vhost_msg_wait(int sock, int stop_fd, uint64_t ns)
{
    struct pollfd p[2] = {{.fd = sock, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
    struct timespec ts = {.tv_sec = (time_t)(ns / XM_NS_PER_S), .tv_nsec = (long)(ns % XM_NS_PER_S)};
    int n;

    do {
        n = ppoll(p, 2, ns == VHOST_FOR_EVER ? NULL : &ts, NULL);
    } while (n < 0 && errno == EINTR);
    return n < 0 || p[1].revents ? VHOST_STOP : n ? VHOST_COMES : VHOST_SILENT;
}

static int msg_take_fds(struct vu_msg *m, struct msghdr *h, struct xm_error *e)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (m->fds < VHOST_MSG_MAX_FDS)
                m->fd[m->fds++] = fd;
            else
                close(fd);
        }
    }
    if (h->msg_flags & MSG_CTRUNC)
        return xm_error_set(e, EPROTO, "a vhost-user message came with more than %d descriptors",
                            VHOST_MSG_MAX_FDS);
    return 0;
}

/* Reads exactly len bytes. 1, 0 (closed or stop) or -errno. */
static int msg_recv_all(int sock, int stop_fd, struct vu_msg *m, void *to, size_t len, struct xm_error *e)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * VHOST_MSG_MAX_FDS)];
        struct cmsghdr align;
    } control;

    for (size_t got = 0; got < len;) {
        struct iovec iov = {.iov_base = (char *)to + got, .iov_len = len - got};
        struct msghdr h = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN && vhost_msg_wait(sock, stop_fd, VHOST_FOR_EVER) == VHOST_STOP)
            return 0;
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0 && errno != ECONNRESET)
            return xm_error_errno(e, errno, "cannot read from the vhost-user socket");
        int err = n > 0 ? msg_take_fds(m, &h, e) : 0;
        if (err)
            return err;
        if (n <= 0)
            return 0;
        got += (size_t)n;
    }
    return 1;
}

int vhost_msg_recv(int sock, int stop_fd, struct vu_msg *m, struct xm_error *e)
{
    memset(m, 0, sizeof *m);
    int ret = msg_recv_all(sock, stop_fd, m, &m->hdr, sizeof m->hdr, e);
    if (ret == 1 && (m->hdr.flags & VHOST_FLAG_VERSION_MASK) != VHOST_FLAG_VERSION)
        ret = xm_error_set(e, EPROTO, "a vhost-user message has version %u",
                           m->hdr.flags & VHOST_FLAG_VERSION_MASK);
    if (ret == 1 && m->hdr.size > sizeof m->p)
        ret = xm_error_set(e, EPROTO, "vhost-user %s says %u bytes", vhost_msg_name(m->hdr.request),
                           m->hdr.size);
    if (ret == 1)
        ret = msg_recv_all(sock, stop_fd, m, &m->p, m->hdr.size, e);
    if (ret != 1)
        vhost_msg_close_fds(m);
    return ret;
}

int vhost_msg_send(int sock, const struct vu_msg *m, int fd)
{
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov[2] = {{(void *)&m->hdr, sizeof m->hdr}, {(void *)&m->p, m->hdr.size}};
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = 2};
    size_t len = sizeof m->hdr + m->hdr.size;

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        h.msg_control = control.buf;
        h.msg_controllen = sizeof control.buf;
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n;
    do {
        n = sendmsg(sock, &h, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return (size_t)n == len
               ? 0
               : -EPIPE; /* a stream socket with room for less than 300 bytes: a peer that does not read */
}

void vhost_msg_close_fds(struct vu_msg *m)
{
    for (unsigned i = 0; i < m->fds; i++) {
        if (m->fd[i] >= 0)
            close(m->fd[i]);
    }
    m->fds = 0;
}

int vhost_msg_take_fd(struct vu_msg *m, unsigned i)
{
    if (i >= m->fds)
        return -1;
    int fd = m->fd[i];
    m->fd[i] = -1;
    return fd;
}
