/* SPDX-License-Identifier: MIT */
#include "tests/bench/lib_beat.h"
#include "tests/bench/bench.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BOOT (60 * XM_NS_PER_S)

/* Its socket; -1: there is none yet. */
static int connect_to(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void hear(struct beat *b, const char *text, ssize_t n)
{
    uint64_t now = xm_now();

    pthread_mutex_lock(&b->lock);
    if (b->last && now - b->last > b->longest)
        b->longest = now - b->last;
    b->last = now;
    pthread_mutex_unlock(&b->lock);
    for (ssize_t i = 0; i < n; i++) {
        if (text[i] == 'u') /* of «up»; the line has no other */
            atomic_fetch_add(&b->lines, 1);
        if (memchr("MBEF", text[i], 4))
            atomic_store(&b->wrong, true);
    }
}

static void *listen_on(void *arg)
{
    struct beat *b = arg;
    struct pollfd p[2] = {{.fd = -1, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    char text[4096];

    while (!atomic_load(&b->end)) {
        for (int i = 0; i < 2; i++) {
            if (p[i].fd < 0)
                p[i].fd = connect_to(b->path[i]);
        }
        poll(p, 2, 1);
        for (int i = 0; i < 2; i++) {
            if (p[i].fd < 0 || !p[i].revents)
                continue;
            ssize_t n = read(p[i].fd, text, sizeof text);
            if (n > 0)
                hear(b, text, n);
            else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
                close(p[i].fd);
                p[i].fd = -1;
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        if (p[i].fd >= 0)
            close(p[i].fd);
    }
    return NULL;
}

void beat_listen(struct beat *b, const char *path_a, const char *path_b)
{
    memset(b, 0, sizeof *b);
    snprintf(b->path[0], sizeof b->path[0], "%s", path_a);
    snprintf(b->path[1], sizeof b->path[1], "%s", path_b);
    pthread_mutex_init(&b->lock, NULL);
    if (pthread_create(&b->thread, NULL, listen_on, b))
        bench_die("no thread");
}

bool beat_wait(struct beat *b, unsigned lines)
{
    unsigned goal = atomic_load(&b->lines) + lines;
    uint64_t began = xm_now(), last;

    while (atomic_load(&b->lines) < goal && !atomic_load(&b->wrong)) {
        pthread_mutex_lock(&b->lock);
        last = XM_MAX(b->last, began);
        pthread_mutex_unlock(&b->lock);
        if (xm_now() - last > BOOT) /* its firmware says nothing */
            return false;
        poll(NULL, 0, 20);
    }
    return !atomic_load(&b->wrong);
}

void beat_mark(struct beat *b)
{
    pthread_mutex_lock(&b->lock);
    b->longest = 0;
    pthread_mutex_unlock(&b->lock);
}

double beat_longest(struct beat *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t ns = XM_MAX(b->longest, b->last ? xm_now() - b->last : 0);
    pthread_mutex_unlock(&b->lock);
    return (double)ns / 1e6;
}

void beat_end(struct beat *b)
{
    atomic_store(&b->end, true);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
}
