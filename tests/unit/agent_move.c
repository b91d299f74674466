/* SPDX-License-Identifier: MIT */
/* A move as its source's agent lives it: followed, aborted, ended while no agent is there; and what the
 * destination is told and says. This program is the other agent; shims are make-believe (lib_shim.c). */
#include "tests/unit/lib_agent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/progress.h"
#include "vm/vm.h"

static struct test_agent *const t = &test_agent;

static json_t *move_request(void)
{
    return json_pack("{s:s, s:s, s:s, s:b}", "verb", "move", "vm", "web1", "host", "hostb", "storage", 1);
}

/* A process that the agent takes for the VM's QEMU. */
static pid_t make_believe_qemu;

/* came: from another host. */
static void start_qemu(bool came)
{
    char text[32];
    int input[2];

    assert_int_equal(pipe2(input, O_CLOEXEC), 0);
    make_believe_qemu = fork();
    if (make_believe_qemu == 0) {
        dup2(input[0], 0); /* it ends with this program, at the latest */
        execlp("sh", "sh", "-c", "read line", in_dir(t, "run/vms/web1/qmp.sock"), "-S",
               came ? "-incoming" : NULL, NULL);
        _exit(127);
    }
    close(input[0]);
    /* Until it has become that program, it is none that the agent knows. */
    char proc[40], *line = NULL;
    size_t len = 0;
    bool is = false;
    snprintf(proc, sizeof proc, "/proc/%d/cmdline", make_believe_qemu);
    for (struct limit l = limit_start(20); !is && limit_wait(&l); free(line), line = NULL)
        is = !xm_file_read(proc, 4096, &line, &len, NULL) && memmem(line, len, "qmp.sock", 8);
    assert_true(is);
    snprintf(text, sizeof text, "%d\n", make_believe_qemu);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/qemu.pid"), text, strlen(text), NULL), 0);
}

static void end_qemu(void)
{
    if (make_believe_qemu > 0) {
        kill(make_believe_qemu, SIGKILL);
        waitpid(make_believe_qemu, NULL, 0);
    }
    make_believe_qemu = 0;
}

static int move_tear_down(void **state)
{
    int r = peer_tear_down(state);
    end_qemu();
    return r;
}

/* Whoever is refused waits in vain for the next request to the other agent: it says why. */
static void must_not_be_refused(int listener, struct xm_jsonl *js)
{
    struct pollfd p[2] = {{.fd = listener, .events = POLLIN}, {.fd = js->fd, .events = POLLIN}};
    json_t *o = NULL;

    while (poll(p, 2, LIMIT_HANG_MS) > 0 && !p[0].revents) {
        json_decref(o);
        o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
        if (!o || json_object_get(o, "ok"))
            fail_msg("%s", json_dumps(o, JSON_ENCODE_ANY));
    }
    json_decref(o);
}

/* The move has begun and its shim works on it: the connection that follows it. */
static void begin_move(int listener, struct xm_jsonl *js)
{
    must(ask(t, start_request()), 0);
    xm_jsonl_init(js, agent_socket());
    xm_jsonl_send(js->fd, move_request(), -1, NULL);
    must_not_be_refused(listener, js);
    json_t *o = serve_one(listener, json_pack("{s:b, s:[]}", "ok", 1, "reasons"));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.check");
    assert_string_equal(xm_json_str(o, "for", ""), "hostb");
    json_decref(o);
    must_not_be_refused(listener, js);
    o = serve_one(listener, prepared());
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.prepare");
    assert_string_equal(xm_json_str(o, "job", ""), "1");
    json_decref(o);
    for (bool disks = false; !disks; json_decref(o)) {
        o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
        assert_non_null(o);
        disks = !strcmp(xm_json_str(o, "state", ""), "disks");
    }
}

static json_t *last_event_of_watch(const char *job)
{
    struct xm_jsonl js;
    json_t *o, *last = NULL;
    bool first = true;

    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "watch", "job", job), -1, NULL);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok")) {
        if (first)
            assert_string_equal(xm_json_str(o, "event", ""), "job");
        first = false;
        json_decref(last);
        last = o;
    }
    json_decref(o);
    xm_jsonl_close(&js);
    return last;
}

static void must_be_done(const char *job)
{
    json_t *o = last_event_of_watch(job);

    assert_string_equal(xm_json_str(o, "event", ""), "done");
    assert_int_equal(xm_json_int(o, "downtime_ms", 0), 7);
    assert_string_equal(xm_json_str(o, "destination", ""), "hostb");
    json_decref(o);
}

