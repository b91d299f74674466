/* SPDX-License-Identifier: MIT */
/* tests/unit/machine_confine.c: a real QEMU, as a VM's is started: who it is, what it may still do, and that
 * its memory can be tracked all the same, by a shim that has given up what it does not need. */
#include "machine/confine.h"
#include "machine/qemu.h"
#include "tests/progress.h"
#include "tests/unit/lib_ramchild.h"
#include "tests/unit/lib_tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct vm_spec spec;
static struct qemu qemu;
static struct qemu_user user;
static char run_dir[100];

static void need_root(void)
{
    if (!geteuid())
        return;
    print_message("skipped: only root can become another user\n");
    skip();
}

/* tmpdir is all VMs'. */
static const char *in_run_dir(const char *file)
{
    static char path[2][200];
    static unsigned turn;

    snprintf(path[++turn % 2], sizeof *path, "%s/%s", run_dir, file);
    return path[turn % 2];
}

static void make_run_dir(const char *name)
{
    snprintf(run_dir, sizeof run_dir, "%s", tmpdir_path(name));
    assert_int_equal(mkdir(run_dir, 0700), 0);
}

static void choose(const char *wanted, struct qemu_user *u)
{
    struct xm_error e = {0};

    if (qemu_user_choose(&spec, run_dir, wanted, u, &e) < 0)
        fail_msg("%s", e.text);
}

static void prepare(void)
{
    struct xm_error e = {0};

    if (!qemu_facts("qemu-system-x86_64", &e)) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    ramchild_need_tracking();
    spec = (struct vm_spec){.name = "confined",
                            .memory = 64 << 20,
                            .vcpus = 1,
                            .qemu = (char *)"qemu-system-x86_64",
                            .machine = (char *)"q35",
                            .accel = (char *)"tcg"};
    qemu_init(&qemu);
    make_run_dir("confined");
    choose(NULL, &user);
}

static void start(void)
{
    struct xm_error e = {0};
    struct qemu_place at = {.host = "hosta", .run_dir = run_dir, .user = &user};

    if (qemu_start(&qemu, &spec, &at, &e) < 0)
        fail_msg("%s", e.text);
}

static int teardown(void **state)
{
    static const char *const dirs[] = {"confined", "other", "private"};

    if (qemu.pid > 0)
        qemu_end(&qemu, &spec);
    for (unsigned i = 0; i < sizeof dirs / sizeof *dirs; i++)
        xm_rmdir_files(tmpdir_path(dirs[i]), NULL);
    return tmpdir_remove(state);
}

/* A line of /proc/PID/status, without its name and blanks. */
static const char *status(const char *name)
{
    static char line[200];
    char path[40], format[40];

    snprintf(path, sizeof path, "/proc/%d/status", (int)qemu.pid);
    snprintf(format, sizeof format, "%s: %%190[^\n]", name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char one[200] = "";
    while (fgets(line, sizeof line, f) && sscanf(line, format, one) != 1) {
    }
    fclose(f);
    return strcpy(line, one);
}

static void it_has_no_rights(void **state)
{
    (void)state;
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};

    prepare();
    start();
    for (unsigned i = 0; i < 5; i++) {
        if (strspn(status(sets[i]), "0") != 16)
            fail_msg("%s: %s", sets[i], status(sets[i]));
    }
    assert_string_equal(status("NoNewPrivs"), "1");
    assert_string_equal(status("Seccomp"), "2");
    assert_string_equal(status("Umask"), "0077");
}

static void it_is_a_user_of_its_own(void **state)
{
    (void)state;
    char four[100];

    need_root();
    prepare();
    start();
    assert_true(user.uid >= 2100000000u && user.uid == user.gid);
    snprintf(four, sizeof four, "%u\t%u\t%u\t%u", user.uid, user.uid, user.uid, user.uid);
    assert_string_equal(status("Uid"), four);
    assert_string_equal(status("Gid"), four);
    assert_string_equal(status("Groups"), "");
}

