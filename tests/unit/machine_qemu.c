/* SPDX-License-Identifier: MIT */
/* What a QEMU is asked, and the arguments that follow from what it says. */
#include "machine/qemu.h"
#include "tests/progress.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char fault[64]; /* a fault point (base/fault.h) */

static bool has(char **args, const char *option, const char *part)
{
    for (char **a = args; a[0] && a[1]; a++) {
        if (!strcmp(a[0], option) && strstr(a[1], part))
            return true;
    }
    return false;
}

static char **arguments(bool reconnect_ms)
{
    static struct vm_spec vm;
    struct qemu_facts knows = {.reconnect_ms = reconnect_ms};

    vm = (struct vm_spec){.name = "web1",
                          .memory = 256 << 20,
                          .vcpus = 2,
                          .qemu = (char *)"qemu-system-x86_64",
                          .machine = (char *)"pc-q35-7.2",
                          .accel = (char *)"tcg",
                          .disks = 1,
                          .disk = {{.name = "root"}}};
    return qemu_arguments(&vm, &knows, &(struct qemu_place){.host = "hosta", .run_dir = "/run/x"});
}

static void folder_of(const char *path, char *to, size_t size)
{
    snprintf(to, size, "%s", path);
    *strrchr(to, '/') = 0;
}

/* QEMU 11 knows reconnect-ms alone, 7.2 reconnect alone. */
static void reconnect_is_what_qemu_knows(void **state)
{
    (void)state;
    char **new = arguments(true), **old = arguments(false);
    assert_true(has(new, "-chardev", "disk-root.sock,reconnect-ms=1000"));
    assert_true(has(old, "-chardev", "disk-root.sock,reconnect=1"));
    qemu_arguments_free(new);
    qemu_arguments_free(old);
}

/* QEMU from 8.1 on sends all other kinds of RAM in its stream, x-ignore-shared or not. */
static void ram_is_a_named_shared_file(void **state)
{
    (void)state;
    char **args = arguments(true);
    assert_true(
        has(args, "-object", "memory-backend-file,id=mem0,size=256M,share=on,mem-path=/proc/self/fd/3"));
    qemu_arguments_free(args);
}

static struct vm_spec with_all_devices(void)
{
    return (struct vm_spec){.name = "web1",
                            .memory = 16 << 20,
                            .vcpus = 1,
                            .qemu = (char *)"qemu-system-x86_64",
                            .machine = (char *)"q35",
                            .accel = (char *)"tcg",
                            .cdroms = 1,
                            .cdrom = {{.name = "seed", .path = (char *)"/srv/a=b.iso", .boot = 1}},
                            .devices = {.rng = true,
                                        .balloon = true,
                                        .guest_agent = true,
                                        .tablet = true,
                                        .clock = (char *)"localtime",
                                        .vnc = (char *)"unix",
                                        .uuid = (char *)"123e4567-e89b-12d3-a456-426614174000",
                                        .smbios_product = (char *)"web",
                                        .smbios_serial = (char *)"ds=x;y"}};
}

static size_t place(char **args, const char *part)
{
    for (size_t i = 0; args[i]; i++) {
        if (strstr(args[i], part))
            return i;
    }
    fail_msg("%s is not there", part);
    return 0;
}