static void a_move_is_followed_to_its_end_and_remembered(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    must(ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostb")),
         3); /* one at a time */
    must(ask(t, json_pack("{s:s, s:s, s:i}", "verb", "set", "job", "1", "bandwidth", 1000000)), 0);
    xm_jsonl_close(&js); /* the command is killed */
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
    assert_string_equal(state_of("web1"), ""); /* «done» is said when it has gone */
    assert_false(exists(t, "run/vms/web1"));
    test_agent_stop(t, SIGTERM);
    assert_int_equal(test_agent_start(t), 0);
    must_be_done("1");
    must(ask(t, json_pack("{s:s, s:s}", "verb", "abort", "job", "1")), 1);
}

/* Its shim cannot write result.json (the run directory is full, say): what it said is enough. */
static void a_report_that_was_heard_counts_without_its_file(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    xm_jsonl_close(&js);
    assert_int_equal(mkdir(in_dir(t, "run/vms/web1/result.json"), 0700), 0);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
    assert_string_equal(state_of("web1"), "");
}

static void a_move_ends_while_no_agent_is_there(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    test_agent_stop(t, SIGKILL);
    xm_jsonl_close(&js);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    assert_true(until_gone(t, "run/vms/web1/shim.sock"));
    assert_int_equal(test_agent_start(t), 0);
    must_be_done("1");
    assert_true(until_gone(t, "run/vms/web1"));
}

static void a_move_outlives_its_agent(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    test_agent_stop(t, SIGKILL);
    xm_jsonl_close(&js);
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostb")), 3);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
}

static void an_abort_ends_it_with_the_vm_here(void **state)
{
    struct xm_jsonl js;
    json_t *o;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "abort", "job", "1")), 0);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    must(o, 1);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "running");
}

/* Its QEMU, too, as when a guest powers itself off: but what it says is the last event, not the answer. */
static json_t *end_of_a_move_whose_shim_dies(struct xm_jsonl *js)
{
    json_t *o, *last = NULL;

    kill(shim_pid(t, "web1"), SIGKILL);
    while ((o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok")) {
        json_decref(last);
        last = o;
    }
    json_decref(o);
    xm_jsonl_close(js);
    assert_string_equal(xm_json_str(last, "event", ""), "failed");
    return last;
}

/* The record says that it is ours, so it is stopped here. What broke: a guest that powered itself off while
 * its move was being prepared was to be looked for by `recover`. */
static void the_vm_ends_in_a_move(void **state)
{
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    json_t *o = end_of_a_move_whose_shim_dies(&js);
    assert_int_equal(xm_json_int(o, "exit", 0), 1);
    assert_true(xm_json_bool(o, "vm_safe", false));
    assert_true(xm_json_bool(o, "stopped", false));
    assert_non_null(strstr(xm_json_str(o, "error", ""), "VM web1 has ended meanwhile: "));
    json_decref(o);
    assert_string_equal(state_of("web1"), "stopped");
}

/* What broke: the report's advice, `start`, was refused for as long as the QEMU took to end. */
static void a_guest_that_powers_itself_off_can_be_started_at_once(void **state)
{
    struct xm_jsonl js;
    json_t *o, *last = NULL;
    need_qemu();

    begin_move(*(int *)*state, &js);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "power-off", "id", 1)), 0);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok")) {
        json_decref(last);
        last = o;
    }
    must(o, 1);
    xm_jsonl_close(&js);
    assert_string_equal(xm_json_str(last, "error", ""), "it has ended");
    json_decref(last);
    assert_string_equal(state_of("web1"), "stopped");
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "web1")), 0);
}

/* What broke: nobody was told anything while its shim hung on old storage. */
static void an_end_is_told_though_its_shim_hangs(void **state)
{
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    xm_jsonl_close(&js);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "linger", "id", 1)), 0);
    json_t *o = last_event_of_watch("1");
    assert_string_equal(xm_json_str(o, "error", ""), "it has ended");
    assert_string_equal(xm_json_str(o, "note", ""), "its shim here has not ended yet");
    json_decref(o);
}

