/* SPDX-License-Identifier: MIT */
/* The agent's protocols, on a real agent in a process of its own: hostile lines on both sockets, what a peer
 * may and may not ask for, and that nothing is lost when it is killed. Its shims are make-believe
 * (lib_agent.c). */
#include "tests/unit/lib_agent.h"
#include "agent/admission.h"
#include "agent/facts.h"
#include "probe/probe.h"
#include "vm/owner.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "net/net.h"
#include "tests/progress.h"

static struct test_agent agent;
static struct test_agent *const t = &agent;

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

static void need_qemu(void)
{
    if (!qemu_facts("qemu-system-x86_64", NULL)) {
        print_message("skipped: qemu-system-x86_64 is not installed\n");
        skip();
    }
}

/* Takes the answer: ok, or (want_exit) refused with that status. */
static void must(json_t *answer, int want_exit)
{
    bool ok = xm_json_bool(answer, "ok", false);

    if (!answer)
        fail_msg("no answer");
    if (want_exit ? ok || xm_json_int(answer, "exit", 0) != want_exit : !ok)
        fail_msg("%s", json_dumps(answer, 0));
    json_decref(answer);
}

static json_t *verb(const char *name)
{
    return json_pack("{s:s}", "verb", name);
}

static void must_live(void)
{
    must(ask(t, verb("list")), 0);
}

/* ---- hostile lines ---- */

static json_t *answer_to(int fd, const char *text, size_t len)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, fd);
    for (size_t at = 0; at < len;) {
        ssize_t n = send(fd, text + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            break; /* it may have closed before the end */
        at += (size_t)n;
    }
    json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    xm_jsonl_close(&js);
    return o;
}

static int unix_socket(void)
{
    return xm_unix_connect(in_dir(t, "run/agent.sock"), NULL);
}

static void what_is_no_message_is_refused(void **state)
{
    static const char *const lines[] = {"garbage\n",    "[1,2]\n",
                                        "{\"verb\":\n", "{\"verb\":\"list\",\"verb\":\"stop\"}\n",
                                        "\n",           "\x01\x02\xff\n"};
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        must(answer_to(unix_socket(), lines[i], strlen(lines[i])), 2);
    must_live();
}

static void an_endless_line_is_not_kept(void **state)
{
    size_t len = 2 << 20;
    char *text = malloc(len);
    (void)state;

    memset(text, 'x', len);
    json_t *o = answer_to(unix_socket(), text, len);
    assert_false(xm_json_bool(o, "ok", false)); /* an answer, or none when it was faster to hang up */
    json_decref(o);
    free(text);
    must_live();
}

static void half_a_line_and_silence_holds_nobody_up(void **state)
{
    int fds[20];
    (void)state;

    for (int i = 0; i < 20; i++) {
        fds[i] = unix_socket();
        assert_int_equal(send(fds[i], "{\"verb\"", 7, MSG_NOSIGNAL), 7);
    }
    must_live();
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    must_live();
}

static void fields_of_wrong_types_are_refused(void **state)
{
    static const char *const lines[] = {
        "{'verb':7}",
        "{}",
        "{'verb':'fly'}",
        "{'verb':'peer.prepare'}",
        "{'verb':'start'}",
        "{'verb':'start','spec':[1]}",
        "{'verb':'start','spec':'relative.ini'}",
        "{'verb':'start','spec':'/nowhere.ini'}",
        "{'verb':'stop','vm':{}}",
        "{'verb':'show','vm':['a']}",
        "{'verb':'show','vm':'../../etc'}",
        "{'verb':'move','vm':1,'host':2}",
        "{'verb':'move','vm':'a','host':'nobody','options':7}",
        "{'verb':'move','vm':'a','host':'hostb','options':[]}",
        "{'verb':'check','vm':'a','storage_only':true,'datastore':'../x'}",
        "{'verb':'watch','job':{}}",
        "{'verb':'watch','job':'../../x'}",
        "{'verb':'abort','job':-1}",
        "{'verb':'set','job':'1','bandwidth':'fast'}",
        "{'verb':'recover','vm':null}",
        "{'verb':'recover','vm':'..'}",
    };
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char text[200];
        snprintf(text, sizeof text, "%s\n", lines[i]);
        for (char *c = text; *c; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *o = answer_to(unix_socket(), text, strlen(text));
        if (!o || xm_json_bool(o, "ok", true) || !xm_json_str(o, "error", "")[0] ||
            xm_json_int(o, "exit", 0) < 1)
            fail_msg("%s", text);
        json_decref(o);
    }
    must_live();
}

/* ---- TCP ---- */

static bool closed_without_a_word(int fd, const char *text, size_t len)
{
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    send(fd, text, len, MSG_NOSIGNAL);
    bool closed = poll(&p, 1, LIMIT_HANG_MS) == 1 && recv(fd, &c, 1, 0) <= 0;
    close(fd);
    return closed;
}

static void strangers_are_closed(void **state)
{
    static const char hello[] = "XMIG/1 control\n";
    (void)state;

    assert_true(closed_without_a_word(connect_from("127.0.0.3", t->port), hello, sizeof hello - 1));
    must_live();
}

static void a_first_line_of_another_kind_is_closed(void **state)
{
    static const char *const lines[] = {
        "GET / HTTP/1.1\r\n",
        "XMIG/2 control\n",
        "XMIG/1 control \n",
        "XMIG/1 link\n",
        "XMIG/1 link abc\n",
        "XMIG/1 link 00112233 ../../x y\n",
        "\n",
        "XMIG/1 link 0000000000000000000000000000000000000000000000000000000000000000 l1\n",
    };
    char endless[400];
    (void)state;

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!closed_without_a_word(connect_from("127.0.0.2", t->port), lines[i], strlen(lines[i])))
            fail_msg("%s", lines[i]);
    }
    memset(endless, 'x', sizeof endless);
    assert_true(closed_without_a_word(connect_from("127.0.0.2", t->port), endless, sizeof endless));
    must_live();
}

