/* Bulk copy of a disk from one host to another: ours beside QEMU's blockdev-mirror and nbdcopy, over the same
 * veth pair and the same disks, sides alternating in one run. usage: bench-disk [SIZE [RUNS]]
 *
 * disk-soft: loop devices over files in memory, so that software is the limit. Every run is verified (cmp of
 * both devices). */
#include "host/qmp.h"
#include "mirror/mirror.h"
#include "tests/bench/bench.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT  7999
#define LINKS 2

static const char *src_dev, *dst_dev;
static uint64_t disk_size = 2ull << 30;

static void die(const char *what, const struct xm_error *e)
{
    fprintf(stderr, "bench-disk: %s: %s\n", what, e->text);
    exit(1);
}

/* ---- ours: the sink, a process in host B ---- */

static struct xm_writer *writer;
static struct xm_engine *sink_engine;
static volatile bool links_over;

struct frame {
    struct xm_wreq req;
    struct xm_rx *rx;
};

static void frame_done(struct xm_wreq *req, int status, const void *reply, uint32_t len)
{
    struct frame *f = xm_container_of(req, struct frame, req);
    xm_rx_done(f->rx, status, reply, len);
    free(f);
}

static void frame_run(struct xm_post *p)
{
    struct xm_rx *rx = xm_container_of(p, struct xm_rx, post);
    struct frame *f = calloc(1, sizeof *f);
    *f = (struct frame){.rx = rx, .req = {.hdr = rx->hdr, .payload = rx->payload, .done = frame_done}};
    xm_writer_submit(writer, &f->req);
}

static void sink_frame(void *ctx, struct xm_rx *rx)
{
    (void)ctx;
    rx->post.run = frame_run;
    xm_mailbox_post(&sink_engine->mailbox, &rx->post);
}

static int sink_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    (void)ctx, (void)h, (void)e;
    return 0;
}

static void link_event(void *ctx, int link, enum xm_link_state st, const struct xm_error *e)
{
    (void)ctx, (void)st;
    if (link < 0) {
        if (!strstr(e->text, "measured"))
            fprintf(stderr, "bench-disk: the links are lost: %s\n", e->text);
        links_over = true;
    }
}

static void *sink_accept(void *arg)
{
    struct xm_links *links = arg;
    struct xm_error e = {0};
    int l = xm_tcp_listen("0.0.0.0", PORT, &e);

    if (l < 0)
        die("listen", &e);
    for (int i = 0; i < LINKS; i++)
        xm_links_add(links, accept(l, NULL, NULL), false, "in", &e);
    close(l);
    return NULL;
}

static void sink(void)
{
    struct xm_links_opts o = {.sink = {sink_check, sink_frame, NULL}, .event = link_event};
    struct xm_error e = {0};
    struct xm_file f;
    pthread_t t;

    if (bench_enter('B') || xm_file_open(&f, dst_dev, 0, 0, &e) < 0)
        die("sink", &e);
    sink_engine = xm_engine_open(XM_ENGINE_AUTO, 256, &e);
    writer = xm_writer_new(sink_engine, &f, &e);
    struct xm_links *links = xm_links_new(&o, &e);
    pthread_create(&t, NULL, sink_accept, links);
    struct xm_timer tick = {0};
    while (!links_over) {
        xm_engine_timer_set(sink_engine, &tick, xm_engine_now(sink_engine) + 50 * XM_NS_PER_MS);
        xm_engine_turn(sink_engine);
    }
    _exit(0);
}

/* ---- ours: the source, a process in host A; prints the seconds it took ---- */

static bool settled;
static void on_settled(void *arg, int status, const char *why)
{
    (void)arg;
    if (status) {
        fprintf(stderr, "bench-disk: %s\n", why);
        exit(1);
    }
    settled = true;
}

static void source(int out)
{
    struct xm_links_opts o = {.event = link_event};
    struct xm_error e = {0};
    struct xm_file f;

    if (bench_enter('A') || xm_file_open(&f, src_dev, 0, 0, &e) < 0)
        die("source", &e);
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 256, &e);
    struct xm_links *links = xm_links_new(&o, &e);
    for (int i = 0; i < LINKS; i++) {
        char local[32];
        char remote[32];
        int fd = -1;
        snprintf(local, sizeof local, "10.%d.0.1", 50 + i);
        snprintf(remote, sizeof remote, "10.%d.0.2", 50 + i);
        for (int tries = 0; fd < 0 && tries < 200; tries++) {
            fd = xm_tcp_connect(local, remote, PORT, XM_NS_PER_S, &e);
            if (fd < 0)
                poll(NULL, 0, 10);
        }
        if (fd < 0 || xm_links_add(links, fd, true, local, &e) < 0)
            die("link", &e);
    }
    uint64_t t0 = xm_now();
    struct xm_disk *d = xm_disk_new(engine, &f, NULL, &e);
    struct xm_replica *r = xm_replica_far(engine, xm_links_transport(links), 0, 1u << 20);
    if (!d || !r || xm_disk_mirror_on(d, r, true, &e) < 0)
        die("mirror", &e);
    while (!xm_disk_in_step(d) && !links_over)
        xm_engine_turn(engine);
    xm_disk_settle(d, on_settled, NULL);
    while (!settled)
        xm_engine_turn(engine);
    double s = (double)(xm_now() - t0) / 1e9;
    if (write(out, &s, sizeof s) < 0)
        exit(1);
    xm_links_abort(links, "measured");
    _exit(0);
}

static double run_ours(void)
{
    int p[2];
    double s = 0;

    if (pipe(p))
        return 0;
    fflush(NULL);
    pid_t b = fork();
    if (!b)
        sink();
    pid_t a = fork();
    if (!a)
        source(p[1]);
    close(p[1]);
    if (read(p[0], &s, sizeof s) != sizeof s)
        s = 0;
    close(p[0]);
    waitpid(a, NULL, 0);
    waitpid(b, NULL, 0);
    return s;
}

