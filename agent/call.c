/* SPDX-License-Identifier: MIT */
/* One request to another agent: a connection, two lines out, one line back. What comes back is hostile input
 * like any other: who calls this checks every field that it uses. */
#include "agent/agent.h"
#include "net/net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_NS (5 * XM_NS_PER_S)
#define LOOK_NS    (500 * XM_NS_PER_MS)

static int say_hello(int fd, struct xm_error *e)
{
    static const char hello[] = "XMIG/1 control\n";

    if (send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof hello - 1))
        return xm_error_errno(e, errno ? errno : EIO, "cannot send");
    return 0;
}

static void local_address(int fd, struct address_text *text)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    struct address addr;

    if (!getsockname(fd, (struct sockaddr *)&ss, &len) && address_of(&addr, (struct sockaddr *)&ss))
        *text = address_format(&addr);
}

static bool ends(struct agent *a)
{
    agent_lock(a);
    bool is = a->ending;
    agent_unlock(a);
    return is;
}

/* An agent that ends does not wait for its peers. */
static json_t *wait_answer(struct agent *a, struct xm_jsonl *js, uint64_t timeout_ns, struct xm_error *e)
{
    uint64_t now = xm_now(), until = now + timeout_ns;

    for (;; now = xm_now()) {
        *e = (struct xm_error){0};
        json_t *answer = xm_jsonl_recv(js, XM_MIN(until, now + LOOK_NS), e);
        if (answer || e->code != ETIMEDOUT || xm_now() >= until || ends(a))
            return answer;
    }
}

json_t *peer_call_agent(struct agent *a, const struct conf_peer *p, json_t *request, uint64_t timeout_ns,
                        int *exit_status, json_t **reasons, struct address_text *local, struct xm_error *e)
{
    /* From the address that we listen on, so that the peer sees the one it has configured. */
    const char *from = a->conf.listen_address;
    bool any = !strcmp(from, "0.0.0.0") || !strcmp(from, "::") || !address_same_family(from, p->address);
    struct xm_jsonl js;
    json_t *answer = NULL;

    *exit_status = EXIT_FAILED;
    *reasons = NULL;
    int fd =
        xm_tcp_connect(any ? NULL : from, p->address, (uint16_t)p->port, XM_MIN(CONNECT_NS, timeout_ns), e);
    if (fd < 0) {
        json_decref(request);
        xm_error_prefix(e, "host %s does not answer", p->name);
        return NULL;
    }
    conn_keep_alive(fd); /* its host may go, or the network for so long that it does not wait for it */
    if (local)
        local_address(fd, local);
    xm_jsonl_init(&js, fd);
    js.limits = &xm_json_answer;
    json_object_set_new(request, "from", json_string(a->conf.name));
    json_object_set_new(request, "for", json_string(p->name));
    if (say_hello(fd, e) < 0)
        json_decref(request);
    else if (!xm_jsonl_send(fd, request, -1, e))
        answer = wait_answer(a, &js, timeout_ns, e);
    xm_jsonl_close(&js);
    if (!answer) {
        xm_error_prefix(e, "host %s does not answer (does it know this host as a [peer], by its address?)",
                        p->name);
    } else if (!xm_json_bool(answer, "ok", false)) {
        int64_t status = xm_json_int(answer, "exit", EXIT_FAILED);
        *exit_status = status == EXIT_REFUSED ? EXIT_REFUSED : EXIT_FAILED;
        *reasons = json_is_array(json_object_get(answer, "reasons"))
                       ? json_incref(json_object_get(answer, "reasons"))
                       : NULL;
        xm_error_set(e, status == EXIT_UNKNOWN ? EBUSY : EREMOTEIO, "%s",
                     xm_json_str(answer, "error", "the peer refused without saying why"));
        json_decref(answer);
        answer = NULL;
    }
    return answer;
}
