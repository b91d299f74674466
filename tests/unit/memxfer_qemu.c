/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_qemu.c: a stock QEMU, running its firmware, whose RAM is found, tracked and copied, and
 * which does not mind. */
#include "memxfer/inject.h"
#include "memxfer/memxfer.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/unit/lib_ramwire.h"
#include "tests/unit/lib_tmpdir.h"
#include "tests/progress.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MIB (1ull << 20)
#define RAM (128 * MIB)

static pid_t pid;
static struct xm_jsonl qmp;
static struct xm_ram ram;

static json_t *command(const char *name)
{
    struct xm_error e = {0};

    if (xm_jsonl_send(qmp.fd, json_pack("{s:s}", "execute", name), -1, &e) < 0)
        fail_msg("%s: %s", name, e.text);
    for (;;) {
        json_t *answer = xm_jsonl_recv(&qmp, xm_now() + LIMIT_HANG_NS, &e);
        if (!answer)
            fail_msg("%s: %s", name, e.text);
        if (json_object_get(answer, "return"))
            return answer;
        assert_null(json_object_get(answer, "error"));
        json_decref(answer);
    }
}

static void run(const char *name)
{
    json_decref(command(name));
}

static bool running(void)
{
    json_t *answer = command("query-status");
    bool is = json_is_true(json_object_get(json_object_get(answer, "return"), "running"));

    json_decref(answer);
    return is;
}

static void start_qemu(const char *sandbox, const char *threads)
{
    struct xm_error e = {0};
    char socket[200], arg[300];

    if (system("command -v qemu-system-x86_64 >/dev/null 2>&1")) {
        print_message("skipped: there is no qemu-system-x86_64 here\n");
        skip();
    }
    ramchild_need_tracking();
    snprintf(socket, sizeof socket, "%s", tmpdir_path("qmp"));
    snprintf(arg, sizeof arg, "unix:%s,server=on,wait=off", socket);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        unsetenv("LD_PRELOAD");
        execlp("qemu-system-x86_64", "qemu-system-x86_64", "-accel", "tcg", "-machine",
               "q35,memory-backend=mem0", "-m", "128M", "-smp", "2", "-object",
               "memory-backend-memfd,id=mem0,size=128M,share=on", "-display", "none", "-nodefaults", "-vga",
               "std", "-qmp", arg, "-sandbox", sandbox, "-name", threads, NULL);
        _exit(127);
    }
    int fd = -1;
    for (struct limit l = limit_start(15); fd < 0 && limit_wait(&l);) {
        assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
        fd = xm_unix_connect(socket, &e);
    }
    assert_true(fd >= 0);
    xm_jsonl_init(&qmp, fd);
    json_t *greeting = xm_jsonl_recv(&qmp, xm_now() + LIMIT_HANG_NS, &e);
    assert_non_null(greeting);
    json_decref(greeting);
    run("qmp_capabilities");
    if (xm_ram_find(&ram, pid, &e) < 0)
        fail_msg("%s", e.text);
}

static void stop_qemu(void)
{
    if (pid > 0) {
        xm_jsonl_close(&qmp);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        pid = 0;
    }
    xm_ram_close(&ram);
}

static int teardown(void **state)
{
    stop_qemu();
    return tmpdir_remove(state);
}

static void its_ram_is_found(void **state)
{
    (void)state;
    start_qemu("off", "test");
    assert_int_equal(ram.blocks, 1);
    assert_int_equal(ram.block[0].size, RAM);
    assert_int_equal(ram.block[0].qemu_off, 0);
    assert_string_equal(ram.block[0].name, "memory-backend-memfd");
    /* The BIOS area at the end of the first MiB is QEMU's memory seen through ours. */
    run("stop");
    uint8_t there[16];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDONLY);
    for (uint64_t at = 0; at < MIB; at += 65536) {
        assert_int_equal(pread(mem, there, 16, (off_t)(ram.block[0].qemu_va + at)), 16);
        assert_memory_equal(there, ram.block[0].map + at, 16);
    }
    close(mem);
}

/* A reset before that leaves a guest that runs zeros for ever: the firmware maps RAM over its ROM below
 * 1 MiB, then copies itself there, upwards, and QEMU's reset (7.2 to 10) leaves the RAM mapped. */