/* A VM that is running, and that came from an earlier version, has its disks and NICs in their places. */
static void new_devices_stand_behind_the_others(void **state)
{
    (void)state;
    struct qemu_facts knows = {0};
    struct qemu_place at = {.run_dir = "/run/x", .vnc_address = "fd00::1"};
    struct vm_spec vm = with_all_devices();
    char *extra[] = {(char *)"-device", (char *)"pvpanic", NULL};

    vm.extra = extra;
    vm.nics = 1;
    vm.nic[0] = (struct vm_nic){.name = "lan", .tap = "t0", .mac = "52:54:00:00:00:01"};
    char **a = qemu_arguments(&vm, &knows, &at);
    static const char *const order[] = {"virtio-net-pci", "ide-cd",      "VGA",
                                        "qemu-xhci",      "usb-tablet",  "virtio-serial",
                                        "virtio-rng-pci", "balloon-pci", "pvpanic"};
    for (size_t i = 1; i < sizeof order / sizeof *order; i++)
        assert_true(place(a, order[i - 1]) < place(a, order[i]));
    assert_true(has(a, "-vnc", "unix:/proc/self/fd/5/vnc.sock"));
    assert_true(has(a, "-smbios", "type=1,product=web,serial=ds=x;y"));
    assert_true(has(a, "-device", "ide-cd,id=cdrom-seed,drive=cd-seed,bootindex=1"));
    assert_true(has(a, "-blockdev", "\"read-only\":true"));
    qemu_arguments_free(a);
    vm.devices.vnc = (char *)"7";
    vm.devices.vnc_password = (char *)"pw";
    a = qemu_arguments(&vm, &knows, &at);
    assert_true(has(a, "-vnc", "[fd00::1]:7,password-secret=vnc-password"));
    for (size_t i = 0; a[i]; i++)
        assert_null(strstr(a[i], "=pw")); /* every user of the host sees the command line */
    qemu_arguments_free(a);
}

static void firmware_with_variables_is_flash(void **state)
{
    (void)state;
    struct qemu_facts knows = {0};
    struct qemu_place at = {.run_dir = "/run/x", .nvram = "/s/web1/nvram.fd"};
    struct vm_spec vm = with_all_devices();

    vm.firmware = (char *)"/f/CODE.fd";
    char **a = qemu_arguments(&vm, &knows, &at);
    assert_true(has(a, "-bios", "/proc/self/fd/12"));
    assert_false(has(a, "-drive", "pflash"));
    qemu_arguments_free(a);
    vm.nvram = (char *)"/f/VARS.fd";
    a = qemu_arguments(&vm, &knows, &at);
    assert_false(has(a, "-bios", ""));
    assert_true(has(a, "-drive",
                    "if=pflash,unit=0,format=raw,readonly=on,file.driver=file,file.filename=/dev/fdset/12"));
    assert_true(has(a, "-drive", "if=pflash,unit=1,format=raw,file.driver=file,file.filename=/dev/fdset/13"));
    for (size_t i = 0; a[i]; i++)
        assert_null(strstr(a[i], "VARS")); /* the template is nobody's to write to */
    qemu_arguments_free(a);
}

/* As 7.2 and 10.0 say it: the latter with two columns more. */
static void ram_blocks_are_summed(void **state)
{
    (void)state;
    assert_int_equal(
        qemu_ramblocks_sum(
            "              Block Name    PSize              Offset               Used              Total\r\n"
            "                    mem0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000\r\n"
            "    /rom@etc/acpi/tables    4 KiB  0x0000000005100000 0x0000000000020000 "
            "0x0000000000200000\r\n"),
        0x4020000);
    assert_int_equal(qemu_ramblocks_sum("  Block Name    PSize  Offset   Used   Total   HVA  RO\n"
                                        " a 0xb    2 MiB  0x0000000000000000 0x0000000004000000 "
                                        "0x0000000005000000 0x00007f802be00000  rw\n"),
                     0x4000000);
    assert_int_equal(
        qemu_ramblock_used(
            "              Block Name    PSize              Offset               Used              Total\r\n"
            "                    mem0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000\r\n"
            "                pc.bios2    4 KiB  0x0000000000000000 0x0000000000000001 0x0000000000000001\r\n"
            "                 pc.bios    4 KiB  0x0000000004000000 0x0000000000200000 0x0000000000200000\r\n",
            "pc.bios"),
        0x200000);
    assert_int_equal(qemu_ramblock_used("", "pc.bios"), 0);
    assert_int_equal(qemu_ramblocks_sum("unknown command: 'info ramblock'\r\n"), 0);
    assert_int_equal(qemu_ramblocks_sum(""), 0);
}

