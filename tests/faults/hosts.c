/* SPDX-License-Identifier: MIT */
/* What a fault does to a host of the lab, and takes back.
 *
 * Power: all processes of the host are stopped at once, its three file systems (state directory and
 * datastores, each an ext4 of its own) are shut down without their journals being written (FS_IOC_SHUTDOWN,
 * NOLOGFLUSH): what no fsync, O_DSYNC write or sync had made durable is gone, files and names and the extents
 * of direct writes alike. Then the processes are killed, and everything that is made of memory goes. What
 * stays though it might be lost in a real power cut: direct writes to blocks that the file had already, which
 * lie in the disk's cache there.
 *
 * Read-only: a mount of the same directory with that flag is put over it, so that what is open stays
 * writable. Made private first: the lab's mounts are shared, and what is mounted on one is mounted on its
 * copy, too, and goes with it. */
#include "tests/faults/faults.h"
#include "tests/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#ifndef FS_IOC_SHUTDOWN /* linux/fs.h of Linux 6.8 */
#define FS_IOC_SHUTDOWN _IOR('X', 125, uint32_t)
#endif
#define NOLOGFLUSH 2u

char host_of(const struct world *w, enum side side)
{
    return (w->home == 'a') == (side == SOURCE) ? 'a' : 'b';
}

static void path_of(char host, const char *name, char *path, size_t size)
{
    bool store = !strncmp(name, "ds", 2);

    snprintf(path, size, "%s/%c/%s", store ? lab_store_dir() : lab_run_dir(), host, name);
}

static const char *const systems[] = {"state", "run", "ds1", "ds2"};

/* Of those: the first and how many. */
static void range_of(enum where where, int *first, int *count)
{
    *first = where == STATE ? 0 : where == RUN ? 1 : 2;
    *count = where == STORES ? 2 : 1;
}

bool hosts_up(struct world *w)
{
    static const struct small_options options;
    const char *why;

    setenv("XM_LAB_FAULTS", "yes", 1);
    if (lab_up("faults", "XM_LAB_VM=none XM_LAB_OWN=yes XM_LAB_STORE=256M XM_LAB_LINK_TIMEOUT=3s") < 0)
        return false;
    memset(w, 0, sizeof *w);
    w->home = 'a';
    w->ds = 1;
    if (!(why = small_start(&w->guest, "a", VM, &options)))
        return true;
    fprintf(stderr, VM " does not start: %s\n", why);
    return false;
}

/* ---- processes ---- */

static bool is_ours(pid_t pid)
{
    char path[64], line[8192] = "";
    size_t n, i;

    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    n = fread(line, 1, sizeof line - 1, f);
    fclose(f);
    for (i = 0; i < n; i++)
        line[i] = line[i] ? line[i] : ' ';
    return strstr(line, lab_run_dir()) != NULL;
}

pid_t host_pid(char host, enum who who)
{
    char path[256];
    int pid = 0;

    if (who == AGENT)
        snprintf(path, sizeof path, "%s/%c/agent.pid", lab_run_dir(), host);
    else
        snprintf(path, sizeof path, "%s/%c/run/vms/" VM "/%s.pid", lab_run_dir(), host,
                 who == SHIM ? "shim" : "qemu");
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    if (fscanf(f, "%d", &pid) != 1)
        pid = 0;
    fclose(f);
    return pid > 0 && is_ours(pid) ? pid : 0;
}

static void signal_one(const struct world *w, const struct fault *f, struct job *move, int sig)
{
    pid_t pid = f->who == CLI ? move->pid : host_pid(host_of(w, f->side), f->who);

    if (pid > 0)
        kill(pid, sig);
}

/* Every process of the host. */
static void signal_all(char host, int sig)
{
    char *out = NULL, *at;

    sh(&out, 10, "ip netns pids %s-host%c", lab_prefix(), host);
    for (at = out; at && *at; at += strcspn(at, "\n"), at += *at == '\n') {
        int pid = atoi(at);
        if (pid > 1)
            kill(pid, sig);
    }
    free(out);
}

void host_wake(char host)
{
    signal_all(host, SIGCONT);
}

bool agent_up(char host)
{
    char *out = NULL;

    if (host_pid(host, AGENT))
        return true;
    bool up = sh(&out, 60, "tests/system/lab.sh agent %c", host) == 0;
    if (!up)
        fprintf(stderr, "the agent of host%c does not start: %s\n", host, out ? out : "");
    free(out);
    return up;
}

/* ---- networks ---- */

static void link_state(const char *name, const char *state)
{
    sh(NULL, 5, "ip -n %s-hosta link set %s %s", lab_prefix(), name, state);
}