static void a_peer_has_a_peers_verbs_and_its_own_name(void **state)
{
    static const char text[] = "XMIG/1 control\n{nonsense\n";
    (void)state;

    must(ask_as_peer(t, verb("list")), 2);
    must(ask_as_peer(t, verb("stop")), 2);
    must(ask_as_peer(t, json_pack("{s:s, s:s}", "verb", "peer.hello", "from", "hosta")), 3);
    must(ask_as_peer(t, json_pack("{s:s, s:i}", "verb", "peer.hello", "from", 1)), 3);
    must(ask_as_peer(t, verb("peer.hello")), 0);
    must(answer_to(connect_from("127.0.0.2", t->port), text, sizeof text - 1), 2);
    must_live();
}

static bool is_closed(int fd)
{
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, LIMIT_HANG_MS) == 1 && recv(fd, &c, 1, MSG_DONTWAIT) <= 0;
}

/* 64 of them kept everybody out, before they had said a word. Some have introduced themselves, some are
 * half a message further. */
static void idle_connections_keep_nobody_out(void **state)
{
    static const char *const said[] = {"", "XMIG/1 con", "XMIG/1 control\n", "XMIG/1 control\n{\"verb\""};
    int fds[200];
    (void)state;

    for (int i = 0; i < 200; i++) {
        fds[i] = connect_from("127.0.0.2", t->port);
        assert_true(fds[i] >= 0);
        send(fds[i], said[i % 4], strlen(said[i % 4]), MSG_NOSIGNAL);
    }
    must(ask_as_peer(t, verb("peer.hello")), 0);
    for (int i = 0; i < 180; i++) /* the oldest made room */
        assert_true(is_closed(fds[i]));
    struct pollfd newest = {.fd = fds[199], .events = POLLIN};
    assert_int_equal(poll(&newest, 1, 0), 0);
    for (int i = 0; i < 200; i++)
        close(fds[i]);
    must_live();
}

/* Each wrote a line into our log, which is on a disk that is somebody else's too. */
static void strangers_do_not_fill_the_log(void **state)
{
    char *log = NULL;
    size_t len;
    unsigned lines = 0;
    (void)state;

    for (int i = 0; i < 100; i++) {
        assert_true(closed_without_a_word(connect_from("127.0.0.3", t->port), "", 0));
        assert_true(closed_without_a_word(connect_from("127.0.0.2", t->port), "GET /\n", 6));
    }
    must_live();
    assert_int_equal(xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL), 0);
    for (char *l = log; (l = strchr(l, '\n')); l++)
        lines++;
    assert_non_null(strstr(log, "no [peer] has this address"));
    assert_true(lines < 40);
    free(log);
}

/* ---- prepare ---- */

static json_t *prepare_request(void)
{
    return json_pack("{s:s, s:b, s:i, s:i, s:s, s:[i], s:s, s:{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, "
                     "s:s, s:i, s:s, s:i}], s:[]}}",
                     "verb", "peer.prepare", "storage", 1, "epoch", 1, "protocol", AGENT_PROTOCOL, "job", "5",
                     "used", 4096, "datastore", "ds", "vm", "name", "web1", "memory", 16 << 20, "vcpus", 1,
                     "qemu", "qemu-system-x86_64", "machine", "q35", "accel", "tcg", "cpu", "max", "disks",
                     "name", "root", "path", "/dev/loop0", "size", 1 << 20, "datastore", "", "queues", 1,
                     "nics");
}

static unsigned files_in_ds(void)
{
    char *out = NULL;
    unsigned n = 0;
    const char *const argv[] = {"find", in_dir(t, "ds"), "-type", "f", NULL};

    xm_run(argv, LIMIT_HANG_NS, &out, NULL);
    for (const char *c = out; c && *c; c++)
        n += *c == '\n';
    free(out);
    return n;
}

static void hostile_requests_to_prepare_make_nothing(void **state)
{
    static const struct {
        const char *path; /* in the request, parts separated by '/' */
        const char *value;
        int exit;
    } bad[] = {
        {"vm/name", "\"../web1\"", 2},
        {"vm/name", "\"a/b\"", 2},
        {"vm/qemu", "\"/bin/sh\"", 3},
        {"vm/machine", "\"no-such\"", 3},
        {"vm/machine", "\"q35,dumpdtb=x\"", 3},
        {"vm/kernel", "\"/etc/shadow\"", 3},
        {"vm/memory", "-1", 2},
        {"vm/memory", "70368744177664", 3},
        {"vm/machine", "\"q35 -S\"", 2},
        {"vm/cpu", "\"max,x=/etc/shadow\"", 3},
        {"vm/accel", "\"kvm,device=/dev/sda\"", 3},
        {"vm/initrd", "\"/a,/etc/shadow\"", 2},
        {"vm/firmware", "\"/etc/passwd\"", 3},
        {"vm/nics", "[{\"name\":\"n\",\"bridge\":\"lo\",\"mac\":\"52:54:00:00:00:01\",\"tap\":\"t0\"}]", 3},
        {"vm/cdroms", "[{\"name\":\"c\",\"path\":\"/etc/shadow\"}]", 3},
        {"vm/cdroms", "[{\"name\":\"c\",\"path\":\"json:{}\"}]", 2},
        {"vm/devices", "{\"vnc\":\"0.0.0.0:1\"}", 2},
        {"vm/devices", "{\"vnc\":\"1\",\"vnc_password\":\"x\"}", 3}, /* this host has no address for it */
        {"vm/extra", "[\"-incoming\",\"exec:id\"]", 3},
        {"vm/extra", "[\"-device\",\"{\\\"driver\\\":\\\"virtio-rng-pci\\\"}\"]", 3},
        {"vm/extra", "[\"-no-reboot\"]", 3},
        {"vm/disks", "{}", 2},
        {"vm/disks", "[]", 2},
        {"used", "[-1]", 2},
        {"used", "[9223372036854775807]", 2},
        {"used", "\"x\"", 2},
        {"epoch", "0", 2},
        {"epoch", "\"1\"", 2},
        {"protocol", "99", 3},
        {"datastore", "\"../../tmp\"", 3},
        {"job", "\"../5\"", 2},
        {"links", "[{}]", 2},
        {"links", "[{\"name\":\"l\",\"address\":\"host\"}]", 2},
        {"storage", "false", 3},
        {"vm", "7", 2},
    };
    (void)state;
    need_qemu();

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *o = prepare_request();
        const char *slash = strchr(bad[i].path, '/');
        json_object_set_new(slash ? json_object_get(o, "vm") : o, slash ? slash + 1 : bad[i].path,
                            json_loads(bad[i].value, JSON_DECODE_ANY, NULL));
        json_t *answer = ask_as_peer(t, o);
        if (!answer || xm_json_bool(answer, "ok", true) || xm_json_int(answer, "exit", 0) != bad[i].exit)
            fail_msg("%s = %s: %s", bad[i].path, bad[i].value, json_dumps(answer, 0));
        json_decref(answer);
    }
    assert_int_equal(files_in_ds(), 0);
    assert_false(exists(t, "run/vms/web1"));
    must_live();
}

