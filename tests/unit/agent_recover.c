/* SPDX-License-Identifier: MIT */
/* What `recover` makes of both sides' records. This program is the other agent; shims are make-believe
 * (lib_shim.c). */
#include "tests/unit/lib_agent.h"
#include "agent/known.h"
#include "net/net.h"
#include "vm/vm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;
static char fault[64]; /* a fault point of the agent's (base/fault.h) */

/* What hostb says of VM web1, and how recover ends here. */
static json_t *recover_with(int listener, json_t *said)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    json_decref(serve_one(listener, said));
    json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    xm_jsonl_close(&js);
    return o;
}

static json_t *owner_answer(const char *owner, int epoch)
{
    return json_pack("{s:b, s:s, s:i, s:s, s:b, s:b, s:s}", "ok", 1, "owner", owner, "epoch", epoch, "to", "",
                     "settled", 1, "present", 0, "role", "");
}

static void given_away(void)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};

    must(ask(t, start_request()), 0); /* leaves a spec, and a disk */
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
}

static void recover_says_that_the_other_side_has_it(void **state)
{
    need_qemu();
    given_away();
    must(recover_with(*(int *)*state, owner_answer("mine", 4)), 0);
    assert_string_equal(state_of("web1"), "");
}

/* What broke: «neither hosta nor its peers have a record» of what hostb had moved to a host that is no peer
 * of hosta. */
static void what_a_peer_remembers_is_said(void **state)
{
    must_refuse(recover_with(*(int *)*state, json_pack("{s:b, s:s, s:i, s:s, s:b}", "ok", 1, "owner", "given",
                                                       "epoch", 3, "to", "hostz", "settled", 1)),
                1, "the record of hostb is «given to hostz», epoch 3", NULL);
    must_refuse(recover_with(*(int *)*state, owner_answer("none", 0)), 1, "have a record of a VM 'web1'",
                NULL);
}

/* It must have had one: before this host gave the VM away, the other one had recorded that it is promised. */
static void a_peer_that_has_lost_its_record_is_not_taken_for_one_without_the_vm(void **state)
{
    struct owner_record rec;
    need_qemu();

    given_away();
    must(recover_with(*(int *)*state, owner_answer("none", 0)), 4);
    assert_string_equal(state_of("web1"), "");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
}

static void an_operator_takes_back_what_a_dead_peer_had(void **state)
{
    struct owner_record rec;
    need_qemu();

    given_away();
    shutdown(*(int *)*state, SHUT_RDWR);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1)), 0);
    assert_string_equal(state_of("web1"), "running");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_MINE);
    assert_int_equal(rec.epoch, 4 + BY_WORD_GIVEN); /* above what the other one may have made of it */
}

/* Its destination is lost: what was said was true, and led nowhere. */
static void what_was_moved_is_not_taken_back_and_the_manual_named(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    need_qemu();

    given_away();
    shutdown(*(int *)*state, SHUT_RDWR);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    must_refuse(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1)), 2,
                "VM web1 was moved to hostb", "xmigrate(1), A DESTINATION THAT IS LOST", NULL);
}

/* What broke: it was said to be where it had been given to, whether it had gone on since or not. */
static void what_was_moved_is_told_where_it_is_now(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    int listener = *(int *)*state;
    need_qemu();

    given_away();
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    json_t *o = recover_with(listener, owner_answer("mine", 6));
    assert_string_equal(xm_json_str(o, "text", ""), "VM web1 is not here: it is hostb's (epoch 6)");
    must(o, 0);
    json_t *gone = owner_answer("given", 5);
    json_object_set_new(gone, "to", json_string("hostc"));
    o = recover_with(listener, gone);
    assert_non_null(strstr(xm_json_str(o, "error", ""),
                           "hosta gave it to hostb (epoch 4), and where it is now "
                           "cannot be asked: hosta has no [peer hostc]"));
    must(o, 4);
    shutdown(listener, SHUT_RDWR);
    o = ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"));
    assert_non_null(strstr(xm_json_str(o, "error", ""), "where it is now cannot be asked"));
    must(o, 4);
}

