/* SPDX-License-Identifier: MIT */
/* Bulk copy of a disk from one host to another over unshaped veth, sides alternating in one run, every copy
 * compared with its original. usage: bench/disk disk-soft|disk-real|disk-sparse|disk-cpu
 *                           bench/disk -s loop|file|memory RUNS (only ours, for profiling)
 *
 * disk-soft    loop devices over files in memory, so that software is the limit; beside QEMU's blockdev-mirror to an
 *              NBD export, nbdcopy to nbdkit, and the machine's limit: the least of fio reading the source and
 *              writing the destination (256 KiB, direct) and iperf3 with as many streams
 * disk-real    files of the real disk; beside QEMU and the same limit
 * disk-sparse  files in memory, half data, a quarter holes, a quarter zeros; beside ours of all data
 * disk-cpu     CPU seconds a GiB of the processes on both sides; and of the whole machine, kernel threads with it. disk-soft's
 *              copies tell that as well, and it makes these rows too */
#include "tests/bench/lib_copy.h"
#include "tests/bench/lib_peer.h"
#include "tests/bench/lib_version.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINKS 2

static const char *src_dev, *dst_dev;
static uint64_t disk_size;
static bool files;     /* not loop devices */
static bool in_memory; /* those files */
static bool unchecked; /* copies are not compared, so that a profile shows nothing else */

struct run {
    double seconds;
    double cpu, machine; /* seconds of CPU time: both processes; the whole machine. 0: not measured */
};

static bool run_ours(struct run *r)
{
    struct copy_job j = {.disks = 1, .links = LINKS, .from = {src_dev}, .to = {dst_dev}, .size = disk_size};
    struct copy_result c;
    double cpu = bench_cpu_children(), machine = bench_cpu_machine();

    if (!copy_run(&j, &c))
        return false;
    *r = (struct run){c.seconds, bench_cpu_children() - cpu, bench_cpu_machine() - machine};
    return true;
}

static bool run_qemu(struct run *r)
{
    const char *driver = files ? "file" : "host_device";
    struct peer_qemu q = {0};
    char sock[200];
    bool good = false;

    snprintf(sock, sizeof sock, "%s/qmp.sock", bench_dir(true));
    unlink(sock);
    pid_t b =
        bench_spawn("ip netns exec %s qemu-storage-daemon "
                    "--blockdev driver=%s,node-name=d,filename=%s,cache.direct=on,aio=io_uring,discard=unmap "
                    "--nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port=10809 "
                    "--export type=nbd,id=e,node-name=d,name=d,writable=on",
                    bench_ns('B'), driver, dst_dev);
    if (peer_wait_port('B', 10809)) {
        q.pid =
            bench_spawn("ip netns exec %s qemu-system-x86_64 -M none -accel tcg -S -nodefaults -display none "
                        "-qmp unix:%s,server=on,wait=off "
                        "-blockdev driver=%s,node-name=src,filename=%s,cache.direct=on,aio=io_uring "
                        "-blockdev driver=nbd,node-name=dst,server.type=inet,server.host=10.50.0.2,"
                        "server.port=10809,export=d",
                        bench_ns('A'), sock, driver, src_dev);
        if (peer_qmp(&q, sock)) {
            /* Not its start-up. */
            double cpu = bench_cpu_of(q.pid) + bench_cpu_of(b), machine = bench_cpu_machine();
            uint64_t t0 = xm_now();
            if (peer_mirror(&q, "src", "background") && peer_until(&q, &q.job_ready, 300) && !q.error[0]) {
                r->seconds = (double)(xm_now() - t0) / 1e9;
                r->cpu = bench_cpu_of(q.pid) + bench_cpu_of(b) - cpu;
                r->machine = bench_cpu_machine() - machine;
                good = true;
            }
        }
    }
    peer_end(&q);
    bench_kill(b);
    return good;
}