/* A file that others may not read could come to light in the guest of a hostile peer. */
static void a_probe_decides_what_is_shared(void **state)
{
    static const char content[] = "0123456789abcdef0123456789abcdef";
    json_t *o, *probe;
    (void)state;
    need_qemu();

    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-00112233aabbccdd"), content, 32, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "ds/disk.raw"), "", 0, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "ds/disk.raw"), 1 << 20), 0);
    assert_int_equal(symlink("disk.raw", in_dir(t, "ds/link.raw")), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "ds/short.raw"), "x", 1, NULL), 0);
    assert_int_equal(mkfifo(in_dir(t, "ds/fifo"), 0600), 0);
    assert_int_equal(
        symlink(".xmigrate-probe-00112233aabbccdd", in_dir(t, "ds/.xmigrate-probe-00112233aabbccee")), 0);
    for (int i = 0; i < 9; i++) {
        o = prepare_request();
        json_object_set_new(o, "verb", json_string("peer.check"));
        json_object_set_new(o, "storage", json_false());
        probe = json_pack("{s:s, s:s, s:s, s:s}", "datastore", "ds", "file",
                          i == 1   ? "../disk.raw"
                          : i == 2 ? "web.raw"
                          : i == 5 ? "link.raw"
                          : i == 6 ? "short.raw"
                          : i == 7 ? "fifo"
                                   : "disk.raw",
                          "probe",
                          i == 3   ? "../../../../etc/x"
                          : i == 8 ? "00112233aabbccee"
                                   : "00112233aabbccdd",
                          "content", i == 4 ? "ffffffffffffffffffffffffffffffff" : content);
        json_object_set_new(o, "probes", json_pack("[o]", probe));
        json_t *answer = ask_as_peer(t, o);
        assert_true(xm_json_bool(answer, "ok", false));
        if ((json_array_size(json_object_get(answer, "reasons")) == 0) != (i == 0))
            fail_msg("%d: %s", i, json_dumps(answer, 0));
        json_decref(answer);
    }
}

static json_t *must_prepare(void)
{
    json_t *answer = ask_as_peer(t, prepare_request());

    if (!xm_json_bool(answer, "ok", false))
        fail_msg("%s", json_dumps(answer, 0));
    return answer;
}

static void prepare_makes_disks_and_cancel_takes_all_away(void **state)
{
    struct stat st;
    (void)state;
    need_qemu();

    assert_int_equal(xm_file_replace(in_dir(t, "ds/web1-root.raw"), "mine", 4, NULL), 0);
    json_t *answer = must_prepare();
    const char *path = xm_json_str(json_array_get(json_object_get(answer, "disks"), 0), "path", "");
    assert_string_equal(path, in_dir(t, "ds/web1-root.1.raw")); /* a name that is taken is left alone */
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
    assert_int_equal(st.st_blocks, 0);
    assert_int_equal(strlen(xm_json_str(answer, "token", "")), 64);
    must(ask_as_peer(t, prepare_request()), 3); /* it is here already */
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:s}", "verb", "peer.cancel", "vm", "web1", "token", "00")), 1);
    assert_true(exists(t, "ds/web1-root.1.raw"));
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(answer, "token"))),
         0);
    assert_false(exists(t, "ds/web1-root.1.raw"));
    assert_true(exists(t, "ds/web1-root.raw"));
    assert_false(exists(t, "run/vms/web1"));
    json_decref(answer);
}

static json_t *with_nvram(json_t *nvram)
{
    json_t *o = prepare_request(), *vm = json_object_get(o, "vm");

    json_object_set_new(vm, "firmware", json_string("/usr/share/OVMF/OVMF_CODE_4M.fd"));
    json_object_set_new(vm, "nvram", json_string("/no/such/template")); /* the VM has its own already */
    json_object_set_new(o, "nvram", nvram);
    return o;
}