/* Who cannot be asked, or makes no sense, decides nothing. */
static void recover_changes_nothing_while_the_other_side_is_silent(void **state)
{
    struct owner_record rec;
    int listener = *(int *)*state;
    need_qemu();

    given_away();
    must(recover_with(listener, json_pack("{s:b, s:s}", "ok", 1, "owner", "who knows")), 4);
    /* It would have stood in our record, and in each sentence about it. */
    must(recover_with(listener, json_pack("{s:b, s:s, s:i, s:s}", "ok", 1, "owner", "given", "epoch", 9, "to",
                                          "nobody (epoch 9)")),
         4);
    must(recover_with(listener, json_pack("{s:b, s:s}", "ok", 0, "error", "no")), 4);
    shutdown(listener, SHUT_RDWR);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1")), 4);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 4);
    assert_string_equal(state_of("web1"), "");
}

/* It is loaded here and may have been given to us, the source is lost for good, and then its QEMU ends. What
 * broke: its shim handed it back to the dead host, each further word changed nothing, and neither was the VM
 * to be stopped: whole disks here, and no way to them. */
static void a_promised_vm_whose_qemu_has_ended_is_taken_by_word(void **state)
{
    struct owner_record rec = {.epoch = 2, .owner = OWNER_PROMISED, .from = "hostb"};
    need_qemu();

    must(ask_as_peer(t, prepare_request("5")), 0);
    json_t *conf = json_load_file(in_dir(t, "run/vms/web1/shim.json"), 0, NULL);
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/spec.json"), json_object_get(conf, "vm"), NULL),
                     0);
    json_decref(conf);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/undecided"), "", 0, NULL), 0);
    assert_string_equal(state_of("web1"), "undecided");
    shutdown(*(int *)*state, SHUT_RDWR);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1)), 0);
    assert_string_equal(state_of("web1"), "running");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_MINE);
    assert_int_equal(rec.epoch, 2);
    assert_true(rec.settled);
    assert_true(exists(t, "ds/web1-root.raw"));
}

/* It came by a migration, and QEMU hung, or refused, when it was to let it run. What broke: recover said «is
 * here: stopped», start «is on it already», and the other host «start it there», for ever. */
static void a_guest_that_was_not_let_run_is_let_run(void **state)
{
    struct owner_record rec = {.epoch = 1, .owner = OWNER_MINE, .from = "hostb"};
    json_t *o;
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/stands"), "", 0, NULL), 0);
    o = ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"));
    assert_string_equal(xm_json_str(o, "text", xm_json_str(o, "error", "")),
                        "VM web1 is this host's, and runs here");
    must(o, 0);
    assert_false(exists(t, "run/vms/web1/stands"));
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_true(rec.owner == OWNER_MINE && rec.settled);
}

/* Before recover has its turn, the VM is given away. What broke: it acted on what it knew before it
 * waited. */
static void who_has_waited_looks_again(void **state)
{
    struct owner_record mine = {.epoch = 1, .owner = OWNER_MINE, .from = "hostb"},
                        given = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb"};
    json_t *none = json_array();
    struct xm_jsonl js, its;
    need_qemu();

    must(ask(t, start_request()), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/stands"), "", 0, NULL), 0);
    assert_int_equal(journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, none, NULL),
                     0);
    json_decref(none);
    assert_int_equal(xm_file_replace(fault, "let-run:1:error", 15, NULL), 0);
    json_decref(serve_begin(*(int *)*state, &its)); /* who looks after the journal has its turn until then */
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    for (struct limit l = limit_start(10); access(fault, F_OK) == 0 && limit_wait(&l);)
        ;
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &given, NULL), 0);
    xm_jsonl_close(&its);
    must_refuse(last_of(&js), 4, "has changed at this moment: ask again", NULL);
    xm_jsonl_close(&js);
    assert_true(exists(t, "run/vms/web1/stands"));
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
}

