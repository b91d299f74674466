/* SPDX-License-Identifier: MIT */
#include "tests/bench/lib_lab.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAB    "tests/system/lab.sh"
#define CLIENT "build/guest/xm-client"

static char prefix[32], top[256], run_dir[64];

void lab_up(void)
{
    char a[64], b[64];

    snprintf(prefix, sizeof prefix, "xmb%d", getpid() % 100000);
    snprintf(a, sizeof a, "%s-hosta", prefix);
    snprintf(b, sizeof b, "%s-hostb", prefix);
    snprintf(run_dir, sizeof run_dir, "/run/%s-lab", prefix);
    if (!getcwd(top, sizeof top))
        bench_die("no working directory");
    setenv("XM_PREFIX", prefix, 1);
    setenv("XM_LAB_VM", "no", 1);
    setenv("XM_LAB_QUIET", "1", 1);
    /* Another QEMU than the host's own is a wrapper that makes namespaces (tests/debian13.sh). */
    const char *other = getenv("XM_BENCH_QEMU");
    if (other && other[0])
        setenv("XM_LAB_QEMU_RIGHTS", "yes", 1);
    setenv("XM_LAB_SYSTEM", "512M", 0); /* its own guest's; not started */
    bench_use_ns(a, b);
    bench_at_exit(LAB " down");
    if (bench_run(LAB " up"))
        bench_die("no lab: hosts, agents or guests cannot be made here");
}

const char *lab_path(char h, const char *file)
{
    static char path[4][512];
    static unsigned n;
    char *p = path[n++ % 4];

    snprintf(p, sizeof path[0], "%s/build/lab/%s/%c/ds1/%s", top, prefix, h - 'A' + 'a', file);
    return p;
}

