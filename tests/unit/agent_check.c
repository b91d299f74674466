/* SPDX-License-Identifier: MIT */
/* What a host cannot do is said when its agent starts and before anything is copied: agents from which it is
 * kept. */
#include "agent/admission.h"
#include "probe/probe.h"
#include "tests/unit/lib_agent.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "tests/progress.h"

#define CANNOT "the memory of VMs cannot be tracked on this kernel"

static struct test_agent agent;
static struct test_agent *const t = &agent;

static int make(void **state)
{
    (void)state;
    return test_agent_make(t, 7);
}

static int take_away(void **state)
{
    (void)state;
    test_agent_remove(t);
    return 0;
}

static bool one_says(const json_t *reasons, const char *part)
{
    const json_t *v;
    size_t i;

    json_array_foreach (reasons, i, v) {
        if (strstr(json_string_value(v), part))
            return true;
    }
    return false;
}

static bool log_says(const char *part)
{
    char *log = NULL;
    size_t len;
    bool yes = !xm_file_read(in_dir(t, "agent.log"), 1 << 20, &log, &len, NULL) && strstr(log, part);

    free(log);
    return yes;
}

/* As hostb: would you take this VM? */
static json_t *reasons_as_destination(void)
{
    json_t *o = json_pack(
        "{s:s, s:b, s:i, s:i, s:s, s:[i], s:s, s:{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, "
        "s:s, s:i, s:s, s:i}], s:[]}}",
        "verb", "peer.check", "storage", 1, "epoch", 1, "protocol", AGENT_PROTOCOL, "job", "5", "used", 4096,
        "datastore", "ds", "vm", "name", "web2", "memory", 16 << 20, "vcpus", 1, "qemu", "qemu-system-x86_64",
        "machine", "q35", "accel", "tcg", "cpu", "max", "disks", "name", "root", "path", "/dev/loop0", "size",
        1 << 20, "datastore", "", "queues", 1, "nics");
    json_t *answer = ask_as_peer(t, o), *reasons = json_incref(json_object_get(answer, "reasons"));

    assert_true(xm_json_bool(answer, "ok", false));
    json_decref(answer);
    return reasons;
}

static json_t *start(void)
{
    return ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini")));
}

static void both_sides_say_that_memory_cannot_be_tracked(void **state)
{
    (void)state;
    for (int denied = 0; denied < 2; denied++) {
        t->deny = denied ? DENY_SCAN : DENY_NOTHING;
        assert_int_equal(test_agent_start(t), 0);
        assert_int_equal(log_says(CANNOT), denied);
        json_t *reasons = reasons_as_destination();
        assert_int_equal(one_says(reasons, CANNOT), denied);
        json_decref(reasons);
        json_t *answer = start(); /* a VM may run here all the same */
        if (!xm_json_bool(answer, "ok", false))
            fail_msg("%s", json_dumps(answer, 0));
        json_decref(answer);
        answer = ask(t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "host", "hostb",
                                  "storage", 1));
        assert_int_equal(one_says(json_object_get(answer, "reasons"), CANNOT), denied);
        json_decref(answer);
        answer = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1));
        assert_true(xm_json_bool(answer, "ok", false));
        json_decref(answer);
        test_agent_stop(t, SIGTERM);
    }
}

/* What broke: who wrote `xmigrate reboot web1`, as other tools have it, was told of a missing [peer web1]. */
static void a_move_of_no_vm_to_no_host_names_the_vm(void **state)
{
    (void)state;
    assert_int_equal(test_agent_start(t), 0);
    json_t *answer = ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "reboot", "host", "web1"));
    assert_string_equal(xm_json_str(answer, "error", ""), "there is no VM 'reboot' on hosta");
    json_decref(answer);
    json_decref(start());
    answer = ask(t, json_pack("{s:s, s:s, s:s}", "verb", "move", "vm", "web1", "host", "hostx"));
    assert_string_equal(xm_json_str(answer, "error", ""), "hosta has no [peer hostx] in its configuration");
    assert_int_equal(xm_json_int(answer, "exit", 0), 3);
    json_decref(answer);
    answer = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)); /* was let go */
    assert_true(xm_json_bool(answer, "ok", false));
    json_decref(answer);
}