/* ---- the guest is whole at the source ---- */

static json_t *given_to_us(int epoch, bool qemu)
{
    return json_pack("{s:b, s:s, s:i, s:s, s:b, s:b, s:b, s:s}", "ok", 1, "owner", "given", "epoch", epoch,
                     "to", "hosta", "settled", 0, "present", 1, "qemu", qemu, "role", "owner");
}

static void promised(struct owner_record *rec)
{
    *rec = (struct owner_record){.epoch = 4, .owner = OWNER_PROMISED, .from = "hostb"};
    given_away();
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", rec, NULL), 0);
}

/* What came has lost its QEMU before it ran. What broke: it was started from its disks, and the guest, which
 * stood whole in the source's memory, lost that. */
static void what_is_whole_at_the_source_is_handed_back(void **state)
{
    struct owner_record rec;
    need_qemu();

    promised(&rec);
    must(recover_with(*(int *)*state, given_to_us(4, true)), 0);
    assert_string_equal(state_of("web1"), "");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 5);
    assert_string_equal(rec.to, "hostb");
    assert_false(rec.settled);
}

static void what_is_whole_nowhere_is_started_from_its_disks(void **state)
{
    struct owner_record rec;
    need_qemu();

    promised(&rec);
    must(recover_with(*(int *)*state, given_to_us(4, false)), 0);
    assert_string_equal(state_of("web1"), "running");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_MINE);
    assert_int_equal(rec.epoch, 4);
}

/* The source asks: it has it back at once. */
static void what_is_handed_back_goes_on_at_once(void **state)
{
    struct owner_record rec;
    struct xm_jsonl js;
    int hostb = *(int *)*state;
    need_qemu();

    given_away();
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    json_decref(serve_one(hostb, owner_answer("promised", 4)));
    json_t *told = serve_one(hostb, json_pack("{s:b, s:s}", "ok", 1, "text", "it is handed back"));
    assert_string_equal(xm_json_str(told, "verb", ""), "peer.recover");
    json_decref(told);
    json_decref(serve_one(hostb, given_to_us(5, false)));
    must(last_of(&js), 0);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "running");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_MINE);
    assert_int_equal(rec.epoch, 5);
}

/* What broke: the host that was declared dead came back, heard «promised» and started its VM, and the
 * word, whose silent third host had been waited for, was carried out a moment later: two runners. */
static void who_asks_while_a_word_is_carried_out_hears_so(void **state)
{
    struct owner_record rec;
    struct xm_jsonl js, its;
    int hostb = *(int *)*state;
    need_qemu();

    promised(&rec);
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1), -1,
                  NULL);
    json_decref(serve_begin(hostb, &its)); /* and is not answered */
    must_refuse(ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", "web1")), 4,
                "is just being taken on an operator's word: ask again", NULL);
    xm_jsonl_close(&its);
    must(last_of(&js), 0);
    xm_jsonl_close(&js);
    json_t *now = ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", "web1"));
    assert_string_equal(xm_json_str(now, "owner", ""), "mine");
    json_decref(now);
}

/* ---- a third host ---- */

static int hostc;

/* It listens where the agent has its second peer. */
static void need_third_host(void)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;

    hostc = xm_tcp_listen("127.0.0.3", 0, NULL);
    assert_true(hostc >= 0);
    getsockname(hostc, (struct sockaddr *)&at, &len);
    test_agent_stop(t, SIGTERM);
    FILE *f = fopen(in_dir(t, "conf"), "ae");
    fprintf(f, "[peer hostc]\naddress = 127.0.0.3\nport = %u\n", ntohs(at.sin_port));
    fclose(f);
    assert_int_equal(test_agent_start(t), 0);
}

static int third_tear_down(void **state)
{
    close(hostc);
    return peer_tear_down(state);
}

