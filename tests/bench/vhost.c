/* A guest's 4 KiB requests through vhost-user-blk: our back end beside qemu-storage-daemon's, driven by the
 * same small front end over files of the same size on the same file system, sides alternating. IOPS, latency,
 * and CPU time of the back end per request.
 *
 * usage: bench-vhost [MS_PER_RUN [RUNS [disk|memory]]]    (400 5 disk)
 *        bench-vhost -s SOCKET FILE       serve FILE, to be measured or to boot a guest from
 *        bench-vhost -c SOCKET [MS]       measure whatever listens there
 *
 * The front end sleeps on its call eventfd as a guest does on its interrupt, so that each request at depth 1
 * costs two wake-ups. */
#include "mirror/mirror.h"
#include "tests/bench/bench.h"
#include "tests/unit/lib_vhost_front.h"

#include <linux/virtio_config.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK_SIZE (1ull << 30)
#define BLOCK     4096u

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench-vhost: %s: %s\n", what, why);
    exit(1);
}

/* ---- our back end ---- */

static void serve(const char *sock, const char *path)
{
    struct xm_error e = {0};
    struct xm_file file;
    struct xm_vhost_opts o = {.socket_path = sock, .serial = "bench", .queues = 2};

    if (xm_file_open(&file, path, 0, 0, &e))
        die(path, e.text);
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 128, &e);
    struct xm_disk *disk = engine ? xm_disk_new(engine, &file, NULL, &e) : NULL;
    struct xm_vhost *vhost = disk ? xm_vhost_new(disk, &o, &e) : NULL;
    if (!vhost)
        die(sock, e.text);
    for (;;)
        xm_engine_turn(engine);
}

/* ---- one measurement ---- */

struct result {
    double iops, p50, p99, cpu; /* a second, us, us, us a request */
    double kicks, waits;        /* a request */
};

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* CPU time of a process so far, in ns. */
static uint64_t cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec ts;

    if (pid <= 0 || clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts))
        return 0;
    return (uint64_t)ts.tv_sec * XM_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static struct result measure(struct vf *f, uint32_t type, unsigned depth, uint64_t ns, pid_t backend)
{
    enum { MAX = 1 << 21 };
    static uint32_t lat[MAX];
    static uint64_t begun[64];
    static uint32_t rnd = 1;
    uint64_t start = xm_now(), now = start, end = start + ns, cpu = cpu_of(backend);
    unsigned n = 0, out = 0, kicks = 0, waits = 0;
    uint64_t free_slots = depth == 64 ? ~0ull : (1ull << depth) - 1;

    while (now < end || out) {
        bool added = false;
        while (free_slots && now < end) {
            unsigned slot = (unsigned)__builtin_ctzll(free_slots);
            struct vf_seg s = {VF_DATA + slot * BLOCK, BLOCK, type == VIRTIO_BLK_T_IN};
            rnd = rnd * 1664525u + 1013904223u;
            begun[slot] = xm_now();
            if (vf_request(f, 0, type, (uint64_t)(rnd >> 8) % (DISK_SIZE / BLOCK) * (BLOCK / 512), &s, 1,
                           (void *)(uintptr_t)slot) < 0)
                break;
            free_slots &= ~(1ull << slot);
            out++;
            added = true;
        }
        if (added)
            kicks += vf_kick(f, 0);
        void *cookie;
        uint8_t status;
        bool any = false;
        while (vf_used(f, 0, NULL, &status, &cookie, NULL) == 1) {
            unsigned slot = (unsigned)(uintptr_t)cookie;
            if (status)
                die("a request", "failed");
            now = xm_now();
            if (n < MAX)
                lat[n++] = (uint32_t)(now - begun[slot]);
            free_slots |= 1ull << slot;
            out--;
            any = true;
        }
        if (!any && out) {
            waits++;
            if (!vf_wait(f, 0, 5000))
                die("a request", "was not answered in 5 s");
        }
        now = xm_now();
    }
    struct result r = {.iops = (double)n * 1e9 / (double)(now - start)};
    if (!n)
        return r;
    qsort(lat, n, sizeof *lat, by_value);
    r.kicks = (double)kicks / n;
    r.waits = (double)waits / n;
    r.p50 = lat[n / 2] / 1e3;
    r.p99 = lat[n - 1 - n / 100] / 1e3;
    r.cpu = (double)(cpu_of(backend) - cpu) / 1e3 / n;
    return r;
}