/* All was copied, and then the source said that it cannot be. */
static void a_budget_that_no_switch_can_keep_is_refused_by_check(void **state)
{
    static const char says[] = "beyond the budget of 19.0 ms: it needs --downtime 20 at least";
    (void)state;

    assert_int_equal(test_agent_start(t), 0);
    json_decref(start());
    for (int ms = 19; ms <= 20; ms++) {
        json_t *answer = ask(t, json_pack("{s:s, s:s, s:s, s:b, s:{s:i}}", "verb", "check", "vm", "web1",
                                          "host", "hostb", "storage", 1, "options", "downtime_ms", ms));
        json_t *reasons = json_object_get(answer, "reasons");
        if (ms == 19 ? !one_says(reasons, says) : one_says(reasons, "needs --downtime"))
            fail_msg("%s", json_dumps(answer, 0));
        json_decref(answer);
    }
    /* A VM whose last moves took 60 ms was let stand still for as long against a budget of 50. */
    json_t *took = json_pack("{s:[i, i, i]}", "took_ns", 60000000, 70000000, 65000000);
    assert_int_equal(xm_json_save(in_dir(t, "state/vms/web1/switch.json"), took, NULL), 0);
    json_decref(took);
    json_t *late = ask(t, json_pack("{s:s, s:s, s:s, s:b, s:{s:i}}", "verb", "check", "vm", "web1", "host",
                                    "hostb", "storage", 1, "options", "downtime_ms", 50));
    if (!one_says(
            json_object_get(late, "reasons"),
            "by its last moves, which is beyond the budget of 50.0 ms: it needs --downtime 61 at least"))
        fail_msg("%s", json_dumps(late, 0));
    json_decref(late);
    json_t *answer = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1));
    assert_true(xm_json_bool(answer, "ok", false));
    json_decref(answer);
}

/* The move would have prepared the destination first. */
static void a_qemu_that_does_not_answer_is_a_reason(void **state)
{
    (void)state;

    assert_int_equal(test_agent_start(t), 0);
    json_decref(start());
    for (int hangs = 0; hangs < 2; hangs++) {
        if (hangs)
            assert_int_equal(xm_file_replace(in_dir(t, "run/vms/web1/hangs"), "", 0, NULL), 0);
        json_t *answer = ask(t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "host",
                                          "hostb", "storage", 1));
        if (one_says(json_object_get(answer, "reasons"),
                     "QEMU of VM web1 does not answer: no answer in time") != hangs)
            fail_msg("%s", json_dumps(answer, 0));
        json_decref(answer);
    }
    json_t *answer = ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1));
    assert_true(xm_json_bool(answer, "ok", false));
    json_decref(answer);
}

/* As a destination: of images in the directories that its configuration names. */
static void another_disc_of_the_same_path_is_refused(void **state)
{
    static const struct {
        unsigned mode;
        int bytes;
        const char *says;
    } ways[] = {{0644, 5, NULL},
                {0644, 6, "has 6 bytes on hostb and 5 on hosta, so it is another disc"},
                {0600, 5, "and not everybody may read it"}};
    char how[200];
    (void)state;

    snprintf(how, sizeof how, "s|^kernels = .*|&\\nimages = %s/iso|", t->dir);
    const char *const argv[] = {"sed", "-i", how, in_dir(t, "conf"), NULL};
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
    assert_int_equal(mkdir(in_dir(t, "iso"), 0755), 0);
    FILE *f = fopen(in_dir(t, "iso/a.iso"), "we");
    fputs("12345", f);
    fclose(f);
    assert_int_equal(test_agent_start(t), 0);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        assert_int_equal(chmod(in_dir(t, "iso/a.iso"), ways[i].mode), 0);
        json_t *o = prepare_request("");
        json_object_set_new(o, "verb", json_string("peer.check"));
        json_object_set_new(json_object_get(o, "vm"), "cdroms",
                            json_pack("[{s:s, s:s}]", "name", "c", "path", in_dir(t, "iso/a.iso")));
        json_object_set_new(o, "cdrom_bytes", json_pack("[i]", ways[i].bytes));
        json_t *answer = ask_as_peer(t, o), *reasons = json_object_get(answer, "reasons");
        if (ways[i].says ? !one_says(reasons, ways[i].says) : one_says(reasons, "a.iso"))
            fail_msg("%s", json_dumps(answer, 0));
        json_decref(answer);
    }
}

