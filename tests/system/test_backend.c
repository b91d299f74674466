/* SPDX-License-Identifier: MIT */
/* A stock guest kernel on our vhost-user-blk: a verified load, a file system, and a back end that is killed
 * again and again under it. No shim, no namespaces: plain QEMU and a back end in a process of its own. */
#include "mirror/mirror.h"
#include "tests/port.h"
#include "tests/progress.h"
#include "tests/system/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    struct job qemu;
    bool runs;
    pid_t backend;
    unsigned port;
    char dir[64];
} g;

/* ---- the back end: two disks on one engine ---- */

static void serve(const char *name, struct xm_engine *engine)
{
    struct xm_error e = {0};
    struct xm_file *file = calloc(1, sizeof(*file));
    char img[128], sock[128];
    int err;

    snprintf(img, sizeof(img), "%s/%s.img", g.dir, name);
    snprintf(sock, sizeof(sock), "%s/%s.sock", g.dir, name);
    /* After a kill the kernel finishes what was under way, and gives the lock back only then. */
    for (struct limit l = limit_start(10);
         (err = xm_file_open(file, img, 0, 0, &e)) == -EBUSY && limit_wait(&l);)
        ;
    struct xm_vhost_opts o = {.socket_path = sock, .serial = name, .queues = 2};
    struct xm_disk *disk = err ? NULL : xm_disk_new(engine, file, NULL, &e);
    if (!disk || !xm_vhost_new(disk, &o, &e)) {
        fprintf(stderr, "%s: %s\n", img, e.text);
        _exit(1);
    }
}

static void start_backend(void)
{
    fflush(NULL);
    g.backend = fork();
    if (g.backend)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct xm_engine *engine = xm_engine_open(XM_ENGINE_AUTO, 64, NULL);
    serve("a", engine);
    serve("b", engine);
    for (;;)
        xm_engine_turn(engine);
}

static void kill_backend(void)
{
    kill(g.backend, SIGKILL);
    waitpid(g.backend, NULL, 0);
}

/* ---- the guest ---- */

static int end_guest(void **state)
{
    (void)state;
    if (g.runs) {
        job_signal(&g.qemu, SIGKILL);
        job_end(&g.qemu, 5, NULL);
    }
    if (g.backend > 0)
        kill_backend();
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
    snprintf(g.dir, sizeof(g.dir), "build/guest/backend.%d", getpid());
    g.port = held_port();
    if (sh(NULL, 30,
           "mkdir -p %s && cd %s && truncate -s 256M a.img && ../xm-client fill a.img vda 3 64M && "
           "truncate -s 256M b.img && mkfs.ext4 -q b.img",
           g.dir, g.dir) != 0)
        return -1;
    start_backend();
    if (!wait_until(10, "test -S %s/b.sock", g.dir))
        return -1;
    job_start(
        &g.qemu,
        "cd %s && exec qemu-system-x86_64 -M q35,memory-backend=m -accel tcg -cpu max -m 256 -smp 2 "
        "-nodefaults "
        "-object memory-backend-memfd,id=m,size=256M,share=on -display none -no-reboot "
        "-kernel ../kernel/vmlinuz -initrd ../initramfs -serial file:console.log "
        "-append 'console=ttyS0 quiet no_timer_check xm.seed=3 xm.ip=10.0.2.15/24 xm.mem=16M:rate=8M "
        "xm.disk=vda:rate=16M:span=64M:trim=8M:prefilled' "
        "-nic user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:%u-:7003 "
        "-chardev socket,id=a,path=a.sock,reconnect=1 -device vhost-user-blk-pci,chardev=a,num-queues=2 "
        "-chardev socket,id=b,path=b.sock,reconnect=1 -device vhost-user-blk-pci,chardev=b,num-queues=2",
        g.dir, g.port);
    g.runs = true;
    if (!guest_came(g.port, g.dir)) {
        end_guest(NULL);
        return -1;
    }
    return 0;
}

static int command(json_t **answer, const char *words)
{
    char *out = NULL;
    int code = sh(&out, 90, "build/guest/xm-client cmd 127.0.0.1:%u %s", g.port, words);

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

/* Writes that the guest has done so far. */
static double writes(void)
{
    json_t *v = NULL;

    assert_int_equal(command(&v, "status"), 0);
    json_t *disk = json_array_get(json_object_get(v, "disks"), 0);
    assert_true(number(disk, "errors") == 0);
    double n = number(disk, "writes");
    json_decref(v);
    return n;
}

static void verify(void)
{
    json_t *v = NULL;

    assert_int_equal(command(&v, "verify"), 0);
    assert_true(number(v, "blocks") >= 16384);
    assert_true(number(v, "wrong_blocks") == 0);
    assert_true(number(v, "wrong_pages") == 0);
    assert_true(number(v, "fails") == 0);
    json_decref(v);
}

static void verified_load(void **state)
{
    (void)state;
    need_guest();
    assert_int_equal(command(NULL, "io 2 4"), 0);
    verify();
}

static void files_survive_and_fsck_is_clean(void **state)
{
    (void)state;
    need_guest();
    assert_int_equal(command(NULL, "fs vdb 2"), 0);
    assert_int_equal(sh(NULL, 30, "e2fsck -fn %s/b.img", g.dir), 0);
}

/* The guest waits, and loses nothing: what was in flight is done again by the next one. */
static void a_killed_back_end_is_a_pause(void **state)
{
    (void)state;
    need_guest();
    for (int i = 0; i < 3; i++) {
        double before = writes();
        kill_backend();
        start_backend();
        for (struct limit l = limit_start(20); writes() < before + 100 && limit_wait(&l);)
            ;
        assert_true(writes() >= before + 100);
    }
    verify();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verified_load),
        cmocka_unit_test(files_survive_and_fsck_is_clean),
        cmocka_unit_test(a_killed_back_end_is_a_pause),
    };

    return cmocka_run_group_tests(tests, start_guest, end_guest);
}
