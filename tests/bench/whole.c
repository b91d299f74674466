/* SPDX-License-Identifier: MIT */
/* Whole migrations of a real guest with its disk: xmigrate beside two plain QEMUs (blockdev-mirror over NBD,
 * then RAM with multifd) between the same hosts, the same files, sides alternating. The guest verifies its
 * disk and its memory after each. Ours is on the newest QEMU at hand, the peers are that and the host's own.
 * usage: bench/whole whole|downtime-idle|downtime-busy
 *
 * whole          a disk of 2 GiB full of random data, 1 GiB of RAM with 640 MiB of patterns, and it writes to both:
 *                from the command until the guest runs at the destination and nothing is left to do
 * downtime-idle  the longest silence that a client in another namespace sees (UDP, 1 ms beat)
 * downtime-busy  the same, memory being dirtied at half the wire's rate; the wire is 1 Gbit/s: two links of half of it
 *                for us, one link for QEMU, which has no use for two
 * Both have the same limit for the estimated downtime, 100 ms. The silence of a guest that stays is noted beside.
 */
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct lab_guest guest = {.ip = LAB_IP, .memory = 1024, .disks = 1, .file = {"bench.img"}};
static bool busy, whole;
static struct bench_stat still;    /* silences of the guest that stays, ms */
static struct bench_stat reported; /* our downtimes by our own reports, ms */

#define QEMU_TRIES 3 /* for one figure */
static unsigned qemu_runs[VERSIONS_MAX], qemu_lost[VERSIONS_MAX];

struct outcome {
    double seconds, gap; /* gap in ms */
    double reported;     /* ours: the downtime of its report, ms */
};

static void watch_still(void)
{
    struct lab_pulse p;

    lab_pulse_start(&p, LAB_IP);
    poll(NULL, 0, 1000);
    double gap = lab_pulse_end(&p);
    if (gap > 0)
        bench_add(&still, gap);
}

static struct outcome run_ours(void)
{
    static unsigned number;
    struct lab_pulse p;
    struct outcome o = {0};

    if (busy)
        lab_shape("500mbit", "500mbit");
    snprintf(guest.name, sizeof guest.name, "ours%u", ++number); /* its name is known at B from now on */
    lab_start(&guest);
    if (!whole)
        watch_still();
    lab_pulse_start(&p, LAB_IP);
    uint64_t t0 = xm_now();
    o.reported = lab_move('A', "--with-storage --keep-source %s hostb:ds1", guest.name);
    if (o.reported < 0)
        bench_die("xmigrate did not move the guest");
    bench_add(&reported, o.reported);
    o.seconds = (double)(xm_now() - t0) / 1e9;
    o.gap = lab_pulse_end(&p);
    lab_finish(&guest, true);
    return o;
}

/* False: QEMU did not move the guest, or the guest has not survived it. */
static bool try_qemu(struct outcome *o)
{
    struct peer_qemu a = {0}, b = {0};
    struct lab_pulse p;

    if (busy)
        lab_shape("1gbit", "");
    lab_qemu_start(&a, &guest, 'A', false);
    if (!lab_wait_guest(LAB_IP, 90) || !lab_qemu_clean_bitmap(&a))
        bench_die("the guest does not start in QEMU");
    lab_pulse_start(&p, LAB_IP);
    uint64_t t0 = xm_now();
    bool moved = lab_qemu_migrate(&a, &b, &guest);
    o->seconds = (double)(xm_now() - t0) / 1e9;
    o->gap = lab_pulse_end(&p);
    peer_end(&a);
    bool survived = moved && lab_wait_guest(LAB_IP, 20) && lab_verify_guest(LAB_IP);
    peer_end(&b);
    bench_run("rm -f %s", lab_path('B', guest.file[0]));
    if (moved && !survived)
        fprintf(stderr, "bench: after QEMU's migration the guest does not answer, or finds its data wrong\n");
    return survived;
}

/* Under TCG a guest may not survive QEMU's migration (docs/benches.md). That is told, not hidden, and tried
 * again. */
static struct outcome run_qemu(unsigned v)
{
    struct outcome o = {0};

