/* SPDX-License-Identifier: MIT */
/* Whoever has taken a QEMU over: what it can do on its host. A process of ours becomes what the QEMU of a
 * running VM is (user, groups, no capability, and the descriptor of its run directory) and tries. Each thing
 * that it must not reach is beside one that it can. */
#include "tests/progress.h"
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIR_FD 5 /* enum qemu_fd */

SMALL_GROUP("user", "", .no_nic = false)

static struct small other;

/* ---- who a process is ---- */

static pid_t pid_of(char host, const char *vm, const char *who)
{
    char path[256];
    int pid = 0;

    snprintf(path, sizeof path, "%s/%c/run/vms/%s/%s.pid", lab_run_dir(), host, vm, who);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    fclose(f);
    return pid;
}

/* A line of /proc/PID/status, "" when it is not there. */
static const char *status(pid_t pid, const char *name)
{
    static char value[200];
    char path[40], line[200];
    size_t len = strlen(name);

    value[0] = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, name, len) && line[len] == ':')
            snprintf(value, sizeof value, "%.*s", (int)strcspn(line + len + 2, "\n"), line + len + 2);
    }
    fclose(f);
    if (!strcmp(value, " "))
        value[0] = 0; /* no groups */
    return value;
}

static uid_t user_of(pid_t pid)
{
    return (uid_t)strtoul(status(pid, "Uid"), NULL, 10);
}

static void must_be_confined(pid_t qemu)
{
    char four[100];
    uid_t uid = user_of(qemu);

    assert_true(uid >= 2100000000u);
    snprintf(four, sizeof four, "%u\t%u\t%u\t%u", uid, uid, uid, uid);
    assert_string_equal(status(qemu, "Uid"), four);
    assert_string_equal(status(qemu, "Gid"), four);
    assert_string_equal(status(qemu, "Groups"), "");
    assert_string_equal(status(qemu, "NoNewPrivs"), "1");
    assert_string_equal(status(qemu, "CapBnd"), "0000000000000000");
    assert_string_equal(status(qemu, "CapPrm"), "0000000000000000");
}

/* ---- what it can do ---- */

struct
try {
    pid_t qemu, shim, victim; /* its own, its shim, another VM's QEMU */
    const char *secret;       /* root's, for it alone */
    const char *open_file;    /* for everybody */
    const char *agent;        /* the agent's socket */
    const char *tap;          /* the other VM's */
    int dir, tun; /* its run directory; /dev/net/tun in its network, which it could not open here */
};

/* In the child: the number of the line that went wrong; 0: all is as it has to be. */
#define WANT(what)                                                                                           \
    do {                                                                                                     \
        if (!(what))                                                                                         \
            return __LINE__;                                                                                 \
    } while (0)
#define REFUSED(call) ((call) < 0 && (errno == EACCES || errno == EPERM))

static int reach_files(const struct try *t)
{
    WANT(open(t->open_file, O_RDONLY) >= 0);
    WANT(REFUSED(open(t->secret, O_RDONLY)));
    WANT(REFUSED(open(t->secret, O_WRONLY)));
    WANT(REFUSED(access(t->agent, W_OK)));
    /* Its own run directory: the disks' sockets are for it, and nothing else. */
    WANT(faccessat(t->dir, "disk-one.sock", W_OK, 0) == 0);
    WANT(REFUSED(faccessat(t->dir, "shim.sock", W_OK, 0)));
    WANT(REFUSED(faccessat(t->dir, "qmp.sock", W_OK, 0)));
    WANT(REFUSED(faccessat(t->dir, "shim.json", R_OK, 0)));
    WANT(REFUSED(openat(t->dir, ".", O_RDONLY | O_DIRECTORY)));
    WANT(REFUSED(openat(t->dir, "new", O_WRONLY | O_CREAT, 0600)));
    WANT(REFUSED(unlinkat(t->dir, "disk-one.sock", 0)));
    /* From there on. */
    WANT(REFUSED(faccessat(t->dir, "../web2/disk-one.sock", W_OK, 0)));
    WANT(REFUSED(openat(t->dir, "../web2", O_PATH)));
    return 0;
}

static int reach_processes(const struct try *t)
{
    char path[64];

    WANT(kill(t->qemu, 0) == 0);
    WANT(REFUSED(kill(t->victim, 0)));
    WANT(REFUSED(kill(t->shim, 0)));
    WANT(REFUSED(ptrace(PTRACE_SEIZE, t->victim, 0, 0)));
    WANT(REFUSED(ptrace(PTRACE_SEIZE, t->shim, 0, 0)));
    snprintf(path, sizeof path, "/proc/%d/mem", t->victim);
    WANT(REFUSED(open(path, O_RDWR)));
    snprintf(path, sizeof path, "/proc/%d/fd/3",
             t->victim); /* its RAM, a memfd that is open to all who have a name of it */
    WANT(REFUSED(open(path, O_RDWR)));
    return 0;
}

