/* SPDX-License-Identifier: MIT */
/* The test guest and its client prove themselves with plain QEMU: what they must find, they find. No
 * namespaces, no root needed. */
#include "tests/port.h"
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    struct job qemu;
    bool runs;
    unsigned ports[3]; /* echo, heartbeat, command */
    char dir[64];
} g;

static int end_guest(void **state)
{
    (void)state;
    if (g.runs) {
        job_signal(&g.qemu, SIGKILL);
        job_end(&g.qemu, 5, NULL);
    }
    if (*g.dir)
        sh(NULL, 10, "rm -rf %s", g.dir);
    memset(&g, 0, sizeof(g));
    return 0;
}

static int start_guest(void **state)
{
    (void)state;
    if (sh(NULL, 5, "command -v qemu-system-x86_64") != 0)
        return 0;
    snprintf(g.dir, sizeof(g.dir), "build/guest/try.%d", getpid());
    for (unsigned i = 0; i < 3; i++)
        g.ports[i] = held_port();
    if (sh(NULL, 30,
           "mkdir -p %s && cd %s && truncate -s 256M a.img && ../xm-client fill a.img vda 3 64M && "
           "truncate -s 256M b.img && mkfs.ext4 -q b.img",
           g.dir, g.dir) != 0)
        return -1;
    job_start(&g.qemu,
              "cd %s && exec qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 256 -smp 2 -nodefaults "
              "-display none -no-reboot "
              "-kernel ../kernel/vmlinuz -initrd ../initramfs -serial file:console.log "
              "-append 'console=ttyS0 quiet no_timer_check xm.seed=3 xm.ip=10.0.2.15/24 xm.mem=16M:rate=8M "
              "xm.disk=vda:rate=4M:span=64M:trim=8M:prefilled' "
              "-nic user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:%u-:7001,hostfwd=tcp:127.0.0.1:%u-:7002,"
              "hostfwd=tcp:127.0.0.1:%u-:7003 "
              "-drive if=none,id=a,format=raw,discard=unmap,file=a.img -device virtio-blk-pci,drive=a "
              "-drive if=none,id=b,format=raw,discard=unmap,file=b.img -device virtio-blk-pci,drive=b",
              g.dir, g.ports[0], g.ports[1], g.ports[2]);
    g.runs = true;
    if (!guest_came(g.ports[2], g.dir)) {
        end_guest(NULL);
        return -1;
    }
    return 0;
}

static int command(json_t **answer, const char *words)
{
    char *out = NULL;
    int code = sh(&out, 90, "build/guest/xm-client cmd 127.0.0.1:%u %s", g.ports[2], words);

    if (answer)
        *answer = last_json(out);
    free(out);
    return code;
}

static void need_guest(void)
{
    if (g.runs)
        return;
    print_message("skipped: no qemu-system-x86_64\n");
    skip();
}

/* Everything at once: connections, verified load, verification of all blocks and pages. */
static void good_guest_passes(void **state)
{
    struct job echo, beat;
    json_t *v = NULL, *o;
    char *out = NULL;

    (void)state;
    need_guest();
    job_start(&echo, "exec build/guest/xm-client echo 127.0.0.1:%u 0", g.ports[0]);
    job_start(&beat, "exec build/guest/xm-client heartbeat 127.0.0.1:%u 0", g.ports[1]);
    assert_int_equal(command(NULL, "io 2 4"), 0);
    assert_int_equal(command(&v, "verify"), 0);
    assert_true(number(v, "blocks") >= 16384);
    assert_true(number(v, "pages") == 4096);
    json_decref(v);
    job_signal(&echo, SIGTERM);
    job_signal(&beat, SIGTERM);
    assert_int_equal(job_end(&echo, 5, NULL), 0);
    assert_int_equal(job_end(&beat, 5, &out), 0);
    o = last_json(out);
    assert_true(number(o, "beats") > 100);
    assert_true(number(o, "longest_gap_ms") > 0); /* how long it is says only how busy the machine is */
    json_decref(o);
    free(out);
}

/* A guest that is stopped for 300 ms is seen to have been. */
static void a_stopped_guest_shows_a_gap(void **state)
{
    struct job beat;
    char *out = NULL;
    json_t *o;

    (void)state;
    need_guest();
    job_start(&beat, "exec build/guest/xm-client heartbeat 127.0.0.1:%u 3", g.ports[1]);
    assert_int_equal(sh(NULL, 10, "sleep 1; kill -STOP %d; sleep 0.3; kill -CONT %d", g.qemu.pid, g.qemu.pid),
                     0);
    assert_int_equal(job_end(&beat, 10, &out), 0);
    o = last_json(out);
    assert_true(number(o, "longest_gap_ms") >= 295);
    assert_true(truth(o, "connected"));
    json_decref(o);
    free(out);
}

static void files_survive_and_fsck_is_clean(void **state)
{
    (void)state;
    need_guest();
    assert_int_equal(command(NULL, "fs vdb 2"), 0);
    assert_int_equal(sh(NULL, 30, "e2fsck -fn %s/b.img", g.dir), 0);
}

/* Old content put back under the guest is noticed, though each block of it is whole. */
static void a_lost_write_is_noticed(void **state)
{
    json_t *v = NULL;

    (void)state;
    need_guest();
    assert_int_equal(command(NULL, "pause"), 0);
    assert_int_equal(sh(NULL, 10, "build/guest/xm-client fill %s/a.img vda 3 64M", g.dir), 0);
    assert_int_equal(command(&v, "verify"), 1);
    assert_true(number(v, "wrong_blocks") > 0);
    assert_true(number(v, "wrong_pages") == 0);
    assert_non_null(strstr(string(v, "first_fail"), "write 1, should be"));
    json_decref(v);
    assert_int_equal(sh(NULL, 5, "grep -q 'XMGUEST FAIL' %s/console.log", g.dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_guest_passes),
        cmocka_unit_test(a_stopped_guest_shows_a_gap),
        cmocka_unit_test(files_survive_and_fsck_is_clean),
        cmocka_unit_test(a_lost_write_is_noticed),
    };

    return cmocka_run_group_tests(tests, start_guest, end_guest);
}
