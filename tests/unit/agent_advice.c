/* SPDX-License-Identifier: MIT */
/* Each advice leads on: what a refusal says between `xmigrate and ` is done, and what that says, until what
 * was wanted works. hostb never answers, so nobody else helps. What only a running QEMU can say is walked by
 * tests/system (test_handoff, test_failures). The agent is a real one; shims are make-believe (lib_agent.c).
 */
#include "tests/unit/lib_agent.h"
#include "agent/admission.h"
#include "tests/progress.h"
#include "vm/vm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEPS 4

static struct test_agent *const t = &test_agent;

static int tear_down(void **state)
{
    (void)state;
    test_agent_remove(t);
    return 0;
}

/* ---- following ---- */

static bool ok(const json_t *answer)
{
    return xm_json_bool(answer, "ok", false);
}

/* The n-th `xmigrate ...` of the answer, 1 the first; without the program's name. False: there are fewer. */
static bool advice(const json_t *answer, unsigned n, char *words, size_t size)
{
    char *text = json_dumps(answer, JSON_COMPACT);
    const char *at = text;

    for (unsigned i = 0; at && i < n; i++)
        at = (at = strstr(at, "`xmigrate ")) ? at + strlen("`xmigrate ") : NULL;
    if (at)
        snprintf(words, size, "%.*s", (int)strcspn(at, "`"), at);
    free(text);
    return at != NULL;
}

static json_t *command(const char *words)
{
    char verb[32] = "", vm[32] = "", option[32] = "";
    json_t *request;

    if (sscanf(words, "%31s %31s %31s", verb, vm, option) < 1)
        fail_msg("«%s» is no command", words);
    if (vm[0] == '-') {
        char keep[32];
        memcpy(keep, vm, sizeof keep);
        memcpy(vm, option, sizeof vm);
        memcpy(option, keep, sizeof option);
    }
    request = json_pack("{s:s, s:s}", "verb", verb, "vm", vm);
    if (!strcmp(option, "--peer-is-dead"))
        json_object_set_new(request, "peer_is_dead", json_true());
    if (!strcmp(option, "--force"))
        json_object_set_new(request, "force", json_true());
    return ask(t, request);
}

/* From what `answer` says, its n-th advice first, until a command succeeds and says no more. Steals it. */
static void follow(json_t *answer, unsigned n)
{
    char words[200], said[1000] = "";

    assert_non_null(answer);
    for (int i = 0; i < STEPS && advice(answer, n, words, sizeof words); i++, n = 1) {
        snprintf(said + strlen(said), sizeof said - strlen(said), "%s; ", words);
        json_decref(answer);
        answer = command(words);
    }
    if (!said[0] || !ok(answer))
        fail_msg("%sleads to: %s", said, json_dumps(answer, 0));
    json_decref(answer);
}

/* ---- what may be wanted ---- */

static json_t *start_spec(void)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini")));
}

static json_t *check_from_peer(void)
{
    return ask_as_peer(
        t, json_pack("{s:s, s:b, s:i, s:i, s:s, s:[i], s:{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, "
                     "s:s, s:i, s:s, s:i}], s:[]}}",
                     "verb", "peer.check", "storage", 1, "epoch", 1, "protocol", AGENT_PROTOCOL, "job", "",
                     "used", 4096, "vm", "name", "web1", "memory", 16 << 20, "vcpus", 1, "qemu",
                     "qemu-system-x86_64", "machine", "q35", "accel", "tcg", "cpu", "max", "disks", "name",
                     "root", "path", "/dev/loop0", "size", 1 << 20, "datastore", "", "queues", 1, "nics"));
}

static json_t *verb(const char *name)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", name, "vm", "web1"));
}

static json_t *console(void)
{
    return verb("console");
}

static json_t *stop(void)
{
    return verb("stop");
}

static json_t *start(void)
{
    return verb("start");
}

static json_t *undefine(void)
{
    return verb("undefine");
}

static json_t *move(void)
{
    return ask(t, json_pack("{s:s, s:s, s:s, s:b, s:{}}", "verb", "move", "vm", "web1", "host", "hostb",
                            "storage", 1, "options"));
}

static json_t *watch(void)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", "watch", "job", "77"));
}

/* ---- how it came to that ---- */

static void stopped(void)
{
    json_decref(start_spec());
    json_decref(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)));
}

/* It came, and QEMU hung when it was to let it run. */
static void stands_still(void)
{
    json_decref(start_spec());
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/stands"), "", 0, NULL), 0);
}

static void recorded(enum owner_side side, bool settled)
{
    struct owner_record rec = {.epoch = 4, .owner = side, .settled = settled};

    stopped();
    snprintf(side == OWNER_GIVEN ? rec.to : rec.from, sizeof rec.to, "hostb");
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
}

static void promised(void)
{
    recorded(OWNER_PROMISED, false);
}

