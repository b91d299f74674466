/* SPDX-License-Identifier: MIT */
/* Guest RAM: 1 GiB of incompressible pages from one host to the other over one unshaped veth pair, two
 * connections on each side. Ours: the first round out of a process whose memory is tracked
 * (bench/lib_ram.h), into memory populated ahead. Beside QEMU's multifd with two channels (each version)
 * between two real, stopped QEMUs whose RAM has been filled (and is populated ahead, too), and iperf3. Both
 * sides' memories are compared after each run.
 *
 * usage: bench/ram ram | bench/ram -s GIB RUNS CONNECTIONS (only ours, for profiling: where the time goes) */
#include "tests/bench/lib_peer.h"
#include "tests/bench/lib_ram.h"
#include "tests/bench/lib_version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STREAMS 2

static uint64_t size;

static pid_t start_qemu(char host, const char *ram, const char *sock, const char *more)
{
    return bench_spawn("ip netns exec %s qemu-system-x86_64 -M pc,memory-backend=m -accel tcg -S -nodefaults "
                       "-display none -m %lluM "
                       "-object memory-backend-file,id=m,size=%lluM,mem-path=%s,share=on,prealloc=on "
                       "-qmp unix:%s,server=on,wait=off %s",
                       bench_ns(host), (unsigned long long)size >> 20, (unsigned long long)size >> 20, ram,
                       sock, more);
}

/* Bytes per ns, 0 when it failed. cpu: CPU seconds of both sides. */
static double run_multifd(double *cpu)
{
    char ram[2][200], sock[2][200];
    struct peer_qemu a = {0}, b = {0};
    double rate = 0;

    for (int i = 0; i < 2; i++) {
        snprintf(ram[i], sizeof ram[i], "%s/ram%d", bench_dir(true), i);
        snprintf(sock[i], sizeof sock[i], "%s/qmp%d", bench_dir(true), i);
    }
    bench_run("rm -f %s %s %s", ram[1], sock[0], sock[1]);
    if (access(ram[0], F_OK) && bench_fill_random(ram[0], size))
        bench_die("no room for the guest's memory");
    a.pid = start_qemu('A', ram[0], sock[0], "");
    b.pid = start_qemu('B', ram[1], sock[1], "-incoming defer");
    if (peer_qmp(&a, sock[0]) && peer_qmp(&b, sock[1]) && peer_migration_settings(&a, STREAMS) &&
        peer_migration_settings(&b, STREAMS) &&
        peer_do(&b, "migrate-incoming", "{s:s}", "uri", "tcp:10.50.0.2:4444")) {
        double was = peer_cpu(&a) + peer_cpu(&b);
        uint64_t t0 = xm_now();
        if (peer_do(&a, "migrate", "{s:s}", "uri", "tcp:10.50.0.2:4444") &&
            peer_until_migration(&a, "completed", 60))
            rate = (double)size / (double)(xm_now() - t0);
        if (rate > 0 && !peer_until_migration(&b, "completed", 10))
            rate = 0;
        *cpu = peer_cpu(&a) + peer_cpu(&b) - was;
    }
    peer_end(&a);
    peer_end(&b);
    if (rate > 0 && bench_run("cmp %s %s", ram[0], ram[1]))
        bench_die("after QEMU's migration the memories differ");
    return rate;
}

static void profile(char **arg)
{
    struct ram_guest g;

    size = strtoull(arg[2], NULL, 10) << 30;
    double gb = (double)size / 1e9;
    ram_guest_start(&g, size);
    for (int i = atoi(arg[3]); i > 0; i--) {
        struct ram_costs c;
        ram_run(&g, size, atoi(arg[4]), &c);
        printf(
            "round 1 %.3f s, %.2f GB/s (tracking set up in %.1f ms; source %.2f, destination %.2f CPU s/GB); "
            "round 2, all dirty, %.3f s; destination with populating, both rounds %.2f CPU s/GB\n",
            c.round_s, gb / c.round_s, c.open_s * 1e3, c.own_cpu / gb, c.peer_cpu / gb, c.second_s,
            c.far_cpu / gb / 2);
    }
}

int main(int argc, char **argv)
{
    bool only_ours = argc == 5 && !strcmp(argv[1], "-s");
    struct bench_stat ours = {0}, cpu = {0}, multifd[2][VERSIONS_MAX] = {0}, iperf[2] = {0};
    struct bench_stat seconds = {0}, multifd_seconds[VERSIONS_MAX] = {0};
    struct ram_guest g;

    if (!only_ours)
        bench_begin("ram");
    if (bench_hosts(1) || bench_enter('A'))
        bench_die("no network namespaces");
    if (only_ours) {
        profile(argv);
        return 0;
    }
    version_count(); /* asks them */
    size = bench_size(1ull << 30);
    ram_guest_start(&g, size);
    for (unsigned r = 0; r < bench_runs(); r++) {
        struct ram_costs c;
        bench_add(&ours, ram_run(&g, size, STREAMS, &c) * 1e3);
        bench_add(&cpu, c.own_cpu / c.round_s);
        bench_add(&seconds, (c.own_cpu + c.peer_cpu) * 1e9 / (double)size);
        for (int cubic = 0; cubic < 2; cubic++) {
            peer_congestion(cubic ? "cubic" : NULL);
            for (unsigned v = 0; v < version_count(); v++) {
                if (!version_turn(v, r))
                    continue;
                version_use(v);
                double m_cpu = 0, m = run_multifd(&m_cpu);
                if (m <= 0)
                    bench_die("QEMU %s did not migrate", version_short(v));
                bench_add(&multifd[cubic][v], m * 1e3);
                if (cubic) /* as ours */
                    bench_add(&multifd_seconds[v], m_cpu * 1e9 / (double)size);
            }
            double n = peer_iperf("10.50.0.2", STREAMS, 1, NULL);
            if (n <= 0)
                bench_die("iperf3 did not run");
            bench_add(&iperf[cubic], n / 1e6);
        }
        peer_congestion(NULL);
    }
    /* The same in fast rounds and slow ones: then it is the processors that were faster or slower. */
    bench_note("our source used %.2f processors [%.2f..%.2f] the while", bench_median(&cpu), bench_min(&cpu),
               bench_max(&cpu));
    bench_result("MB/s", &ours, &iperf[0], "iperf3, 2 streams", 0.85, true);
    bench_result("MB/s", &ours, &iperf[1], "iperf3, 2 streams, cubic, from and to memory in the cache", 0.85,
                 true);
    version_results("MB/s", &ours, multifd[0], "QEMU multifd, 2 channels", 1.2, true);
    version_results("MB/s", &ours, multifd[1], "QEMU multifd, 2 channels, the hosts told to use cubic", 1.2,
                    true);
    version_results("CPU s/GB", &seconds, multifd_seconds,
                    "QEMU multifd, 2 channels, the hosts told to use cubic; both sides", 1.0, false);
    return 0;
}