/* A queue that takes nothing: a packet is lost without a word. */
static void shape(const char *how)
{
    sh(NULL, 5, "for h in a b; do for l in link1 link2; do ip netns exec %s-host$h tc qdisc %s; done; done",
       lab_prefix(), how);
}

/* ---- file systems ---- */

static void fill(char host, const char *name)
{
    static char zeros[65536];
    char path[300];
    struct statvfs st;
    int len = 0;

    path_of(host, name, path, sizeof path - 10);
    len = (int)strlen(path);
    snprintf(path + len, sizeof path - (size_t)len, "/filler");
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (fstatvfs(fd, &st) == 0 && posix_fallocate(fd, 0, (off_t)(st.f_bavail * st.f_frsize)) != 0)
        lseek(fd, 0, SEEK_END);
    while (write(fd, zeros, sizeof zeros) > 0) {
    }
    while (write(fd, zeros, 512) > 0) {
    }
    close(fd);
}

static void unfill(char host, const char *name)
{
    char path[300];

    path_of(host, name, path, sizeof path);
    strncat(path, "/filler", sizeof path - strlen(path) - 1);
    unlink(path);
}

static void seal(char host, const char *name)
{
    char path[300];

    path_of(host, name, path, sizeof path);
    sh(NULL, 10,
       "d=$(mktemp -d) && mount --bind %s $d && mount --make-private $d && mount -o remount,bind,ro $d && "
       "mount --bind $d %s; umount $d; rmdir $d",
       path, path);
}

static void unseal(char host, const char *name)
{
    char path[300];

    path_of(host, name, path, sizeof path);
    sh(NULL, 10, "grep -q ' %s [^ ]* ro[, ]' /proc/mounts && umount -l %s", path, path);
}

static void cut(struct world *w, char host)
{
    static const char *const durable[] = {"state", "ds1", "ds2"};
    uint32_t how = NOLOGFLUSH;

    signal_all(host, SIGSTOP);
    small_read(&w->guest);
    for (unsigned i = 0; i < 3; i++) {
        char path[300];
        path_of(host, durable[i], path, sizeof path);
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, FS_IOC_SHUTDOWN, &how) < 0)
            fprintf(stderr, "%s cannot be shut down: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    small_deafen(&w->guest, host);
    sh(NULL, 60, "tests/system/lab.sh off %c", host);
    w->torn = w->may_end = true;
}

static void boot(struct world *w, char host)
{
    char *out = NULL;

    if (sh(&out, 90, "tests/system/lab.sh on %c", host) != 0)
        fprintf(stderr, "host%c does not boot: %s\n", host, out ? out : "");
    free(out);
    small_listen(&w->guest, host); /* before anybody starts a guest there */
    agent_up(host);
}

static bool put(const char *path, bool sync)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, "kept?", 5) == 5 && (!sync || fsync(fd) == 0);

    if (fd >= 0)
        close(fd);
    return ok;
}

static off_t size_of(const char *path)
{
    struct stat st;

    return stat(path, &st) ? -1 : st.st_size;
}

const char *power_is_power(struct world *w)
{
    static const char *const where[] = {"state", "ds1"};
    char synced[2][300], not_synced[2][300];

    for (unsigned i = 0; i < 2; i++) {
        path_of('b', where[i], synced[i], 250);
        path_of('b', where[i], not_synced[i], 250);
        strcat(synced[i], "/synced");
        strcat(not_synced[i], "/not-synced");
        if (!put(synced[i], true) || !put(not_synced[i], false))
            return "its files cannot be written";
    }
    cut(w, 'b');
    boot(w, 'b');
    for (unsigned i = 0; i < 2; i++) {
        if (size_of(synced[i]) != 5)
            return "a file that was synced is gone";
        if (size_of(not_synced[i]) == 5)
            return "what was not synced is still there: this kernel's ext4 does not shut down";
        unlink(synced[i]);
        unlink(not_synced[i]);
    }
    return NULL;
}

/* As the agent sees it, which is in a mount namespace of its own. */
static bool agent_may_write(char host, const char *name)
{
    char path[300], at[400];

    path_of(host, name, path, sizeof path);
    snprintf(at, sizeof at, "/proc/%d/root%s/may-write", (int)host_pid(host, AGENT), path);
    bool may = put(at, false);
    unlink(at);
    return may;
}

const char *sealed_is_sealed(void)
{
    for (unsigned i = 0; i < sizeof systems / sizeof *systems; i++) {
        seal('b', systems[i]);
        bool sealed = !agent_may_write('b', systems[i]);
        unseal('b', systems[i]);
        if (!sealed)
            return "what is read-only can be written to";
        if (!agent_may_write('b', systems[i]))
            return "what was read-only stays so";
    }
    return NULL;
}

