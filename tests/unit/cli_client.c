/* SPDX-License-Identifier: MIT */
/* The program against an agent that says what the test tells it to: what is sent, printed, and returned. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cli/cli.h"
#include "tests/unit/lib_tmpdir.h"
#include "tests/progress.h"

#define INTERRUPT "!" /* instead of a line: interrupts the program */

/* One connection: takes one request, says its lines, and hangs up, or waits for the other to do it. */
struct agent {
    int listener;
    const char *const *lines;
    bool hang_up;
    json_t *request;
    pthread_t thread;
};

static void *agent_run(void *arg)
{
    struct agent *a = arg;
    struct xm_jsonl j;

    xm_jsonl_init(&j, accept(a->listener, NULL, NULL));
    a->request = xm_jsonl_recv(&j, xm_now() + LIMIT_HANG_NS, NULL);
    for (const char *const *l = a->lines; *l; l++) {
        if (!strcmp(*l, INTERRUPT))
            kill(getpid(), SIGINT);
        else if (send(j.fd, *l, strlen(*l), MSG_NOSIGNAL) < 0 || send(j.fd, "\n", 1, MSG_NOSIGNAL) < 0)
            break;
    }
    if (!a->hang_up) {
        struct pollfd p = {.fd = j.fd, .events = POLLIN};
        poll(&p, 1, LIMIT_HANG_MS);
    }
    xm_jsonl_close(&j);
    return NULL;
}

static char *out, *err; /* what the program wrote */
static json_t *request; /* what it asked */

static void forget(void)
{
    free(out);
    free(err);
    json_decref(request);
    out = err = NULL;
    request = NULL;
}