/* The answer of recover when hostc says that. */
static json_t *by_word_with(json_t *said)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1), -1,
                  NULL);
    json_decref(serve_one(hostc, said));
    json_t *o = last_of(&js);
    xm_jsonl_close(&js);
    return o;
}

/* hostb was giving it to us when it died, and hostc has taken it by its operator's word. What broke: what was
 * loaded here could be neither had nor stopped: nothing but a reboot of this host ended it. */
static void what_a_third_host_has_taken_is_given_up(void **state)
{
    struct owner_record rec = {.epoch = 2, .owner = OWNER_PROMISED, .from = "hostb"};
    need_qemu();

    need_third_host();
    must(ask_as_peer(t, prepare_request("5")), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/undecided"), "", 0, NULL), 0);
    shutdown(*(int *)*state, SHUT_RDWR);
    json_t *o = by_word_with(owner_answer("mine", 3));
    if (!strstr(xm_json_str(o, "text", ""), "VM web1 is hostc's (epoch 3), which has taken it over"))
        fail_msg("%s", json_dumps(o, 0));
    must(o, 0);
    assert_true(until_gone(t, "run/vms/web1"));
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 3);
    assert_string_equal(rec.to, "hostc");
    assert_true(rec.settled);
    assert_true(exists(t, "ds/web1-root.raw")); /* what its guest wrote last may be in no other */
    assert_false(exists(t, "state/vms/web1/journal.json"));
}

/* hostb was giving it to hostc when it died: that copy is later than ours. What broke: ours was taken, and
 * hostc's was lost. */
static void a_later_copy_at_a_third_host_counts(void **state)
{
    struct owner_record rec;
    need_qemu();

    given_away();
    need_third_host();
    shutdown(*(int *)*state, SHUT_RDWR);
    must_refuse(by_word_with(owner_answer("promised", 5)), 1, "hostc has a later copy of it",
                "`xmigrate recover web1 --peer-is-dead` on hostc", NULL);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    must(by_word_with(owner_answer("none", 0)), 0);
    assert_string_equal(state_of("web1"), "running");
}

static json_t *given_to(const char *host, int epoch)
{
    json_t *said = owner_answer("given", epoch);

    json_object_set_new(said, "to", json_string(host));
    return said;
}

/* hostb is dead: it had the VM, gave it to hostc, and hostc to hostd, which does not answer. What broke: ours
 * was taken all the same, beside hostd's, though hostc said that. */
static void what_a_third_host_has_given_on_is_looked_for(void **state)
{
    struct owner_record rec;
    need_qemu();

    given_away();
    need_third_host();
    shutdown(*(int *)*state, SHUT_RDWR);
    must_refuse(by_word_with(given_to("hostd", 6)), 4, "hostc gave it to hostd (epoch 6)",
                "`xmigrate undefine --force web1` on hostc", NULL);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 4);
    must(by_word_with(given_to("hostd", 3)), 0); /* before it was here */
    assert_string_equal(state_of("web1"), "running");
}

/* hostb is dead, and hostc is silent: the word is about hostb. What broke: of hostc nothing was said, which
 * may have had the VM from hostb. */
static void who_is_silent_besides_is_named(void **state)
{
    need_qemu();

    given_away();
    need_third_host();
    shutdown(*(int *)*state, SHUT_RDWR);
    shutdown(hostc, SHUT_RDWR);
    json_t *o = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1));
    if (!strstr(xm_json_str(o, "text", ""), "gone on to another host cannot be asked of hostc"))
        fail_msg("%s", json_dumps(o, 0));
    json_decref(o);
    assert_string_equal(state_of("web1"), "running");
}

static void hostc_has_it_with(int epoch, int hostb)
{
    struct owner_record rec;
    struct xm_jsonl js;

    promised(&rec);
    need_third_host();
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    json_decref(serve_one(hostb, given_to_us(4, false)));
    json_decref(serve_one(hostc, owner_answer("mine", epoch)));
    must(last_of(&js), 0);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_string_equal(rec.to, "hostc");
}

