/* SPDX-License-Identifier: MIT */
/* What links carry: 256 KiB payloads between two processes in two namespaces. Both ends hash every byte; the
 * receiver answers at once. usage: bench/links links | bench/links -s GIB RUNS STREAMS KIB (only ours, for
 * profiling)
 *
 * Shaped links (tc tbf), payload rates: 1, 2 and 4 of 1 Gbit/s beside one of them, and 1 Gbit/s with 200
 * Mbit/s beside the sum of what each carries alone. One unshaped link: beside iperf3 with as many streams. */
#include "net/net.h"
#include "tests/bench/lib_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT  7998
#define DEPTH 64u
#define LINKS 4u

static uint32_t payload = 256 << 10;

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
        _exit(1);
}

static void receiver(int ready, unsigned streams)
{
    struct xm_links_opts o = {.sink = {.check = sink_check, .frame = sink_frame}, .event = sink_event};
    struct xm_error e = {0};
    struct xm_links *links = xm_links_new(&o, &e);
    char x;

    bench_enter('B');
    int listener = xm_tcp_listen("0.0.0.0", PORT, &e);
    if (!links || listener < 0 || write(ready, "x", 1) != 1)
        _exit(1);
    for (unsigned i = 0; i < streams; i++) {
        if (xm_links_add(links, accept(listener, NULL, NULL), false, "b", &e) < 0)
            _exit(1);
    }
    if (read(gone_fd[0], &x, 1) != 1)
        _exit(1);
    xm_links_free(links);
    _exit(0);
}

/* ---- the sender ---- */

struct piece {
    struct xm_msg msg;
    uint8_t *buf;
};
static struct xm_mailbox box;
static struct xm_transport *to;
static uint64_t left, ended;

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

static void piece_ended(struct xm_post *post)
{
    struct piece *p = xm_container_of(post, struct piece, msg.post);

    if (p->msg.status)
        bench_die("a frame was lost");
    ended++;
    if (left)
        submit(p);
}

