/* SPDX-License-Identifier: MIT */
/* tests/guest/init.c: the first and only program of the test guest. See guest.h for what it is told and what
 * it answers. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include "tests/guest/guest.h"

static pthread_mutex_t say_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned fails;
static char first_fail[256];

uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void put_line(const char *line)
{
    size_t len = strlen(line);

    while (len) {
        ssize_t n = write(STDOUT_FILENO, line, len);

        if (n <= 0 && errno != EINTR)
            return;
        if (n > 0) {
            line += n;
            len -= (size_t)n;
        }
    }
}

void guest_say(const char *fmt, ...)
{
    char text[512], line[560];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    snprintf(line, sizeof(line), "XMGUEST %s\n", text);
    pthread_mutex_lock(&say_lock);
    put_line(line);
    pthread_mutex_unlock(&say_lock);
}

void guest_fail(const char *fmt, ...)
{
    char text[256];
    unsigned n;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&say_lock);
    n = fails++;
    if (n == 0)
        snprintf(first_fail, sizeof(first_fail), "%s", text);
    pthread_mutex_unlock(&say_lock);
    if (n < 50) /* a broken disk would talk for hours */
        guest_say("FAIL %s", text);
}

unsigned guest_fails(void)
{
    unsigned n;

    pthread_mutex_lock(&say_lock);
    n = fails;
    pthread_mutex_unlock(&say_lock);
    return n;
}

const char *guest_first_fail(void)
{
    return guest_fails() ? first_fail : "";
}

void start_thread(void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t t;
    int rc;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    rc = pthread_create(&t, &attr, fn, arg);
    if (rc)
        guest_fail("thread: %s", strerror(rc));
    pthread_attr_destroy(&attr);
}

uint64_t parse_size(const char *s)
{
    char *end;
    uint64_t n = strtoull(s, &end, 0);

    switch (*end) {
    case 'G':
        n *= 1024;
        __attribute__((fallthrough));
    case 'M':
        n *= 1024;
        __attribute__((fallthrough));
    case 'K':
        n *= 1024;
        break;
    default:
        break;
    }
    return n;
}

void pace(uint64_t *next, uint64_t bytes, uint64_t rate)
{
    uint64_t now = now_ns();

    if (*next + 200000000 < now) /* what was missed is not made up for */
        *next = now;
    *next += rate ? (uint64_t)((double)bytes / (double)rate * 1e9) : 0;
    if (*next > now) {
        struct timespec t = {(time_t)(*next / 1000000000u), (long)(*next % 1000000000u)};

        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    }
}

void gate_init(struct gate *g)
{
    memset(g, 0, sizeof(*g));
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
}

void gate_enter(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    while (g->closed)
        pthread_cond_wait(&g->changed, &g->lock);
    g->inside++;
    pthread_mutex_unlock(&g->lock);
}

void gate_leave(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->inside--;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

int gate_close(struct gate *g)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&g->lock);
    g->closed++;
    while (g->inside && rc == 0)
        rc = pthread_cond_timedwait(&g->changed, &g->lock, &until);
    rc = g->inside ? -1 : 0;
    pthread_mutex_unlock(&g->lock);
    return rc;
}

void gate_open(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    if (g->closed)
        g->closed--;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void console_loop(void)
{
    char line[256];

    for (;;) {
        char *answer;

        if (!fgets(line, sizeof(line), stdin)) {
            clearerr(stdin);
            sleep(1);
            continue;
        }
        line[strcspn(line, "\r\n")] = 0;
        if (!*line)
            continue;
        answer = command_run(line);
        if (answer) {
            pthread_mutex_lock(&say_lock);
            put_line(answer);
            pthread_mutex_unlock(&say_lock);
        }
        free(answer);
    }
}

static void open_console(void)
{
    struct termios t;
    int i, fd = open("/dev/console", O_RDWR | O_NOCTTY);

    for (i = 0; i < 3 && fd >= 0; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
    if (tcgetattr(STDIN_FILENO, &t) == 0) {
        t.c_lflag &= (tcflag_t) ~(ECHO | ECHONL);
        tcsetattr(STDIN_FILENO, TCSANOW, &t);
    }
}

int main(void)
{
    struct params p;

    if (getpid() != 1) {
        fprintf(stderr, "this is the init of a test guest, not a command\n");
        return 2;
    }
    boot_mounts();
    open_console();
    signal(SIGPIPE, SIG_IGN);
    boot_modules();
    boot_params(&p);
    boot_watch_power_button();
    boot_network(p.ip);
    memory_start(&p);
    disks_start(&p);
    tcp_start();
    guest_say("READY ip=%s disks=%u mem=%lluM fails=%u", *p.ip ? p.ip : "-", p.disks,
              (unsigned long long)(p.mem_bytes >> 20), guest_fails());
    console_loop();
    return 0;
}
