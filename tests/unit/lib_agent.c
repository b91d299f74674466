/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_agent.h"
#include "agent/agent.h"
#include "vm/vm.h"
#include "tests/port.h"
#include "tests/progress.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the shim ---- */

struct fake {
    json_t *conf;
    char dir[200], vm[64], state[200], job[16];
    bool incoming, end;
    struct xm_jsonl client[16];
    bool subscribed[16];
};

static void emit(struct fake *f, json_t *event)
{
    json_object_set_new(event, "vm", json_string(f->vm));
    json_object_set_new(event, "job", json_string(f->job));
    for (int i = 0; i < 16; i++) {
        if (f->client[i].fd >= 0 && f->subscribed[i])
            xm_jsonl_send(f->client[i].fd, json_incref(event), -1, NULL);
    }
    json_decref(event);
}

static void finish(struct fake *f)
{
    struct owner_record given = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb"};
    char path[300];
    json_t *done =
        json_pack("{s:s, s:s, s:s, s:i}", "event", "done", "vm", f->vm, "job", f->job, "downtime_ms", 7);

    owner_save(f->state, f->vm, &given, NULL);
    snprintf(path, sizeof path, "%s/result.json", f->dir);
    json_dump_file(done, path, 0);
    emit(f, done);
    f->end = true;
}

static void remove_created(struct fake *f)
{
    size_t i;
    json_t *v;

    json_array_foreach (json_object_get(json_object_get(f->conf, "incoming"), "created"), i, v)
        unlink(json_string_value(v));
}

static void set_autostart(struct fake *f, json_t *yes)
{
    json_t *spec = json_object_get(f->conf, "vm");
    char path[300];

    json_object_set(spec, "autostart", yes);
    snprintf(path, sizeof path, "%s/spec.json", f->state);
    json_dump_file(spec, path, 0);
}

/* Events that an answer has to precede are sent by `after`. */
static json_t *command(struct fake *f, int at, const json_t *o, const char **after)
{
    const char *cmd = xm_json_str(o, "cmd", "");
    json_t *reply = json_pack("{s:b, s:O*}", "ok", 1, "id", json_object_get(o, "id"));

    *after = cmd;
    if (!strcmp(cmd, "status")) {
        json_object_set_new(reply, "state",
                            json_string(f->incoming ? "incoming"
                                        : f->job[0] ? "migrating"
                                                    : "running"));
        json_object_set_new(reply, "role", json_string(f->incoming ? "incoming" : "owner"));
        if (f->incoming)
            json_object_set_new(reply, "step", json_string("waiting"));
        if (f->job[0])
            json_object_set_new(reply, "job", json_string(f->job));
    } else if (!strcmp(cmd, "subscribe")) {
        f->subscribed[at] = true;
    } else if (!strcmp(cmd, "migrate")) {
        snprintf(f->job, sizeof f->job, "%s", xm_json_str(o, "job", ""));
    } else if (!strcmp(cmd, "link")) {
        if (write(f->client[at].passed_fd, "!", 1) != 1)
            json_object_set_new(reply, "ok", json_false());
    } else if (!strcmp(cmd, "stop")) {
        life_end(f->state, xm_json_bool(o, "force", false) ? LIFE_FORCED : LIFE_USER, NULL);
        f->end = true;
    } else if (!strcmp(cmd, "set") && json_object_get(o, "autostart")) {
        set_autostart(f, json_object_get(o, "autostart"));
    }
    return reply;
}

static void afterwards(struct fake *f, const char *cmd)
{
    if (!strcmp(cmd, "migrate")) {
        emit(f, json_pack("{s:s, s:s}", "event", "state", "state", "disks"));
    } else if (!strcmp(cmd, "abort") && f->incoming) {
        remove_created(f);
        f->end = true;
    } else if (!strcmp(cmd, "abort")) {
        emit(f, json_pack("{s:s, s:s, s:b}", "event", "failed", "error", "aborted", "vm_safe", 1));
        f->job[0] = 0;
    } else if (!strcmp(cmd, "finish")) {
        finish(f);
    }
}

