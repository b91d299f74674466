/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_netpair.h"
#include "tests/progress.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

static int sink_check(void *ctx, const struct xm_frame_hdr *h, struct xm_error *e)
{
    struct end *end = ctx;
    return h->object == end->refuse_object ? xm_error_set(e, ENODEV, "there is no disk %u", h->object) : 0;
}

static void answer(struct xm_rx *rx)
{
    if (rx->hdr.type == XM_FRAME_CALL)
        xm_rx_done(rx, 0, rx->payload, rx->hdr.length);
    else
        xm_rx_done(rx, 0, NULL, 0);
}

static void sink_frame(void *ctx, struct xm_rx *rx)
{
    struct end *end = ctx;

    pthread_mutex_lock(&end->lock);
    if (end->frames < sizeof end->order)
        end->order[end->frames] = (uint8_t)rx->hdr.object;
    end->frames++;
    if (rx->hdr.seq < end->seen_max && end->seen[rx->hdr.seq]++)
        end->duplicates++;
    bool hold = end->hold;
    if (hold)
        STAILQ_INSERT_TAIL(&end->held, rx, link);
    pthread_cond_broadcast(&end->changed);
    pthread_mutex_unlock(&end->lock);
    if (!hold)
        answer(rx);
}

static void on_event(void *ctx, int link, enum xm_link_state state, const struct xm_error *e)
{
    struct end *end = ctx;

    pthread_mutex_lock(&end->lock);
    if (link < 0) {
        end->lost_events++;
        end->lost_why = *e;
    } else if (state == XM_LINK_DOWN) {
        end->down_events++;
    }
    pthread_cond_broadcast(&end->changed);
    pthread_mutex_unlock(&end->lock);
}

void end_init(struct end *end, uint64_t seen_max)
{
    memset(end, 0, sizeof *end);
    pthread_mutex_init(&end->lock, NULL);
    pthread_cond_init(&end->changed, NULL);
    STAILQ_INIT(&end->held);
    end->seen_max = seen_max;
    end->seen = calloc(seen_max + 1, 1);
    end->refuse_object = -1;
    end->opts.sink = (struct xm_sink){.check = sink_check, .frame = sink_frame, .ctx = end};
    end->opts.event = on_event;
    end->opts.event_ctx = end;
}

void end_open(struct end *end)
{
    struct xm_error e;

    end->links = xm_links_new(&end->opts, &e);
    assert_non_null(end->links);
}

void end_changed(struct end *end)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&end->changed, &end->lock, &until);
}

void end_release(struct end *end)
{
    struct xm_rx *rx;

    pthread_mutex_lock(&end->lock);
    end->hold = false;
    while ((rx = STAILQ_FIRST(&end->held))) {
        STAILQ_REMOVE_HEAD(&end->held, link);
        answer(rx);
    }
    pthread_mutex_unlock(&end->lock);
}

void end_free(struct end *end)
{
    end_release(end);
    xm_links_free(end->links);
    free(end->seen);
    pthread_mutex_destroy(&end->lock);
    pthread_cond_destroy(&end->changed);
}

void end_reopen(struct end *end)
{
    xm_links_free(end->links);
    end_open(end);
}

void ends_open(struct end *a, struct end *b)
{
    end_init(a, 0);
    end_init(b, 100000);
    end_open(a);
    end_open(b);
}

void ends_free(struct end *a, struct end *b)
{
    end_free(a);
    end_free(b);
}

void net_socketpair(int fd[2])
{
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd));
}

void net_tcp_pair(int fd[2])
{
    struct xm_error e = {0};
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    int listener = xm_tcp_listen("127.0.0.1", 0, &e);

    assert_true(listener >= 0);
    assert_int_equal(0, getsockname(listener, (struct sockaddr *)&a, &len));
    fd[0] = xm_tcp_connect("127.0.0.1", "127.0.0.1", ntohs(a.sin_port), LIMIT_HANG_NS, &e);
    assert_true(fd[0] >= 0);
    fd[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd[1] >= 0);
    close(listener);
}

struct join {
    struct xm_links *links;
    int fd, result;
    struct xm_error *e;
};

static void *join_server(void *arg)
{
    struct join *j = arg;
    j->result = xm_links_add(j->links, j->fd, false, "server", j->e);
    return NULL;
}

int end_join(struct end *a, struct end *b, const int fd[2], int *b_result, struct xm_error *ea,
             struct xm_error *eb)
{
    struct join j = {.links = b->links, .fd = fd[1], .e = eb};
    pthread_t t;

    assert_int_equal(0, pthread_create(&t, NULL, join_server, &j));
    int result = xm_links_add(a->links, fd[0], true, "client", ea);
    pthread_join(t, NULL);
    if (b_result)
        *b_result = j.result;
    return result;
}

void end_join_tcp(struct end *a, struct end *b, int n, int *fds)
{
    for (int i = 0; i < n; i++) {
        int fd[2], b_result;
        net_tcp_pair(fd);
        assert_true(end_join(a, b, fd, &b_result, NULL, NULL) >= 0);
        assert_true(b_result >= 0);
        if (fds)
            fds[i] = fd[0];
    }
}