/* But for what it has to connect to again when a shim has died; and what it has made itself. */
static void the_run_directory_is_not_its_own(void **state)
{
    (void)state;
    static const char *const files[] = {"qmp.sock", "serial.sock", "qemu.log", "qemu.pid", "qemu.user"};
    struct stat st;

    need_root();
    prepare();
    spec.devices.vnc = (char *)"unix";
    start();
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(stat(in_run_dir(files[i]), &st), 0);
        assert_int_equal(st.st_mode & 077, 0);
        assert_int_equal(st.st_uid, 0);
    }
    assert_int_equal(stat(in_run_dir("vnc.sock"), &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    assert_int_equal(stat(run_dir, &st), 0);
    assert_int_equal(st.st_uid, 0);
    assert_int_equal(st.st_gid, user.gid);
    assert_int_equal(st.st_mode & 07777, 0710);
}

/* Files that root alone may read, below a directory that it alone may enter. */
static void it_gets_what_it_cannot_open(void **state)
{
    (void)state;
    const char *code = tmpdir_write("code.fd", ""), *vars = tmpdir_write("vars.fd", ""),
               *iso = tmpdir_write("a.iso", "");
    struct xm_error e = {0};

    assert_int_equal(truncate(code, 256 << 10) || truncate(vars, 64 << 10) || truncate(iso, 4096), 0);
    assert_int_equal(chmod(code, 0600) || chmod(vars, 0600) || chmod(iso, 0600), 0);
    prepare();
    spec.firmware = (char *)code;
    spec.cdroms = 1;
    spec.cdrom[0] = (struct vm_cdrom){.name = "seed", .path = (char *)iso};
    spec.devices.vnc = (char *)"614";
    spec.devices.vnc_password = (char *)"pw";
    for (int flash = 0; flash < 2; flash++) {
        struct qemu_place at = {
            .host = "hosta", .run_dir = run_dir, .user = &user, .nvram = vars, .vnc_address = "127.0.0.1"};
        spec.nvram = flash ? (char *)"/template" : NULL;
        if (qemu_start(&qemu, &spec, &at, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(qemu_firmware_size(&qemu), 256 << 10);
        qemu_end(&qemu, &spec);
    }
}

static void each_vm_has_another_and_keeps_it(void **state)
{
    (void)state;
    struct qemu_user again, others;

    need_root();
    prepare();
    start();
    choose(NULL, &again); /* by the shim that comes after one that was killed */
    assert_int_equal(again.uid, user.uid);
    choose("root", &again); /* as somebody has changed his mind meanwhile: it is what it is */
    assert_int_equal(again.uid, user.uid);
    make_run_dir("other");
    /* There is one only that is free. */
    char range[40];
    struct xm_error e = {0};
    snprintf(range, sizeof range, "%u-%u", user.uid, user.uid + 1);
    choose(range, &others);
    assert_int_equal(others.uid, user.uid + 1);
    make_run_dir("private");
    snprintf(range, sizeof range, "%u-%u", user.uid, user.uid);
    assert_int_equal(qemu_user_choose(&spec, run_dir, range, &again, &e), -EAGAIN);
    /* By the process alone. */
    assert_int_equal(unlink(tmpdir_path("confined/qemu.user")), 0);
    assert_int_equal(qemu_user_choose(&spec, run_dir, range, &again, &e), -EAGAIN);
    /* What an ended QEMU has left says nothing of the next one. */
    qemu_end(&qemu, &spec);
    snprintf(run_dir, sizeof run_dir, "%s", tmpdir_path("confined"));
    assert_int_equal(access(in_run_dir("qemu.pid"), F_OK), 0);
    choose(range, &again);
    assert_int_equal(again.uid, user.uid);
}

/* It is said, where somebody wants it; and where nobody does, QEMU runs, as before there was such a user. */
static void who_cannot_run_it_is_not_taken(void **state)
{
    (void)state;
    struct xm_error e = {0};

    need_root();
    prepare();
    make_run_dir("private");
    char *program = xm_printf("%s/qemu", run_dir);
    assert_int_equal(symlink("/bin/true", program), 0);
    spec.qemu = program;
    choose(NULL, &user);
    assert_int_equal(user.uid, 0);
    assert_int_equal(qemu_user_choose(&spec, run_dir, "4000000-4000100", &user, &e), -EACCES);
    if (!strstr(e.text, "qemu_user = 4000000-4000100: user 4000") || !strstr(e.text, "may not run"))
        fail_msg("%s", e.text);
    free(program);
}

static bool lose(unsigned cap)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct set[2];

    if (syscall(SYS_capget, &head, set) < 0)
        return false;
    set[cap / 32].effective &= ~(1u << cap % 32);
    set[cap / 32].permitted &= ~(1u << cap % 32);
    return syscall(SYS_capset, &head, set) == 0;
}

/* In a container, say: root can do to its own processes what it cannot do to another user's. */
static void who_cannot_be_tracked_or_ended_is_not_taken(void **state)
{
    (void)state;
    static const unsigned caps[] = {CAP_SYS_PTRACE, CAP_KILL, CAP_SETUID, CAP_CHOWN};
    static const char *const said[] = {"as another user, the memory of VMs cannot be tracked",
                                       "cannot be ended", "no process can become user", "cannot open"};

    need_root();
    prepare();
    make_run_dir("private");
    for (unsigned i = 0; i < sizeof caps / sizeof *caps; i++) {
        int code = 0;
        pid_t pid = fork();
        if (pid == 0) {
            struct qemu_user u;
            struct xm_error e = {0};
            bool good = lose(caps[i]) && qemu_user_choose(&spec, run_dir, NULL, &u, &e) == 0 && !u.uid &&
                        qemu_user_choose(&spec, run_dir, "4000000-4000100", &u, &e) < 0;
            if (!good || !strstr(e.text, said[i]))
                fprintf(stderr, "without capability %u: user %u, '%s'\n", caps[i], u.uid, e.text);
            _exit(!good || !strstr(e.text, said[i])); /* in the forked child only */
        }
        assert_int_equal(waitpid(pid, &code, 0), pid);
        assert_int_equal(code, 0);
        assert_int_not_equal(access(in_run_dir("qemu.user"), F_OK), 0);
    }
}

static void the_key_is_understood(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "", "5", "5-", "9-5", "1-4294967295", "0-5", "7-9x", "no such account"};
    struct qemu_users u;
    struct xm_error e = {0};

    assert_int_equal(qemu_users_find("root", &u, &e), 0);
    assert_int_equal(u.last, 0);
    assert_int_equal(qemu_users_find("70000-70009", &u, &e), 0);
    assert_true(u.first == 70000 && u.last == 70009 && !u.name);
    assert_int_equal(qemu_users_find("daemon", &u, &e), 0);
    assert_true(u.first && u.first == u.last && u.first_one.gid && !strcmp(u.name, "daemon"));
    qemu_users_free(&u);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (qemu_users_find(wrong[i], &u, &e) >= 0)
            fail_msg("'%s' is a user", wrong[i]);
    }
}

