/* SPDX-License-Identifier: MIT */
/* The downtime of a guest under KVM: our own one without an operating system (tests/guest/kvm), which runs
 * also where KVM has to emulate each instruction. usage: bench/kvm downtime-kvm|thousand|estimate
 *
 * The guest is idle: it sleeps but for one byte a millisecond to its serial port. The longest silence between
 * two bytes, whichever host they came from, over a move with its disk by xmigrate, beside QEMU's own
 * migration of the same guest with the same RAM without any disk; each version of it. All go back and forth
 * between the same hosts; the sides alternate in blocks of moves, since the guest takes some seconds to boot.
 * The silence of a guest that stays is noted beside.
 *
 * thousand: XM_BENCH_MOVES (1000) moves of one guest, there and back, that writes to its memory and its disk
 * and checks both; percentiles of its silence, and of each that is above the goal when the parts of its
 * switch were. Not part of `make bench`.
 *
 * estimate: moves of guests that write to their memory at five rates: how long they stood beside what was
 * estimated at the moment when they were stopped. Not part of it, either. */
#include "tests/bench/lib_beat.h"
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MEMORY 64 /* MiB */
#define CPU    "host,-arch-capabilities"
#define APPEND "ram=0 disk=0"
#define KERNEL "build/guest/kvmguest"
#define BLOCK  3  /* moves */
#define STEADY 3  /* lines: 0.75 s between two moves */
#define BUDGET 15 /* ms */
#define BUSY   "ram=1000 disk=100 span=512"
#define P99    50 /* ms */
#define EACH   20 /* moves at each rate */

static char name[16];           /* of our VM; another one for each block: its old one is known at the hosts */
static struct bench_stat still; /* silences of the guest that stays, ms */

static char other(char h)
{
    return h == 'A' ? 'B' : 'A';
}

static void ticks(struct beat *b, unsigned lines)
{
    if (!beat_wait(b, lines))
        bench_die("the guest does not tick, or has found an error");
}

/* The silence in one move and the lines behind it. */
static double silence(struct beat *b, bool (*move)(char from), char from, unsigned lines)
{
    beat_mark(b);
    if (!move(from))
        bench_die("the guest was not moved");
    ticks(b, lines);
    return beat_longest(b);
}

static double watch(struct beat *b, bool (*move)(char from), char from)
{
    ticks(b, STEADY);
    beat_mark(b);
    ticks(b, STEADY);
    bench_add(&still, beat_longest(b));
    return silence(b, move, from, STEADY);
}

/* ---- xmigrate ---- */

static struct bench_stat reported; /* downtimes by our own reports, ms */

static double last; /* the last move's downtime by its report, ms */

static bool move_ours(char from)
{
    last = lab_move(from, "--with-storage %s host%c", name, other(from) - 'A' + 'a');
    if (last >= 0 && reported.n < sizeof reported.v / sizeof *reported.v)
        bench_add(&reported, last);
    return last >= 0;
}

static void start_ours(const char *append)
{
    const char *dir = bench_dir(true);
    char ini[200], top[256];

    snprintf(ini, sizeof ini, "%s/%s.ini", dir, name);
    FILE *f = fopen(ini, "w");
    if (!f || !getcwd(top, sizeof top))
        bench_die("%s cannot be written", ini);
    fprintf(f,
            "[vm]\nname = %s\nmemory = %uM\nvcpus = 1\naccel = kvm\ncpu = " CPU "\nkernel = %s/" KERNEL
            "\nappend = %s\n\n[disk one]\ndatastore = ds1\nfile = kvm.img\n",
            name, MEMORY, top, append);
    fclose(f);
    if (bench_run("truncate -s 16M %s", lab_path('A', "kvm.img")) ||
        lab_xmigrate('A', "start %s >/dev/null", ini))
        bench_die("the guest does not start");
}

static void begin_ours(struct beat *b, const char *append)
{
    static unsigned number;
    char path[2][200];

    snprintf(name, sizeof name, "kvm%u", ++number);
    for (int i = 0; i < 2; i++)
        snprintf(path[i], sizeof path[i], "/run/%s-lab/%c/run/vms/%s/serial.sock", getenv("XM_PREFIX"),
                 "ab"[i], name);
    beat_listen(b, path[0], path[1]);
    start_ours(append);
}

static void end_ours(struct beat *b, char at)
{
    beat_end(b);
    if (lab_xmigrate(at, "stop --force %s >/dev/null", name))
        bench_die("the guest does not end");
    bench_run("rm -f %s/kvm*", lab_path(at, "")); /* xmigrate makes VM-DISK.raw */
}