/* hostb comes back, and says that it gave us the VM; by then hostc runs it. */
static void what_was_given_is_not_taken_beside_a_third_host(void **state)
{
    need_qemu();
    hostc_has_it_with(5, *(int *)*state);
}

/* hostb had offered it to hostc before us, with the same epoch, and hostc took it by a word. What broke: that
 * did not count, and both had it. */
static void nor_beside_one_that_had_the_same_offer(void **state)
{
    need_qemu();
    hostc_has_it_with(4, *(int *)*state);
}

/* Its hand-off to hostb was cut when this host failed; hostb took the VM by its operator's word, and gave
 * it to hostc; then hostb is lost. What broke: only hosts of open hand-offs were asked, of which hostb
 * was the one, and hosta had the VM again, older than hostc's, beside it and with a higher epoch. */
static void what_has_gone_on_from_a_dead_host_is_not_taken_back(void **state)
{
    struct owner_record rec, undone = {.epoch = 3, .owner = OWNER_MINE, .settled = true};
    json_t *none = json_array();
    const char *dir;
    need_qemu();

    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    need_third_host();
    shutdown(*(int *)*state, SHUT_RDWR);
    dir = in_dir(t, "state/vms/web1");
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, 2, "hostb", NULL, none, NULL), 0);
    json_decref(none);
    must_refuse(by_word_with(owner_answer("mine", 3)), 1, "it is hostc's (epoch 3), which is later",
                "`xmigrate undefine --force web1`", NULL);
    must_refuse(by_word_with(owner_answer("promised", 3)), 1, "hostc has a later copy of it", NULL);
    must_refuse(by_word_with(given_to("hostd", 3)), 4, "hostc gave it to hostd (epoch 3)", NULL);
    dir = in_dir(t, "state/vms/web1");
    assert_int_equal(owner_load(dir, "web1", &rec, NULL), 0);
    assert_int_equal(rec.epoch, 1);
    /* The offer could not be recorded, and its guest had gone on here above it. */
    assert_int_equal(owner_save(dir, "web1", &undone, NULL), 0);
    must_refuse(by_word_with(owner_answer("mine", 3)), 1, "it is hostc's (epoch 3)", NULL);
    must(by_word_with(given_to("hostb", 3)), 0); /* and there it was lost */
    assert_int_equal(owner_load(dir, "web1", &rec, NULL), 0);
    assert_true(rec.owner == OWNER_MINE && rec.epoch == 3 + BY_WORD_MINE);
}

/* hostb says with whom hand-offs of it are open there; what recover ends with, when hostc, if it is asked,
 * says that. */
static json_t *recover_beside_hostc(int hostb, json_t *open, json_t *hostc_says)
{
    json_t *said = given_to_us(4, false);
    struct xm_jsonl js;
    struct pollfd p[2] = {{.fd = hostc, .events = POLLIN}, {.events = POLLIN}};

    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    json_object_set_new(said, "open", open);
    json_decref(serve_one(hostb, said));
    p[1].fd = js.fd;
    if (poll(p, 2, LIMIT_HANG_MS) > 0 && p[0].revents)
        json_decref(serve_one(hostc, json_incref(hostc_says)));
    json_decref(hostc_says);
    json_t *o = last_of(&js);
    xm_jsonl_close(&js);
    return o;
}

/* What broke: any peer that spoke up while a hand-off of two others was open was believed to have taken the
 * VM, and this host's, which was its own by then, was dropped. Who can have taken it from hostb is known to
 * hostb. */
static void who_had_no_hand_off_of_it_has_not_taken_it(void **state)
{
    struct owner_record rec;
    need_qemu();

    promised(&rec);
    need_third_host();
    must(recover_beside_hostc(*(int *)*state, json_pack("[s]", "hostd"), owner_answer("mine", 5)), 0);
    assert_string_equal(state_of("web1"), "running");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_MINE);
    assert_int_equal(rec.epoch, 4);
}