static void a_shim_with_what_it_needs_tracks_its_memory(void **state)
{
    (void)state;
    struct xm_error e = {0};
    struct xm_ram ram = {0};
    struct xm_tracker *t = NULL;
    struct xm_bitmap dirty = {0};
    uint64_t pages = 0;

    prepare();
    confine_shim(false);
    start();
    confine_shim(true);
    if (xm_ram_find(&ram, qemu.pid, &e) < 0 || xm_tracker_open(&t, &ram, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(xm_bitmap_init(&dirty, ram.block[0].size / XM_PAGE), 0);
    if (xm_tracker_collect(t, &dirty, &pages, &e) < 0)
        fail_msg("%s", e.text);
    /* It writes its first pages when it runs: its firmware's. */
    assert_int_equal(qemu_continue(&qemu, LIMIT_HANG_NS, &e), 0);
    uint64_t seen = 0;
    for (struct limit l = limit_start(20); !seen && limit_wait(&l); seen += pages) {
        if (xm_tracker_collect(t, &dirty, &pages, &e) < 0)
            fail_msg("%s", e.text);
    }
    assert_true(seen > 0);
    xm_tracker_close(t);
    xm_bitmap_destroy(&dirty);
    xm_ram_close(&ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_has_no_rights, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(it_is_a_user_of_its_own, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(the_run_directory_is_not_its_own, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(it_gets_what_it_cannot_open, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(each_vm_has_another_and_keeps_it, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(who_cannot_run_it_is_not_taken, tmpdir_make, teardown),
        cmocka_unit_test_setup_teardown(who_cannot_be_tracked_or_ended_is_not_taken, tmpdir_make, teardown),
        cmocka_unit_test(the_key_is_understood),
        /* The last: this process is no more after it what it was. */
        cmocka_unit_test_setup_teardown(a_shim_with_what_it_needs_tracks_its_memory, tmpdir_make, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
