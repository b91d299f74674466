/* SPDX-License-Identifier: MIT */
/* Who hears a shim's events, and may act on them. The shim has neither QEMU nor disks here. */
#include "shim/shim.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct shim shim;
static pthread_t thread;
static char *path;

static void *run(void *unused)
{
    (void)unused;
    xm_mailbox_own(&shim.machine.mailbox);
    shim_run(&shim);
    return NULL;
}

static int set_up(void **state)
{
    struct xm_error e = {0};

    if (tmpdir_make(state))
        return -1;
    const char *config = tmpdir_path("shim.json"), *dir = tmpdir_path("");
    path = xm_printf("%s", tmpdir_path("shim.sock"));
    json_t *o =
        json_pack("{s:{s:s, s:i, s:i, s:s, s:s, s:[], s:[]}, s:s, s:s, s:s, s:i}", "vm", "name", "web1",
                  "memory", 16 << 20, "vcpus", 1, "qemu", "qemu-system-x86_64", "machine", "q35", "disks",
                  "nics", "host", "hosta", "state_dir", dir, "run_dir", dir, "epoch", 1);
    int r = xm_json_save(config, o, &e);
    if (!r)
        r = shim_new(&shim, config, &e);
    if (!r)
        r = xm_mailbox_init(&shim.machine.mailbox);
    if (!r && (shim.listen_fd = xm_unix_listen(path, &e)) < 0)
        r = -1;
    if (!r)
        r = pthread_create(&thread, NULL, run, NULL);
    if (r)
        print_message("%s\n", e.text);
    json_decref(o);
    return r;
}

static void ends(struct xm_post *unused)
{
    (void)unused;
    shim_end(&shim);
}

static void end_shim(void)
{
    struct xm_post post = {.run = ends};

    xm_mailbox_post(&shim.machine.mailbox, &post);
    pthread_join(thread, NULL);
    xm_mailbox_own(&shim.machine.mailbox);
    xm_mailbox_run(&shim.machine.mailbox); /* it may have ended before it came to that */
    shim_free(&shim);
}

static int clean_up(void **state)
{
    free(path);
    return tmpdir_remove(state);
}

static int tear_down(void **state)
{
    end_shim();
    return clean_up(state);
}

static void subscribe(struct xm_jsonl *js)
{
    int fd = xm_unix_connect(path, NULL);

    assert_true(fd >= 0);
    xm_jsonl_init(js, fd);
    assert_int_equal(xm_jsonl_send(fd, json_pack("{s:i, s:s}", "id", 1, "cmd", "subscribe"), -1, NULL), 0);
    json_t *o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_true(xm_json_bool(o, "ok", false));
    json_decref(o);
}

static void must_hear(struct xm_jsonl *js, const char *event)
{
    json_t *o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);

    assert_string_equal(xm_json_str(o, "event", ""), event);
    json_decref(o);
}

/* What broke: an agent that had not read for minutes was told nothing any more, on a connection that stayed:
 * the job that it watched ran for ever. */
static void who_cannot_be_told_is_hung_up_on_and_comes_again(void **state)
{
    struct xm_jsonl js, other;
    (void)state;

    subscribe(&js);
    subscribe(&other);
    shim.machine.emit(&shim.machine, json_pack("{s:s}", "event", "first"));
    must_hear(&js, "first");
    must_hear(&other, "first");
    assert_int_equal(shutdown(js.fd, SHUT_RD), 0); /* what is sent to it now fails at once */
    shim.machine.emit(&shim.machine, json_pack("{s:s}", "event", "done"));
    struct pollfd p = {.fd = js.fd};
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    assert_true(p.revents & POLLHUP);
    must_hear(&other, "done");
    xm_jsonl_close(&js);
    subscribe(&js);
    must_hear(&js, "done");
    xm_jsonl_close(&js);
    xm_jsonl_close(&other);
}

/* One that could not be made is none, and ends nothing. */
static void no_event_is_not_told(void **state)
{
    struct xm_jsonl js;
    (void)state;

    subscribe(&js);
    shim.machine.emit(&shim.machine, json_pack("{s:s}", "event", "\xff"));
    shim.machine.emit(&shim.machine, json_pack("{s:s}", "event", "next"));
    must_hear(&js, "next");
    xm_jsonl_close(&js);
}

static atomic_int closed_twice;

/* In libc's place, for all of this program. */
int close(int fd)
{
    static int (*next)(int); /* libc's, or a sanitizer's, which goes by it */

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "close");
    int r = next(fd);

    if (r < 0 && errno == EBADF && fd >= 0)
        closed_twice++;
    return r;
}

