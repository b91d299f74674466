/* SPDX-License-Identifier: MIT */
/* What the program prints of answers and of a migration, against an agent that says what the test tells it
 * to. */
#include "tests/unit/lib_cli.h"

#include <string.h>

static void a_move_ends_with_a_report(void **state)
{
    (void)state;
    assert_int_equal(run_cli("--with-storage web1 hostb", SAYS(JOB, DISKS, DONE), false, false), CLI_DONE);
    assert_string_equal(xm_json_str(cli_asked, "verb", ""), "move");
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
    assert_string_equal(cli_err, "");
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
    assert_int_equal(run_cli("--with-storage web1 hostb", SAYS(JOB, memory, done), false, false), CLI_DONE);
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
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, over), false, false), CLI_DONE);
    expect_in(cli_out, "  downtime     175.4 ms, over its budget of 100.0 ms (in ms: disks 3)\n");
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, within), false, false), CLI_DONE);
    assert_null(strstr(cli_out, "budget"));
}

static void a_switch_that_was_given_up_is_told(void **state)
{
    (void)state;
    const char *done = "{\"event\":\"done\",\"vm\":\"web1\",\"destination\":\"hostb\",\"downtime_ms\":20.0,"
                       "\"given_up_switches\":1,\"given_up_ms\":212.5,\"given_up\":\"hostb was late\"}";
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, done), false, false), CLI_DONE);
    expect_in(cli_out, "  downtime     20.0 ms\n  stood still  once before, for 212.5 ms; it went on then: "
                       "hostb was late\n");
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
    assert_int_equal(run_cli("--storage-only web1 two", SAYS(job, enter, settle, done), false, false),
                     CLI_DONE);
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
    assert_int_equal(run_cli("web1 hostb", lines, false, false), CLI_DONE);
    for (const char *s = cli_out; (s = strstr(s, " % ")); s++)
        printed++;
    assert_int_equal(printed, 11); /* each tenth once */
}

/* What broke: 98 % for as long as it took. */
static void a_comparison_says_how_far_it_is(void **state)
{
    (void)state;
    const char *copied =
        "{\"event\":\"progress\",\"state\":\"disks\",\"bytes_done\":100,\"bytes_total\":100}";
    const char *reads =
        "{\"event\":\"progress\",\"state\":\"disks\",\"bytes_done\":98,\"bytes_total\":100,\"rate\":1e6,"
        "\"eta_s\":3,\"verified_bytes\":1048576,\"verify_total\":4194304}";
    const char *done =
        "{\"event\":\"done\",\"vm\":\"web1\",\"destination\":\"hostb\",\"verified_bytes\":4194304,"
        "\"datastore\":\"fast\"}";

    assert_int_equal(
        run_cli("--verify --with-storage web1 hostb", SAYS(JOB, copied, reads, done), false, false),
        CLI_DONE);
    expect_in(cli_out, "disks    100 %  100 B of 100 B\n"
                       "disks    verifying  25 %  1.00 MiB of 4.00 MiB  1.00 MB/s  3.00 s left\n");
    expect_in(cli_out, "  datastore    fast\n");
    expect_in(cli_out, "  verified     4.00 MiB read again on both sides, and alike\n");
}

/* Seen: «The disks of web1 have moved. total time 0 ns», and the mirror «gave up 4 times»: who, and what of?
 */
static void nothing_to_move_and_chunks_copied_again_are_said_so(void **state)
{
    (void)state;
    const char *done = "{\"event\":\"done\",\"nothing\":true,\"vm\":\"web1\",\"mode\":\"storage-only\","
                       "\"datastore\":\"two\","
                       "\"total_s\":0.0,\"downtime_ms\":0.0,\"disk_bytes\":0}";
    assert_int_equal(run_cli("--storage-only web1 two", SAYS(done, "{\"ok\":true}"), false, false), CLI_DONE);
    assert_string_equal(cli_out, "The disks of web1 lie in two already: nothing was moved.\n");
    done = "{\"event\":\"done\",\"vm\":\"web1\",\"total_s\":1.0,\"mirror\":{\"bytes\":4096,\"to_sync\":1,"
           "\"to_async\":1,\"given_up\":4}}";
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, done), false, false), CLI_DONE);
    expect_in(cli_out, "1 times to sync, 1 back; 4 chunks copied again\n");
}

static void a_terminal_gets_one_line_redrawn(void **state)
{
    (void)state;
    assert_int_equal(run_cli("web1 hostb", SAYS(JOB, DISKS, DISKS, DONE), false, true), CLI_DONE);
    /* Cut at 59 columns, before the time left. */
    const char *line = "\rdisks     50 %  50.00 MiB of 100.00 MiB  100.00 MB/s\033[K";
    assert_int_equal(strncmp(cli_out, line, strlen(line)), 0);
    assert_int_equal(strncmp(cli_out + strlen(line), line, strlen(line)), 0);
    expect_in(cli_out, "\033[K\r\033[Kweb1 has moved to hostb.\n");
}