static void its_firmware_is_in_ram(void)
{
    const uint8_t nothing[16] = {0};
    struct limit l = limit_start(60);

    while (!memcmp(ram.block[0].map + MIB - sizeof(nothing), nothing, sizeof(nothing)))
        assert_true(limit_wait(&l));
}

static void inject_20_times(void)
{
    struct xm_error e = {0};

    its_firmware_is_in_ram();
    for (int i = 0; i < 20; i++) {
        uint64_t start = xm_now();
        int fd = inject_uffd(pid, &e);
        if (fd < 0)
            fail_msg("%s", e.text);
        close(fd);
        assert_true(xm_now() - start < LIMIT_HANG_NS / 10);
        assert_true(running());
        if (i % 5 == 0)
            run("system_reset");
        usleep((useconds_t)(i * 700));
    }
}

static void lends_a_thread_20_times(void **state)
{
    (void)state;
    start_qemu("off", "test");
    inject_20_times();
}

static void lends_a_thread_from_its_sandbox(void **state)
{
    (void)state;
    start_qemu("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
               "test,debug-threads=on");
    inject_20_times();
}

/* The firmware starts anew again and again while rounds are sent; the copy must be what QEMU has when it is
 * stopped. */
static void its_ram_is_copied_while_it_runs(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram to = {0};
    struct ramwire wire;
    start_qemu("off", "test");
    int fd = memfd_create("to", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, RAM), 0);
    assert_int_equal(xm_ram_add(&to, "to", fd, 0, &e), 0);
    memset(to.block[0].map + 3 * MIB, 0x55, 4 * MIB); /* as if its firmware had written there */
    struct xm_ramsink *sink = xm_ramsink_new(&to, &e);
    ramwire_start(&wire, sink, 1);
    struct xm_precopy *p = xm_precopy_new(&ram, &wire.transport, &e);
    if (!p)
        fail_msg("%s", e.text);
    struct xm_round r = {0};
    uint64_t seen = 0;
    its_firmware_is_in_ram();
    for (int i = 0; i < 6; i++) {
        if (xm_precopy_round(p, false, NULL, NULL, &r, &e) < 0)
            fail_msg("%s", e.text);
        if (i > 0)
            seen += r.pages_dirty;
        run("system_reset");
        /* Its firmware writes far more, but how soon depends on when it gets a processor; and one that is
         * reset in the middle of starting its second CPU may wait for that for ever, until it is reset
         * again. */
        uint64_t written = 0;
        unsigned patience = 2; /* more each time: a busy machine needs longer than that to come so far */
        struct limit again = limit_start(patience);
        for (struct limit l = limit_start(90); written < 3 && limit_wait(&l);) {
            assert_int_equal(xm_precopy_peek(p, &written, NULL), 0);
            if (limit_over(&again)) {
                run("system_reset");
                again = limit_start(patience *= 2);
            }
        }
        assert_true(written >= 3);
        usleep(60000);
        assert_true(running());
    }
    run("stop");
    if (xm_precopy_round(p, true, NULL, NULL, &r, &e) < 0)
        fail_msg("%s", e.text);
    assert_true(seen + r.pages_dirty >= 6 * 3);
    for (uint64_t at = 0; at < RAM; at += XM_PAGE) {
        if (memcmp(to.block[0].map + at, ram.block[0].map + at, XM_PAGE))
            fail_msg("page %llu differs", (unsigned long long)(at / XM_PAGE));
    }
    struct xm_digest sent, applied;
    xm_precopy_digest(p, &sent);
    ramwire_digest(&wire, &applied);
    assert_true(xm_digest_equal(&sent, &applied));
    run("cont");
    xm_precopy_free(p);
    assert_true(running());
    ramwire_stop(&wire);
    xm_ramsink_free(sink);
    xm_ram_close(&to);
    close(fd);
}

static void a_qemu_without_shared_ram_is_told(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram none;
    assert_int_equal(xm_ram_find(&none, getpid(), &e), -ENOENT);
    assert_non_null(strstr(e.text, "memory-backend-file,share=on"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(its_ram_is_found, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(lends_a_thread_20_times, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(lends_a_thread_from_its_sandbox, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(its_ram_is_copied_while_it_runs, tmpdir_make, teardown),
        cmocka_unit_test(a_qemu_without_shared_ram_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