static void who_had_one_may_have_taken_it(void **state)
{
    struct owner_record rec;
    need_qemu();

    promised(&rec);
    need_third_host();
    must(recover_beside_hostc(*(int *)*state, json_pack("[s, s]", "hosta", "hostc"), owner_answer("mine", 5)),
         0);
    assert_string_equal(state_of("web1"), "");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_string_equal(rec.to, "hostc");
}

/* What broke: it was asked whether it has the VM, and not whether it had it and gave it on. */
static void who_had_one_may_have_given_it_on(void **state)
{
    struct owner_record rec;
    need_qemu();

    promised(&rec);
    need_third_host();
    must(recover_beside_hostc(*(int *)*state, json_pack("[s, s]", "hosta", "hostc"), given_to("hostd", 6)),
         4);
    assert_string_equal(state_of("web1"), "undecided");
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_PROMISED);
}

/* As this host tells it to who is given the VM by it. */
static void it_is_told_with_whom_hand_offs_are_open(void **state)
{
    struct owner_record given = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};
    const char *dir = in_dir(t, "state/vms/web1");
    json_t *none = json_array();
    (void)state;

    assert_int_equal(xm_mkdir_all(dir, NULL), 0);
    assert_int_equal(owner_save(dir, "web1", &given, NULL), 0);
    json_t *o = ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", "web1"));
    assert_true(json_is_array(json_object_get(o, "open")));
    assert_int_equal(json_array_size(json_object_get(o, "open")), 0);
    json_decref(o);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, 3, "hostc", NULL, none, NULL), 0);
    assert_int_equal(journal_write(dir, JOURNAL_SOURCE, 4, "hostb", NULL, none, NULL), 0);
    o = ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.owner", "vm", "web1"));
    json_t *open = json_object_get(o, "open"), *want = json_pack("[s, s]", "hostb", "hostc");
    assert_true(json_equal(open, want));
    json_decref(want);
    json_decref(o);
    json_decref(none);
}

/* What broke: any peer could have this host settle what is open of a VM, again and again: as long as the one
 * that decides is silent, each time kept an operator waiting, who says that it is dead. */
static void who_has_no_part_in_it_has_nothing_settled(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_PROMISED, .from = "hostb"};

    need_third_host();
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    shutdown(*(int *)*state, SHUT_RDWR);
    must_refuse(
        ask_as(t, "hostc", "127.0.0.3", json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", "web1")), 1,
        "what is open of it on hosta is not open with hostc", NULL);
    must_refuse(ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.recover", "vm", "web1")), 4,
                "cannot be said before hostb has been asked", NULL);
    /* Nor by announcing the VM. */
    json_t *o = prepare_request("5");
    must_refuse(ask_as(t, "hostc", "127.0.0.3", json_deep_copy(o)), 1,
                "whose VM web1 is has to be settled with hostb, which is tried every few seconds", NULL);
    must_refuse(ask_as_peer(t, o), 1, "cannot be said before hostb has been asked", NULL);
}

/* A VM that was stopped is started by whoever wants it to run, not by a question. */
static void recover_starts_nothing_that_was_stopped(void **state)
{
    need_qemu();
    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    must(recover_with(*(int *)*state, owner_answer("mine", 2)), 0);
    assert_string_equal(state_of("web1"), "stopped");
    must(recover_with(*(int *)*state, owner_answer("none", 0)), 0);
    assert_string_equal(state_of("web1"), "stopped");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "recover", "vm", "web1", "peer_is_dead", 1)), 2);
}

/* Each of two hosts was declared dead at the other, and both VMs ran on. What broke: recover said at each
 * that the VM is that host's and runs, and nothing of the other one. */
