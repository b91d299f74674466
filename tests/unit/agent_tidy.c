/* SPDX-License-Identifier: MIT */
/* What migrations leave behind is taken away within seconds, by an agent that asks the other one; and two
 * agents that ask each other do not wait for each other. The agent is a real one in a process of its own;
 * hostb is this program; shims are make-believe (lib_shim.c). */
#include "tests/unit/lib_agent.h"
#include "vm/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;
static char fault[64]; /* a fault point of the agent's (base/fault.h) */
/* ---- hostb ---- */

static int hostb; /* listens where the agent has its peer */

static int set_up(void **state)
{
    int r = peer_set_up(state);

    hostb = *(int *)*state;
    return r;
}

/* The agent's next request. NULL: none comes within these seconds. */
static json_t *asked(struct xm_jsonl *js, double seconds)
{
    char hello[15];
    struct pollfd p = {.fd = hostb, .events = POLLIN};
    struct limit l = limit_start(seconds);

    while (poll(&p, 1, 10) != 1) {
        if (limit_over(&l))
            return NULL;
    }
    int fd = accept(hostb, NULL, NULL);
    assert_int_equal(recv(fd, hello, sizeof hello, MSG_WAITALL), sizeof hello);
    xm_jsonl_init(js, fd);
    json_t *request = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_non_null(request);
    return request;
}

static void answer(struct xm_jsonl *js, json_t *with)
{
    xm_jsonl_send(js->fd, with, -1, NULL);
    xm_jsonl_close(js);
}

/* Answers the next one, which has to be this. */
static void is_asked(const char *verb, const char *vm, json_t *with)
{
    struct xm_jsonl js;
    json_t *o = asked(&js, 20);

    if (!o)
        fail_msg("%s of %s was never asked", verb, vm);
    assert_string_equal(xm_json_str(o, "verb", ""), verb);
    assert_string_equal(xm_json_str(o, "vm", ""), vm);
    json_decref(o);
    answer(&js, with);
}

static json_t *owner(const char *whose, int epoch, const char *job)
{
    return json_pack("{s:b, s:s, s:i, s:s, s:b, s:b, s:s, s:s, s:s}", "ok", 1, "owner", whose, "epoch", epoch,
                     "to", "", "settled", 1, "present", 1, "role", "owner", "state", "running", "job", job);
}

/* ---- requests that are not waited for ---- */

static void send_as_peer(struct xm_jsonl *js, json_t *request)
{
    static const char hello[] = "XMIG/1 control\n";

    xm_jsonl_init(js, connect_from("127.0.0.2", t->port));
    assert_int_equal(send(js->fd, hello, sizeof hello - 1, MSG_NOSIGNAL), sizeof hello - 1);
    json_object_set_new(request, "from", json_string("hostb"));
    assert_int_equal(xm_jsonl_send(js->fd, request, -1, NULL), 0);
}

static json_t *answer_of(struct xm_jsonl *js)
{
    json_t *o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);

    xm_jsonl_close(js);
    return o;
}

/* ---- one at a time ---- */

/* Who looks after what is left open has the VM, and waits for hostb. */
static void what_is_just_being_settled_is_let_alone(void **state)
{
    json_t *none = json_array();
    struct xm_jsonl its;
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, none, NULL),
                     0);
    json_decref(none);
    assert_int_equal(xm_file_replace(fault, "claim-at-once:*:error", 21, NULL), 0);
    json_t *question = asked(&its, 20);
    assert_non_null(question);
    must_refuse(ask(t, json_pack("{s:s, s:s}", "verb", "undefine", "vm", "web1")), 3,
                "what is open of VM web1 is just being settled on hosta: try again", NULL);
    must_refuse(ask_as_peer(t, prepare_request("5")), 1,
                "what is open of VM web1 is just being settled on hosta: try again", NULL);
    unlink(fault);
    for (struct limit l = limit_start(20); exists(t, "state/vms/web1/journal.json") && limit_wait(&l);) {
        if (question || (question = asked(&its, 0.2)))
            answer(&its, owner("none", 0, ""));
        json_decref(question);
        question = NULL;
    }
    must(ask(t, json_pack("{s:s, s:s}", "verb", "undefine", "vm", "web1")), 0);
}

/* What broke: who was held had to be in the list, and a VM that is stopped is not. It was started meanwhile,
 * and its next move wrote the journal that was just being closed. */
