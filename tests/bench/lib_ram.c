/* SPDX-License-Identifier: MIT */
/* The first round of guest RAM without QEMU: a process with incompressible pages, its memory tracked, read
 * and sent from host A to host B into a memfd that was populated ahead. See lib_ram.h. */
#include "tests/bench/lib_ram.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PORT 7997

static double own_cpu(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* ---- the guest: fills its memory, then touches each page again whenever a byte comes ---- */

void ram_guest_start(struct ram_guest *g, uint64_t size)
{
    char x;

    /* As the shim makes it (machine/hand.c). */
    g->memfd = memfd_create("bench-ram", MFD_ALLOW_SEALING);
    if (g->memfd < 0 || ftruncate(g->memfd, (off_t)size) < 0 ||
        fcntl(g->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 || pipe(g->order) < 0 ||
        pipe(g->answer) < 0)
        bench_die("no memory for a guest");
    g->va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
    g->pid = bench_fork();
    if (g->pid == 0) {
        char order;
        close(g->order[1]);
        uint64_t noise = (uint64_t)getpid() << 32 | 1, *word = (uint64_t *)(void *)g->va;
        for (uint64_t n = 0; n < size / 8; n++) {
            noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17; /* does not compress */
            word[n] = noise;
        }
        do {
            for (uint64_t at = 0; at < size; at += XM_PAGE)
                g->va[at]++;
        } while (write(g->answer[1], "x", 1) == 1 && read(g->order[0], &order, 1) == 1);
        _exit(0);
    }
    if (read(g->answer[0], &x, 1) != 1)
        bench_die("no memory for a guest");
}

static void guest_write_all(struct ram_guest *g)
{
    char x;

    if (write(g->order[1], "x", 1) != 1 || read(g->answer[0], &x, 1) != 1)
        bench_die("no memory for a guest");
}

/* ---- the destination, a process in host B ---- */

static int gone_fd[2];

static void fail(const char *what, const struct xm_error *e)
{
    fprintf(stderr, "bench: %s: %s\n", what, e->text);
    _exit(1);
}

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
        _exit(1);
}

static void destination(int memfd, int ready, int connections)
{
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    char x;

    bench_enter('B');
    if (xm_ram_add(&ram, "ram", memfd, 0, &e) < 0)
        fail("memory", &e);
    struct xm_ramsink *sink = xm_ramsink_new(&ram, &e);
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, sink, xm_ramsink_placer(sink)},
                              .event = sink_event};
    struct xm_links *links = xm_links_new(&o, &e);
    int listener = xm_tcp_listen("10.50.0.2", PORT, &e);
    if (!sink || !links || listener < 0)
        fail("destination", &e);
    xm_ramsink_populate(sink);
    uint64_t was =
        UINT64_MAX; /* as in a migration, where disks come first: until nothing is added any more */
    for (struct stat st; !fstat(memfd, &st) && (uint64_t)st.st_blocks != was; usleep(100000))
        was = (uint64_t)st.st_blocks;
    if (write(ready, "x", 1) != 1)
        _exit(1);
    for (int i = 0; i < connections; i++) {
        if (xm_links_add(links, accept(listener, NULL, NULL), false, "b", &e) < 0)
            fail("accepting", &e);
    }
    if (read(gone_fd[0], &x, 1) != 1)
        _exit(1);
    xm_links_free(links);
    xm_ramsink_free(sink);
    _exit(0);
}

/* GB/s of round 1. */
double ram_run(struct ram_guest *g, uint64_t size, int connections, struct ram_costs *c)
{
    struct xm_error e = {0};
    struct xm_ram ram = {.pid = g->pid};
    struct xm_round one, two;
    int ready[2], to = memfd_create("bench-to", 0);
    char x;

    if (to < 0 || ftruncate(to, (off_t)size) < 0 || pipe(ready) < 0 || pipe(gone_fd) < 0)
        bench_die("no memory for a destination");
    double kids = bench_cpu_children();
    pid_t far = bench_fork();
    if (far == 0)
        destination(to, ready[1], connections);
    close(ready[1]);
    if (read(ready[0], &x, 1) != 1)
        bench_die("the destination did not start");
    struct xm_links_opts o = {.sink = {.check = sink_check, .frame = sink_frame}};
    struct xm_links *links = xm_links_new(&o, &e);
    for (int i = 0; i < connections; i++) {
        int fd = xm_tcp_connect("10.50.0.1", "10.50.0.2", PORT, XM_NS_PER_S, &e);
        if (fd < 0 || xm_links_add(links, fd, true, "a", &e) < 0)
            bench_die("connecting: %s", e.text);
    }
    if (xm_ram_add(&ram, "ram", g->memfd, (uintptr_t)g->va, &e) < 0)
        bench_die("memory: %s", e.text);
    double start = (double)xm_now();
    struct xm_precopy *p = xm_precopy_new(&ram, xm_links_transport(links), &e);
    if (!p)
        bench_die("tracking: %s", e.text);
    c->open_s = ((double)xm_now() - start) / 1e9;
    double own = own_cpu(), peer = bench_cpu_of(far);
    if (xm_precopy_round(p, false, NULL, NULL, &one, &e) < 0)
        bench_die("round 1: %s", e.text);
    c->own_cpu = own_cpu() - own;
    c->peer_cpu = bench_cpu_of(far) - peer;
    c->round_s = (double)one.ns / 1e9;
    guest_write_all(g);
    if (xm_precopy_round(p, true, NULL, NULL, &two, &e) < 0)
        bench_die("round 2: %s", e.text);
    c->second_s = (double)two.ns / 1e9;
    xm_precopy_free(p);
    xm_links_free(links);
    bench_wait(far);
    c->far_cpu = bench_cpu_children() - kids;
    uint8_t *there = mmap(NULL, size, PROT_READ, MAP_SHARED, to, 0);
    if (two.pages_dirty != size / XM_PAGE || memcmp(there, g->va, size))
        bench_die("the memories differ");
    munmap(there, size);
    xm_ram_close(&ram);
    close(to);
    close(ready[0]);
    close(gone_fd[0]);
    close(gone_fd[1]);
    return (double)size / (double)one.ns;
}

void ram_guest_end(struct ram_guest *g, uint64_t size)
{
    bench_kill(g->pid);
    munmap(g->va, size);
    close(g->memfd);
    for (int i = 0; i < 2; i++) {
        close(g->order[i]);
        close(g->answer[i]);
    }
}
