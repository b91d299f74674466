/* SPDX-License-Identifier: MIT */
/* QEMU, started, asked and ended: what becomes of a guest that is cancelled, of a wrapper, of a shim that is
 * killed meanwhile. */
#include "machine/qemu.h"
#include "tests/progress.h"
#include "tests/unit/lib_qemu.h"
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

static void folder_of(const char *path, char *to, size_t size)
{
    snprintf(to, size, "%s", path);
    *strrchr(to, '/') = 0;
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

/* Starts in the directory of the test; what it says of a file is not for a peer. */
static void it_starts_at_the_root_and_a_peer_does_not_hear_it(void **state)
{
    (void)state;
    qemu_real();
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
    qemu_real();
    const char *iso = tmpdir_write("a=b.iso", "");
    char run[100];
    struct vm_spec vm = spec_with_all_devices();
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

    qemu_real();
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

    qemu_real();
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

    qemu_real();
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

    qemu_real();
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

    qemu_real();
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

/* As long as QEMU makes its display's socket there, another process of its user may write into the run
 * directory, too. What broke: it could put a link in the place of the log, which root then wrote through, and
 * a file of its own in the place of qemu.pid or shim.json. */
static void what_is_in_its_run_directory_stays(void **state)
{
    struct qemu_user user = {.uid = 1234567, .gid = 1234567};
    struct vm_spec vm = {.name = "w1",
                         .memory = 16 << 20,
                         .vcpus = 1,
                         .machine = (char *)"q35",
                         .devices.vnc = (char *)"unix"};
    char text[400], dir[100], run[110], *said = NULL;
    struct qemu_place at = {.host = "hosta", .run_dir = run, .user = &user};
    struct xm_error e = {0};
    struct qemu q;
    size_t len;

    (void)state;
    qemu_real();
    snprintf(text, sizeof text,
             "#!/bin/sh\ncase \"$*\" in *-qmp\\ stdio*) exec qemu-system-x86_64 \"$@\";; esac\n"
             "cd /proc/self/fd/%d && echo mine >vnc.sock ; mv vnc.sock shim.json; rm -f qemu.pid\nexit 1\n",
             QEMU_FD_DIR);
    const char *path = tmpdir_write("program", text), *secret = tmpdir_write("secret", "root's");
    vm.qemu = (char *)path;
    folder_of(path, dir, sizeof dir);
    snprintf(run, sizeof run, "%s/run", dir);
    assert_int_equal(chmod(path, 0755) + chmod(dir, 0711) + mkdir(run, 0700), 0);
    assert_int_equal(chown(run, 0, user.gid) + chmod(run, 0710), 0);
    assert_int_equal(symlink(secret, tmpdir_path("run/qemu.log")), 0);
    tmpdir_write("run/shim.json", "root's");
    qemu_init(&q);
    assert_true(qemu_start(&q, &vm, &at, &e) < 0);
    if (access(tmpdir_path("run/vnc.sock"), F_OK) < 0)
        fail_msg("its display's socket could not be made: %s", e.text);
    assert_int_equal(access(tmpdir_path("run/qemu.pid"), F_OK), 0);
    assert_int_equal(xm_file_read(tmpdir_path("run/shim.json"), 100, &said, &len, NULL), 0);
    assert_string_equal(said, "root's");
    free(said);
    assert_int_equal(xm_file_read(secret, 100, &said, &len, NULL), 0);
    assert_string_equal(said, "root's");
    free(said);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ram_blocks_are_summed),
        cmocka_unit_test_setup_teardown(what_is_in_its_run_directory_stays, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_real_one_has_the_devices, tmpdir_make, tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_real_one_is_cancelled_at_the_moment_of_its_stop, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(a_real_one_says_how_large_its_firmware_is, tmpdir_make,
                                        tmpdir_remove),
        cmocka_unit_test_setup_teardown(it_starts_at_the_root_and_a_peer_does_not_hear_it, tmpdir_make,
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
