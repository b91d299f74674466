/* SPDX-License-Identifier: MIT */
/* Disks that move on their host, by the shim's own threads and files: again and again, looked at meanwhile,
 * and given up. No guest, and a QEMU that says nothing. */
#include "mirror/disk.h"
#include "shim/shim.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE (2u << 20)

static struct shim shim;
static pthread_t thread;
static char *path, dir[300], faults[] = "/tmp/xmt-faults-XXXXXX";
static int monitor; /* QEMU's end */

static void *run(void *unused)
{
    (void)unused;
    xm_mailbox_own(&shim.machine.mailbox);
    shim_run(&shim);
    return NULL;
}

/* It is asked by QMP whether it says something, and has to be alive. */
static void make_qemu(void)
{
    struct qemu *q = &shim.machine.qemu;
    int pair[2];
    pid_t pid = fork();

    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        for (;;)
            pause();
    }
    assert_true(pid > 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    q->pid = pid;
    q->child = true;
    q->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    xm_jsonl_init(&q->qmp.conn, pair[0]);
    monitor = pair[1];
}

static int set_up(void **state)
{
    struct owner_record mine = {.epoch = 1, .owner = OWNER_MINE, .settled = true};
    struct xm_error e = {0};

    if (tmpdir_make(state))
        return -1;
    snprintf(dir, sizeof dir, "%s", tmpdir_path(""));
    path = xm_printf("%s/shim.sock", dir);
    char *disk = xm_printf("%s/root-0", dir), *config = xm_printf("%s/shim.json", dir);
    json_t *o = json_pack(
        "{s:{s:s, s:i, s:i, s:s, s:s, s:[{s:s, s:s, s:s, s:I, s:i}], s:[]}, s:s, s:s, s:s, s:s, s:i}", "vm",
        "name", "web1", "memory", 16 << 20, "vcpus", 1, "qemu", "qemu-system-x86_64", "machine", "q35",
        "disks", "name", "root", "path", disk, "datastore", "one", "size", (json_int_t)SIZE, "queues", 1,
        "nics", "host", "hosta", "state_dir", dir, "run_dir", dir, "engine", "libaio", "epoch", 1);
    int r = xm_json_save(config, o, &e);
    json_decref(o);
    char *zeros = calloc(1, SIZE);
    memset(zeros, 7, SIZE);
    if (!r)
        r = xm_file_replace(disk, zeros, SIZE, &e);
    free(zeros);
    free(disk);
    if (!r)
        r = shim_new(&shim, config, &e);
    free(config);
    if (!r)
        r = xm_mkdir_all(shim.machine.run_dir, &e);
    if (!r)
        r = owner_save(shim.machine.state_dir, "web1", &mine, &e);
    if (!r)
        r = xm_mailbox_init(&shim.machine.mailbox);
    if (!r)
        r = machine_disk_start(&shim.machine.disk[0], &e);
    if (!r)
        r = machine_disk_serve(&shim.machine.disk[0], &e);
    if (!r && (shim.listen_fd = xm_unix_listen(path, &e)) < 0)
        r = -1;
    make_qemu();
    if (!r)
        r = pthread_create(&thread, NULL, run, NULL);
    if (r)
        print_message("%s\n", e.text);
    return r;
}

static void ends(struct xm_post *unused)
{
    (void)unused;
    shim_end(&shim);
}

static int tear_down(void **state)
{
    struct xm_post post = {.run = ends};

    close(monitor); /* so that it is not waited for */
    xm_mailbox_post(&shim.machine.mailbox, &post);
    pthread_join(thread, NULL);
    xm_mailbox_own(&shim.machine.mailbox);
    xm_mailbox_run(&shim.machine.mailbox);
    shim_free(&shim);
    free(path);
    return tmpdir_remove(state);
}

static json_t *ask(struct xm_jsonl *js, json_t *request)
{
    json_t *o;

    json_object_set_new(request, "id", json_integer(1));
    assert_int_equal(xm_jsonl_send(js->fd, request, -1, NULL), 0);
    while ((o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "id"))
        json_decref(o);
    assert_non_null(o);
    return o;
}

static void subscribe(struct xm_jsonl *js)
{
    int fd = xm_unix_connect(path, NULL);

    assert_true(fd >= 0);
    xm_jsonl_init(js, fd);
    json_decref(ask(js, json_pack("{s:s}", "cmd", "subscribe")));
}

static json_t *mark; /* of the datastore; NULL: not known */