/* Where QEMU has one. A Debian's has. */
static void it_is_sandboxed(void **state)
{
    (void)state;
    static struct vm_spec vm;
    struct qemu_facts knows = {.sandbox = true};

    vm = (struct vm_spec){.name = "web1", .memory = 256 << 20, .vcpus = 1, .machine = (char *)"pc"};
    struct qemu_place at = {.host = "hosta", .run_dir = "/run/x"};
    char **args = qemu_arguments(&vm, &knows, &at);
    assert_true(
        has(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"));
    qemu_arguments_free(args);
    args = arguments(true);
    assert_false(has(args, "-sandbox", "on"));
    qemu_arguments_free(args);
}

static const struct qemu_facts *real(void)
{
    struct xm_error e = {0};
    const struct qemu_facts *q = qemu_facts("qemu-system-x86_64", &e);

    if (!q) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    return q;
}

/* What is advised when a machine type is not known. */
static void a_machine_that_both_know_is_found(void **state)
{
    (void)state;
    struct qemu_facts q = {.machines = json_pack("[{s:s}, {s:s}, {s:s}, {s:s}, {s:s}]", "name", "pc-q35-9.2",
                                                 "name", "pc-q35-10.0", "name", "pc-i440fx-10.0", "name",
                                                 "none", "name", "pc-q35-7.2")};
    char like[64];

    qemu_facts_machine_like(&q, "pc-q35-2.4,usb=off", NULL, like);
    assert_string_equal(like, "pc-q35-10.0"); /* by number, not by letter */
    qemu_facts_machine_like(&q, "pc-q35-2.4", "9.2.1", like);
    assert_string_equal(like, "pc-q35-9.2");
    qemu_facts_machine_like(&q, "pc-i440fx-2.4", "9.2.1", like); /* it has none that the other knows */
    assert_string_equal(like, "");
    qemu_facts_machine_like(&q, "foo", "8.0", like);
    assert_string_equal(like, "pc-q35-7.2");
    json_decref(q.machines);
}

static void a_real_one_says_what_it_is(void **state)
{
    (void)state;
    const struct qemu_facts *q = real();
    char full[128];

    assert_true(q->version[0] >= '1' && strchr(q->version, '.'));
    assert_true(q->sandbox);
    assert_true(qemu_facts_machine(q, "q35,usb=off", full));
    assert_memory_equal(full, "pc-q35-", 7);
    assert_non_null(strstr(full, ",usb=off"));
    assert_true(qemu_facts_machine(q, "pc-q35-7.2", full) || q->version[0] < '7');
    assert_false(qemu_facts_machine(q, "pc-q35", full));
    /* The same question is not asked twice. */
    assert_ptr_equal(qemu_facts("qemu-system-x86_64", NULL), q);
}

static bool sees(const char *cpu, const char *feature)
{
    struct xm_error e = {0};
    json_t *list = qemu_facts_cpu("qemu-system-x86_64", "tcg", cpu, &e), *v;
    bool found = false;
    size_t i;

    if (!list)
        fail_msg("%s", e.text);
    json_array_foreach (list, i, v)
        found = found || !strcmp(json_string_value(v), feature);
    json_decref(list);
    return found;
}

static void a_real_one_says_what_its_cpus_have(void **state)
{
    (void)state;
    real();
    assert_true(sees("max", "avx2"));
    assert_false(sees("qemu64", "avx2"));
    assert_true(sees("qemu64,+avx2", "avx2"));
    assert_false(sees("max,avx2=off", "avx2"));
    assert_false(sees("Skylake-Server", "avx512f")); /* TCG cannot give it, whatever the model says */
    struct xm_error e = {0};
    assert_null(qemu_facts_cpu("qemu-system-x86_64", "tcg", "i387dx", &e));
    assert_non_null(strstr(e.text, "does not know the CPU 'i387dx'"));
}

/* A package upgrade puts another file in its place. */
static void another_program_in_its_place_is_asked_anew(void **state)
{
    (void)state;
    const char *path = tmpdir_write(
        "qemu-system-test", "#!/bin/sh\necho x >>$(dirname $0)/asked\necho it is broken >&2\nexit 1\n");
    struct xm_error e = {0};
    char *asked = NULL;
    size_t len;

    real();
    chmod(path, 0755);
    for (int i = 0; i < 3; i++) { /* a failure is believed for a while */
        e = (struct xm_error){0};
        assert_null(qemu_facts(path, &e));
        assert_non_null(strstr(e.text, "it is broken"));
    }
    assert_int_equal(xm_file_read(tmpdir_path("asked"), 100, &asked, &len, NULL), 0);
    assert_string_equal(asked, "x\n");
    free(asked);
    /* Another file: the old one may not be written over, or it might have the same time. */
    const char *good = tmpdir_write("good", "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n");
    chmod(good, 0755);
    assert_int_equal(rename(good, path), 0);
    const struct qemu_facts *q = qemu_facts(path, &e);
    assert_non_null(q);
    assert_ptr_equal(qemu_facts(path, &e), q);
    const char *other = tmpdir_write("other", "#!/bin/sh\nexit 0\n");
    chmod(other, 0755);
    assert_int_equal(rename(other, path), 0);
    assert_null(qemu_facts(path, &e));
    assert_non_null(strstr(e.text, "does not answer by QMP"));
}

/* Whatever it is: it can be asked, and a guest is not harmed by it. */
static void a_real_one_says_how_large_its_rings_are(void **state)
{
    const struct qemu_facts *q = qemu_facts("qemu-system-x86_64", NULL);

    (void)state;
    if (!q)
        skip();
    bool large = qemu_facts_large_rings("qemu-system-x86_64");
    print_message("QEMU %s: %s\n", q->version,
                  large ? "larger than its devices'" : "as its devices have them");
    assert_int_equal(large, qemu_facts_large_rings("qemu-system-x86_64"));
    if (!strncmp(q->version, "7.2.", 4))
        assert_false(large);
    if (!strcmp(q->version, "10.0.13"))
        assert_true(large);
    assert_false(qemu_facts_large_rings("no-such-qemu"));
}

/* Starts in the directory of the test; what it says of a file is not for a peer. */
static void it_starts_at_the_root_and_a_peer_does_not_hear_it(void **state)
{
    (void)state;
    real();
    const char *path =
        tmpdir_write("qemu-system-test", "#!/bin/sh\ncase \"$*\" in\n*web1*) echo in $(pwd); echo "
                                         "the first line of a file >&2; exit 1 ;;\nesac\nexec "
                                         "qemu-system-x86_64 \"$@\"\n");
    struct vm_spec vm = {.name = "web1",
                         .memory = 2 << 20,
                         .vcpus = 1,
                         .qemu = (char *)path,
                         .machine = (char *)"q35",
                         .accel = (char *)"tcg"};
    char run[100], *log = NULL;
    size_t len;

    folder_of(path, run, sizeof run);
    chmod(path, 0755);
    for (int incoming = 0; incoming < 2; incoming++) {
        struct qemu_place at = {.host = "hostb", .run_dir = run, .incoming = incoming};
        struct xm_error e = {0};
        struct qemu q;
        qemu_init(&q);
        assert_true(qemu_start(&q, &vm, &at, &e) < 0);
        if (!strstr(e.text, incoming ? "see qemu.log on hostb (logs/web1-qemu.log in its state directory)"
                                     : "the first line of a file") ||
            (incoming && strstr(e.text, "a file")))
            fail_msg("%s", e.text);
        assert_int_equal(xm_file_read(tmpdir_path("qemu.log"), 1000, &log, &len, NULL), 0);
        assert_non_null(strstr(log, "in /\n"));
        free(log);
    }
}

/* QEMU itself takes all of it, and shows it. */
static void a_real_one_has_the_devices(void **state)
{
    (void)state;
    real();
    const char *iso = tmpdir_write("a=b.iso", "");
    char run[100];
    struct vm_spec vm = with_all_devices();
    struct xm_error e = {0};
    struct qemu q;

    folder_of(iso, run, sizeof run);
    assert_int_equal(truncate(iso, 4096), 0);
    vm.cdrom[0].path = (char *)iso;
    struct qemu_place at = {.host = "hosta", .run_dir = run, .vnc_address = "127.0.0.1"};
    for (int virtio = 0; virtio < 2; virtio++) {
        if (virtio) {
            vm.devices.video = (char *)"virtio";
            vm.devices.vnc = (char *)"613";
            vm.devices.vnc_password = (char *)"pw";
        }
        qemu_init(&q);
        if (qemu_start(&q, &vm, &at, &e) < 0)
            fail_msg("%s", e.text);
        struct stat st;
        assert_int_equal(stat(tmpdir_path("qga.sock"), &st), 0);
        if (!virtio)
            assert_int_equal(stat(tmpdir_path("vnc.sock"), &st), 0);
        json_t *vnc = qmp_call(&q.qmp, "query-vnc", NULL, 10 * XM_NS_PER_S, &e);
        assert_true(xm_json_bool(vnc, "enabled", false));
        assert_string_equal(xm_json_str(vnc, "auth", ""), virtio ? "vnc" : "none");
        json_decref(vnc);
        json_t *uuid = qmp_call(&q.qmp, "query-uuid", NULL, 10 * XM_NS_PER_S, &e);
        assert_string_equal(xm_json_str(uuid, "UUID", ""), vm.devices.uuid);
        json_decref(uuid);
        json_t *balloon = qmp_call(&q.qmp, "query-balloon", NULL, 10 * XM_NS_PER_S, &e);
        assert_int_equal(xm_json_int(balloon, "actual", 0), vm.memory);
        json_decref(balloon);
        qemu_end(&q, &vm);
    }
}

/* As it has it in its memory: the file may be another one by now. */
static void a_real_one_says_how_large_its_firmware_is(void **state)
{
    (void)state;
    struct vm_spec vm = {.name = "w1",
                         .memory = 16 << 20,
                         .vcpus = 1,
                         .machine = (char *)"q35",
                         .accel = (char *)"tcg",
                         .cpu = (char *)"qemu64",
                         .qemu = (char *)"qemu-system-x86_64"};
    struct xm_error e = {0};
    struct qemu q;

    real();
    const char *code = tmpdir_write("code.fd", ""), *vars = tmpdir_write("vars.fd", "");
    assert_int_equal(truncate(code, 256 << 10) || truncate(vars, 64 << 10), 0);
    vm.firmware = (char *)code;
    for (int flash = 0; flash < 2; flash++) {
        vm.nvram = flash ? (char *)"/template" : NULL;
        struct qemu_place at = {.host = "hosta", .run_dir = tmpdir_path(""), .nvram = vars};
        qemu_init(&q);
        if (qemu_start(&q, &vm, &at, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(qemu_firmware_size(&q), 256 << 10);
        qemu_end(&q, &vm);
    }
}

/* Takes what comes of one migration after the other, until the socket is shut down. */
static void *swallow(void *arg)
{
    int listener = *(int *)arg, fd;
    static char buf[1 << 16];

    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        while (read(fd, buf, sizeof buf) > 0)
            ;
        close(fd);
    }
    return NULL;
}

static void on_stop(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    (void)data, (void)when;
    if (!strcmp(name, "STOP"))
        *(bool *)ctx = true;
}

/* In 7.2 one in six was «cancelling» for ever, and the VM stood still: an abort at that moment, a link that
 * was lost. */
static void a_real_one_is_cancelled_at_the_moment_of_its_stop(void **state)
{
    (void)state;
    static const char *const caps[] = {"events", "pause-before-switchover", "x-ignore-shared"};
    struct vm_spec vm = {.name = "w1",
                         .memory = 16 << 20,
                         .vcpus = 1,
                         .machine = (char *)"q35",
                         .accel = (char *)"tcg",
                         .cpu = (char *)"qemu64",
                         .qemu = (char *)"qemu-system-x86_64"};
    struct xm_error e = {0};
    struct qemu q;
    pthread_t thread;
    bool stopped;

    real();
    int listener = xm_unix_listen(tmpdir_path("mig.sock"), &e);
    assert_true(listener >= 0);
    assert_int_equal(pthread_create(&thread, NULL, swallow, &listener), 0);
    qemu_init(&q);
    if (qemu_start(&q, &vm, &(struct qemu_place){.host = "hosta", .run_dir = tmpdir_path("")}, &e) < 0)
        fail_msg("%s", e.text);
    q.qmp.event = on_stop;
    q.qmp.ctx = &stopped;
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        json_array_append_new(list, json_pack("{s:s s:b}", "capability", caps[i], "state", 1));
    assert_int_equal(qmp_do(&q.qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list),
                            LIMIT_HANG_NS, &e),
                     0);
    for (int i = 0; i < 30; i++) {
        char *uri = xm_printf("unix:%s", tmpdir_path("mig.sock"));
        assert_int_equal(qemu_continue(&q, LIMIT_HANG_NS, &e), 0);
        stopped = false;
        assert_int_equal(qmp_do(&q.qmp, "migrate", json_pack("{s:s}", "uri", uri), LIMIT_HANG_NS, &e), 0);
        free(uri);
        for (struct limit l = limit_start(20); !stopped && !limit_over(&l);) /* at once */
            qmp_pump(&q.qmp, 20, &e);
        assert_true(stopped);
        /* Without first asking how it is: that takes the moment that it is about. */
        assert_int_equal(qmp_do(&q.qmp, "migrate_cancel", NULL, LIMIT_HANG_NS, &e), 0);
        if (qemu_cancel_migration(&q, 20 * XM_NS_PER_S, &e) < 0)
            fail_msg("round %d: %s", i, e.text);
    }
    qemu_end(&q, &vm);
    shutdown(listener, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(listener);
}

/* What broke: a shim that was killed between fork and qemu.pid left a QEMU that nobody knew of, with its
 * taps. */
static void whenever_its_shim_is_killed_it_is_found(void **state)
{
    (void)state;
    const char *path = tmpdir_write(
        "program", "#!/bin/sh\ncase \"$*\" in *-qmp\\ stdio*) exec qemu-system-x86_64 "
                   "\"$@\";; esac\ntouch $(dirname $0)/started\nwhile test -e $0; do sleep 1; done\n");
    struct vm_spec vm = {.name = "w1", .memory = 16 << 20, .vcpus = 1, .machine = (char *)"q35"};
    struct qemu_place at = {.host = "hosta", .run_dir = tmpdir_path(""), .rights = true};
    struct xm_error e = {0};
    char *text = NULL, run[100];
    size_t len;

    real();
    folder_of(path, run, sizeof run);
    at.run_dir = run;
    chmod(path, 0755);
    vm.qemu = (char *)path;
    assert_non_null(qemu_facts(path, &e)); /* asked now, it is not asked by the child */
    for (int waits = 1; waits >= 0; waits--) {
        const char *arm = waits ? "qemu-spawned:1:stop" : "qemu-spawned:1:kill";
        assert_int_equal(xm_file_replace(fault, arm, strlen(arm), NULL), 0);
        pid_t shim = fork();
        if (!shim) {
            struct qemu q;
            qemu_init(&q);
            qemu_start(&q, &vm, &at, &e);
            _exit(1);
        }
        for (struct limit l = limit_start(10); waits && !qemu_is_left(run) && limit_wait(&l);)
            ;
        for (struct limit l = limit_start(10);
             waits && access(tmpdir_path("started"), F_OK) && limit_wait(&l);)
            ;
        kill(shim, SIGKILL);
        assert_int_equal(waitpid(shim, NULL, 0), shim);
        bool runs = access(tmpdir_path("started"), F_OK) == 0;
        assert_true(runs || !waits);
        assert_int_equal(qemu_is_left(run), runs);
        if (runs) {
            assert_int_equal(xm_file_read(tmpdir_path("qemu.pid"), 100, &text, &len, NULL), 0);
            kill(-atoi(text), SIGKILL);
            free(text);
            unlink(tmpdir_path("started"));
            unlink(tmpdir_path("qemu.pid"));
        }
    }
}

/* Its memory would be looked for in the shell. */
static void a_wrapper_that_does_not_become_qemu_is_named(void **state)
{
    (void)state;
    struct vm_spec vm = {.name = "w1",
                         .memory = 16 << 20,
                         .vcpus = 1,
                         .machine = (char *)"q35",
                         .accel = (char *)"tcg",
                         .cpu = (char *)"qemu64"};
    struct xm_error e = {0};
    struct qemu q;
    int fd;

    real();
    for (int execs = 0; execs < 2; execs++) {
        const char *path = tmpdir_write(execs ? "execs" : "calls",
                                        execs ? "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n"
                                              : "#!/bin/sh\nqemu-system-x86_64 \"$@\"\necho ended\n");
        chmod(path, 0755);
        vm.qemu = (char *)path;
        qemu_init(&q);
        int r = qemu_start(&q, &vm, &(struct qemu_place){.host = "hosta", .run_dir = tmpdir_path("")}, &e);
        qemu_end(&q, &vm);
        if (execs ? r : r != -EINVAL || !strstr(e.text, "a wrapper has to end in `exec qemu-system-...`"))
            fail_msg("%d: %s", r, e.text);
        for (struct limit l = limit_start(5);
             (fd = xm_unix_connect(tmpdir_path("qmp.sock"), NULL)) >= 0 && limit_wait(&l);)
            close(fd);
        assert_true(fd < 0); /* nobody is left */
    }
}

/* The monitor is not there, so nothing is asked to quit: the wrapper is killed, and with it what it started.
 */
static void a_wrappers_children_end_with_it(void **state)
{
    (void)state;
    struct vm_spec vm = {.name = "w1", .memory = 16 << 20, .vcpus = 1, .machine = (char *)"q35"};
    const char *path =
        tmpdir_write("wrapper", "#!/bin/sh\n"
                                "case \"$*\" in *-qmp\\ stdio*) exec qemu-system-x86_64 \"$@\";; "
                                "esac\nsleep 3600 &\necho $! >$(dirname $0)/child\nexit 1\n");
    struct xm_error e = {0};
    struct qemu q;
    char *text = NULL;
    size_t len;
    pid_t got = 0;

    real();
    chmod(path, 0755);
    vm.qemu = (char *)path;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    qemu_init(&q);
    assert_int_equal(
        qemu_start(&q, &vm, &(struct qemu_place){.host = "hosta", .run_dir = tmpdir_path("")}, &e), -ECHILD);
    assert_int_equal(xm_file_read(tmpdir_path("child"), 100, &text, &len, NULL), 0);
    pid_t pid = (pid_t)atoi(text);
    free(text);
    assert_true(pid > 1);
    for (struct limit l = limit_start(5); !(got = waitpid(pid, NULL, WNOHANG)) && limit_wait(&l);)
        ;
    if (!got)
        kill(pid, SIGKILL);
    assert_int_equal(got, pid);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reconnect_is_what_qemu_knows),
        cmocka_unit_test(ram_is_a_named_shared_file),
        cmocka_unit_test(it_is_sandboxed),
        cmocka_unit_test(new_devices_stand_behind_the_others),
        cmocka_unit_test(firmware_with_variables_is_flash),
        cmocka_unit_test(ram_blocks_are_summed),
        cmocka_unit_test(a_machine_that_both_know_is_found),
        cmocka_unit_test(a_real_one_says_what_it_is),
        cmocka_unit_test(a_real_one_says_how_large_its_rings_are),
        cmocka_unit_test(a_real_one_says_what_its_cpus_have),
        cmocka_unit_test_setup_teardown(a_real_one_has_the_devices, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_real_one_is_cancelled_at_the_moment_of_its_stop, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_real_one_says_how_large_its_firmware_is, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(it_starts_at_the_root_and_a_peer_does_not_hear_it, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(another_program_in_its_place_is_asked_anew, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_wrapper_that_does_not_become_qemu_is_named, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_wrappers_children_end_with_it, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(whenever_its_shim_is_killed_it_is_found, tmpdir_make, tmpdir_remove),
    };
    snprintf(fault, sizeof fault, "@/tmp/xmt-qemu-fault-%d", getpid());
    setenv("XMIGRATE_FAULT", fault, 1);
    memmove(fault, fault + 1, strlen(fault));
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
