/* SPDX-License-Identifier: MIT */
/* A datastore that hangs makes only what needs it wait, and then says so. The storage that hangs is a mount
 * of FUSE whose daemon, this program, answers nothing. The agent is a real one (lib_agent.c). */
#include "tests/unit/lib_agent.h"
#include "agent/admission.h"
#include "agent/storage.h"
#include "vm/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "tests/progress.h"

/* The address sanitizer's search for leaks, at the end of a process, stops all of its threads first, and
 * waits for ever for one that hangs in the kernel: the agent's here. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static struct test_agent *const t = &test_agent;
static int fuse = -1;
static char dead[200]; /* the directory that hangs; "": this machine has none */

static int hang(const char *dir)
{
    char how[100];

    snprintf(dead, sizeof dead, "%s", dir);
    fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(how, sizeof how, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (fuse < 0 || mount("dead", dir, "fuse", 0, how) < 0) {
        dead[0] = 0;
        return -1;
    }
    return 0;
}

/* Everybody who hangs there gets an error. */
static void let_go(void)
{
    if (fuse >= 0)
        close(fuse);
    fuse = -1;
    if (dead[0])
        umount2(dead, MNT_DETACH);
    dead[0] = 0;
}

static int set_up(void **state)
{
    (void)state;
    if (test_agent_make(t, 7) < 0 || xm_mkdir_all(in_dir(t, "dead"), NULL) < 0)
        return -1;
    FILE *f = fopen(in_dir(t, "conf"), "ae");
    fprintf(f, "[datastore dead]\npath = %s/dead\n", t->dir);
    fclose(f);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    let_go();
    test_agent_remove(t);
    return 0;
}

static void must_hang(void)
{
    if (hang(in_dir(t, "dead")) < 0) {
        print_message("skipped: FUSE cannot be mounted here: %s\n", strerror(errno));
        skip();
    }
}

static void must_say(json_t *answer, const char *part)
{
    char *text = json_dumps(answer, 0);

    if (!text || !strstr(text, part))
        fail_msg("%s", text ? text : "no answer");
    free(text);
    json_decref(answer);
}

static unsigned files_in(const char *below)
{
    DIR *d = opendir(in_dir(t, below));
    unsigned n = 0;

    for (struct dirent *f; d && (f = readdir(d));)
        n += f->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* ---- questions ---- */

static void who_asks_again_is_told_at_once(void **state)
{
    struct stat st;
    struct xm_error e = {0};
    uint64_t size, space;

    (void)state;
    must_hang();
    assert_int_equal(storage_stat(in_dir(t, "dead"), &st),
                     -ETIMEDOUT); /* where it is mounted, and not beside it */
    assert_int_equal(storage_stat(in_dir(t, "ds"), &st), 0);
    assert_int_equal(storage_stat(in_dir(t, "dead/x"), &st), -ETIMEDOUT);
    uint64_t began = xm_now();
    for (int i = 0; i < 1000; i++)
        assert_int_equal(storage_stat(in_dir(t, "dead/y"), &st), -ETIMEDOUT);
    assert_int_equal(storage_space(in_dir(t, "dead"), &size, &space), -ETIMEDOUT);
    assert_true(xm_now() - began < 1000 * STORAGE_PATIENCE); /* one of them asked */
    assert_int_equal(storage_hangs(in_dir(t, "dead/x"), &e), -ETIMEDOUT);
    assert_non_null(strstr(e.text, "dead/x does not answer: its storage hangs"));
    assert_int_equal(storage_stat(in_dir(t, "ds"), &st), 0); /* others are not meant */
    assert_int_equal(storage_space(in_dir(t, "ds"), &size, &space), 0);
    assert_int_equal(storage_stat(in_dir(t, "none"), &st), -ENOENT);
    let_go();
    for (struct limit l = limit_start(10);
         storage_stat(in_dir(t, "dead/x"), &st) == -ETIMEDOUT && limit_wait(&l);)
        ;
    assert_int_equal(storage_stat(in_dir(t, "dead/x"), &st), -ENOENT); /* it is back */
}

/* ---- the agent ---- */

static json_t *check_request(const char *datastore)
{
    return json_pack("{s:s, s:b, s:i, s:i, s:s, s:[i], s:s*, s:{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, "
                     "s:s, s:i, s:s, s:i}], s:[]}}",
                     "verb", "peer.check", "storage", 1, "epoch", 1, "protocol", AGENT_PROTOCOL, "job", "",
                     "used", 4096, "datastore", datastore, "vm", "name", "come", "memory", 16 << 20, "vcpus",
                     1, "qemu", "qemu-system-x86_64", "machine", "q35", "accel", "tcg", "cpu", "max", "disks",
                     "name", "root", "path", "/dev/loop0", "size", 1 << 20, "datastore", "", "queues", 1,
                     "nics");
}

/* A VM of this host that is stopped, with a disk on the dead datastore. */
static void stopped_vm(const char *vm)
{
    struct owner_record rec = {.epoch = 1, .owner = OWNER_MINE};
    char below[64];
    json_t *spec = json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:[{s:s, s:o, s:i, s:s, s:i}], s:[]}",
                             "name", vm, "memory", 16 << 20, "vcpus", 1, "qemu", "qemu-system-x86_64",
                             "machine", "q35", "accel", "tcg", "cpu", "max", "disks", "name", "root", "path",
                             json_sprintf("%s/dead/%s.raw", t->dir, vm), "size", 1 << 20, "datastore", "dead",
                             "queues", 1, "nics");

    snprintf(below, sizeof below, "state/vms/%s", vm);
    assert_int_equal(xm_mkdir_all(in_dir(t, below), NULL), 0);
    assert_int_equal(owner_save(in_dir(t, below), vm, &rec, NULL), 0);
    snprintf(below, sizeof below, "state/vms/%s/spec.json", vm);
    assert_int_equal(xm_json_save(in_dir(t, below), spec, NULL), 0);
    json_decref(spec);
}