static void the_shim_dies_in_the_hand_off(void **state)
{
    struct owner_record given = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb"};
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &given, NULL), 0);
    json_t *o = end_of_a_move_whose_shim_dies(&js);
    assert_int_equal(xm_json_int(o, "exit", 0), 4); /* nobody knows: it says how to find out */
    assert_non_null(strstr(xm_json_str(o, "error", ""), "`xmigrate recover web1`"));
    json_decref(o);
}

/* Its QEMU lives, and gets another shim. */
static void the_vm_runs_on_when_only_the_shim_dies(void **state)
{
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    start_qemu(false);
    kill(shim_pid(t, "web1"), SIGKILL);
    json_t *o = last_of(&js);
    assert_string_equal(xm_json_str(o, "error", ""),
                        "the shim died, and with it the migration; the VM runs on here with a new one");
    must(o, 1);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "running");
}

/* What broke: what stood in its file already, «done» even, was «the shim died». */
static void a_shim_that_dies_after_its_last_word_is_heard(void **state)
{
    static const char word[] =
        "{\"event\": \"failed\", \"job\": \"1\", \"error\": \"so\", \"vm_safe\": true}";
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    start_qemu(false);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/result.json"), word, sizeof word - 1, NULL), 0);
    json_t *o = end_of_a_move_whose_shim_dies(&js);
    assert_string_equal(xm_json_str(o, "error", ""), "so");
    json_decref(o);
}

/* What broke: the disk was in the other datastore by then, and said to be safe where it was. */
static void the_shim_dies_in_a_move_of_the_disks(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    test_agent_stop(t, SIGTERM);
    FILE *f = fopen(in_dir(t, "conf"), "ae");
    fprintf(f, "[datastore ds2]\npath = %s/ds2\n", t->dir);
    fclose(f);
    assert_int_equal(mkdir(in_dir(t, "ds2"), 0700), 0);
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, start_request()), 0);
    start_qemu(false);
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd,
                  json_pack("{s:s, s:s, s:b, s:s, s:{}}", "verb", "move", "vm", "web1", "storage_only", 1,
                            "datastore", "ds2", "options"),
                  -1, NULL);
    for (bool disks = false; !disks;) {
        json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
        assert_non_null(o);
        disks = !strcmp(xm_json_str(o, "state", ""), "disks");
        json_decref(o);
    }
    json_t *spec = json_load_file(in_dir(t, "state/vms/web1/spec.json"), 0, NULL);
    json_object_set_new(json_array_get(json_object_get(spec, "disks"), 0), "datastore", json_string("ds2"));
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL), 0);
    json_decref(spec);
    kill(shim_pid(t, "web1"), SIGKILL);
    json_t *o = last_of(&js);
    assert_non_null(strstr(xm_json_str(o, "error", ""), "with a new one, 1 of its 1 disks in datastore ds2"));
    must(o, 1);
    xm_jsonl_close(&js);
}

/* Its disk moved to another file of this host before the shim died, which did not come to say so. What broke:
 * the agent went on with the old path, and a destination that reaches the same storage was told that one: the
 * VM would have gone on there on the file that it had left. */
static void where_the_disks_are_is_read_anew(void **state)
{
    struct xm_jsonl js;
    int listener = *(int *)*state;
    need_qemu();

    must(ask(t, start_request()), 0);
    start_qemu(false);
    json_t *spec = json_load_file(in_dir(t, "state/vms/web1/spec.json"), 0, NULL);
    json_object_set_new(json_array_get(json_object_get(spec, "disks"), 0), "path",
                        json_string(in_dir(t, "ds/moved.raw")));
    assert_int_equal(link(in_dir(t, "ds/web1.raw"), in_dir(t, "ds/moved.raw")), 0);
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL), 0);
    json_decref(spec);
    pid_t shim = shim_pid(t, "web1");
    kill(shim, SIGKILL);
    for (struct limit l = limit_start(20);
         (shim_pid(t, "web1") == shim || strcmp(state_of("web1"), "running")) && limit_wait(&l);)
        ;
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostb"), -1,
                  NULL);
    must_not_be_refused(listener, &js);
    json_t *o = serve_one(listener, json_pack("{s:b, s:[s]}", "ok", 1, "reasons", "no"));
    assert_string_equal(
        xm_json_str(json_array_get(json_object_get(json_object_get(o, "vm"), "disks"), 0), "path", ""),
        in_dir(t, "ds/moved.raw"));
    assert_string_equal(xm_json_str(json_array_get(json_object_get(o, "probes"), 0), "file", ""),
                        "moved.raw");
    json_decref(o);
    must(last_of(&js), 3);
    xm_jsonl_close(&js);
}