static void what_is_stopped_is_not_started_while_it_is_held(void **state)
{
    json_t *files = json_pack("[s]", in_dir(t, "ds/web1-root.1.raw"));

    (void)state;
    need_qemu();
    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_int_equal(xm_file_replace(fault, "tidy-sweep:1:delay=4000", 23, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    json_decref(files);
    for (struct limit l = limit_start(20); access(fault, F_OK) == 0 && limit_wait(&l);)
        ;
    assert_true(exists(t, "state/vms/web1/journal.json"));
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "web1")), 0);
    assert_false(exists(t, "state/vms/web1/journal.json"));
}

/* hostc announces the VM again and again. */
static void *flood_main(void *arg)
{
    while (!*(_Atomic bool *)arg) {
        json_t *o = ask_as(t, "hostc", "127.0.0.3", prepare_request("5"));
        assert_int_equal(xm_json_int(o, "exit", 0), 3);
        json_decref(o);
    }
    return NULL;
}

/* What broke: each of them had its turn with the VM, and who closes its journal had none for as long as there
 * was one more of them. */
static void who_asks_again_and_again_keeps_nobody_from_a_vm(void **state)
{
    enum { THREADS = 4, SLOW_MS = 50, MANY = 200 }; /* two passes of tidy.c and more */
    static const char hostc[] = "[peer hostc]\naddress = 127.0.0.3\n";
    struct owner_record gone = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    json_t *none = json_array();
    pthread_t thread[THREADS];
    _Atomic bool end = false;
    FILE *f = fopen(in_dir(t, "conf"), "ae");

    (void)state;
    need_qemu();
    assert_true(f && fputs(hostc, f) >= 0 && fclose(f) == 0);
    test_agent_stop(t, SIGTERM);
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &gone, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, flood_main, &end), 0);
    for (unsigned n = 0; n < MANY && (n <= THREADS || exists(t, "state/vms/web1/journal.json")); n++) {
        struct xm_jsonl js;
        json_t *o = asked(&js, 5);
        if (n == THREADS)
            assert_int_equal(
                journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, none, NULL), 0);
        poll(NULL, 0, SLOW_MS); /* the VM is held for so long */
        if (o)
            answer(&js, owner("mine", 2, ""));
        json_decref(o);
    }
    end = true;
    for (int i = 0; i < THREADS; i++) {
        struct xm_jsonl js;
        json_t *o = NULL;
        while (pthread_tryjoin_np(thread[i], NULL) == EBUSY) {
            if ((o = asked(&js, 0.1)))
                answer(&js, owner("mine", 2, ""));
            json_decref(o);
        }
    }
    assert_false(exists(t, "state/vms/web1/journal.json"));
    json_decref(none);
}

/* What broke: no thread could be had for its watcher. The start was refused; the VM, forgotten, ran on. */
static void a_vm_whose_watcher_cannot_begin_gets_it_later(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(fault, "watch-thread:1:error", 20, NULL), 0);
    must(ask(t, start_request()), 0);
    assert_true(access(fault, F_OK) < 0);
    assert_string_equal(state_of("web1"), "running");
    for (struct limit l = limit_start(4); limit_wait(&l);) /* a pass */
        ;
    kill(shim_pid(t, "web1"), SIGKILL);
    for (struct limit l = limit_start(20); strcmp(state_of("web1"), "stopped") != 0 && limit_wait(&l);)
        ;
    assert_string_equal(state_of("web1"), "stopped");
}

/* ---- expected in vain ---- */

/* Seen: the source's agent was killed before its shim had the job, and every further move of the VM was
 * refused for a minute, with disk, memory and a place among the migrations taken. */
static void a_migration_that_its_source_knows_nothing_of_is_not_waited_for(void **state)
{
    (void)state;
    need_qemu();
    must(ask_as_peer(t, prepare_request("5")), 0);
    is_asked("peer.owner", "web1", owner("mine", 1, "5")); /* it comes */
    assert_true(exists(t, "ds/web1-root.raw"));
    is_asked("peer.owner", "web1", owner("mine", 1, ""));
    assert_true(until_no_vm(t, "web1"));
    assert_true(until_gone(t, "run/vms/web1"));
    assert_true(until_gone(t, "ds/web1-root.raw"));
}

