/* SPDX-License-Identifier: MIT */
/* How time and our own memory grow with what is moved. usage: bench/growth growth
 *
 * disk size (sparse; full), number of disks, RAM: our copier and our rounds, without agents and guests,
 * in memory over unshaped veth. VMs at once: real guests under xmigrate, there and back. Devices: how
 * long a real guest is silent in its switch-over, by its disks and NICs. For each a row that compares
 * what a unit costs at the largest size with what it costs at the middle one (a straight line: 1), and
 * one that compares the most memory used with the bound of docs/design.md, «Bounds»: 64 MiB, 64 MiB of
 * mirror buffer a disk, a thousandth of the guest's RAM. */
#include "tests/bench/lib_copy.h"
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_ram.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define GIB       (1ull << 30)
#define STRAIGHT  1.25 /* a unit of the largest may cost so much more than one of the middle */
#define SMALL_MIB 64.0

/* Three sizes and what was measured at each. */
struct line {
    const char *what, *unit;
    double x[3];
    struct bench_stat seconds[3], memory; /* MiB, at the largest */
    double bound;                         /* MiB */
};

static double slope(const struct line *l, unsigned from, unsigned to)
{
    return (bench_median(&l->seconds[to]) - bench_median(&l->seconds[from])) / (l->x[to] - l->x[from]);
}

static void rows(const struct line *l)
{
    struct bench_stat middle = {0}, most = {0}, bound = {0};
    char name[120], unit[60];

    for (unsigned i = 0; i < l->seconds[0].n; i++) {
        bench_add(&middle, l->seconds[1].v[i] / l->x[1]);
        bench_add(&most, l->seconds[2].v[i] / l->x[2]);
        bench_add(&bound, l->bound);
    }
    snprintf(name, sizeof name, "%s: %g beside %g", l->what, l->x[2], l->x[1]);
    snprintf(unit, sizeof unit, "s a %s", l->unit);
    bench_note("%.4f, %.4f and %.4f s at %g, %g and %g; slopes %.4f and %.4f s a %s",
               bench_median(&l->seconds[0]), bench_median(&l->seconds[1]), bench_median(&l->seconds[2]),
               l->x[0], l->x[1], l->x[2], slope(l, 0, 1), slope(l, 1, 2), l->unit);
    bench_result(unit, &most, &middle, name, STRAIGHT, false);
    snprintf(name, sizeof name, "%s: the bound on memory at %g", l->what, l->x[2]);
    bench_result("MiB", &l->memory, &bound, name, 1.0, false);
}

/* ---- disks ---- */

static void copy_once(struct line *l, unsigned k, struct copy_job *j)
{
    struct copy_result r;

    if (!copy_run(j, &r))
        bench_die("the copy failed");
    bench_add(&l->seconds[k], r.seconds);
    if (k == 2)
        bench_add(&l->memory, (double)r.memory / (1 << 20));
}

/* Where a full disk goes: memory that is there already. A virtual machine's own host may give it slowly when
 * it is new (here a fifth to a half of the speed), which would bend the line. */
static void touch(const char *path, uint64_t size)
{
    if (bench_fill_random(path, size))
        bench_die("no room in memory");
}

static void disk_sizes(bool sparse)
{
    struct line l = {
        .what = sparse ? "disk size, sparse" : "disk size, full", .unit = "GiB", .bound = SMALL_MIB + 64};
    char from[3][200], to[200];

    snprintf(to, sizeof to, "%s/to", bench_dir(true));
    for (unsigned k = 0; k < 3; k++) {
        uint64_t size = sparse ? bench_size(GIB << 3 * k) : bench_size(GIB << k);
        l.x[k] = (double)size / (double)GIB;
        snprintf(from[k], sizeof from[k], "%s/from%u", bench_dir(true), k);
        if (bench_fill_random(from[k], sparse ? 0 : size) || truncate(from[k], (off_t)size))
            bench_die("no room in memory");
    }
    if (!sparse)
        touch(to, bench_size(GIB << 2));
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        for (unsigned k = 0; k < 3; k++) {
            if (sparse)
                unlink(to);
            struct copy_job j = {.disks = 1, .links = 2, .from = {from[k]}, .to = {to}};
            j.size = (uint64_t)(l.x[k] * (double)GIB);
            copy_once(&l, k, &j);
        }
    }
    for (unsigned k = 0; k < 3; k++)
        unlink(from[k]);
    unlink(to);
    rows(&l);
}

