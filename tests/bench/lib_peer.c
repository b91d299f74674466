/* SPDX-License-Identifier: MIT */
#include "tests/bench/lib_peer.h"
#include "tests/bench/lib_version.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

bool peer_wait_port(char host, uint16_t port)
{
    for (int i = 0; i < 1000; i++) {
        if (bench_ask("ip netns exec %s ss -Hltn sport = :%u", bench_ns(host), port)[0])
            return true;
        poll(NULL, 0, 20);
    }
    fprintf(stderr, "bench: nobody listens on port %u\n", port);
    return false;
}

double peer_iperf(const char *address, unsigned streams, unsigned seconds, const char *congestion)
{
    char cmd[300];
    double bits = 0;
    pid_t server =
        bench_spawn("ip netns exec %s iperf3 -s -1 -B %s -p 5299 >/dev/null 2>&1", bench_ns('B'), address);

    if (peer_wait_port('B', 5299)) {
        snprintf(cmd, sizeof cmd, "ip netns exec %s iperf3 -J -c %s -p 5299 -P %u -t %u -l 256K %s %s",
                 bench_ns('A'), address, streams, seconds, congestion ? "-C" : "",
                 congestion ? congestion : "");
        FILE *f = popen(cmd, "r");
        json_t *all = f ? json_loadf(f, 0, NULL) : NULL;
        json_unpack(all, "{s:{s:{s:F}}}", "end", "sum_received", "bits_per_second", &bits);
        json_decref(all);
        if (f)
            pclose(f);
    }
    bench_kill(server);
    return bits / 8;
}

/* By the hosts' routes: a namespace may not choose every algorithm for itself
 * (tcp_allowed_congestion_control). */
void peer_congestion(const char *algorithm)
{
    for (char h = 'A'; h <= 'B'; h++) {
        if (bench_run("ip -n %s -o route show proto kernel | while read -r r; do ip -n %s route change "
                      "${r%%%%congctl*} %s%s || "
                      "exit 1; done",
                      bench_ns(h), bench_ns(h), algorithm ? "congctl " : "", algorithm ? algorithm : ""))
            bench_die("the hosts cannot be told to use %s",
                      algorithm ? algorithm : "their own congestion control");
    }
}

/* The jobs' bandwidths, in bytes a second, in the order of the words; 0: not measured. */
static void run_fio(const char *words, unsigned jobs, double *bytes)
{
    char cmd[1200];

    snprintf(cmd, sizeof cmd, "fio --ioengine=io_uring --direct=1 --output-format=json %s 2>/dev/null",
             words);
    FILE *f = popen(cmd, "r");
    json_t *all = f ? json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    for (unsigned i = 0; i < jobs; i++) {
        json_t *job = json_array_get(json_object_get(all, "jobs"), i);
        double r = json_number_value(json_object_get(json_object_get(job, "read"), "bw"));
        double w = json_number_value(json_object_get(json_object_get(job, "write"), "bw"));
        bytes[i] = (r + w) * 1024;
    }
    json_decref(all);
    if (f)
        pclose(f);
}

double peer_fio(const char *path, bool write, uint64_t size)
{
    char words[400];
    double bytes;

    snprintf(words, sizeof words,
             "--name=limit --filename=%s --rw=%s --bs=256k --iodepth=16 --size=%llu --end_fsync=%d", path,
             write ? "write" : "read", (unsigned long long)size, write);
    run_fio(words, 1, &bytes);
    return bytes;
}

double peer_fio_both(const char *from, const char *to, uint64_t size)
{
    char words[800];
    double bytes[2];

    snprintf(words, sizeof words,
             "--bs=256k --iodepth=16 --size=%llu --name=r --filename=%s --rw=read "
             "--name=w --filename=%s --rw=write --end_fsync=1",
             (unsigned long long)size, from, to);
    run_fio(words, 2, bytes);
    return XM_MIN(bytes[0], bytes[1]);
}

double peer_fio_iops(const char *path, bool write, unsigned depth, uint64_t size, unsigned ms)
{
    char words[400];
    double bytes;

    snprintf(
        words, sizeof words,
        "--name=limit --filename=%s --rw=%s --bs=4k --iodepth=%u --size=%llu --time_based --runtime=%ums",
        path, write ? "randwrite" : "randread", depth, (unsigned long long)size, ms);
    run_fio(words, 1, &bytes);
    return bytes / 4096;
}

/* ---- QEMU ---- */

static void on_event(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    struct peer_qemu *q = ctx;

    (void)when;
    if (!strcmp(name, "BLOCK_JOB_READY"))
        q->job_ready = true;
    else if (!strcmp(name, "BLOCK_JOB_COMPLETED") || !strcmp(name, "BLOCK_JOB_CANCELLED"))
        q->job_over = true;
    else if (!strcmp(name, "STOP"))
        q->stopped = true;
    else if (!strcmp(name, "RESUME"))
        q->resumed = true;
    else if (!strcmp(name, "MIGRATION"))
        snprintf(q->migration, sizeof q->migration, "%s", xm_json_str(data, "status", ""));
    if (!strcmp(name, "BLOCK_JOB_ERROR") || (q->job_over && data && json_object_get(data, "error"))) {
        snprintf(q->error, sizeof q->error, "%s", xm_json_str(data, "error", "a block job failed"));
        fprintf(stderr, "bench: QEMU: %s\n", q->error);
    }
}

