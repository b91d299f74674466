/* SPDX-License-Identifier: MIT */
#include "machine/qmp.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void handle_event(struct qmp *q, const json_t *o)
{
    const char *name = xm_json_str(o, "event", NULL);
    const json_t *stamp = json_object_get(o, "timestamp");
    uint64_t when = (uint64_t)xm_json_int(stamp, "seconds", 0) * XM_NS_PER_S +
                    (uint64_t)xm_json_int(stamp, "microseconds", 0) * XM_NS_PER_US;

    if (name && q->event)
        q->event(q->ctx, name, json_object_get(o, "data"), when);
}

/* The answer to an earlier call, whose caller's patience has ended. QEMU gives back the id of what it
 * answers; an error without one is about a line that it could not read. */
static bool is_late(const json_t *o, json_int_t id)
{
    const json_t *of = json_object_get(o, "id");

    return (json_object_get(o, "return") || of) && !(json_is_integer(of) && json_integer_value(of) == id);
}

static void note_refusal(struct qmp *q, const json_t *o)
{
    const json_t *err = json_object_get(o, "error");

    if (err && q->told && xm_json_int(o, "id", -1) == (json_int_t)q->told)
        xm_error_set(&q->refused, EIO, "%s", xm_json_str(err, "desc", "no reason given"));
}

static int send_locked(struct qmp *q, const char *command, json_t *args, int pass_fd, struct xm_error *e)
{
    json_t *request = json_pack("{s:s s:I}", "execute", command, "id", (json_int_t)++q->calls);

    if (args)
        json_object_set_new(request, "arguments", args);
    if (xm_jsonl_send(q->conn.fd, request, pass_fd, e) == 0)
        return 0;
    return xm_error_prefix(e, "QEMU's monitor, %s", command);
}

static json_t *call_locked(struct qmp *q, const char *command, json_t *args, int pass_fd, uint64_t timeout_ns,
                           struct xm_error *e)
{
    uint64_t deadline = xm_now() + timeout_ns;
    if (send_locked(q, command, args, pass_fd, e) < 0)
        return NULL;
    json_int_t id = (json_int_t)q->calls;
    for (;;) {
        /* A QEMU that says other things all the time has not answered either. */
        json_t *o = xm_now() < deadline ? xm_jsonl_recv(&q->conn, deadline, e) : NULL;
        if (!o && xm_now() >= deadline)
            xm_error_set(e, ETIMEDOUT, "no answer in time");
        if (!o) {
            xm_error_prefix(e, "QEMU's monitor, %s", command);
            return NULL;
        }
        json_t *ret = json_object_get(o, "return");
        json_t *err = json_object_get(o, "error");
        if (is_late(o, id)) {
            note_refusal(q, o);
            json_decref(o);
            continue;
        }
        if (ret) {
            json_incref(ret);
            json_decref(o);
            return ret;
        }
        if (err) {
            xm_error_set(e, EIO, "QEMU refuses %s: %s", command, xm_json_str(err, "desc", "no reason given"));
            json_decref(o);
            return NULL;
        }
        handle_event(q, o);
        json_decref(o);
    }
}

static json_t *call_with(struct qmp *q, const char *command, json_t *args, int pass_fd, uint64_t timeout_ns,
                         struct xm_error *e)
{
    json_t *ret = NULL;

    pthread_mutex_lock(&q->lock);
    if (q->conn.fd < 0) {
        json_decref(args);
        xm_error_set(e, ENOTCONN, "QEMU's monitor is not connected");
    } else {
        ret = call_locked(q, command, args, pass_fd, timeout_ns, e);
    }
    pthread_mutex_unlock(&q->lock);
    return ret;
}

json_t *qmp_call(struct qmp *q, const char *command, json_t *args, uint64_t timeout_ns, struct xm_error *e)
{
    return call_with(q, command, args, -1, timeout_ns, e);
}

int qmp_make_stream(struct qmp *q, const char *name, uint64_t timeout_ns, struct xm_error *e)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return xm_error_errno(e, errno, "cannot make a socket for QEMU's migration");
    json_t *ret = call_with(q, "getfd", json_pack("{s:s}", "fdname", name), pair[1], timeout_ns, e);
    close(pair[1]); /* QEMU has its own, and its end is seen here */
    if (!ret) {
        close(pair[0]);
        return -XM_MAX(e->code, 1);
    }
    json_decref(ret);
    return pair[0];
}