/* A move of web1, up to the question to prepare, which is not answered yet. */
static void until_it_prepares(int listener, struct xm_jsonl *js, struct xm_jsonl *peer)
{
    must(ask(t, start_request()), 0);
    start_qemu(false);
    xm_jsonl_init(js, agent_socket());
    xm_jsonl_send(js->fd, move_request(), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b, s:[]}", "ok", 1, "reasons")));
    json_t *o = serve_begin(listener, peer);
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.prepare");
    json_decref(o);
}

/* The destination prepares meanwhile: the new shim was given the job that its user had been told to be over.
 */
static void a_job_that_is_over_is_not_given_to_the_new_shim(void **state)
{
    struct xm_jsonl js, peer;
    int listener = *(int *)*state;
    need_qemu();

    until_it_prepares(listener, &js, &peer);
    kill(shim_pid(t, "web1"), SIGKILL);
    must(last_of(&js), 1);
    assert_string_equal(state_of("web1"), "running"); /* there is a new one */
    xm_jsonl_send(peer.fd, prepared(), -1, NULL);
    xm_jsonl_close(&peer);
    /* Either the destination is told to drop it, or the shim has it. */
    struct pollfd p = {.fd = listener, .events = POLLIN};
    for (struct limit l = limit_start(10);
         !poll(&p, 1, 0) && strcmp(state_of("web1"), "migrating") && limit_wait(&l);)
        ;
    assert_string_equal(state_of("web1"), "running");
    json_t *o = serve_one(listener, json_pack("{s:b}", "ok", 1));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.cancel");
    json_decref(o);
    xm_jsonl_close(&js);
}

/* Of the agent's connection to this program's listener, by the kernel's table. */
static bool keeps_alive(int listener)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    unsigned timer = 0, port, state;
    char line[300];
    FILE *f = fopen("/proc/net/tcp", "re");

    assert_non_null(f);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &len), 0);
    while (!timer && fgets(line, sizeof line, f)) {
        if (sscanf(line, " %*u: %*x:%*x %*x:%x %x %*x:%*x %x:", &port, &state, &timer) != 3 ||
            port != ntohs(at.sin_port) || state != 1)
            timer = 0;
    }
    fclose(f);
    return timer == 2; /* of keepalive */
}

/* The destination prepares, or is gone: the network was down for so long that its answer is lost, and so is
 * its end. What broke: the job stood there for two and a half minutes, and an abort made no difference. */
static void a_destination_that_does_not_answer_is_not_waited_for(void **state)
{
    struct xm_jsonl js, peer;
    int listener = *(int *)*state;
    need_qemu();

    until_it_prepares(listener, &js, &peer);
    assert_true(keeps_alive(listener));
    must(ask(t, json_pack("{s:s, s:s}", "verb", "abort", "job", "1")), 0);
    must_refuse(last_of(&js), 1, "aborted by its user", NULL);
    assert_string_equal(state_of("web1"), "running");
    xm_jsonl_send(peer.fd, prepared(), -1, NULL);
    xm_jsonl_close(&peer);
    json_t *o = serve_one(listener, json_pack("{s:b}", "ok", 1));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.cancel");
    json_decref(o);
    xm_jsonl_close(&js);
}

/* What is asked of the destination, which answers with this reason. */
static json_t *asked_of_the_destination(int listener, const char *reason, size_t want_reasons)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, move_request(), -1, NULL);
    json_t *asked = serve_one(listener, json_pack("{s:b, s:[s]}", "ok", 1, "reasons", reason));
    json_t *o = last_of(&js);
    if (json_array_size(json_object_get(o, "reasons")) != want_reasons)
        fail_msg("%s", json_dumps(o, 0));
    must(o, 3);
    xm_jsonl_close(&js);
    return asked;
}

/* A guest that came from elsewhere may not have seen what is given to it here. */
static void the_destination_learns_what_is_known_of_the_cpu(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must(ask(t, start_request()), 0);
    json_t *o = asked_of_the_destination(listener, "no", 1);
    assert_true(json_array_size(json_object_get(o, "cpu")) > 10);
    assert_null(json_object_get(o, "cpu_why"));
    assert_false(xm_json_bool(o, "booted", true)); /* there is no QEMU */
    json_decref(o);
    for (int came = 0; came < 2; came++) {
        start_qemu(came);
        o = asked_of_the_destination(listener, "no", 1);
        assert_int_equal(xm_json_bool(o, "booted", came), !came);
        json_decref(o);
        end_qemu();
    }
}