/* Not even seconds: who announces it again has the first one ended. */
static void the_next_move_of_it_is_let_in_at_once(void **state)
{
    struct xm_jsonl js;
    json_t *o, *request;

    (void)state;
    need_qemu();
    must(ask_as_peer(t, prepare_request("5")), 0);
    send_as_peer(&js, prepare_request("6"));
    while (!(poll(&(struct pollfd){.fd = js.fd, .events = POLLIN}, 1, 0))) { /* by whoever asks: both may */
        struct xm_jsonl its;
        if ((request = asked(&its, 0.2))) {
            json_decref(request);
            answer(&its, owner("mine", 1, "6"));
        }
    }
    o = answer_of(&js);
    assert_string_equal(
        xm_json_str(json_array_get(json_object_get(o, "disks"), 0), "path", xm_json_str(o, "error", "")),
        in_dir(t, "ds/web1-root.raw")); /* the first one's has gone */
    must(o, 0);
}

/* The answer is of the one that was asked about. Found by the simulator (seed 558233): the next migration of
 * the VM had come meanwhile, and was ended. */
static void an_answer_ends_no_later_migration(void **state)
{
    struct xm_jsonl its;
    json_t *o, *first;
    (void)state;
    need_qemu();

    first = ask_as_peer(t, prepare_request("5"));
    json_decref(asked(&its, 20)); /* of job 5 */
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(first, "token"))),
         0);
    must(first, 0);
    must(ask_as_peer(t, prepare_request("6")), 0);
    answer(&its, owner("mine", 1, ""));
    is_asked("peer.owner", "web1", owner("mine", 1, "6"));
    o = ask(t, json_pack("{s:s}", "verb", "list"));
    assert_int_equal(json_array_size(json_object_get(o, "vms")), 1);
    json_decref(o);
    assert_true(exists(t, "ds/web1-root.raw"));
}

/* Who cannot be asked, or does not say, decides nothing. */
static void a_source_that_does_not_say_is_waited_for(void **state)
{
    struct xm_jsonl js;
    json_t *said[] = {json_pack("{s:b, s:s, s:i}", "ok", 0, "error", "busy", "exit", 4),
                      json_pack("{s:b, s:s, s:i}", "ok", 1, "owner", "mine", "epoch", 1), NULL};
    (void)state;
    need_qemu();
    must(ask_as_peer(t, prepare_request("5")), 0);
    for (int i = 0; said[i]; i++)
        is_asked("peer.owner", "web1", said[i]);
    json_decref(asked(&js, 20)); /* and again: it is still there */
    assert_true(exists(t, "ds/web1-root.raw"));
    answer(&js, owner("mine", 1, "5"));
}

/* What broke: a run directory that was read-only when a VM ended kept what it had of that VM until the agent
 * started again. */
static void a_directory_that_could_not_be_removed_goes_later(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_dir(t, "gone"), 0700), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "gone/qmp.sock"), "", 0, NULL), 0);
    assert_int_equal(rename(in_dir(t, "gone"), in_dir(t, "run/vms/gone")), 0);
    assert_true(until_gone(t, "run/vms/gone"));
}

/* The run directory is made of memory. */
static void half_received_disks_are_gone_after_a_boot(void **state)
{
    const char *const rm[] = {"rm", "-rf", in_dir(t, "run"), NULL};
    (void)state;
    need_qemu();
    must(ask_as_peer(t, prepare_request("5")), 0);
    test_agent_stop(t, SIGKILL);
    kill(shim_pid(t, "web1"), SIGKILL);
    assert_true(exists(t, "ds/web1-root.raw"));
    assert_int_equal(xm_run(rm, LIMIT_HANG_NS, NULL, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    assert_true(until_gone(t, "ds/web1-root.raw"));
    assert_true(until_gone(t, "state/vms/web1"));
}

/* A migration's files: nobody knows of it any more, or the VM that has come by it. */
static void came_from_hostb(const char *vm, bool has_come)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_MINE, .from = "hostb", .settled = true};
    char below[64], disk[64];

    snprintf(below, sizeof below, "state/vms/%s", vm);
    snprintf(disk, sizeof disk, "ds/%s-root.raw", vm);
    json_t *files = json_pack("[s]", in_dir(t, disk));
    assert_int_equal(xm_file_replace(in_dir(t, disk), "data", 4, NULL), 0);
    if (has_come)
        assert_int_equal(owner_save(in_dir(t, below), vm, &rec, NULL), 0);
    assert_int_equal(journal_write(in_dir(t, below), JOURNAL_DESTINATION, 4, "hostb", NULL, files, NULL), 0);
    json_decref(files);
}