static void client(struct fake *f, int at)
{
    const char *after = "";
    bool bad;
    int r = xm_jsonl_fill(&f->client[at], NULL);

    for (json_t *o; (o = xm_jsonl_next(&f->client[at], &bad, NULL)); json_decref(o)) {
        xm_jsonl_send(f->client[at].fd, command(f, at, o, &after), -1, NULL);
        afterwards(f, after);
    }
    if (r <= 0) {
        xm_jsonl_close(&f->client[at]);
        f->subscribed[at] = false;
    }
}

static void fake_loop(struct fake *f, int listener)
{
    while (!f->end) {
        struct pollfd p[17] = {{.fd = listener, .events = POLLIN}};
        for (int i = 0; i < 16; i++)
            p[i + 1] = (struct pollfd){.fd = f->client[i].fd, .events = POLLIN};
        if (poll(p, 17, 60000) <= 0)
            break;
        for (int i = 0; i < 16; i++) {
            if (p[i + 1].revents)
                client(f, i);
        }
        for (int i = 0; i < 16 && p[0].revents; i++) {
            if (f->client[i].fd < 0) {
                xm_jsonl_init(&f->client[i], accept(listener, NULL, NULL));
                p[0].revents = 0;
            }
        }
    }
}

bool fake_shim_main(int argc, char **argv, int *status)
{
    static struct fake f;
    char path[300];

    if (argc == 3 && !strcmp(argv[1], "--clean-up")) {
        *status = 0;
        return true;
    }
    if (argc != 2 || !strstr(argv[1], "/shim.json"))
        return false;
    *status = 1;
    f.conf = json_load_file(argv[1], 0, NULL);
    snprintf(f.vm, sizeof f.vm, "%s", xm_json_str(json_object_get(f.conf, "vm"), "name", ""));
    snprintf(f.dir, sizeof f.dir, "%s/vms/%s", xm_json_str(f.conf, "run_dir", ""), f.vm);
    snprintf(f.state, sizeof f.state, "%s/vms/%s", xm_json_str(f.conf, "state_dir", ""), f.vm);
    f.incoming = json_is_object(json_object_get(f.conf, "incoming"));
    for (int i = 0; i < 16; i++)
        xm_jsonl_init(&f.client[i], -1);
    if (!strcmp(f.vm, "broken")) {
        fprintf(stderr, "VM broken: it does not want to\n");
        return true;
    }
    snprintf(path, sizeof path, "%s/shim.sock", f.dir);
    int listener = xm_unix_listen(path, NULL);
    pid_t pid = listener < 0 ? -1 : fork();
    if (pid) {
        snprintf(path, sizeof path, "%s/shim.pid", f.dir);
        FILE *p = fopen(path, "we");
        fprintf(p, "%d\n", pid);
        fclose(p);
        *status = pid < 0;
        return true;
    }
    setsid();
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    fake_loop(&f, listener);
    snprintf(path, sizeof path, "%s/shim.sock", f.dir);
    unlink(path);
    json_decref(f.conf);
    _exit(0);
}

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
    static const char *const vms[] = {"web1", "web2", "x"};

    test_agent_stop(t, SIGTERM);
    for (size_t i = 0; i < sizeof vms / sizeof *vms; i++) {
        pid_t pid = shim_pid(t, vms[i]);
        if (pid > 0)
            kill(pid, SIGKILL);
    }
    xm_run(argv, LIMIT_HANG_NS, NULL, NULL);
}

/* ---- talking to it ---- */

static json_t *last_answer(int fd, json_t *request)
{
    struct xm_jsonl js;
    json_t *o = NULL;

    xm_jsonl_init(&js, fd);
    if (fd >= 0 && !xm_jsonl_send(fd, json_incref(request), -1, NULL)) {
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

json_t *ask_as_peer(struct test_agent *t, json_t *request)
{
    static const char hello[] = "XMIG/1 control\n";
    int fd = connect_from("127.0.0.2", t->port);

    if (fd >= 0 && send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL) < 0) {
        close(fd);
        fd = -1;
    }
    if (!json_object_get(request, "from"))
        json_object_set_new(request, "from", json_string("hostb"));
    return last_answer(fd, request);
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