static void run_ours(unsigned moves, struct bench_stat *gap)
{
    struct beat b;
    char at = 'A';

    begin_ours(&b, APPEND);
    for (unsigned i = 0; i < moves; i++, at = other(at)) {
        double ms = watch(&b, move_ours, at);
        printf("  xmigrate  silent for %.1f ms\n", ms);
        bench_add(gap, ms);
    }
    end_ours(&b, at);
}

/* ---- a thousand moves ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void thousand(void)
{
    const char *wanted = getenv("XM_BENCH_MOVES");
    unsigned moves = wanted && atoi(wanted) > 0 ? (unsigned)atoi(wanted) : 1000;
    double *gap = calloc(moves, sizeof *gap), *own = calloc(moves, sizeof *own);
    struct bench_stat p99 = {0}, goal = {0};
    struct beat b;
    char at = 'A';

    if (!gap || !own)
        bench_die("no memory");
    begin_ours(&b, BUSY);
    ticks(&b, STEADY);
    for (unsigned i = 0; i < moves; i++, at = other(at)) {
        gap[i] = silence(&b, move_ours, at, 1);
        own[i] = last;
        if (gap[i] > P99)
            printf("  move %u: silent for %.1f ms; by its report %.1f: %s\n", i + 1, gap[i], last,
                   bench_ask("grep -o '\"downtime_timeline_ms\":{[^}]*}' %s/move.json", bench_dir(true)));
        if ((i + 1) % 100 == 0)
            printf("  %u moves\n", i + 1);
    }
    end_ours(&b, at);
    qsort(gap, moves, sizeof *gap, by_size);
    qsort(own, moves, sizeof *own, by_size);
    unsigned nth = (moves * 99 + 99) / 100 - 1;
    bench_add(&p99, gap[nth]);
    bench_add(&goal, P99);
    bench_note(
        "%u moves, none lost, none wrong: silent for %.1f ms in the median, %.1f at p99, %.1f at worst; "
        "by the report %.1f, %.1f and %.1f",
        moves, gap[moves / 2], gap[nth], gap[moves - 1], own[moves / 2], own[nth], own[moves - 1]);
    bench_result("ms", &p99, &goal, "p99: 50 ms", 1.0, false);
    free(gap);
    free(own);
}

/* ---- what was estimated ---- */

/* Pages a second; the last is what this guest can do under an emulated KVM. */
static void estimate(void)
{
    static const unsigned rate[] = {0, 2000, 10000, 30000, 100000};
    enum { RATES = sizeof rate / sizeof *rate };
    double ratio[RATES * EACH];
    struct bench_stat p95 = {0}, goal = {0};
    struct beat b;
    unsigned n = 0;

    for (unsigned r = 0; r < RATES; r++) {
        struct bench_stat took = {0}, said = {0};
        char append[80], at = 'A';
        snprintf(append, sizeof append, "ram=%u disk=100 span=512", rate[r]);
        begin_ours(&b, append);
        ticks(&b, STEADY);
        for (unsigned i = 0; i < EACH; i++, at = other(at)) {
            silence(&b, move_ours, at, 1);
            double estimated = lab_told("downtime_estimate_ms");
            bench_add(&took, last);
            bench_add(&said, estimated);
            ratio[n++] = last / estimated;
            printf("  %u pages a second, move %u: %.1f ms, estimated %.1f\n", rate[r], i + 1, last,
                   estimated);
        }
        end_ours(&b, at);
        bench_note("%u pages a second: stood for %.1f ms [%.1f..%.1f], estimated %.1f [%.1f..%.1f]", rate[r],
                   bench_median(&took), bench_min(&took), bench_max(&took), bench_median(&said),
                   bench_min(&said), bench_max(&said));
    }
    qsort(ratio, n, sizeof *ratio, by_size);
    bench_add(&p95, ratio[n * 95 / 100 - 1]);
    bench_add(&goal, 1);
    bench_result("downtime / estimate", &p95, &goal, "p95: estimate + 20 %", 1.2, false);
}

/* ---- QEMU ---- */

static struct peer_qemu qemu[2]; /* on A, on B */
static char serial[2][200];

