/* SPDX-License-Identifier: MIT */
#include "tests/bench/lib_copy.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT 7999

static void fail(const char *what, const struct xm_error *e)
{
    fprintf(stderr, "copy: %s: %s\n", what, e->text);
    _exit(1);
}

static volatile bool links_over;
static struct xm_engine *sink_engine;

static void link_event(void *ctx, int link, enum xm_link_state st, const struct xm_error *e)
{
    (void)ctx, (void)st;
    if (link < 0) {
        if (!sink_engine && !strstr(e->text, "measured")) /* the sink's end is always so */
            fprintf(stderr, "copy: the links are lost: %s\n", e->text);
        links_over = true;
    }
}

/* ---- the sink ---- */

static struct xm_writer *writer[COPY_DISKS];

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

    if (!f)
        _exit(1);
    *f = (struct frame){.rx = rx, .req = {.hdr = rx->hdr, .payload = rx->payload, .done = frame_done}};
    xm_writer_submit(writer[rx->hdr.object % COPY_DISKS], &f->req);
}

static void sink_frame(void *ctx, struct xm_rx *rx)
{
    (void)ctx;
    rx->post.run = frame_run;
    xm_mailbox_post(&sink_engine->mailbox, &rx->post);
}

static int sink_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    (void)ctx;
    return h->object < COPY_DISKS && writer[h->object] ? 0 : xm_error_set(e, EPROTO, "no such disk");
}

struct accepting {
    struct xm_links *links;
    unsigned count;
};

static void *accept_all(void *arg)
{
    struct accepting *a = arg;
    struct xm_error e = {0};
    int l = xm_tcp_listen("0.0.0.0", PORT, &e);

    if (l < 0)
        fail("listen", &e);
    for (unsigned i = 0; i < a->count; i++)
        xm_links_add(a->links, accept(l, NULL, NULL), false, "in", &e);
    close(l);
    return NULL;
}

/* Only ends a turn in which nothing came. */
static void look_again(struct xm_timer *t)
{
    (void)t;
}

static void sink(const struct copy_job *j)
{
    struct xm_links_opts o = {.sink = {.check = sink_check, .frame = sink_frame}, .event = link_event};
    struct accepting a = {.count = j->links};
    struct xm_file f[COPY_DISKS];
    struct xm_error e = {0};
    pthread_t t;

    if (bench_enter('B'))
        _exit(1);
    sink_engine = xm_engine_open(XM_ENGINE_AUTO, 256, &e);
    if (!sink_engine)
        fail("engine", &e);
    for (unsigned i = 0; i < j->disks; i++) {
        unsigned flags = access(j->to[i], F_OK) ? XM_FILE_CREATE : 0;
        if (xm_file_open(&f[i], j->to[i], flags, flags ? j->size : 0, &e) < 0)
            fail(j->to[i], &e);
        writer[i] = xm_writer_new(sink_engine, &f[i], &e);
        if (!writer[i])
            fail("writer", &e);
    }
    a.links = xm_links_new(&o, &e);
    /* As in the shims: what only migrates is not in the way of guests. */
    xm_sched_background(0, true);
    if (a.links)
        xm_links_set_background(a.links, true);
    if (!a.links || pthread_create(&t, NULL, accept_all, &a))
        fail("links", &e);
    struct xm_timer tick = {.fire = look_again};
    while (!links_over) {
        xm_engine_timer_set(sink_engine, &tick, xm_engine_now(sink_engine) + 50 * XM_NS_PER_MS);
        xm_engine_turn(sink_engine);
    }
    _exit(0);
}

pid_t copy_start_sink(const struct copy_job *j)
{
    pid_t pid = bench_fork();

    if (pid == 0)
        sink(j);
    return pid;
}

/* ---- the source ---- */

struct xm_links *copy_connect(unsigned count)
{
    struct xm_links_opts o = {.event = link_event};
    struct xm_error e = {0};
    struct xm_links *links = xm_links_new(&o, &e);

    if (links)
        xm_links_set_background(links, true);
    for (unsigned i = 0; links && i < count; i++) {
        char local[32];
        char remote[32];
        int fd = -1;
        snprintf(local, sizeof local, "10.%u.0.1", 50 + i);
        snprintf(remote, sizeof remote, "10.%u.0.2", 50 + i);
        for (int tries = 0; fd < 0 && tries < 200; tries++) {
            fd = xm_tcp_connect(local, remote, PORT, XM_NS_PER_S, &e);
            if (fd < 0)
                poll(NULL, 0, 10);
        }
        if (fd < 0 || xm_links_add(links, fd, true, local, &e) < 0)
            fail("link", &e);
    }
    return links;
}

static unsigned quiesced;
static void on_quiesced(void *arg, int status, const char *why)
{
    (void)arg;
    if (status) {
        fprintf(stderr, "copy: %s\n", why);
        _exit(1);
    }
    quiesced++;
}

static bool all_in_step(struct xm_disk **d, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!xm_disk_in_step(d[i]))
            return false;
    }
    return true;
}

static void source(const struct copy_job *j, int out)
{
    struct xm_error e = {0};
    struct xm_file f[COPY_DISKS];
    struct xm_disk *d[COPY_DISKS];
    struct rusage usage;

    if (bench_enter('A'))
        _exit(1);
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 256, &e);
    if (!engine)
        fail("engine", &e);
    for (unsigned i = 0; i < j->disks; i++) {
        if (xm_file_open(&f[i], j->from[i], 0, 0, &e) < 0)
            fail(j->from[i], &e);
    }
    struct xm_links *links = copy_connect(j->links);
    if (!links)
        _exit(1);
    uint64_t t0 = xm_now();
    for (unsigned i = 0; i < j->disks; i++) {
        d[i] = xm_disk_new(engine, &f[i], NULL, &e);
        struct xm_replica *r = xm_replica_far(engine, xm_links_transport(links), (uint16_t)i, 1u << 20);
        if (!d[i] || !r || xm_disk_mirror_on(d[i], r, true, &e) < 0)
            fail("mirror", &e);
    }
    while (!all_in_step(d, j->disks) && !links_over)
        xm_engine_turn(engine);
    for (unsigned i = 0; i < j->disks; i++)
        xm_disk_quiesce(d[i], on_quiesced, NULL);
    while (quiesced < j->disks && !links_over)
        xm_engine_turn(engine);
    if (quiesced < j->disks)
        _exit(1);
    struct copy_result r = {.seconds = (double)(xm_now() - t0) / 1e9};
    getrusage(RUSAGE_SELF, &usage);
    r.memory = (uint64_t)usage.ru_maxrss << 10;
    if (write(out, &r, sizeof r) != sizeof r)
        _exit(1);
    xm_links_abort(links, "measured");
    _exit(0);
}

bool copy_run(const struct copy_job *j, struct copy_result *r)
{
    int p[2];

    if (pipe(p))
        return false;
    pid_t b = copy_start_sink(j);
    pid_t a = bench_fork();
    if (a == 0)
        source(j, p[1]);
    close(p[1]);
    bool good = read(p[0], r, sizeof *r) == sizeof *r;
    close(p[0]);
    int ended = bench_wait(a);
    if (good) {
        bench_wait(b);
    } else {
        int status = 0;
        bool over = waitpid(b, &status, WNOHANG) == b;
        fprintf(stderr, "copy: the source ended with %d, the destination %s %d\n", ended,
                over ? "before it, with" : "lives;", status);
        bench_kill(b);
    }
    return good;
}
