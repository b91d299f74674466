/* SPDX-License-Identifier: MIT */
/* The program against an agent that says what the test tells it to: what is sent, how it ends, and what it
 * returns. What is printed of answers and migrations: cli_report.c. */
#include "tests/unit/lib_cli.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void json_passes_each_event_and_nothing_else(void **state)
{
    (void)state;
    assert_int_equal(run_cli("--json web1 hostb", SAYS(JOB, DISKS, DONE, "{\"ok\":true}"), false, true),
                     CLI_DONE);
    unsigned lines = 0;
    json_t *last = NULL;
    for (char *save, *l = strtok_r(cli_out, "\n", &save); l; l = strtok_r(NULL, "\n", &save), lines++) {
        json_decref(last);
        last = json_loads(l, 0, NULL);
        assert_true(json_is_object(last));
    }
    assert_int_equal(lines, 3);
    assert_string_equal(xm_json_str(last, "event", ""), "done");
    assert_true(xm_json_real(last, "downtime_ms", 0) == 21.25);
    json_decref(last);
}

static void a_failure_with_the_vm_safe_is_1(void **state)
{
    (void)state;
    const char *failed = "{\"event\":\"failed\",\"error\":\"link "
                         "lost\",\"state\":\"memory\",\"vm\":\"web1\",\"vm_safe\":true}";
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    assert_string_equal(cli_err, "xmigrate: link lost (in the state memory)\nweb1 is safe where it was.\n");
    assert_int_equal(run_cli("--json web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    expect_in(cli_out, "{\"event\":\"failed\"");
    /* What broke: the manual says so, and who had the JSON in a file saw nothing. */
    assert_string_equal(cli_err, "xmigrate: link lost (in the state memory)\nweb1 is safe where it was.\n");
}

static void a_vm_that_ended_meanwhile_is_stopped_and_starts_there(void **state)
{
    (void)state;
    const char *failed = "{\"event\":\"failed\",\"error\":\"it powered itself "
                         "down\",\"state\":\"disks\",\"vm\":\"web1\",\"vm_safe\":true,\"stopped\":true}";
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    assert_string_equal(cli_err, "xmigrate: it powered itself down (in the state disks)\n"
                                 "web1 is stopped where it was; `xmigrate start web1` starts it there.\n");
}

static void a_failure_with_the_vm_unknown_is_4_and_says_recover(void **state)
{
    (void)state;
    const char *failed =
        "{\"event\":\"failed\",\"error\":\"no answer to the hand-off\",\"vm\":\"web1\",\"vm_safe\":false}";
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, failed), false, false), CLI_UNKNOWN);
    expect_in(cli_err, "xmigrate recover web1\n");
}

static void a_question_that_stays_open_is_not_answered_by_asking_it(void **state)
{
    (void)state;
    const char *no = "{\"ok\":false,\"error\":\"hostb cannot be asked\",\"exit\":4}";
    assert_int_equal(run_cli("recover web1", SAYS(no), false, false), CLI_UNKNOWN);
    assert_string_equal(cli_err, "xmigrate: hostb cannot be asked\n");
}

