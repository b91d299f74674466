/* SPDX-License-Identifier: MIT */
/* The QEMU process of a VM: its start, what it is asked, its end. Its command line: arguments.c. */
#include "machine/confine.h"
#include "machine/qemu.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT (20 * XM_NS_PER_S)
#define QUIT_TIMEOUT  (5 * XM_NS_PER_S)
#define CANCEL_TIME   (20 * XM_NS_PER_MS) /* what QEMU takes by itself is a tenth of it */

void qemu_init(struct qemu *q)
{
    memset(q, 0, sizeof *q);
    q->pidfd = -1;
    pthread_mutex_init(&q->qmp.lock, NULL);
    xm_jsonl_init(&q->qmp.conn, -1);
}

static int pidfd_open_(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

bool qemu_alive(const struct qemu *q)
{
    struct pollfd p = {.fd = q->pidfd, .events = POLLIN};

    return q->pid > 0 && q->pidfd >= 0 && poll(&p, 1, 0) == 0;
}

void qemu_wait_end(const struct qemu *q, uint64_t timeout_ns)
{
    struct pollfd p = {.fd = q->pidfd, .events = POLLIN};

    if (q->pid > 0 && q->pidfd >= 0)
        poll(&p, 1, (int)(timeout_ns / XM_NS_PER_MS));
}

static bool alive_cb(void *ctx)
{
    return qemu_alive(ctx);
}

/* The last line of QEMU's log, for the sentence that says why it did not start. */
static void last_line(const char *path, char *out, size_t size)
{
    char *text = NULL;
    size_t len = 0;

    out[0] = 0;
    if (xm_file_read(path, 1 << 20, &text, &len, NULL) < 0)
        return;
    while (len && text[len - 1] == '\n')
        text[--len] = 0;
    const char *nl = strrchr(text, '\n');
    snprintf(out, size, "%s", nl ? nl + 1 : text);
    free(text);
}

static int write_pid(const char *run_dir, pid_t pid, struct xm_error *e)
{
    char *path = xm_printf("%s/qemu.pid", run_dir);
    char text[32];
    int n = snprintf(text, sizeof text, "%d\n", pid);
    int r = xm_file_replace(path, text, (size_t)n, e);

    free(path);
    return r;
}

/* In the forked child, which is to be QEMU. Whoever looks for QEMU goes by qemu.pid: so there is none
 * without that, whenever its shim is killed. Before it stands there the child ends with the shim; from then
 * on it does not. */
static void be_found(const char *run_dir, pid_t shim)
{
    struct xm_error e = {0};

    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != shim)
        _exit(127); /* in the forked child only */
    if (write_pid(run_dir, getpid(), &e) < 0) {
        dprintf(2, "%s\n", e.text);
        _exit(127); /* in the forked child only */
    }
    prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
}

static void child_exec(char **argv, const char *log, const struct hand *hand, const struct qemu_place *at,
                       pid_t shim)
{
    sigset_t none;
    int in = open("/dev/null", O_RDONLY);
    int out = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW, 0600);

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    /* Nothing that a VM names is to mean a file of whatever directory the agent was started in. */
    if (chdir("/") < 0)
        dprintf(out, "cannot go to /: %s\n", strerror(errno));
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    be_found(at->run_dir, shim);
    if (!hand_over(hand)) {
        dprintf(2, "cannot pass on what QEMU needs: %s\n", strerror(errno));
        _exit(127); /* in the forked child only */
    }
    const char *refused = at->rights ? NULL : confine_self(at->user);
    if (refused) {
        dprintf(2, "cannot give up what QEMU does not need (%s): %s\n", refused, strerror(errno));
        _exit(127); /* in the forked child only */
    }
    execvp(argv[0], argv);
    dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127); /* in the forked child only */
}

/* A sandboxed QEMU has to be one whose memory can still be tracked: a VM that cannot move is no help. */
static bool may_sandbox(const struct vm_spec *vm, const struct qemu_facts *knows)
{
    struct xm_error why = {0};

    if (!knows->sandbox)
        xm_log(XM_LOG_WARN, "VM %s: %s has no -sandbox (it was built without seccomp): QEMU runs without it",
               vm->name, vm->qemu);
    else if (probe_tracking_sandboxed(&why) == 0)
        return true;
    else if (probe_tracking(NULL) == 0)
        xm_log(XM_LOG_WARN, "VM %s: QEMU runs without its sandbox, in which %s", vm->name, why.text);
    else
        return true; /* it cannot be tracked either way */
    return false;
}