/* What broke: it was closed twice when its connection ended. In between the number could be another thread's:
 * a disk's file, a link. */
static void a_descriptor_that_nobody_wants_is_closed_once(void **state)
{
    struct xm_jsonl js, other;
    int p[2];
    char c;
    (void)state;

    assert_int_equal(pipe(p), 0);
    subscribe(&js);
    assert_int_equal(xm_jsonl_send(js.fd, json_pack("{s:i, s:s}", "id", 2, "cmd", "status"), p[1], NULL), 0);
    json_decref(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL));
    close(p[1]);
    closed_twice = 0;
    xm_jsonl_close(&js);
    assert_int_equal(read(p[0], &c, 1), 0); /* the shim has closed it */
    subscribe(&other);                      /* it is at its loop's head again */
    assert_int_equal(closed_twice, 0);
    xm_jsonl_close(&other);
    close(p[0]);
}

/* ---- a migration that the destination refuses ---- */

static void refuse(void *unused, struct xm_rx *rx)
{
    static const char no[] = "{\"ok\":false,\"error\":\"no\"}";

    (void)unused;
    xm_rx_done(rx, 0, no, sizeof no - 1);
}

#define TOKEN "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static json_t *migrate(int id, const char *job, unsigned port)
{
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:i, s:[{s:s, s:s}], s:[]}", "id", id, "cmd", "migrate",
                     "job", job, "token", TOKEN, "destination", "hostb", "port", port, "links", "local",
                     "127.0.0.1", "remote", "127.0.0.1", "disks");
}

/* As the destination's agent takes a link, up to where the shim gets it. */
static int accept_link(int listener)
{
    int fd = accept(listener, NULL, NULL);
    char c = 0;

    while (c != '\n' && recv(fd, &c, 1, 0) == 1)
        ;
    return fd;
}

static json_t *until(struct xm_jsonl *js, const char *key, const char *value)
{
    json_t *o;

    while ((o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)) &&
           (value ? strcmp(xm_json_str(o, key, ""), value) != 0 : !json_object_get(o, key)))
        json_decref(o);
    assert_non_null(o);
    return o;
}

/* One whose other side refuses it, and takes its time to close the link: its job is 5. */
struct slow_end {
    struct xm_links *there;
    struct xm_jsonl js;
    int listener, link, open;
    unsigned port;
};

static void begin_move_by(struct slow_end *t, json_t *request)
{
    struct owner_record mine = {.epoch = 1, .owner = OWNER_MINE, .settled = true};
    struct xm_links_opts o = {.sink = {.frame = refuse}};
    struct sockaddr_in at = {0};
    socklen_t len = sizeof at;
    struct xm_error e = {0};

    t->listener = xm_tcp_listen("127.0.0.1", 0, NULL);
    getsockname(t->listener, (struct sockaddr *)&at, &len);
    t->port = ntohs(at.sin_port);
    json_object_set_new(request, "port", json_integer(t->port));
    assert_int_equal(owner_save(shim.machine.state_dir, "web1", &mine, &e), 0);
    xm_hex_get(o.token, sizeof o.token, TOKEN);
    t->there = xm_links_new(&o, &e);
    subscribe(&t->js);
    assert_int_equal(xm_jsonl_send(t->js.fd, request, -1, NULL), 0);
    t->link = accept_link(t->listener);
    t->open = dup(t->link);
}

static void begin_move(struct slow_end *t)
{
    begin_move_by(t, migrate(2, "5", 0));
}

static void refuse_it(struct slow_end *t)
{
    struct xm_error e = {0};

    assert_true(xm_links_add(t->there, t->link, false, "l", &e) >= 0);
    json_decref(until(&t->js, "event", "failed"));
}

static void end_refused(struct slow_end *t)
{
    xm_jsonl_close(&t->js);
    xm_links_free(t->there);
    close(t->open);
    close(t->listener);
}

/* What broke: they were tried one after the other, and four that were silent took all the time that the
 * destination waits. */
static void links_come_up_beside_each_other(void **state)
{
    json_t *request = migrate(2, "5", 0), *links = json_object_get(request, "links");
    struct xm_error e = {0};
    struct slow_end t;
    int more[2];
    (void)state;

    for (int i = 0; i < 2; i++)
        json_array_append_new(links, json_deep_copy(json_array_get(links, 0)));
    begin_move_by(&t, request);
    for (int i = 0; i < 2; i++)
        more[i] = accept_link(t.listener);
    struct pollfd first = {.fd = t.link, .events = POLLRDHUP};
    assert_int_equal(poll(&first, 1, 0), 0); /* it was not given up before the others were tried */
    for (int i = 0; i < 2; i++)
        assert_true(xm_links_add(t.there, more[i], false, "l", &e) >= 0);
    refuse_it(&t);
    end_refused(&t);
}

