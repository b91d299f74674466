/* SPDX-License-Identifier: MIT */
/* tests/guest/tcp.c: the guest's ports: echo, heartbeat (TCP and UDP), commands; one thread a connection. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "tests/guest/guest.h"

#define BEAT_NS 1000000u

static struct {
    pthread_mutex_t lock;
    uint64_t count, gap_ns;
} beats = {.lock = PTHREAD_MUTEX_INITIALIZER};

uint64_t tcp_clock_gap(bool reset)
{
    uint64_t gap;

    pthread_mutex_lock(&beats.lock);
    gap = beats.gap_ns;
    if (reset)
        beats.gap_ns = 0;
    pthread_mutex_unlock(&beats.lock);
    return gap;
}

static struct beat next_beat(void)
{
    struct beat b = {.magic = BEAT_MAGIC, .guest_ns = now_ns()};

    pthread_mutex_lock(&beats.lock);
    b.count = ++beats.count;
    b.gap_ns = beats.gap_ns;
    pthread_mutex_unlock(&beats.lock);
    return b;
}

/* Ticks each millisecond whether anybody listens or not, and keeps the longest pause that the guest's own
 * clock shows. */
static void *watch_clock(void *arg)
{
    uint64_t last = now_ns();

    (void)arg;
    for (;;) {
        struct timespec t = {0, BEAT_NS};
        uint64_t now;

        clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
        now = now_ns();
        pthread_mutex_lock(&beats.lock);
        if (now - last > beats.gap_ns)
            beats.gap_ns = now - last;
        pthread_mutex_unlock(&beats.lock);
        last = now;
    }
    return NULL;
}

static int send_all(int fd, const void *buf, size_t len)
{
    const char *p = buf;

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

static void *echo(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char buf[16384];
    ssize_t n;

    while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
        if (send_all(fd, buf, (size_t)n) < 0)
            break;
    close(fd);
    return NULL;
}

static void *heartbeat(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct timespec t = {0, BEAT_NS};

    for (;;) {
        struct beat b = next_beat();

        if (send_all(fd, &b, sizeof(b)) < 0)
            break;
        clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
    }
    close(fd);
    return NULL;
}

/* UDP: beats go to whoever asked last, for 5 s after each asking. No retransmission blurs the gaps that they
 * show. */
static void *pulse(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct sockaddr_in to = {0};
    uint64_t until = 0;

    for (;;) {
        struct sockaddr_in from;
        socklen_t len = sizeof(from);
        char buf[64];
        struct timespec t = {0, BEAT_NS};

        if (now_ns() > until) {
            struct pollfd p = {fd, POLLIN, 0};

            poll(&p, 1, -1);
        }
        if (recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, (struct sockaddr *)&from, &len) > 0) {
            to = from;
            until = now_ns() + 5000000000u;
        }
        if (now_ns() < until) {
            struct beat b = next_beat();

            (void)!sendto(fd, &b, sizeof(b), 0, (struct sockaddr *)&to, sizeof(to));
            clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
        }
    }
    return NULL;
}

static void *commands(void *arg)
{
    int fd = (int)(intptr_t)arg;
    FILE *in = fdopen(fd, "r");
    char line[256];

    while (in && fgets(line, sizeof(line), in)) {
        char *answer;

        line[strcspn(line, "\r\n")] = 0;
        answer = *line ? command_run(line) : NULL;
        if (answer && send_all(fd, answer, strlen(answer)) < 0) {
            free(answer);
            break;
        }
        free(answer);
    }
    if (in)
        fclose(in);
    return NULL;
}

struct port {
    uint16_t number;
    void *(*serve)(void *);
    int fd;
};

static int open_port(uint16_t number, int type)
{
    struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(number)};
    int one = 1, fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0 ||
        (type == SOCK_STREAM && listen(fd, 16) < 0))
        guest_fail("port %u: %s", number, strerror(errno));
    return fd;
}

static void *serve_port(void *arg)
{
    struct port *p = arg;

    for (;;) {
        int one = 1, fd = accept(p->fd, NULL, NULL);

        if (fd < 0) {
            usleep(10000);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        start_thread(p->serve, (void *)(intptr_t)fd);
    }
    return NULL;
}

void tcp_start(void)
{
    static struct port ports[] = {
        {PORT_ECHO, echo, -1}, {PORT_BEAT, heartbeat, -1}, {PORT_COMMAND, commands, -1}};
    unsigned i;

    start_thread(watch_clock, NULL);
    for (i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
        ports[i].fd = open_port(ports[i].number, SOCK_STREAM);
        start_thread(serve_port, &ports[i]);
    }
    start_thread(pulse, (void *)(intptr_t)open_port(PORT_BEAT, SOCK_DGRAM));
}
