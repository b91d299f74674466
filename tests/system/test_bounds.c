/* SPDX-License-Identifier: MIT */
/* Peers that are connected and take their time: they hold nothing of this host for long. */
#include "base/base.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The first migration's source does nothing for some seconds after it has begun. */
SMALL_GROUP("bounds", "XMIGRATE_FAULT=source-begun:1:delay=12000 XM_LAB_LIMITS='incoming_silence = 3s' ")

/* A shim's socket; then one request on it. */
static int shim_of(const char *host)
{
    char path[200];

    snprintf(path, sizeof path, "%s/%s/run/vms/web1/shim.sock", lab_run_dir(), host);
    int fd = xm_unix_connect(path, NULL);
    assert_true(fd >= 0);
    return fd;
}

static json_t *tell(struct xm_jsonl *js, json_t *request, int pass_fd)
{
    struct xm_error e = {0};

    if (xm_jsonl_send(js->fd, request, pass_fd, &e) < 0)
        fail_msg("%s", e.text);
    json_t *answer = xm_jsonl_recv(js, xm_now() + 60 * XM_NS_PER_S, &e);
    if (!answer)
        fail_msg("%s", e.text);
    return answer;
}

/* A link that says nothing has 5 s for it; meanwhile the shim has answered. Told by the order, not by the
 * clock: its answer comes before it gives up on the link. A machine that is very slow gets some tries. */
static bool answers_meanwhile(void)
{
    int pair[2];
    struct xm_jsonl agent, other;

    xm_jsonl_init(&agent, shim_of("b"));
    xm_jsonl_init(&other, shim_of("b"));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    json_decref(tell(&agent, json_pack("{s:i s:s s:s}", "id", 1, "cmd", "link", "name", "slow"), pair[1]));
    close(pair[1]);
    json_decref(tell(&other, json_pack("{s:i s:s}", "id", 2, "cmd", "status"), -1));
    struct pollfd p = {.fd = pair[0], .events = POLLIN};
    bool waits = poll(&p, 1, 0) == 0;
    close(pair[0]);
    xm_jsonl_close(&agent);
    xm_jsonl_close(&other);
    return waits;
}

static void a_silent_source_is_not_waited_for(void **state)
{
    struct job move;
    char *out = NULL;
    (void)state;

    need_lab();
    job_start(&move, "%s", xmigrate("a", "--json --with-storage web1 hostb"));
    assert_true(wait_until(30, "grep -qs 'waiting -> copying' %s/b/run/vms/web1/shim.log", lab_run_dir()));
    bool meanwhile = false;
    for (int i = 0; i < 3 && !meanwhile; i++)
        meanwhile = answers_meanwhile();
    assert_true(meanwhile);
    assert_int_equal(job_end(&move, 90, &out), 1);
    if (!strstr(out, "has sent nothing of its migration for 3"))
        fail_msg("%s", out);
    free(out);
    vm_must_run_at("a", "web1");
    host_must_be_clean("b");
    xmigrate_run("a", 0, NULL, "--json --with-storage web1 hostb");
    vm_must_run_at("b", "web1");
    small_must_be_whole(&guest, "b");
}

/* It is not in RAM, and nobody else's to read; a guest that has gone has left it. The other host has its
 * own. */
static void the_console_stays_when_the_vm_goes(void **state)
{
    char *out = NULL;
    (void)state;

    need_lab();
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force web1"), 0);
    for (const char *h = "ab"; *h; h++) {
        if (sh(&out, 10, "cd %s/%c/state/logs && test -s web1-console.log && stat -c %%a web1-console.log",
               lab_run_dir(), *h) ||
            strcmp(out, "600\n") != 0)
            fail_msg("host %c: %s", *h, out);
        free(out);
        assert_int_not_equal(sh(NULL, 5, "test -e %s/%c/run/vms/web1/console.log", lab_run_dir(), *h), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_silent_source_is_not_waited_for),
        cmocka_unit_test(the_console_stays_when_the_vm_goes),
    };

    return cmocka_run_group_tests_name("system: bounds", tests, lab_setup, lab_teardown);
}
