/* SPDX-License-Identifier: MIT */
/* A host that was declared dead returns, and its record still says that a VM is its own: it asks who may have
 * taken it before it is started, by hand or by itself. The agent is a real one; hostb is this program. */
#include "tests/unit/lib_agent.h"
#include "agent/known.h"
#include "tests/progress.h"
#include "net/net.h"
#include "vm/vm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct test_agent *const t = &test_agent;
static char fault[64];     /* a fault point of the agent's (base/fault.h) */
static int hostb = -1;     /* listens where the agent has its peer */
static bool settled_there; /* what it says of web1, with: */
static const char *state_there, *given_to;

/* web1 is ours with epoch 1, and a migration of it to hostb was under way when the power went. */
static int set_up(void **state)
{
    struct owner_record mine = {.epoch = 1, .owner = OWNER_MINE, .settled = true};
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    json_t *files = json_array();

    (void)state;
    settled_there = true;
    state_there = "running";
    given_to = "";
    hostb = xm_tcp_listen("127.0.0.2", 0, NULL);
    getsockname(hostb, (struct sockaddr *)&ss, &len);
    if (test_agent_make(t, ntohs(((struct sockaddr_in *)(void *)&ss)->sin_port)) < 0)
        return -1;
    json_t *spec =
        json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:b, s:[{s:s, s:s, s:i, s:s, s:i}], s:[]}", "name",
                  "web1", "memory", 16 << 20, "vcpus", 1, "qemu", "qemu-system-x86_64", "machine", "q35",
                  "accel", "tcg", "cpu", "max", "autostart", 0, "disks", "name", "root", "path",
                  in_dir(t, "ds/web1.raw"), "size", 1 << 20, "datastore", "ds", "queues", 1, "nics");
    json_array_append_new(files, json_string(in_dir(t, "ds/web1.raw")));
    int fd = open(in_dir(t, "ds/web1.raw"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    int r = fd < 0 || ftruncate(fd, 1 << 20) || xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL) ||
            owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL) ||
            journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, files, NULL) ||
            xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL);
    close(fd);
    json_decref(files);
    json_decref(spec);
    chmod(in_dir(t, "state"), 0700);
    chmod(in_dir(t, "state/vms"), 0700);
    return r ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(fault);
    if (hostb >= 0)
        close(hostb);
    test_agent_remove(t);
    return 0;
}

static void must_say(json_t *answer, int exit, const char *part)
{
    char *text = json_dumps(answer, 0);

    if (!text || !strstr(text, part) || xm_json_int(answer, "exit", 0) != exit)
        fail_msg("%s", text ? text : "no answer");
    free(text);
    json_decref(answer);
}

static json_t *record_there(const char *owner, int epoch)
{
    return json_pack("{s:b, s:s, s:i, s:s, s:b, s:b, s:s, s:s, s:s}", "ok", 1, "owner", owner, "epoch", epoch,
                     "to", given_to, "settled", settled_there, "present", 1, "role", "owner", "state",
                     state_there, "job", "");
}

/* Answers what is asked, until that file is there, or not there. */
static void hostb_says(const char *owner, int epoch, const char *file, bool there)
{
    struct limit l = limit_start(30);
    struct pollfd p = {.fd = hostb, .events = POLLIN};
    char hello[15];

    while (!limit_over(&l) && exists(t, file) != there) {
        struct xm_jsonl js;
        if (poll(&p, 1, 10) != 1)
            continue;
        int fd = accept(hostb, NULL, NULL);
        if (recv(fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello) {
            close(fd);
            continue;
        }
        xm_jsonl_init(&js, fd);
        json_decref(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL));
        xm_jsonl_send(fd, record_there(owner, epoch), -1, NULL);
        xm_jsonl_close(&js);
    }
}

static struct owner_record record(void)
{
    struct owner_record rec;

    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    return rec;
}

static json_t *start(void)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "web1"));
}

static void who_was_taken_for_dead_gives_way(void **state)
{
    (void)state;
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("mine", 2, "state/vms/web1/journal.json", false);
    struct owner_record rec = record();
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 2);
    assert_string_equal(rec.to, "hostb");
    assert_false(exists(t, "state/vms/web1/journal.json"));
    assert_true(exists(t, "ds/web1.raw")); /* what its guest wrote last may be here alone */
    close(hostb);
    hostb = -1;
    must_say(start(), 3, "gave it to hostb");
}

/* Behind it stands a move of its disks, which left a file that cannot be deleted. What broke: as long as that
 * is so nobody was asked. */
