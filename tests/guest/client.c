/* SPDX-License-Identifier: MIT */
/* tests/guest/client.c: xm-client, the test guest's counterpart on the host. Each command prints one JSON
 * line; exit 0 when all was well.
 *
 *   xm-client heartbeat HOST SECONDS      one TCP connection, the longest gap between the guest's beats
 *   xm-client pulse HOST SECONDS          the same by UDP: gaps as the network shows them, without retransmission
 *   xm-client echo HOST SECONDS           one TCP connection, sends and compares without end; SIGUSR1: a line
 *                                         of what was slowest since the last one
 *   xm-client cmd HOST WORDS...           a command of tests/guest/command.c
 *   xm-client wait HOST SECONDS           until the guest answers commands
 *   xm-client fill FILE NAME SEED SPAN    prefills a disk's first SPAN bytes with records (guest: xm.disk=...:prefilled)
 *
 * SECONDS 0: until SIGTERM or SIGINT, which end any of them early and regularly. Those of `wait` count
 * progress (tests/progress.h). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "tests/guest/client.h"
#include "tests/guest/guest.h"
#include "tests/guest/record.h"
#include "tests/progress.h"

volatile sig_atomic_t client_stopped;

static void on_signal(int sig)
{
    (void)sig;
    client_stopped = 1;
}

static volatile sig_atomic_t client_marked;

static void on_mark(int sig)
{
    (void)sig;
    client_marked = 1;
}

static uint64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int client_fail(const char *what)
{
    printf("{\"ok\":false,\"error\":\"%s: %s\"}\n", what, strerror(errno));
    return 1;
}

/* HOST or HOST:PORT (where the guest's ports are forwarded to others). */
static int dial(const char *host, uint16_t port, int type)
{
    struct sockaddr_in sin = {.sin_family = AF_INET};
    char name[64];
    char *colon;
    int one = 1, fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    snprintf(name, sizeof(name), "%s", host);
    colon = strchr(name, ':');
    if (colon) {
        *colon = 0;
        port = (uint16_t)atoi(colon + 1);
    }
    sin.sin_port = htons(port);
    sin.sin_addr.s_addr = inet_addr(name);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&sin, sizeof(sin)) < 0 && errno != EINPROGRESS) {
        int e = errno;

        close(fd);
        errno = e;
        return -1;
    }
    if (type & SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

struct gaps {
    uint64_t beats, lost, last_ns, last_count, longest_ns, longest_at, began, guest_gap_ns, last_guest_ns;
    bool monotonic;
};

static void see_beat(struct gaps *g, const struct beat *b)
{
    uint64_t now = clock_ns();

    if (g->beats) {
        if (now - g->last_ns > g->longest_ns) {
            g->longest_ns = now - g->last_ns;
            g->longest_at = g->last_ns - g->began;
        }
        if (b->count <= g->last_count || b->guest_ns < g->last_guest_ns)
            g->monotonic = false;
    }
    g->beats++;
    g->last_ns = now;
    g->last_count = b->count;
    g->last_guest_ns = b->guest_ns;
    g->guest_gap_ns = b->gap_ns;
}

static int report_gaps(const struct gaps *g, bool alive)
{
    uint64_t now = clock_ns(), longest = g->longest_ns;

    if (g->beats && now - g->last_ns > longest) /* silence at the end is a gap too */
        longest = now - g->last_ns;
    printf("{\"ok\":%s,\"beats\":%llu,\"longest_gap_ms\":%.3f,\"at_s\":%.3f,\"guest_gap_ms\":%.3f,"
           "\"monotonic\":%s,"
           "\"connected\":%s}\n",
           alive && g->monotonic && g->beats ? "true" : "false", (unsigned long long)g->beats,
           (double)longest / 1e6, (double)g->longest_at / 1e9, (double)g->guest_gap_ns / 1e6,
           g->monotonic ? "true" : "false", alive ? "true" : "false");
    return alive && g->monotonic && g->beats ? 0 : 1;
}

static int beats(const char *host, unsigned seconds, bool udp)
{
    struct gaps g = {.monotonic = true, .began = clock_ns()};
    uint64_t asked = 0, until = seconds ? g.began + seconds * 1000000000ull : UINT64_MAX;
    int fd = dial(host, PORT_BEAT, udp ? SOCK_DGRAM : SOCK_STREAM);
    unsigned char buf[sizeof(struct beat)];
    bool alive = true;
    size_t have = 0;

    if (fd < 0)
        return client_fail("connect");
    while (!client_stopped && clock_ns() < until && alive) {
        struct pollfd p = {fd, POLLIN, 0};
        struct beat b;
        ssize_t n;

        if (udp && clock_ns() - asked > 1000000000u) {
            (void)!send(fd, "beat", 4, MSG_NOSIGNAL);
            asked = clock_ns();
        }
        if (poll(&p, 1, 100) <= 0)
            continue;
        n = recv(fd, buf + have, sizeof(buf) - have, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR && !(udp && errno != EBADF))) {
            alive = false;
        } else if (n > 0) {
            have += (size_t)n;
            if (have < sizeof(buf))
                continue;
            have = 0;
            memcpy(&b, buf, sizeof(b));
            alive = b.magic == BEAT_MAGIC;
            see_beat(&g, &b);
        }
    }
    close(fd);
    return report_gaps(&g, alive);
}