static void start_qemu(char h, bool incoming)
{
    struct peer_qemu *q = &qemu[h - 'A'];
    char qmp[200];

    snprintf(qmp, sizeof qmp, "%s/kvm-qmp-%c", bench_dir(true), h);
    bench_run("rm -f %s %s", qmp, serial[h - 'A']);
    *q = (struct peer_qemu){0};
    q->pid = bench_spawn("ip netns exec %s qemu-system-x86_64 -nodefaults -no-user-config -display none -vga "
                         "none -machine q35 "
                         "-accel kvm -cpu " CPU " -m %u -smp 1 -kernel " KERNEL " -append '" APPEND "' "
                         "-chardev socket,id=s,path=%s,server=on,wait=off -serial chardev:s -qmp "
                         "unix:%s,server=on,wait=off %s",
                         bench_ns(h), MEMORY, serial[h - 'A'], qmp, incoming ? "-incoming defer" : "");
    if (!peer_qmp(q, qmp))
        bench_die("QEMU does not start");
}

static bool set_up(struct peer_qemu *q)
{
    return peer_do(q, "migrate-set-capabilities", "{s:[{s:s s:b}]}", "capabilities", "capability", "events",
                   "state", 1) &&
           peer_do(q, "migrate-set-parameters", "{s:I s:I}", "max-bandwidth", (json_int_t)100 << 30,
                   "downtime-limit", (json_int_t)BUDGET);
}

static bool move_qemu(char from)
{
    struct peer_qemu *a = &qemu[from - 'A'], *b = &qemu[other(from) - 'A'];
    char uri[40];

    snprintf(uri, sizeof uri, "tcp:10.1.0.%d:4444", other(from) - 'A' + 1);
    start_qemu(other(from), true);
    bool moved = set_up(a) && set_up(b) && peer_do(b, "migrate-incoming", "{s:s}", "uri", uri) &&
                 peer_do(a, "migrate", "{s:s}", "uri", uri) && peer_until_migration(a, "completed", 60) &&
                 peer_until(b, &b->resumed, 10);
    peer_end(a);
    return moved;
}

static void run_qemu(unsigned v, unsigned moves, struct bench_stat *gap)
{
    struct beat b;
    char at = 'A';

    version_use(v);
    for (int i = 0; i < 2; i++)
        snprintf(serial[i], sizeof serial[i], "%s/kvm-serial-%c", bench_dir(true), "AB"[i]);
    beat_listen(&b, serial[0], serial[1]);
    start_qemu('A', false);
    for (unsigned i = 0; i < moves; i++, at = other(at)) {
        double ms = watch(&b, move_qemu, at);
        printf("  QEMU %s silent for %.1f ms\n", version_short(v), ms);
        bench_add(gap, ms);
    }
    beat_end(&b);
    peer_end(&qemu[at - 'A']);
}

int main(int argc, char **argv)
{
    struct bench_stat gap = {0}, qemu_gap[VERSIONS_MAX] = {0}, budget = {0};
    unsigned left = bench_runs(), block = 0;

    if (argc != 2 ||
        (strcmp(argv[1], "downtime-kvm") && strcmp(argv[1], "thousand") && strcmp(argv[1], "estimate"))) {
        fprintf(stderr, "usage: bench/kvm downtime-kvm|thousand|estimate\n");
        return 2;
    }
    bench_begin(argv[1]);
    if (access("/dev/kvm", R_OK | W_OK))
        bench_die("/dev/kvm is missing or not ours to use");
    version_use(version_of_ours());
    setenv("XM_LAB_PARTIAL_KVM", "yes", 1);
    lab_up();
    if (!strcmp(argv[1], "thousand")) {
        thousand();
        return 0;
    }
    if (!strcmp(argv[1], "estimate")) {
        estimate();
        return 0;
    }
    while (left) {
        unsigned moves = XM_MIN(left, (unsigned)BLOCK);
        run_ours(moves, &gap);
        for (unsigned v = 0; v < version_count(); v++) {
            if (version_turn(v, block))
                run_qemu(v, moves, &qemu_gap[v]);
        }
        left -= moves;
        block++;
    }
    bench_add(&budget, BUDGET);
    bench_note(
        "a guest that stays is silent for %.1f ms [%.1f..%.1f]; ours on QEMU %s; by its own report %.1f ms",
        bench_median(&still), bench_min(&still), bench_max(&still), version_short(version_of_ours()),
        bench_median(&reported));
    version_results("ms", &gap, qemu_gap, "QEMU: the same guest without a disk", 0.5, false);
    bench_result("ms", &gap, &budget, "15 ms", 1.0, false);
    return 0;
}