/* What broke: it was refused as if its guest stood still, and the advice was to end the VM by force. */
static void a_move_may_follow_at_once_on_one_that_failed(void **state)
{
    struct slow_end t;
    (void)state;

    begin_move(&t);
    refuse_it(&t);
    assert_int_equal(xm_jsonl_send(t.js.fd, migrate(3, "6", t.port), -1, NULL), 0);
    json_t *answer = until(&t.js, "ok", NULL);
    if (!xm_json_bool(answer, "ok", false))
        fail_msg("%s", xm_json_str(answer, "error", ""));
    json_decref(answer);
    close(accept_link(t.listener));
    json_decref(until(&t.js, "event", "failed"));
    end_refused(&t);
}

static sem_t told;
static bool still;

static void on_its_thread(void (*what)(struct xm_post *))
{
    struct xm_post post = {.run = what};

    sem_init(&told, 0, 0);
    xm_mailbox_post(&shim.machine.mailbox, &post);
    sem_wait(&told);
}

/* On the shim's thread, whose the source is. */
static void qemu_is_gone(struct xm_post *unused)
{
    (void)unused;
    still = shim.source != NULL;
    if (still)
        source_qemu_gone(shim.source);
    sem_post(&told);
}

/* What broke: waiting for its end it heard that its QEMU had ended, and began the next one all the same. */
static void no_move_follows_when_its_qemu_has_ended(void **state)
{
    struct slow_end t;
    (void)state;

    begin_move(&t);
    refuse_it(&t);
    on_its_thread(qemu_is_gone);
    if (!still) { /* a slow machine: its links are down already */
        end_refused(&t);
        skip();
    }
    assert_int_equal(xm_jsonl_send(t.js.fd, migrate(3, "6", t.port), -1, NULL), 0);
    json_t *answer = until(&t.js, "ok", NULL);
    assert_false(xm_json_bool(answer, "ok", true));
    json_decref(answer);
    end_refused(&t);
}

static void comes(struct xm_post *unused)
{
    json_t *in = json_pack("{s:s, s:s, s:s}", "token", TOKEN, "source", "hostc", "job", "9");

    (void)unused;
    shim.destination = destination_new(&shim.machine, in, shim_ended, NULL);
    json_decref(in);
    sem_post(&told);
}

static void has_come(struct xm_post *unused)
{
    (void)unused;
    shim_ended(&shim.machine, MIGRATE_CAME);
    still = shim.source != NULL;
    sem_post(&told);
}

/* What broke: a VM moved on before its source had closed the links by which it had come. Its shim told of the
 * job that was over; and when they were closed, its main thread waited for the end of the move that went out,
 * freed that, and then ran its last post. */
static void a_move_that_has_come_in_ends_beside_one_that_goes_out(void **state)
{
    struct slow_end t;
    (void)state;

    begin_move(&t);
    on_its_thread(comes);
    assert_int_equal(xm_jsonl_send(t.js.fd, json_pack("{s:i, s:s}", "id", 4, "cmd", "status"), -1, NULL), 0);
    json_t *o = until(&t.js, "role", NULL);
    assert_string_equal(xm_json_str(o, "role", ""), "owner");
    assert_string_equal(xm_json_str(o, "job", ""), "5");
    json_decref(o);
    on_its_thread(has_come);
    assert_true(still);
    refuse_it(&t);
    end_refused(&t);
}

static struct {
    bool heard, by_nobody;
} last_words;

static void hear(void *vm, const char *name, const json_t *data, uint64_t when)
{
    last_words.heard = true;
    last_words.by_nobody = !shim.destination;
    shim.machine.qmp_event(vm, name, data, when);
}

/* One that says how its migration has ended when it is told to quit. */
static void has_qemu(struct xm_post *unused)
{
    static const char words[] = "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n"
                                "{\"return\":{},\"id\":1}\n";
    struct qemu *q = &shim.machine.qemu;
    char request[256];
    int pair[2];

    (void)unused;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid_t pid = fork();
    if (!pid) {
        setsid();
        _exit(read(pair[1], request, sizeof request) <= 0 || write(pair[1], words, sizeof words - 1) < 0);
    }
    close(pair[1]);
    q->pid = pid;
    q->child = true;
    q->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    xm_jsonl_init(&q->qmp.conn, pair[0]);
    q->qmp.event = hear;
    q->qmp.ctx = &shim.machine;
    sem_post(&told);
}

