/* SPDX-License-Identifier: MIT */
/* The control plane is not needed by a running migration: agents and the command may die in the middle of it.
 */
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SMALL_GROUP("agent", SMALL_RATE, SMALL_LONG)

static void begin(struct job *move, const char *from, const char *to)
{
    job_start(move, "%s", xmigrate(from, "--json --with-storage web1 %s", to));
    assert_true(job_saw(move, "\"disks\"", 60));
}

static void newest_job(const char *host, char *id, size_t size)
{
    json_t *o = NULL, *list;
    const json_t *n;

    assert_int_equal(xmigrate_run(host, 0, &o, "--json jobs"), 0);
    list = json_object_get(o, "jobs");
    assert_true(json_array_size(list) > 0);
    n = json_object_get(json_array_get(list, json_array_size(list) - 1), "job");
    snprintf(id, size, "%s", json_is_string(n) ? json_string_value(n) : "");
    if (json_is_integer(n))
        snprintf(id, size, "%lld", (long long)json_integer_value(n));
    json_decref(o);
}

static void must_arrive(const char *from, const char *id, const char *to)
{
    json_t *done = NULL;

    assert_int_equal(xmigrate_run(from, 0, &done, "--json watch %s", id), 0);
    assert_string_equal(string(done, "event"), "done");
    json_decref(done);
    vm_must_run_at(to, "web1");
    small_must_be_whole(&guest, to);
    host_must_be_clean(from);
}

static void kill_agent(const char *host)
{
    assert_int_equal(sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host), 0);
}

static void start_agent(const char *host)
{
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent %s", host), 0);
}

static void the_command_dies_and_watch_rejoins(void **state)
{
    struct job move;
    char id[32];

    (void)state;
    need_lab();
    begin(&move, "a", "hostb");
    newest_job("a", id, sizeof(id));
    job_signal(&move, SIGKILL);
    job_end(&move, 5, NULL);
    must_arrive("a", id, "b");
}

static void the_source_agent_dies_and_comes_back(void **state)
{
    struct job move;
    char id[32];
    int code;

    (void)state;
    need_lab();
    begin(&move, "b", "hosta");
    newest_job("b", id, sizeof(id));
    kill_agent("b");
    code = job_end(&move, 30, NULL);
    assert_int_equal(code, 4); /* the command cannot know: it says how to find out */
    start_agent("b");
    must_arrive("b", id, "a");
}

static void the_destination_agent_dies_and_comes_back(void **state)
{
    struct job move;
    char id[32];

    (void)state;
    need_lab();
    begin(&move, "a", "hostb");
    newest_job("a", id, sizeof(id));
    kill_agent("b");
    start_agent("b");
    assert_int_equal(job_end(&move, 120, NULL), 0);
    must_arrive("a", id, "b");
}

/* Both, and nobody starts them again until long after the VM has moved. */
static void both_agents_are_away_until_the_end(void **state)
{
    struct job move;
    char id[32];

    (void)state;
    need_lab();
    begin(&move, "b", "hosta");
    newest_job("b", id, sizeof(id));
    kill_agent("a");
    kill_agent("b");
    job_end(&move, 30, NULL);
    assert_true(wait_until(60, "test -z \"$(ip netns pids %s-hostb)\"", lab_prefix()));
    small_must_be_whole(&guest, "a");
    start_agent("a");
    start_agent("b");
    must_arrive("b", id, "a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_command_dies_and_watch_rejoins),
        cmocka_unit_test(the_source_agent_dies_and_comes_back),
        cmocka_unit_test(the_destination_agent_dies_and_comes_back),
        cmocka_unit_test(both_agents_are_away_until_the_end),
    };

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