static bool run_nbdcopy(struct run *r)
{
    /* It copies through the page cache: memory for that is there, as bench_touch() has it. */
    bench_run("for d in %s %s; do dd if=$d of=/dev/null bs=1M status=none & done; wait", src_dev, dst_dev);
    pid_t b = bench_spawn("ip netns exec %s nbdkit -f -p 10810 file %s", bench_ns('B'), dst_dev);
    bool good = peer_wait_port('B', 10810);
    uint64_t t0 = xm_now();

    good = good && !bench_run("ip netns exec %s nbdcopy --flush --connections=%d %s nbd://10.50.0.2:10810",
                              bench_ns('A'), LINKS, src_dev);
    *r = (struct run){.seconds = (double)(xm_now() - t0) / 1e9};
    bench_kill(b);
    return good;
}

static const struct side {
    const char *name;
    bool (*run)(struct run *);
} ours = {"xmigrate", run_ours}, nbdcopy = {"nbdcopy", run_nbdcopy};

/* The same start for each: the destination reads as zeros, nothing is dirty, and what is cached of files
 * goes. */
static bool start_again(void)
{
    if (!files)
        return !bench_clear(dst_dev);
    if (bench_run("rm -f %s && truncate -s %llu %s && sync %s %s", dst_dev, (unsigned long long)disk_size,
                  dst_dev, src_dev, dst_dev))
        return false;
    if (in_memory)
        bench_touch(disk_size);
    return true;
}

static struct run one(const struct side *s)
{
    struct run r = {0};

    if (!start_again() || !s->run(&r) || r.seconds <= 0)
        bench_die("%s did not copy", s->name);
    if (!unchecked && bench_same(src_dev, dst_dev, disk_size, 0))
        bench_die("after %s the disks differ", s->name);
    printf("  %-10s %8.1f MB/s", s->name, (double)disk_size / r.seconds / 1e6);
    if (r.cpu > 0)
        printf(", CPU %.2f s, machine %.2f s", r.cpu, r.machine);
    puts("");
    fflush(stdout);
    return r;
}

/* What copies tell. */
struct costs {
    struct bench_stat rate, cpu, machine; /* MB/s; CPU seconds a GiB */
};

static void add_costs(struct costs *c, const struct side *s)
{
    struct run r = one(s);
    double gib = (double)disk_size / (double)(1 << 30);

    bench_add(&c->rate, (double)disk_size / r.seconds / 1e6);
    bench_add(&c->cpu, r.cpu / gib);
    bench_add(&c->machine, r.machine / gib);
}

/* Ours, then QEMU's: c[0], and one more for each version. */
static void add_ours_and_qemu(struct costs c[1 + VERSIONS_MAX], unsigned round)
{
    char name[40];
    struct side qemu = {name, run_qemu};

    version_count(); /* asks them, the first time */
    add_costs(&c[0], &ours);
    for (unsigned v = 0; v < version_count(); v++) {
        if (!version_turn(v, round))
            continue;
        version_use(v);
        snprintf(name, sizeof name, "QEMU %s", version_short(v));
        add_costs(&c[1 + v], &qemu);
    }
}

/* offset: of the figure in struct costs. */
static void row(const struct costs c[1 + VERSIONS_MAX], size_t offset, const char *unit, const char *name,
                double goal, bool higher_is_better)
{
    struct bench_stat s[1 + VERSIONS_MAX];

    for (unsigned i = 0; i < 1 + VERSIONS_MAX; i++)
        s[i] = *(const struct bench_stat *)(const void *)((const char *)&c[i] + offset);
    version_results(unit, &s[0], &s[1], name, goal, higher_is_better);
}

/* What this machine can do, MB/s: each part alone, the least of them; and what its processors leave when
 * they have to do all of it: reading, sending and receiving, writing. */
struct limits {
    struct bench_stat alone, cpu, disk;
};

static double cpu_per_mb(double before, double bytes)
{
    return (bench_cpu_machine() - before) / (bytes / 1e6);
}

