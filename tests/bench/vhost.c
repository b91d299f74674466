/* A guest's 4 KiB requests through vhost-user-blk: our back end beside qemu-storage-daemon's, driven by the
 * same small front end over files of the same size on the same file system, sides alternating. IOPS, latency,
 * and CPU time of the back end per request.
 *
 * usage: bench/vhost vhost-iops [MS_PER_RUN [disk|memory]]    (400 disk)
 *        bench/vhost -s SOCKET FILE       serve FILE, to be measured or to boot a guest from
 *        bench/vhost -c SOCKET [MS]       measure whatever listens there */
#include "mirror/mirror.h"
#include "tests/bench/lib_front.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISK_SIZE (1ull << 30)

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

enum side { OURS, PEER };
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

static pid_t start_peer(const char *sock, const char *img)
{
    return bench_spawn("qemu-storage-daemon --object iothread,id=t "
                       "--blockdev driver=file,node-name=n,filename=%s,aio=io_uring,cache.direct=on "
                       "--export type=vhost-user-blk,id=e,node-name=n,writable=on,iothread=t,addr.type=unix,"
                       "addr.path=%s",
                       img, sock);
}

static void report(unsigned c, struct bench_stat s[2][4])
{
    char name[100];

    bench_note("p50 %.1f and %.1f us, p99 %.1f and %.1f us (ours, peer)", bench_median(&s[OURS][1]),
               bench_median(&s[PEER][1]), bench_median(&s[OURS][2]), bench_median(&s[PEER][2]));
    snprintf(name, sizeof name, "qemu-storage-daemon, %s", cases[c].name);
    bench_result("IOPS", &s[OURS][0], &s[PEER][0], name, 1.2, true);
    snprintf(name, sizeof name, "qemu-storage-daemon, %s, CPU", cases[c].name);
    bench_result("CPU us a request", &s[OURS][3], &s[PEER][3], name, 1.0, false);
}

static void measure_that(const char *sock, uint64_t ns)
{
    static struct vf f;

    front_connect(&f, sock);
    for (unsigned c = 0; c < CASES; c++) {
        struct front_result r = front_measure(&f, cases[c].type, cases[c].depth, DISK_SIZE, ns, 0);
        printf("%-16s %8.0f IOPS  p50 %.1f us  p99 %.1f us  %.2f kicks  %.2f waits\n", cases[c].name, r.iops,
               r.p50, r.p99, r.kicks, r.waits);
    }
}

int main(int argc, char **argv)
{
    static struct bench_stat stats[CASES][2][4];
    static struct vf front[2];
    pid_t pid[2];

    if (argc == 4 && !strcmp(argv[1], "-s")) {
        xm_log_open("bench-vhost", XM_LOG_INFO);
        serve(argv[2], argv[3]);
    }
    if (argc >= 3 && !strcmp(argv[1], "-c")) {
        measure_that(argv[2], (argc > 3 ? strtoull(argv[3], NULL, 0) : 1000) * XM_NS_PER_MS);
        return 0;
    }
    bench_begin("vhost-iops");
    uint64_t ns = (argc > 2 ? strtoull(argv[2], NULL, 0) : 400) * XM_NS_PER_MS;
    const char *dir = bench_dir(argc > 3 && !strcmp(argv[3], "memory"));
    disk_size = bench_size(DISK_SIZE);
    if (!bench_ask("command -v qemu-storage-daemon")[0])
        bench_die("there is no qemu-storage-daemon");
    for (int s = 0; s < 2; s++) {
        char img[256], sock[256];
        snprintf(img, sizeof img, "%s/disk%d", dir, s);
        snprintf(sock, sizeof sock, "%s/sock%d", dir, s);
        if (bench_fill_random(img, disk_size))
            bench_die("%s cannot be written", img);
        pid[s] = s == OURS ? start_ours(sock, img) : start_peer(sock, img);
        front_connect(&front[s], sock);
    }
    for (int run = -1; run < (int)bench_runs(); run++) { /* the first warms up */
        for (unsigned c = 0; c < CASES; c++) {
            for (int i = 0; i < 2; i++) {
                int s = (run & 1) ^ i;
                struct front_result r =
                    front_measure(&front[s], cases[c].type, cases[c].depth, disk_size, ns, pid[s]);
                if (run < 0)
                    continue;
                bench_add(&stats[c][s][0], r.iops);
                bench_add(&stats[c][s][1], r.p50);
                bench_add(&stats[c][s][2], r.p99);
                bench_add(&stats[c][s][3], r.cpu);
            }
        }
    }
    for (unsigned c = 0; c < CASES; c++)
        report(c, stats[c]);
    return 0;
}
