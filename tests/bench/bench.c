/* SPDX-License-Identifier: MIT */
/* Hosts, disks and processes of a benchmark, and their end: at exit, after a signal, and (processes) when we
 * are killed. See bench.h. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char ns_name[2][64];
static bool ns_ours;
static char dirs[2][128];
static char loops[32][64];
static unsigned loop_count;
static pid_t kids[64];
static char last_words[8][400];
static unsigned last_word_count;
static pid_t owner;

static void run_quietly(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void cleanup(void)
{
    static bool done;

    if (getpid() != owner || done)
        return;
    done = true;
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++)
        bench_kill(kids[i]);
    while (last_word_count)
        run_quietly("%s", last_words[--last_word_count]);
    for (unsigned i = 0; i < loop_count; i++)
        run_quietly("losetup -d %s", loops[i]);
    for (int i = 0; i < 2; i++) {
        if (ns_ours && ns_name[i][0])
            run_quietly("ip netns del %s", ns_name[i]);
        if (dirs[i][0])
            run_quietly("rm -rf %s", dirs[i]);
    }
}

static void on_signal(int sig)
{
    (void)sig;
    cleanup();
    _exit(130);
}

static void own(void)
{
    if (owner)
        return;
    owner = getpid();
    atexit(cleanup);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- processes ---- */

static void add_kid(pid_t pid)
{
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++) {
        if (!kids[i]) {
            kids[i] = pid;
            return;
        }
    }
}

static void drop_kid(pid_t pid)
{
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++) {
        if (kids[i] == pid)
            kids[i] = 0;
    }
}

pid_t bench_fork(void)
{
    own();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        return 0;
    }
    setpgid(pid, pid); /* so that a kill reaches all that it starts */
    add_kid(pid);
    return pid;
}