struct load_msg {
    struct xm_msg msg;
    struct load *load;
    bool flying;
};

static void load_next(struct load_msg *lm)
{
    struct load *l = lm->load;
    uint64_t n = l->sent++;
    uint64_t seq = l->first + n;

    lm->flying = true;
    lm->msg =
        (struct xm_msg){.post.run = lm->msg.post.run,
                        .home = &l->box,
                        .type = l->length ? XM_FRAME_DISK_DATA : XM_FRAME_DISK_ZERO,
                        .urgent = l->urgent,
                        .length = l->length ? l->fixed ? l->length : (uint32_t)(1 + n * 7919 % l->length) : 0,
                        .payload = l->length ? l->data : NULL,
                        .extent = l->length ? 0 : 4096,
                        .object = l->urgent ? 1 : 0,
                        .offset = seq << 12,
                        .seq = seq};
    l->to->submit(l->to, &lm->msg);
}

static void load_ended(struct xm_post *p)
{
    struct load_msg *lm = xm_container_of(p, struct load_msg, msg.post);
    struct load *l = lm->load;

    l->twice += !lm->flying;
    lm->flying = false;
    l->ended++;
    if (lm->msg.status) {
        l->failed++;
        l->status = l->status ? l->status : lm->msg.status;
    }
    free(lm->msg.reply);
    if (lm->msg.status && l->total == UINT64_MAX)
        l->total = l->sent;
    if (l->sent < l->total)
        load_next(lm);
}

void load_init(struct load *l, struct xm_transport *to, uint64_t first, uint64_t total, uint64_t depth,
               uint32_t length)
{
    *l = (struct load){
        .to = to, .first = first, .total = total, .depth = XM_MIN(depth, total), .length = length};
    assert_int_equal(0, xm_mailbox_init(&l->box));
    sem_init(&l->begun, 0, 0);
    l->msg = calloc(l->depth, sizeof *l->msg);
    l->data = malloc(length + 1);
    for (uint32_t i = 0; i < length; i++)
        l->data[i] = (uint8_t)(i * 31 + first);
    for (uint64_t i = 0; i < l->depth; i++) {
        l->msg[i].load = l;
        l->msg[i].msg.post.run = load_ended;
    }
}

void load_run(struct load *l)
{
    for (uint64_t i = 0; i < l->depth; i++)
        load_next(&l->msg[i]);
    sem_post(&l->begun);
    while (l->ended < l->total) {
        if (!xm_mailbox_wait(&l->box, 30000))
            fail_msg("%llu of %llu messages ended after 30 s", (unsigned long long)l->ended,
                     (unsigned long long)l->total);
    }
}

void *load_thread(void *load)
{
    load_run(load);
    return NULL;
}

void load_free(struct load *l)
{
    xm_mailbox_destroy(&l->box);
    sem_destroy(&l->begun);
    free(l->msg);
    free(l->data);
}

void bare_send(int fd, const struct xm_frame_hdr *h, const void *payload)
{
    uint8_t wire[64 + XM_PAYLOAD_MAX];
    struct xm_frame_hdr out = *h;

    out.magic = XM_FRAME_MAGIC;
    out.hash = h->length && payload ? XXH3_64bits(payload, h->length) : h->hash;
    out.check = XXH3_64bits(&out, 56);
    memcpy(wire, &out, 64);
    if (payload)
        memcpy(wire + 64, payload, h->length);
    for (size_t at = 0, len = 64 + (payload ? h->length : 0); at < len;) {
        ssize_t n = send(fd, wire + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the other side has hung up: the test will see */
        at += (size_t)n;
    }
}

static int bare_read(int fd, void *to, size_t len)
{
    for (size_t at = 0; at < len;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, LIMIT_HANG_MS) <= 0)
            return -1;
        ssize_t n = recv(fd, (uint8_t *)to + at, len - at, 0);
        if (n <= 0)
            return -1;
        at += (size_t)n;
    }
    return 0;
}

int bare_recv(int fd, struct xm_frame_hdr *h, void *payload, size_t max)
{
    if (bare_read(fd, h, 64) < 0)
        return -1;
    assert_true(h->length <= max);
    return bare_read(fd, payload, h->length);
}

static void *bare_shake(void *arg)
{
    int fd = *(int *)arg;
    struct xm_frame_hdr h;
    uint8_t hello[512];

    if (bare_recv(fd, &h, hello, sizeof hello) == 0)
        bare_send(fd, &h, hello); /* the same version, token and limits */
    return NULL;
}

int bare_peer(struct end *a, int *result)
{
    int fd[2];
    pthread_t t;
    struct xm_error e = {0};

    net_socketpair(fd);
    assert_int_equal(0, pthread_create(&t, NULL, bare_shake, &fd[1]));
    int r = xm_links_add(a->links, fd[0], true, "bare", &e);
    pthread_join(t, NULL);
    if (r < 0)
        fail_msg("%s", e.text);
    if (result)
        *result = r;
    return fd[1];
}
