/* SPDX-License-Identifier: MIT */
/* What tracking of dirty pages costs who writes memory, on each version of QEMU. usage: bench/tracked tracked
 *
 * A real guest in a plain QEMU rewrites 128 MiB as fast as it can; the pages it rewrites for each second of
 * its vCPU threads' CPU time (what else runs on two processors is not its loss) in the second after all its
 * memory has been armed once, by our tracker from outside or by QEMU's own dirty logging (a migration to
 * nowhere at 1 MiB/s), beside what it does untracked before and after. And a process of our own that writes
 * memory natively: in the note, for there a write costs so little that its first to a page, the one that is
 * caught, shows. */
#include "memxfer/memxfer.h"
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WINDOW_MS 1000
#define TIMES     2u /* for each run: windows are short, and there are many. Versions share them */

/* ---- the guest ---- */

/* CPU seconds of the threads that run the guest. */
static double vcpu_seconds(struct peer_qemu *q)
{
    json_t *cpus = peer_get(q, "query-cpus-fast"), *cpu;
    double sum = 0;
    size_t i;

    json_array_foreach (cpus, i, cpu) {
        char path[80];
        unsigned long long ns = 0;
        snprintf(path, sizeof path, "/proc/%d/task/%lld/schedstat", q->pid,
                 (long long)json_integer_value(json_object_get(cpu, "thread-id")));
        FILE *f = fopen(path, "r");
        if (!f || fscanf(f, "%llu", &ns) != 1)
            bench_die("%s tells nothing", path);
        fclose(f);
        sum += (double)ns / 1e9;
    }
    json_decref(cpus);
    return sum;
}

/* Pages for each second of CPU time in the window that begins now. */
static double guest_rate(struct peer_qemu *q)
{
    double pages[2] = {0}, cpu[2] = {0};

    for (int i = 0; i < 2; i++) {
        json_t *s = lab_status(LAB_IP);
        if (!s)
            bench_die("the guest does not answer");
        pages[i] = json_number_value(json_object_get(json_object_get(s, "memory"), "rewrites"));
        cpu[i] = vcpu_seconds(q);
        json_decref(s);
        if (i == 0)
            poll(NULL, 0, WINDOW_MS);
    }
    if (cpu[1] <= cpu[0] || pages[1] <= pages[0])
        bench_die("the guest writes nothing");
    return (pages[1] - pages[0]) / (cpu[1] - cpu[0]);
}

static double under_our_tracker(struct peer_qemu *q)
{
    struct xm_tracker *t;
    struct xm_error e = {0};
    struct xm_ram ram;

    if (xm_ram_find(&ram, q->pid, &e) < 0 || xm_tracker_open(&t, &ram, &e) < 0)
        bench_die("%s", e.text);
    double rate = guest_rate(q);
    xm_tracker_close(t);
    xm_ram_close(&ram);
    return rate;
}

static double under_qemu(struct peer_qemu *q)
{
    q->migration[0] = 0;
    if (!peer_do(q, "migrate", "{s:s}", "uri", "exec:cat >/dev/null") ||
        !peer_until_migration(q, "active", 10))
        bench_die("QEMU does not log dirty pages");
    double rate = guest_rate(q);
    if (!peer_do(q, "migrate_cancel", NULL) || !peer_until_migration(q, "cancelled", 10))
        bench_die("QEMU does not end its migration");
    return rate;
}

/* ---- a process ---- */

struct writer {
    pid_t pid;
    int memfd;
    uint8_t *va;
    atomic_ullong *pages;
};

static void writer_start(struct writer *w, uint64_t size)
{
    w->memfd = memfd_create("bench-tracked", MFD_CLOEXEC);
    w->pages = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (w->memfd < 0 || ftruncate(w->memfd, (off_t)size) < 0 || w->pages == MAP_FAILED)
        bench_die("no memory for a process");
    w->va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, w->memfd, 0);
    w->pid = bench_fork();
    if (w->pid == 0) {
        for (unsigned n = 0;; n++) {
            for (uint64_t at = 0; at < size; at += XM_PAGE) {
                memset(w->va + at, (int)n, XM_PAGE);
                atomic_fetch_add_explicit(w->pages, 1, memory_order_relaxed);
            }
        }
    }
}

static double writer_rate(struct writer *w)
{
    unsigned long long before = *w->pages;
    uint64_t t0 = xm_now();

    poll(NULL, 0, WINDOW_MS);
    return (double)(*w->pages - before) * 1e9 / (double)(xm_now() - t0);
}

