/* SPDX-License-Identifier: MIT */
/* What a guest notices of its disk being mirrored: 4 KiB writes at random places, depth 1 and 32, through
 * vhost-user-blk, driven by our own small front end: before, while the copy runs, and when it has finished
 * and the mirror stays on. Ours asynchronous and held to synchronous; beside qemu-storage-daemon (each
 * version) with blockdev-mirror, background and write-blocking. Loop devices over files in memory, unshaped
 * veth. In the notes: the same guest, unmirrored, while we copy another disk: what it cannot but notice
 * where two processors carry it and both hosts. usage: bench/guestio guest-io-mirrored
 *                                                                         bench/guestio -s MODE DEPTH RUNS (0 to 5, 0 to 1)
 *
 * Each mode is a new back end, its disk without a mirror first: what «unmirrored» means for this run. */
#include "mirror/disk.h"
#include "tests/bench/lib_copy.h"
#include "tests/bench/lib_front.h"
#include "tests/bench/lib_peer.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define LINKS 2
#define PIECE (300 * XM_NS_PER_MS) /* of each measurement */

static const char *src_dev, *dst_dev, *other_dev[2]; /* other: of a disk that nobody uses */
static uint64_t disk_size;
static char sock[200], qmp_sock[200];

/* QEMU's two once more for each version after the first. */
enum mode {
    OURS_ASYNC,
    OURS_SYNC,
    QEMU_BACKGROUND,
    QEMU_BLOCKING,
    MODES = QEMU_BACKGROUND + 2 * VERSIONS_MAX
};
enum phase { BEFORE, NEIGHBOUR, COPYING, STEADY, PHASES };
enum { DEPTHS = 2 };
static const unsigned depths[DEPTHS] = {1, 32};
static const char *const mode_name[] = {"ours async", "ours sync", "QEMU background", "QEMU write-blocking"};

static bool is_qemu(enum mode m)
{
    return m >= QEMU_BACKGROUND;
}

static unsigned version_of(enum mode m)
{
    return ((unsigned)m - QEMU_BACKGROUND) / 2;
}

/* The same without its version. */
static enum mode kind_of(enum mode m)
{
    return is_qemu(m) ? QEMU_BACKGROUND + m % 2 : m;
}

struct figures {
    struct bench_stat iops, p50, p99;
};
static struct figures all[MODES][PHASES][DEPTHS];
static struct bench_stat copied[MODES][DEPTHS]; /* MB/s, beside such a guest */

/* ---- our back end: a disk process in host A; an event turns the mirror on, another says when all is copied
 * ---- */

struct backend {
    pid_t pid, sink;
    int start, copied; /* eventfds */
    struct peer_qemu qemu;
};

static void ticked(struct xm_timer *t)
{
    (void)t; /* it has ended the turn, that is all */
}

static void serve(const struct backend *b, bool sync)
{
    struct xm_error e = {0};
    struct xm_file file;
    struct xm_vhost_opts o = {.socket_path = sock, .serial = "bench", .queues = 1};
    struct xm_timer tick = {.fire = ticked};
    eventfd_t v;
    bool told = false;

    if (bench_enter('A') || xm_file_open(&file, src_dev, 0, 0, &e))
        _exit(1);
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 256, &e);
    struct xm_disk *d = engine ? xm_disk_new(engine, &file, NULL, &e) : NULL;
    struct xm_links *links = d ? copy_connect(LINKS) : NULL;
    struct xm_replica *r = links ? xm_replica_far(engine, xm_links_transport(links), 0, 1u << 20) : NULL;
    if (!r || !xm_vhost_new(d, &o, &e)) {
        fprintf(stderr, "bench: %s\n", e.text);
        _exit(1);
    }
    for (;;) {
        if (d->mirror.mode == XM_MIRROR_OFF && eventfd_read(b->start, &v) == 0 &&
            xm_disk_mirror_on(d, r, true, &e) < 0)
            _exit(1);
        if (sync && d->mirror.mode == XM_MIRROR_ASYNC) { /* the driver would go back by itself */
            d->mirror.mode = XM_MIRROR_SYNC;
            d->buffer.low_since = 0;
        }
        if (!told && d->mirror.mode > XM_MIRROR_STARTING && xm_disk_in_step(d)) {
            told = true;
            eventfd_write(b->copied, 1);
        }
        xm_engine_timer_set(engine, &tick, xm_engine_now(engine) + XM_NS_PER_MS);
        xm_engine_turn(engine);
    }
}

static void start_ours(struct backend *b, bool sync)
{
    struct copy_job j = {.disks = 1, .links = LINKS, .to = {dst_dev}};

    b->start = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    b->copied = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    b->sink = copy_start_sink(&j);
    b->pid = bench_fork();
    if (b->pid == 0)
        serve(b, sync);
}