/* What broke: killed between the record and the journal, of which the next agent knew nothing but that files
 * of a migration are to go. */
static void what_was_undefined_keeps_its_disks(void **state)
{
    static const char *const points[] = {"forget-journal-gone", "forget-record-gone"};
    char arm[64];

    (void)state;
    for (int i = 0; i < 2; i++) {
        test_agent_stop(t, SIGTERM);
        came_from_hostb("web1", true);
        assert_int_equal(test_agent_start(t), 0);
        snprintf(arm, sizeof arm, "%s:1:kill", points[i]);
        assert_int_equal(xm_file_replace(fault, arm, strlen(arm), NULL), 0);
        json_decref(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "undefine", "vm", "web1", "force", 1)));
        test_agent_stop(t, SIGKILL);
        assert_int_equal(unlink(fault), -1); /* it was reached */
        assert_int_equal(exists(t, "state/vms/web1/owner.json"), i == 0);
        assert_false(exists(t, "state/vms/web1/journal.json"));
        came_from_hostb("web2", false); /* it goes, so what is to go is looked for */
        assert_int_equal(test_agent_start(t), 0);
        assert_true(until_gone(t, "ds/web2-root.raw"));
        assert_true(exists(t, "ds/web1-root.raw"));
    }
}

/* What broke: a VM that was defined beside the journal of one that had not come was taken for what that had
 * left, or kept it for ever: each later move of it asked a host that had nothing to do with it. */
static void nothing_is_defined_beside_what_did_not_come(void **state)
{
    char stays[200];

    (void)state;
    need_qemu();
    test_agent_stop(t, SIGTERM);
    snprintf(stays, sizeof stays, "%s", in_dir(t, "state/vms/web1/stays"));
    assert_int_equal(xm_mkdir_all(stays, NULL), 0);
    json_t *files = json_pack("[s]", stays); /* a directory, which is not deleted */
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_DESTINATION, 4, "hostb", NULL, files, NULL), 0);
    json_decref(files);
    assert_int_equal(test_agent_start(t), 0);
    must_refuse(ask(t, json_pack("{s:s, s:s}", "verb", "define", "spec", in_dir(t, "spec.ini"))), 3,
                "what a migration from hostb left on hosta of a VM web1", NULL);
    must_refuse(ask(t, start_request()), 1, "what a migration from hostb left on hosta of a VM web1", NULL);
    assert_true(exists(t, "state/vms/web1/journal.json"));
    assert_int_equal(rmdir(stays), 0);
    assert_true(until_gone(t, "state/vms/web1"));
    must(ask(t, json_pack("{s:s, s:s}", "verb", "define", "spec", in_dir(t, "spec.ini"))), 0);
}

/* What broke: each stop of a VM whose migration was not closed yet warned that its disks are kept. */
static void the_end_of_a_vm_that_came_is_no_warning(void **state)
{
    json_t *files = json_pack("[s]", in_dir(t, "ds/web1.raw"));
    char *log;
    size_t len;

    (void)state;
    need_qemu();
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_DESTINATION, 1, "hostb", NULL, files, NULL), 0);
    json_decref(files);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_true(until_gone(t, "run/vms/web1"));
    assert_true(exists(t, "ds/web1.raw"));
    assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
    if (strstr(log, " warn ") || strstr(log, "has come here since"))
        fail_msg("%s", log);
    free(log);
}

/* What the last migration of it left cannot be deleted yet, and is looked at when it is announced anew. What
 * broke: the files and the journal that had just been made for it were taken for those. */
static void what_is_prepared_is_not_taken_for_what_was_left(void **state)
{
    struct owner_record gone = {.epoch = 1, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    json_t *files = json_pack("[s]", in_dir(t, "ds/a-directory")), *request = prepare_request("5");

    (void)state;
    need_qemu();
    json_object_set_new(json_object_get(request, "vm"), "name", json_string("slow"));
    assert_int_equal(xm_mkdir_all(in_dir(t, "ds/a-directory/not-empty"), NULL), 0);
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/slow"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/slow"), "slow", &gone, NULL), 0);
    assert_int_equal(xm_file_replace(fault, "tidy-look:1:delay=1000", 22, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/slow"), JOURNAL_SOURCE, 1, "hostb", NULL, files, NULL), 0);
    json_decref(files);
    for (struct limit l = limit_start(20); access(fault, F_OK) == 0 && limit_wait(&l);)
        ;
    json_t *o = ask_as_peer(t, request);
    assert_true(exists(t, "ds/slow-root.raw"));
    assert_true(exists(t, "state/vms/slow/journal.json"));
    must(o, 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "slow", "force", 1)), 0);
}

