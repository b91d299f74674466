#include "tests/bench/bench.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

static char ns_name[2][32];
static char dirs[2][128];
static char loops[16][64];
static unsigned loop_count, link_count;
static pid_t kids[32];
static pid_t owner;

static void cleanup(void)
{
    if (getpid() != owner)
        return;
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++)
        bench_kill(kids[i]);
    for (unsigned i = 0; i < loop_count; i++)
        bench_run("losetup -d %s 2>/dev/null || true", loops[i]);
    for (int i = 0; i < 2; i++) {
        if (ns_name[i][0])
            bench_run("ip netns del %s 2>/dev/null || true", ns_name[i]);
        if (dirs[i][0])
            bench_run("rm -rf %s", dirs[i]);
    }
}

static void on_signal(int sig)
{
    (void)sig;
    exit(130); /* runs cleanup; a benchmark has nothing else to lose */
}

static void own(void)
{
    if (owner)
        return;
    owner = getpid();
    atexit(cleanup);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
}

static int vrun(const char *fmt, va_list ap)
{
    char cmd[2048];

    vsnprintf(cmd, sizeof cmd, fmt, ap);
    int r = system(cmd);
    if (r)
        fprintf(stderr, "bench: failed (%d): %s\n", r, cmd);
    return r ? -1 : 0;
}

int bench_run(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int r = vrun(fmt, ap);
    va_end(ap);
    return r;
}

pid_t bench_spawn(const char *fmt, ...)
{
    char cmd[2048];
    char line[2100];
    va_list ap;

    own();
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    snprintf(line, sizeof line, "exec %s", cmd);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++) {
        if (!kids[i]) {
            kids[i] = pid;
            break;
        }
    }
    return pid;
}

void bench_kill(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (unsigned i = 0; i < sizeof kids / sizeof *kids; i++) {
        if (kids[i] == pid)
            kids[i] = 0;
    }
}

const char *bench_ns(char host)
{
    return ns_name[host - 'A'];
}

int bench_hosts(unsigned links)
{
    own();
    link_count = links;
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
    char path[64];

    snprintf(path, sizeof path, "/run/netns/%s", bench_ns(host));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -1 : setns(fd, CLONE_NEWNET);
    if (fd >= 0)
        close(fd);
    if (r)
        perror(path);
    return r;
}

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
    char cmd[512];
    char *out = loops[loop_count];

    snprintf(cmd, sizeof cmd, "truncate -s %llu %s/%s && losetup --direct-io=off --show -f %s/%s",
             (unsigned long long)size, bench_dir(true), name, bench_dir(true), name);
    FILE *f = popen(cmd, "r");
    if (!f || !fgets(out, sizeof loops[0], f)) {
        if (f)
            pclose(f);
        return NULL;
    }
    pclose(f);
    out[strcspn(out, "\n")] = 0;
    loop_count++;
    return out;
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

void bench_add(struct bench_stat *s, double v)
{
    if (s->n < 64)
        s->v[s->n++] = v;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_fraction(const struct bench_stat *s, double f)
{
    struct bench_stat t = *s;

    if (!t.n)
        return 0;
    qsort(t.v, t.n, sizeof *t.v, by_value);
    if (f == 0.5 && t.n % 2 == 0)
        return (t.v[t.n / 2 - 1] + t.v[t.n / 2]) / 2;
    return t.v[(unsigned)(f * (double)(t.n - 1) + 0.5)];
}

double bench_median(const struct bench_stat *s)
{
    return at_fraction(s, 0.5);
}
double bench_min(const struct bench_stat *s)
{
    return at_fraction(s, 0);
}
double bench_max(const struct bench_stat *s)
{
    return at_fraction(s, 1);
}

static void append(json_t *row)
{
    const char *path = "build/bench/results.json";
    bench_run("mkdir -p build/bench");
    json_t *list = json_load_file(path, 0, NULL);

    if (!json_is_array(list)) {
        json_decref(list);
        list = json_array();
    }
    const char *name = xm_json_str(row, "name", "");
    const char *peer = xm_json_str(row, "peer_name", "");
    for (size_t i = json_array_size(list); i-- > 0;) {
        json_t *old = json_array_get(list, i);
        if (!strcmp(xm_json_str(old, "name", ""), name) && !strcmp(xm_json_str(old, "peer_name", ""), peer))
            json_array_remove(list, i);
    }
    json_array_append_new(list, row);
    json_dump_file(list, path, JSON_INDENT(1) | JSON_REAL_PRECISION(5));
    json_decref(list);
}

void bench_result(const char *name, const char *unit, const struct bench_stat *ours,
                  const struct bench_stat *peer, const char *peer_name, double goal, bool higher_is_better)
{
    double o = bench_median(ours);
    double p = bench_median(peer);
    double ratio = p > 0 ? o / p : 0;
    bool met = ours->n && peer->n && (higher_is_better ? ratio >= goal : ratio <= goal);

    printf("%-18s ours %9.2f [%.2f..%.2f]  %s %9.2f [%.2f..%.2f] %s  ratio %.2f, goal %s %.2f: %s\n", name, o,
           bench_min(ours), bench_max(ours), peer_name, p, bench_min(peer), bench_max(peer), unit, ratio,
           higher_is_better ? ">=" : "<=", goal, met ? "met" : "NOT MET");
    fflush(stdout);
    append(json_pack("{s:s s:s s:f s:f s:s s:f s:f s:b s:f s:f s:f s:f}", "name", name, "unit", unit, "ours",
                     o, "peer", p, "peer_name", peer_name, "ratio", ratio, "goal", goal, "met", met,
                     "ours_min", bench_min(ours), "ours_max", bench_max(ours), "peer_min", bench_min(peer),
                     "peer_max", bench_max(peer)));
}

void bench_unable(const char *name, const char *why)
{
    printf("%-18s cannot run here: %s\n", name, why);
    append(json_pack("{s:s s:s s:b}", "name", name, "why", why, "met", 0));
}
