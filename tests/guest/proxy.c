/* SPDX-License-Identifier: MIT */
/* tests/guest/proxy.c: xm-client proxy: a man in the middle of the connections between two agents.
 *
 * Listens on the addresses given and passes everything on to the same port of 127.0.0.1, where the agent
 * listens, both ways. On connections that carry a migration's frames (their first line begins «XMIG/1 link»)
 * it does harm once, when `after` bytes have passed towards the destination:
 *   corrupt   flips one bit
 *   cut       closes that connection
 *   stall     passes nothing any more on any such connection
 *   none      only counts
 * Ends with a signal; prints what it did. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/guest/client.h"

static struct {
    uint16_t port;
    const char *harm;
    uint64_t after;
    uint64_t passed, links, harms; /* atomic */
} proxy;

struct pair {
    int from, to;
    bool link;
};

static int send_all(int fd, const char *p, size_t len)
{
    while (len) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Returns false when the connection shall be cut. */
static bool do_harm(char *buf, size_t n)
{
    uint64_t before = __atomic_fetch_add(&proxy.passed, n, __ATOMIC_RELAXED);

    if (before + n <= proxy.after || strcmp(proxy.harm, "none") == 0)
        return true;
    if (strcmp(proxy.harm, "stall") == 0) {
        __atomic_store_n(&proxy.harms, 1, __ATOMIC_RELAXED);
        for (;;)
            pause();
    }
    if (__atomic_exchange_n(&proxy.harms, 1, __ATOMIC_RELAXED))
        return true; /* once */
    if (strcmp(proxy.harm, "cut") == 0)
        return false;
    buf[n / 2] ^= 0x10;
    return true;
}

static void *to_client(void *arg)
{
    struct pair *p = arg;
    char buf[65536];
    ssize_t n;

    while ((n = recv(p->to, buf, sizeof(buf), 0)) > 0)
        if (send_all(p->from, buf, (size_t)n) < 0)
            break;
    shutdown(p->from, SHUT_WR);
    return NULL;
}

static void *to_server(void *arg)
{
    struct pair *p = arg;
    char buf[65536];
    bool first = true;
    pthread_t back;
    ssize_t n;

    if (pthread_create(&back, NULL, to_client, p))
        return NULL;
    while ((n = recv(p->from, buf, sizeof(buf), 0)) > 0) {
        if (first && n >= 11 && memcmp(buf, "XMIG/1 link", 11) == 0) {
            p->link = true;
            __atomic_add_fetch(&proxy.links, 1, __ATOMIC_RELAXED);
        } else if (p->link && !do_harm(buf, (size_t)n)) {
            shutdown(p->from, SHUT_RDWR);
            break;
        }
        first = false;
        if (send_all(p->to, buf, (size_t)n) < 0)
            break;
    }
    shutdown(p->to, SHUT_WR);
    pthread_join(back, NULL);
    close(p->from);
    close(p->to);
    free(p);
    return NULL;
}

static void take(int fd)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(proxy.port)};
    struct pair *p = calloc(1, sizeof(*p));
    pthread_t t;
    int to = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!p || to < 0 || connect(to, (struct sockaddr *)&sin, sizeof(sin)) < 0) {
        close(fd);
        close(to);
        free(p);
        return;
    }
    p->from = fd;
    p->to = to;
    if (pthread_create(&t, NULL, to_server, p) == 0)
        pthread_detach(t);
}

static int listen_at(const char *address)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(proxy.port)};
    int one = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    sin.sin_addr.s_addr = inet_addr(address);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    return s < 0 || bind(s, (struct sockaddr *)&sin, sizeof(sin)) < 0 || listen(s, 16) < 0 ? -1 : s;
}

int client_proxy(const char *addresses, uint16_t port, const char *harm, uint64_t after)
{
    struct pollfd p[8];
    char list[256], *address, *save = NULL;
    nfds_t n = 0;

    proxy.port = port;
    proxy.harm = harm;
    proxy.after = after;
    snprintf(list, sizeof(list), "%s", addresses);
    for (address = strtok_r(list, ",", &save); address && n < 8; address = strtok_r(NULL, ",", &save)) {
        p[n] = (struct pollfd){listen_at(address), POLLIN, 0};
        if (p[n++].fd < 0)
            return client_fail(address);
    }
    while (!client_stopped) {
        if (poll(p, n, 200) <= 0)
            continue;
        for (nfds_t i = 0; i < n; i++) {
            int fd = p[i].revents ? accept4(p[i].fd, NULL, NULL, SOCK_CLOEXEC) : -1;

            if (fd >= 0)
                take(fd);
        }
    }
    printf("{\"ok\":true,\"links\":%llu,\"bytes\":%llu,\"harms\":%llu}\n", (unsigned long long)proxy.links,
           (unsigned long long)proxy.passed, (unsigned long long)proxy.harms);
    return 0;
}