static void the_firmwares_variables_come_with_the_request(void **state)
{
    static const char *const bad[] = {"null",
                                      "{\"size\":8192}",
                                      "{\"size\":1073741824,\"pieces\":[]}",
                                      "{\"size\":8191,\"pieces\":[]}",
                                      "{\"size\":8192,\"pieces\":[[8192,\"AAAA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[-1,\"AAAA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[8190,\"AAAA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0,\"AAA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0,\"A===\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0,\"AA=A\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0,\"AA==AAAA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0,\"A*AA\"]]}",
                                      "{\"size\":8192,\"pieces\":[[0]]}",
                                      "{\"size\":8192,\"pieces\":[7]}"};
    char *text;
    size_t len;
    (void)state;
    need_qemu();
    if (access("/usr/share/OVMF/OVMF_CODE_4M.fd", R_OK)) {
        print_message("skipped: there is no OVMF\n");
        skip();
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *answer = ask_as_peer(t, with_nvram(json_loads(bad[i], JSON_DECODE_ANY, NULL)));
        if (xm_json_bool(answer, "ok", true) || xm_json_int(answer, "exit", 0) != 2)
            fail_msg("%s: %s", bad[i], json_dumps(answer, 0));
        json_decref(answer);
    }
    assert_false(exists(t, "state/vms/web1/nvram.fd"));
    /* What an earlier stay has left is not what the VM has now. */
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/web1/nvram.fd"), "old", 3, NULL), 0);
    json_t *answer = ask_as_peer(t, with_nvram(json_pack("{s:i, s:[[i, s], [i, s]]}", "size", 8192, "pieces",
                                                         1, "SGVsbG8=", 8189, "AAEC")));
    if (!xm_json_bool(answer, "ok", false))
        fail_msg("%s", json_dumps(answer, 0));
    assert_int_equal(xm_file_read(in_dir(t, "state/vms/web1/nvram.fd"), 1 << 20, &text, &len, NULL), 0);
    assert_int_equal(len, 8192);
    assert_memory_equal(text, "\xffHello\xff", 7);
    assert_memory_equal(text + 8188, "\xff\0\1\2", 4);
    free(text);
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(answer, "token"))),
         0);
    assert_false(exists(t, "state/vms/web1/nvram.fd"));
    json_decref(answer);
}

static void a_link_with_the_token_gets_to_the_shim(void **state)
{
    char line[200], c = 0;
    (void)state;
    need_qemu();

    json_t *answer = must_prepare();
    snprintf(line, sizeof line, "XMIG/1 link %064d l1\n", 0);
    assert_true(closed_without_a_word(connect_from("127.0.0.2", t->port), line, strlen(line)));
    snprintf(line, sizeof line, "XMIG/1 link %s 127.0.0.2\n", xm_json_str(answer, "token", ""));
    assert_true(closed_without_a_word(connect_from("127.0.0.3", t->port), line, strlen(line)));
    int fd = connect_from("127.0.0.2", t->port);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(send(fd, line, strlen(line), MSG_NOSIGNAL), strlen(line));
    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    assert_int_equal(recv(fd, &c, 1, 0), 1);
    assert_int_equal(c, '!');
    close(fd);
    json_decref(answer);
}

static void what_was_made_for_a_dead_migration_is_deleted_by_the_next_agent(void **state)
{
    (void)state;
    need_qemu();
    json_decref(must_prepare());
    test_agent_stop(t, SIGKILL);
    kill(shim_pid(t, "web1"), SIGKILL);
    assert_true(exists(t, "ds/web1-root.raw"));
    assert_int_equal(test_agent_start(t), 0);
    assert_true(until_no_vm(t, "web1"));
    assert_true(until_gone(t, "run/vms/web1"));
    assert_false(exists(t, "ds/web1-root.raw"));
}

static void an_incoming_vm_is_still_expected_by_the_next_agent(void **state)
{
    (void)state;
    need_qemu();
    json_t *answer = must_prepare();
    test_agent_stop(t, SIGKILL);
    assert_int_equal(test_agent_start(t), 0);
    must(ask_as_peer(t, prepare_request()), 3);
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(answer, "token"))),
         0);
    assert_false(exists(t, "ds/web1-root.raw"));
    json_decref(answer);
}

/* ---- VMs of its own ---- */

static json_t *start_request(void)
{
    return json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"));
}

static const char *state_of(const char *vm)
{
    static char state[32];
    json_t *o = ask(t, json_pack("{s:s, s:s}", "verb", "show", "vm", vm));

    snprintf(state, sizeof state, "%s", xm_json_str(json_object_get(o, "vm"), "state", ""));
    json_decref(o);
    return state;
}

static void a_vm_is_started_found_again_and_stopped(void **state)
{
    (void)state;
    need_qemu();
    must(ask(t, start_request()), 0);
    assert_true(exists(t, "ds/web1.raw"));
    assert_true(exists(t, "state/vms/web1/owner.json"));
    assert_string_equal(state_of("web1"), "running");
    must(ask(t, start_request()), 3); /* twice is once too often */
    test_agent_stop(t, SIGKILL);
    assert_int_equal(test_agent_start(t), 0);
    assert_string_equal(state_of("web1"), "running");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_string_equal(state_of("web1"), "stopped");
    assert_false(exists(t, "run/vms/web1"));
    assert_true(exists(t, "ds/web1.raw"));
    must(ask(t, start_request()), 0); /* and again, with the disk that it has */
}