static int spawn(struct qemu *q, const struct vm_spec *vm, const struct qemu_place *at,
                 const struct hand *hand, struct xm_error *e)
{
    const struct qemu_facts *knows = qemu_facts(vm->qemu, e);

    if (!knows)
        return -XM_MAX(e->code, 1);
    struct qemu_facts here = *knows;
    here.sandbox = may_sandbox(vm, knows);
    char **args = qemu_arguments(vm, &here, at);
    char *log = xm_printf("%s/qemu.log", at->run_dir);

    pid_t shim = getpid(), pid = args ? fork() : -1;
    if (pid == 0)
        child_exec(args, log, hand, at, shim);
    int code = errno;
    xm_fault("qemu-spawned");
    qemu_arguments_free(args);
    free(log);
    if (pid < 0)
        return xm_error_errno(e, code, "cannot start %s", vm->qemu);
    q->pid = pid;
    q->child = true;
    q->pidfd = pidfd_open_(pid);
    return 0;
}

/* Not on the command line, which every user of the host may read. */
static int write_vnc_password(const struct vm_spec *vm, const struct qemu_place *at, struct xm_error *e)
{
    const char *password = vm->devices.vnc_password;

    if (!password)
        return 0;
    char *path = xm_printf("%s/vnc.secret", at->run_dir);
    int r = xm_file_replace(path, password, strlen(password), e);
    if (!r && at->user)
        r = qemu_user_give(at->user, path, e);
    free(path);
    return r;
}

/* A peer that asks for a VM is not told what a program says of this host's files. */
static int say_why(const struct vm_spec *vm, const struct qemu_place *at, const struct xm_error *why,
                   struct xm_error *e)
{
    char *log = xm_printf("%s/qemu.log", at->run_dir), said[300];

    last_line(log, said, sizeof said);
    free(log);
    if (!at->incoming)
        return xm_error_set(e, why->code, "QEMU did not start: %s%s%s", why->text, said[0] ? ": " : "", said);
    xm_log(XM_LOG_ERROR, "VM %s: QEMU did not start: %s: %s", vm->name, why->text, said);
    return xm_error_set(e, why->code,
                        "QEMU did not start: see qemu.log on %s (logs/%s-qemu.log in its state directory)",
                        at->host, vm->name);
}

/* All that follows is about the process that we started: its memory, its end. It has to be QEMU itself. */
static int check_process(const struct qemu *q, const char *program, struct xm_error *e)
{
    struct ucred who = {0};
    socklen_t n = sizeof who;

    /* unix(7): who listens, as it was when it began to. */
    if (getsockopt(q->qmp.conn.fd, SOL_SOCKET, SO_PEERCRED, &who, &n) < 0)
        return xm_error_errno(e, errno, "cannot see which process QEMU is");
    if (who.pid == q->pid)
        return 0;
    return xm_error_set(e, EINVAL,
                        "the program '%s' is process %d and QEMU, which it has started, another one (%d): a "
                        "wrapper has to end in `exec qemu-system-...`, so that it becomes QEMU",
                        program, q->pid, who.pid);
}

/* A display's socket QEMU makes itself. It may do so until it is up: it knows nothing yet of a guest or a
 * peer. What is there already stays whose it is (the sticky bit): one before it, of the same user, may have
 * been taken over, and have left a process (machine_wait_anew). */
static int let_make_sockets(const struct vm_spec *vm, const struct qemu_place *at, bool yes,
                            struct xm_error *e)
{
    if (!at->user || !at->user->uid || !vm->devices.vnc || strcmp(vm->devices.vnc, "unix") != 0)
        return 0;
    return chmod(at->run_dir, yes ? 01730 : 0710) < 0
               ? xm_error_errno(e, errno, "cannot change the mode of %s", at->run_dir)
               : 0;
}

int qemu_start(struct qemu *q, const struct vm_spec *vm, const struct qemu_place *at, struct xm_error *e)
{
    char *path = xm_printf("%s/qmp.sock", at->run_dir);
    struct xm_error why = {0};
    struct hand hand;
    int r = hand_open(&hand, vm, at, e);

    if (!r)
        r = write_vnc_password(vm, at, e);
    if (!r)
        r = let_make_sockets(vm, at, true, e);
    if (!r)
        r = spawn(q, vm, at, &hand, e);
    hand_close(&hand);
    if (!r && qmp_open(&q->qmp, path, xm_now() + START_TIMEOUT, alive_cb, q, &why) < 0)
        r = say_why(vm, at, &why, e);
    free(path);
    if (!r)
        r = let_make_sockets(vm, at, false, e);
    if (!r)
        r = check_process(q, vm->qemu, e);
    if (r)
        qemu_end(q, vm);
    return r;
}