static void write_program(const char *name, const char *text)
{
    assert_int_equal(xm_file_replace(in_dir(t, name), text, strlen(text), NULL), 0);
    assert_int_equal(chmod(in_dir(t, name), 0755), 0);
}

static void write_spec(const char *more)
{
    FILE *f = fopen(in_dir(t, "spec.ini"), "we");

    fprintf(f, "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n%s", more);
    fclose(f);
}

/* The first answer without a machine is what it is, the second would be its CPU. */
static void a_source_that_cannot_tell_the_guests_cpu_says_why(void **state)
{
    char line[200];
    need_qemu();
    write_program("qemu",
                  "#!/bin/sh\ncase \"$*\" in '-machine none'*)\n"
                  "[ -e $0.asked ] && echo 'it has no CPU today' >&2 && exit 1\ntouch $0.asked\nesac\n"
                  "exec qemu-system-x86_64 \"$@\"\n");
    snprintf(line, sizeof line, "qemu = %s\n", in_dir(t, "qemu"));
    write_spec(line);
    must(ask(t, start_request()), 0);
    json_t *o = asked_of_the_destination(*(int *)*state, "no", 1);
    assert_null(json_object_get(o, "cpu"));
    if (!strstr(xm_json_str(o, "cpu_why", ""), "it has no CPU today"))
        fail_msg("%s", json_dumps(o, 0));
    json_decref(o);
}

/* This QEMU tells its guests rings of 1024, as 10.0.13 does. Those of disks have that size; any other virtio
 * device's are smaller, also that of one that is attached by hand. */
static void the_destination_learns_of_large_rings(void **state)
{
    static const char *const more[] = {"", "extra = -device\nextra = virtio-keyboard-pci\n", "rng = yes\n"};
    char lines[300];
    need_qemu();

    write_program("qemu",
                  "#!/bin/sh\ncase \"$*\" in *virtio-net-pci,id=n,*)\n"
                  "echo '{\"return\": {\"vring-num-default\": 1024}, \"id\": \"asked\"}'\nexit 0\nesac\n"
                  "exec qemu-system-x86_64 \"$@\"\n");
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        snprintf(lines, sizeof lines, "qemu = %s\n%s", in_dir(t, "qemu"), more[i]);
        write_spec(lines);
        must(ask(t, start_request()), 0);
        json_t *o = asked_of_the_destination(*(int *)*state, "no", 1);
        assert_int_equal(xm_json_bool(o, "large_rings", false), i > 0);
        json_decref(o);
        must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    }
}

/* Its program has been replaced, and cannot be asked any more. What broke: nothing was said of the rings
 * then, check said yes, and the destination's QEMU refused the guest in the switch-over. */
static void of_a_qemu_that_was_replaced_the_version_tells(void **state)
{
    static const char *const version[] = {"9.2.4", "10.0.13", "10.2.1", "11.0.0"};
    need_qemu();

    write_spec("rng = yes\n");
    must(ask(t, start_request()), 0);
    for (size_t i = 0; i < sizeof version / sizeof *version; i++) {
        assert_int_equal(
            xm_file_replace(in_dir(t, "run/vms/web1/version"), version[i], strlen(version[i]), NULL), 0);
        json_t *o = asked_of_the_destination(*(int *)*state, "no", 1);
        assert_int_equal(xm_json_bool(o, "large_rings", false), !strncmp(version[i], "10.", 3));
        json_decref(o);
    }
}

static void what_both_sides_say_is_said_once(void **state)
{
    static const char both[] = "'vfio-pci' attaches something of its host to web1 that cannot move (vfio)";
    int listener = *(int *)*state;
    need_qemu();

    write_spec("extra = -device\nextra = vfio-pci\n");
    must(ask(t, start_request()), 0);
    json_decref(asked_of_the_destination(listener, both, 1));
    json_decref(asked_of_the_destination(listener, "another", 2));
}