/* Seen: a disk was made below the mount point of a datastore that was not mounted, and hidden by the next mount. */
static void nothing_is_made_where_a_datastore_is_not_mounted(void **state)
{
    char away[256], here[256];
    (void)state;
    need_qemu();

    snprintf(here, sizeof here, "%s", in_dir(t, "ds"));
    snprintf(away, sizeof away, "%s", in_dir(t, "ds.mounted"));
    must(ask(t, start_request()), 0); /* the first use */
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "undefine", "vm", "web1")), 0);
    assert_int_equal(rename(here, away), 0);
    assert_int_equal(mkdir(here, 0700), 0);
    json_t *o = ask(t, start_request());
    if (!strstr(xm_json_str(o, "error", ""), "is it mounted?"))
        fail_msg("%s", json_dumps(o, 0));
    must(o, 3);
    assert_int_equal(files_in_ds(), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/datastores.json"), "{", 1, NULL), 0);
    must(ask(t, start_request()), 3); /* what it was is not known: not a first use */
    assert_int_equal(unlink(in_dir(t, "state/datastores.json")), 0);
    assert_int_equal(rmdir(here), 0); /* nothing at all */
    assert_int_equal(rename(away, here), 0);
    must(ask(t, start_request()), 0);
}

static void edit_spec(const char *how)
{
    const char *const argv[] = {"sed", "-i", how, in_dir(t, "spec.ini"), NULL};

    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
}

static void must_refuse_disk(const char *part)
{
    json_t *answer = ask(t, start_request());

    if (!strstr(xm_json_str(answer, "error", ""), part))
        fail_msg("%s", json_dumps(answer, 0));
    must(answer, 3);
}

/* Seen: taken as raw, silently. What a guest has written to a disk in use is its own business. */
static void an_image_of_another_format_is_no_disk(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(in_dir(t, "ds/web1.raw"), "QFI\xfb\0\0\0\3", 8, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 1000), 0); /* a qcow2 file has any size */
    must_refuse_disk(
        "looks like a qcow2 image, and disks are raw here: convert it by qemu-img, or write «format = raw»");
    assert_int_equal(truncate(in_dir(t, "ds/web1.raw"), 1 << 20), 0);
    must_refuse_disk("looks like a qcow2 image");
    edit_spec("$aformat = raw");
    must(ask(t, start_request()), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    edit_spec("$d");
    must(ask(t, start_request()), 0); /* it has been in use as raw */
}

static void the_firmwares_variables_are_made_once(void **state)
{
    char *text = NULL, *insert;
    size_t len;
    (void)state;
    need_qemu();
    json_t *stop = json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1);
    assert_int_equal(xm_file_replace(in_dir(t, "vars"), "no multiple", 11, NULL), 0);
    insert = xm_printf("/^accel/a firmware = %s\\nnvram = %s", in_dir(t, "vars"), in_dir(t, "vars"));
    edit_spec(insert);
    free(insert);
    must(ask(t, start_request()), 1);
    assert_false(exists(t, "state/vms/web1"));
    assert_int_equal(truncate(in_dir(t, "vars"), 8192), 0);
    must(ask(t, start_request()), 0);
    must(ask(t, json_incref(stop)), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/web1/nvram.fd"), "set", 3, NULL), 0);
    must(ask(t, start_request()), 0);
    must(ask(t, stop), 0);
    assert_int_equal(xm_file_read(in_dir(t, "state/vms/web1/nvram.fd"), 1 << 20, &text, &len, NULL), 0);
    assert_string_equal(text, "set");
    free(text);
    assert_int_equal(unlink(in_dir(t, "state/vms/web1/nvram.fd")), 0);
    json_t *answer = ask(t, start_request()); /* no guess */
    assert_non_null(
        strstr(xm_json_str(answer, "error", ""), "the variables of its firmware, has gone: put a copy"));
    must(answer, 1);
}

static void a_disk_in_a_datastore_is_no_link(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(xm_file_replace(in_dir(t, "elsewhere"), "", 0, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "elsewhere"), 1 << 20), 0);
    assert_int_equal(symlink(in_dir(t, "elsewhere"), in_dir(t, "ds/web1.raw")), 0);
    must_refuse_disk("ds/web1.raw is a link, and a disk in a datastore is a plain file");
}

static void a_start_that_fails_leaves_nothing(void **state)
{
    (void)state;
    need_qemu();

    edit_spec("s/web1$/broken/");
    json_t *answer = ask(t, start_request());
    assert_string_equal(xm_json_str(answer, "error", ""), "VM broken: it does not want to");
    must(answer, 1);
    assert_int_equal(files_in_ds(), 0);
    assert_false(exists(t, "run/vms/broken"));
    assert_false(exists(t, "state/vms/broken"));
}

static void a_vm_that_was_given_away_is_not_started(void **state)
{
    struct owner_record rec = {.epoch = 4, .owner = OWNER_GIVEN, .to = "hostb"};
    (void)state;
    need_qemu();

    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    must(ask(t, start_request()), 3);
    assert_int_equal(files_in_ds(), 0);
}

/* ---- a move, with the test as the other agent ---- */

/* Its request; the answer is the caller's. */
static json_t *serve_begin(int listener, struct xm_jsonl *js)
{
    char hello[15];
    struct pollfd p = {.fd = listener, .events = POLLIN};

    assert_int_equal(poll(&p, 1, LIMIT_HANG_MS), 1);
    int fd = accept(listener, NULL, NULL);
    assert_int_equal(recv(fd, hello, sizeof hello, MSG_WAITALL), sizeof hello);
    assert_memory_equal(hello, "XMIG/1 control\n", sizeof hello);
    xm_jsonl_init(js, fd);
    json_t *request = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_non_null(request);
    return request;
}

static json_t *serve_one(int listener, json_t *answer)
{
    struct xm_jsonl js;
    json_t *request = serve_begin(listener, &js);

    xm_jsonl_send(js.fd, answer, -1, NULL);
    xm_jsonl_close(&js);
    return request;
}

static json_t *prepared(void)
{
    return json_pack("{s:b, s:s, s:i, s:[], s:[{s:s, s:s}]}", "ok", 1, "token",
                     "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "port", 7070,
                     "links", "disks", "name", "root", "path", "/ds/x");
}

static json_t *move_request(void)
{
    return json_pack("{s:s, s:s, s:s, s:b}", "verb", "move", "vm", "web1", "host", "hostb", "storage", 1);
}

/* A process that the agent takes for the VM's QEMU. */
static pid_t make_believe_qemu;