/* ---- faults ---- */

static void point_path(const struct world *w, const struct fault *f, char path[200])
{
    snprintf(path, 200, "%s/%c/fault", lab_run_dir(), host_of(w, f->side));
}

bool fault_struck(const struct world *w, const struct fault *f)
{
    char path[200];

    point_path(w, f, path);
    return access(path, F_OK) != 0;
}

/* Made elsewhere and moved, so that nobody reads half of it. */
static void arm(const struct world *w, const struct fault *f)
{
    char path[200], tmp[210];

    point_path(w, f, path);
    snprintf(tmp, sizeof tmp, "%s.new", path);
    FILE *out = fopen(tmp, "w");
    if (!out)
        return;
    fprintf(out, "%s:%u:%s\n", f->point, f->passage, strcmp(f->action, "cut") ? f->action : "stop");
    fclose(out);
    rename(tmp, path);
}

static void over_all(const struct world *w, const struct fault *f, void (*act)(char, const char *))
{
    int first, count;

    range_of(f->where, &first, &count);
    for (int i = first; i < first + count; i++)
        act(host_of(w, f->side), systems[i]);
}

static void with_job(const struct world *w, const char *words)
{
    char host[2] = {w->home, 0}, *out = NULL;

    if (sh(&out, 20, "%s", xmigrate(host, "--json jobs")) == 0) {
        json_t *o = last_json(out), *list = json_object_get(o, "jobs");
        if (json_array_size(list))
            sh(NULL, 30, "%s",
               xmigrate(host, "%s %s", words,
                        string(json_array_get(list, json_array_size(list) - 1), "job")));
        json_decref(o);
    }
    free(out);
}

void fault_begin(struct world *w, const struct fault *f, struct job *move)
{
    char home[2] = {w->home, 0};

    switch (f->kind) {
    case KILL:
    case TERM:
        signal_one(w, f, move, f->kind == KILL ? SIGKILL : SIGTERM);
        w->may_end |= f->who == QEMU || (f->who == SHIM && f->kind == TERM);
        break;
    case STOP:
        signal_one(w, f, move, SIGSTOP);
        break;
    case DOWN:
        link_state("link1", "down");
        link_state("link2", "down");
        break;
    case ONE:
        link_state("link2", "down");
        break;
    case CONTROL:
        link_state("control", "down");
        break;
    case DROP:
        shape("replace dev $l root pfifo limit 0");
        break;
    case SLOW:
        shape("replace dev $l root tbf rate 2mbit burst 16kb latency 50ms");
        break;
    case FULL:
        over_all(w, f, fill);
        break;
    case SEALED:
        over_all(w, f, seal);
        break;
    case ABORT:
        with_job(w, "abort");
        break;
    case SECOND:
        sh(NULL, 60, "%s", xmigrate(home, "--detach --with-storage " VM " host%c", host_of(w, DESTINATION)));
        break;
    case CUT:
        cut(w, host_of(w, f->side));
        break;
    case POINT:
        arm(w, f);
        break;
    case KINDS:
        break;
    }
}

void fault_end(struct world *w, const struct fault *f, struct job *move)
{
    char path[200], host = host_of(w, f->side);

    switch (f->kind) {
    case KILL:
    case TERM:
        if (f->who == AGENT)
            agent_up(host);
        break;
    case STOP:
        if (f->who == CLI)
            signal_one(w, f, move, SIGCONT);
        else
            host_wake(host);
        break;
    case DOWN:
        link_state("link1", "up");
        link_state("link2", "up");
        break;
    case ONE:
        link_state("link2", "up");
        break;
    case CONTROL:
        link_state("control", "up");
        break;
    case DROP:
    case SLOW:
        shape("del dev $l root");
        break;
    case FULL:
        over_all(w, f, unfill);
        break;
    case SEALED:
        over_all(w, f, unseal);
        break;
    case CUT:
        boot(w, host);
        break;
    case POINT:
        point_path(w, f, path);
        if (unlink(path) == 0)
            break; /* it was not reached */
        if (!strcmp(f->action, "cut"))
            boot(w, host);
        else
            host_wake(host);
        agent_up(host);
        break;
    default:
        break;
    }
}

/* Reached: with `cut` its process stands there. */
void fault_follow(struct world *w, const struct fault *f)
{
    if (f->kind == POINT && !strcmp(f->action, "cut"))
        cut(w, host_of(w, f->side));
}