int lab_xmigrate(char h, const char *fmt, ...)
{
    char words[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    return bench_run(LAB " xmigrate %c %s", h - 'A' + 'a', words);
}

static const char *move_path(void)
{
    static char path[200];

    snprintf(path, sizeof path, "%s/move.json", bench_dir(true));
    return path;
}

double lab_told(const char *what)
{
    char *line = NULL;
    double told = -1;
    size_t size = 0;
    FILE *f = fopen(move_path(), "r");

    while (f && getline(&line, &size, f) > 0) {
        json_t *o = json_loads(line, 0, NULL);
        if (json_object_get(o, "downtime_ms"))
            told = json_number_value(json_object_get(o, what));
        json_decref(o);
    }
    if (f)
        fclose(f);
    free(line);
    return told;
}

double lab_move(char h, const char *fmt, ...)
{
    char words[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    return lab_xmigrate(h, "--json %s >%s", words, move_path()) ? -1 : lab_told("downtime_ms");
}

void lab_shape(const char *link1, const char *link2)
{
    const char *rate[2] = {link1, link2};

    for (char h = 'A'; h <= 'B'; h++) {
        for (int l = 0; l < 2; l++) {
            if (rate[l][0])
                bench_run(
                    "ip netns exec %s tc qdisc replace dev link%d root tbf rate %s burst 256kb latency 50ms",
                    bench_ns(h), l + 1, rate[l]);
            else
                bench_run("ip netns exec %s tc qdisc del dev link%d root 2>/dev/null || true", bench_ns(h),
                          l + 1);
        }
    }
}

/* ---- guests ---- */

bool lab_wait_guest(const char *ip, unsigned seconds)
{
    bench_run("ip -n %s-client neigh flush all",
              prefix); /* the last guest with this address had another MAC */
    return !bench_run(LAB " run client " CLIENT " wait %s %u >/dev/null", ip, seconds);
}

json_t *lab_status(const char *ip)
{
    return json_loads(bench_ask(LAB " run client " CLIENT " cmd %s status", ip), 0, NULL);
}

bool lab_verify_guest(const char *ip)
{
    /* A guest whose memory is wrong may accept the call and never answer. */
    return !bench_run(
        "o=$(" LAB " run client timeout 120 " CLIENT " cmd %s verify) || { echo \"$o\"; exit 1; }", ip);
}

void lab_start(const struct lab_guest *g)
{
    char ini[128];

    snprintf(ini, sizeof ini, "%s/%s.ini", run_dir, g->name);
    FILE *f = fopen(ini, "w");
    if (!f)
        bench_die("%s cannot be written", ini);
    fprintf(f,
            "[vm]\nname = %s\nmemory = %uM\nvcpus = 2\naccel = tcg\nkernel = %s/build/guest/kernel/vmlinuz\n"
            "initrd = %s/build/guest/initramfs\nappend = console=ttyS0 quiet no_timer_check xm.seed=7 "
            "xm.ip=%s/24 %s\n",
            g->name, g->memory, top, top, g->ip, g->append);
    for (unsigned i = 0; i < g->disks; i++)
        fprintf(f, "\n[disk d%u]\ndatastore = ds1\nfile = %s\nqueues = %u\n", i, g->file[i],
                g->queues ? g->queues : 2);
    for (unsigned i = 0; i < XM_MAX(g->nics, 1u); i++)
        fprintf(f, "\n[nic lan%u]\nbridge = br0\n", i);
    fclose(f);
    bool started = !lab_xmigrate('A', "start %s >/dev/null", ini),
         came = started && lab_wait_guest(g->ip, 90);
    if (started && !came) { /* QEMU under TCG has such a day, without anything of ours (docs/facts.md) */
        bench_note("the guest %s does not come up; it is started once more", g->name);
        lab_xmigrate('A', "stop --force %s >/dev/null", g->name);
        came = !lab_xmigrate('A', "start %s >/dev/null", g->name) && lab_wait_guest(g->ip, 90);
    }
    if (!came)
        bench_die("the guest %s does not start", g->name);
}

void lab_finish(const struct lab_guest *g, bool verify)
{
    if (verify && !lab_verify_guest(g->ip))
        bench_die("after our migration the guest finds its data wrong");
    if (lab_xmigrate('B', "stop --force %s >/dev/null", g->name))
        bench_die("the guest does not end");
    bench_run("rm -f %s/*.img %s/%s-*", lab_path('B', ""), lab_path('B', ""),
              g->name); /* xmigrate makes VM-DISK.raw */
}

void lab_pulse_start(struct lab_pulse *p, const char *ip)
{
    static unsigned n;

    snprintf(p->path, sizeof p->path, "%s/pulse%u", bench_dir(true), n++);
    p->pid = bench_spawn(LAB " run client " CLIENT " pulse %s 0 >%s", ip, p->path);
    poll(NULL, 0, 300); /* so that some beats come before what is watched */
}

double lab_pulse_end(struct lab_pulse *p)
{
    double gap = -1;

    poll(NULL, 0, 1000);
    kill(p->pid, SIGTERM);
    bench_wait(p->pid);
    json_t *o = json_load_file(p->path, 0, NULL);
    if (json_is_true(json_object_get(o, "ok")))
        gap = json_number_value(json_object_get(o, "longest_gap_ms"));
    json_decref(o);
    unlink(p->path);
    return gap;
}

/* ---- the same guest in a plain QEMU ---- */

/* QEMU 7.2 reads the dirty bitmap of a RAM block that has whole words of it (64 pages) word by word, and
 * forgets to reset TCG's TLBs then: what the guest writes through a TLB entry that is still taken for dirty
 * is never sent, and it panics at the destination (always, also with one vCPU, thread=single, cpu qemu64, or
 * without multifd). Other blocks it reads page by page, rightly: so the guest has half a word less. Mended
 * in QEMU 9.0, which is the first to know zero-page-detection; that, not its number, is asked. */
#define BITMAP_WORD_KIB (64 * 4)

static bool bitmap_words_are_read_rightly(void)
{
    return version_knows("migrate-set-parameters", "zero-page-detection");
}

static unsigned long long peer_memory_kib(const struct lab_guest *g)
{
    return g->memory * 1024ull - (bitmap_words_are_read_rightly() ? 0 : BITMAP_WORD_KIB / 2);
}

static const char *qmp_path(char h)
{
    static char path[2][200];

    snprintf(path[h - 'A'], sizeof path[0], "%s/qmp%c", bench_dir(true), h);
    return path[h - 'A'];
}

void lab_qemu_start(struct peer_qemu *q, const struct lab_guest *g, char h, bool incoming)
{
    char disks[2000] = "";
    size_t n = 0;

    bench_run("rm -f %s; ip netns exec %s sh -c 'ip link show xmq >/dev/null 2>&1 || "
              "{ ip tuntap add xmq mode tap vnet_hdr && ip link set xmq master br0 up; }'",
              qmp_path(h), bench_ns(h));
    for (unsigned i = 0; i < g->disks; i++)
        n += (size_t)snprintf(
            disks + n, sizeof disks - n,
            "-blockdev "
            "driver=file,node-name=d%u,filename=%s,cache.direct=on,aio=io_uring,discard=unmap "
            "-device virtio-blk-pci,drive=d%u,num-queues=2,share-rw=on ",
            i, lab_path(h, g->file[i]), i);
    *q = (struct peer_qemu){0};
    q->pid =
        bench_spawn("ip netns exec %s qemu-system-x86_64 -nodefaults -no-user-config -display none -vga none "
                    "-machine q35,memory-backend=mem0 -accel tcg -cpu max -m size=%lluK "
                    "-object memory-backend-memfd,id=mem0,size=%lluK,share=on -smp 2 "
                    "-qmp unix:%s,server=on,wait=off -serial null -kernel build/guest/kernel/vmlinuz "
                    "-initrd build/guest/initramfs -append 'console=ttyS0 quiet no_timer_check xm.seed=7 "
                    "xm.ip=%s/24 %s' %s "
                    "-netdev tap,id=n,ifname=xmq,script=no,downscript=no,vhost=off "
                    "-device virtio-net-pci,netdev=n,mac=52:54:00:78:6d:71,romfile= %s",
                    bench_ns(h), peer_memory_kib(g), peer_memory_kib(g), qmp_path(h), g->ip, g->append, disks,
                    incoming ? "-incoming defer" : "");
    if (!peer_qmp(q, qmp_path(h)))
        bench_die("QEMU does not start");
}

/* A new QEMU's bitmap is all dirty, and reading it page by page (see above) takes a second for each GiB, in
 * which the guest stands. Its migration proper does not cost that; so it is had before. */
bool lab_qemu_clean_bitmap(struct peer_qemu *q)
{
    if (bitmap_words_are_read_rightly())
        return true;
    q->migration[0] = 0;
    return peer_do(q, "migrate-set-capabilities", "{s:[{s:s s:b}]}", "capabilities", "capability", "events",
                   "state", 1) &&
           peer_do(q, "migrate", "{s:s}", "uri", "exec:cat >/dev/null") &&
           peer_until_migration(q, "active", 20) && peer_do(q, "migrate_cancel", NULL) &&
           peer_until_migration(q, "cancelled", 20);
}

static bool set_up(struct peer_qemu *q)
{
    return peer_migration_settings(q, 2) &&
           peer_do(q, "migrate-set-capabilities", "{s:[{s:s s:b}]}", "capabilities", "capability",
                   "pause-before-switchover", "state", 1);
}

/* One disk, as node d0. */
static bool mirror_disk(struct peer_qemu *from, struct peer_qemu *to)
{
    return peer_do(to, "nbd-server-start", "{s:{s:s s:{s:s s:s}}}", "addr", "type", "inet", "data", "host",
                   "10.1.0.2", "port", "10809") &&
           peer_do(to, "block-export-add", "{s:s s:s s:s s:s s:b}", "type", "nbd", "id", "e", "node-name",
                   "d0", "name", "d0", "writable", 1) &&
           peer_do(from, "blockdev-add", "{s:s s:s s:{s:s s:s s:s} s:s}", "driver", "nbd", "node-name", "dst",
                   "server", "type", "inet", "host", "10.1.0.2", "port", "10809", "export", "d0") &&
           peer_mirror(from, "d0", "background") && peer_until(from, &from->job_ready, 120) &&
           !from->error[0];
}

static double seconds_since(uint64_t began)
{
    return (double)(xm_now() - began) / 1e9;
}

bool lab_qemu_migrate(struct peer_qemu *from, struct peer_qemu *to, const struct lab_guest *g)
{
    uint64_t began = xm_now();
    double mirrored;
    struct stat st;

    if (g->disks) {
        if (stat(lab_path('A', g->file[0]), &st) ||
            bench_run("rm -f %s && truncate -s %lld %s", lab_path('B', g->file[0]), (long long)st.st_size,
                      lab_path('B', g->file[0])))
            return false;
    }
    lab_qemu_start(to, g, 'B', true);
    if (!set_up(from) || !set_up(to) ||
        !peer_do(to, "migrate-incoming", "{s:s}", "uri", "tcp:10.1.0.2:4444") ||
        (g->disks && !mirror_disk(from, to)) || (mirrored = seconds_since(began)) < 0 ||
        !peer_do(from, "migrate", "{s:s}", "uri", "tcp:10.1.0.2:4444") ||
        !peer_until_migration(from, "pre-switchover", 120))
        return false;
    /* The NBD connection ends before the disk is the guest's: with an iothread QEMU 7.2 asserts when it ends
     * later. The disks have no iothread for that. */
    if (g->disks && (!peer_do(from, "block-job-cancel", "{s:s}", "device", "m") ||
                     !peer_until(from, &from->job_over, 30) ||
                     !peer_do(from, "blockdev-del", "{s:s}", "node-name", "dst") ||
                     !peer_do(to, "nbd-server-stop", NULL)))
        return false;
    if (!peer_do(from, "migrate-continue", "{s:s}", "state", "pre-switchover") ||
        !peer_until_migration(from, "completed", 30))
        return false;
    double done = seconds_since(began);
    printf("  (QEMU: the disk was mirrored after %.2f s, all was over after %.2f s)\n", mirrored, done);
    if (peer_until(to, &to->resumed, 10))
        return true;
    json_t *status = peer_get(to, "query-status"), *migration = peer_get(to, "query-migrate");
    fprintf(stderr, "bench: QEMU's guest does not run at the destination: %s, migration %s\n",
            xm_json_str(status, "status", "?"), xm_json_str(migration, "status", "?"));
    json_decref(status);
    json_decref(migration);
    return false;
}
