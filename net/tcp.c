/* SPDX-License-Identifier: MIT */
/* net/tcp.c: sockets of links: connecting from a given local address, listening. Addresses are numeric or
 * names, IPv4 or IPv6. */
#include "net/net.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int tcp_resolve(const char *host, uint16_t port, int family, int flags, struct addrinfo **found,
                       struct xm_error *e)
{
    struct addrinfo hints = {
        .ai_family = family, .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    char service[8];

    snprintf(service, sizeof service, "%u", port);
    int err = getaddrinfo(host && *host ? host : NULL, service, &hints, found);
    if (err)
        return xm_error_set(e, err == EAI_MEMORY ? ENOMEM : EADDRNOTAVAIL, "the address %s: %s",
                            host && *host ? host : "(any)", gai_strerror(err));
    return 0;
}

static int bind_local(int fd, const char *local, int family, struct xm_error *e)
{
    struct addrinfo *ai = NULL;

    if (!local || !*local)
        return 0;
    int err = tcp_resolve(local, 0, family, AI_NUMERICHOST, &ai, e);
    if (!err && bind(fd, ai->ai_addr, ai->ai_addrlen) < 0)
        err = xm_error_errno(e, errno, "binding to the local address %s", local);
    if (ai)
        freeaddrinfo(ai);
    return err;
}

static int finish_connect(int fd, uint64_t deadline)
{
    int waited = xm_wait_fd(fd, POLLOUT, deadline), err = 0;
    socklen_t len = sizeof err;

    if (waited < 0)
        return waited;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
    return -err;
}

static int connect_one(const struct addrinfo *ai, const char *local, const char *remote, uint16_t port,
                       uint64_t deadline, struct xm_error *e)
{
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return xm_error_errno(e, errno, "a socket for %s", remote);
    int err = bind_local(fd, local, ai->ai_family, e);
    if (!err && connect(fd, ai->ai_addr, ai->ai_addrlen) < 0) {
        err = errno == EINPROGRESS ? finish_connect(fd, deadline) : -errno;
        if (err < 0)
            xm_error_errno(e, -err, "connecting to %s port %u%s%s", remote, port,
                           local && *local ? " from " : "", local ? local : "");
    }
    if (err < 0) {
        close(fd);
        return err;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}

int xm_tcp_connect(const char *local, const char *remote, uint16_t port, uint64_t timeout_ns,
                   struct xm_error *e)
{
    uint64_t now = xm_now(), deadline = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct addrinfo *found = NULL;
    int fd = tcp_resolve(remote, port, AF_UNSPEC, 0, &found, e);

    if (fd < 0)
        return fd;
    for (struct addrinfo *ai = found; ai; ai = ai->ai_next) {
        fd = connect_one(ai, local, remote, port, deadline, e);
        if (fd >= 0)
            break;
    }
    freeaddrinfo(found);
    return fd;
}

int xm_tcp_listen(const char *address, uint16_t port, struct xm_error *e)
{
    struct addrinfo *ai = NULL;
    int one = 1, err = tcp_resolve(address, port, AF_UNSPEC, AI_PASSIVE, &ai, e);

    if (err < 0)
        return err;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        err = xm_error_errno(e, errno, "a listening socket");
    } else {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 64) < 0) {
            err = xm_error_errno(e, errno, "listening on %s port %u", address && *address ? address : "(any)",
                                 port);
            close(fd);
        }
    }
    freeaddrinfo(ai);
    return err < 0 ? err : fd;
}