static void check_says_yes_or_why_not(void **state)
{
    (void)state;
    const char *reasons = "{\"ok\":true,\"reasons\":[\"no space\"]}";
    assert_int_equal(run_cli("check web1 hostb", SAYS("{\"ok\":true,\"reasons\":[]}"), false, false),
                     CLI_DONE);
    expect_out("web1 can be moved to hostb.\n");
    assert_int_equal(run_cli("check web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    expect_out("web1 cannot be moved to hostb:\n  - no space\n");
    assert_int_equal(run_cli("--dry-run web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    assert_true(xm_json_bool(cli_asked, "dry_run", false));
    assert_int_equal(run_cli("--dry-run --json web1 hostb", SAYS(reasons), false, false), CLI_REFUSED);
    expect_out("{\"ok\":true,\"reasons\":[\"no space\"]}\n");
}

static void lists_are_tables_and_missing_fields_are_dashes(void **state)
{
    (void)state;
    const char *vms =
        "{\"ok\":true,\"vms\":[{\"name\":\"web1\",\"state\":\"running\",\"host\":\"hosta\",\"memory\":"
        "536870912,"
        "\"vcpus\":2,\"disks\":[{\"name\":\"root\"},{\"name\":\"data\"}],\"epoch\":1,\"job\":null},"
        "{\"name\":\"x\",\"autostart\":true},{\"name\":\"db\",\"state\":\"running\",\"waiting\":3}]}";
    assert_int_equal(run_cli("list", SAYS(vms), false, false), CLI_DONE);
    expect_out("VM    STATE             HOST   MEMORY      VCPUS  DISKS  AUTOSTART  JOB\n"
               "web1  running           hosta  512.00 MiB  2      2      -          -\n"
               "x     -                 -      -           -      -      yes        -\n"
               "db    running, no room  -      -           -      -      -          -\n");
    assert_int_equal(run_cli("list --json", SAYS("{\"ok\":true,\"vms\":[]}"), false, false), CLI_DONE);
    expect_out("{\"ok\":true,\"vms\":[]}\n");
    assert_int_equal(
        run_cli("jobs",
                SAYS("{\"ok\":true,\"jobs\":[{\"job\":\"7\",\"vm\":\"web1\",\"destination\":\"hostb\","
                     "\"state\":\"disks\",\"bytes_done\":42,\"bytes_total\":99,\"started\":\"today\"},"
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
        run_cli(
            "show web1",
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
        run_cli(
            "rebalance --dry-run",
            SAYS("{\"ok\":true,\"plan\":[{\"vm\":\"web1\",\"disk\":\"root\",\"from\":\"ds1\",\"to\":\"ds2\","
                 "\"bytes\":1073741824,\"reason\":\"ds1 is 92 % full\"}]}"),
            false, false),
        CLI_DONE);
    expect_out("web1 root: ds1 -> ds2, 1.00 GiB: ds1 is 92 % full\n");
    assert_int_equal(run_cli("rebalance", SAYS("{\"ok\":true,\"plan\":[]}"), false, true), CLI_DONE);
    expect_in(cli_out, "nothing to move");
    /* What broke: a mail of it from each host, each night. */
    assert_int_equal(run_cli("rebalance", SAYS("{\"ok\":true,\"plan\":[]}"), false, false), CLI_DONE);
    expect_out("");
    assert_int_equal(run_cli("rebalance --dry-run", SAYS("{\"ok\":true,\"plan\":[]}"), false, false),
                     CLI_DONE);
    expect_in(cli_out, "nothing to move");
    assert_int_equal(
        run_cli("rebalance --dry-run",
                SAYS("{\"ok\":true,\"plan\":[{\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":\"ds3\"}],"
                     "\"over\":[{\"datastore\":\"ds1\",\"bytes\":1}],\"reasons\":[\"ds1 stays above its "
                     "target\"]}"),
                false, false),
        CLI_FAILED);
    expect_out("web1: -> hostb:ds3\nds1 stays above its target\n");
    assert_int_equal(
        run_cli(
            "--json rebalance",
            SAYS("{\"ok\":true,\"plan\":[],\"over\":[{\"datastore\":\"ds1\",\"bytes\":1}],\"reasons\":[]}"),
            false, false),
        CLI_FAILED);
}

static void text_from_outside_cannot_steer_the_terminal(void **state)
{
    (void)state;
    assert_int_equal(
        run_cli("web1 hostb", SAYS("{\"ok\":false,\"error\":\"a\\u001b[2Jb\\nc\"}"), false, false),
        CLI_FAILED);
    assert_string_equal(cli_err, "xmigrate: a?[2Jb?c\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_AGENT(a_move_ends_with_a_report),
        WITH_AGENT(the_report_tells_what_the_shim_measured),
        WITH_AGENT(a_downtime_over_its_budget_is_said_to_be),
        WITH_AGENT(a_switch_that_was_given_up_is_told),
        WITH_AGENT(a_storage_only_move_speaks_of_disks),
        WITH_AGENT(few_lines_where_nothing_can_be_redrawn),
        WITH_AGENT(a_comparison_says_how_far_it_is),
        WITH_AGENT(nothing_to_move_and_chunks_copied_again_are_said_so),
        WITH_AGENT(a_terminal_gets_one_line_redrawn),
        WITH_AGENT(check_says_yes_or_why_not),
        WITH_AGENT(lists_are_tables_and_missing_fields_are_dashes),
        WITH_AGENT(show_prints_what_there_is),
        WITH_AGENT(a_plan_is_printed_move_by_move),
        WITH_AGENT(text_from_outside_cannot_steer_the_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
