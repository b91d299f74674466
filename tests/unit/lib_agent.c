/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_agent.h"
#include "agent/admission.h"
#include "agent/agent.h"
#include "net/net.h"
#include "probe/probe.h"
#include "vm/vm.h"
#include "tests/port.h"
#include "tests/progress.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct test_agent test_agent;

/* ---- the agent ---- */

char *in_dir(const struct test_agent *t, const char *below)
{
    static char path[4][200];
    static unsigned at;

    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", t->dir, below);
    return path[at];
}

bool exists(const struct test_agent *t, const char *below)
{
    return access(in_dir(t, below), F_OK) == 0;
}

int test_agent_make(struct test_agent *t, unsigned peer_port)
{
    char self[200] = "";

    memset(t, 0, sizeof *t);
    snprintf(t->dir, sizeof t->dir, "/tmp/xmt-agent-XXXXXX");
    if (!mkdtemp(t->dir) || readlink("/proc/self/exe", self, sizeof self - 1) < 0 ||
        mkdir(in_dir(t, "ds"), 0755) < 0)
        return -1;
    t->port = held_port();
    FILE *f = fopen(in_dir(t, "conf"), "we");
    fprintf(f,
            "[host]\nname = hosta\nstate_dir = %s/state\nrun_dir = %s/run\nshim = %s\n[listen]\naddress = "
            "127.0.0.1\nport = %u\n"
            "[limits]\nmin_memory = 1M\nmin_free = 1M\n[incoming]\nkernels = %s/boot\n[datastore ds]\npath = "
            "%s/ds\n[peer hostb]\naddress = "
            "127.0.0.2\nport = %u\n",
            t->dir, t->dir, self, t->port, t->dir, t->dir, peer_port);
    fclose(f);
    f = fopen(in_dir(t, "spec.ini"), "we");
    fprintf(f, "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = "
               "web1.raw\nsize = 1M\n");
    fclose(f);
    return 0;
}

static int child(struct test_agent *t)
{
    static struct config conf;
    struct xm_error e = {0};
    int log = open(in_dir(t, "agent.log"), O_WRONLY | O_CREAT | O_APPEND, 0600);

    dup2(log, 2);
    close(log);
    xm_log_open("xmigrated", XM_LOG_INFO);
    if (t->deny && deny(t->deny) < 0)
        return 1;
    int r = config_load(&conf, in_dir(t, "conf"), &e);
    if (!r)
        r = agent_run(&conf, &e);
    if (r)
        fprintf(stderr, "%s\n", e.text);
    config_free(&conf);
    return r ? 1 : 0;
}

int test_agent_start(struct test_agent *t)
{
    t->pid = fork();
    if (t->pid == 0)
        exit(child(t));
    for (struct limit l = limit_start(10); limit_wait(&l);) {
        int fd = xm_unix_connect(in_dir(t, "run/agent.sock"), NULL);
        if (fd >= 0) {
            close(fd);
            return 0;
        }
    }
    return -1;
}

void test_agent_stop(struct test_agent *t, int sig)
{
    int status = 0;

    if (t->pid <= 0)
        return;
    kill(t->pid, sig);
    waitpid(t->pid, &status, 0);
    t->pid = 0;
    if (sig == SIGTERM && status) {
        char *log;
        size_t len;
        if (!xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL))
            fprintf(stderr, "the agent ended with status %#x:\n%s\n", status, log);
        abort();
    }
}

void test_agent_remove(struct test_agent *t)
{
    const char *const argv[] = {"rm", "-rf", t->dir, NULL};
    static const char *const vms[] = {"web1", "web2", "x", "deaf", "slow", "late", "mute"};

    test_agent_stop(t, SIGTERM);
    for (size_t i = 0; i < sizeof vms / sizeof *vms; i++) {
        pid_t pid = shim_pid(t, vms[i]);
        if (pid > 0)
            kill(pid, SIGKILL);
    }
    xm_run(argv, LIMIT_HANG_NS, NULL, NULL);
}

