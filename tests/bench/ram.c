/* The first round of guest RAM: a process with incompressible pages, its memory tracked, read and sent from
 * one namespace to another over one unshaped veth pair, into a memfd that was populated ahead; beside iperf3
 * with as many connections, alternating, medians. The memory on both sides is compared after each run.
 *
 * usage: bench-ram [GIB_PER_RUN [RUNS [CONNECTIONS]]]     (1 3 1)
 * `bench-ram -s GIB RUNS N` runs only ours, for profiling; it says where the time of a round goes. */
#include "memxfer/memxfer.h"
#include "tests/bench/bench.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT 7997

static void die(const char *what, const struct xm_error *e)
{
    fprintf(stderr, "bench-ram: %s: %s\n", what, e ? e->text : strerror(errno));
    exit(1);
}

static double cpu(int who)
{
    struct rusage r;
    getrusage(who, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* ---- the guest: fills its memory, then touches each page again whenever a byte comes ---- */

struct guest {
    pid_t pid;
    int memfd, order[2], answer[2];
    uint8_t *va;
};

static void guest_start(struct guest *g, uint64_t size)
{
    char x;

    g->memfd = memfd_create("bench-ram", 0);
    if (g->memfd < 0 || ftruncate(g->memfd, (off_t)size) < 0 || pipe(g->order) < 0 || pipe(g->answer) < 0)
        die("guest", NULL);
    g->va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
    fflush(NULL);
    g->pid = fork();
    if (g->pid == 0) {
        close(g->order[1]);
        for (uint64_t at = 0; at < size; at += 1 << 20)
            for (uint64_t n = 0; n < 1 << 20; n += 256)
                if (getrandom(g->va + at + n, 256, 0) < 0)
                    exit(1);
        do {
            for (uint64_t at = 0; at < size; at += XM_PAGE)
                g->va[at]++;
        } while (write(g->answer[1], "x", 1) == 1 && read(g->order[0], &x, 1) == 1);
        exit(0);
    }
    if (read(g->answer[0], &x, 1) != 1)
        die("guest", NULL);
}

static void guest_write_all(struct guest *g)
{
    char x;

    if (write(g->order[1], "x", 1) != 1 || read(g->answer[0], &x, 1) != 1)
        die("guest", NULL);
}

/* ---- the destination, a process in host B ---- */

static int gone_fd[2];

static int sink_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    return xm_ramsink_check(ctx, h, e);
}

static void sink_frame(void *ctx, struct xm_rx *rx)
{
    xm_ramsink_frame(ctx, rx);
}

static void sink_event(void *ctx, int link, enum xm_link_state state, const struct xm_error *e)
{
    (void)ctx, (void)state, (void)e;
    if (link < 0 && write(gone_fd[1], "x", 1) != 1)
        exit(1);
}

static void destination(int memfd, int ready, int connections)
{
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    char x;

    bench_enter('B');
    if (xm_ram_add(&ram, "ram", memfd, 0, &e) < 0)
        die("memory", &e);
    struct xm_ramsink *sink = xm_ramsink_new(&ram, &e);
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, sink}, .event = sink_event};
    struct xm_links *links = xm_links_new(&o, &e);
    int listener = xm_tcp_listen("10.50.0.2", PORT, &e);
    if (!sink || !links || listener < 0)
        die("destination", &e);
    xm_ramsink_populate(sink);
    uint64_t was =
        UINT64_MAX; /* as in a migration, where disks come first: until nothing is added any more */
    for (struct stat st; !fstat(memfd, &st) && (uint64_t)st.st_blocks != was; usleep(100000))
        was = (uint64_t)st.st_blocks;
    if (write(ready, "x", 1) != 1)
        exit(1);
    for (int i = 0; i < connections; i++) {
        if (xm_links_add(links, accept(listener, NULL, NULL), false, "b", &e) < 0)
            die("accepting", &e);
    }
    if (read(gone_fd[0], &x, 1) != 1)
        exit(1);
    xm_links_free(links);
    xm_ramsink_free(sink);
    exit(0);
}

struct costs {
    double open_s, round_s, own_cpu, far_cpu, second_s;
};

