/* What links carry: 256 KiB payloads between two processes in two namespaces over one unshaped veth pair,
 * beside iperf3 with as many connections, alternating, medians. Both ends hash every byte; the receiver
 * answers at once.
 *
 * usage: bench-links [GIB_PER_RUN [RUNS [CONNECTIONS [PAYLOAD_KIB]]]]     (1 3 all 256)
 * `bench-links -s GIB RUNS N KIB` runs only ours, for profiling. */
#include "net/net.h"
#include "tests/bench/bench.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT  7998
#define DEPTH 64u

static uint32_t payload = 256 << 10;

static void die(const char *what, const struct xm_error *e)
{
    fprintf(stderr, "bench-links: %s: %s\n", what, e->text);
    exit(1);
}

/* ---- the receiver, a process in host B ---- */

static int gone_fd[2];

static int sink_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    (void)ctx, (void)h, (void)e;
    return 0;
}

static void sink_frame(void *ctx, struct xm_rx *rx)
{
    (void)ctx;
    xm_rx_done(rx, 0, NULL, 0);
}

static void sink_event(void *ctx, int link, enum xm_link_state state, const struct xm_error *e)
{
    (void)ctx, (void)state, (void)e;
    if (link < 0 && write(gone_fd[1], "x", 1) != 1)
        exit(1);
}

static void receiver(int listener, int connections)
{
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, NULL}, .event = sink_event};
    struct xm_error e = {0};
    struct xm_links *links = xm_links_new(&o, &e);
    char x;

    for (int i = 0; i < connections; i++) {
        if (xm_links_add(links, accept(listener, NULL, NULL), false, "b", &e) < 0)
            die("accepting", &e);
    }
    if (read(gone_fd[0], &x, 1) != 1)
        exit(1);
    xm_links_free(links);
    exit(0);
}

/* ---- the sender ---- */

struct piece {
    struct xm_msg msg;
    uint8_t *buf;
};
static struct xm_mailbox box;
static struct xm_transport *to;
static uint64_t left, settled;

static void submit(struct piece *p)
{
    left--;
    p->msg.home = &box;
    p->msg.type = XM_FRAME_DISK_DATA;
    p->msg.length = payload;
    p->msg.payload = p->buf;
    p->msg.seq++;
    to->submit(to, &p->msg);
}

static void piece_settled(struct xm_post *post)
{
    struct piece *p = xm_container_of(post, struct piece, msg.post);

    if (p->msg.status)
        exit(1);
    settled++;
    if (left)
        submit(p);
}

static double cpu(int who)
{
    struct rusage r;
    getrusage(who, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* GB/s; CPU seconds per GB of both ends in *cpu_per_gb. */
static double run_ours(int connections, uint64_t bytes, double *cpu_per_gb)
{
    struct xm_error e = {0};
    uint64_t total = bytes / payload;
    int ready[2];
    char x;

    fflush(stdout);
    if (pipe(ready) < 0 || pipe(gone_fd) < 0)
        exit(1);
    double kids_before = cpu(RUSAGE_CHILDREN);
    pid_t kid = fork();
    if (kid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bench_enter('B');
        int listener = xm_tcp_listen("10.50.0.2", PORT, &e);
        if (listener < 0)
            die("listening", &e);
        if (write(ready[1], "x", 1) != 1)
            exit(1);
        receiver(listener, connections);
    }
    if (read(ready[0], &x, 1) != 1)
        exit(1);
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, NULL}};
    struct xm_links *links = xm_links_new(&o, &e);
    for (int i = 0; i < connections; i++) {
        int fd = xm_tcp_connect("10.50.0.1", "10.50.0.2", PORT, 10 * XM_NS_PER_S, &e);
        if (fd < 0 || xm_links_add(links, fd, true, "a", &e) < 0)
            die("connecting", &e);
    }
    to = xm_links_transport(links);
    struct piece *p = calloc(DEPTH, sizeof *p);
    for (unsigned i = 0; i < DEPTH; i++) {
        p[i].buf = aligned_alloc(4096, payload);
        memset(p[i].buf, (int)i, payload);
        p[i].msg.post.run = piece_settled;
    }
    left = total;
    settled = 0;
    double own_before = cpu(RUSAGE_SELF);
    uint64_t start = xm_now();
    for (unsigned i = 0; i < DEPTH && left; i++)
        submit(&p[i]);
    while (settled < total)
        xm_mailbox_wait(&box, -1);
    double seconds = (double)(xm_now() - start) / 1e9;
    double own = cpu(RUSAGE_SELF) - own_before;
    xm_links_free(links);
    waitpid(kid, NULL, 0);
    *cpu_per_gb = (own + cpu(RUSAGE_CHILDREN) - kids_before) / ((double)total * payload / 1e9);
    for (unsigned i = 0; i < DEPTH; i++)
        free(p[i].buf);
    free(p);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(gone_fd[i]);
    }
    return (double)total * payload / seconds / 1e9;
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

static const char *const row_name[] = {"links-tcp-1", "links-tcp-2", "links-tcp-4"};

int main(int argc, char **argv)
{
    bool only_ours = argc > 1 && !strcmp(argv[1], "-s");
    char **arg = argv + only_ours;
    argc -= only_ours;
    uint64_t bytes = (argc > 1 ? strtoull(arg[1], NULL, 10) : 1) << 30;
    unsigned runs = argc > 2 ? (unsigned)strtoul(arg[2], NULL, 10) : 3;
    int only = argc > 3 ? atoi(arg[3]) : 0;

    if (argc > 4)
        payload = (uint32_t)strtoul(arg[4], NULL, 10) << 10;
    if (!bytes || !payload || payload > XM_PAYLOAD_MAX || bench_hosts(1) || bench_enter('A') ||
        xm_mailbox_init(&box))
        return 1;
    for (int i = 0, n = 1; i < 3; i++, n *= 2) {
        struct bench_stat ours = {0}, peer = {0}, load = {0};
        if (only && only != n)
            continue;
        for (unsigned r = 0; r < runs; r++) {
            double seconds;
            bench_add(&ours, run_ours(n, bytes, &seconds));
            bench_add(&load, seconds);
            if (!only_ours)
                bench_add(&peer, run_iperf(n));
        }
        if (only_ours)
            printf("%s: %.2f GB/s [%.2f..%.2f]", row_name[i], bench_median(&ours), bench_min(&ours),
                   bench_max(&ours));
        else
            bench_result(row_name[i], "GB/s", &ours, &peer, "iperf3", 0.9, true);
        printf("%s  %.2f CPU seconds a GB, both ends\n", only_ours ? "," : "", bench_median(&load));
    }
    return 0;
}
