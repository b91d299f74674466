/* SPDX-License-Identifier: MIT */
/* What a peer may have prepared for a VM that is to come, and that nothing of it is lost or left when the
 * agent is killed. A real agent, with make-believe shims (lib_shim.c). */
#include "net/net.h"
#include "agent/agent.h"
#include "tests/unit/lib_agent.h"
#include "vm/vm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/progress.h"

static struct test_agent *const t = &test_agent;
static char fault[64]; /* a fault point of the agent's (base/fault.h) */

static void must_live(void)
{
    must(ask(t, json_pack("{s:s}", "verb", "list")), 0);
}

static bool closed_without_a_word(int fd, const char *text, size_t len)
{
    char c;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    send(fd, text, len, MSG_NOSIGNAL);
    bool closed = poll(&p, 1, LIMIT_HANG_MS) == 1 && recv(fd, &c, 1, 0) <= 0;
    close(fd);
    return closed;
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
        {"epoch", "281474976710657", 2}, /* it would stay, and what is defined so can never move */
        {"epoch", "9223372036854775807", 2},
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
        json_t *o = prepare_request("5");
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
        o = prepare_request("5");
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

/* Of ds/disk.raw; file: what is asked for. The reasons against it; the caller's. */
static json_t *reasons_with(const json_t *probe, const char *file)
{
    json_t *o = prepare_request("5"), *shown = json_copy((json_t *)probe);

    json_object_set_new(shown, "file", json_string(file));
    json_object_set_new(o, "verb", json_string("peer.check"));
    json_object_set_new(o, "storage", json_false());
    json_object_set_new(json_object_get(o, "vm"), "name", json_string("evil"));
    json_object_set_new(o, "probes", json_pack("[o]", shown));
    json_t *answer = ask_as_peer(t, o), *reasons = json_incref(json_object_get(answer, "reasons"));
    assert_non_null(reasons);
    json_decref(answer);
    return reasons;
}

static void must_be(json_t *reasons, const char *part)
{
    char *text = json_dumps(reasons, 0);

    if (!strstr(text, part))
        fail_msg("%s", text);
    free(text);
    json_decref(reasons);
}

/* What broke: whom this host asked whether it reaches a VM's disk was told of a probe in that datastore,
 * and could show it back as its own: then each disk there whose VM was stopped was given to a VM of its
 * making. */
static void who_was_shown_a_probe_cannot_show_it_back(void **state)
{
    struct xm_jsonl js, its;
    char content[33];
    need_qemu();

    assert_int_equal(xm_file_replace(in_dir(t, "ds/web2-root.raw"), "", 0, NULL), 0);
    assert_int_equal(truncate(in_dir(t, "ds/web2-root.raw"), 1 << 20), 0);
    must(ask(t, start_request()), 0);
    xm_jsonl_init(&js, agent_socket());
    xm_jsonl_send(js.fd, json_pack("{s:s, s:s, s:s}", "verb", "check", "vm", "web1", "host", "hostb"), -1,
                  NULL);
    json_t *o = serve_begin(*(int *)*state, &its);
    json_t *probe = json_array_get(json_object_get(o, "probes"), 0);
    assert_string_equal(xm_json_str(probe, "file", ""), "web1.raw");
    must_be(reasons_with(probe, "web2-root.raw"), "hosta does not reach disk 'root'");
    xm_jsonl_send(its.fd, json_pack("{s:b, s:[]}", "ok", 1, "reasons"), -1, NULL);
    xm_jsonl_close(&its);
    json_decref(last_of(&js));
    xm_jsonl_close(&js);
    json_decref(o);
    /* Nor one that hostb has shown to another, or that is its own but for this host: that counts. */
    snprintf(content, sizeof content, "0123456789abcdef");
    probe_sign(content, "hostb", "hostb");
    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-00112233aabbccdd"), content, 32, NULL), 0);
    probe = json_pack("{s:s, s:s, s:s}", "datastore", "ds", "probe", "00112233aabbccdd", "content", content);
    must_be(reasons_with(probe, "web2-root.raw"), "hosta does not reach disk 'root'");
    probe_sign(content, "hostb", "hosta");
    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-00112233aabbccdd"), content, 32, NULL), 0);
    json_object_set_new(probe, "content", json_string(content));
    must_be(reasons_with(probe, "web2-root.raw"), "[]");
    json_decref(probe);
}

/* What broke: where both hosts reach the datastore, too: a VM that comes without its disks was given a file
 * that a VM of this host has. */
static void the_disk_of_another_vm_is_not_shared(void **state)
{
    char content[33] = "0123456789abcdef";
    FILE *f = fopen(in_dir(t, "web2.ini"), "we");
    (void)state;
    need_qemu();

    fprintf(f, "[vm]\nname = web2\nmemory = 16M\naccel = tcg\n[disk root]\ndatastore = ds\nfile = "
               "web2-root.raw\nsize = 1M\n");
    fclose(f);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "define", "spec", in_dir(t, "web2.ini"))), 0);
    probe_sign(content, "hostb", "hosta");
    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-00112233aabbccdd"), content, 32, NULL), 0);
    json_t *probe =
        json_pack("{s:s, s:s, s:s}", "datastore", "ds", "probe", "00112233aabbccdd", "content", content);
    must_be(reasons_with(probe, "web2-root.raw"), "is disk 'root' of VM web2");
    json_decref(probe);
}