/* ---- QEMU's ---- */

static void start_qemu(struct backend *b)
{
    b->start = b->copied = -1;
    b->sink =
        bench_spawn("ip netns exec %s qemu-storage-daemon "
                    "--blockdev driver=host_device,node-name=d,filename=%s,cache.direct=on,aio=io_uring "
                    "--nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port=10809 "
                    "--export type=nbd,id=e,node-name=d,name=d,writable=on",
                    bench_ns('B'), dst_dev);
    if (!peer_wait_port('B', 10809))
        bench_die("the NBD server does not start");
    b->pid = bench_spawn(
        "ip netns exec %s qemu-storage-daemon --object iothread,id=t "
        "--blockdev driver=host_device,node-name=src,filename=%s,cache.direct=on,aio=io_uring "
        "--blockdev "
        "driver=nbd,node-name=dst,server.type=inet,server.host=10.50.0.2,server.port=10809,export=d "
        "--chardev socket,id=c,path=%s,server=on,wait=off --monitor chardev=c "
        "--export type=vhost-user-blk,id=e,node-name=src,writable=on,iothread=t,addr.type=unix,addr.path=%s",
        bench_ns('A'), src_dev, qmp_sock, sock);
    b->qemu.pid = b->pid;
    if (!peer_qmp(&b->qemu, qmp_sock))
        bench_die("qemu-storage-daemon does not start");
}

static void mirror_on(struct backend *b, enum mode m)
{
    if (b->start >= 0)
        eventfd_write(b->start, 1);
    else if (!peer_mirror(&b->qemu, "src", kind_of(m) == QEMU_BLOCKING ? "write-blocking" : "background"))
        bench_die("QEMU does not mirror");
}

/* Waits until all is copied once. */
static void wait_copied(struct backend *b)
{
    struct pollfd p = {b->copied, POLLIN, 0};

    if (b->start >= 0 ? poll(&p, 1, 60000) != 1 : !peer_until(&b->qemu, &b->qemu.job_ready, 60))
        bench_die("the copy does not end in a minute");
}

static void stop(struct backend *b)
{
    if (b->qemu.open)
        peer_end(&b->qemu);
    else
        bench_kill(b->pid);
    bench_kill(b->sink);
    if (b->start >= 0) {
        close(b->start);
        close(b->copied);
    }
}

/* ---- the measurement ---- */

static void measure(struct vf *f, enum mode m, enum phase p, unsigned d, uint64_t ns)
{
    struct front_result r = front_measure(f, VIRTIO_BLK_T_OUT, depths[d], disk_size, ns, 0);
    struct figures *to = &all[m][p][d];

    bench_add(&to->iops, r.iops);
    bench_add(&to->p50, r.p50);
    bench_add(&to->p99, r.p99);
}

static void *copy_other(void *arg)
{
    struct copy_job j = {
        .disks = 1, .links = LINKS, .from = {other_dev[0]}, .to = {other_dev[1]}, .size = disk_size};
    struct copy_result r;

    (void)arg;
    if (!copy_run(&j, &r))
        bench_die("the other disk was not copied");
    return NULL;
}

static void beside_a_copy(struct vf *f, enum mode m, unsigned d)
{
    pthread_t t;

    if (pthread_create(&t, NULL, copy_other, NULL))
        bench_die("no thread");
    poll(NULL, 0, 100); /* it has begun */
    measure(f, m, NEIGHBOUR, d, PIECE / 2);
    pthread_join(t, NULL);
}

/* A depth at a time, so that both see a copy from its beginning. */
static void run(enum mode m, unsigned d)
{
    static struct vf front;
    struct backend b = {0};

    if (bench_run("rm -f %s %s", sock, qmp_sock) || bench_clear(dst_dev))
        bench_die("the destination cannot be cleared");
    if (is_qemu(m)) {
        version_use(version_of(m));
        start_qemu(&b);
    } else {
        start_ours(&b, m == OURS_SYNC);
    }
    printf("  %s%s%s, depth %u\n", mode_name[kind_of(m)], is_qemu(m) ? " " : "",
           is_qemu(m) ? version_short(version_of(m)) : "", depths[d]);
    fflush(stdout);
    /* A guest that stayed awake would take one of two processors from the two hosts. */
    front_connect(&front, sock, 0);
    front_measure(&front, VIRTIO_BLK_T_OUT, depths[d], disk_size, PIECE / 5, 0); /* warms up */
    measure(&front, m, BEFORE, d, PIECE);
    if (m == OURS_ASYNC)
        beside_a_copy(&front, m, d);
    uint64_t began = xm_now();
    mirror_on(&b, m);
    measure(&front, m, COPYING, d, PIECE);
    wait_copied(&b);
    bench_add(&copied[m][d], (double)disk_size * 1e3 / (double)(xm_now() - began));
    measure(&front, m, STEADY, d, PIECE);
    vf_free(&front);
    /* Nobody writes any more: soon both sides are the same. */
    if (bench_same(src_dev, dst_dev, disk_size, 4))
        bench_die("the disks differ under %s", mode_name[kind_of(m)]);
    stop(&b);
}