static int reach_net(const struct try *t)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};

    snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", t->tap);
    WANT(REFUSED(ioctl(t->tun, TUNSETIFF, &ifr)));
    return 0;
}

static bool become(uid_t uid)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++) {
    }
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && setgroups(0, NULL) == 0 &&
           setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0;
}

static int try_all(struct try *t, int from, uid_t uid)
{
    WANT(setns(from, CLONE_NEWNET) == 0);
    WANT((t->tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) >= 0);
    WANT(become(uid));
    int line = reach_files(t);
    if (!line)
        line = reach_processes(t);
    return line ? line : reach_net(t);
}

static void must_be_contained(struct try *t)
{
    int from = (int)syscall(SYS_pidfd_open, t->qemu, 0), code = 0;
    uid_t uid = user_of(t->qemu);

    t->dir = (int)syscall(SYS_pidfd_getfd, from, DIR_FD, 0);
    assert_true(t->dir >= 0);
    pid_t pid = fork();
    if (pid == 0) {
        int line = try_all(t, from, uid);
        if (line)
            fprintf(stderr, "test_user.c:%d: %s\n", line, strerror(errno));
        _exit(line != 0); /* in the forked child only */
    }
    assert_int_equal(waitpid(pid, &code, 0), pid);
    assert_int_equal(code, 0);
    close(from);
    close(t->dir);
}

static void who_takes_a_qemu_over_has_nothing_but_its_guest(void **state)
{
    static const struct small_options usual;
    char secret[256], open_file[256], agent[256], path[256];

    (void)state;
    need_lab();
    small_must_start(&other, "a", "web2", &usual);
    snprintf(secret, sizeof secret, "%s/secret", lab_run_dir());
    snprintf(open_file, sizeof open_file, "%s/open", lab_run_dir());
    snprintf(agent, sizeof agent, "%s/a/run/agent.sock", lab_run_dir());
    assert_int_equal(sh(NULL, 5,
                        "cd %s && echo x >secret && chmod 600 secret && echo x >open && chmod 644 open",
                        lab_run_dir()),
                     0);
    snprintf(path, sizeof path, "%s/a/run/vms/web2/shim.json", lab_run_dir());
    json_t *shim = json_load_file(path, 0, NULL);
    json_t *nic = json_array_get(json_object_get(json_object_get(shim, "vm"), "nics"), 0);
    assert_true(string(nic, "tap")[0]);
    struct try t = {.qemu = pid_of('a', "web1", "qemu"),
                    .shim = pid_of('a', "web1", "shim"),
                    .victim = pid_of('a', "web2", "qemu"),
                    .secret = secret,
                    .open_file = open_file,
                    .agent = agent,
                    .tap = string(nic, "tap")};
    must_be_confined(t.qemu);
    must_be_confined(t.victim);
    assert_int_not_equal(user_of(t.qemu), user_of(t.victim));
    must_be_contained(&t);
    json_decref(shim);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force web2"), 0);
    assert_int_equal(sh(NULL, 5, "rm %s/a/ds1/web2-*", lab_store_dir()), 0);
}

/* What it has left it lacks nowhere: in moves, and as the one that comes after it. */
static void its_shim_works_with_what_it_keeps(void **state)
{
    static const char setuid_setgid_setpcap_module_mknod[] = "00000000080101c0";
    unsigned long long gone = strtoull(setuid_setgid_setpcap_module_mknod, NULL, 16);

    (void)state;
    need_lab();
    for (int i = 0; i < 2; i++) {
        const char *from = i ? "b" : "a", *to = i ? "a" : "b";
        pid_t shim = pid_of(*from, "web1", "shim");
        uid_t was = user_of(pid_of(*from, "web1", "qemu"));
        assert_int_equal(strtoull(status(shim, "CapPrm"), NULL, 16) & gone, 0);
        assert_int_equal(strtoull(status(shim, "CapBnd"), NULL, 16) & gone & ~0x1c0ull, 0);
        assert_int_equal(sh(NULL, 5,
                            "for t in /proc/%d/task/*; do [ $(sed -n 's/^CapPrm://p' $t/status) = $(sed -n "
                            "'s/^CapPrm://p' /proc/%d/status) ] || exit 1; done",
                            shim, shim),
                         0);
        kill(shim, SIGKILL);
        assert_true(wait_until(30, "p=$(cat %s/%s/run/vms/web1/shim.pid) && [ $p != %d ] && [ -d /proc/$p ]",
                               lab_run_dir(), from, shim));
        small_must_be_whole(&guest, from);
        must_be_confined(pid_of(*from, "web1", "qemu"));
        assert_int_equal(user_of(pid_of(*from, "web1", "qemu")), was);
        assert_int_equal(xmigrate_run(from, 0, NULL, "--with-storage web1 host%s", to), 0);
        small_must_be_whole(&guest, to);
        must_be_confined(pid_of(*to, "web1", "qemu"));
        host_must_be_clean(from);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_takes_a_qemu_over_has_nothing_but_its_guest),
        cmocka_unit_test(its_shim_works_with_what_it_keeps),
    };
    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