int bench_wait(pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    drop_kid(pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void bench_kill(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(-pid, SIGKILL);
    bench_wait(pid);
}

static pid_t shell(const char *cmd)
{
    pid_t pid = bench_fork();

    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static void run_quietly(const char *fmt, ...)
{
    char cmd[600];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    snprintf(cmd + n, sizeof cmd - (size_t)n, " >/dev/null 2>&1");
    bench_wait(shell(cmd));
}

int bench_run(const char *fmt, ...)
{
    char cmd[4096];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    int r = bench_wait(shell(cmd));
    if (r)
        fprintf(stderr, "bench: failed (%d): %s\n", r, cmd);
    return r ? -1 : 0;
}

const char *bench_ask(const char *fmt, ...)
{
    static char line[4096];
    char cmd[4096];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    FILE *f = popen(cmd, "r");
    line[0] = 0;
    if (f && !fgets(line, sizeof line, f))
        line[0] = 0;
    if (f)
        pclose(f);
    line[strcspn(line, "\n")] = 0;
    return line;
}

pid_t bench_spawn(const char *fmt, ...)
{
    char cmd[4096] = "exec ";
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(cmd + 5, sizeof cmd - 5, fmt, ap);
    va_end(ap);
    return shell(cmd);
}

void bench_at_exit(const char *fmt, ...)
{
    va_list ap;

    own();
    va_start(ap, fmt);
    if (last_word_count < sizeof last_words / sizeof *last_words)
        vsnprintf(last_words[last_word_count++], sizeof *last_words, fmt, ap);
    va_end(ap);
}

/* ---- hosts ---- */

const char *bench_ns(char host)
{
    return ns_name[host - 'A'];
}

void bench_use_ns(const char *a, const char *b)
{
    own();
    snprintf(ns_name[0], sizeof ns_name[0], "%s", a);
    snprintf(ns_name[1], sizeof ns_name[1], "%s", b);
}

int bench_hosts(unsigned links)
{
    own();
    ns_ours = true;
    for (int i = 0; i < 2; i++) {
        snprintf(ns_name[i], sizeof ns_name[i], "xmb%d-%c", getpid() % 100000, 'a' + i);
        if (bench_run("ip netns add %s && ip -n %s link set lo up", ns_name[i], ns_name[i]))
            return -1;
    }
    for (unsigned l = 0; l < links; l++) {
        if (bench_run("ip -n %s link add l%u type veth peer name l%u netns %s", ns_name[0], l, l, ns_name[1]))
            return -1;
        for (int i = 0; i < 2; i++) {
            if (bench_run("ip -n %s addr add 10.%u.0.%d/24 dev l%u && ip -n %s link set l%u up", ns_name[i],
                          50 + l, i + 1, l, ns_name[i], l))
                return -1;
        }
    }
    return 0;
}

int bench_enter(char host)
{
    char path[128];

    snprintf(path, sizeof path, "/run/netns/%s", bench_ns(host));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -1 : setns(fd, CLONE_NEWNET);
    if (fd >= 0)
        close(fd);
    if (r)
        perror(path);
    return r;
}

/* ---- disks ---- */

const char *bench_dir(bool in_memory)
{
    char *dir = dirs[in_memory];

    own();
    if (!dir[0]) {
        snprintf(dir, sizeof dirs[0], "%s/xmbench-%d", in_memory ? "/dev/shm" : "build/bench", getpid());
        bench_run("mkdir -p %s", dir);
    }
    return dir;
}

const char *bench_loop(const char *name, uint64_t size)
{
    if (loop_count == sizeof loops / sizeof *loops)
        return NULL;
    char *out = loops[loop_count];
    const char *dev = bench_ask("truncate -s %llu %s/%s && losetup --direct-io=off --show -f %s/%s",
                                (unsigned long long)size, bench_dir(true), name, bench_dir(true), name);
    if (!dev[0])
        return NULL;
    snprintf(out, sizeof loops[0], "%.60s", dev);
    loop_count++;
    return out;
}

int bench_clear(const char *dev)
{
    return bench_run("dd if=/dev/zero of=%s bs=1M count=$(($(blockdev --getsize64 %s) >> 20)) oflag=direct "
                     "conv=fsync status=none",
                     dev, dev);
}

/* Files in memory on older kernels: they have no page cache beside them. */
static int open_direct(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

    return fd < 0 && errno == EINVAL ? open(path, O_RDONLY | O_CLOEXEC) : fd;
}

/* -1: one of them cannot be read; else where they first differ, rounded down to a piece, or size. */
static int64_t first_difference(const char *a, const char *b, uint64_t size)
{
    enum { STEP = 1 << 20 };
    int fd[2] = {open_direct(a), open_direct(b)};
    char *buf = aligned_alloc(4096, 2 * STEP);
    int64_t at = fd[0] < 0 || fd[1] < 0 || !buf ? -1 : 0;

    while (at >= 0 && (uint64_t)at < size) {
        size_t n = XM_MIN(size - (uint64_t)at, (uint64_t)STEP);
        if (pread(fd[0], buf, n, at) != (ssize_t)n || pread(fd[1], buf + STEP, n, at) != (ssize_t)n)
            at = -1;
        else if (memcmp(buf, buf + STEP, n))
            break;
        else
            at += (int64_t)n;
    }
    for (int i = 0; i < 2; i++) {
        if (fd[i] >= 0)
            close(fd[i]);
    }
    free(buf);
    return at;
}

int bench_same(const char *a, const char *b, uint64_t size, unsigned seconds)
{
    int64_t at = first_difference(a, b, size);

    for (unsigned i = 0; i < seconds && at >= 0 && (uint64_t)at < size; i++) {
        sleep(1);
        at = first_difference(a, b, size);
    }
    if (at >= 0 && (uint64_t)at == size)
        return 0;
    fprintf(stderr,
            at < 0 ? "bench: %s and %s cannot be compared\n" : "bench: %s and %s differ in the MiB at %lld\n",
            a, b, (long long)at);
    return -1;
}

void bench_touch(uint64_t bytes)
{
    pid_t pid = bench_fork();

    if (pid == 0) {
        const char *p =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        poll(NULL, 0, 2500); /* the kernel has given back what was free before */
        _exit(p == MAP_FAILED);
    }
    if (bench_wait(pid))
        bench_die("no memory");
}

/* A cheap generator whose output does not compress: xorshift, seeded by the kernel. */
int bench_fill_random(const char *path, uint64_t size)
{
    enum { STEP = 1 << 20 };
    uint64_t *buf = malloc(STEP);
    uint64_t x = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int r = fd < 0 || !buf || getrandom(&x, sizeof x, 0) < 0 ? -1 : 0;

    x |= 1;
    for (uint64_t at = 0; !r && at < size; at += STEP) {
        for (unsigned i = 0; i < STEP / 8; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            buf[i] = x;
        }
        size_t n = XM_MIN(size - at, (uint64_t)STEP);
        r = pwrite(fd, buf, n, (off_t)at) == (ssize_t)n ? 0 : -1;
    }
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(buf);
    return r;
}

/* ---- CPU time ---- */

double bench_cpu_children(void)
{
    struct rusage r;

    getrusage(RUSAGE_CHILDREN, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

double bench_cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec ts;

    if (pid <= 0 || clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts))
        return 0;
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

double bench_cpu_machine(void)
{
    unsigned long long user = 0, nice = 0, sys = 0, idle, wait, irq = 0, soft = 0;
    FILE *f = fopen("/proc/stat", "r");

    if (!f || fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &sys, &idle, &wait, &irq,
                     &soft) != 7)
        user = nice = sys = irq = soft = 0;
    if (f)
        fclose(f);
    return (double)(user + nice + sys + irq + soft) / (double)sysconf(_SC_CLK_TCK);
}