static void disk_counts(void)
{
    static const unsigned counts[3] = {1, 4, 8};
    static char from[COPY_DISKS][200], to[COPY_DISKS][200];
    struct line l = {.what = "disks at once", .unit = "disk of 256 MiB", .bound = SMALL_MIB + 64 * 8};
    struct copy_job j = {.links = 2, .size = bench_size(256 << 20)};

    for (unsigned i = 0; i < COPY_DISKS; i++) {
        snprintf(from[i], sizeof from[i], "%s/from%u", bench_dir(true), i);
        snprintf(to[i], sizeof to[i], "%s/to%u", bench_dir(true), i);
        j.from[i] = from[i];
        j.to[i] = to[i];
        touch(from[i], j.size);
        touch(to[i], j.size);
    }
    for (unsigned i = 0; i < bench_runs_few(); i++) {
        for (unsigned k = 0; k < 3; k++) {
            l.x[k] = j.disks = counts[k];
            copy_once(&l, k, &j);
        }
    }
    for (unsigned i = 0; i < COPY_DISKS; i++) {
        unlink(from[i]);
        unlink(to[i]);
    }
    rows(&l);
}

/* ---- RAM ---- */

/* Without what is shared: the guest's memory that we map. MiB. */
static double anonymous(pid_t pid)
{
    char path[64], line[200];
    double kib = 0;

    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "RssAnon: %lf", &kib) == 1)
            break;
    }
    if (f)
        fclose(f);
    return kib / 1024;
}

static atomic_bool watching;
static double most;

static void *watch_ourselves(void *arg)
{
    (void)arg;
    while (atomic_load(&watching)) {
        most = XM_MAX(most, anonymous(getpid()));
        poll(NULL, 0, 5);
    }
    return NULL;
}

/* A process of its own: it lives in host A. Its results come by a pipe. */
static void ram_in_child(int out, uint64_t size)
{
    struct ram_guest g;
    struct ram_costs c;
    pthread_t t;

    if (bench_enter('A'))
        _exit(1);
    ram_guest_start(&g, size);
    atomic_store(&watching, true);
    if (pthread_create(&t, NULL, watch_ourselves, NULL))
        _exit(1);
    ram_run(&g, size, 2, &c);
    atomic_store(&watching, false);
    pthread_join(t, NULL);
    double result[2] = {c.round_s, most};
    if (write(out, result, sizeof result) != sizeof result)
        _exit(1);
    ram_guest_end(&g, size);
    _exit(0);
}

static void ram_sizes(void)
{
    struct line l = {.what = "RAM", .unit = "GiB"};

    for (unsigned i = 0; i < bench_runs_few(); i++) {
        for (unsigned k = 0; k < 3; k++) {
            uint64_t size = bench_size(GIB / 4 << 2 * k);
            double result[2];
            int p[2];
            l.x[k] = (double)size / (double)GIB;
            l.bound = SMALL_MIB + (double)size / 1000 / (1 << 20);
            if (pipe(p))
                bench_die("no pipe");
            pid_t pid = bench_fork();
            if (pid == 0)
                ram_in_child(p[1], size);
            close(p[1]);
            if (read(p[0], result, sizeof result) != sizeof result)
                bench_die("the round failed");
            close(p[0]);
            bench_wait(pid);
            bench_add(&l.seconds[k], result[0]);
            if (k == 2)
                bench_add(&l.memory, result[1]);
        }
    }
    rows(&l);
}

/* ---- VMs at once ---- */

enum { VMS = 4 };

static pid_t shim_of(const char *prefix, char h, const struct lab_guest *g)
{
    return (pid_t)atoi(bench_ask("cat /run/%s-lab/%c/run/vms/%s/shim.pid", prefix, h - 'A' + 'a', g->name));
}

/* Seconds until all have moved; memory: the most of one shim on the side they leave. */
static double move(struct lab_guest *g, unsigned n, char from, double *memory)
{
    pid_t pid[VMS], shim[VMS];
    unsigned left = n;
    uint64_t t0 = xm_now();

    for (unsigned i = 0; i < n; i++)
        shim[i] = shim_of(getenv("XM_PREFIX"), from, &g[i]);
    for (unsigned i = 0; i < n; i++)
        pid[i] = bench_spawn("tests/system/lab.sh xmigrate %c --with-storage %s host%c:ds1 >/dev/null",
                             from - 'A' + 'a', g[i].name, from == 'A' ? 'b' : 'a');
    while (left) {
        for (unsigned i = 0; i < n; i++) {
            siginfo_t over = {0};
            *memory = XM_MAX(*memory, anonymous(shim[i]));
            if (!pid[i] || waitid(P_PID, (id_t)pid[i], &over, WEXITED | WNOHANG | WNOWAIT) || !over.si_pid)
                continue;
            if (bench_wait(pid[i]))
                bench_die("a guest did not move");
            pid[i] = 0;
            left--;
        }
        poll(NULL, 0, 10);
    }
    return (double)(xm_now() - t0) / 1e9;
}