static void connect_to(struct vf *f, const char *sock)
{
    if (vf_init(f, 1, 256) || vf_connect(f, sock, 0) || vf_start(f))
        die(sock, "cannot be driven");
    memset(f->mem + VF_DATA, 0x5a, 64 * BLOCK);
}

/* ---- the two sides ---- */

enum side { OURS, PEER };
static const struct {
    const char *name;
    uint32_t type;
    unsigned depth;
} cases[] = {
    {"read-1", VIRTIO_BLK_T_IN, 1},
    {"write-1", VIRTIO_BLK_T_OUT, 1},
    {"read-32", VIRTIO_BLK_T_IN, 32},
    {"write-32", VIRTIO_BLK_T_OUT, 32},
};
enum { CASES = sizeof cases / sizeof *cases };

static pid_t start_ours(const char *sock, const char *img)
{
    pid_t pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(sock, img);
    }
    return pid;
}

static pid_t start_peer(const char *sock, const char *img)
{
    char blockdev[512], export[512];

    snprintf(blockdev, sizeof blockdev, "driver=file,node-name=n,filename=%s,aio=io_uring,cache.direct=on",
             img);
    snprintf(export, sizeof export,
             "type=vhost-user-blk,id=e,node-name=n,writable=on,iothread=t,addr.type=unix,addr.path=%s", sock);
    pid_t pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execlp("qemu-storage-daemon", "qemu-storage-daemon", "--object", "iothread,id=t", "--blockdev",
               blockdev, "--export", export, NULL);
        _exit(127);
    }
    return pid;
}

static void report(unsigned c, struct bench_stat s[2][4])
{
    static const char *const what[4] = {"iops", "p50", "p99", "cpu"};
    static const char *const unit[4] = {"IOPS", "us", "us", "us a request"};
    char name[64];

    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "vhost-%s-%s", what[i], cases[c].name);
        bench_result(name, unit[i], &s[OURS][i], &s[PEER][i], "qemu-storage-daemon", i == 0 ? 1.2 : 1.0,
                     i == 0);
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
        connect_to(&front[0], argv[2]);
        for (unsigned c = 0; c < CASES; c++) {
            struct result r = measure(&front[0], cases[c].type, cases[c].depth,
                                      (argc > 3 ? strtoull(argv[3], NULL, 0) : 1000) * XM_NS_PER_MS, 0);
            printf("%-8s %8.0f IOPS  p50 %.1f us  p99 %.1f us  %.2f kicks  %.2f waits\n", cases[c].name,
                   r.iops, r.p50, r.p99, r.kicks, r.waits);
        }
        return 0;
    }
    uint64_t ns = (argc > 1 ? strtoull(argv[1], NULL, 0) : 400) * XM_NS_PER_MS;
    int runs = argc > 2 ? atoi(argv[2]) : 5;
    const char *dir = bench_dir(argc > 3 && !strcmp(argv[3], "memory"));
    if (access("/usr/bin/qemu-storage-daemon", X_OK)) {
        bench_unable("vhost-iops", "there is no qemu-storage-daemon");
        return 1;
    }
    for (int s = 0; s < 2; s++) {
        char img[256], sock[256];
        snprintf(img, sizeof img, "%s/disk%d", dir, s);
        snprintf(sock, sizeof sock, "%s/sock%d", dir, s);
        if (bench_fill_random(img, DISK_SIZE))
            die(img, "cannot be written");
        pid[s] = s == OURS ? start_ours(sock, img) : start_peer(sock, img);
        connect_to(&front[s], sock);
    }
    for (int run = -1; run < runs; run++) { /* the first warms up */
        for (unsigned c = 0; c < CASES; c++) {
            for (int i = 0; i < 2; i++) {
                int s = (run & 1) ^ i;
                struct result r = measure(&front[s], cases[c].type, cases[c].depth, ns, pid[s]);
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
    for (int s = 0; s < 2; s++) {
        vf_free(&front[s]);
        kill(pid[s], SIGKILL);
        waitpid(pid[s], NULL, 0);
    }
    return 0;
}