static bool logged(const char *what)
{
    char *log = NULL;
    bool is = false;
    size_t len;

    for (struct limit l = limit_start(15); !is && limit_wait(&l); free(log))
        is = !xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL) && strstr(log, what);
    return is;
}

/* web1 was given to hostb; its shim is killed, and who has watched it dawdles at that point, while it is
 * tidied away. */
static void is_killed_and_tidied_away(const char *point)
{
    struct owner_record gone = {.epoch = 1, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    json_t *none = json_array();

    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &gone, NULL), 0);
    assert_int_equal(xm_file_replace(fault, point, strlen(point), NULL), 0);
    kill(shim_pid(t, "web1"), SIGKILL);
    for (struct limit l = limit_start(20); access(fault, F_OK) == 0 && limit_wait(&l);)
        ;
    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 1, "hostb", NULL, none, NULL),
                     0);
    json_decref(none);
}

/* And nobody takes away what it has then. */
static void comes_again(json_t *request)
{
    must(ask_as_peer(t, request), 0);
    assert_true(logged("VM web1: its shim has ended"));
    assert_string_equal(state_of("web1"), "incoming");
    assert_true(exists(t, "run/vms/web1/shim.json"));
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* What broke: who watched a shim forgot whatever had its name by then, also what had just been claimed by a
 * request, which found nothing any more. */
static void who_watched_it_does_not_forget_what_came_after(void **state)
{
    json_t *request = prepare_request("5");

    (void)state;
    need_qemu();
    is_killed_and_tidied_away("vm-ended:1:delay=5000");
    assert_true(until_no_vm(t, "web1"));
    comes_again(request);
}

/* What broke: of two that took away what was left of it one was done, and the name free; the other one then
 * took the run directory of the VM that had been claimed meanwhile. */
static void one_takes_it_away_before_its_name_is_free(void **state)
{
    json_t *request = prepare_request("5");

    (void)state;
    need_qemu();
    is_killed_and_tidied_away("clean-up-undone:1:delay=5000");
    assert_true(until_gone(t, "state/vms/web1/journal.json")); /* by the other one, at once or afterwards */
    comes_again(request);
}

/* ---- two agents settle ---- */

static void given_to_hostb(const char *vm)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};
    char below[64];

    snprintf(below, sizeof below, "state/vms/%s", vm);
    assert_int_equal(xm_mkdir_all(in_dir(t, below), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, below), vm, &rec, NULL), 0);
}

static void recover(struct xm_jsonl *js, const char *vm)
{
    xm_jsonl_init(js, xm_unix_connect(in_dir(t, "run/agent.sock"), NULL));
    xm_jsonl_send(js->fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", vm), -1, NULL);
}

/* What broke: hosta told hostb to settle x while hostb told hosta to settle y; each had one VM at a time
 * settled, and both waited until the other's minute was over. */
static void two_hosts_tell_each_other_to_settle(void **state)
{
    struct xm_jsonl here, told, there;
    json_t *o;

    (void)state;
    given_to_hostb("web1");
    given_to_hostb("web2");
    recover(&here, "web1");
    is_asked("peer.owner", "web1", owner("promised", 4, ""));
    o = asked(&told, 20); /* hostb does not answer before it has been answered itself */
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.recover");
    json_decref(o);
    send_as_peer(&there, json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", "web2"));
    is_asked("peer.owner", "web2", owner("mine", 4, ""));
    must(answer_of(&there), 0);
    /* The very same VM: somebody is at it, and who asks is told so instead of waiting. */
    o = ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", "web1"));
    assert_non_null(strstr(xm_json_str(o, "error", ""), "is just being settled on hosta: ask again"));
    must(o, 4);
    answer(&told, json_pack("{s:b, s:s}", "ok", 1, "text", "it is"));
    o = answer_of(&here);
    assert_string_equal(xm_json_str(o, "text", ""), "hostb: it is");
    must(o, 0);
}

/* What broke: its record was there again, with the state directory, when hostb had answered. */
static void what_is_forgotten_while_it_is_settled_stays_forgotten(void **state)
{
    json_t *none = json_array();
    struct xm_jsonl its, user;

    (void)state;
    given_to_hostb("web1");
    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 4, "hostb", NULL, none, NULL),
                     0);
    json_decref(none);
    json_decref(asked(&its, 20));
    xm_jsonl_init(&user, xm_unix_connect(in_dir(t, "run/agent.sock"), NULL));
    xm_jsonl_send(user.fd, json_pack("{s:s, s:s, s:b}", "verb", "undefine", "vm", "web1", "force", 1), -1,
                  NULL);
    /* It waits for that answer, or did not. */
    poll(&(struct pollfd){.fd = user.fd, .events = POLLIN}, 1, 1000);
    answer(&its, owner("mine", 4, ""));
    must(answer_of(&user), 0);
    assert_true(logged("settled: VM web1 is hostb's"));
    assert_false(exists(t, "state/vms/web1"));
}