/* «Has no program» was said of a QEMU that could not be asked with KVM. */
static void without_kvm_a_vm_for_it_is_refused_by_that_name(void **state)
{
    (void)state;
    FILE *f = fopen(in_dir(t, "spec.ini"), "we");

    fprintf(f, "[vm]\nname = web1\nmemory = 16M\naccel = kvm\n");
    fclose(f);
    t->deny = DENY_KVM;
    assert_int_equal(test_agent_start(t), 0);
    json_t *answer = start();
    assert_false(xm_json_bool(answer, "ok", false));
    if (!strstr(xm_json_str(answer, "error", ""),
                "web1 needs KVM and hosta has none: /dev/kvm cannot be used"))
        fail_msg("%s", json_dumps(answer, 0));
    json_decref(answer);
}

static void write_vm(const char *lines)
{
    FILE *f = fopen(in_dir(t, "spec.ini"), "we");

    fprintf(f,
            "[vm]\nname = web1\nmemory = 16M\n%s\n[disk root]\ndatastore = ds\nfile = web1.raw\nsize = 1M\n",
            lines);
    fclose(f);
}

static void start_must_say(const char *lines, const char *part)
{
    write_vm(lines);
    json_t *answer = start();
    const char *error = xm_json_str(answer, "error", "");

    if (xm_json_int(answer, "exit", 0) != 3 || !strstr(error, part))
        fail_msg("%s: %s", lines, json_dumps(answer, 0));
    json_decref(answer);
    assert_false(exists(t, "ds/web1.raw")); /* refused before anything was made */
}

/* QEMU was started with each of them, and the user read its last words. */
static void what_qemu_would_not_take_is_refused_by_name(void **state)
{
    (void)state;
    assert_int_equal(test_agent_start(t), 0);
    start_must_say("accel = tcg\ncpu = Skilake", "QEMU does not know the CPU 'Skilake' with tcg");
    start_must_say("accel = tcg\ncpu = qemu64,+sse4_1,+foo,-bar",
                   "QEMU knows no flag 'foo' of the CPU 'qemu64'");
    start_must_say("accel = tcg\ncpu = qemu64,foo", "QEMU knows no flag 'foo' of the CPU 'qemu64'");
    start_must_say("accel = tcg\ncpu = host",
                   "the CPU 'host' is the processor's own, which only KVM can give");
    start_must_say("accel = tcg\nmachine = pc-q35-0.1",
                   "has no machine type 'pc-q35-0.1'; it has, for one, pc-q35-");
    start_must_say("accel = tcg\nmachine = q36", "has no machine type 'q36'; it has, for one, pc-q35-");
    start_must_say("accel = tcg\nmachine = q35,foo=bar", "cannot make the machine 'pc-q35-");
    start_must_say("accel = tcg\nmachine = microvm", "the machine 'microvm' of QEMU ");
    start_must_say("accel = tcg\nmachine = isapc", "has no PCI bus, which the disks, ");
    start_must_say("accel = tcg\nmachine = none", "has no PCI bus, which the disks, ");
    write_vm("accel = tcg\nmachine = q35,usb=off\ncpu = qemu64,+sse4_1,-svm,aes=on,vendor=GenuineIntel");
    json_t *answer = start();
    if (!xm_json_bool(answer, "ok", false))
        fail_msg("%s", json_dumps(answer, 0));
    json_decref(answer);
}