static void a_vm_that_runs_twice_is_told(void **state)
{
    json_t *runs;
    need_qemu();

    must(ask(t, start_request()), 0);
    must_refuse(recover_with(*(int *)*state, owner_answer("mine", 9)), 1, "is hostb's (epoch 9)",
                "stop it on hosta by `xmigrate stop --force web1`", NULL);
    runs = owner_answer("mine", 0);
    json_object_set_new(runs, "present", json_true());
    json_object_set_new(runs, "role", json_string("owner"));
    must_refuse(recover_with(*(int *)*state, runs), 1, "stop it on hostb by", "undefine it on hosta", NULL);
    must(recover_with(*(int *)*state, owner_answer("given", 0)), 0);
    assert_string_equal(state_of("web1"), "running");
    /* With one epoch each of the two was said to be the later one; and of two VMs that were defined under one
     * name, where neither host reached the other, one was to be stopped. */
    runs = owner_answer("mine", 1);
    json_object_set_new(runs, "present", json_true());
    must_refuse(recover_with(*(int *)*state, runs), 1, "neither copy is the later one",
                "two VMs were defined", NULL);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* It is given to the other host while that one is asked. What broke: it was said to run twice, and which of
 * the two to stop by force. */
static void a_vm_that_is_just_given_away_does_not_run_twice(void **state)
{
    struct owner_record mine, given = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb"};
    struct xm_jsonl js, its;
    need_qemu();

    must(ask(t, start_request()), 0);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1"), -1, NULL);
    json_decref(serve_begin(*(int *)*state, &its));
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &given, NULL), 0);
    xm_jsonl_send(its.fd, owner_answer("mine", 2), -1, NULL);
    xm_jsonl_close(&its);
    must_refuse(last_of(&js), 4, "has changed at this moment: ask again", NULL);
    xm_jsonl_close(&js);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &mine, NULL), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

#define TEST(f)  cmocka_unit_test_setup_teardown(f, peer_set_up, peer_tear_down)
#define THIRD(f) cmocka_unit_test_setup_teardown(f, peer_set_up, third_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(recover_says_that_the_other_side_has_it),
        TEST(what_a_peer_remembers_is_said),
        TEST(a_vm_that_runs_twice_is_told),
        TEST(a_vm_that_is_just_given_away_does_not_run_twice),
        TEST(a_peer_that_has_lost_its_record_is_not_taken_for_one_without_the_vm),
        TEST(an_operator_takes_back_what_a_dead_peer_had),
        TEST(what_was_moved_is_not_taken_back_and_the_manual_named),
        TEST(what_was_moved_is_told_where_it_is_now),
        TEST(recover_changes_nothing_while_the_other_side_is_silent),
        TEST(a_promised_vm_whose_qemu_has_ended_is_taken_by_word),
        TEST(a_guest_that_was_not_let_run_is_let_run),
        TEST(who_has_waited_looks_again),
        TEST(recover_starts_nothing_that_was_stopped),
        TEST(what_is_whole_at_the_source_is_handed_back),
        TEST(what_is_whole_nowhere_is_started_from_its_disks),
        TEST(what_is_handed_back_goes_on_at_once),
        TEST(who_asks_while_a_word_is_carried_out_hears_so),
        THIRD(what_a_third_host_has_taken_is_given_up),
        THIRD(a_later_copy_at_a_third_host_counts),
        THIRD(what_a_third_host_has_given_on_is_looked_for),
        THIRD(who_is_silent_besides_is_named),
        THIRD(what_has_gone_on_from_a_dead_host_is_not_taken_back),
        THIRD(what_was_given_is_not_taken_beside_a_third_host),
        THIRD(nor_beside_one_that_had_the_same_offer),
        THIRD(who_had_no_hand_off_of_it_has_not_taken_it),
        THIRD(who_had_one_may_have_taken_it),
        THIRD(who_had_one_may_have_given_it_on),
        TEST(it_is_told_with_whom_hand_offs_are_open),
        THIRD(who_has_no_part_in_it_has_nothing_settled),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    snprintf(fault, sizeof fault, "@/tmp/xmt-recover-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    return cmocka_run_group_tests_name("agent: recover", tests, NULL, NULL);
}