/* came: from another host. */
static void start_qemu(bool came)
{
    char text[32];
    int input[2];

    assert_int_equal(pipe2(input, O_CLOEXEC), 0);
    make_believe_qemu = fork();
    if (make_believe_qemu == 0) {
        dup2(input[0], 0); /* it ends with this program, at the latest */
        execlp("sh", "sh", "-c", "read line", in_dir(t, "run/vms/web1/qmp.sock"), "-S",
               came ? "-incoming" : NULL, NULL);
        _exit(127);
    }
    close(input[0]);
    /* Until it has become that program, it is none that the agent knows. */
    char proc[40], *line = NULL;
    size_t len = 0;
    bool is = false;
    snprintf(proc, sizeof proc, "/proc/%d/cmdline", make_believe_qemu);
    for (struct limit l = limit_start(20); !is && limit_wait(&l); free(line), line = NULL)
        is = !xm_file_read(proc, 4096, &line, &len, NULL) && memmem(line, len, "qmp.sock", 8);
    assert_true(is);
    snprintf(text, sizeof text, "%d\n", make_believe_qemu);
    assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/qemu.pid"), text, strlen(text), NULL), 0);
}

static int move_set_up(void **state)
{
    static int listener;
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    listener = xm_tcp_listen("127.0.0.2", 0, NULL);
    getsockname(listener, (struct sockaddr *)&ss, &len);
    *state = &listener;
    return test_agent_make(t, ntohs(((struct sockaddr_in *)(void *)&ss)->sin_port)) || test_agent_start(t);
}

static void end_qemu(void)
{
    if (make_believe_qemu > 0) {
        kill(make_believe_qemu, SIGKILL);
        waitpid(make_believe_qemu, NULL, 0);
    }
    make_believe_qemu = 0;
}

static int move_tear_down(void **state)
{
    close(*(int *)*state);
    int r = tear_down(state);
    end_qemu();
    return r;
}

/* Whoever is refused waits in vain for the next request to the other agent: it says why. */
static void must_not_be_refused(int listener, struct xm_jsonl *js)
{
    struct pollfd p[2] = {{.fd = listener, .events = POLLIN}, {.fd = js->fd, .events = POLLIN}};
    json_t *o = NULL;

    while (poll(p, 2, LIMIT_HANG_MS) > 0 && !p[0].revents) {
        json_decref(o);
        o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
        if (!o || json_object_get(o, "ok"))
            fail_msg("%s", json_dumps(o, JSON_ENCODE_ANY));
    }
    json_decref(o);
}

/* The move has begun and its shim works on it: the connection that follows it. */
static void begin_move(int listener, struct xm_jsonl *js)
{
    must(ask(t, start_request()), 0);
    xm_jsonl_init(js, unix_socket());
    xm_jsonl_send(js->fd, move_request(), -1, NULL);
    must_not_be_refused(listener, js);
    json_t *o = serve_one(listener, json_pack("{s:b, s:[]}", "ok", 1, "reasons"));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.check");
    json_decref(o);
    must_not_be_refused(listener, js);
    o = serve_one(listener, prepared());
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.prepare");
    assert_string_equal(xm_json_str(o, "job", ""), "1");
    json_decref(o);
    for (bool disks = false; !disks; json_decref(o)) {
        o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL);
        assert_non_null(o);
        disks = !strcmp(xm_json_str(o, "state", ""), "disks");
    }
}

static json_t *last_event_of_watch(const char *job)
{
    struct xm_jsonl js;
    json_t *o, *last = NULL;
    bool first = true;

    xm_jsonl_init(&js, unix_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s}", "verb", "watch", "job", job), -1, NULL);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok")) {
        if (first)
            assert_string_equal(xm_json_str(o, "event", ""), "job");
        first = false;
        json_decref(last);
        last = o;
    }
    json_decref(o);
    xm_jsonl_close(&js);
    return last;
}

static void must_be_done(const char *job)
{
    json_t *o = last_event_of_watch(job);

    assert_string_equal(xm_json_str(o, "event", ""), "done");
    assert_int_equal(xm_json_int(o, "downtime_ms", 0), 7);
    assert_string_equal(xm_json_str(o, "destination", ""), "hostb");
    json_decref(o);
}

static void a_move_is_followed_to_its_end_and_remembered(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    must(ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostb")),
         3); /* one at a time */
    must(ask(t, json_pack("{s:s, s:s, s:i}", "verb", "set", "job", "1", "bandwidth", 1000000)), 0);
    xm_jsonl_close(&js); /* the command is killed */
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
    assert_string_equal(state_of("web1"), ""); /* «done» is said when it has gone */
    assert_false(exists(t, "run/vms/web1"));
    test_agent_stop(t, SIGTERM);
    assert_int_equal(test_agent_start(t), 0);
    must_be_done("1");
    must(ask(t, json_pack("{s:s, s:s}", "verb", "abort", "job", "1")), 1);
}

/* Its shim cannot write result.json (the run directory is full, say): what it said is enough. */
static void a_report_that_was_heard_counts_without_its_file(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    xm_jsonl_close(&js);
    assert_int_equal(mkdir(in_dir(t, "run/vms/web1/result.json"), 0700), 0);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
    assert_string_equal(state_of("web1"), "");
}

static void a_move_ends_while_no_agent_is_there(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    test_agent_stop(t, SIGKILL);
    xm_jsonl_close(&js);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    assert_true(until_gone(t, "run/vms/web1/shim.sock"));
    assert_int_equal(test_agent_start(t), 0);
    must_be_done("1");
    assert_true(until_gone(t, "run/vms/web1"));
}

static void a_move_outlives_its_agent(void **state)
{
    struct xm_jsonl js;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    test_agent_stop(t, SIGKILL);
    xm_jsonl_close(&js);
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostb")), 3);
    must(ask_shim(t, "web1", json_pack("{s:s, s:i}", "cmd", "finish", "id", 1)), 0);
    must_be_done("1");
}

static void an_abort_ends_it_with_the_vm_here(void **state)
{
    struct xm_jsonl js;
    json_t *o;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "abort", "job", "1")), 0);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    must(o, 1);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "running");
}

static void the_shim_dies_in_a_move(void **state)
{
    struct xm_jsonl js;
    json_t *o;
    (void)state;
    need_qemu();

    begin_move(*(int *)*state, &js);
    kill(shim_pid(t, "web1"), SIGKILL);
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    must(o, 4); /* nobody knows: it says how to find out */
    xm_jsonl_close(&js);
}