/* ---- talking to it ---- */

static int hostb = -1; /* listens where the agent has its peer */

/* What is defined for the first time is asked of the peers: hostb, which is this program, has none. */
static void until_answered(int fd, const json_t *request)
{
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = hostb, .events = POLLIN}};

    while (hostb >= 0 && json_object_get(request, "spec") && poll(p, 2, LIMIT_HANG_MS) > 0 && !p[0].revents)
        json_decref(serve_one(hostb, json_pack("{s:b, s:s, s:i}", "ok", 1, "owner", "none", "epoch", 0)));
}

static json_t *last_answer(int fd, json_t *request)
{
    struct xm_jsonl js;
    json_t *o = NULL;

    xm_jsonl_init(&js, fd);
    if (fd >= 0 && !xm_jsonl_send(fd, json_incref(request), -1, NULL)) {
        until_answered(fd, request);
        while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
            json_decref(o);
    }
    json_decref(request);
    xm_jsonl_close(&js);
    return o;
}

json_t *ask(struct test_agent *t, json_t *request)
{
    return last_answer(xm_unix_connect(in_dir(t, "run/agent.sock"), NULL), request);
}

json_t *ask_shim(struct test_agent *t, const char *vm, json_t *request)
{
    char below[100];

    snprintf(below, sizeof below, "run/vms/%s/shim.sock", vm);
    return last_answer(xm_unix_connect(in_dir(t, below), NULL), request);
}

int connect_from(const char *local, unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    inet_pton(AF_INET, local, &a.sin_addr);
    bind(fd, (struct sockaddr *)&a, sizeof a);
    a.sin_port = htons((uint16_t)port);
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

json_t *ask_as(struct test_agent *t, const char *name, const char *address, json_t *request)
{
    static const char hello[] = "XMIG/1 control\n";
    int fd = connect_from(address, t->port);

    if (fd >= 0 && send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL) < 0) {
        close(fd);
        fd = -1;
    }
    if (!json_object_get(request, "from"))
        json_object_set_new(request, "from", json_string(name));
    return last_answer(fd, request);
}

json_t *ask_as_peer(struct test_agent *t, json_t *request)
{
    return ask_as(t, "hostb", "127.0.0.2", request);
}

pid_t shim_pid(const struct test_agent *t, const char *vm)
{
    char below[100], *text;
    size_t len;
    pid_t pid = 0;

    snprintf(below, sizeof below, "run/vms/%s/shim.pid", vm);
    if (!xm_file_read(in_dir(t, below), 64, &text, &len, NULL)) {
        pid = (pid_t)atoi(text);
        free(text);
    }
    return pid;
}

bool until_gone(const struct test_agent *t, const char *below)
{
    for (struct limit l = limit_start(10); exists(t, below) && limit_wait(&l);)
        ;
    return !exists(t, below);
}

bool until_no_vm(struct test_agent *t, const char *vm)
{
    bool there = true;

    for (struct limit l = limit_start(10); there && limit_wait(&l);) {
        json_t *o = ask(t, json_pack("{s:s}", "verb", "list")), *v;
        size_t at;
        there = false;
        json_array_foreach (json_object_get(o, "vms"), at, v)
            there = there || !strcmp(xm_json_str(v, "name", ""), vm);
        json_decref(o);
    }
    return !there;
}

/* ---- the one of a test program ---- */

int agent_set_up(void **state)
{
    (void)state;
    return test_agent_make(&test_agent, 7) || test_agent_start(&test_agent);
}

int agent_tear_down(void **state)
{
    (void)state;
    test_agent_remove(&test_agent);
    return 0;
}

int peer_set_up(void **state)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    hostb = xm_tcp_listen("127.0.0.2", 0, NULL);
    getsockname(hostb, (struct sockaddr *)&ss, &len);
    *state = &hostb;
    return test_agent_make(&test_agent, ntohs(((struct sockaddr_in *)(void *)&ss)->sin_port)) ||
           test_agent_start(&test_agent);
}