/* What broke: the agent did not even start, and once it ran, one request that needed the datastore held its
 * lock. */
static void only_what_needs_it_waits(void **state)
{
    (void)state;
    need_qemu();
    must_hang();
    stopped_vm("old");
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s}", "verb", "list")), 0);
    must_say(ask(t, json_pack("{s:s, s:s}", "verb", "show", "vm", "old")), "\"hangs\": true");
    must_say(ask(t, json_pack("{s:s, s:s}", "verb", "start", "vm", "old")),
             "dead/old.raw does not answer: its storage hangs");
    /* Another VM's disks lie elsewhere. */
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    must_say(ask_as_peer(t, check_request("ds")), "\"reasons\": []");
    must_say(ask_as_peer(t, check_request(NULL)), "\"datastore\": \"ds\"");
    must_say(ask_as_peer(t, check_request("dead")),
             "datastore 'dead' on hosta does not answer: its storage hangs");
    must_say(ask(t, json_pack("{s:s, s:s, s:b, s:s}", "verb", "check", "vm", "web1", "storage_only", 1,
                              "datastore", "dead")),
             "datastore 'dead' of hosta does not answer: its storage hangs");
    must_say(ask_as_peer(t, json_pack("{s:s}", "verb", "peer.datastores")), "\"hangs\": true");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* An earlier move of its disks could not delete what it left there. What broke: the shim tried that first,
 * hung, and the VM could neither be moved nor stopped; then no further move of it was let in. */