/* accel = kvm in so many words was believed where accel unset was probed. */
static void a_partial_kvm_is_refused_by_that_name(void **state)
{
    (void)state;
    struct xm_error why = {0};

    if (kvm_probe(&why) != KVM_PART) {
        print_message("skipped: no /dev/kvm here, or one that runs every guest\n");
        skip();
    }
    assert_int_equal(test_agent_start(t), 0);
    start_must_say("accel = kvm",
                   "web1 needs KVM and that of hosta runs no ordinary guest: KVM does not run a guest");
}

static void a_host_without_qemu_says_so_when_its_agent_starts(void **state)
{
    (void)state;
    char *path = xm_printf("%s", getenv("PATH"));

    setenv("PATH", in_dir(t, "ds"), 1);
    assert_int_equal(test_agent_start(t), 0);
    setenv("PATH", path, 1);
    free(path);
    assert_true(
        log_says("host hosta has no program qemu-system-x86_64 (in Debian: package qemu-system-x86)"));
    json_t *answer = start();
    assert_non_null(
        strstr(xm_json_str(answer, "error", ""), "no program 'qemu-system-x86_64' (in Debian: package"));
    json_decref(answer);
}

/* KVM only where it can run an ordinary guest; else the user is told of software emulation, and why. */
static void without_accel_a_vm_gets_what_works(void **state)
{
    (void)state;
    struct xm_error why = {0};
    bool kvm = kvm_probe(&why) == KVM_WHOLE;
    FILE *f = fopen(in_dir(t, "spec.ini"), "we");

    fprintf(f, "[vm]\nname = web1\nmemory = 16M\n[disk root]\ndatastore = ds\nfile = web1.raw\nsize = 1M\n");
    fclose(f);
    assert_int_equal(test_agent_start(t), 0);
    json_t *answer = start();
    const char *note = xm_json_str(answer, "note", "");
    assert_true(xm_json_bool(answer, "ok", false));
    if (kvm)
        assert_string_equal(note, "");
    else
        assert_true(strstr(note, "web1 runs by software emulation") && strstr(note, why.text));
    json_decref(answer);
    answer = ask(t, json_pack("{s:s, s:s}", "verb", "show", "vm", "web1"));
    char *text = json_dumps(answer, 0);
    assert_non_null(strstr(text, kvm ? "\"accel\": \"kvm\"" : "\"accel\": \"tcg\""));
    free(text);
    json_decref(answer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(both_sides_say_that_memory_cannot_be_tracked, make, take_away),
        cmocka_unit_test_setup_teardown(a_move_of_no_vm_to_no_host_names_the_vm, make, take_away),
        cmocka_unit_test_setup_teardown(a_budget_that_no_switch_can_keep_is_refused_by_check, make,
                                        take_away),
        cmocka_unit_test_setup_teardown(a_qemu_that_does_not_answer_is_a_reason, make, take_away),
        cmocka_unit_test_setup_teardown(another_disc_of_the_same_path_is_refused, make, take_away),
        cmocka_unit_test_setup_teardown(without_kvm_a_vm_for_it_is_refused_by_that_name, make, take_away),
        cmocka_unit_test_setup_teardown(what_qemu_would_not_take_is_refused_by_name, make, take_away),
        cmocka_unit_test_setup_teardown(a_partial_kvm_is_refused_by_that_name, make, take_away),
        cmocka_unit_test_setup_teardown(a_host_without_qemu_says_so_when_its_agent_starts, make, take_away),
        cmocka_unit_test_setup_teardown(without_accel_a_vm_gets_what_works, make, take_away),
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    if (!qemu_facts("qemu-system-x86_64", NULL)) {
        printf("skipped: qemu-system-x86_64 is not installed\n");
        return 0;
    }
    return cmocka_run_group_tests_name("host: what it cannot do", tests, NULL, NULL);
}
