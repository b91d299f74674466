/* SPDX-License-Identifier: MIT */
/* A guest's 4 KiB requests through vhost-user-blk: our back end beside qemu-storage-daemon's (each version),
 * driven by the same small front end, sides alternating; on files in memory (opened without cache, as all
 * disks are), on loop devices over such, and on files of the real disk, where fio tells what the disk can
 * do. IOPS, latency, and CPU time of the back end per request.
 *
 * usage: bench/vhost vhost-iops
 *        bench/vhost -s SOCKET FILE       serve FILE, to be measured or to boot a guest from
 *        bench/vhost -c SOCKET [MS]       measure whatever listens there */
#include "mirror/mirror.h"
#include "tests/bench/lib_front.h"
#include "tests/bench/lib_peer.h"
#include "tests/bench/lib_version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISK_SIZE (1ull << 30)
#define PIECE     (300 * XM_NS_PER_MS) /* of each measurement */

static uint64_t disk_size;

static void serve(const char *sock, const char *path)
{
    struct xm_error e = {0};
    struct xm_file file;
    struct xm_vhost_opts o = {.socket_path = sock, .serial = "bench", .queues = 2};

    if (xm_file_open(&file, path, 0, 0, &e) == 0) {
        struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 128, &e);
        struct xm_disk *disk = engine ? xm_disk_new(engine, &file, NULL, &e) : NULL;
        struct xm_vhost *vhost = disk ? xm_vhost_new(disk, &o, &e) : NULL;
        while (vhost)
            xm_engine_turn(engine);
    }
    fprintf(stderr, "bench-vhost: %s: %s\n", path, e.text);
    _exit(1);
}

enum side { OURS, PEER, SIDES = PEER + VERSIONS_MAX }; /* and more peers: a version each */
enum medium { MEMORY, LOOP, DISK, MEDIA };
static const char *const medium_name[MEDIA] = {"memory", "loop", "disk"};
static const struct front_case cases[] = {
    {"read, depth 1", VIRTIO_BLK_T_IN, 1},
    {"write, depth 1", VIRTIO_BLK_T_OUT, 1},
    {"read, depth 32", VIRTIO_BLK_T_IN, 32},
    {"write, depth 32", VIRTIO_BLK_T_OUT, 32},
};
enum { CASES = sizeof cases / sizeof *cases };

static pid_t start_ours(const char *sock, const char *img)
{
    pid_t pid = bench_fork();

    if (!pid)
        serve(sock, img);
    return pid;
}

static pid_t start_peer(const char *sock, const char *img, enum medium m)
{
    return bench_spawn("qemu-storage-daemon --object iothread,id=t "
                       "--blockdev driver=%s,node-name=n,filename=%s,aio=io_uring,cache.direct=on "
                       "--export type=vhost-user-blk,id=e,node-name=n,writable=on,iothread=t,addr.type=unix,"
                       "addr.path=%s",
                       m == LOOP ? "host_device" : "file", img, sock);
}

/* of one case and one side */
struct figures {
    struct bench_stat iops, p50, p99, cpu;
};

static void report(unsigned c, enum medium m, const struct figures f[SIDES], const struct bench_stat *fio)
{
    struct bench_stat iops[VERSIONS_MAX], cpu[VERSIONS_MAX];
    char name[100], limit[60] = "", peers[200] = "";
    size_t n = 0;

    for (unsigned v = 0; v < version_count(); v++) {
        iops[v] = f[PEER + v].iops;
        cpu[v] = f[PEER + v].cpu;
        n += (size_t)snprintf(peers + n, sizeof peers - n, ", %s p50 %.1f p99 %.1f us", version_short(v),
                              bench_median(&f[PEER + v].p50), bench_median(&f[PEER + v].p99));
    }

    if (fio->n)
        snprintf(limit, sizeof limit, "; fio alone %.0f IOPS", bench_median(fio));
    bench_note("ours p50 %.1f p99 %.1f us%s%s", bench_median(&f[OURS].p50), bench_median(&f[OURS].p99), peers,
               limit);
    snprintf(name, sizeof name, "qemu-storage-daemon, %s, %s", medium_name[m], cases[c].name);
    version_results("IOPS", &f[OURS].iops, iops, name, 1.2, true);
    snprintf(name, sizeof name, "qemu-storage-daemon, %s, %s, CPU", medium_name[m], cases[c].name);
    version_results("CPU us a request", &f[OURS].cpu, cpu, name, 1.0, false);
}