/* The peer has reasons, or talks nonsense: nothing begins, or it ends with the VM here. */
static void a_peer_that_refuses_or_lies(void **state)
{
    struct xm_jsonl js;
    int listener = *(int *)*state;
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    xm_jsonl_init(&js, agent_socket());
    json_t *move = move_request();
    xm_jsonl_send(js.fd, json_incref(move), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b, s:[s, i]}", "ok", 1, "reasons", "no room", 7)));
    json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_int_equal(json_array_size(json_object_get(o, "reasons")), 1);
    must(o, 3);
    xm_jsonl_send(js.fd, json_incref(move), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b}", "ok", 1)));
    json_decref(serve_one(listener, json_pack("{s:b, s:s, s:i, s:[], s:[]}", "ok", 1, "token", "../../x",
                                              "port", -5, "links", "disks")));
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    must(o, 1);
    xm_jsonl_close(&js);
    json_decref(move);
    assert_string_equal(state_of("web1"), "running");
}

/* As `list` names it at the destination. What broke: watch said that there is none, and abort whose it is. */
static void a_job_of_another_host_is_named_as_that(void **state)
{
    static const char *const verbs[] = {"watch", "abort", "set"};
    (void)state;

    for (int i = 0; i < 3; i++)
        must_refuse(ask(t, json_pack("{s:s, s:s, s:i}", "verb", verbs[i], "job", "hostb:12", "bandwidth", 1)),
                    1, "job hostb:12 is that host's: say it there", NULL);
}

/* The agent is stopped: ds has that target, and another datastore on its file system a higher one. */
static void two_on_one_file_system(int target)
{
    char *conf = NULL;
    size_t len;

    test_agent_stop(t, SIGTERM);
    assert_int_equal(mkdir(in_dir(t, "two"), 0700), 0);
    assert_int_equal(xm_file_read(in_dir(t, "conf"), 4096, &conf, &len, NULL), 0);
    char *peer = strstr(conf, "[peer hostb]");
    char *text = xm_printf("%.*starget = %d%%\n[datastore two]\npath = %s\ntarget = %d%%\n%s",
                           (int)(peer - conf), conf, target, in_dir(t, "two"), target > 99 ? 100 : 99, peer);
    assert_int_equal(xm_file_replace(in_dir(t, "conf"), text, strlen(text), NULL), 0);
    free(text);
    free(conf);
}

/* web1 with 4 MiB of data in a datastore that is above its target, as long as more than 1 % of the file
 * system is in use; beside it on that file system another one. */
static void too_full(void)
{
    char data[4096];
    struct statvfs fs;

    if (!statvfs(in_dir(t, "ds"), &fs) && (fs.f_blocks - fs.f_bavail) / 2 < fs.f_blocks / 100) {
        print_message("skipped: hardly more than 1 %% of this file system is in use\n");
        skip();
    }
    two_on_one_file_system(1);
    const char *text =
        "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = web1.raw\n"
        "size = 4M\n";
    assert_int_equal(xm_file_replace(in_dir(t, "spec.ini"), text, strlen(text), NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, start_request()), 0);
    memset(data, 1, sizeof data);
    int fd = open(in_dir(t, "ds/web1.raw"), O_WRONLY | O_CLOEXEC);
    for (int i = 0; i < 1024; i++)
        assert_int_equal(pwrite(fd, data, sizeof data, (off_t)i * 4096), sizeof data);
    fsync(fd); /* else it takes up nothing yet */
    close(fd);
}

static void serve_datastores(int listener)
{
    json_t *o =
        serve_one(listener, json_pack("{s:b, s:s, s:I, s:[{s:s, s:I, s:i, s:i}]}", "ok", 1, "host", "hostb",
                                      "memory_free", (json_int_t)1 << 40, "datastores", "name", "far", "size",
                                      (json_int_t)1 << 42, "used", 0, "target", 80));

    assert_string_equal(xm_json_str(o, "verb", ""), "peer.datastores");
    json_decref(o);
}

/* What broke: cron mailed each night that the two are one. */
static void a_night_without_anything_to_do_has_no_mail(void **state)
{
    struct xm_jsonl js;
    json_t *o;

    two_on_one_file_system(100);
    assert_int_equal(test_agent_start(t), 0);
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s}", "verb", "rebalance"), -1, NULL);
    serve_datastores(*(int *)*state);
    o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    if (!json_object_get(o, "ok"))
        fail_msg("%s", xm_json_str(o, "text", "?"));
    assert_int_equal(json_array_size(json_object_get(o, "plan")), 0);
    must(o, 0);
    xm_jsonl_close(&js);
}