static double own_cpu(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* The streams' links: stream i goes over link first + i % links. */
struct path {
    unsigned first, links, streams;
};

/* Payload bytes a second; CPU seconds per GB of both ends in *cpu_per_gb, when wanted. */
static double run_ours(struct path w, uint64_t bytes, double *cpu_per_gb)
{
    struct xm_error e = {0};
    uint64_t total = XM_MAX(bytes / payload, 1ull);
    int ready[2];
    char x;

    if (pipe(ready) < 0 || pipe(gone_fd) < 0)
        bench_die("no pipes");
    double kids_before = bench_cpu_children();
    pid_t kid = bench_fork();
    if (kid == 0)
        receiver(ready[1], w.streams);
    close(ready[1]);
    if (read(ready[0], &x, 1) != 1)
        bench_die("the receiver did not start");
    struct xm_links_opts o = {.sink = {.check = sink_check, .frame = sink_frame}};
    struct xm_links *links = xm_links_new(&o, &e);
    for (unsigned i = 0; i < w.streams; i++) {
        char local[32], remote[32];
        snprintf(local, sizeof local, "10.%u.0.1", 50 + w.first + i % w.links);
        snprintf(remote, sizeof remote, "10.%u.0.2", 50 + w.first + i % w.links);
        int fd = xm_tcp_connect(local, remote, PORT, 10 * XM_NS_PER_S, &e);
        if (fd < 0 || xm_links_add(links, fd, true, local, &e) < 0)
            bench_die("connecting: %s", e.text);
    }
    to = xm_links_transport(links);
    struct piece *p = calloc(DEPTH, sizeof *p);
    for (unsigned i = 0; i < DEPTH; i++) {
        p[i].buf = aligned_alloc(4096, payload);
        memset(p[i].buf, (int)i, payload);
        p[i].msg.post.run = piece_ended;
    }
    left = total;
    ended = 0;
    double own_before = own_cpu();
    uint64_t start = xm_now();
    for (unsigned i = 0; i < DEPTH && left; i++)
        submit(&p[i]);
    while (ended < total)
        xm_mailbox_wait(&box, -1);
    double seconds = (double)(xm_now() - start) / 1e9;
    double own = own_cpu() - own_before;
    xm_links_free(links);
    bench_wait(kid);
    if (cpu_per_gb)
        *cpu_per_gb = (own + bench_cpu_children() - kids_before) / ((double)total * payload / 1e9);
    for (unsigned i = 0; i < DEPTH; i++)
        free(p[i].buf);
    free(p);
    close(ready[0]);
    for (int i = 0; i < 2; i++)
        close(gone_fd[i]);
    return (double)total * payload / seconds;
}

/* ---- what is compared ---- */

static void shape(unsigned link, const char *rate)
{
    for (char h = 'A'; h <= 'B'; h++) {
        if (bench_run("ip netns exec %s tc qdisc replace dev l%u root tbf rate %s burst 256kb latency 50ms",
                      bench_ns(h), link, rate))
            bench_die("links cannot be shaped (tc tbf)");
    }
}

static void shaped(void)
{
    uint64_t second = bench_size(125 << 20); /* about a second's worth of 1 Gbit/s */
    struct bench_stat st[3] = {0}, slow = {0}, both = {0}, sum = {0};

    for (unsigned l = 0; l < LINKS; l++)
        shape(l, "1gbit");
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        for (unsigned k = 0; k < 3; k++)
            bench_add(&st[k], run_ours((struct path){0, 1u << k, 1u << k}, (second << k) * 2, NULL) / 1e6);
    }
    bench_result("MB/s", &st[1], &st[0], "2 links of 1 Gbit/s beside 1", 1.9, true);
    bench_result("MB/s", &st[2], &st[0], "4 links of 1 Gbit/s beside 1", 3.7, true);
    shape(1, "200mbit");
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        bench_add(&slow, run_ours((struct path){1, 1, 1}, second / 5 * 2, NULL) / 1e6);
        bench_add(&both, run_ours((struct path){0, 2, 2}, second * 3, NULL) / 1e6);
        bench_add(&sum, st[0].v[i] + slow.v[i]);
    }
    bench_result("MB/s", &both, &sum, "1 Gbit/s and 200 Mbit/s beside the sum of each alone", 0.95, true);
    for (unsigned l = 0; l < LINKS; l++) {
        for (char h = 'A'; h <= 'B'; h++)
            bench_run("ip netns exec %s tc qdisc del dev l%u root", bench_ns(h), l);
    }
}

static void unshaped(void)
{
    for (unsigned n = 1; n <= 4; n *= 2) {
        struct bench_stat o = {0}, p = {0}, cpu = {0};
        char name[60];
        for (unsigned i = 0; i < bench_runs(); i++) {
            double c;
            bench_add(&o, run_ours((struct path){0, 1, n}, bench_size(1 << 30), &c) / 1e6);
            bench_add(&cpu, c);
            bench_add(&p, peer_iperf("10.50.0.2", n, 1, NULL) / 1e6);
        }
        snprintf(name, sizeof name, "iperf3, unshaped, %u stream%s", n, n > 1 ? "s" : "");
        bench_note("ours hashes every byte at both ends: %.2f CPU s a GB", bench_median(&cpu));
        bench_result("MB/s", &o, &p, name, 0.9, true);
    }
}

int main(int argc, char **argv)
{
    bool only_ours = argc == 6 && !strcmp(argv[1], "-s");

    if (!only_ours)
        bench_begin("links");
    if (bench_hosts(only_ours ? 1 : LINKS) || bench_enter('A') || xm_mailbox_init(&box))
        bench_die("no network namespaces");
    if (!only_ours) {
        shaped();
        unshaped();
        return 0;
    }
    payload = (uint32_t)XM_MIN(strtoul(argv[5], NULL, 10) << 10, (unsigned long)XM_PAYLOAD_MAX);
    for (int i = atoi(argv[3]); i > 0 && payload; i--) {
        double c, rate = run_ours((struct path){0, 1, (unsigned)XM_MAX(atoi(argv[4]), 1)},
                                  strtoull(argv[2], NULL, 10) << 30, &c);
        printf("%.2f GB/s, %.2f CPU s a GB, both ends\n", rate / 1e9, c);
    }
    return 0;
}