/* It was promised by hostb, and hostc had taken it over; killed before the record said so. Then it is
 * hostb's after all. What broke: what stood there before was forgotten; the journal, which was that of a VM
 * that goes to hostc, stayed for ever, and kept the VM from ever coming here again. */
static void what_is_not_given_up_after_all_leaves_no_journal(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_PROMISED, .from = "hostb"},
                        before = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    char dir[200];
    json_t *none = json_array();

    (void)state;
    need_qemu();
    snprintf(dir, sizeof dir, "%s", in_dir(t, "state/vms/web1"));
    for (int had = 0; had < 2; had++) {
        test_agent_stop(t, SIGTERM);
        assert_int_equal(journal_write(dir, JOURNAL_SOURCE, 9, "hostc", had ? &before : NULL, none, NULL), 0);
        assert_int_equal(owner_save(dir, "web1", &rec, NULL), 0);
        assert_int_equal(test_agent_start(t), 0);
        is_asked("peer.owner", "web1", owner("mine", 3, ""));
        assert_true(until_gone(t, "state/vms/web1/journal.json"));
        assert_int_equal(owner_load(dir, "web1", &rec, NULL), had ? 0 : -ENOENT);
        assert_true(!had || (rec.owner == OWNER_GIVEN && rec.epoch == 2));
        rec = (struct owner_record){.epoch = 4, .owner = OWNER_PROMISED, .from = "hostb"};
    }
    json_decref(none);
    json_t *o = prepare_request("5");
    json_object_set_new(o, "epoch", json_integer(3));
    must(ask_as_peer(t, o), 0);
}

/* ---- what jobs say ---- */

static void job_of_web1(bool settled)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb", .settled = settled};
    json_t *job = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "job", "7", "vm", "web1", "destination",
                            "hostb", "mode", "with-storage", "state", "running", "started", 1);

    test_agent_stop(t, SIGTERM);
    assert_int_equal(xm_json_save(in_dir(t, "state/jobs/7.json"), job, NULL), 0);
    json_decref(job);
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
}

/* Seen: «done», with the VM stopped on both sides: the source's shim had died after its record. */
static void a_vm_that_was_not_seen_to_run_there_has_not_moved(void **state)
{
    (void)state;
    job_of_web1(false);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "watch", "job", "7")), 4);
    json_t *o = ask(t, json_pack("{s:s}", "verb", "jobs"));
    assert_string_equal(xm_json_str(json_array_get(json_object_get(o, "jobs"), 0), "state", ""), "failed");
    json_decref(o);
}

static void a_vm_that_was_seen_to_run_there_has_moved(void **state)
{
    (void)state;
    job_of_web1(true);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "watch", "job", "7")), 0);
}

static json_t *jobs_state(const char *id)
{
    json_t *o = ask(t, json_pack("{s:s}", "verb", "jobs")), *job, *state = NULL;
    size_t i;

    json_array_foreach (json_object_get(o, "jobs"), i, job) {
        if (!strcmp(xm_json_str(job, "job", ""), id))
            state = json_incref(json_object_get(job, "state"));
    }
    json_decref(o);
    return state;
}

/* A shim that lives and has not answered yet may still take what it was asked: such a job has not failed, and
 * what has failed moves no VM. */
