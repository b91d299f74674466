/* SPDX-License-Identifier: MIT */
/* The hand-off's machine, case by case: who may begin, what is done once, what is written again, its
 * messages. */
#include "vm/handoff.h"
#include "tests/unit/lib_disk.h"

#include <stdlib.h>

static void test_start_refuses_who_has_no_right(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE},
                        given = {.epoch = 3, .owner = OWNER_GIVEN, .to = "B"};
    struct handoff_actions a;
    struct xm_error e;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &given, &a, &e), -EPERM);
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", NULL, &a, &e), -EPERM);
    assert_int_equal(handoff_start(&h, HANDOFF_DESTINATION, false, "B", "A", &mine, &a, &e), -EEXIST);
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &mine, &a, &e), 0);
    assert_int_equal(handoff_event(&h, HANDOFF_RAN, &a), -EPROTO);
    assert_int_equal(handoff_event(&h, HANDOFF_ABORT, &a), 0);
    assert_true(a.resume && a.send);
    assert_int_equal(handoff_event(&h, HANDOFF_WANT, &a), -ECANCELED);
    assert_false(a.write);
}

/* A VM that its user has stopped after the migration ended is not started because the peer asks again. */
static void test_resumes_once(void **state)
{
    struct owner_record mine = {.epoch = 3, .owner = OWNER_MINE};
    struct handoff_msg ask = {.type = HANDOFF_MSG_ASK};
    struct handoff_actions a;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_SOURCE, false, "A", "B", &mine, &a, NULL), 0);
    handoff_message(&h, &ask, &a);
    assert_true(a.resume && a.send);
    assert_int_equal(a.msg.owner, OWNER_MINE);
    handoff_message(&h, &ask, &a);
    assert_true(!a.resume && a.send);
}

/* Found by the simulator: QEMU refused to run the VM, «given back» could not be written, and from then on
 * nobody wrote it: the source was told nothing, and no command brought the VM back. */
static void test_handing_back_is_written_again(void **state)
{
    struct owner_record promised = {.epoch = 2, .owner = OWNER_PROMISED};
    struct handoff_msg run = {.type = HANDOFF_MSG_RUN, .epoch = 2};
    struct handoff_actions a;
    struct handoff h;

    (void)state;
    assert_int_equal(handoff_start(&h, HANDOFF_DESTINATION, false, "B", "A", NULL, &a, NULL), 0);
    handoff_promised(&h, &promised);
    handoff_message(&h, &run, &a);
    assert_true(a.write);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITTEN, &a), 0);
    assert_true(a.run);
    assert_int_equal(handoff_event(&h, HANDOFF_CANNOT_RUN, &a), 0);
    assert_true(a.write && a.record.owner == OWNER_GIVEN && a.record.epoch == 3);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITE_FAILED, &a), 0);
    assert_false(a.write || a.send);
    handoff_message(&h, &run, &a); /* the source asks again */
    assert_true(a.write && a.record.owner == OWNER_GIVEN && a.record.epoch == 3);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITE_FAILED, &a), 0);
    assert_int_equal(handoff_event(&h, HANDOFF_RETRY, &a), 0); /* or its own driver tries */
    assert_true(a.write);
    assert_int_equal(handoff_event(&h, HANDOFF_WRITTEN, &a), 0);
    assert_true(a.send && a.msg.type == HANDOFF_MSG_RUN && a.msg.epoch == 3);
}

static void test_messages_survive_the_wire(void **state)
{
    struct handoff_msg in,
        out[] = {{.type = HANDOFF_MSG_RUN, .epoch = 7},
                 {.type = HANDOFF_MSG_RUN_ACK, .epoch = 1},
                 {.type = HANDOFF_MSG_ASK},
                 {.type = HANDOFF_MSG_ANSWER, .epoch = 9, .owner = OWNER_GIVEN, .to = "hostb"}};
    static const char *const bad[] = {"{}",
                                      "{\"handoff\":\"jump\",\"epoch\":1}",
                                      "{\"handoff\":\"run\"}",
                                      "{\"handoff\":\"run\",\"epoch\":-1}",
                                      "{\"handoff\":\"run\",\"epoch\":\"1\"}",
                                      "{\"handoff\":\"answer\",\"epoch\":1,\"owner\":\"ours\"}"};
    struct xm_error e;

    (void)state;
    for (size_t i = 0; i < sizeof(out) / sizeof(*out); i++) {
        json_t *o = handoff_msg_pack(&out[i]);
        assert_non_null(o);
        assert_int_equal(handoff_msg_unpack(&in, o, &e), 0);
        assert_int_equal(in.type, out[i].type);
        assert_int_equal(in.epoch, out[i].epoch);
        assert_int_equal(in.owner, out[i].owner);
        assert_string_equal(in.to, out[i].to);
        json_decref(o);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        json_t *o = json_loads(bad[i], 0, NULL);
        assert_non_null(o);
        assert_int_equal(handoff_msg_unpack(&in, o, &e), -EPROTO);
        json_decref(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start_refuses_who_has_no_right),
        cmocka_unit_test(test_resumes_once),
        cmocka_unit_test(test_handing_back_is_written_again),
        cmocka_unit_test(test_messages_survive_the_wire),
    };
    if (!getenv("XMIGRATE_LOG"))
        setenv("XMIGRATE_LOG", "error", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
