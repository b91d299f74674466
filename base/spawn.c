/* SPDX-License-Identifier: MIT */
/* Happy path: fork, the child sets itself up and execs; the parent learns from a pipe that closes on exec
 * that it went well. Exec fails: the child writes errno into that pipe, the parent waits for the child's end
 * and reports it. Between fork and exec only what signal-safety(7) allows is called, because other threads'
 * locks may be held in the child for ever (execvp allocates nothing since glibc 2.24).
 */
#include "base/base.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUT_MAX (1u << 20)
#define ERR_MAX 4096u
#define IN_MAX  (64u << 10) /* a pipe's size, pipe(7) */

static pid_t spawn_reap(pid_t pid, int *status)
{
    pid_t got;

    while ((got = waitpid(pid, status, 0)) < 0 && errno == EINTR) {
    }
    return got;
}

static void default_signals(void)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int s = 1; s < NSIG; s++)
        sigaction(s, &dfl, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* `in`, `out`, `err`: what becomes 0, 1, 2; all above 2. with_us: it is killed when the calling thread
 * ends. */
static pid_t spawn_start(const char *const argv[], int in, int out, int err, bool with_us, struct xm_error *e)
{
    int report[2];
    pid_t parent = getpid();
    int why = 0;

    if (pipe2(report, O_CLOEXEC) < 0)
        return xm_error_errno(e, errno, "cannot start %s", argv[0]);
    pid_t pid = fork();
    if (pid == 0) {
        default_signals();
        if (with_us && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent))
            _exit(126);
        setpgid(0, 0); /* no session: who ends ours (a test's runner) ends this too */
        if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(err, 2) >= 0) {
            syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
            execvp(argv[0], (char *const *)argv);
        }
        why = errno;
        _exit(write(report[1], &why, sizeof why) == sizeof why ? 127 : 126);
    }
    why = pid < 0 ? errno : 0;
    close(report[1]);
    if (pid > 0) {
        ssize_t n;
        while ((n = read(report[0], &why, sizeof why)) < 0 && errno == EINTR) {
        }
        if (n != sizeof why)
            why = 0;
        else
            spawn_reap(pid, NULL);
    }
    close(report[0]);
    return why ? xm_error_errno(e, why, "cannot start %s", argv[0]) : pid;
}

/* Text that comes from a pipe; what is over the bound is read and dropped, so that the writer is not stuck.
 */
struct gather {
    int fd;
    char *text;
    size_t len, max;
};

static void gather_some(struct gather *g)
{
    char chunk[4096];
    ssize_t n = read(g->fd, chunk, sizeof chunk);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close(g->fd);
        g->fd = -1;
        return;
    }
    size_t take = XM_MIN((size_t)n, g->max - g->len);
    char *more = take ? realloc(g->text, g->len + take + 1) : NULL;
    if (!more)
        return;
    memcpy(more + g->len, chunk, take);
    g->text = more;
    g->len += take;
    g->text[g->len] = 0;
}

/* The standard input, open for `last`, and how far the output was looked at for `until`. */
struct feed {
    int fd;
    const struct xm_run_input *input;
    size_t line, seen; /* where the line begins that is not whole yet; how much of it was looked at */
};

static void feed_last(struct feed *f, const struct gather *out)
{
    const char *until = f->input ? f->input->until : NULL, *end;

    for (; until && out->text && (end = memchr(out->text + f->seen, '\n', out->len - f->seen));
         f->line = f->seen) {
        f->seen = (size_t)(end + 1 - out->text);
        if (!memmem(out->text + f->line, f->seen - f->line, until, strlen(until)))
            continue;
        /* It fits, by input_pipe; who reads no more is waited for all the same. */
        if (write(f->fd, f->input->last, strlen(f->input->last)) < 0)
            xm_log(XM_LOG_DEBUG, "a program reads no more: %s", strerror(errno));
        f->input = NULL;
        return;
    }
    f->seen = out->len;
}

/* Until the process has ended (its pidfd becomes readable), and then what is left in the pipes. False: too
 * late. */
