/* SPDX-License-Identifier: MIT */
/* The command line: what means what, what is refused and how, and that the tables agree with themselves. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "cli/verbs.h"

#define MAX_WORDS 16

/* Splits at blanks into argv behind "xmigrate". */
static int split(const char *line, char *buf, size_t cap, char **argv)
{
    int n = 0;
    assert_true(strlen(line) < cap);
    strcpy(buf, line);
    argv[n++] = "xmigrate";
    for (char *save, *w = strtok_r(buf, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        assert_true(n < MAX_WORDS);
        argv[n++] = strcmp(w, "''") ? w : "";
    }
    argv[n] = NULL;
    return n;
}

/* The request that a command line makes is exactly this JSON. */
static void expect(const char *line, const char *json)
{
    char buf[400], *argv[MAX_WORDS + 1];
    struct args a;
    struct xm_error e = {0};
    json_t *want = json_loads(json, 0, NULL), *got = NULL;

    assert_non_null(want);
    if (args_parse(&a, split(line, buf, sizeof buf, argv), argv, &e) < 0 || !(got = verb_request(&a, &e)))
        fail_msg("%s: %s", line, e.text);
    if (!json_equal(got, want)) {
        char *text = json_dumps(got, JSON_SORT_KEYS);
        fail_msg("%s made %s", line, text);
    }
    json_decref(want);
    json_decref(got);
}

/* The command line is refused, in this sentence. */
static void refuse(const char *line, const char *sentence)
{
    char buf[400], *argv[MAX_WORDS + 1];
    struct args a;
    struct xm_error e = {0};
    json_t *got = NULL;

    if (args_parse(&a, split(line, buf, sizeof buf, argv), argv, &e) == 0 && (got = verb_request(&a, &e)))
        fail_msg("accepted: %s", line);
    if (strcmp(e.text, sentence))
        fail_msg("%s was refused with\n  %s\nnot with\n  %s", line, e.text, sentence);
}

#define OPTIONS_DEFAULT                                                                                      \
    "\"options\":{\"verify\":false,\"compress\":\"no\","                                                     \
    "\"resume\":false,\"keep_source\":false,\"allow_older\":false,\"postcopy\":\"no\"}"
#define NOW "\"dry_run\":false,\"detach\":false}"

static void a_vm_and_a_host_mean_move(void **state)
{
    (void)state;
    const char *plain =
        "{\"verb\":\"move\",\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":null,\"storage\":false,"
        "\"storage_only\":false," OPTIONS_DEFAULT "," NOW;
    expect("web1 hostb", plain);
    expect("move web1 hostb", plain);
    expect("web1 --compress no hostb", plain);
}

static void storage_is_asked_for(void **state)
{
    (void)state;
    expect("--with-storage web1 hostb:fast",
           "{\"verb\":\"move\",\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":\"fast\",\"storage\":true,"
           "\"storage_only\":false," OPTIONS_DEFAULT "," NOW);
    expect("--storage-only web1 slow",
           "{\"verb\":\"move\",\"vm\":\"web1\",\"host\":null,\"datastore\":\"slow\",\"storage\":false,"
           "\"storage_only\":true," OPTIONS_DEFAULT "," NOW);
    refuse("--with-storage --storage-only web1 x",
           "--with-storage moves the VM to another host, --storage-only leaves it here: choose one");
    refuse("web1 hostb:fast",
           "a datastore (hostb:fast) is given, but the disks are not moved: add --with-storage");
    refuse("--storage-only web1 hostb:fast",
           "--storage-only stays on this host: write the datastore alone, not hostb:fast");
    refuse("--with-storage web1 hostb:", "\"hostb:\" is no HOST or HOST:DATASTORE");
    refuse("--with-storage web1 :fast", "\":fast\" is no HOST or HOST:DATASTORE");
    /* What broke: they were taken, and did nothing. */
    refuse("--storage-only --downtime 5 web1 slow",
           "--storage-only stops no VM and leaves it in its QEMU: --downtime says nothing of it");
    refuse("check --storage-only --allow-older web1 slow",
           "--storage-only stops no VM and leaves it in its QEMU: --allow-older says nothing of it");
    refuse("--verify web1 hostb",
           "--verify is about disks that are moved, and none are: add --with-storage, or leave it out");
    refuse("--keep-source web1 hostb",
           "--keep-source is about disks that are moved, and none are: add --with-storage, or leave it out");
}

static void every_option_reaches_the_agent(void **state)
{
    (void)state;
    expect(
        "--with-storage --downtime 2s --bandwidth 1Gbit --verify --keep-source --allow-older --postcopy=no "
        "--compress=no --outrun=go-on "
        "--detach --json web1 hostb",
        "{\"verb\":\"move\",\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":null,\"storage\":true,"
        "\"storage_only\":false,\"options\":{\"downtime_ms\":2000,\"bandwidth\":125000000,\"verify\":true,"
        "\"compress\":\"no\",\"resume\":false,\"keep_source\":true,\"allow_older\":true,\"postcopy\":\"no\","
        "\"outrun\":\"go-on\"},"
        "\"dry_run\":false,\"detach\":true}");
}

static void downtime_is_in_milliseconds_or_has_a_unit(void **state)
{
    (void)state;
    static const char *const same[] = {"--downtime 250", "--downtime=250", "--downtime 250ms",
                                       "--downtime 0.25s"};
    for (int i = 0; i < 4; i++) {
        char line[100];
        snprintf(line, sizeof line, "%s web1 hostb", same[i]);
        expect(line,
               "{\"verb\":\"move\",\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":null,\"storage\":false,"
               "\"storage_only\":false,\"options\":{\"downtime_ms\":250,\"verify\":false,\"compress\":\"no\","
               "\"resume\":false,\"keep_source\":false,\"allow_older\":false,\"postcopy\":\"no\"}," NOW);
    }
}

static void the_other_verbs_make_their_requests(void **state)
{
    (void)state;
    expect("start /dev/../dev/null", "{\"verb\":\"start\",\"spec\":\"/dev/null\"}");
    expect("stop web1", "{\"verb\":\"stop\",\"vm\":\"web1\",\"force\":false}");
    expect("stop --force web1", "{\"verb\":\"stop\",\"vm\":\"web1\",\"force\":true}");
    expect("list", "{\"verb\":\"list\"}");
    expect("--json list", "{\"verb\":\"list\"}"); /* no VM is called list */
    expect("show web1", "{\"verb\":\"show\",\"vm\":\"web1\"}");
    expect("jobs", "{\"verb\":\"jobs\"}");
    expect("watch 7", "{\"verb\":\"watch\",\"job\":\"7\"}");
    expect("abort 7", "{\"verb\":\"abort\",\"job\":\"7\"}");
    expect("start web1", "{\"verb\":\"start\",\"vm\":\"web1\"}");
    int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(chdir("/dev"), 0);
    expect("start null", "{\"verb\":\"start\",\"spec\":\"/dev/null\"}"); /* a file that is there is one */
    expect("start shm", "{\"verb\":\"start\",\"vm\":\"shm\"}");          /* a directory is none */
    assert_int_equal(fchdir(here), 0);
    close(here);
    expect("define /dev/null", "{\"verb\":\"define\",\"spec\":\"/dev/null\"}");
    expect("undefine web1 --force", "{\"verb\":\"undefine\",\"vm\":\"web1\",\"force\":true}");
    expect("set web1 --autostart yes", "{\"verb\":\"set\",\"vm\":\"web1\",\"autostart\":true}");
    expect("set web1 --autostart=no", "{\"verb\":\"set\",\"vm\":\"web1\",\"autostart\":false}");
    expect("set 7 --bandwidth 100M", "{\"verb\":\"set\",\"job\":\"7\",\"bandwidth\":104857600}");
    expect("set 7 --outrun=go-on", "{\"verb\":\"set\",\"job\":\"7\",\"outrun\":\"go-on\"}");
    expect("recover web1", "{\"verb\":\"recover\",\"vm\":\"web1\",\"peer_is_dead\":false}");
    expect("recover --peer-is-dead web1", "{\"verb\":\"recover\",\"vm\":\"web1\",\"peer_is_dead\":true}");
    expect("rebalance --dry-run", "{\"verb\":\"rebalance\",\"dry_run\":true}");
    expect("check web1 hostb", "{\"verb\":\"check\",\"vm\":\"web1\",\"host\":\"hostb\",\"datastore\":null,"
                               "\"storage\":false,\"storage_only\":false," OPTIONS_DEFAULT "," NOW);
}

static void what_is_not_there_yet_is_refused_not_ignored(void **state)
{
    (void)state;
    refuse("--postcopy=auto web1 hostb", "--postcopy=auto is planned, but this version cannot do it yet");
    refuse("--postcopy now web1 hostb", "--postcopy=now is planned, but this version cannot do it yet");
    refuse("--compress=lz4 web1 hostb", "--compress=lz4 is planned, but this version cannot do it yet");
    refuse("--resume web1 hostb", "--resume is planned, but this version cannot do it yet");
}

static void mistakes_are_named(void **state)
{
    (void)state;
    refuse("", "a VM and a host, or a verb, are missing");
    refuse("web1", "\"web1\" is no verb, and as a VM to move it needs a host behind it");
    refuse("web1 hostb extra", "too many words: write xmigrate move VM HOST[:DATASTORE] | "
                               "--storage-only VM DATASTORE");
    refuse("show", "too few words: write xmigrate show VM");
    refuse("list web1", "too many words: write xmigrate list");
    refuse("web1 ''", "an empty word: write xmigrate move VM HOST[:DATASTORE] | --storage-only VM DATASTORE");
    refuse("--quick web1 hostb", "there is no option --quick");
    refuse("--keep web1 hostb", "there is no option --keep: is --keep-source meant?");
    refuse("web1 hostb --down 5", "there is no option --down: is --downtime meant?");
    refuse("web1 hostb --down=5", "there is no option --down: is --downtime meant?");
    refuse("--downtime --jso web1 hostb",
           "--downtime: \"--jso\" is no time: write milliseconds, or a number with "
           "its unit, as in 2s");
    refuse("-q web1 hostb", "there is no option -q: options begin with --");
    refuse("-json list", "there is no option -j: options begin with --"); /* no word of getopt's own */
    refuse("list -json", "there is no option -j: options begin with --");
    refuse("web1 hostb --downtime", "--downtime needs a value behind it");
    refuse("--json=yes web1 hostb", "--json takes no value");
    refuse("--downtime 5 --downtime 6 web1 hostb", "--downtime is given twice");
    refuse("--with-storage --with-storage web1 hostb", "--with-storage is given twice");
    /* getopt would take these. */
    refuse("list --all", "there is no option --all: is --allow-older meant?");
    refuse("--all --with-storage web1 hostb", "there is no option --all: is --allow-older meant?");
    refuse("recover web1 --peer", "there is no option --peer: is --peer-is-dead meant?");
    refuse("--down=5 --with-storage web1 hostb", "there is no option --down: is --downtime meant?");
    refuse("--with-storage web1 hostb --down 5", "there is no option --down: is --downtime meant?");
    refuse("--downtime soon web1 hostb",
           "--downtime: \"soon\" is no time: write milliseconds, or a number with its unit, as in 2s");
    refuse("--downtime 0 web1 hostb", "--downtime: 0 is not between 1 ms and 1 h in whole milliseconds");
    refuse("--downtime 100us web1 hostb",
           "--downtime: 100us is not between 1 ms and 1 h in whole milliseconds");
    refuse("--downtime 2h web1 hostb", "--downtime: 2h is not between 1 ms and 1 h in whole milliseconds");
    refuse("--bandwidth fast web1 hostb",
           "--bandwidth: \"fast\" is no rate: write bytes a second, as in 100M or "
           "1.2GB/s, or bits, as in 10Gbit");
    refuse("--postcopy maybe web1 hostb", "--postcopy: \"maybe\" is none of no, auto or now");
    refuse("--postcopy o web1 hostb", "--postcopy: \"o\" is none of no, auto or now");
    refuse("--force web1 hostb", "move does not take --force");
    refuse("list --dry-run", "list does not take --dry-run");
    refuse("set 7",
           "set needs --bandwidth RATE or --outrun end|go-on for a job, or --autostart yes|no for a VM");
    refuse("set 7 --bandwidth 1M --autostart yes",
           "set needs --bandwidth RATE or --outrun end|go-on for a job, or --autostart yes|no for a VM");
    refuse("set 7 --outrun never", "--outrun: \"never\" is none of end or go-on");
    refuse("set web1 --autostart maybe", "--autostart: \"maybe\" is none of yes or no");
    refuse("--detach --dry-run web1 hostb", "--dry-run starts nothing that --detach could leave running");
    refuse("start /no/such.ini", "cannot read the specification /no/such.ini: No such file or directory");
    refuse("show \xff", "the command line holds text that is not UTF-8");
}

static void the_tables_are_complete(void **state)
{
    (void)state;
    unsigned used = OPT_COMMON;

    for (int i = 0; i < OPTIONS; i++) {
        assert_int_equal(option_table[i].id, i);
        assert_true(option_table[i].name && option_table[i].help);
        assert_true(!option_table[i].choices || option_table[i].initial); /* a choice has a default */
        assert_true(strlen(option_table[i].name) +
                        (option_table[i].arg ? strlen(option_table[i].arg) + 3 : 2) <
                    sizeof(struct xm_text));
        for (int k = 0; k < i; k++)
            assert_string_not_equal(option_table[i].name, option_table[k].name);
    }
    for (const struct verb *v = verb_table; v->name; v++) {
        assert_true(v->help && v->words && (v->print || v->run));
        assert_true(v->max <= 3 && v->min <= v->max);
        assert_int_equal(v->needs & ~v->options, 0);
        assert_ptr_equal(verb_find(v->name), v);
        used |= v->options;
    }
    assert_int_equal(used, OPT_BIT(OPTIONS) - 1); /* no option that nothing takes */
}

static void the_help_names_every_verb_and_option(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    print_help(f, NULL);
    fclose(f);
    for (int i = 0; i < OPTIONS; i++)
        assert_true(option_table[i].hidden || strstr(text, option_usage(&option_table[i]).s));
    for (const struct verb *v = verb_table; v->name; v++)
        assert_non_null(strstr(text, v->words));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strlen(line) > 80 && strncmp(line, "  xmigrate ", 11) != 0) /* what is to be typed stays whole */
            fail_msg("wider than a terminal: %s", line);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_vm_and_a_host_mean_move),
        cmocka_unit_test(storage_is_asked_for),
        cmocka_unit_test(every_option_reaches_the_agent),
        cmocka_unit_test(downtime_is_in_milliseconds_or_has_a_unit),
        cmocka_unit_test(the_other_verbs_make_their_requests),
        cmocka_unit_test(what_is_not_there_yet_is_refused_not_ignored),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(the_tables_are_complete),
        cmocka_unit_test(the_help_names_every_verb_and_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