/* The disk goes to root-N. */
static void begin(struct xm_jsonl *js, int n, int bandwidth)
{
    char *to = xm_printf("%s/root-%d", dir, n), *job = xm_printf("%d", n);
    json_t *o =
        ask(js, json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:s}], s:{s:i}, s:O*}", "cmd", "storage", "job", job,
                          "destination", "hosta", "datastore", n % 2 ? "two" : "one", "disks", "name", "root",
                          "path", to, "options", "bandwidth", bandwidth, "mark", mark));

    if (!xm_json_bool(o, "ok", false))
        fail_msg("%s", xm_json_str(o, "error", ""));
    json_decref(o);
    free(job);
    free(to);
}

/* Its last event. */
static json_t *ended(struct xm_jsonl *js)
{
    for (json_t *o; (o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)); json_decref(o)) {
        const char *what = xm_json_str(o, "event", "");
        if (!strcmp(what, "done") || !strcmp(what, "failed"))
            return o;
    }
    fail_msg("it does not end");
    return NULL;
}

static void move(struct xm_jsonl *js, int n)
{
    begin(js, n, 0);
    json_t *o = ended(js);
    if (strcmp(xm_json_str(o, "event", ""), "done") != 0)
        fail_msg("%s", xm_json_str(o, "error", ""));
    json_decref(o);
    /* The agent's to delete. */
    char *old = xm_printf("%s/root-%d", dir, n - 1), *left = xm_printf("%s/left", dir);
    unlink(old);
    xm_rmdir_files(left, NULL);
    free(left);
    free(old);
}

struct looker {
    pthread_t thread;
    atomic_bool stop;
    unsigned looks, wrong;
};

/* As `xmigrate list`, and an agent that watches. */
static void *look(void *arg)
{
    struct looker *l = arg;
    struct xm_jsonl js;

    xm_jsonl_init(&js, xm_unix_connect(path, NULL));
    for (; !l->stop; l->looks++) {
        json_t *o = ask(&js, json_pack("{s:s}", "cmd", "status"));
        const json_t *d = json_array_get(json_object_get(o, "disks"), 0);
        const char *at = strrchr(xm_json_str(d, "path", ""), '-'), *store = xm_json_str(d, "datastore", "");
        /* The file and its datastore, of one moment. */
        l->wrong += !at || strcmp(store, atoi(at + 1) % 2 ? "two" : "one") != 0;
        json_decref(o);
    }
    xm_jsonl_close(&js);
    return NULL;
}

/* What broke: who looked at the VM in the moment of the swap was told the path of a file that was just being
 * closed and freed, by another thread; or one disk's new path and old datastore. */
static void who_looks_while_a_disk_moves_sees_it_in_one_place(void **state)
{
    struct looker l = {0};
    struct xm_jsonl js;
    (void)state;

    subscribe(&js);
    assert_int_equal(pthread_create(&l.thread, NULL, look, &l), 0);
    for (int n = 1; n <= 40; n++)
        move(&js, n);
    l.stop = true;
    pthread_join(l.thread, NULL);
    xm_jsonl_close(&js);
    assert_true(l.looks > 0);
    assert_int_equal(l.wrong, 0);
}

/* The fault point in the file, which goes when it has acted. */
static void arm(const char *point)
{
    assert_int_equal(xm_file_replace(faults, point, strlen(point), NULL), 0);
}