static void a_job_that_a_shim_may_still_take_is_not_over(void **state)
{
    struct xm_jsonl js, its;
    json_t *o;

    (void)state;
    need_qemu();
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    xm_jsonl_init(&js, xm_unix_connect(in_dir(t, "run/agent.sock"), NULL));
    xm_jsonl_send(
        js.fd, json_pack("{s:s, s:s, s:s, s:b}", "verb", "move", "vm", "web1", "host", "hostb", "storage", 1),
        -1, NULL);
    o = asked(&its, 60);
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.check");
    json_decref(o);
    answer(&its, json_pack("{s:b, s:[]}", "ok", 1, "reasons"));
    o = asked(&its, 60);
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.prepare");
    json_decref(o);
    pid_t shim = shim_pid(t, "web1");
    kill(shim, SIGSTOP);
    answer(&its, prepared());
    /* The agent has asked the shim when it is killed: its socket holds the request. */
    char path[300];
    bool holds = false;
    snprintf(path, sizeof path, "ss -xHl src %s | awk '$3 > 0' | grep -q .",
             in_dir(t, "run/vms/web1/shim.sock"));
    const char *const ss[] = {"sh", "-c", path, NULL};
    for (struct limit l = limit_start(10); !holds && limit_wait(&l);)
        holds = xm_run(ss, LIMIT_HANG_NS, NULL, NULL) == 0;
    assert_true(holds);
    test_agent_stop(t, SIGKILL);
    xm_jsonl_close(&js);
    assert_int_equal(test_agent_start(t), 0);
    o = jobs_state("1");
    assert_string_equal(json_string_value(o), "running");
    json_decref(o);
    kill(shim, SIGCONT);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "watch", "job", "1")), 0);
}

/* Its shim did not answer when the agent started, and has done the job by the time it does. What broke: by
 * the VM's record it was none of a move, so it had failed. */
static void a_report_counts_before_the_record(void **state)
{
    json_t *job = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "job", "7", "vm", "web1", "destination",
                            "hosta", "mode", "storage-only", "state", "running", "started", 1),
           *done = json_pack("{s:s, s:s, s:s}", "event", "done", "job", "7", "vm", "web1");

    (void)state;
    need_qemu();
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    test_agent_stop(t, SIGTERM);
    assert_int_equal(xm_json_save(in_dir(t, "state/jobs/7.json"), job, NULL), 0);
    pid_t shim = shim_pid(t, "web1");
    kill(shim, SIGSTOP);
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(xm_json_save(in_dir(t, "run/vms/web1/result.json"), done, NULL), 0);
    kill(shim, SIGCONT);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "watch", "job", "7")), 0);
    json_decref(job);
    json_decref(done);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, peer_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(a_migration_that_its_source_knows_nothing_of_is_not_waited_for),
        TEST(the_next_move_of_it_is_let_in_at_once),
        TEST(an_answer_ends_no_later_migration),
        TEST(what_is_just_being_settled_is_let_alone),
        TEST(what_is_stopped_is_not_started_while_it_is_held),
        TEST(a_vm_whose_watcher_cannot_begin_gets_it_later),
        TEST(who_asks_again_and_again_keeps_nobody_from_a_vm),
        TEST(a_source_that_does_not_say_is_waited_for),
        TEST(a_directory_that_could_not_be_removed_goes_later),
        TEST(half_received_disks_are_gone_after_a_boot),
        TEST(what_was_undefined_keeps_its_disks),
        TEST(nothing_is_defined_beside_what_did_not_come),
        TEST(the_end_of_a_vm_that_came_is_no_warning),
        TEST(what_is_prepared_is_not_taken_for_what_was_left),
        TEST(who_watched_it_does_not_forget_what_came_after),
        TEST(one_takes_it_away_before_its_name_is_free),
        TEST(two_hosts_tell_each_other_to_settle),
        TEST(what_is_forgotten_while_it_is_settled_stays_forgotten),
        TEST(what_is_not_given_up_after_all_leaves_no_journal),
        TEST(a_vm_that_was_not_seen_to_run_there_has_not_moved),
        TEST(a_vm_that_was_seen_to_run_there_has_moved),
        TEST(a_job_that_a_shim_may_still_take_is_not_over),
        TEST(a_report_counts_before_the_record),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    snprintf(fault, sizeof fault, "@/tmp/xmt-tidy-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("what is left behind", tests, NULL, NULL);
}