static json_t *last_of(struct xm_jsonl *js)
{
    json_t *o;

    while ((o = xm_jsonl_recv(js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    return o;
}

/* Its QEMU lives, and gets another shim. */
static void the_vm_runs_on_when_only_the_shim_dies(void **state)
{
    struct xm_jsonl js;
    need_qemu();

    begin_move(*(int *)*state, &js);
    start_qemu(false);
    kill(shim_pid(t, "web1"), SIGKILL);
    json_t *o = last_of(&js);
    assert_string_equal(xm_json_str(o, "error", ""),
                        "the shim died, and with it the migration; the VM runs on here with a new one");
    must(o, 1);
    xm_jsonl_close(&js);
    assert_string_equal(state_of("web1"), "running");
}

/* The destination prepares meanwhile: the new shim was given the job that its user had been told to be over. */
static void a_job_that_is_over_is_not_given_to_the_new_shim(void **state)
{
    struct xm_jsonl js, peer;
    int listener = *(int *)*state;
    need_qemu();

    must(ask(t, start_request()), 0);
    start_qemu(false);
    xm_jsonl_init(&js, unix_socket());
    xm_jsonl_send(js.fd, move_request(), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b, s:[]}", "ok", 1, "reasons")));
    json_t *o = serve_begin(listener, &peer);
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.prepare");
    json_decref(o);
    kill(shim_pid(t, "web1"), SIGKILL);
    must(last_of(&js), 1);
    assert_string_equal(state_of("web1"), "running"); /* there is a new one */
    xm_jsonl_send(peer.fd, prepared(), -1, NULL);
    xm_jsonl_close(&peer);
    /* Either the destination is told to drop it, or the shim has it. */
    struct pollfd p = {.fd = listener, .events = POLLIN};
    for (struct limit l = limit_start(10);
         !poll(&p, 1, 0) && strcmp(state_of("web1"), "migrating") && limit_wait(&l);)
        ;
    assert_string_equal(state_of("web1"), "running");
    o = serve_one(listener, json_pack("{s:b}", "ok", 1));
    assert_string_equal(xm_json_str(o, "verb", ""), "peer.cancel");
    json_decref(o);
    xm_jsonl_close(&js);
}

/* What is asked of the destination, which answers with this reason. */
static json_t *asked_of_the_destination(int listener, const char *reason, size_t want_reasons)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, unix_socket());
    xm_jsonl_send(js.fd, move_request(), -1, NULL);
    json_t *asked = serve_one(listener, json_pack("{s:b, s:[s]}", "ok", 1, "reasons", reason));
    json_t *o = last_of(&js);
    if (json_array_size(json_object_get(o, "reasons")) != want_reasons)
        fail_msg("%s", json_dumps(o, 0));
    must(o, 3);
    xm_jsonl_close(&js);
    return asked;
}

/* A guest that came from elsewhere may not have seen what is given to it here. */
static void the_destination_learns_what_is_known_of_the_cpu(void **state)
{
    int listener = *(int *)*state;
    need_qemu();

    must(ask(t, start_request()), 0);
    json_t *o = asked_of_the_destination(listener, "no", 1);
    assert_true(json_array_size(json_object_get(o, "cpu")) > 10);
    assert_null(json_object_get(o, "cpu_why"));
    assert_false(xm_json_bool(o, "booted", true)); /* there is no QEMU */
    json_decref(o);
    for (int came = 0; came < 2; came++) {
        start_qemu(came);
        o = asked_of_the_destination(listener, "no", 1);
        assert_int_equal(xm_json_bool(o, "booted", came), !came);
        json_decref(o);
        end_qemu();
    }
}

static void write_program(const char *name, const char *text)
{
    assert_int_equal(xm_file_replace(in_dir(t, name), text, strlen(text), NULL), 0);
    assert_int_equal(chmod(in_dir(t, name), 0755), 0);
}

static void write_spec(const char *more)
{
    FILE *f = fopen(in_dir(t, "spec.ini"), "we");

    fprintf(f, "[vm]\nname = web1\nmemory = 16M\naccel = tcg\n%s", more);
    fclose(f);
}

/* The first answer without a machine is what it is, the second would be its CPU. */
static void a_source_that_cannot_tell_the_guests_cpu_says_why(void **state)
{
    char line[200];
    need_qemu();
    write_program("qemu",
                  "#!/bin/sh\ncase \"$*\" in '-machine none'*)\n"
                  "[ -e $0.asked ] && echo 'it has no CPU today' >&2 && exit 1\ntouch $0.asked\nesac\n"
                  "exec qemu-system-x86_64 \"$@\"\n");
    snprintf(line, sizeof line, "qemu = %s\n", in_dir(t, "qemu"));
    write_spec(line);
    must(ask(t, start_request()), 0);
    json_t *o = asked_of_the_destination(*(int *)*state, "no", 1);
    assert_null(json_object_get(o, "cpu"));
    if (!strstr(xm_json_str(o, "cpu_why", ""), "it has no CPU today"))
        fail_msg("%s", json_dumps(o, 0));
    json_decref(o);
}

/* This QEMU tells its guests rings of 1024, as 10.0.13 does. Those of disks have that size; any other virtio
 * device's are smaller, also that of one that is attached by hand. */
static void the_destination_learns_of_large_rings(void **state)
{
    static const char *const more[] = {"", "extra = -device\nextra = virtio-keyboard-pci\n", "rng = yes\n"};
    char lines[300];
    need_qemu();

    write_program("qemu",
                  "#!/bin/sh\ncase \"$*\" in *virtio-net-pci,id=n,*)\n"
                  "echo '{\"return\": {\"vring-num-default\": 1024}, \"id\": \"asked\"}'\nexit 0\nesac\n"
                  "exec qemu-system-x86_64 \"$@\"\n");
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        snprintf(lines, sizeof lines, "qemu = %s\n%s", in_dir(t, "qemu"), more[i]);
        write_spec(lines);
        must(ask(t, start_request()), 0);
        json_t *o = asked_of_the_destination(*(int *)*state, "no", 1);
        assert_int_equal(xm_json_bool(o, "large_rings", false), i > 0);
        json_decref(o);
        must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    }
}