static bool lives(void *ctx)
{
    struct peer_qemu *q = ctx;
    siginfo_t i = {0};
    return waitid(P_PID, (id_t)q->pid, &i, WEXITED | WNOHANG | WNOWAIT) == 0 && i.si_pid == 0;
}

bool peer_qmp(struct peer_qemu *q, const char *socket)
{
    struct xm_error e = {0};

    q->qmp = (struct qmp){.conn = {.fd = -1}};
    pthread_mutex_init(&q->qmp.lock, NULL);
    q->open = qmp_open(&q->qmp, socket, xm_now() + 20 * XM_NS_PER_S, lives, q, &e) == 0;
    if (!q->open)
        fprintf(stderr, "bench: QEMU: %s\n", e.text);
    q->qmp.event = on_event;
    q->qmp.ctx = q;
    return q->open;
}

double peer_cpu(const struct peer_qemu *q)
{
    struct ucred who = {0};
    socklen_t len = sizeof who;

    return getsockopt(q->qmp.conn.fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 ? 0 : bench_cpu_of(who.pid);
}

static bool peer_do_args(struct peer_qemu *q, const char *command, json_t *args)
{
    struct xm_error e = {0};

    if (qmp_do(&q->qmp, command, args, 30 * XM_NS_PER_S, &e) == 0)
        return true;
    fprintf(stderr, "bench: QEMU: %s: %s\n", command, e.text);
    return false;
}

bool peer_do(struct peer_qemu *q, const char *command, const char *format, ...)
{
    json_t *args = NULL;
    va_list ap;

    va_start(ap, format);
    if (format)
        args = json_vpack_ex(NULL, 0, format, ap);
    va_end(ap);
    if (format && !args) {
        fprintf(stderr, "bench: %s: wrong arguments\n", command);
        return false;
    }
    return peer_do_args(q, command, args);
}

json_t *peer_get(struct peer_qemu *q, const char *command)
{
    struct xm_error e = {0};
    return qmp_call(&q->qmp, command, NULL, 30 * XM_NS_PER_S, &e);
}

bool peer_until(struct peer_qemu *q, const bool *flag, unsigned seconds)
{
    uint64_t until = xm_now() + seconds * XM_NS_PER_S;
    struct xm_error e = {0};

    while (!*flag && !q->error[0] && xm_now() < until && qmp_pump(&q->qmp, 100, &e) == 0) {
    }
    return *flag;
}

bool peer_until_migration(struct peer_qemu *q, const char *state, unsigned seconds)
{
    uint64_t until = xm_now() + seconds * XM_NS_PER_S;
    struct xm_error e = {0};

    while (strcmp(q->migration, state) && strcmp(q->migration, "failed") && xm_now() < until &&
           qmp_pump(&q->qmp, 100, &e) == 0) {
    }
    if (!strcmp(q->migration, state))
        return true;
    fprintf(stderr, "bench: QEMU's migration is '%s', not '%s'\n", q->migration, state);
    return false;
}

void peer_end(struct peer_qemu *q)
{
    if (q->open)
        qmp_close(&q->qmp);
    bench_kill(q->pid);
    *q = (struct peer_qemu){0};
}

/* Best of what was tried on this job: 1 MiB granularity, 16 MiB of buffer. The destinations read as zeros: a
 * QEMU that can be told so need not write them. */
bool peer_mirror(struct peer_qemu *q, const char *node, const char *copy_mode)
{
    json_t *args = json_pack("{s:s s:s s:s s:s s:s s:I s:I}", "job-id", "m", "device", node, "target", "dst",
                             "sync", "full", "copy-mode", copy_mode, "buf-size", (json_int_t)(16 << 20),
                             "granularity", (json_int_t)(1 << 20));

    if (version_knows("blockdev-mirror", "target-is-zero"))
        json_object_set_new(args, "target-is-zero", json_true());
    q->job_ready = q->job_over = false;
    return peer_do_args(q, "blockdev-mirror", args);
}

/* Zero pages are looked for by the channels' threads where QEMU can (9.0; its default then). */
bool peer_migration_settings(struct peer_qemu *q, unsigned channels)
{
    json_t *args =
        json_pack("{s:i s:I s:I}", "multifd-channels", (int)channels, "max-bandwidth", (json_int_t)100 << 30,
                  "downtime-limit", (json_int_t)100); /* ours: --downtime 100 ms */

    if (version_knows("migrate-set-parameters", "zero-page-detection"))
        json_object_set_new(args, "zero-page-detection", json_string("multifd"));
    return peer_do(q, "migrate-set-capabilities", "{s:[{s:s s:b},{s:s s:b}]}", "capabilities", "capability",
                   "multifd", "state", 1, "capability", "events", "state", 1) &&
           peer_do_args(q, "migrate-set-parameters", args);
}