    version_use(v);
    for (unsigned n = 0; n < QEMU_TRIES; n++) {
        qemu_runs[v]++;
        if (try_qemu(&o))
            return o;
        qemu_lost[v]++;
    }
    bench_die("the guest of QEMU %s did not survive %u of %u of its migrations", version_short(v),
              qemu_lost[v], qemu_runs[v]);
}

static void say(const char *who, struct outcome o)
{
    if (o.gap < 0)
        bench_die("the watcher lost the guest under %s", who);
    printf("  %-11s %.2f s, silent for %.1f ms", who, o.seconds, o.gap);
    if (o.reported > 0)
        printf(" (its report: %.1f ms)", o.reported);
    printf("\n");
    fflush(stdout);
}

static const char *told_of_qemu(void)
{
    static char s[300];
    size_t n = (size_t)snprintf(s, sizeof s, "; ours on QEMU %s; by its own report %.1f ms",
                                version_short(version_of_ours()), bench_median(&reported));

    for (unsigned v = 0; v < version_count(); v++) {
        if (qemu_lost[v])
            n += (size_t)snprintf(s + n, sizeof s - n,
                                  "; the guest of QEMU %s did not survive %u of %u of its migrations",
                                  version_short(v), qemu_lost[v], qemu_runs[v]);
    }
    return s;
}

int main(int argc, char **argv)
{
    const char *name = argc == 2 ? argv[1] : "";
    bool idle = !strcmp(name, "downtime-idle");
    struct bench_stat t = {0}, gap = {0}, qemu_t[VERSIONS_MAX] = {0}, qemu_gap[VERSIONS_MAX] = {0},
                      budget = {0};

    whole = !strcmp(name, "whole");
    busy = !strcmp(name, "downtime-busy");
    if (!whole && !idle && !busy) {
        fprintf(stderr, "usage: bench/whole whole|downtime-idle|downtime-busy\n");
        return 2;
    }
    bench_begin(name);
    guest.append = whole  ? "xm.disk=vda:rate=4M:span=256M xm.mem=640M:rate=16M"
                   : idle ? "xm.mem=256M"
                          : "xm.disk=vda:rate=1M:span=64M xm.mem=192M:rate=62M";
    version_use(version_of_ours());
    lab_up();
    if (bench_fill_random(lab_path('A', guest.file[0]), whole ? bench_size(2ull << 30) : 256ull << 20))
        bench_die("no room for the disk");
    for (unsigned i = 0; i < (idle ? bench_runs() : bench_runs_few()); i++) {
        struct outcome o = run_ours();
        say("xmigrate", o);
        bench_add(&t, o.seconds);
        bench_add(&gap, o.gap);
        bench_add(&budget, 15);
        for (unsigned v = 0; v < version_count(); v++) {
            char who[40];
            /* Ours has a goal of its own when the guest is idle, and therefore more rounds. */
            if ((idle && i % 2) || !version_turn(v, i))
                continue;
            struct outcome q = run_qemu(v);
            snprintf(who, sizeof who, "QEMU %s", version_short(v));
            say(who, q);
            bench_add(&qemu_t[v], q.seconds);
            bench_add(&qemu_gap[v], q.gap);
        }
    }
    if (whole) {
        char silences[100] = "";
        size_t n = 0;
        for (unsigned v = 0; v < version_count(); v++)
            n += (size_t)snprintf(silences + n, sizeof silences - n, ", QEMU %s %.1f ms", version_short(v),
                                  bench_median(&qemu_gap[v]));
        bench_note("longest silence: ours %.1f ms%s%s", bench_median(&gap), silences, told_of_qemu());
        version_results("s", &t, qemu_t, "QEMU: blockdev-mirror, multifd", 0.5, false);
        return 0;
    }
    bench_note("a guest that stays is silent for %.1f ms [%.1f..%.1f]%s", bench_median(&still),
               bench_min(&still), bench_max(&still), told_of_qemu());
    version_results("ms", &gap, qemu_gap, "QEMU: blockdev-mirror, multifd", 0.5, false);
    if (idle)
        bench_result("ms", &gap, &budget, "15 ms", 1.0, false);
    return 0;
}