/* With a slash behind it: web1 is not web10. */
static bool names_dir(const char *cmdline, size_t len, const char *run_dir)
{
    char *dir = xm_printf("%s/", run_dir);
    bool is = memmem(cmdline, len, dir, strlen(dir)) != NULL;

    free(dir);
    return is;
}

/* 0: there is none. *pidfd is the caller's otherwise. */
static pid_t find_left(const char *run_dir, int *pidfd)
{
    char *path = xm_printf("%s/qemu.pid", run_dir), *text = NULL, *cmdline = NULL;
    size_t len = 0;
    pid_t pid = xm_file_read(path, 64, &text, &len, NULL) < 0 ? 0 : (pid_t)atoi(text);

    free(path);
    free(text);
    *pidfd = pid > 1 ? pidfd_open_(pid) : -1;
    if (*pidfd < 0)
        return 0;
    /* A number may have been given to somebody else since: our QEMU names our directory on its command line.
     */
    path = xm_printf("/proc/%d/cmdline", pid);
    if (xm_file_read(path, 1 << 20, &cmdline, &len, NULL) < 0 || !names_dir(cmdline, len, run_dir)) {
        close(*pidfd);
        *pidfd = -1;
        pid = 0;
    }
    free(path);
    free(cmdline);
    return pid;
}

bool qemu_is_left(const char *run_dir)
{
    int pidfd;
    bool is = find_left(run_dir, &pidfd) > 0;

    if (is)
        close(pidfd);
    return is;
}

int qemu_adopt(struct qemu *q, const char *run_dir, struct xm_error *e)
{
    int pidfd;
    pid_t pid = find_left(run_dir, &pidfd);

    if (!pid)
        return -ESRCH;
    q->pidfd = pidfd;
    q->pid = pid;
    q->child = false;
    char *path = xm_printf("%s/qmp.sock", run_dir);
    int r = qmp_open(&q->qmp, path, xm_now() + START_TIMEOUT, alive_cb, q, e);
    free(path);
    if (r) /* it hangs, perhaps; its guest is not to end for that */
        qemu_leave(q);
    return r;
}

/* NAME, page size with its unit, 0xOFFSET, 0xUSED, 0xTOTAL, …: the first line says so, the others are one
 * block each. of: one block's name, NULL for all. */
static uint64_t ramblocks(const char *text, const char *of)
{
    uint64_t sum = 0, used;

    for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        const char *at = line, *end = line + strcspn(line, "\n"), *name = line + strspn(line, " ");
        size_t n = strcspn(name, " \n");
        if (of && (strlen(of) != n || strncmp(of, name, n) != 0))
            continue;
        while ((at = memmem(at, (size_t)(end - at), " 0x", 3)) && sscanf(at, " 0x%*x 0x%" SCNx64, &used) != 1)
            at++;
        if (at)
            sum += used;
    }
    return sum;
}

uint64_t qemu_ramblocks_sum(const char *text)
{
    return ramblocks(text, NULL);
}

uint64_t qemu_ramblock_used(const char *text, const char *name)
{
    return ramblocks(text, name);
}

uint64_t qemu_firmware_size(struct qemu *q)
{
    json_t *text = qmp_call(&q->qmp, "human-monitor-command",
                            json_pack("{s:s}", "command-line", "info ramblock"), 5 * XM_NS_PER_S, NULL);
    const char *blocks = json_is_string(text) ? json_string_value(text) : "";
    uint64_t bios = qemu_ramblock_used(blocks, "pc.bios"),
             flash = qemu_ramblock_used(blocks, "system.flash0");

    json_decref(text);
    return flash ? flash : bios;
}

int qemu_other_ram(struct qemu *q, const struct xm_ram *ram, uint64_t *bytes, struct xm_error *e)
{
    json_t *text = qmp_call(&q->qmp, "human-monitor-command",
                            json_pack("{s:s}", "command-line", "info ramblock"), 10 * XM_NS_PER_S, e);
    uint64_t all = json_is_string(text) ? qemu_ramblocks_sum(json_string_value(text)) : 0, ours = 0;

    for (unsigned i = 0; i < ram->blocks; i++)
        ours += ram->block[i].size;
    json_decref(text);
    if (!text)
        return -e->code;
    if (all < ours)
        return xm_error_set(e, EPROTO, "QEMU says of its RAM what is not understood here (info ramblock)");
    *bytes = all - ours;
    return 0;
}