static void vm_counts(void)
{
    static const unsigned counts[3] = {1, 2, 4};
    struct line l = {.what = "VMs at once", .unit = "VM", .bound = SMALL_MIB + 64 + 0.2};
    struct lab_guest g[VMS];

    /* More than VMS: a destination counts a migration for a moment longer than its source, which has others
     * begin. */
    setenv("XM_LAB_LIMITS", "storage_migrations = 8\nmigrations = 8", 1);
    lab_up();
    for (unsigned i = 0; i < VMS; i++) {
        g[i] = (struct lab_guest){
            .memory = 192, .disks = 1, .append = "xm.mem=32M:rate=1M xm.disk=vda:rate=256K:span=16M"};
        snprintf(g[i].name, sizeof g[i].name, "many%u", i);
        snprintf(g[i].ip, sizeof g[i].ip, "10.9.0.%u", i + 2);
        snprintf(g[i].file[0], sizeof g[i].file[0], "many%u.img", i);
        if (bench_fill_random(lab_path('A', g[i].file[0]), 128 << 20))
            bench_die("no room for disks");
        lab_start(&g[i]);
    }
    /* Each round is two moves, there and back; fewer rounds than the others have: they are the longest part.
     */
    for (unsigned i = 0; i < (bench_runs_few() + 1) / 2; i++) {
        for (unsigned k = 0; k < 3; k++) {
            double memory = 0, there = move(g, counts[k], 'A', &memory),
                   back = move(g, counts[k], 'B', &memory);
            l.x[k] = counts[k];
            bench_add(&l.seconds[k], (there + back) / 2);
            if (k == 2)
                bench_add(&l.memory, memory);
        }
    }
    for (unsigned i = 0; i < VMS; i++) {
        if (!lab_verify_guest(g[i].ip))
            bench_die("a guest finds its data wrong");
    }
    rows(&l);
    bench_run("tests/system/lab.sh down");
}

/* ---- devices ---- */

/* x: disks and NICs together. What does not grow with them is most of the silence of the first. */
static void device_counts(void)
{
    static const unsigned disks[3] = {1, 8, 16}, nics[3] = {1, 4, 8};
    struct line l = {.what = "disks and NICs", .unit = "device", .bound = SMALL_MIB + 64 * 16 + 0.4};
    struct lab_guest g[3];

    setenv("XM_LAB_DOWNTIME", "1s", 1);
    lab_up();
    for (unsigned k = 0; k < 3; k++) {
        l.x[k] = disks[k] + nics[k];
        g[k] = (struct lab_guest){
            .memory = 384, .disks = disks[k], .nics = nics[k], .queues = 4, .append = "xm.mem=32M:rate=1M"};
        snprintf(g[k].name, sizeof g[k].name, "wide%u", k);
        snprintf(g[k].ip, sizeof g[k].ip, "10.9.0.%u", k + 2);
        for (unsigned i = 0; i < disks[k]; i++) {
            snprintf(g[k].file[i], sizeof g[k].file[i], "wide%u-%u.img", k, i);
            if (bench_run("truncate -s 16M %s", lab_path('A', g[k].file[i])))
                bench_die("no room for disks");
        }
        lab_start(&g[k]);
    }
    for (unsigned i = 0; i < bench_runs_few() * 2; i++) {
        char from = i % 2 ? 'B' : 'A';
        for (unsigned k = 0; k < 3; k++) {
            struct lab_pulse p;
            double memory = 0;
            lab_pulse_start(&p, g[k].ip);
            move(&g[k], 1, from, &memory);
            double gap = lab_pulse_end(&p);
            if (gap < 0)
                bench_die("the watcher lost the guest");
            bench_add(&l.seconds[k], gap / 1000);
            if (k == 2)
                bench_add(&l.memory, memory);
        }
    }
    rows(&l);
    bench_run("tests/system/lab.sh down");
}

int main(void)
{
    bench_begin("growth");
    vm_counts();
    device_counts();
    if (bench_hosts(2))
        bench_die("no network namespaces");
    disk_sizes(true);
    disk_sizes(false);
    disk_counts();
    ram_sizes();
    return 0;
}