/* What broke: asked whether the VM could come back, this host took it for seen to run there, and the only
 * good copy of a VM whose guest had not been let run was deleted. */
static void a_check_settles_nothing(void **state)
{
    struct owner_record rec = {.epoch = 3, .owner = OWNER_GIVEN, .to = "hostb"};
    json_t *o = prepare_request("5");
    (void)state;
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    json_object_set_new(o, "verb", json_string("peer.check"));
    json_object_set_new(o, "epoch", json_integer(3));
    must(ask_as_peer(t, o), 0);
    assert_int_equal(owner_load(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(rec.owner, OWNER_GIVEN);
    assert_false(rec.settled);
}

/* What broke: the VM came, could not go back, and after a hand-off that was cut it stood still on both hosts,
 * since neither found the other by the name in its record. */
static void a_host_of_another_name_takes_no_vm(void **state)
{
    static const char *const verbs[] = {"peer.check", "peer.prepare"};
    (void)state;

    for (int i = 0; i < 2; i++) {
        json_t *o = prepare_request("5");
        json_object_set_new(o, "verb", json_string(verbs[i]));
        json_object_set_new(o, "for", json_string("hostA"));
        must_refuse(ask_as_peer(t, o), 3, "the host that hostb has as [peer hostA] calls itself hosta", NULL);
    }
    assert_int_equal(files_in_ds(), 0);
    json_t *o = prepare_request("5");
    json_object_set_new(o, "for", json_string("hosta"));
    json_object_set_new(o, "verb", json_string("peer.check"));
    must(ask_as_peer(t, o), 0);
}

/* hostc, which has web1 by its record. */
struct hostc {
    pthread_t thread;
    _Atomic bool over;
    int fd;
    const char *_Atomic owner;
};

static void *hostc_main(void *arg)
{
    const struct hostc *h = arg;
    struct pollfd p = {.fd = h->fd, .events = POLLIN};

    while (!h->over) {
        if (poll(&p, 1, 10) == 1)
            json_decref(serve_one(h->fd, json_pack("{s:b, s:s, s:i, s:s, s:b}", "ok", 1, "owner", h->owner,
                                                   "epoch", 3, "to", "", "settled", 1)));
    }
    return NULL;
}

/* What broke: a host of this one's peers announced a VM of its own under the name of one that this host had
 * given to a third one, with a higher epoch; and the third one, which asks this host before it starts the VM,
 * believed it and gave its VM up. */
static void a_vm_that_a_third_host_has_is_not_taken(void **state)
{
    struct owner_record given = {.epoch = 3, .owner = OWNER_GIVEN, .to = "hostc", .settled = true};
    struct hostc c = {.owner = "mine"};
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    (void)state;
    need_qemu();

    c.fd = xm_tcp_listen("127.0.0.3", 0, NULL);
    getsockname(c.fd, (struct sockaddr *)&ss, &len);
    test_agent_stop(t, SIGTERM);
    FILE *f = fopen(in_dir(t, "conf"), "ae");
    fprintf(f, "[peer hostc]\naddress = 127.0.0.3\nport = %u\n",
            ntohs(((struct sockaddr_in *)(void *)&ss)->sin_port));
    fclose(f);
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/web1"), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &given, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    assert_int_equal(pthread_create(&c.thread, NULL, hostc_main, &c), 0);
    json_t *o = prepare_request("5");
    json_object_set_new(o, "epoch", json_integer(1000));
    must_refuse(ask_as_peer(t, json_deep_copy(o)), 3, "is hostc's (epoch 3), not hostb's", NULL);
    json_object_set_new(o, "verb", json_string("peer.check"));
    json_t *answer = ask_as_peer(t, json_deep_copy(o));
    assert_int_equal(json_array_size(json_object_get(answer, "reasons")), 1);
    json_decref(answer);
    c.owner = "given"; /* it came from there */
    answer = ask_as_peer(t, o);
    assert_int_equal(json_array_size(json_object_get(answer, "reasons")), 0);
    json_decref(answer);
    c.over = true;
    pthread_join(c.thread, NULL);
    close(c.fd);
}

static json_t *must_prepare(void)
{
    json_t *answer = ask_as_peer(t, prepare_request("5"));

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
    struct journal j; /* which knows the file, not its name alone */
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    json_t *file = left_file(path, fd);
    assert_int_equal(journal_read(in_dir(t, "state/vms/web1"), &j, NULL), 0);
    assert_true(json_equal(json_array_get(j.files, 0), file));
    journal_free(&j);
    json_decref(file);
    close(fd);
    must(ask_as_peer(t, prepare_request("5")), 3); /* it is here already */
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

/* Whoever else has heard of the token. */
static void another_peer_does_not_cancel_it(void **state)
{
    (void)state;
    need_qemu();

    test_agent_stop(t, SIGTERM);
    FILE *f = fopen(in_dir(t, "conf"), "ae");
    fprintf(f, "[peer hostc]\naddress = 127.0.0.3\nport = 7\n");
    fclose(f);
    assert_int_equal(test_agent_start(t), 0);
    json_t *answer = must_prepare(), *cancel = json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm",
                                                         "web1", "token", json_object_get(answer, "token"));
    must_refuse(ask_as(t, "hostc", "127.0.0.3", json_deep_copy(cancel)), 1, "does not wait for this", NULL);
    must(ask_as_peer(t, cancel), 0);
    json_decref(answer);
}

/* What broke: the datastore that nobody had chosen was looked at, and the agent died. */
static void a_vm_may_have_no_disks(void **state)
{
    json_t *o = prepare_request("5");
    (void)state;
    need_qemu();

    json_object_set_new(json_object_get(o, "vm"), "disks", json_array());
    json_object_set_new(o, "used", json_array());
    must(ask_as_peer(t, json_deep_copy(o)), 0);
    must_live();
    assert_int_equal(files_in_ds(), 0);
    json_object_set_new(json_object_get(o, "vm"), "name", json_string("web2"));
    json_object_set_new(o, "storage", json_false());
    must(ask_as_peer(t, o), 0);
    must_live();
}

static json_t *with_nvram(json_t *nvram)
{
    json_t *o = prepare_request("5"), *vm = json_object_get(o, "vm");

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

/* What broke: they stayed without a record, and another VM that was defined there under that name began with
 * them. */
static void variables_of_a_killed_prepare_do_not_stay(void **state)
{
    (void)state;
    need_qemu();
    if (access("/usr/share/OVMF/OVMF_CODE_4M.fd", R_OK)) {
        print_message("skipped: there is no OVMF\n");
        skip();
    }
    assert_int_equal(xm_file_replace(fault, "prepare-nvram:1:kill", 20, NULL), 0);
    assert_null(
        ask_as_peer(t, with_nvram(json_pack("{s:i, s:[[i, s]]}", "size", 8192, "pieces", 1, "SGVsbG8="))));
    test_agent_stop(t, SIGKILL);
    assert_true(exists(t, "state/vms/web1/nvram.fd"));
    assert_int_equal(test_agent_start(t), 0);
    assert_true(until_gone(t, "state/vms/web1"));
}

/* web1 has moved to hostb, and its old disk is still to go here. */
static void has_gone(void)
{
    struct owner_record rec = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    json_t *files = json_pack("[s]", in_dir(t, "ds/web1-root.raw"));

    assert_int_equal(xm_file_replace(in_dir(t, "ds/web1-root.raw"), "old", 3, NULL), 0);
    assert_int_equal(owner_save(in_dir(t, "state/vms/web1"), "web1", &rec, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_SOURCE, 2, "hostb", NULL, files, NULL), 0);
    json_decref(files);
}

static json_t *comes_back(const char *verb)
{
    json_t *o = prepare_request("5");

    json_object_set_new(o, "verb", json_string(verb));
    json_object_set_new(o, "epoch", json_integer(3));
    return ask_as_peer(t, o);
}

/* What broke: the VM could not come back, and check said that it could. It is somebody else's to end; the
 * disk gets another name. */
static void an_old_disk_that_somebody_has_open_keeps_no_vm_away(void **state)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char *text = NULL;
    size_t len;
    (void)state;
    need_qemu();

    int fd = open(in_dir(t, "ds"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    has_gone();
    int disk = openat(fd, "web1-root.raw", O_RDWR | O_CLOEXEC);
    close(fd);
    assert_int_equal(fcntl(disk, F_OFD_SETLK, &all), 0);
    json_t *o = comes_back("peer.check");
    assert_int_equal(json_array_size(json_object_get(o, "reasons")), 0);
    must(o, 0);
    o = comes_back("peer.prepare");
    const char *path = xm_json_str(json_array_get(json_object_get(o, "disks"), 0), "path", "");
    if (!path[0] || !strcmp(path, in_dir(t, "ds/web1-root.raw")))
        fail_msg("%s", json_dumps(o, 0));
    must(o, 0);
    close(disk);
    assert_int_equal(xm_file_read(in_dir(t, "ds/web1-root.raw"), 10, &text, &len, NULL), 0);
    assert_string_equal(text, "old");
    free(text);
}

/* What broke: only the move itself said so. */
static void a_check_says_that_what_is_left_is_not_known(void **state)
{
    static const char says[] = "what an earlier migration of VM web1 left on hosta cannot be taken away: ";
    (void)state;
    need_qemu();

    has_gone();
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/web1/journal.json"), "{}", 2, NULL), 0);
    json_t *o = comes_back("peer.check");
    const char *reason = json_string_value(json_array_get(json_object_get(o, "reasons"), 0));
    if (!reason || !strstr(reason, says) || !strstr(reason, "journal.json: not a migration's journal"))
        fail_msg("%s", json_dumps(o, 0));
    must(o, 0);
    must_refuse(comes_back("peer.prepare"), 1, says, NULL);
    assert_true(exists(t, "ds/web1-root.raw"));
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
    must(ask_as_peer(t, prepare_request("5")), 3);
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(answer, "token"))),
         0);
    assert_false(exists(t, "ds/web1-root.raw"));
    json_decref(answer);
}

/* What broke: its disk's path stood on the list for some seconds more. Another host, which was tried next,
 * made its disk there, in a datastore of both, and it was deleted once its VM was stopped. */
static void what_was_prepared_in_vain_is_off_the_list(void **state)
{
    (void)state;
    need_qemu();

    assert_int_equal(xm_file_replace(fault, "journal-write:2:error", 21, NULL), 0);
    must(ask_as_peer(t, prepare_request("5")), 1);
    assert_int_not_equal(access(fault, F_OK), 0); /* it has acted */
    assert_int_equal(files_in_ds(), 0);
    assert_true(exists(t, "state/left"));
    assert_int_equal(rmdir(in_dir(t, "state/left")), 0); /* nothing is in it */
    must_live();
}

/* A log that was written so many seconds after 1970. */
static void make_log(const char *vm, unsigned at)
{
    struct timespec when[2] = {{.tv_sec = at}, {.tv_sec = at}};
    char below[100];

    snprintf(below, sizeof below, "state/logs/%s", vm);
    int fd = open(in_dir(t, below), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(futimens(fd, when), 0);
    close(fd);
}

/* What broke: each name that a peer had ever sent had left its logs, for ever. */
static void logs_of_what_is_not_here_do_not_pile_up(void **state)
{
    char log[40];
    (void)state;
    need_qemu();

    for (unsigned i = 0; i < 300; i++) {
        snprintf(log, sizeof log, "gone%u-shim.log", i);
        make_log(log, 1000 + i);
    }
    assert_int_equal(mkdir(in_dir(t, "state/vms/known"), 0700), 0);
    make_log("known-console.log.1", 1);
    make_log("notes.log", 1);
    json_t *answer = must_prepare();
    must(ask_as_peer(t, json_pack("{s:s, s:s, s:O}", "verb", "peer.cancel", "vm", "web1", "token",
                                  json_object_get(answer, "token"))),
         0);
    assert_false(exists(t, "state/logs/gone99-shim.log"));
    assert_true(exists(t, "state/logs/gone110-shim.log"));
    assert_true(exists(t, "state/logs/gone299-shim.log"));
    assert_true(exists(t, "state/logs/known-console.log.1"));
    assert_true(exists(t, "state/logs/notes.log"));
    json_decref(answer);
}

/* As by `umount -l`: what it was mounted over comes to light. */
static void *unmount(void *unused)
{
    char *away = xm_printf("%s", in_dir(t, "ds.away")), *ds = xm_printf("%s", in_dir(t, "ds"));

    for (struct limit l = limit_start(10); access(fault, F_OK) == 0 && limit_wait(&l);)
        ;
    if (rename(ds, away) < 0 || mkdir(ds, 0700) < 0)
        perror(ds);
    free(away);
    free(ds);
    return unused;
}

/* What broke: its datastore was looked at, unmounted, and the disks were made where it had been mounted. The
 * move was done; the next mount hid them. */
static void a_datastore_that_goes_meanwhile_gets_no_disk(void **state)
{
    pthread_t thread;
    (void)state;
    need_qemu();

    assert_int_equal(xm_file_replace(fault, "prepare-journaled:1:delay=1000", 30, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, unmount, NULL), 0);
    must_refuse(ask_as_peer(t, prepare_request("5")), 1, "is it mounted?", NULL);
    pthread_join(thread, NULL);
    assert_false(exists(t, "ds/web1-root.raw"));
    assert_int_equal(rmdir(in_dir(t, "ds")), 0);
    char *ds = xm_printf("%s", in_dir(t, "ds"));
    assert_int_equal(rename(in_dir(t, "ds.away"), ds), 0);
    free(ds);
    must_live();
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, agent_set_up, agent_tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(hostile_requests_to_prepare_make_nothing),
        TEST(a_probe_decides_what_is_shared),
        TEST(a_host_of_another_name_takes_no_vm),
        cmocka_unit_test_setup_teardown(who_was_shown_a_probe_cannot_show_it_back, peer_set_up,
                                        peer_tear_down),
        TEST(the_disk_of_another_vm_is_not_shared),
        TEST(a_check_settles_nothing),
        TEST(a_vm_that_a_third_host_has_is_not_taken),
        TEST(prepare_makes_disks_and_cancel_takes_all_away),
        TEST(another_peer_does_not_cancel_it),
        TEST(a_vm_may_have_no_disks),
        TEST(the_firmwares_variables_come_with_the_request),
        TEST(variables_of_a_killed_prepare_do_not_stay),
        TEST(an_old_disk_that_somebody_has_open_keeps_no_vm_away),
        TEST(a_check_says_that_what_is_left_is_not_known),
        TEST(a_link_with_the_token_gets_to_the_shim),
        TEST(what_was_made_for_a_dead_migration_is_deleted_by_the_next_agent),
        TEST(an_incoming_vm_is_still_expected_by_the_next_agent),
        TEST(what_was_prepared_in_vain_is_off_the_list),
        TEST(a_datastore_that_goes_meanwhile_gets_no_disk),
        TEST(logs_of_what_is_not_here_do_not_pile_up),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    snprintf(fault, sizeof fault, "@/tmp/xmt-prepare-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    status = cmocka_run_group_tests_name("agent: what a peer has prepared", tests, NULL, NULL);
    unlink(fault);
    return status;
}