/* ---- QEMU's blockdev-mirror to an NBD export ---- */

static volatile bool job_ready;
static void on_event(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    (void)ctx, (void)when;
    if (!strcmp(name, "BLOCK_JOB_READY"))
        job_ready = true;
    if (!strcmp(name, "BLOCK_JOB_ERROR"))
        fprintf(stderr, "bench-disk: QEMU: block job error on %s\n", xm_json_str(data, "device", "?"));
}

static bool always(void *ctx)
{
    (void)ctx;
    return true;
}

static void wait_port(char host, uint16_t port)
{
    char cmd[200];

    snprintf(cmd, sizeof cmd, "ip netns exec %s ss -Hltn sport = :%u | grep -q .", bench_ns(host), port);
    for (int i = 0; i < 500 && system(cmd) != 0; i++)
        poll(NULL, 0, 20);
}

static double run_qemu(void)
{
    char sock[200];
    struct qmp q = {.conn = {.fd = -1}};
    struct xm_error e = {0};

    snprintf(sock, sizeof sock, "%s/qmp.sock", bench_dir(true));
    unlink(sock);
    pid_t b =
        bench_spawn("ip netns exec %s qemu-storage-daemon "
                    "--blockdev driver=host_device,node-name=d,filename=%s,cache.direct=on,aio=io_uring "
                    "--nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port=10809 "
                    "--export type=nbd,id=e,node-name=d,name=d,writable=on",
                    bench_ns('B'), dst_dev);
    wait_port('B', 10809);
    pid_t a = bench_spawn(
        "ip netns exec %s qemu-system-x86_64 -M none -accel tcg -S -nodefaults -display none -qmp "
        "unix:%s,server=on,wait=off "
        "-object iothread,id=io0 "
        "-blockdev driver=host_device,node-name=src,filename=%s,cache.direct=on,aio=io_uring "
        "-blockdev "
        "driver=nbd,node-name=dst,server.type=inet,server.host=10.50.0.2,server.port=10809,export=d",
        bench_ns('A'), sock, src_dev);
    pthread_mutex_init(&q.lock, NULL);
    if (qmp_open(&q, sock, xm_now() + 20 * XM_NS_PER_S, always, NULL, &e) < 0)
        die("QEMU", &e);
    q.event = on_event;
    job_ready = false;
    uint64_t t0 = xm_now();
    if (qmp_do(&q, "blockdev-mirror",
               json_pack("{s:s s:s s:s s:s s:s s:I s:I}", "job-id", "m", "device", "src", "target", "dst",
                         "sync", "full", "copy-mode", "background", "buf-size", (json_int_t)(16 << 20),
                         "granularity", (json_int_t)(1 << 20)),
               10 * XM_NS_PER_S, &e) < 0)
        die("QEMU", &e);
    while (!job_ready && qmp_pump(&q, 1000, &e) == 0) {
    }
    double s = (double)(xm_now() - t0) / 1e9;
    qmp_close(&q);
    bench_kill(a);
    bench_kill(b);
    return job_ready ? s : 0;
}

/* ---- nbdcopy to nbdkit ---- */

static double run_nbdcopy(void)
{
    pid_t b = bench_spawn("ip netns exec %s nbdkit -f -p 10810 file %s", bench_ns('B'), dst_dev);
    wait_port('B', 10810);
    uint64_t t0 = xm_now();
    int r = bench_run("ip netns exec %s nbdcopy --flush %s nbd://10.50.0.2:10810", bench_ns('A'), src_dev);
    double s = (double)(xm_now() - t0) / 1e9;
    bench_kill(b);
    return r ? 0 : s;
}

/* ---- the run ---- */

static bool verify(const char *who)
{
    if (bench_run("cmp %s %s", src_dev, dst_dev) == 0)
        return true;
    fprintf(stderr, "bench-disk: after %s the disks differ\n", who);
    return false;
}

static int measure(struct bench_stat *st, const char *who, double (*run)(void))
{
    /* The same start for each: the destination holds other bytes, nothing of either disk is in the loop's
     * page cache as dirty. */
    bench_run("blkdiscard -z %s && sync", dst_dev);
    double s = run();
    if (s <= 0 || !verify(who))
        return -1;
    bench_add(st, (double)disk_size / s / 1e6);
    printf("  %-8s %8.1f MB/s\n", who, (double)disk_size / s / 1e6);
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    struct bench_stat ours = {0};
    struct bench_stat qemu = {0};
    struct bench_stat nbd = {0};
    struct xm_error e = {0};
    unsigned runs = argc > 2 ? (unsigned)atoi(argv[2]) : 5;

    if (argc > 1 && xm_parse_size(argv[1], &disk_size, &e) < 0)
        die("size", &e);
    if (bench_hosts(LINKS))
        return 1;
    src_dev = bench_loop("src", disk_size);
    dst_dev = bench_loop("dst", disk_size);
    if (!src_dev || !dst_dev || bench_fill_random(src_dev, disk_size)) {
        bench_unable("disk-soft", "no loop devices, or no memory for them");
        return 1;
    }
    for (unsigned i = 0; i < runs; i++) {
        if (measure(&ours, "xmigrate", run_ours) || measure(&qemu, "QEMU", run_qemu) ||
            measure(&nbd, "nbdcopy", run_nbdcopy))
            return 1;
    }
    bench_result("disk-soft", "MB/s", &ours, &qemu, "QEMU blockdev-mirror", 2.5, true);
    bench_result("disk-soft-nbdcopy", "MB/s", &ours, &nbd, "nbdcopy", 1.3, true);
    return 0;
}