static void a_refusal_is_3_and_gives_every_reason(void **state)
{
    (void)state;
    const char *no =
        "{\"ok\":false,\"error\":\"refused\",\"exit\":3,\"reasons\":[\"no space\",\"no bridge br0\"]}";
    assert_int_equal(run_cli("web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    assert_string_equal(cli_err, "xmigrate: refused\n  - no space\n  - no bridge br0\n");
    assert_int_equal(run_cli("--json web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    expect_in(cli_out, "\"event\":\"failed\"");
    no = "{\"ok\":false,\"error\":\"VM web1: no space; no bridge\",\"exit\":3,\"reasons\":[\"no space\",\"no "
         "bridge\"]}";
    assert_int_equal(run_cli("web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    assert_string_equal(cli_err, "xmigrate: refused, for these reasons:\n  - no space\n  - no bridge\n");
}

static void detach_prints_the_job_and_leaves(void **state)
{
    (void)state;
    assert_int_equal(run_cli("--detach web1 hostb", SAYS(JOB), false, false), CLI_DONE);
    expect_out("7\n");
    assert_int_equal(run_cli("--detach web1 hostb", SAYS("{\"ok\":true,\"job\":\"8\"}"), false, false),
                     CLI_DONE);
    expect_out("8\n");
    assert_int_equal(
        run_cli("--detach web1 hostb", SAYS("{\"ok\":false,\"error\":\"no\",\"exit\":3}"), false, false),
        CLI_REFUSED);
}

static void an_interruption_says_that_the_migration_goes_on(void **state)
{
    (void)state;
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ours, NULL); /* so that the agent's thread does not take it */
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, DISKS, INTERRUPT), false, false), CLI_UNKNOWN);
    expect_in(cli_err, "xmigrate: interrupted\nThe migration goes on");
    expect_in(cli_err, "xmigrate watch 7\n");
    expect_in(cli_err, "xmigrate abort 7\n");
    assert_int_equal(run_cli("--json watch 7", SAYS(JOB, INTERRUPT), false, false), CLI_UNKNOWN);
    expect_in(cli_out, "{\"event\":\"lost\",\"error\":\"interrupted\",\"exit\":4,\"job\":\"7\"}\n");
    assert_int_equal(run_cli("list", SAYS(INTERRUPT), false, false), CLI_UNKNOWN);
    /* What broke: it was told to watch a move that was over. */
    const char *done = "{\"event\":\"done\",\"job\":\"4\",\"vm\":\"web1\"}";
    assert_int_equal(run_cli("rebalance", SAYS(done, INTERRUPT), false, false), CLI_UNKNOWN);
    expect_in(cli_err, "goes on without this command; no other is begun. See it:  xmigrate jobs\n");
    assert_null(strstr(cli_err, "watch"));
    pthread_sigmask(SIG_UNBLOCK, &ours, NULL); /* it was taken: nothing kills us here */
}

static void a_lost_agent_is_4_when_something_may_have_changed(void **state)
{
    (void)state;
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB), true, false), CLI_UNKNOWN);
    expect_in(cli_err, "the agent closed the connection before it had answered\n");
    expect_in(cli_err, "xmigrate watch 7\n");
    assert_int_equal(run_cli("stop web1", SAYS("{\"half\":"), true, false), CLI_UNKNOWN);
    assert_int_equal(run_cli("list", (const char *const[]){NULL}, true, false), CLI_FAILED);
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, "{\"ok\":true}"), false, false), CLI_UNKNOWN);
    expect_in(cli_err, "without saying how the migration ended");
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, "this is no JSON"), false, false), CLI_UNKNOWN);
    expect_in(cli_err, "makes no sense");
}

/* What broke: a VM moved while the file of the report was full, and the status said that it had not. */
static void an_output_that_is_lost_is_4_when_something_was_done(void **state)
{
    (void)state;
    const char *full = "xmigrate: cannot write the output", *done = "has been done all the same";
    cli_full = true;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(
            run_cli(i ? "--json web1 hostb" : "web1 hostb", SAYS(JOB, DISKS, DONE), false, false),
            CLI_UNKNOWN);
        expect_in(cli_err, full);
        expect_in(cli_err, done);
        assert_int_equal(run_cli(i ? "--json list" : "list", SAYS("{\"ok\":true,\"vms\":[]}"), false, false),
                         CLI_FAILED);
        expect_in(cli_err, full);
        assert_null(strstr(cli_err, done));
    }
    assert_int_equal(run_cli("--dry-run web1 hostb", SAYS("{\"ok\":true}"), false, false), CLI_FAILED);
    assert_int_equal(run_cli("web1 hostb", SAYS("{\"ok\":false,\"error\":\"no\",\"exit\":3}"), false, false),
                     CLI_REFUSED);
    assert_int_equal(run_cli("--help", NULL, false, false), CLI_FAILED);
    cli_full = false;
}