/* Armed again ten times a second would be more than any migration does; once, as above. */
static double writer_tracked(struct writer *w)
{
    struct xm_ram ram = {.pid = w->pid};
    struct xm_tracker *t;
    struct xm_error e = {0};

    if (xm_ram_add(&ram, "ram", w->memfd, (uintptr_t)w->va, &e) < 0 || xm_tracker_open(&t, &ram, &e) < 0)
        bench_die("%s", e.text);
    double rate = writer_rate(w);
    xm_tracker_close(t);
    xm_ram_close(&ram);
    return rate;
}

/* Per cent. */
static double loss(double rate, double free_rate)
{
    return free_rate > 0 ? (1 - rate / free_rate) * 100 : 100;
}

/* What is less than two untracked windows differ by cannot be told from nothing. */
static struct bench_stat at_least(const struct bench_stat *s, double noise)
{
    struct bench_stat r = {0};

    for (unsigned i = 0; i < s->n; i++)
        bench_add(&r, XM_MAX(s->v[i], noise));
    return r;
}

/* What was found with one version of QEMU; per cent, but the rate. */
struct guest_loss {
    struct bench_stat ours, qemu, differ, rate;
};

static void measure_guest(struct guest_loss *l)
{
    struct lab_guest g = {.ip = LAB_IP, .memory = 512, .append = "xm.mem=128M:rate=100G"};
    struct peer_qemu q;

    lab_qemu_start(&q, &g, 'A', false);
    if (!lab_wait_guest(LAB_IP, 90) ||
        !peer_do(&q, "migrate-set-capabilities", "{s:[{s:s s:b}]}", "capabilities", "capability", "events",
                 "state", 1) ||
        !peer_do(&q, "migrate-set-parameters", "{s:I}", "max-bandwidth", (json_int_t)1 << 20))
        bench_die("the guest does not start");
    guest_rate(&q); /* QEMU translates code only once */
    double before = guest_rate(&q);
    for (unsigned i = 0; i < bench_runs() * TIMES / version_count(); i++) {
        for (unsigned k = 0; k < 2; k++) { /* ours, QEMU, QEMU, ours */
            bool mine = (i + k) % 2 == 0;
            double tracked = mine ? under_our_tracker(&q) : under_qemu(&q), after = guest_rate(&q);
            bench_add(mine ? &l->ours : &l->qemu, loss(tracked, (before + after) / 2));
            bench_add(&l->differ, XM_MAX(loss(before, after), loss(after, before)));
            bench_add(&l->rate, after);
            before = after;
        }
    }
    peer_end(&q);
}

static void rows(const struct guest_loss l[VERSIONS_MAX], const struct bench_stat *process)
{
    struct bench_stat floored[2][VERSIONS_MAX];
    const struct bench_stat *ours[VERSIONS_MAX], *qemu[VERSIONS_MAX];
    char measured[300] = "";
    size_t n = 0;

    for (unsigned v = 0; v < version_count(); v++) {
        double noise = XM_MAX(bench_median(&l[v].differ), 0.01);
        floored[0][v] = at_least(&l[v].ours, noise);
        floored[1][v] = at_least(&l[v].qemu, noise);
        ours[v] = &floored[0][v];
        qemu[v] = &floored[1][v];
        n += (size_t)snprintf(
            measured + n, sizeof measured - n,
            "QEMU %s: as measured %.1f and %.1f %%, two untracked windows differ by %.1f %%, "
            "%.0f pages a CPU second untracked; ",
            version_short(v), bench_median(&l[v].ours), bench_median(&l[v].qemu), noise,
            bench_median(&l[v].rate));
    }
    bench_note(
        "%sa native process (256 MiB, again and again) loses %.1f %% [%.1f..%.1f] in its first second under "
        "our tracker",
        measured, bench_median(process), bench_min(process), bench_max(process));
    version_result("% lost", ours, qemu, "QEMU's dirty logging of the same guest", 1.1, false);
}

int main(void)
{
    struct guest_loss l[VERSIONS_MAX] = {0};
    struct bench_stat process = {0};
    struct writer w;

    bench_begin("tracked");
    writer_start(&w, 256 << 20);
    writer_rate(&w); /* touches all */
    for (unsigned i = 0; i < bench_runs(); i++) {
        double free_rate = writer_rate(&w);
        bench_add(&process, loss(writer_tracked(&w), free_rate));
    }
    bench_kill(w.pid);
    lab_up();
    for (unsigned v = 0; v < version_count(); v++) {
        version_use(v);
        measure_guest(&l[v]);
    }
    rows(l, &process);
    return 0;
}