static void a_file_that_cannot_be_deleted_keeps_nobody_from_giving_way(void **state)
{
    json_t *files = json_pack("[s]", in_dir(t, "ds/a-directory"));
    (void)state;
    assert_int_equal(mkdir(in_dir(t, "ds/a-directory"), 0700), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    json_decref(files);
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("mine", 2, "state/vms/web1/journal.json", false);
    assert_int_equal(record().owner, OWNER_GIVEN);
    assert_string_equal(record().to, "hostb");
    assert_true(exists(t, "ds/web1.raw"));
}

/* What broke: `start` asked nobody. The advice is followed, and leads on. */
static void it_is_not_started_before_the_other_host_has_been_asked(void **state)
{
    (void)state;
    need_qemu();
    close(hostb);
    hostb = -1;
    assert_int_equal(test_agent_start(t), 0);
    must_say(start(), 4, "if hostb is lost for good, `xmigrate recover web1 --peer-is-dead`");
    must_say(ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1")), 4, "--peer-is-dead`");
    must_say(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1)), 0,
             "start it with `xmigrate start web1`");
    assert_int_equal(record().epoch, 1 + BY_WORD_MINE); /* above what hostb may have made of it */
    must_say(start(), 0, "has been started");
    must_say(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0, "true");
    must_say(start(), 0, "has been started"); /* nobody is in question any more */
    must_say(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0, "true");
}

/* By itself it is started as soon as hostb has been asked, and did not take it. */
static void autostart_waits_for_the_answer(void **state)
{
    char *log;
    size_t len;
    (void)state;
    need_qemu();

    json_t *spec = json_load_file(in_dir(t, "state/vms/web1/spec.json"), 0, NULL);
    json_object_set_new(spec, "autostart", json_true());
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), spec, NULL), 0);
    json_decref(spec);
    assert_int_equal(test_agent_start(t), 0);
    for (struct limit l = limit_start(20); limit_wait(&l);) { /* connections are taken, and not answered */
        assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
        bool said = strstr(log, "VM web1: not started by itself before that is known: ");
        free(log);
        if (said)
            break;
    }
    assert_false(exists(t, "run/vms/web1/shim.pid"));
    hostb_says("none", 0, "run/vms/web1/shim.pid", true);
    assert_true(exists(t, "run/vms/web1/shim.pid"));
}

/* Answers each question so, until the answer to ours is there. */
struct busy {
    pthread_t thread;
    _Atomic bool over;
    int exit;          /* that hostb refuses with; or: */
    const char *owner; /* what its record says */
    int epoch;
};

static void *busy_main(void *arg)
{
    struct busy *b = arg;
    struct pollfd p = {.fd = hostb, .events = POLLIN};
    char hello[15];

    while (!b->over) {
        struct xm_jsonl js;
        if (poll(&p, 1, 10) != 1)
            continue;
        xm_jsonl_init(&js, accept(hostb, NULL, NULL));
        if (recv(js.fd, hello, sizeof hello, MSG_WAITALL) == sizeof hello) {
            json_decref(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL));
            xm_jsonl_send(
                js.fd,
                b->owner ? record_there(b->owner, b->epoch)
                         : json_pack("{s:b, s:s, s:i}", "ok", 0, "error", "it cannot say", "exit", b->exit),
                -1, NULL);
        }
        xm_jsonl_close(&js);
    }
    return NULL;
}

static json_t *by_word(void)
{
    return ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1));
}

/* What broke: any answer but a record was taken for silence, and the VM was taken while the other host, in
 * the middle of the hand-off, let it go on, or ran it with a record that it could not read. */
static void who_answers_is_not_dead(void **state)
{
    struct busy b = {.exit = 4}; /* it is being handed over at this moment */
    (void)state;
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(pthread_create(&b.thread, NULL, busy_main, &b), 0);
    must_say(by_word(), 4, "it cannot say");
    must_say(start(), 4, "it cannot say");
    assert_int_equal(record().epoch, 1);
    b.exit = 1; /* its record is damaged */
    must_say(by_word(), 4, "it cannot say");
    assert_int_equal(record().epoch, 1);
    b.over = true;
    pthread_join(b.thread, NULL);
    close(hostb); /* its agent is ended */
    hostb = -1;
    must_say(by_word(), 0, "hostb is gone");
    assert_int_equal(record().epoch, 1 + BY_WORD_MINE);
}

/* Giving it away could not be recorded, and its guest went on with the epoch above; then the power went.
 * hostb has been told to take it as it was offered, and runs it: the lower epoch is the later word. What
 * broke: the journal was taken for one of a VM that was handed back, and two ran. */
static void the_offer_that_was_taken_counts(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE, .settled = true};
    (void)state;
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("mine", 2, "state/vms/web1/journal.json", false);
    assert_int_equal(record().owner, OWNER_GIVEN);
    assert_string_equal(record().to, "hostb");
    assert_true(exists(t, "ds/web1.raw"));
}

/* And moved it on: only who asks for the owner alone would take that for a hand-off of the past. */
static void the_offer_that_was_taken_and_given_on_counts(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE, .settled = true};
    (void)state;
    given_to = "hostc";
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("given", 3, "state/vms/web1/journal.json", false);
    assert_int_equal(record().owner, OWNER_GIVEN);
    assert_string_equal(record().to, "hostc");
}

/* It took the offer, gave the VM to hostc, and hostc is just giving it back. Our own offer was another one.
 */
static void what_another_host_promises_is_not_ours(void **state)
{
    struct busy b = {.owner = "promised", .epoch = 4};
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(pthread_create(&b.thread, NULL, busy_main, &b), 0);
    must_say(start(), 4, "another host is just giving it to hostb");
    must_say(by_word(), 4, "another host is just giving it to hostb");
    assert_int_equal(record().epoch, 1);
    b.epoch = 2; /* ours, which it may not redeem any more when it hears that we have it still */
    must_say(start(), 0, "has been started");
    b.over = true;
    pthread_join(b.thread, NULL);
    must_say(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0, "true");
}

/* The promise that hostb still has may be redeemed by its operator: the journal stays. */
static void the_epoch_above_an_open_offer_does_not_close_it(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE, .settled = true};
    (void)state;
    close(hostb);
    hostb = -1;
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    must_say(start(), 4, "if hostb is lost for good");
    assert_true(exists(t, "state/vms/web1/journal.json"));
}

/* It ran here in this boot, too: its guest has powered off, and hostb is silent. */
static void this_boot_is_no_reason(void **state)
{
    struct vm_life life = {.state = LIFE_ENDED};
    json_t *boot = json_pack("{s:s, s:s, s:b}", "boot_id", "", "boot", "0123456789abcdef", "autostart", 1);
    char *id = NULL;
    size_t len;
    (void)state;
    close(hostb);
    hostb = -1;
    assert_int_equal(xm_file_read("/proc/sys/kernel/random/boot_id", 100, &id, &len, NULL), 0);
    id[strcspn(id, "\n")] = 0;
    json_object_set_new(boot, "boot_id", json_string(id));
    assert_int_equal(xm_mkdir_all(in_dir(t, "run"), NULL) | chmod(in_dir(t, "run"), 0700), 0);
    assert_int_equal(xm_json_save(in_dir(t, "run/boot.json"), boot, NULL), 0);
    snprintf(life.boot, sizeof life.boot, "0123456789abcdef");
    assert_int_equal(life_save(in_dir(t, "state/vms/web1"), &life, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    must_say(start(), 4, "if hostb is lost for good");
    json_decref(boot);
    free(id);
}

/* What broke: hostb's shim died before it had noted that the guest is there, and a paused guest is never
 * seen to run: the copy here stayed for ever, and the advice was to start it there. */
static void a_paused_guest_is_there_too(void **state)
{
    struct owner_record given = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb"};
    (void)state;
    settled_there = false;
    state_there = "paused";
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &given, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("mine", 2, "ds/web1.raw", false);
    assert_false(exists(t, "ds/web1.raw"));
    assert_true(record().settled);
}

static void is_offered_to_hostd_too(void)
{
    json_t *none = json_array();

    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostd", NULL, none, NULL),
                     0);
    json_decref(none);
    assert_int_equal(test_agent_start(t), 0);
}

/* It was offered to hostb, then to hostd, which is silent, and no [peer] any more. What broke: hostd was
 * asked first, and hostb not at all; «hostd is dead» then made the VM ours with an epoch above hostb's,
 * which runs it. */
static void one_that_has_it_counts_whoever_is_silent(void **state)
{
    (void)state;
    is_offered_to_hostd_too();
    hostb_says("mine", 2, "state/vms/web1/journal.json", false);
    assert_int_equal(record().owner, OWNER_GIVEN);
    assert_string_equal(record().to, "hostb");
}

/* It was offered to hostb, then to hostd, which is dead, and a third host is just giving it to hostb. */
static void a_word_about_one_takes_nothing_from_another(void **state)
{
    struct busy b = {.owner = "promised", .epoch = 4};
    (void)state;
    is_offered_to_hostd_too();
    assert_int_equal(pthread_create(&b.thread, NULL, busy_main, &b), 0);
    must_say(by_word(), 1, "another host is just giving it to hostb");
    assert_int_equal(record().epoch, 1);
    assert_true(exists(t, "state/vms/web1/journal.json"));
    b.epoch = 2;
    must_say(by_word(), 0, "hostd is gone");
    assert_int_equal(record().epoch, 1 + BY_WORD_MINE);
    b.over = true;
    pthread_join(b.thread, NULL);
}

/* hostb and hostd are silent, and hostb has only lost its link. What broke: the sentence was about hostd
 * alone, and the word that it asked for was about both. */
static void all_that_are_silent_are_named_before_the_word(void **state)
{
    (void)state;
    close(hostb);
    hostb = -1;
    is_offered_to_hostd_too();
    json_t *o = start();
    assert_non_null(strstr(xm_json_str(o, "error", ""), "in hand-offs with hostd, hostb"));
    must_say(o, 4, "if all of them are lost for good, `xmigrate recover web1 --peer-is-dead`");
    must_say(by_word(), 0, "hostd, hostb are gone");
    assert_int_equal(record().epoch, 1 + BY_WORD_MINE);
}

/* hostb has taken it, and there is no room to record that. What broke: recover said so and ended well, and
 * the record said that the VM is ours. */
static void what_cannot_be_recorded_is_no_success(void **state)
{
    struct busy b = {.owner = "mine", .epoch = 2};
    (void)state;
    assert_int_equal(xm_file_replace(fault, "owner-save:*:error", 18, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(pthread_create(&b.thread, NULL, busy_main, &b), 0);
    json_t *o = ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"));
    assert_non_null(
        strstr(xm_json_str(o, "error", ""), "VM web1 is hostb's (epoch 2), which has taken it over"));
    must_say(o, 4, "cannot be recorded on hosta");
    must_say(start(), 4, "cannot be recorded on hosta");
    assert_int_equal(record().owner, OWNER_MINE);
    unlink(fault);
    o = ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"));
    must_say(o, 0, "VM web1 is hostb's (epoch 2)");
    assert_int_equal(record().owner, OWNER_GIVEN);
    b.over = true;
    pthread_join(b.thread, NULL);
}

/* On an operator's word hostb took what it had been promised, could not let it run, and handed it back. What
 * broke: the two records, 3 there and 1 here, were in doubt for ever. */
static void what_was_taken_by_word_and_handed_back_is_ours_with_that_epoch(void **state)
{
    (void)state;
    given_to = "hosta";
    assert_int_equal(test_agent_start(t), 0);
    hostb_says("given", 3, "state/vms/web1/journal.json", false);
    assert_int_equal(record().owner, OWNER_MINE);
    assert_int_equal(record().epoch, 3);
}

/* The state directory was put back to a snapshot from before the move to hostb: nothing is open, and the VM
 * did not come from there. What broke: `start` asked nobody, and the VM ran twice. */
static void one_that_has_it_is_heard_though_nothing_is_open(void **state)
{
    struct busy b = {.owner = "mine", .epoch = 2};
    (void)state;
    assert_int_equal(unlink(in_dir(t, "state/vms/web1/journal.json")), 0);
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(pthread_create(&b.thread, NULL, busy_main, &b), 0);
    b.owner = NULL, b.exit = 4; /* at this moment it cannot say: it may take it in the next */
    must_say(start(), 4, "it answers, but: ");
    b.owner = "mine";
    must_say(start(), 3, "hostb owns a newer epoch of VM web1 (2) than the record of hosta has (1;");
    must_say(ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1")), 0,
             "VM web1 is hostb's (epoch 2)");
    assert_false(exists(t, "run/vms/web1"));
    assert_int_equal(record().owner, OWNER_MINE); /* that is for its operator to say */
    b.over = true;
    pthread_join(b.thread, NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(who_was_taken_for_dead_gives_way),
        TEST(one_that_has_it_is_heard_though_nothing_is_open),
        TEST(it_is_not_started_before_the_other_host_has_been_asked),
        TEST(a_file_that_cannot_be_deleted_keeps_nobody_from_giving_way),
        TEST(autostart_waits_for_the_answer),
        TEST(who_answers_is_not_dead),
        TEST(the_offer_that_was_taken_counts),
        TEST(the_offer_that_was_taken_and_given_on_counts),
        TEST(what_another_host_promises_is_not_ours),
        TEST(the_epoch_above_an_open_offer_does_not_close_it),
        TEST(this_boot_is_no_reason),
        TEST(a_paused_guest_is_there_too),
        TEST(one_that_has_it_counts_whoever_is_silent),
        TEST(a_word_about_one_takes_nothing_from_another),
        TEST(what_was_taken_by_word_and_handed_back_is_ours_with_that_epoch),
        TEST(all_that_are_silent_are_named_before_the_word),
        TEST(what_cannot_be_recorded_is_no_success),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    snprintf(fault, sizeof fault, "@/tmp/xmt-returned-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    return cmocka_run_group_tests_name("agent: a host that returns", tests, NULL, NULL);
}