static void given(void)
{
    recorded(OWNER_GIVEN, false);
}

static void gone(void)
{
    recorded(OWNER_GIVEN, true);
}

/* Its last migration failed, and the destination may have been promised the VM. */
static void open_at_home(void)
{
    json_t *files = json_array();

    stopped();
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, files, NULL), 0);
    json_decref(files);
}

/* The same, and then the host was away. */
static void returned(void)
{
    struct vm_life life = {.state = LIFE_RUNS, .boot = "another"};

    open_at_home();
    assert_int_equal(life_save(in_dir(t, "state/vms/web1"), &life, NULL), 0);
}

static void other_spec(void)
{
    const char *const argv[] = {"sed", "-i", "s/web1.raw/other.raw/", in_dir(t, "spec.ini"), NULL};

    stopped();
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
}

static void other_size(void)
{
    const char *const argv[] = {"sed", "-i", "s/size = 1M/size = 512K/", in_dir(t, "spec.ini"), NULL};

    stopped();
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
}

/* ---- the table ---- */

static const struct walk {
    const char *name;
    void (*so)(void);
    json_t *(*wanted)(void);
    unsigned advice; /* of several */
    bool not_then;   /* what was wanted is not what it leads to, but another thing that works */
} walks[] = {
    {"console of a stopped VM", stopped, console, 1, true},
    {"stop of a stopped VM", stopped, stop, 1, false},
    {"move of a stopped VM", stopped, move, 1, true},
    {"a job that is not known", stopped, watch, 1, true},
    {"start of another disk: as recorded", other_spec, start_spec, 1, true},
    {"start of another disk: forget it", other_spec, start_spec, 2, false},
    {"start with another size", other_size, start_spec, 1, true},
    {"a stopped VM in the way of one that comes: where is it", stopped, check_from_peer, 1, true},
    {"a stopped VM in the way of one that comes: forget it", stopped, check_from_peer, 2, false},
    {"one of a later epoch in its way", gone, check_from_peer, 1, false},
    {"an open promise in its way", promised, check_from_peer, 1, true},
    {"start of what was promised", promised, start, 1, true},
    {"start of what was promised, by its file", promised, start_spec, 1, true},
    {"start of what was given", given, start, 1, true},
    {"start of what has gone, by its file", gone, start_spec, 1, false},
    {"stop of what was given", given, stop, 1, false},
    {"start of one that stands still", stands_still, start, 1, true},
    {"start after the host was away", returned, start, 1, true},
    {"undefine of what was given", given, undefine, 1, true},
    {"undefine before it is cleaned up", open_at_home, undefine, 1, true},
    {"undefine after the host was away", returned, undefine, 1, true},
};

static void walk(void **state)
{
    const struct walk *k = *state;
    need_qemu();

    assert_int_equal(test_agent_make(t, 7), 0);
    assert_int_equal(test_agent_start(t), 0);
    k->so();
    json_t *answer = k->wanted();
    if (ok(answer) && !json_array_size(json_object_get(answer, "reasons")))
        fail_msg("it works: %s", json_dumps(answer, 0));
    follow(answer, k->advice);
    if (k->not_then)
        return;
    answer = k->wanted();
    if (!ok(answer) || json_array_size(json_object_get(answer, "reasons")))
        fail_msg("all was done, and still: %s", json_dumps(answer, 0));
    json_decref(answer);
}

/* Those that the table does not walk: what only a QEMU without its shim, a paused guest, or a move that
 * has begun, can lead to (6), and what is said of peers (11; of several silent ones: agent_returned follows
 * it; of one that has the VM, too, or had it and gave it on: agent_recover hears it). */
#define ADVICES 41

static void all_advices_are_walked(void **state)
{
    const char *const argv[] = {"sh", "-c",
                                "cat agent/*.c migrate/*.c shim/*.c vm/*.c machine/*.c | tr -d '\n' | "
                                "sed 's/\"  *\"//g' | grep -o '`xmigrate [a-z]' | wc -l",
                                NULL};
    char *out = NULL;
    (void)state;

    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, &out, NULL), 0);
    if (atoi(out) != ADVICES)
        fail_msg("an advice came or went (%d now): it needs its line in walks[]", atoi(out));
    free(out);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[sizeof walks / sizeof *walks + 1];
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    for (size_t i = 0; i < sizeof walks / sizeof *walks; i++)
        tests[i] = (struct CMUnitTest){.name = walks[i].name,
                                       .test_func = walk,
                                       .teardown_func = tear_down,
                                       .initial_state = (void *)(uintptr_t)&walks[i]};
    tests[sizeof walks / sizeof *walks] = (struct CMUnitTest)cmocka_unit_test(all_advices_are_walked);
    return cmocka_run_group_tests_name("agent: advice", tests, NULL, NULL);
}