int qmp_do(struct qmp *q, const char *command, json_t *args, uint64_t timeout_ns, struct xm_error *e)
{
    struct xm_error local = {0};
    json_t *ret = qmp_call(q, command, args, timeout_ns, &local);

    if (!ret) {
        if (e)
            *e = local;
        return -XM_MAX(local.code, 1);
    }
    json_decref(ret);
    return 0;
}

int qmp_tell(struct qmp *q, const char *command, json_t *args, struct xm_error *e)
{
    int r;

    pthread_mutex_lock(&q->lock);
    if (q->conn.fd < 0) {
        json_decref(args);
        r = xm_error_set(e, ENOTCONN, "QEMU's monitor is not connected");
    } else {
        r = send_locked(q, command, args, -1, e);
        q->told = q->calls;
        q->refused.code = 0;
    }
    pthread_mutex_unlock(&q->lock);
    return r;
}

int qmp_refusal(struct qmp *q, struct xm_error *e)
{
    pthread_mutex_lock(&q->lock);
    struct xm_error refused = q->refused;
    pthread_mutex_unlock(&q->lock);
    return refused.code ? xm_error_set(e, EIO, "QEMU refuses it: %s", refused.text) : 0;
}

/* Events that are in the buffer already: they may have come in one read with the answer to a command. */
static unsigned drain(struct qmp *q, bool *bad, struct xm_error *e)
{
    unsigned n = 0;

    for (json_t *o; (o = xm_jsonl_next(&q->conn, bad, e)); n++) {
        note_refusal(q, o);
        handle_event(q, o);
        json_decref(o);
    }
    return n;
}

int qmp_pump(struct qmp *q, int timeout_ms, struct xm_error *e)
{
    int r = 0;
    bool bad = false;

    pthread_mutex_lock(&q->lock);
    struct pollfd p = {.fd = q->conn.fd, .events = POLLIN};
    if (p.fd < 0) {
        r = xm_error_set(e, ENOTCONN, "QEMU's monitor is not connected");
    } else if (!drain(q, &bad, e) && poll(&p, 1, timeout_ms) > 0) {
        r = xm_jsonl_fill(&q->conn, e);
        if (r == 0)
            r = xm_error_set(e, EPIPE, "QEMU closed its monitor");
        if (r > 0)
            drain(q, &bad, e);
    }
    pthread_mutex_unlock(&q->lock);
    return bad ? -EPROTO : XM_MIN(r, 0);
}

int qmp_open(struct qmp *q, const char *path, uint64_t deadline, bool (*alive)(void *), void *alive_ctx,
             struct xm_error *e)
{
    int fd;

    while ((fd = xm_unix_connect(path, e)) < 0) {
        if (!alive(alive_ctx))
            return xm_error_set(e, ECHILD, "QEMU ended before its monitor answered");
        if (xm_now() > deadline)
            return xm_error_prefix(e, "QEMU's monitor did not come up in time");
        poll(NULL, 0, 5); /* there is no event for «a listener appeared at this path» short of inotify */
    }
    xm_jsonl_init(&q->conn, fd); /* nobody else knows of this connection yet: no lock */
    json_t *greeting = xm_jsonl_recv(&q->conn, deadline, e);
    if (!greeting || !json_object_get(greeting, "QMP")) {
        json_decref(greeting);
        return xm_error_set(e, EPROTO, "QEMU's monitor at %s did not greet as QMP does", path);
    }
    const json_t *v = json_object_get(json_object_get(json_object_get(greeting, "QMP"), "version"), "qemu");
    snprintf(q->version, sizeof q->version, "%d.%d.%d", (int)xm_json_int(v, "major", 0),
             (int)xm_json_int(v, "minor", 0), (int)xm_json_int(v, "micro", 0));
    json_decref(greeting);
    return qmp_do(q, "qmp_capabilities", NULL, 10 * XM_NS_PER_S, e);
}

void qmp_close(struct qmp *q)
{
    pthread_mutex_lock(&q->lock);
    xm_jsonl_close(&q->conn);
    pthread_mutex_unlock(&q->lock);
}