static bool gather_until_exit(int pidfd, struct gather *out, struct gather *err, struct feed *in,
                              uint64_t timeout_ns)
{
    uint64_t until = xm_now() + timeout_ns;
    bool ended = false;

    for (;;) {
        uint64_t now = xm_now();
        struct pollfd p[3] = {{.fd = pidfd, .events = POLLIN},
                              {.fd = out->fd, .events = POLLIN},
                              {.fd = err->fd, .events = POLLIN}};
        int ms = ended || now >= until ? 0 : (int)XM_MIN((until - now) / XM_NS_PER_MS + 1, INT_MAX);
        int n = poll(p, 3, ms);
        if (n < 0 && errno != EINTR)
            return false;
        if (xm_now() >= until && (ended || n <= 0))
            return ended; /* it has ended, but one that it left behind still writes */
        if (n <= 0)
            continue;
        if (p[1].revents) {
            gather_some(out);
            feed_last(in, out);
        }
        if (p[2].revents)
            gather_some(err);
        if (ended && !p[1].revents && !p[2].revents)
            return true;
        ended = p[0].revents != 0;
    }
}

static int spawn_judge(const char *name, int status, bool in_time, uint64_t timeout_ns, const char *said,
                       struct xm_error *e)
{
    if (!in_time)
        return xm_error_set(e, ETIMEDOUT, "%s did not end within %s and was killed", name,
                            xm_format_time(timeout_ns).s);
    if (WIFEXITED(status) && !WEXITSTATUS(status))
        return 0;
    if (said && *said)
        return xm_error_set(e, EIO, "%.*s", (int)strcspn(said, "\n"), said);
    if (WIFSIGNALED(status))
        return xm_error_set(e, EIO, "%s was ended by signal %d (%s)", name, WTERMSIG(status),
                            strsignal(WTERMSIG(status)));
    return xm_error_set(e, EIO, "%s failed with exit status %d", name, WEXITSTATUS(status));
}

/* The reading end of a pipe that holds the first text; its other end in *keep. -errno, too, when not all fits
 * into a pipe. */
static int input_pipe(const struct xm_run_input *input, int *keep)
{
    size_t n = strlen(input->first);
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    fcntl(p[1], F_SETFL, O_NONBLOCK);
    if (n + strlen(input->until ? input->last : "") > IN_MAX || write(p[1], input->first, n) != (ssize_t)n) {
        close(p[0]);
        close(p[1]);
        return -E2BIG;
    }
    *keep = p[1];
    return p[0];
}

int xm_run(const char *const argv[], uint64_t timeout_ns, char **out, struct xm_error *e)
{
    return xm_run_input(argv, NULL, timeout_ns, out, e);
}

int xm_run_input(const char *const argv[], const struct xm_run_input *input, uint64_t timeout_ns, char **out,
                 struct xm_error *e)
{
    int o[2] = {-1, -1}, r[2] = {-1, -1};
    int keep = -1;
    int in = input ? input_pipe(input, &keep) : open("/dev/null", O_RDONLY | O_CLOEXEC);
    int status = 0, err = 0;
    pid_t pid = -1;

    if (out)
        *out = NULL;
    if (in < 0 || pipe2(o, O_CLOEXEC) < 0 || pipe2(r, O_CLOEXEC) < 0)
        err = xm_error_errno(e, in < -1 ? -in : errno, "cannot start %s", argv[0]);
    else
        pid = spawn_start(argv, in, o[1], r[1], input != NULL, e);
    close(in);
    close(o[1]);
    close(r[1]);
    if (pid < 0) {
        close(keep);
        close(o[0]);
        close(r[0]);
        return err ? err : pid;
    }
    struct gather go = {.fd = o[0], .max = OUT_MAX}, ge = {.fd = r[0], .max = ERR_MAX};
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    fcntl(o[0], F_SETFL, O_NONBLOCK);
    fcntl(r[0], F_SETFL, O_NONBLOCK);
    struct feed feed = {.fd = keep, .input = input};
    bool in_time = pidfd >= 0 && gather_until_exit(pidfd, &go, &ge, &feed, timeout_ns);
    if (!in_time)
        kill(-pid, SIGKILL); /* its group: a wrapper's program is a child of it */
    spawn_reap(pid, &status);
    err = spawn_judge(argv[0], status, in_time, timeout_ns, ge.text, e);
    close(keep);
    close(pidfd);
    close(go.fd);
    close(ge.fd);
    free(ge.text);
    if (out)
        *out = go.text ? go.text : xm_printf("%s", "");
    else
        free(go.text);
    return err;
}
