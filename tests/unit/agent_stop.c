/* SPDX-License-Identifier: MIT */
/* What its user sees of a VM that does not stop, that runs while its definition is to be changed, and of
 * many. The agent is a real one; shims are make-believe (lib_agent.c: the guest of «deaf» does not listen).
 */
#include "tests/unit/lib_agent.h"
#include "tests/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct test_agent *const t = &test_agent;

static int set_up(void **state)
{
    (void)state;
    return test_agent_make(t, 7) || test_agent_start(t);
}

static int tear_down(void **state)
{
    (void)state;
    test_agent_remove(t);
    return 0;
}

static void says(json_t *answer, const char *part)
{
    char *text = json_dumps(answer, 0);

    if (!text || !strstr(text, part))
        fail_msg("%s", text ? text : "no answer");
    free(text);
    json_decref(answer);
}

static void put(const char *verb, const char *vm)
{
    char how[64];

    snprintf(how, sizeof how, "s/^name = .*/name = %s/; s/^file = .*/file = %s.raw/", vm, vm);
    const char *const argv[] = {"sed", "-i", how, in_dir(t, "spec.ini"), NULL};
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
    says(ask(t, json_pack("{s:s, s:s}", "verb", verb, "spec", in_dir(t, "spec.ini"))), "\"ok\": true");
}

/* Seen: two minutes of silence, and nothing to shorten them. */
static void a_guest_that_does_not_listen(void **state)
{
    struct xm_jsonl js;
    struct xm_error e = {0};
    (void)state;
    need_qemu();

    put("start", "deaf");
    xm_jsonl_init(&js, xm_unix_connect(in_dir(t, "run/agent.sock"), &e));
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s, s:i}", "verb", "stop", "vm", "deaf", "timeout_ms", 5500), -1,
                  &e);
    says(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, &e), "`xmigrate stop --force deaf` ends it at once");
    says(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, &e), "VM deaf has not powered down within 5.50 s");
    xm_jsonl_close(&js);
    says(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "deaf", "force", 1)), "\"ok\": true");
}

/* While it is waited for somebody moves it away. What broke: that was «stopped». */
static void a_vm_that_is_moved_meanwhile_is_not_stopped(void **state)
{
    struct xm_jsonl js;
    struct xm_error e = {0};
    (void)state;
    need_qemu();

    put("start", "deaf");
    xm_jsonl_init(&js, xm_unix_connect(in_dir(t, "run/agent.sock"), &e));
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "stop", "vm", "deaf"), -1, &e);
    says(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, &e), "`xmigrate stop --force deaf` ends it at once");
    says(ask_shim(t, "deaf", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), "\"ok\": true");
    says(xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, &e), "VM deaf has been given to hostb meanwhile");
    xm_jsonl_close(&js);
}

static void a_running_vm_is_not_edited(void **state)
{
    json_t *edit = json_pack("{s:s, s:s, s:b}", "verb", "dump", "vm", "web1", "edit", 1);
    (void)state;
    need_qemu();

    put("start", "web1");
    says(ask(t, json_incref(edit)), "its definition can be changed when it is stopped");
    says(ask(t, json_pack("{s:s, s:s}", "verb", "dump", "vm", "web1")), "\"ini\"");
    says(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), "\"ok\": true");
    says(ask(t, edit), "\"ini\"");
}

/* Those that run stood before the others. */
static void the_list_is_sorted(void **state)
{
    (void)state;
    need_qemu();

    put("start", "x");
    put("define", "web2");
    put("start", "web1");
    json_t *o = ask(t, json_pack("{s:s}", "verb", "list")), *vms = json_object_get(o, "vms");
    static const char *const names[] = {"web1", "web2", "x"};
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(xm_json_str(json_array_get(vms, i), "name", ""), names[i]);
    json_decref(o);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(a_guest_that_does_not_listen),
        TEST(a_vm_that_is_moved_meanwhile_is_not_stopped),
        TEST(a_running_vm_is_not_edited),
        TEST(the_list_is_sorted),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    return cmocka_run_group_tests_name("agent: stop, edit, list", tests, NULL, NULL);
}