static void add_limits(struct limits *l)
{
    double size = (double)disk_size, before = bench_cpu_machine();

    if (!start_again())
        bench_die("the destination cannot be cleared");
    double r = peer_fio(src_dev, false, disk_size), cpu = cpu_per_mb(before, size);
    before = bench_cpu_machine();
    double w = peer_fio(dst_dev, true, disk_size);
    cpu += cpu_per_mb(before, size);
    double n = peer_iperf("10.50.0.2", LINKS, 1, NULL);
    if (files) {
        if (r <= 0 || w <= 0 || n <= 0 || !start_again())
            bench_die("fio or iperf3 did not measure the limit");
        double both = peer_fio_both(src_dev, dst_dev, disk_size);
        printf("  limit: read %.0f, write %.0f, both at once %.0f, network %.0f MB/s\n", r / 1e6, w / 1e6,
               both / 1e6, n / 1e6);
        bench_add(&l->alone, XM_MIN(r, XM_MIN(w, n)) / 1e6);
        bench_add(&l->disk, both / 1e6);
        return;
    }
    before = bench_cpu_machine();
    double cubic = peer_iperf("10.50.0.2", LINKS, 1, "cubic");
    cpu += cpu_per_mb(before, cubic);
    if (r <= 0 || w <= 0 || n <= 0 || cubic <= 0 || cpu <= 0)
        bench_die("fio or iperf3 did not measure the limit");
    printf("  limit: read %.0f, write %.0f, network %.0f, with cubic %.0f; by CPU %.0f MB/s\n", r / 1e6,
           w / 1e6, n / 1e6, cubic / 1e6, (double)sysconf(_SC_NPROCESSORS_ONLN) / cpu);
    bench_add(&l->alone, XM_MIN(r, XM_MIN(w, n)) / 1e6);
    bench_add(&l->cpu, (double)sysconf(_SC_NPROCESSORS_ONLN) / cpu);
}

/* ---- the benches ---- */

static void make_loops(void)
{
    disk_size = bench_size(2ull << 30);
    src_dev = bench_loop("src", disk_size);
    dst_dev = src_dev ? bench_loop("dst", disk_size) : NULL;
    if (!dst_dev || bench_fill_random(src_dev, disk_size))
        bench_die("no loop devices, or no memory for them");
    /* The kernel moves a page of a file to another list when it is used for the second time: not in the
     * first copy. */
    if (bench_clear(dst_dev) ||
        bench_run("for d in %s %s %s %s; do dd if=$d of=/dev/null bs=1M iflag=direct status=none; done",
                  src_dev, dst_dev, src_dev, dst_dev))
        bench_die("the loop devices cannot be read");
}

static void make_files(bool memory, const char *from, uint64_t size)
{
    static char path[2][200];

    files = true;
    in_memory = memory;
    disk_size = bench_size(size);
    snprintf(path[0], sizeof path[0], "%s/%s", bench_dir(in_memory), from);
    snprintf(path[1], sizeof path[1], "%s/dst", bench_dir(in_memory));
    src_dev = path[0];
    dst_dev = path[1];
    if (access(src_dev, F_OK) && bench_fill_random(src_dev, disk_size))
        bench_die("no room for two files of %llu MiB", (unsigned long long)disk_size >> 20);
}

static void cpu_rows(const struct costs c[1 + VERSIONS_MAX])
{
    row(c, offsetof(struct costs, cpu), "CPU s/GiB", "QEMU blockdev-mirror, processes", 0.5, false);
    row(c, offsetof(struct costs, machine), "CPU s/GiB", "QEMU blockdev-mirror, whole machine", 0.5, false);
}

static void soft(void)
{
    struct costs c[1 + VERSIONS_MAX] = {0}, n = {0};
    struct limits l = {0};

    make_loops();
    for (unsigned i = 0; i < bench_runs(); i++) {
        add_ours_and_qemu(c, i);
        add_costs(&n, &nbdcopy);
        add_limits(&l);
    }
    row(c, offsetof(struct costs, rate), "MB/s", "QEMU blockdev-mirror", 2.5, true);
    bench_result("MB/s", &c[0].rate, &n.rate, "nbdcopy", 1.3, true);
    bench_result("MB/s", &c[0].rate, &l.alone, "limit: least of fio and iperf3, each alone on all processors",
                 0.9, true);
    bench_result("MB/s", &c[0].rate, &l.cpu,
                 "limit: CPU time of fio reading, fio writing and iperf3 (cubic) added up", 0.9, true);
    bench_begin("disk-cpu");
    cpu_rows(c);
}

