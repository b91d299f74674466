/* SPDX-License-Identifier: MIT */
/* tests/unit/lib_shim.c: the shim that only speaks the protocol (lib_agent.h). */
#include "tests/unit/lib_agent.h"
#include "vm/vm.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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

/* The guest powers itself off in a move, and its QEMU, or its shim, takes so many ms to end. */
static void power_off(struct fake *f, int takes)
{
    char path[300];
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:b, s:b}", "event", "failed", "error", "it has ended", "vm",
                          f->vm, "job", f->job, "vm_safe", 1, "stopped", 1);

    life_end(f->state, LIFE_GUEST, NULL);
    snprintf(path, sizeof path, "%s/result.json", f->dir);
    json_dump_file(o, path, 0);
    emit(f, o);
    poll(NULL, 0, takes);
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

/* The links to its source were lost after the promise, and its QEMU has ended. */
static bool is_undecided(const struct fake *f)
{
    char path[300];

    snprintf(path, sizeof path, "%s/undecided", f->dir);
    return f->incoming && access(path, F_OK) == 0;
}

/* Its guest, which QEMU has loaded and did not let run. */
static bool stands(const struct fake *f, bool goes_on)
{
    char path[300];

    snprintf(path, sizeof path, "%s/stands", f->dir);
    return goes_on ? unlink(path) == 0 : access(path, F_OK) == 0;
}

static bool qemu_hangs(const struct fake *f)
{
    char path[300];

    snprintf(path, sizeof path, "%s/hangs", f->dir);
    return access(path, F_OK) == 0;
}

/* The version of its QEMU, which is not the program's any more. */
static void tell_version(const struct fake *f, json_t *reply)
{
    char path[300], version[32] = "";

    snprintf(path, sizeof path, "%s/version", f->dir);
    FILE *file = fopen(path, "re");
    if (file && fgets(version, sizeof version, file))
        json_object_set_new(reply, "qemu", json_string(version));
    if (file)
        fclose(file);
}

/* As the real one: what it cannot run it hands back. */
static void decide(const struct fake *f, json_t *reply)
{
    struct owner_record rec;

    if (!owner_load(f->state, f->vm, &rec, NULL) && rec.owner == OWNER_PROMISED) {
        struct owner_record back = {.epoch = rec.epoch + 1, .owner = OWNER_GIVEN};
        memcpy(back.to, rec.from, sizeof back.to);
        owner_save(f->state, f->vm, &back, NULL);
    }
    json_object_set_new(reply, "ok", json_false());
    json_object_set_new(reply, "error", json_string("QEMU has ended before it let the guest run"));
}

/* As the real one. */
static bool is_open(const struct fake *f)
{
    struct owner_record rec;

    return !owner_load(f->state, f->vm, &rec, NULL) && verdict_open(&rec);
}

/* As the real one: what is aborted is named. */
static bool is_of(const struct fake *f, const json_t *o)
{
    const json_t *in = json_object_get(f->conf, "incoming");

    return !strcmp(xm_json_str(o, "incoming", ""), xm_json_str(in, "job", "?")) &&
           !strcmp(xm_json_str(o, "source", ""), xm_json_str(in, "source", "?"));
}

static bool begins(const char *cmd)
{
    return !strcmp(cmd, "migrate") || !strcmp(cmd, "storage");
}

/* Events that an answer has to precede are sent by `after`. */
static json_t *command(struct fake *f, int at, const json_t *o, const char **after)
{
    const char *cmd = xm_json_str(o, "cmd", "");
    json_t *reply = json_pack("{s:b, s:O*}", "ok", 1, "id", json_object_get(o, "id"));

    *after = cmd;
    if (!strcmp(cmd, "status")) {
        json_object_set_new(reply, "state",
                            json_string(f->incoming    ? "incoming"
                                        : f->job[0]    ? "migrating"
                                        : stands(f, 0) ? "stopped"
                                                       : "running"));
        json_object_set_new(reply, "role",
                            json_string(is_undecided(f) ? "undecided"
                                        : f->incoming   ? "incoming"
                                                        : "owner"));
        if (f->incoming)
            json_object_set_new(reply, "step", json_string("waiting"));
        tell_version(f, reply);
        if (f->job[0])
            json_object_set_new(reply, "job", json_string(f->job));
        if (xm_json_bool(o, "devices", false) && qemu_hangs(f))
            json_object_set_new(reply, "qemu_silent", json_string("no answer in time"));
    } else if (!strcmp(cmd, "subscribe")) {
        f->subscribed[at] = true;
    } else if (begins(cmd)) {
        snprintf(f->job, sizeof f->job, "%s", xm_json_str(o, "job", ""));
    } else if (!strcmp(cmd, "link")) {
        if (write(f->client[at].passed_fd, "!", 1) != 1)
            json_object_set_new(reply, "ok", json_false());
    } else if (!strcmp(cmd, "stop") && !strcmp(f->vm, "deaf") && !xm_json_bool(o, "force", false)) {
        return reply; /* its guest does not listen */
    } else if (!strcmp(cmd, "abort") && f->incoming && !is_of(f, o)) {
        json_object_set_new(reply, "ok", json_false());
        json_object_set_new(reply, "error", json_string("no such migration going on"));
        *after = "";
    } else if (!strcmp(cmd, "resume")) {
        stands(f, 1);
    } else if (!strcmp(cmd, "decide")) {
        decide(f, reply);
    } else if (!strcmp(cmd, "stop") && is_undecided(f) && is_open(f)) {
        json_object_set_new(reply, "ok", json_false());
        json_object_set_new(reply, "error", json_string("whose VM it is has to be settled"));
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
    if (begins(cmd)) {
        emit(f, json_pack("{s:s, s:s}", "event", "state", "state", "disks"));
    } else if (!strcmp(cmd, "abort") && f->incoming) {
        remove_created(f);
        f->end = true;
    } else if (!strcmp(cmd, "abort")) {
        emit(f, json_pack("{s:s, s:s, s:b}", "event", "failed", "error", "aborted", "vm_safe", 1));
        f->job[0] = 0;
    } else if (!strcmp(cmd, "finish")) {
        finish(f);
    } else if (!strcmp(cmd, "power-off")) {
        power_off(f, 300);
    } else if (!strcmp(cmd, "linger")) {
        power_off(f, 60000);
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
    if (!strcmp(f.vm, "slow"))
        poll(NULL, 0, 2000);
    snprintf(path, sizeof path, "%s/shim.sock", f.dir);
    int listener = xm_unix_listen(path, NULL);
    pid_t pid = listener < 0 ? -1 : fork();
    if (pid) {
        snprintf(path, sizeof path, "%s/shim.pid", f.dir);
        FILE *p = fopen(path, "we");
        fprintf(p, "%d\n", pid);
        fclose(p);
        *status = pid < 0;
        while (!strcmp(f.vm, "late") || !strcmp(f.vm, "mute"))
            pause(); /* for the word of: */
        return true;
    }
    setsid();
    while (!strcmp(f.vm, "late"))
        pause(); /* its storage hangs */
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    fake_loop(&f, listener);
    snprintf(path, sizeof path, "%s/shim.sock", f.dir);
    unlink(path);
    json_decref(f.conf);
    _exit(0);
}