static unsigned entries(const char *of)
{
    DIR *d = opendir(of);
    unsigned n = 0;

    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

/* A shim lives as long as its VM. What broke besides: one move right after another was refused now and then,
 * as if the guest stood still: the first had told of its end, and was not gone yet. */
static void nothing_is_left_of_many_moves(void **state)
{
    enum { MOVES = 60 };
    struct xm_jsonl js;
    (void)state;

    arm("source-told:*:delay=5");
    subscribe(&js);
    for (int n = 1; n <= 20; n++)
        move(&js, n);
    poll(NULL, 0, 50);
    unsigned fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    size_t memory = mallinfo2().uordblks;
    for (int n = 21; n <= 20 + MOVES; n++)
        move(&js, n);
    for (struct limit w = limit_start(5); entries("/proc/self/task") > threads && limit_wait(&w);)
        ;
    assert_int_equal(entries("/proc/self/fd"), fds);
    assert_int_equal(entries("/proc/self/task"), threads);
    size_t more = mallinfo2().uordblks - memory;
    if ((ssize_t)more > MOVES * 100)
        fail_msg("%zu bytes more", more);
    xm_jsonl_close(&js);
    unlink(faults);
}

/* As a guest that writes faster than the new disk takes it: all of it is to be copied once more. */
static void spoil(struct machine_disk *d, void *unused)
{
    (void)unused;
    give_up_range(d->disk, 0, SIZE);
}

/* What broke: it was only taken note of, as long as the guest outran the copy; nor did the move end by that
 * (--outrun), or tell its progress. */
static void a_move_is_given_up_also_while_it_waits_to_swap(void **state)
{
    struct xm_jsonl js;
    bool over = false;
    (void)state;

    subscribe(&js);
    arm("storage-copied:1:delay=1000");
    begin(&js, 1, 4 << 20);
    for (struct limit l = limit_start(20); access(faults, F_OK) == 0 && limit_wait(&l);)
        ;
    machine_disk_call(&shim.machine.disk[0], spoil, NULL);
    json_t *o = ask(&js, json_pack("{s:s, s:s}", "cmd", "abort", "job", "1"));
    assert_true(xm_json_bool(o, "ok", false));
    json_decref(o);
    struct pollfd p = {.fd = js.fd, .events = POLLIN};
    for (struct limit l = limit_start(10); !over && limit_wait(&l);) {
        machine_disk_call(&shim.machine.disk[0], spoil, NULL);
        if (poll(&p, 1, 0) <= 0)
            continue;
        o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
        over = !strcmp(xm_json_str(o, "event", ""), "failed");
        if (over)
            assert_non_null(strstr(xm_json_str(o, "error", ""), "aborted"));
        json_decref(o);
    }
    assert_true(over);
    xm_jsonl_close(&js);
}

/* What broke: an abort that came while the last disk was being swapped was taken, and the move was done. */
static void an_abort_that_comes_too_late_is_told(void **state)
{
    struct xm_jsonl js;
    (void)state;

    subscribe(&js);
    arm("pivot-after-record:1:delay=1000");
    begin(&js, 1, 0);
    for (struct limit l = limit_start(20); access(faults, F_OK) == 0 && limit_wait(&l);)
        ;
    json_t *o = ask(&js, json_pack("{s:s, s:s}", "cmd", "abort", "job", "1"));
    assert_false(xm_json_bool(o, "ok", true));
    assert_non_null(strstr(xm_json_str(o, "error", ""),
                           "too late: the disks of VM web1 have moved to datastore "
                           "'two'"));
    json_decref(o);
    o = ended(&js);
    assert_string_equal(xm_json_str(o, "event", ""), "done");
    json_decref(o);
    xm_jsonl_close(&js);
}

/* What broke: its datastore was looked at by the agent, unmounted, and the disk went to where it had been
 * mounted; the next mount hid it. */
static void a_datastore_that_goes_meanwhile_gets_no_disk(void **state)
{
    char *at = xm_printf("%s/mark", dir), *to = xm_printf("%s/root-2", dir);
    struct xm_jsonl js;
    (void)state;

    subscribe(&js);
    move(&js, 1);
    mark = json_pack("{s:s, s:s}", "path", at, "names", "it");
    for (int i = 0; i < 2; i++) { /* none, and another one's */
        begin(&js, 2, 0);
        json_t *o = ended(&js);
        assert_string_equal(xm_json_str(o, "event", ""), "failed");
        if (!strstr(xm_json_str(o, "error", ""), "is it mounted?"))
            fail_msg("%s", xm_json_str(o, "error", ""));
        json_decref(o);
        assert_string_equal(shim.machine.disk[0].spec->datastore, "two");
        unlink(to); /* the agent's to delete, too */
        assert_int_equal(i ? 0 : symlink("another", at), 0);
    }
    assert_int_equal(unlink(at) | symlink("it", at), 0);
    move(&js, 2);
    json_decref(mark);
    mark = NULL;
    xm_jsonl_close(&js);
    free(to);
    free(at);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(who_looks_while_a_disk_moves_sees_it_in_one_place),
        TEST(nothing_is_left_of_many_moves),
        TEST(a_move_is_given_up_also_while_it_waits_to_swap),
        TEST(a_datastore_that_goes_meanwhile_gets_no_disk),
        TEST(an_abort_that_comes_too_late_is_told),
    };

    close(mkstemp(faults)); /* for its name */
    unlink(faults);
    char *at = xm_printf("@%s", faults);
    setenv("XMIGRATE_FAULT", at, 1);
    free(at);
    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests_name("shim: storage", tests, NULL, NULL);
    unlink(faults);
    return failed;
}