/* What broke: the plan knew nothing of bridges and CPUs, its first move was refused, and that ended it: the
 * same every night, whatever else could have been moved. And that VMs were moved from one directory of a file
 * system to another, every night more of them, as if that freed something. */
static void rebalance_plans_around_what_is_refused(void **state)
{
    struct xm_jsonl js;
    int listener = *(int *)*state;
    char said[300] = "";
    int one = 0;
    json_t *o;
    need_qemu();

    too_full();
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s}", "verb", "rebalance"), -1, NULL);
    /* Seen: two of them, each with its own plan; the second took a move of the first for a refusal, and moved
     * another VM instead. */
    struct pollfd asked = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&asked, 1, (int)(LIMIT_HANG_NS / 1000000)), 1);
    o = ask(t, json_pack("{s:s}", "verb", "rebalance"));
    assert_non_null(strstr(xm_json_str(o, "error", ""), "another rebalance is at work on hosta"));
    must(o, 3);
    serve_datastores(listener);
    o = serve_one(listener, json_pack("{s:b, s:[s]}", "ok", 1, "reasons", "there is no bridge br7"));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.check");
    json_decref(o);
    serve_datastores(listener);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok")) {
        const char *text = xm_json_str(o, "text", "");
        bool about = strstr(text, "on the file system of 'ds'") != NULL;
        one += about;
        if (!about)
            snprintf(said, sizeof said, "%s", text);
        json_decref(o);
    }
    assert_int_equal(one, 1); /* not again with the second plan */
    assert_string_equal(said, "VM web1 is not moved to hostb:far: there is no bridge br7");
    assert_int_equal(json_array_size(json_object_get(o, "plan")), 0);
    assert_int_equal(json_array_size(json_object_get(o, "over")), 1);
    must(o, 0);
    xm_jsonl_close(&js);
}

/* What broke: it was said to have failed, with the exit status of a VM that stays where it is. */
static void a_move_of_a_rebalance_outlives_its_agent(void **state)
{
    struct xm_jsonl js;
    int listener = *(int *)*state;
    json_t *o;
    need_qemu();

    too_full();
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s}", "verb", "rebalance"), -1, NULL);
    serve_datastores(listener);
    json_decref(serve_one(listener, json_pack("{s:b, s:[]}", "ok", 1, "reasons")));
    json_decref(serve_one(listener, prepared()));
    for (struct limit l = limit_start(20); limit_wait(&l) && strcmp(state_of("web1"), "migrating") != 0;)
        ;
    test_agent_stop(t, SIGTERM);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    assert_true(xm_json_bool(o, "lost", false));
    must_refuse(o, 4, "job 1, which moves VM web1, goes on", NULL);
    xm_jsonl_close(&js);
    assert_int_equal(test_agent_start(t), 0);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, peer_set_up, move_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(a_move_is_followed_to_its_end_and_remembered),
        TEST(a_report_that_was_heard_counts_without_its_file),
        TEST(a_move_ends_while_no_agent_is_there),
        TEST(a_move_outlives_its_agent),
        TEST(an_abort_ends_it_with_the_vm_here),
        TEST(a_destination_that_does_not_answer_is_not_waited_for),
        TEST(the_vm_ends_in_a_move),
        TEST(a_guest_that_powers_itself_off_can_be_started_at_once),
        TEST(an_end_is_told_though_its_shim_hangs),
        TEST(the_shim_dies_in_the_hand_off),
        TEST(the_vm_runs_on_when_only_the_shim_dies),
        TEST(a_shim_that_dies_after_its_last_word_is_heard),
        TEST(the_shim_dies_in_a_move_of_the_disks),
        TEST(where_the_disks_are_is_read_anew),
        TEST(a_job_that_is_over_is_not_given_to_the_new_shim),
        TEST(the_destination_learns_what_is_known_of_the_cpu),
        TEST(a_source_that_cannot_tell_the_guests_cpu_says_why),
        TEST(the_destination_learns_of_large_rings),
        TEST(of_a_qemu_that_was_replaced_the_version_tells),
        TEST(what_both_sides_say_is_said_once),
        TEST(a_peer_that_refuses_or_lies),
        TEST(a_job_of_another_host_is_named_as_that),
        TEST(rebalance_plans_around_what_is_refused),
        TEST(a_move_of_a_rebalance_outlives_its_agent),
        TEST(a_night_without_anything_to_do_has_no_mail),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("agent: moves", tests, NULL, NULL);
}