/* Sends a block and waits until it has come back whole. false: the connection broke, or the content differs.
 */
static bool echo_once(int fd, unsigned char *out, unsigned char *in, size_t len, uint64_t seed)
{
    size_t sent = 0, got = 0;

    rec_noise(out, len, seed);
    while (got < len) {
        struct pollfd p = {fd, (short)(POLLIN | (sent < len ? POLLOUT : 0)), 0};
        ssize_t n;

        if (poll(&p, 1, 100) <= 0) {
            if (client_stopped)
                return true;
            continue;
        }
        if (p.revents & POLLOUT) {
            n = send(fd, out + sent, len - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n < 0 && errno != EAGAIN)
                return false;
            sent += n > 0 ? (size_t)n : 0;
        }
        if (p.revents & (POLLIN | POLLERR | POLLHUP)) {
            n = recv(fd, in + got, len - got, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN))
                return false;
            got += n > 0 ? (size_t)n : 0;
        }
    }
    return memcmp(out, in, len) == 0;
}

static void report_echo(bool good, uint64_t rounds, uint64_t bytes, uint64_t slowest)
{
    printf("{\"ok\":%s,\"rounds\":%llu,\"bytes\":%llu,\"slowest_ms\":%.3f}\n", good ? "true" : "false",
           (unsigned long long)rounds, (unsigned long long)bytes, (double)slowest / 1e6);
    fflush(stdout);
}

static int echo(const char *host, unsigned seconds)
{
    static unsigned char out[16384], in[16384];
    uint64_t began = clock_ns(), until = seconds ? began + seconds * 1000000000ull : UINT64_MAX;
    uint64_t rounds = 0, bytes = 0, slowest = 0, marked = 0, rng = began;
    int fd = dial(host, PORT_ECHO, SOCK_STREAM);
    bool good = true;

    if (fd < 0)
        return client_fail("connect");
    while (!client_stopped && clock_ns() < until && good) {
        struct timespec pause = {0, 2000000};
        size_t len = 1 + (size_t)(rec_random(&rng) % sizeof(out));
        uint64_t t = clock_ns();

        good = echo_once(fd, out, in, len, rng);
        t = clock_ns() - t;
        if (t > marked)
            marked = t;
        if (t > slowest)
            slowest = t;
        rounds++;
        bytes += len;
        if (good && client_marked) {
            client_marked = 0;
            report_echo(true, rounds, bytes, marked);
            marked = 0;
        }
        nanosleep(&pause, NULL);
    }
    close(fd);
    report_echo(good && rounds, rounds, bytes, slowest);
    return good && rounds ? 0 : 1;
}

static int command(const char *host, int words, char **word)
{
    char line[512] = "", answer[8192];
    int fd = dial(host, PORT_COMMAND, SOCK_STREAM), i;
    size_t len = 0;

    if (fd < 0)
        return client_fail("connect");
    for (i = 0; i < words; i++)
        len += (size_t)snprintf(line + len, sizeof(line) - len, "%s%s", word[i], i + 1 < words ? " " : "\n");
    if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
        return client_fail("send");
    len = 0;
    while (len < sizeof(answer) - 1 && !memchr(answer, '\n', len)) {
        ssize_t n = recv(fd, answer + len, sizeof(answer) - 1 - len, 0);

        if (n < 0 && errno == EINTR && !client_stopped)
            continue;
        if (n <= 0)
            return client_fail("no answer");
        len += (size_t)n;
    }
    close(fd);
    answer[len] = 0;
    fputs(answer, stdout);
    return strncmp(answer, "{\"ok\":true", 10) == 0 ? 0 : 1;
}