static void real(void)
{
    struct costs c[1 + VERSIONS_MAX] = {0};
    struct limits l = {0};

    make_files(false, "src", 2ull << 30);
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        add_ours_and_qemu(c, i);
        add_limits(&l);
    }
    bench_result("MB/s", &c[0].rate, &l.alone, "limit: least of fio and iperf3, each alone", 0.9, true);
    bench_result("MB/s", &c[0].rate, &l.disk,
                 "limit: fio reading one file and writing the other, on one disk", 0.9, true);
    row(c, offsetof(struct costs, rate), "MB/s", "QEMU blockdev-mirror", 1.5, true);
}

/* 16 MiB at a time: 8 of data, 4 of zeros written, 4 of hole. */
static void make_sparse(const char *full, const char *path)
{
    static char buf[1 << 20], zeros[1 << 20];
    int in = open(full, O_RDONLY | O_CLOEXEC),
        out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (in < 0 || out < 0 || ftruncate(out, (off_t)disk_size) < 0)
        bench_die("%s cannot be made", path);
    for (uint64_t at = 0; at < disk_size; at += sizeof buf) {
        unsigned piece = (unsigned)(at / sizeof buf % 16);
        bool data = piece < 8;
        if (piece >= 12)
            continue;
        if ((data && pread(in, buf, sizeof buf, (off_t)at) != sizeof buf) ||
            pwrite(out, data ? buf : zeros, sizeof buf, (off_t)at) != sizeof buf)
            bench_die("%s cannot be written", path);
    }
    close(in);
    close(out);
}

static void sparse(void)
{
    struct bench_stat half = {0}, full = {0};
    char path[200];

    make_files(true, "full", 1ull << 30);
    snprintf(path, sizeof path, "%s/half", bench_dir(true));
    make_sparse(src_dev, path);
    const char *all = src_dev;
    for (unsigned i = 0; i < bench_runs(); i++) {
        src_dev = path;
        bench_add(&half, one(&ours).seconds);
        uint64_t blocks = strtoull(bench_ask("stat -c %%b %s", dst_dev), NULL, 10);
        if (blocks * 512 > disk_size / 2 + (disk_size >> 6))
            bench_die("the copy is not sparse: %llu MiB", (unsigned long long)blocks >> 11);
        src_dev = all;
        bench_add(&full, one(&ours).seconds);
    }
    bench_note("the copy takes no more space than the data");
    bench_result("s", &half, &full, "ours, all data", 0.55, false);
}

static void cpu(void)
{
    struct costs c[1 + VERSIONS_MAX] = {0};

    make_loops();
    for (unsigned i = 0; i < bench_runs(); i++)
        add_ours_and_qemu(c, i);
    cpu_rows(c);
}

static void profile(const char *where, int runs)
{
    if (!strcmp(where, "loop"))
        make_loops();
    else
        make_files(!strcmp(where, "memory"), "src", 2ull << 30);
    unchecked = true;
    while (runs-- > 0)
        one(&ours);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } benches[] = {{"disk-soft", soft}, {"disk-real", real}, {"disk-sparse", sparse}, {"disk-cpu", cpu}};

    for (unsigned i = 0; i < sizeof benches / sizeof *benches; i++) {
        if (argc == 2 && !strcmp(argv[1], benches[i].name)) {
            bench_begin(argv[1]);
            if (bench_hosts(LINKS))
                bench_die("no network namespaces");
            benches[i].run();
            return 0;
        }
    }
    if (argc == 4 && !strcmp(argv[1], "-s")) {
        if (bench_hosts(LINKS))
            bench_die("no network namespaces");
        profile(argv[2], atoi(argv[3]));
        return 0;
    }
    fprintf(stderr,
            "usage: bench/disk disk-soft|disk-real|disk-sparse|disk-cpu, or -s loop|file|memory RUNS\n");
    return 2;
}
