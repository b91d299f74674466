/* SPDX-License-Identifier: MIT */
/* xmigrated.conf: defaults, and the sentence for each thing that can be wrong. */
#include "agent/config.h"
#include "agent/facts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[64];

static void write_conf(const char *text)
{
    FILE *f = fopen(path, "we");
    fputs(text, f);
    fclose(f);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/xmt-conf-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static void an_empty_file_is_all_defaults(void **state)
{
    struct config c = {0};
    struct xm_error e = {0};
    (void)state;

    write_conf("");
    assert_int_equal(config_load(&c, path, &e), 0);
    assert_int_equal(c.port, 7070);
    assert_int_equal(c.storage_migrations, 2);
    assert_int_equal(c.min_bandwidth, 31250000);
    assert_string_equal(c.state_dir, "/var/lib/xmigrate");
    assert_string_equal(c.engine, "auto");
    assert_non_null(strstr(c.shim, "/xmigrate-shim"));
    config_free(&c);
}

static void everything_can_be_said(void **state)
{
    struct config c = {0};
    struct xm_error e = {0};
    (void)state;

    write_conf("\xef\xbb\xbf[host]\nname = hosta\nstate_dir = /s\nrun_dir = /r\nengine = "
               "libaio\n[listen]\naddress = "
               "10.0.0.1\nport = 7071\n"
               "[limits]\nstorage_migrations = 1\nmin_bandwidth = 1Gbit\ndowntime = 50ms\n"
               "[datastore ds1]\npath = /tmp\ntarget = 70%\n[datastore ds2]\npath = /\n"
               "[link a]\naddress = 10.1.0.1\n[link b]\naddress = fd00::1\n"
               "[peer hostb]\naddress = 10.0.0.2\n[peer hostc]\naddress = 10.0.0.3\nport = 7072\n");
    if (config_load(&c, path, &e))
        fail_msg("%s", e.text);
    assert_int_equal(c.datastore[0].target, 70);
    assert_int_equal(c.datastore[1].target, 80);
    assert_int_equal(c.min_bandwidth, 125000000);
    assert_int_equal(c.downtime, 50000000);
    assert_int_equal(config_peer(&c, "hostb")->port, 7070);
    assert_int_equal(config_peer(&c, "hostc")->port, 7072);
    assert_null(config_peer(&c, "hostd"));
    assert_string_equal(config_datastore_of(&c, "/tmp/x.raw")->name, "ds1");
    assert_null(config_datastore_of(&c, "/tmp/sub/x.raw"));
    assert_null(config_datastore_of(&c, "/tmp/"));
    assert_null(config_datastore_of(&c, "/tmpx/y/z"));
    config_free(&c);
}

static const struct {
    const char *conf, *sentence;
} wrong[] = {
    {"[host]\nname = a b\n",
     ":2: 'a b' is no legal name of a host: up to 63 letters, digits, '.', '_' and '-'"},
    {"[host]\nengine = posix\n", ":2: the engine has to be auto, io_uring or libaio, and is 'posix'"},
    {"[host]\nrun_dir = run\n", ":2: the path 'run' has to begin with /"},
    {"[host]\ncolour = red\n", ":2: [host] has no key \"colour\""},
    {"[listen]\nport = 70000\n", ":2: port: 70000 is not between 0 and 65535"},
    {"[listen]\naddress = localhost\n", ":2: 'localhost' is no IP address in numbers"},
    {"[limits]\nmin_bandwidth = fast\n", NULL},
    {"[datastore d]\npath = /dev/null\n", ":2: /dev/null is no directory"},
    {"[datastore d]\n", ":1: [datastore d] lacks the key \"path\""},
    {"[datastore d]\npath=/tmp\n[datastore d]\npath=/tmp\n",
     ":3: [datastore d]: there is another datastore of this name"},
    {"[link l]\naddress = 10.1.1\n", ":2: '10.1.1' is no IP address in numbers"},
    {"[host]\nname = h\n[peer h]\naddress = 1.2.3.4\n", ":3: this host itself has the name 'h'"},
    {"[host]\nshim = xmigrate-shim\n", ":2: the path 'xmigrate-shim' has to begin with /"},
    {"[limits]\nincoming_silence = 10ms\n", ":2: incoming_silence: 10ms is less than 1.00 s"},
    {"[limits]\ndowntime = 0ms\n", ":2: downtime: 0ms is not between 1.0 ms and 1 h 00 min"},
    {"[limits]\ndowntime = 2h\n", ":2: downtime: 2h is not between 1.0 ms and 1 h 00 min"},
    {"[incoming]\nbridge = br0, br1\n",
     ":2: 'br0, br1' is no legal name of a bridge; several go on a line each"},
    {"\n[tls]\nca = /etc/ca.pem\n", ":2: [tls]: this version cannot encrypt between hosts yet; remove the "
                                    "section and use links that nobody else can listen on"},
};

static void what_is_wrong_is_said_with_file_and_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct config c = {0};
        struct xm_error e = {0};
        char want[600];
        write_conf(wrong[i].conf);
        snprintf(want, sizeof want, "%s%s", path, wrong[i].sentence ? wrong[i].sentence : ":2:");
        assert_true(config_load(&c, path, &e) < 0);
        if (wrong[i].sentence)
            assert_string_equal(e.text, want);
        else
            assert_memory_equal(e.text, want, strlen(want));
        config_free(&c);
    }
}

/* What broke: «good», and the other host was refused the connection. */
static void a_peer_that_cannot_reach_us_is_warned_of(void **state)
{
    char said[600] = "";
    struct config c = {0};
    struct xm_error e = {0};
    int out = memfd_create("log", MFD_CLOEXEC), before = dup(2);
    (void)state;

    write_conf("[host]\nname = h\n[peer p]\naddress = fd00::2\n");
    fflush(stderr);
    dup2(out, 2);
    int r = config_load(&c, path, &e);
    fflush(stderr);
    dup2(before, 2);
    close(before);
    assert_int_equal(r, 0);
    assert_true(pread(out, said, sizeof said - 1, 0) > 0);
    close(out);
    assert_non_null(strstr(said, ":4: 'fd00::2' is of IPv6, and this agent listens to IPv4 alone (0.0.0.0)"));
    config_free(&c);
}

/* Where nobody has said who QEMU is to be, it is root's user when it can be nobody else. */
static void who_qemu_can_be_is_told(void **state)
{
    struct xm_error e = {0};
    (void)state;

    if (geteuid()) {
        print_message("skipped: only root can become another user\n");
        skip();
    }
    assert_int_equal(facts_qemu_user(NULL, "/bin/sh", false, &e), 0);
    assert_int_equal(facts_qemu_user("root", path, false, &e), 0);
    assert_int_equal(chmod(path, 0700), 0);
    assert_int_equal(facts_qemu_user(NULL, path, false, &e), 1);
    assert_non_null(strstr(e.text, "may not run /tmp/xmt-conf-"));
    assert_int_equal(facts_qemu_user("70000-70001", path, false, &e), -EACCES);
    assert_non_null(strstr(e.text, "user 70000 may not run"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_empty_file_is_all_defaults, set_up, tear_down),
        cmocka_unit_test_setup_teardown(everything_can_be_said, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_said_with_file_and_line, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_peer_that_cannot_reach_us_is_warned_of, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_qemu_can_be_is_told, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("host: the agent's configuration", tests, NULL, NULL);
}