/* What broke: they were for the migration that had come to nothing, whose memory was another's by then. Seen
 * with the thread sanitizer. */
static void its_qemus_last_words_are_for_nobody_who_has_gone(void **state)
{
    (void)state;

    on_its_thread(comes);
    on_its_thread(has_qemu);
    end_shim();
    assert_true(last_words.heard);
    assert_true(last_words.by_nobody);
}

static void qemu_has_ended(struct xm_post *unused)
{
    (void)unused;
    shim.qemu_ended = true;
    sem_post(&told);
}

/* What broke: nobody told that its QEMU had ended. The move that had come in left it to the one that went
 * out, and that had not known of it. */
static void the_last_of_two_tells_that_its_qemu_has_ended(void **state)
{
    struct slow_end t;
    (void)state;

    begin_move(&t);
    on_its_thread(comes);
    on_its_thread(qemu_has_ended);
    on_its_thread(has_come);
    assert_true(still);
    refuse_it(&t);
    shutdown(t.open, SHUT_RDWR);
    json_decref(until(&t.js, "event", "stopped"));
    end_refused(&t);
}

/* What broke: it set the one that had begun meanwhile. */
static void what_is_set_is_the_job_that_is_named(void **state)
{
    static const char *const job[] = {"4", "5"};
    struct slow_end t;
    (void)state;

    begin_move(&t);
    for (int i = 0; i < 2; i++) {
        json_t *o =
            json_pack("{s:i, s:s, s:s, s:i}", "id", 7 + i, "cmd", "set", "job", job[i], "bandwidth", 1 << 20);
        assert_int_equal(xm_jsonl_send(t.js.fd, o, -1, NULL), 0);
        json_t *answer;
        for (; (answer = until(&t.js, "ok", NULL)) && xm_json_int(answer, "id", 0) != 7 + i;)
            json_decref(answer);
        assert_int_equal(xm_json_bool(answer, "ok", false), i);
        json_decref(answer);
    }
    refuse_it(&t);
    end_refused(&t);
}

static void state_is(struct xm_jsonl *js, const char *state)
{
    assert_int_equal(xm_jsonl_send(js->fd, json_pack("{s:i, s:s}", "id", 4, "cmd", "status"), -1, NULL), 0);
    json_t *o = until(js, "role", NULL); /* no event has it */
    assert_string_equal(xm_json_str(o, "state", ""), state);
    json_decref(o);
}

static void look_for_it(struct xm_post *unused)
{
    (void)unused;
    still = shim.source != NULL;
    sem_post(&told);
}

/* What broke: only after a move was a guest called paused. `recover`, which lets run what QEMU has not let
 * run, said of one that its user had paused that it ran. */
static void a_guest_that_is_stopped_beside_any_migration_is_paused(void **state)
{
    struct slow_end t;
    struct xm_jsonl js;
    (void)state;

    subscribe(&js);
    assert_int_equal(xm_mkdir_all(shim.machine.run_dir, NULL), 0);
    state_is(&js, "stopped");
    shim.machine.qmp_event(&shim.machine, "STOP", NULL, 0);
    state_is(&js, "paused");
    machine_note_paused(&shim.machine, false); /* RESUME */
    state_is(&js, "stopped");
    /* Nor by a move that comes to nothing before it stops the guest itself. */
    begin_move(&t);
    shim.machine.qmp_event(&shim.machine, "STOP", NULL, 0);
    refuse_it(&t);
    end_refused(&t);
    still = true;
    for (struct limit l = limit_start(10); still && limit_wait(&l);)
        on_its_thread(look_for_it);
    state_is(&js, "paused");
    xm_jsonl_close(&js);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(who_cannot_be_told_is_hung_up_on_and_comes_again),
        TEST(no_event_is_not_told),
        TEST(a_descriptor_that_nobody_wants_is_closed_once),
        TEST(links_come_up_beside_each_other),
        TEST(a_move_may_follow_at_once_on_one_that_failed),
        TEST(no_move_follows_when_its_qemu_has_ended),
        TEST(a_move_that_has_come_in_ends_beside_one_that_goes_out),
        TEST(the_last_of_two_tells_that_its_qemu_has_ended),
        cmocka_unit_test_setup_teardown(its_qemus_last_words_are_for_nobody_who_has_gone, set_up, clean_up),
        TEST(what_is_set_is_the_job_that_is_named),
        TEST(a_guest_that_is_stopped_beside_any_migration_is_paused),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("shim: events", tests, NULL, NULL);
}