static void compare(enum medium m)
{
    static struct vf front[SIDES];
    struct figures f[CASES][SIDES] = {0};
    struct bench_stat fio[CASES] = {0};
    char img[SIDES][256], sock[SIDES][256];
    pid_t pid[SIDES];
    int sides = PEER + (int)version_count();

    for (int s = 0; s < sides; s++) {
        snprintf(sock[s], sizeof sock[s], "%s/%s%d", bench_dir(true), medium_name[m], s);
        if (m == LOOP)
            snprintf(img[s], sizeof img[s], "%s",
                     bench_loop((const char *[SIDES]){"a", "b", "c"}[s], disk_size));
        else
            snprintf(img[s], sizeof img[s], "%s/img%d", bench_dir(m == MEMORY), s);
        if (bench_fill_random(img[s], disk_size))
            bench_die("%s cannot be written", img[s]);
        if (bench_run("dd if=%s of=/dev/null iflag=direct count=8 status=none", img[s]))
            bench_die("this kernel cannot open files in memory without its cache (Linux 6.6 can)");
        if (s != OURS)
            version_use((unsigned)(s - PEER));
        pid[s] = s == OURS ? start_ours(sock[s], img[s]) : start_peer(sock[s], img[s], m);
        front_connect(&front[s], sock[s], FRONT_HALT_POLL);
    }
    for (int run = -1; run < (int)bench_runs(); run++) { /* the first warms up */
        for (unsigned c = 0; c < CASES; c++) {
            for (int i = 0; i < sides; i++) {
                int s = run / 2 % 2 ? sides - 1 - i : i;
                if (s > PEER && run > 0 && !version_turn((unsigned)(s - PEER), (unsigned)run))
                    continue;
                struct front_result r =
                    front_measure(&front[s], cases[c].type, cases[c].depth, disk_size, PIECE, pid[s]);
                if (run < 0)
                    continue;
                bench_add(&f[c][s].iops, r.iops);
                bench_add(&f[c][s].p50, r.p50);
                bench_add(&f[c][s].p99, r.p99);
                bench_add(&f[c][s].cpu, r.cpu);
            }
            if (m == DISK && run >= 0)
                bench_add(&fio[c], peer_fio_iops(img[PEER], cases[c].type == VIRTIO_BLK_T_OUT, cases[c].depth,
                                                 disk_size, PIECE / XM_NS_PER_MS));
        }
    }
    for (int s = 0; s < sides; s++) {
        vf_free(&front[s]);
        bench_kill(pid[s]);
        if (m == MEMORY)
            unlink(img[s]);
    }
    for (unsigned c = 0; c < CASES; c++)
        report(c, m, f[c], &fio[c]);
}

static void measure_that(const char *sock, uint64_t ns)
{
    static struct vf f;

    front_connect(&f, sock, FRONT_HALT_POLL);
    for (unsigned c = 0; c < CASES; c++) {
        struct front_result r = front_measure(&f, cases[c].type, cases[c].depth, DISK_SIZE, ns, 0);
        printf("%-16s %8.0f IOPS  p50 %.1f us  p99 %.1f us  %.2f kicks  %.2f waits\n", cases[c].name, r.iops,
               r.p50, r.p99, r.kicks, r.waits);
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "-s")) {
        xm_log_open("bench-vhost", XM_LOG_INFO);
        serve(argv[2], argv[3]);
    }
    if (argc >= 3 && !strcmp(argv[1], "-c")) {
        measure_that(argv[2], (argc > 3 ? strtoull(argv[3], NULL, 0) : 1000) * XM_NS_PER_MS);
        return 0;
    }
    bench_begin("vhost-iops");
    disk_size = bench_size(DISK_SIZE);
    for (unsigned v = 0; v < version_count(); v++) {
        version_use(v);
        if (!bench_ask("qemu-storage-daemon --version")[0])
            bench_die("there is no qemu-storage-daemon of QEMU %s", version_short(v));
    }
    for (enum medium m = MEMORY; m < MEDIA; m++)
        compare(m);
    return 0;
}