int peer_tear_down(void **state)
{
    close(hostb);
    hostb = -1;
    return agent_tear_down(state);
}

int agent_socket(void)
{
    return xm_unix_connect(in_dir(&test_agent, "run/agent.sock"), NULL);
}

void need_qemu(void)
{
    if (!qemu_facts("qemu-system-x86_64", NULL)) {
        print_message("skipped: qemu-system-x86_64 is not installed\n");
        skip();
    }
}

void must(json_t *answer, int want_exit)
{
    bool ok = xm_json_bool(answer, "ok", false);

    if (!answer)
        fail_msg("no answer");
    if (want_exit ? ok || xm_json_int(answer, "exit", 0) != want_exit : !ok)
        fail_msg("%s", json_dumps(answer, 0));
    json_decref(answer);
}

void must_refuse(json_t *answer, int want_exit, ...)
{
    const char *error = xm_json_str(answer, "error", ""), *text;
    va_list ap;

    va_start(ap, want_exit);
    while ((text = va_arg(ap, const char *))) {
        if (!strstr(error, text))
            fail_msg("«%s» is not in: %s", text, answer ? json_dumps(answer, 0) : "no answer");
    }
    va_end(ap);
    must(answer, want_exit);
}

unsigned files_in_ds(void)
{
    char *out = NULL;
    unsigned n = 0;
    const char *const argv[] = {"find", in_dir(&test_agent, "ds"), "-type", "f", NULL};

    xm_run(argv, LIMIT_HANG_NS, &out, NULL);
    for (const char *c = out; c && *c; c++)
        n += *c == '\n';
    free(out);
    return n;
}

json_t *start_request(void)
{
    return json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(&test_agent, "spec.ini"));
}

const char *state_of(const char *vm)
{
    static char state[32];
    json_t *o = ask(&test_agent, json_pack("{s:s, s:s}", "verb", "show", "vm", vm));

    snprintf(state, sizeof state, "%s", xm_json_str(json_object_get(o, "vm"), "state", ""));
    json_decref(o);
    return state;
}

json_t *last_of(struct xm_jsonl *js)
{
    json_t *o;

    while ((o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    return o;
}

/* ---- this program as the other agent ---- */

json_t *prepare_request(const char *job)
{
    return json_pack("{s:s, s:b, s:i, s:i, s:s, s:[i], s:s, s:{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, "
                     "s:s, s:i, s:s, s:i}], s:[]}}",
                     "verb", "peer.prepare", "storage", 1, "epoch", 1, "protocol", AGENT_PROTOCOL, "job", job,
                     "used", 4096, "datastore", "ds", "vm", "name", "web1", "memory", 16 << 20, "vcpus", 1,
                     "qemu", "qemu-system-x86_64", "machine", "q35", "accel", "tcg", "cpu", "max", "disks",
                     "name", "root", "path", "/dev/loop0", "size", 1 << 20, "datastore", "", "queues", 1,
                     "nics");
}

json_t *serve_begin(int listener, struct xm_jsonl *js)
{
    char hello[15];
    struct pollfd p = {.fd = listener, .events = POLLIN};

    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    int fd = accept(listener, NULL, NULL);
    assert_int_equal(recv(fd, hello, sizeof hello, MSG_WAITALL), sizeof hello);
    assert_memory_equal(hello, "XMIG/1 control\n", sizeof hello);
    xm_jsonl_init(js, fd);
    json_t *request = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_non_null(request);
    return request;
}

json_t *serve_one(int listener, json_t *answer)
{
    struct xm_jsonl js;
    json_t *request = serve_begin(listener, &js);

    xm_jsonl_send(js.fd, answer, -1, NULL);
    xm_jsonl_close(&js);
    return request;
}

json_t *prepared(void)
{
    return json_pack("{s:b, s:s, s:i, s:[], s:[{s:s, s:s}]}", "ok", 1, "token",
                     "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "port", 7070,
                     "links", "disks", "name", "root", "path", "/ds/x");
}