static bool migration_ended(const char *status)
{
    static const char *const idle[] = {"none", "cancelled", "failed", "completed"};
    for (unsigned i = 0; i < 4; i++) {
        if (!strcmp(status, idle[i]))
            return true;
    }
    return false;
}

/* A migration that is cancelled after it has stopped the VM, and before it is at pre-switchover, then waits
 * there for migrate-continue, in «cancelling» (7.2: one of six; 10 and 11: none of 150). One such word too
 * many is dropped by the next migration. */
static void let_it_be_cancelled(struct qemu *q, uint64_t timeout_ns)
{
    qmp_do(&q->qmp, "migrate-continue", json_pack("{s:s}", "state", "cancelling"), timeout_ns, NULL);
}

int qemu_cancel_migration(struct qemu *q, uint64_t timeout_ns, struct xm_error *e)
{
    uint64_t deadline = xm_now() + timeout_ns, cancelling = 0;
    bool asked = false;

    for (;;) {
        json_t *st = qmp_call(&q->qmp, "query-migrate", NULL, timeout_ns, e);
        bool over = migration_ended(xm_json_str(st, "status", "none"));
        bool waits = asked && !strcmp(xm_json_str(st, "status", ""), "cancelling");
        json_decref(st);
        if (!st)
            return -EIO;
        if (over)
            return 0;
        if (xm_now() > deadline)
            return xm_error_set(e, ETIMEDOUT, "QEMU does not end its migration");
        if (!asked && qmp_do(&q->qmp, "migrate_cancel", NULL, timeout_ns, e) < 0)
            return -EIO;
        asked = true;
        if (!waits || !cancelling) {
            cancelling = xm_now();
        } else if (xm_now() - cancelling > CANCEL_TIME) {
            let_it_be_cancelled(q, timeout_ns);
            cancelling = 0;
        }
        qmp_pump(&q->qmp, 5, NULL);
    }
}

int qemu_continue(struct qemu *q, uint64_t timeout_ns, struct xm_error *e)
{
    uint64_t deadline = xm_now() + timeout_ns;
    struct xm_error why = {0};

    for (;;) {
        json_t *st = qmp_call(&q->qmp, "query-status", NULL, timeout_ns, e);
        /* Suspended (ACPI S3), it has gone on, and wakes by its own means. */
        bool running =
            xm_json_bool(st, "running", false) || !strcmp(xm_json_str(st, "status", ""), "suspended");
        json_decref(st);
        if (!st)
            return -EIO;
        if (running)
            return 0;
        if (xm_now() > deadline)
            return xm_error_set(e, ETIMEDOUT, "QEMU does not let the guest run: %s", why.text);
        if (qmp_do(&q->qmp, "cont", NULL, timeout_ns, &why) < 0)
            qmp_pump(&q->qmp, 20, NULL); /* «finish-migrate» passes within milliseconds */
    }
}

static void forget(struct qemu *q)
{
    int fd = q->pidfd;

    q->pid = 0;
    q->pidfd = -1; /* before its number can be another file's: the main thread watches it */
    if (fd >= 0)
        close(fd);
}

void qemu_leave(struct qemu *q)
{
    forget(q);
    qmp_close(&q->qmp);
}

void qemu_end(struct qemu *q, const struct vm_spec *vm)
{
    if (q->pid > 0 && qemu_alive(q)) {
        struct pollfd p = {.fd = q->pidfd, .events = POLLIN};
        if (qmp_do(&q->qmp, "quit", NULL, XM_NS_PER_S, NULL) < 0 ||
            poll(&p, 1, (int)(QUIT_TIMEOUT / XM_NS_PER_MS)) <= 0)
            syscall(SYS_pidfd_send_signal, q->pidfd, SIGKILL, NULL, 0);
        poll(&p, 1, -1);
    }
    if (q->pid > 0 && q->child) {
        kill(-q->pid, SIGKILL); /* its session: what a wrapper has started, if it was one */
        waitpid(q->pid, NULL, 0);
    }
    forget(q);
    qmp_close(&q->qmp);
    for (unsigned i = 0; i < vm->nics; i++)
        tap_delete(&vm->nic[i], NULL);
}