/* Within a second, as the limit sees it: a guest that has no timer takes a connection, and never answers. */
static bool comes(int fd, short what, struct limit *l)
{
    struct pollfd p = {.fd = fd, .events = what};

    for (int i = 0; i < 20 && !client_stopped && !limit_over(l); i++) {
        if (poll(&p, 1, 50) > 0)
            return true;
    }
    return false;
}

/* The guest may be booting still, behind a network that is not there yet. */
static int wait_ready(const char *host, unsigned seconds)
{
    struct limit l = limit_start(seconds);

    while (!client_stopped && !limit_over(&l)) {
        struct timespec pause = {0, 20000000};
        int fd = dial(host, PORT_COMMAND, SOCK_STREAM | SOCK_NONBLOCK);
        char c;

        if (fd >= 0) {
            if (comes(fd, POLLOUT, &l) && send(fd, "status\n", 7, MSG_NOSIGNAL) == 7 &&
                comes(fd, POLLIN, &l) && recv(fd, &c, 1, 0) == 1) {
                close(fd);
                printf("{\"ok\":true,\"waited_ms\":%.0f}\n", limit_elapsed(&l) * 1000);
                return 0;
            }
            close(fd);
        }
        nanosleep(&pause, NULL);
    }
    printf("{\"ok\":false,\"error\":\"no guest at %s within %u s\"}\n", host, seconds);
    return 1;
}

static int fill(const char *path, const char *name, uint64_t seed, uint64_t span)
{
    static unsigned char buf[REC_SLOT];
    uint64_t id = rec_disk_id(name, seed), off;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

    if (fd < 0)
        return client_fail(path);
    for (off = 0; off + REC_SLOT <= span; off += REC_SLOT) {
        rec_make(buf, id, off / REC_BLOCK, REC_SLOT_BLOCKS, 1);
        if (pwrite(fd, buf, sizeof(buf), (off_t)off) != (ssize_t)sizeof(buf))
            return client_fail(path);
    }
    if (fsync(fd) < 0 || close(fd) < 0)
        return client_fail(path);
    printf("{\"ok\":true,\"bytes\":%llu}\n", (unsigned long long)off);
    return 0;
}

uint64_t client_size(const char *s)
{
    char *end;
    uint64_t n = strtoull(s, &end, 0);

    return *end == 'G' ? n << 30 : *end == 'M' ? n << 20 : *end == 'K' ? n << 10 : n;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct sigaction sa = {.sa_handler = on_signal}, mark = {.sa_handler = on_mark};

    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGUSR1, &mark, NULL);
    if (argc == 4 && strcmp(what, "heartbeat") == 0)
        return beats(argv[2], (unsigned)atoi(argv[3]), false);
    if (argc == 4 && strcmp(what, "pulse") == 0)
        return beats(argv[2], (unsigned)atoi(argv[3]), true);
    if (argc == 4 && strcmp(what, "echo") == 0)
        return echo(argv[2], (unsigned)atoi(argv[3]));
    if (argc >= 4 && strcmp(what, "cmd") == 0)
        return command(argv[2], argc - 3, argv + 3);
    if (argc == 4 && strcmp(what, "wait") == 0)
        return wait_ready(argv[2], (unsigned)atoi(argv[3]));
    if (argc == 6 && strcmp(what, "fill") == 0)
        return fill(argv[2], argv[3], strtoull(argv[4], NULL, 0), client_size(argv[5]));
    if (argc == 8 && strcmp(what, "compare") == 0)
        return client_compare(argv[2], argv[3], argv[4], strtoull(argv[5], NULL, 0), client_size(argv[6]),
                              client_size(argv[7]));
    if (argc == 6 && strcmp(what, "proxy") == 0)
        return client_proxy(argv[2], (uint16_t)atoi(argv[3]), argv[4], client_size(argv[5]));
    fprintf(stderr, "usage: xm-client heartbeat|pulse|echo|wait HOST SECONDS\n"
                    "       xm-client cmd HOST WORDS...\n"
                    "       xm-client fill FILE NAME SEED SPAN\n"
                    "       xm-client compare SOURCE DESTINATION NAME SEED SPAN TRIM\n"
                    "       xm-client proxy ADDRESS,... PORT none|corrupt|cut|stall AFTER\n");
    return 2;
}