static void what_both_sides_say_is_said_once(void **state)
{
    static const char both[] = "'vfio-pci' attaches something of its host to web1 that cannot move (vfio)";
    int listener = *(int *)*state;
    need_qemu();

    write_spec("extra = -device\nextra = vfio-pci\n");
    must(ask(t, start_request()), 0);
    json_decref(asked_of_the_destination(listener, both, 1));
    json_decref(asked_of_the_destination(listener, "another", 2));
}

/* The peer has reasons, or talks nonsense: nothing begins, or it ends with the VM here. */
static void a_peer_that_refuses_or_lies(void **state)
{
    struct xm_jsonl js;
    int listener = *(int *)*state;
    (void)state;
    need_qemu();

    must(ask(t, start_request()), 0);
    xm_jsonl_init(&js, unix_socket());
    json_t *move = move_request();
    xm_jsonl_send(js.fd, json_incref(move), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b, s:[s, i]}", "ok", 1, "reasons", "no room", 7)));
    json_t *o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL);
    assert_int_equal(json_array_size(json_object_get(o, "reasons")), 1);
    must(o, 3);
    xm_jsonl_send(js.fd, json_incref(move), -1, NULL);
    json_decref(serve_one(listener, json_pack("{s:b}", "ok", 1)));
    json_decref(serve_one(listener, json_pack("{s:b, s:s, s:i, s:[], s:[]}", "ok", 1, "token", "../../x",
                                              "port", -5, "links", "disks")));
    while ((o = xm_jsonl_recv(&js, xm_now() + LIMIT_HANG_NS, NULL)) && !json_object_get(o, "ok"))
        json_decref(o);
    must(o, 1);
    xm_jsonl_close(&js);
    json_decref(move);
    assert_string_equal(state_of("web1"), "running");
}

/* ---- recover ---- */

/* What hostb says of VM web1, and how recover ends here. */
static json_t *recover_with(int listener, json_t *said)
{
    struct xm_jsonl js;

    xm_jsonl_init(&js, unix_socket());
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
    assert_int_equal(rec.epoch, 6); /* above what the other one may have made of it */
}

/* Who cannot be asked, or makes no sense, decides nothing. */
static void recover_changes_nothing_while_the_other_side_is_silent(void **state)
{
    struct owner_record rec;
    int listener = *(int *)*state;
    need_qemu();

    given_away();
    must(recover_with(listener, json_pack("{s:b, s:s}", "ok", 1, "owner", "who knows")), 4);
    must(recover_with(listener, json_pack("{s:b, s:s}", "ok", 0, "error", "no")), 4);
    shutdown(listener, SHUT_RDWR);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "recover", "vm", "web1")), 4);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_int_equal(rec.epoch, 4);
    assert_string_equal(state_of("web1"), "");
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

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
#define MOVE(f) cmocka_unit_test_setup_teardown(f, move_set_up, move_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_no_message_is_refused),
        TEST(an_endless_line_is_not_kept),
        TEST(half_a_line_and_silence_holds_nobody_up),
        TEST(fields_of_wrong_types_are_refused),
        TEST(strangers_are_closed),
        TEST(a_first_line_of_another_kind_is_closed),
        TEST(idle_connections_keep_nobody_out),
        TEST(strangers_do_not_fill_the_log),
        TEST(a_peer_has_a_peers_verbs_and_its_own_name),
        TEST(hostile_requests_to_prepare_make_nothing),
        TEST(a_probe_decides_what_is_shared),
        TEST(prepare_makes_disks_and_cancel_takes_all_away),
        TEST(the_firmwares_variables_come_with_the_request),
        TEST(a_link_with_the_token_gets_to_the_shim),
        TEST(what_was_made_for_a_dead_migration_is_deleted_by_the_next_agent),
        TEST(an_incoming_vm_is_still_expected_by_the_next_agent),
        TEST(a_vm_is_started_found_again_and_stopped),
        TEST(nothing_is_made_where_a_datastore_is_not_mounted),
        TEST(a_start_that_fails_leaves_nothing),
        TEST(an_image_of_another_format_is_no_disk),
        TEST(a_disk_in_a_datastore_is_no_link),
        TEST(the_firmwares_variables_are_made_once),
        TEST(a_vm_that_was_given_away_is_not_started),
        MOVE(a_move_is_followed_to_its_end_and_remembered),
        MOVE(a_report_that_was_heard_counts_without_its_file),
        MOVE(a_move_ends_while_no_agent_is_there),
        MOVE(a_move_outlives_its_agent),
        MOVE(an_abort_ends_it_with_the_vm_here),
        MOVE(the_shim_dies_in_a_move),
        MOVE(the_vm_runs_on_when_only_the_shim_dies),
        MOVE(a_job_that_is_over_is_not_given_to_the_new_shim),
        MOVE(the_destination_learns_what_is_known_of_the_cpu),
        MOVE(a_source_that_cannot_tell_the_guests_cpu_says_why),
        MOVE(the_destination_learns_of_large_rings),
        MOVE(what_both_sides_say_is_said_once),
        MOVE(a_peer_that_refuses_or_lies),
        MOVE(recover_says_that_the_other_side_has_it),
        MOVE(a_peer_that_has_lost_its_record_is_not_taken_for_one_without_the_vm),
        MOVE(an_operator_takes_back_what_a_dead_peer_had),
        MOVE(recover_changes_nothing_while_the_other_side_is_silent),
        MOVE(recover_starts_nothing_that_was_stopped),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("host: the agent's protocols", tests, NULL, NULL);
}