/* GB/s of round 1. */
static double run_ours(struct guest *g, uint64_t size, int connections, struct costs *c)
{
    struct xm_error e = {0};
    struct xm_ram ram = {.pid = g->pid};
    struct xm_round one, two;
    int ready[2], to = memfd_create("bench-to", 0);
    char x;

    if (to < 0 || ftruncate(to, (off_t)size) < 0 || pipe(ready) < 0 || pipe(gone_fd) < 0)
        die("destination", NULL);
    double kids = cpu(RUSAGE_CHILDREN);
    fflush(NULL);
    pid_t far = fork();
    if (far == 0)
        destination(to, ready[1], connections);
    if (read(ready[0], &x, 1) != 1)
        exit(1);
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, NULL}};
    struct xm_links *links = xm_links_new(&o, &e);
    for (int i = 0; i < connections; i++) {
        int fd = xm_tcp_connect("10.50.0.1", "10.50.0.2", PORT, XM_NS_PER_S, &e);
        if (fd < 0 || xm_links_add(links, fd, true, "a", &e) < 0)
            die("connecting", &e);
    }
    if (xm_ram_add(&ram, "ram", g->memfd, (uintptr_t)g->va, &e) < 0)
        die("memory", &e);
    double start = (double)xm_now();
    struct xm_precopy *p = xm_precopy_new(&ram, xm_links_transport(links), &e);
    if (!p)
        die("tracking", &e);
    c->open_s = ((double)xm_now() - start) / 1e9;
    double own = cpu(RUSAGE_SELF);
    if (xm_precopy_round(p, false, NULL, &one, &e) < 0)
        die("round 1", &e);
    c->own_cpu = cpu(RUSAGE_SELF) - own;
    c->round_s = (double)one.ns / 1e9;
    guest_write_all(g);
    if (xm_precopy_round(p, true, NULL, &two, &e) < 0)
        die("round 2", &e);
    c->second_s = (double)two.ns / 1e9;
    xm_precopy_free(p);
    xm_links_free(links);
    waitpid(far, NULL, 0);
    c->far_cpu = cpu(RUSAGE_CHILDREN) - kids;
    uint8_t *there = mmap(NULL, size, PROT_READ, MAP_SHARED, to, 0);
    if (two.pages_dirty != size / XM_PAGE || memcmp(there, g->va, size)) {
        fprintf(stderr, "bench-ram: the memories differ\n");
        exit(1);
    }
    munmap(there, size);
    xm_ram_close(&ram);
    close(to);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(gone_fd[i]);
    }
    return (double)size / (double)one.ns;
}

/* GB/s received, or 0. */
static double run_iperf(int connections)
{
    char cmd[200];
    double bits = 0;

    pid_t server =
        bench_spawn("ip netns exec %s iperf3 -s -1 -B 10.50.0.2 -p 5299 >/dev/null 2>&1", bench_ns('B'));
    bench_run("for i in $(seq 100); do ip netns exec %s ss -Hltn | grep -q :5299 && exit 0; sleep 0.05; "
              "done; exit 1",
              bench_ns('B'));
    snprintf(cmd, sizeof cmd, "iperf3 -J -c 10.50.0.2 -p 5299 -P %d -t 1 -l 256K", connections);
    FILE *f = popen(cmd, "r");
    json_t *all = f ? json_loadf(f, 0, NULL) : NULL;
    json_unpack(all, "{s:{s:{s:F}}}", "end", "sum_received", "bits_per_second", &bits);
    json_decref(all);
    if (f)
        pclose(f);
    bench_kill(server);
    return bits / 8e9;
}

int main(int argc, char **argv)
{
    bool only_ours = argc > 1 && !strcmp(argv[1], "-s");
    char **arg = argv + only_ours;
    struct bench_stat ours = {0}, peer = {0};
    struct guest g;
    argc -= only_ours;
    uint64_t size = (argc > 1 ? strtoull(arg[1], NULL, 10) : 1) << 30;
    unsigned runs = argc > 2 ? (unsigned)strtoul(arg[2], NULL, 10) : 3;
    int connections = argc > 3 ? atoi(arg[3]) : 1;

    if (!size || connections < 1 || bench_hosts(1) || bench_enter('A'))
        return 1;
    guest_start(&g, size);
    for (unsigned r = 0; r < runs; r++) {
        struct costs c;
        double gb = (double)size / 1e9;
        bench_add(&ours, run_ours(&g, size, connections, &c));
        if (!only_ours)
            bench_add(&peer, run_iperf(connections));
        else
            printf("round 1 %.3f s, %.2f GB/s (tracking set up in %.1f ms; source %.2f CPU s/GB); round 2, "
                   "all dirty, %.3f s; "
                   "destination with populating, both rounds %.2f CPU s/GB\n",
                   c.round_s, gb / c.round_s, c.open_s * 1e3, c.own_cpu / gb, c.second_s, c.far_cpu / gb / 2);
    }
    kill(g.pid, SIGKILL);
    if (!only_ours)
        bench_result("ram-round", "GB/s", &ours, &peer, "iperf3", 0.85, true);
    return 0;
}