static void no_agent_is_1_because_nothing_was_changed(void **state)
{
    (void)state;
    assert_int_equal(run_cli("web1 hostb", NULL, false, false), CLI_FAILED);
    expect_in(cli_err, "xmigrate: is xmigrated running on this host?: cannot connect to ");
    assert_int_equal(run_cli("--json web1 hostb", NULL, false, false), CLI_FAILED);
    expect_in(cli_out, "{\"event\":\"failed\",\"error\":\"is xmigrated running");
    assert_int_equal(run_cli("list --json", NULL, false, false), CLI_FAILED);
    expect_in(cli_out, "{\"ok\":false,\"error\":\"is xmigrated running");
}

static void wrong_use_is_2_and_never_reaches_the_agent(void **state)
{
    (void)state;
    assert_int_equal(run_cli("web1", NULL, false, false), CLI_USAGE);
    expect_in(cli_err, "xmigrate: \"web1\" is no verb");
    assert_int_equal(run_cli("--resume web1 hostb", NULL, false, false), CLI_USAGE);
    expect_out("");
    assert_int_equal(run_cli("--json web1", NULL, false, false), CLI_USAGE);
    expect_in(cli_out, "{\"ok\":false,\"error\":\"\\\"web1\\\" is no verb");
    expect_in(cli_out, "\"exit\":2,\"event\":\"failed\"}\n");
    assert_int_equal(run_cli("--json start /no/such/file", NULL, false, false), CLI_USAGE);
    expect_in(cli_out, "\"exit\":2}\n");
}

static void a_user_who_may_not_ask_is_told_so(void **state)
{
    (void)state;
    char *dir = xm_printf("%s", tmpdir_path("closed")), line[300];

    if (geteuid() == 0 && mkdir(dir, 0700) == 0) { /* root may enter whatever its mode: as another user */
        snprintf(line, sizeof line, "--socket %s/agent.sock list", dir);
        assert_int_equal(seteuid(65534), 0);
        int status = run_cli(line, NULL, false, false);
        assert_int_equal(seteuid(0), 0);
        assert_int_equal(status, CLI_FAILED);
        expect_in(cli_err, "xmigrate: only root may ask the agent: cannot connect to ");
    } else {
        fputs("SKIPPED: needs root\n", stderr);
    }
    free(dir);
}

static void what_is_typed_to_interrupt_the_editor_is_not_for_us(void **state)
{
    (void)state;
    setenv("VISUAL", "kill -INT $PPID; kill -QUIT $PPID; test -w", 1);
    assert_int_equal(run_cli("edit web1", SAYS("{\"ok\":true,\"ini\":\"[vm]\\n\"}"), true, false), CLI_DONE);
    expect_out("Nothing has been changed.\n");
    unsetenv("VISUAL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_AGENT(json_passes_each_event_and_nothing_else),
        WITH_AGENT(a_failure_with_the_vm_safe_is_1),
        WITH_AGENT(a_vm_that_ended_meanwhile_is_stopped_and_starts_there),
        WITH_AGENT(a_failure_with_the_vm_unknown_is_4_and_says_recover),
        WITH_AGENT(a_question_that_stays_open_is_not_answered_by_asking_it),
        WITH_AGENT(a_refusal_is_3_and_gives_every_reason),
        WITH_AGENT(detach_prints_the_job_and_leaves),
        WITH_AGENT(an_interruption_says_that_the_migration_goes_on),
        WITH_AGENT(a_lost_agent_is_4_when_something_may_have_changed),
        WITH_AGENT(an_output_that_is_lost_is_4_when_something_was_done),
        WITH_AGENT(no_agent_is_1_because_nothing_was_changed),
        WITH_AGENT(wrong_use_is_2_and_never_reaches_the_agent),
        WITH_AGENT(a_user_who_may_not_ask_is_told_so),
        WITH_AGENT(what_is_typed_to_interrupt_the_editor_is_not_for_us),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