static int run(const char *line, const char *const *lines, bool hang_up, bool terminal)
{
    char buf[300], *argv[12];
    int argc = 0;
    size_t ignored;
    struct xm_error e = {0};
    struct agent a = {.lines = lines, .hang_up = hang_up};

    forget();
    if (lines) {
        a.listener = xm_unix_listen(tmpdir_path("agent.sock"), &e);
        assert_true(a.listener >= 0);
        assert_int_equal(pthread_create(&a.thread, NULL, agent_run, &a), 0);
    }
    setenv("XMIGRATE_SOCKET", tmpdir_path("agent.sock"), 1);
    snprintf(buf, sizeof buf, "xmigrate %s", line);
    for (char *save, *w = strtok_r(buf, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    struct cli_io io = {open_memstream(&out, &ignored), open_memstream(&err, &ignored), terminal, 60};
    int status = cli_run(argc, argv, &io);
    fclose(io.out);
    fclose(io.err);
    if (lines) {
        pthread_join(a.thread, NULL);
        close(a.listener);
        request = a.request;
    }
    return status;
}

#define SAYS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define JOB       "{\"event\":\"job\",\"job\":\"7\"}"
#define DISKS                                                                                                \
    "{\"event\":\"progress\",\"state\":\"disks\",\"bytes_done\":52428800,\"bytes_total\":104857600,"         \
    "\"rate\":1e8,\"eta_s\":0.5,\"disks\":[{\"name\":\"a\",\"mode\":\"async\"},{\"name\":\"b\",\"mode\":"    \
    "\"async\"}]}"
#define DONE                                                                                                 \
    "{\"event\":\"done\",\"vm\":\"web1\",\"source\":\"hosta\",\"destination\":\"hostb\",\"total_s\":12.5,"   \
    "\"downtime_ms\":21.25,\"disk_bytes\":1073741824,\"ram_bytes\":536870912,\"wire_bytes\":1610612736,"     \
    "\"rounds\":4,\"mirror\":{\"switches\":2,\"gave_up\":0},\"digest\":\"equal\"}"

static void expect_out(const char *text)
{
    if (strcmp(out, text))
        fail_msg("printed\n%s\ninstead of\n%s", out, text);
}

static void expect_in(const char *all, const char *part)
{
    if (!strstr(all, part))
        fail_msg("%s\nlacks %s", all, part);
}

static void a_move_ends_with_a_report(void **state)
{
    (void)state;
    assert_int_equal(run("--with-storage web1 hostb", SAYS(JOB, DISKS, DONE), false, false), CLI_DONE);
    assert_string_equal(xm_json_str(request, "verb", ""), "move");
    expect_out("disks     50 %  50.00 MiB of 100.00 MiB  100.00 MB/s  500.0 ms left  mirror async\n"
               "web1 has moved to hostb.\n"
               "  from         hosta\n"
               "  total time   12.50 s\n"
               "  downtime     21.2 ms\n"
               "  disks        1.00 GiB\n"
               "  memory       512.00 MiB in 4 rounds\n"
               "  on the wire  1.50 GiB\n"
               "  mean rate    128.85 MB/s\n"
               "  mirror       switches 2, gave up 0\n"
               "  digest       equal\n");
    assert_string_equal(err, "");
}

static void the_report_tells_what_the_shim_measured(void **state)
{
    (void)state;
    const char *memory =
        "{\"event\":\"progress\",\"state\":\"memory\",\"bytes_done\":100,\"bytes_total\":100,\"rate\":1e8,"
        "\"eta_s\":null,\"round\":2,\"dirty_bytes\":1048576,\"disks\":[{\"name\":\"a\",\"mode\":\"async\"},"
        "{\"name\":\"b\",\"mode\":\"sync\"}]}";
    const char *done =
        "{\"event\":\"done\",\"vm\":\"web1\",\"destination\":\"hostb\",\"downtime_ms\":20.5,\"disk_bytes\":0,"
        "\"disk_zero_bytes\":1048576,\"mirror\":{\"bytes\":2048,\"to_sync\":2,\"to_async\":1,\"held\":9,"
        "\"held_ms_max\":1.5,\"given_up\":3},\"downtime_parts_ms\":{\"final_ram\":1.25,\"disks\":3},"
        "\"kept_disks\":[\"/dev/vg/web1\",\"/ds/web1.raw\"],\"digest\":\"00ff\"}";
    assert_int_equal(run("--with-storage web1 hostb", SAYS(JOB, memory, done), false, false), CLI_DONE);
    expect_out("memory    100.00 MB/s  round 2, 1.00 MiB dirty  mirror a:async, b:sync\n"
               "web1 has moved to hostb.\n"
               "  downtime     20.5 ms (in ms: final ram 1.25, disks 3)\n"
               "  disks        0 B, and 1.00 MiB of holes and zeros not sent\n"
               "  mirror       2.00 KiB of guest writes; 2 times to sync, 1 back; 3 chunks copied again; "
               "longest hold of a write 1.5 ms\n"
               "  digest       00ff\n"
               "At the source these disks are kept, and belong to no VM now:\n"
               "  /dev/vg/web1\n"
               "  /ds/web1.raw\n");
}

/* 175 ms were reported beside a budget of 100 as if they were what had been asked for. */
static void a_downtime_over_its_budget_is_said_to_be(void **state)
{
    (void)state;
    const char *over = "{\"event\":\"done\",\"vm\":\"web1\",\"destination\":\"hostb\",\"downtime_ms\":175.4,"
                       "\"downtime_budget_ms\":100.0,\"downtime_parts_ms\":{\"disks\":3}}";
    const char *within = "{\"event\":\"done\",\"vm\":\"web1\",\"downtime_ms\":100.0,\"downtime_budget_ms\":"
                         "100.0}";
    assert_int_equal(run("web1 hostb", SAYS(JOB, over), false, false), CLI_DONE);
    expect_in(out, "  downtime     175.4 ms, over its budget of 100.0 ms (in ms: disks 3)\n");
    assert_int_equal(run("web1 hostb", SAYS(JOB, within), false, false), CLI_DONE);
    assert_null(strstr(out, "budget"));
}

static void a_storage_only_move_speaks_of_disks(void **state)
{
    (void)state;
    const char *job = "{\"event\":\"job\",\"job\":\"7\",\"mode\":\"storage-only\",\"datastore\":\"two\"}";
    const char *settle =
        "{\"event\":\"progress\",\"state\":\"settle\",\"bytes_done\":0,\"bytes_total\":9,\"disks\":"
        "[{\"name\":\"a\",\"mode\":\"off\"}]}";
    const char *done =
        "{\"event\":\"done\",\"vm\":\"web1\",\"source\":\"hosta\",\"destination\":\"hosta\",\"total_s\":1.0,"
        "\"downtime_ms\":0.0,\"disk_bytes\":1048576,\"wire_bytes\":0,\"digest\":\"0\",\"mode\":\"storage-"
        "only\"}";
    const char *enter = "{\"event\":\"state\",\"state\":\"settle\"}";
    assert_int_equal(run("--storage-only web1 two", SAYS(job, enter, settle, done), false, false), CLI_DONE);
    expect_out(
        "settle\nThe disks of web1 have moved to two.\n  total time   1.00 s\n  disks        1.00 MiB\n"
        "  mean rate    1.05 MB/s\n");
}

static void few_lines_where_nothing_can_be_redrawn(void **state)
{
    (void)state;
    static char line[101][120];
    static const char *lines[104] = {JOB};
    unsigned printed = 0;

    for (int i = 0; i <= 100; i++) {
        snprintf(line[i], sizeof line[i],
                 "{\"event\":\"progress\",\"state\":\"disks\",\"bytes_done\":%d,\"bytes_total\":100}", i);
        lines[i + 1] = line[i];
    }
    lines[102] = DONE;
    assert_int_equal(run("web1 hostb", lines, false, false), CLI_DONE);
    for (const char *s = out; (s = strstr(s, " % ")); s++)
        printed++;
    assert_int_equal(printed, 11); /* each tenth once */
}

/* Seen: «The disks of web1 have moved. total time 0 ns», and the mirror «gave up 4 times»: who, and what of?
 */
static void nothing_to_move_and_chunks_copied_again_are_said_so(void **state)
{
    (void)state;
    const char *done = "{\"event\":\"done\",\"nothing\":true,\"vm\":\"web1\",\"mode\":\"storage-only\","
                       "\"datastore\":\"two\","
                       "\"total_s\":0.0,\"downtime_ms\":0.0,\"disk_bytes\":0}";
    assert_int_equal(run("--storage-only web1 two", SAYS(done, "{\"ok\":true}"), false, false), CLI_DONE);
    assert_string_equal(out, "The disks of web1 lie in two already: nothing was moved.\n");
    done = "{\"event\":\"done\",\"vm\":\"web1\",\"total_s\":1.0,\"mirror\":{\"bytes\":4096,\"to_sync\":1,"
           "\"to_async\":1,\"given_up\":4}}";
    assert_int_equal(run("web1 hostb", SAYS(JOB, done), false, false), CLI_DONE);
    expect_in(out, "1 times to sync, 1 back; 4 chunks copied again\n");
}

static void a_terminal_gets_one_line_redrawn(void **state)
{
    (void)state;
    assert_int_equal(run("web1 hostb", SAYS(JOB, DISKS, DISKS, DONE), false, true), CLI_DONE);
    const char *line =
        "\rdisks     50 %  50.00 MiB of 100.00 MiB  100.00 MB/s\033[K"; /* cut at 59 columns, before the time left */
    assert_int_equal(strncmp(out, line, strlen(line)), 0);
    assert_int_equal(strncmp(out + strlen(line), line, strlen(line)), 0);
    expect_in(out, "\033[K\r\033[Kweb1 has moved to hostb.\n");
}

static void json_passes_each_event_and_nothing_else(void **state)
{
    (void)state;
    assert_int_equal(run("--json web1 hostb", SAYS(JOB, DISKS, DONE, "{\"ok\":true}"), false, true),
                     CLI_DONE);
    unsigned lines = 0;
    json_t *last = NULL;
    for (char *save, *l = strtok_r(out, "\n", &save); l; l = strtok_r(NULL, "\n", &save), lines++) {
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
    assert_int_equal(run("web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    assert_string_equal(err, "xmigrate: link lost (in the state memory)\nweb1 is safe where it was.\n");
    assert_int_equal(run("--json web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    expect_in(out, "{\"event\":\"failed\"");
}

static void a_vm_that_ended_meanwhile_is_stopped_and_starts_there(void **state)
{
    (void)state;
    const char *failed = "{\"event\":\"failed\",\"error\":\"it powered itself "
                         "down\",\"state\":\"disks\",\"vm\":\"web1\",\"vm_safe\":true,\"stopped\":true}";
    assert_int_equal(run("web1 hostb", SAYS(JOB, failed), false, false), CLI_FAILED);
    assert_string_equal(err, "xmigrate: it powered itself down (in the state disks)\n"
                             "web1 is stopped where it was; `xmigrate start web1` starts it there.\n");
}

static void a_failure_with_the_vm_unknown_is_4_and_says_recover(void **state)
{
    (void)state;
    const char *failed =
        "{\"event\":\"failed\",\"error\":\"no answer to the hand-off\",\"vm\":\"web1\",\"vm_safe\":false}";
    assert_int_equal(run("web1 hostb", SAYS(JOB, failed), false, false), CLI_UNKNOWN);
    expect_in(err, "xmigrate recover web1\n");
}

static void a_question_that_stays_open_is_not_answered_by_asking_it(void **state)
{
    (void)state;
    const char *no = "{\"ok\":false,\"error\":\"hostb cannot be asked\",\"exit\":4}";
    assert_int_equal(run("recover web1", SAYS(no), false, false), CLI_UNKNOWN);
    assert_string_equal(err, "xmigrate: hostb cannot be asked\n");
}

static void a_refusal_is_3_and_gives_every_reason(void **state)
{
    (void)state;
    const char *no =
        "{\"ok\":false,\"error\":\"refused\",\"exit\":3,\"reasons\":[\"no space\",\"no bridge br0\"]}";
    assert_int_equal(run("web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    assert_string_equal(err, "xmigrate: refused\n  - no space\n  - no bridge br0\n");
    assert_int_equal(run("--json web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    expect_in(out, "\"event\":\"failed\"");
    no = "{\"ok\":false,\"error\":\"VM web1: no space; no bridge\",\"exit\":3,\"reasons\":[\"no space\",\"no "
         "bridge\"]}";
    assert_int_equal(run("web1 hostb", SAYS(no), false, false), CLI_REFUSED);
    assert_string_equal(err, "xmigrate: refused, for these reasons:\n  - no space\n  - no bridge\n");
}

static void check_says_yes_or_why_not(void **state)
{
    (void)state;
    const char *reasons = "{\"ok\":true,\"reasons\":[\"no space\"]}";
    assert_int_equal(run("check web1 hostb", SAYS("{\"ok\":true,\"reasons\":[]}"), false, false), CLI_DONE);
    expect_out("web1 can be moved to hostb.\n");
    assert_int_equal(run("check web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    expect_out("web1 cannot be moved to hostb:\n  - no space\n");
    assert_int_equal(run("--dry-run web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    assert_true(xm_json_bool(request, "dry_run", false));
    assert_int_equal(run("--dry-run --json web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    expect_out("{\"ok\":true,\"reasons\":[\"no space\"]}\n");
}

static void detach_prints_the_job_and_leaves(void **state)
{
    (void)state;
    assert_int_equal(run("--detach web1 hostb", SAYS(JOB), false, false), CLI_DONE);
    expect_out("7\n");
    assert_int_equal(run("--detach web1 hostb", SAYS("{\"ok\":true,\"job\":\"8\"}"), false, false), CLI_DONE);
    expect_out("8\n");
    assert_int_equal(
        run("--detach web1 hostb", SAYS("{\"ok\":false,\"error\":\"no\",\"exit\":3}"), false, false),
        CLI_REFUSED);
}

static void an_interruption_says_that_the_migration_goes_on(void **state)
{
    (void)state;
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ours, NULL); /* so that the agent's thread does not take it */
    assert_int_equal(run("web1 hostb", SAYS(JOB, DISKS, INTERRUPT), false, false), CLI_UNKNOWN);
    expect_in(err, "xmigrate: interrupted\nThe migration goes on");
    expect_in(err, "xmigrate watch 7\n");
    expect_in(err, "xmigrate abort 7\n");
    assert_int_equal(run("--json watch 7", SAYS(JOB, INTERRUPT), false, false), CLI_UNKNOWN);
    expect_in(out, "{\"event\":\"lost\",\"error\":\"interrupted\",\"exit\":4,\"job\":\"7\"}\n");
    assert_int_equal(run("list", SAYS(INTERRUPT), false, false), CLI_UNKNOWN);
    pthread_sigmask(SIG_UNBLOCK, &ours, NULL); /* it was taken: nothing kills us here */
}

static void a_lost_agent_is_4_when_something_may_have_changed(void **state)
{
    (void)state;
    assert_int_equal(run("web1 hostb", SAYS(JOB), true, false), CLI_UNKNOWN);
    expect_in(err, "the agent closed the connection before it had answered\n");
    expect_in(err, "xmigrate watch 7\n");
    assert_int_equal(run("stop web1", SAYS("{\"half\":"), true, false), CLI_UNKNOWN);
    assert_int_equal(run("list", (const char *const[]){NULL}, true, false), CLI_FAILED);
    assert_int_equal(run("web1 hostb", SAYS(JOB, "{\"ok\":true}"), false, false), CLI_UNKNOWN);
    expect_in(err, "without saying how the migration ended");
    assert_int_equal(run("web1 hostb", SAYS(JOB, "this is no JSON"), false, false), CLI_UNKNOWN);
    expect_in(err, "makes no sense");
}

static void no_agent_is_1_because_nothing_was_changed(void **state)
{
    (void)state;
    assert_int_equal(run("web1 hostb", NULL, false, false), CLI_FAILED);
    expect_in(err, "xmigrate: is xmigrated running on this host?: cannot connect to ");
    assert_int_equal(run("--json web1 hostb", NULL, false, false), CLI_FAILED);
    expect_in(out, "{\"event\":\"failed\",\"error\":\"is xmigrated running");
    assert_int_equal(run("list --json", NULL, false, false), CLI_FAILED);
    expect_in(out, "{\"ok\":false,\"error\":\"is xmigrated running");
}

static void wrong_use_is_2_and_never_reaches_the_agent(void **state)
{
    (void)state;
    assert_int_equal(run("web1", NULL, false, false), CLI_USAGE);
    expect_in(err, "xmigrate: \"web1\" is no verb");
    assert_int_equal(run("--resume web1 hostb", NULL, false, false), CLI_USAGE);
}

static void lists_are_tables_and_missing_fields_are_dashes(void **state)
{
    (void)state;
    const char *vms =
        "{\"ok\":true,\"vms\":[{\"name\":\"web1\",\"state\":\"running\",\"host\":\"hosta\",\"memory\":"
        "536870912,"
        "\"vcpus\":2,\"disks\":[{\"name\":\"root\"},{\"name\":\"data\"}],\"epoch\":1,\"job\":null},"
        "{\"name\":\"x\",\"autostart\":true}]}";
    assert_int_equal(run("list", SAYS(vms), false, false), CLI_DONE);
    expect_out("VM    STATE    HOST   MEMORY      VCPUS  DISKS  AUTOSTART  JOB\n"
               "web1  running  hosta  512.00 MiB  2      2      -          -\n"
               "x     -        -      -           -      -      yes        -\n");
    assert_int_equal(run("list --json", SAYS("{\"ok\":true,\"vms\":[]}"), false, false), CLI_DONE);
    expect_out("{\"ok\":true,\"vms\":[]}\n");
    assert_int_equal(
        run("jobs",
            SAYS("{\"ok\":true,\"jobs\":[{\"job\":\"7\",\"vm\":\"web1\",\"destination\":\"hostb\","
                 "\"state\":\"disks\",\"percent\":42.9,\"started\":\"today\"},"
                 "{\"job\":\"8\",\"vm\":\"x\",\"state\":\"running\",\"step\":\"memory\","
                 "\"bytes_done\":1,\"bytes_total\":3}]}"),
            false, false),
        CLI_DONE);
    expect_out("JOB  VM    DESTINATION  STATE   DONE  STARTED  RESULT\n"
               "7    web1  hostb        disks   42 %  today    -\n"
               "8    x     -            memory  33 %  -        -\n");
}

static void show_prints_what_there_is(void **state)
{
    (void)state;
    assert_int_equal(
        run("show web1",
            SAYS(
                "{\"ok\":true,\"vm\":{\"name\":\"web1\",\"memory\":1073741824,\"job\":null,\"disks\":"
                "[{\"name\":\"root\",\"size\":1024}],\"nic\":{\"bridge\":\"br0\"},\"nics\":[],\"to\":\"\"}}"),
            false, false),
        CLI_DONE);
    expect_out("name          web1\nmemory        1.00 GiB\ndisks:\n  - root\n"
               "    size          1.00 KiB\nnic:\n  bridge        br0\n");
}

static void a_plan_is_printed_move_by_move(void **state)
{
    (void)state;
    assert_int_equal(
        run("rebalance --dry-run",
            SAYS("{\"ok\":true,\"plan\":[{\"vm\":\"web1\",\"disk\":\"root\",\"from\":\"ds1\",\"to\":\"ds2\","
                 "\"bytes\":1073741824,\"reason\":\"ds1 is 92 % full\"}]}"),
            false, false),
        CLI_DONE);
    expect_out("web1 root: ds1 -> ds2, 1.00 GiB: ds1 is 92 % full\n");
    assert_int_equal(run("rebalance", SAYS("{\"ok\":true,\"plan\":[]}"), false, false), CLI_DONE);
    expect_in(out, "nothing to move");
    assert_int_equal(
        run("rebalance --dry-run",
            SAYS("{\"ok\":true,\"plan\":[{\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":\"ds3\"}],"
                 "\"over\":[{\"datastore\":\"ds1\",\"bytes\":1}],\"reasons\":[\"ds1 stays above its "
                 "target\"]}"),
            false, false),
        CLI_FAILED);
    expect_out("web1: -> hostb:ds3\nds1 stays above its target\n");
    assert_int_equal(
        run("--json rebalance",
            SAYS("{\"ok\":true,\"plan\":[],\"over\":[{\"datastore\":\"ds1\",\"bytes\":1}],\"reasons\":[]}"),
            false, false),
        CLI_FAILED);
}

static void what_is_typed_to_interrupt_the_editor_is_not_for_us(void **state)
{
    (void)state;
    setenv("VISUAL", "kill -INT $PPID; kill -QUIT $PPID; test -w", 1);
    assert_int_equal(run("edit web1", SAYS("{\"ok\":true,\"ini\":\"[vm]\\n\"}"), true, false), CLI_DONE);
    expect_out("Nothing has been changed.\n");
    unsetenv("VISUAL");
}

static void text_from_outside_cannot_steer_the_terminal(void **state)
{
    (void)state;
    assert_int_equal(run("web1 hostb", SAYS("{\"ok\":false,\"error\":\"a\\u001b[2Jb\\nc\"}"), false, false),
                     CLI_FAILED);
    assert_string_equal(err, "xmigrate: a?[2Jb?c\n");
}

static int tear_down(void **state)
{
    forget();
    return tmpdir_remove(state);
}

#define WITH_DIR(f) cmocka_unit_test_setup_teardown(f, tmpdir_make, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DIR(a_move_ends_with_a_report),
        WITH_DIR(the_report_tells_what_the_shim_measured),
        WITH_DIR(a_downtime_over_its_budget_is_said_to_be),
        WITH_DIR(a_storage_only_move_speaks_of_disks),
        WITH_DIR(few_lines_where_nothing_can_be_redrawn),
        WITH_DIR(nothing_to_move_and_chunks_copied_again_are_said_so),
        WITH_DIR(a_terminal_gets_one_line_redrawn),
        WITH_DIR(json_passes_each_event_and_nothing_else),
        WITH_DIR(a_failure_with_the_vm_safe_is_1),
        WITH_DIR(a_vm_that_ended_meanwhile_is_stopped_and_starts_there),
        WITH_DIR(a_failure_with_the_vm_unknown_is_4_and_says_recover),
        WITH_DIR(a_question_that_stays_open_is_not_answered_by_asking_it),
        WITH_DIR(a_refusal_is_3_and_gives_every_reason),
        WITH_DIR(check_says_yes_or_why_not),
        WITH_DIR(detach_prints_the_job_and_leaves),
        WITH_DIR(an_interruption_says_that_the_migration_goes_on),
        WITH_DIR(a_lost_agent_is_4_when_something_may_have_changed),
        WITH_DIR(no_agent_is_1_because_nothing_was_changed),
        WITH_DIR(wrong_use_is_2_and_never_reaches_the_agent),
        WITH_DIR(lists_are_tables_and_missing_fields_are_dashes),
        WITH_DIR(show_prints_what_there_is),
        WITH_DIR(a_plan_is_printed_move_by_move),
        WITH_DIR(what_is_typed_to_interrupt_the_editor_is_not_for_us),
        WITH_DIR(text_from_outside_cannot_steer_the_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