static void what_is_left_on_it_holds_up_nothing(void **state)
{
    json_t *files = json_pack("[s]", in_dir(t, "dead/web1.raw"));
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    must_hang();
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/web1"), JOURNAL_STORAGE, 1, "hosta", NULL, files, NULL), 0);
    assert_true(until_gone(t, "state/vms/web1/journal.json"));
    must(ask(t, json_pack("{s:s, s:s, s:s, s:b}", "verb", "check", "vm", "web1", "datastore", "ds",
                          "storage_only", 1)),
         0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    assert_int_equal(files_in("state/left"), 1); /* and it is not forgotten */
    json_decref(files);
}

/* What broke: check said nothing of a journal that cannot be read, and the move ended because of it. */
static void what_is_left_and_not_known_is_a_reason(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/web1/journal.json"), "{}", 2, NULL), 0);
    must_say(ask(t, json_pack("{s:s, s:s, s:s}", "verb", "check", "vm", "web1", "host", "hostb")),
             "VM web1: what an earlier move of it left is not known: ");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* It moved away, and its old disk cannot be deleted. */
static void what_it_left_there_keeps_it_from_nothing(void **state)
{
    struct owner_record rec = {.epoch = 2, .owner = OWNER_GIVEN, .to = "hostb", .settled = true};
    json_t *files = json_pack("[s]", in_dir(t, "dead/come.raw"));
    (void)state;
    need_qemu();
    must_hang();
    assert_int_equal(owner_save(in_dir(t, "state/vms/come"), "come", &rec, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/come"), JOURNAL_SOURCE, 2, "hostb", NULL, files, NULL), 0);
    json_decref(files);
    assert_int_equal(chmod(in_dir(t, "state"), 0700) | chmod(in_dir(t, "state/vms"), 0700), 0);
    assert_int_equal(test_agent_start(t), 0);
    json_t *o = check_request("ds");
    json_object_set_new(o, "epoch", json_integer(3));
    must_say(ask_as_peer(t, o), "\"reasons\": []");
}

/* Threads of the agent that ask a file system how full it is, at this moment. */
static unsigned asking(void)
{
    char path[64];
    unsigned n = 0;

    snprintf(path, sizeof path, "/proc/%d/task", t->pid);
    DIR *d = opendir(path);
    for (struct dirent *f; d && (f = readdir(d));) {
        char *text = NULL, *file = xm_printf("%s/%s/syscall", path, f->d_name);
        size_t len;
        if (!xm_file_read(file, 200, &text, &len, NULL))
            n += (unsigned)atoi(text) == SYS_statfs;
        free(text);
        free(file);
    }
    if (d)
        closedir(d);
    return n;
}

/* What broke: each start asked every datastore, and wrote into it. */
static void a_start_asks_no_datastore_but_its_own(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    must_hang();
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    assert_int_equal(asking(), 0);
    must_say(ask_as_peer(t, check_request("ds")), "\"reasons\": []");
    assert_int_equal(asking(), 0);
    must_say(ask_as_peer(t, check_request(NULL)), "\"datastore\": \"ds\"");
    assert_int_equal(asking(), 1);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* ---- what is not mounted ---- */

/* /etc/fstab for this process and what it starts. */
static void must_have_fstab(const char *line)
{
    bool own = unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;

    assert_int_equal(xm_file_replace(in_dir(t, "fstab"), line, strlen(line), NULL), 0);
    if (!own || mount(in_dir(t, "fstab"), "/etc/fstab", NULL, MS_BIND, NULL) < 0) {
        print_message("skipped: /etc/fstab cannot be replaced here: %s\n", strerror(errno));
        skip();
    }
}

/* What broke: the first use marked the mount point, and the disk was hidden by the mount; then the datastore
 * was refused for good, with the advice to mount it. */
static void the_first_use_needs_it_mounted(void **state)
{
    char *line = xm_printf("tmpfs %s tmpfs noauto 0 0\n", in_dir(t, "ds"));
    char *advice = xm_printf("nothing is mounted at %s, a mount point in /etc/fstab: `mount %s`",
                             in_dir(t, "ds"), in_dir(t, "ds"));
    (void)state;
    need_qemu();
    must_have_fstab(line);
    assert_int_equal(test_agent_start(t), 0);
    must_say(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), advice);
    must_say(ask_as_peer(t, check_request("ds")), advice);
    assert_false(exists(t, "ds/web1.raw"));
    const char *const argv[] = {"mount", in_dir(t, "ds"), NULL};
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
    must_say(ask_as_peer(t, check_request("ds")), "\"reasons\": []");
    umount("/etc/fstab");
    umount2(in_dir(t, "ds"), MNT_DETACH);
    free(advice);
    free(line);
}

/* A datastore that was marked before it was mounted all the same: the advice for it is followed. */
static void one_that_was_marked_unmounted_is_mended(void **state)
{
    json_t *start = json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"));
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_incref(start)), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "undefine", "vm", "web1")), 0);
    assert_int_equal(rename(in_dir(t, "ds"), in_dir(t, "hidden")), 0);
    assert_int_equal(mkdir(in_dir(t, "ds"), 0700), 0);
    json_t *o = ask(t, json_incref(start));
    char *mend = strstr(xm_json_str(o, "error", ""), "ln -sfn ");
    if (!mend)
        fail_msg("%s", json_dumps(o, 0));
    const char *const argv[] = {"sh", "-c", mend, NULL};
    assert_int_equal(xm_run(argv, LIMIT_HANG_NS, NULL, NULL), 0);
    json_decref(o);
    must(ask(t, start), 0);
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* By prepare and by storage-only, as it is asked and as it would be done. */
static void nothing_comes_there(const char *why)
{
    json_t *prepare = check_request("dead");

    json_object_set_new(prepare, "verb", json_string("peer.prepare"));
    must_say(ask_as_peer(t, prepare), why);
    for (int real = 0; real < 2; real++)
        must_say(ask(t, json_pack("{s:s, s:s, s:b, s:s, s:{}}", "verb", real ? "move" : "check", "vm", "web1",
                                  "storage_only", 1, "datastore", "dead", "options")),
                 why);
    assert_false(exists(t, "state/vms/come"));
    assert_false(exists(t, "dead/web1-root.raw"));
}

static void a_datastore_that_is_not_right_takes_no_disk(void **state)
{
    static const char noted[] = "{\"dead\": \"11111111-2222-4333-8444-555555555555\"}";
    (void)state;
    need_qemu();
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/datastores.json"), noted, sizeof noted - 1, NULL), 0);
    nothing_comes_there("is not what was there when it was first used"); /* it has no mark */
    assert_int_equal(xm_file_replace(in_dir(t, "state/datastores.json"), "{}", 2, NULL), 0);
    assert_int_equal(symlink("\xff-2222-4333-8444", in_dir(t, "dead/.xmigrate-datastore")), 0);
    nothing_comes_there("names no UUID"); /* what is no text was noted as nothing: it had no identity */
    assert_int_equal(unlink(in_dir(t, "dead/.xmigrate-datastore")), 0);
    assert_int_equal(mkdir(in_dir(t, "dead/.xmigrate-datastore"), 0700), 0);
    nothing_comes_there("dead/.xmigrate-datastore"); /* which cannot be read */
    if (mount("ro", in_dir(t, "dead"), "tmpfs", MS_RDONLY, NULL) == 0) {
        nothing_comes_there("cannot be written");
        umount2(in_dir(t, "dead"), MNT_DETACH);
    }
    /* What broke: check said yes, and it was chosen time and again. */
    if (mount("few", in_dir(t, "dead"), "tmpfs", 0, "nr_inodes=2") == 0) {
        assert_int_equal(close(open(in_dir(t, "dead/last"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
        nothing_comes_there("dead: its file system has no inode left for another file");
        umount2(in_dir(t, "dead"), MNT_DETACH);
    }
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* What broke: disks of «fast» and «slow» arrived in one, and a guest's large frames were lost behind another
 * bridge; nobody had said so. */
static void what_will_be_another_there_is_said(void **state)
{
    json_t *o = check_request(NULL), *vm = json_object_get(o, "vm"), *disks = json_object_get(vm, "disks");
    (void)state;
    need_qemu();
    assert_int_equal(rmdir(in_dir(t, "dead")), 0); /* both have the same room: either could be chosen */
    assert_int_equal(test_agent_start(t), 0);
    must_say(ask_as_peer(t, json_incref(o)), "the disks of come land in datastore 'ds' of hosta\"");
    json_t *other = json_deep_copy(json_array_get(disks, 0));
    json_object_set_new(other, "name", json_string("log"));
    json_object_set_new(other, "datastore", json_string("slow"));
    json_array_append_new(disks, other);
    json_array_append_new(json_object_get(o, "used"), json_integer(4096));
    json_array_append_new(json_object_get(vm, "nics"),
                          json_pack("{s:s, s:s, s:s, s:s}", "name", "lan", "bridge", "lo", "mac",
                                    "52:54:00:00:00:01", "tap", "xm0"));
    json_object_set_new(o, "mtus", json_pack("[i]", 70000));
    must_say(ask_as_peer(t, json_incref(o)), "'ds' of hosta, all of them, wherever they lie now");
    must_say(ask_as_peer(t, o),
             "bridge 'lo' of hosta passes frames of 65536 bytes, and where come is now 70000");
}

/* What broke: no agent, and so none of the other datastores' VMs after a boot. */
static void one_whose_directory_is_missing_keeps_no_agent_away(void **state)
{
    (void)state;
    need_qemu();
    assert_int_equal(rmdir(in_dir(t, "dead")), 0);
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    nothing_comes_there("No such file or directory");
    must_say(ask_as_peer(t, check_request(NULL)), "\"datastore\": \"ds\"");
    assert_int_equal(mkdir(in_dir(t, "dead"), 0700), 0); /* it has been mounted */
    must_say(ask_as_peer(t, check_request("dead")), "\"reasons\": []");
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* What broke: «is no directory», and no agent, once the daemon behind a mount had died (NFS: ESTALE; a dead
 * disk: EIO). */
static void one_that_has_failed_keeps_no_agent_away(void **state)
{
    (void)state;
    need_qemu();
    must_hang();
    close(fuse);
    fuse = -1;
    assert_int_equal(test_agent_start(t), 0);
    must(ask(t, json_pack("{s:s, s:s}", "verb", "start", "spec", in_dir(t, "spec.ini"))), 0);
    nothing_comes_there(strerror(ENOTCONN));
    must(ask(t, json_pack("{s:s, s:s, s:b}", "verb", "stop", "vm", "web1", "force", 1)), 0);
}

/* Of an agent that was killed while it asked, or wrote a file anew. One that is young may be another host's
 * that asks just now. */
static void probes_do_not_stay(void **state)
{
    struct timespec old[2] = {{.tv_sec = 1700000000}, {.tv_sec = 1700000000}};
    (void)state;
    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-0011"), "x", 1, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "ds/.xmigrate-probe-2233"), "x", 1, NULL), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "ds/old.raw"), "x", 1, NULL), 0);
    assert_int_equal(utimensat(AT_FDCWD, in_dir(t, "ds/.xmigrate-probe-0011"), old, 0), 0);
    assert_int_equal(utimensat(AT_FDCWD, in_dir(t, "ds/old.raw"), old, 0), 0);
    assert_int_equal(xm_mkdir_all(in_dir(t, "state/vms/db"), NULL), 0);
    assert_int_equal(chmod(in_dir(t, "state"), 0700) | chmod(in_dir(t, "state/vms"), 0700), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/db/spec.json.tmp-a1B2c3"), "x", 1, NULL), 0);
    assert_int_equal(utimensat(AT_FDCWD, in_dir(t, "state/vms/db/spec.json.tmp-a1B2c3"), old, 0), 0);
    assert_int_equal(xm_file_replace(in_dir(t, "state/vms/db/journal.json.tmp-Iv2Tnh"), "x", 1, NULL), 0);
    assert_int_equal(test_agent_start(t), 0);
    assert_true(
        until_gone(t, "state/vms/db/journal.json.tmp-Iv2Tnh")); /* nobody is left who could be writing it */
    assert_true(until_gone(t, "state/vms/db/spec.json.tmp-a1B2c3"));
    assert_true(until_gone(t, "ds/.xmigrate-probe-0011"));
    assert_true(exists(t, "ds/.xmigrate-probe-2233"));
    assert_true(exists(t, "ds/old.raw"));
}

/* What a dead migration left on it cannot be deleted; the agent starts, and others are looked after. */
static void what_was_left_there_waits_for_it(void **state)
{
    json_t *files = json_pack("[o]", json_sprintf("%s/dead/gone1.raw", t->dir)),
           *here = json_pack("[s]", in_dir(t, "ds/gone2.raw"));

    (void)state;
    must_hang();
    assert_int_equal(xm_file_replace(in_dir(t, "ds/gone2.raw"), "x", 1, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/gone1"), JOURNAL_DESTINATION, 2, "hostb", NULL, files, NULL), 0);
    assert_int_equal(
        journal_write(in_dir(t, "state/vms/gone2"), JOURNAL_DESTINATION, 2, "hostb", NULL, here, NULL), 0);
    json_decref(files);
    json_decref(here);
    assert_int_equal(xm_mkdir_all(in_dir(t, "run/vms/gone1"), NULL), 0);
    assert_int_equal(chmod(in_dir(t, "run"), 0700) | chmod(in_dir(t, "run/vms"), 0700) |
                         chmod(in_dir(t, "state"), 0700) | chmod(in_dir(t, "state/vms"), 0700),
                     0);
    assert_int_equal(test_agent_start(t), 0);
    assert_true(until_gone(t, "ds/gone2.raw"));
    assert_true(until_gone(t, "state/vms/gone2"));
    assert_true(until_gone(t, "state/vms/gone1"));
    for (struct limit l = limit_start(10); files_in("state/left") != 1 && limit_wait(&l);)
        ;
    assert_int_equal(files_in("state/left"), 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(who_asks_again_is_told_at_once),
        TEST(only_what_needs_it_waits),
        TEST(probes_do_not_stay),
        TEST(what_was_left_there_waits_for_it),
        TEST(what_is_left_on_it_holds_up_nothing),
        TEST(what_is_left_and_not_known_is_a_reason),
        TEST(what_it_left_there_keeps_it_from_nothing),
        TEST(a_start_asks_no_datastore_but_its_own),
        TEST(a_datastore_that_is_not_right_takes_no_disk),
        TEST(one_whose_directory_is_missing_keeps_no_agent_away),
        TEST(one_that_has_failed_keeps_no_agent_away),
        TEST(what_will_be_another_there_is_said),
        TEST(one_that_was_marked_unmounted_is_mended),
        TEST(the_first_use_needs_it_mounted), /* last: this process is in another mount namespace then */
    };
    int status;

    if (fake_shim_main(argc, argv, &status))
        return status;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("storage that hangs", tests, NULL, NULL);
}