static void rows(void)
{
    char name[100];

    for (enum phase p = COPYING; p <= STEADY; p++) {
        const char *when = p == COPYING ? "while copying" : "when copied";
        for (unsigned d = 0; d < DEPTHS; d++) {
            const struct figures *beside = &all[OURS_ASYNC][NEIGHBOUR][d];
            for (enum mode m = OURS_ASYNC; m <= OURS_SYNC; m++) {
                struct figures *mine = &all[m][p][d], *none = &all[m][BEFORE][d];
                struct bench_stat qemu[VERSIONS_MAX];
                char theirs[200] = "";
                size_t n = 0;
                for (unsigned v = 0; v < version_count(); v++) {
                    enum mode q = m + 2 + 2 * v;
                    qemu[v] = all[q][p][d].iops;
                    n += (size_t)snprintf(theirs + n, sizeof theirs - n,
                                          "; QEMU %s p99 %.1f us, copied at %.0f", version_short(v),
                                          bench_median(&all[q][p][d].p99), bench_median(&copied[q][d]));
                }
                snprintf(name, sizeof name, "unmirrored; %s, %s, depth %u", mode_name[m], when, depths[d]);
                bench_note("IOPS %.0f, unmirrored %.0f; p50 %.1f us, unmirrored %.1f us; unmirrored while "
                           "another disk is "
                           "copied: IOPS %.0f, p50 %.1f us, p99 %.1f us",
                           bench_median(&mine->iops), bench_median(&none->iops), bench_median(&mine->p50),
                           bench_median(&none->p50), bench_median(&beside->iops), bench_median(&beside->p50),
                           bench_median(&beside->p99));
                bench_result("p99 us", &mine->p99, &none->p99, name, 1.5, false);
                snprintf(name, sizeof name, "%s; %s, %s, depth %u", mode_name[m + 2], mode_name[m], when,
                         depths[d]);
                bench_note("ours p99 %.1f us, copied at %.0f MB/s%s", bench_median(&mine->p99),
                           bench_median(&copied[m][d]), theirs);
                version_results("IOPS", &mine->iops, qemu, name, 1.0, true);
            }
        }
    }
}

static void profile(enum mode m, unsigned d, int runs)
{
    static const char *const phase[PHASES] = {"before", "beside", "copying", "copied"};

    for (int i = 0; i < runs; i++) {
        run(m, d);
        printf("    copied at %.0f MB/s\n", copied[m][d].v[i]);
        for (enum phase p = BEFORE; p < PHASES; p++) {
            struct figures *f = &all[m][p][d];
            if (f->iops.n == 0)
                continue;
            printf("    %-8s %7.0f IOPS, p50 %7.1f us, p99 %8.1f us\n", phase[p], f->iops.v[i], f->p50.v[i],
                   f->p99.v[i]);
        }
    }
}

int main(int argc, char **argv)
{
    bool only = argc == 5 && !strcmp(argv[1], "-s");

    if (!only)
        bench_begin("guest-io-mirrored");
    disk_size = bench_size(1ull << 30);
    snprintf(sock, sizeof sock, "%s/vhost", bench_dir(true));
    snprintf(qmp_sock, sizeof qmp_sock, "%s/qmp", bench_dir(true));
    src_dev = bench_loop("src", disk_size);
    dst_dev = src_dev ? bench_loop("dst", disk_size) : NULL;
    other_dev[0] = dst_dev ? bench_loop("from", disk_size) : NULL;
    other_dev[1] = other_dev[0] ? bench_loop("to", disk_size) : NULL;
    if (bench_hosts(LINKS) || !other_dev[1] || bench_fill_random(src_dev, disk_size) ||
        bench_fill_random(other_dev[0], disk_size) || bench_fill_random(other_dev[1], disk_size))
        bench_die("no namespaces, no loop devices, or no memory for them");
    if (only) {
        profile((enum mode)(atoi(argv[2]) % (QEMU_BACKGROUND + 2 * (int)version_count())),
                (unsigned)atoi(argv[3]) % DEPTHS, atoi(argv[4]));
        return 0;
    }
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        for (unsigned d = 0; d < DEPTHS; d++) {
            for (unsigned sync = 0; sync < 2; sync++) {
                run(OURS_ASYNC + sync, d);
                for (unsigned v = 0; v < version_count(); v++) {
                    if (version_turn(v, i))
                        run(QEMU_BACKGROUND + 2 * v + sync, d);
                }
            }
        }
    }
    rows();
    return 0;
}
