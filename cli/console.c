/* SPDX-License-Identifier: MIT */
/* console: this terminal and the VM's serial port, byte by byte.
 *
 * The agent says where the socket is; the bytes do not pass it. The terminal is raw meanwhile, so that
 * everything that is typed reaches the guest, but for control-], which ends this. Without a terminal standard
 * input is passed on as it is, and its end is not the end: what the guest writes is printed until the VM
 * closes the socket.
 *
 * QEMU serves one connection and lets others wait without a word: a lock beside the socket lets the second
 * one be told. The VM ends or moves away: the socket is closed, and that is said. */
#include "cli/console.h"
#include "cli/client.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

static int write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

/* -1: somebody else has it. */
static int lock_console(const char *socket)
{
    char *path = xm_printf("%s.lock", socket);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        close(fd);
        fd = -1;
    }
    free(path);
    return fd;
}

enum ended { ENDED_NOT, ENDED_ESCAPE, ENDED_VM, ENDED_SIGNAL, ENDED_OUTPUT };

/* From standard input to the VM. *in: -1 when it has ended. */
static enum ended pass_in(int *in, int vm, bool terminal)
{
    char buf[4096];
    ssize_t n = read(*in, buf, sizeof buf);
    char *escape = n > 0 && terminal ? memchr(buf, CONSOLE_ESCAPE, (size_t)n) : NULL;

    if (n <= 0) {
        *in = -1;
        return terminal ? ENDED_SIGNAL : ENDED_NOT; /* the terminal is gone */
    }
    if (write_all(vm, buf, escape ? (size_t)(escape - buf) : (size_t)n) < 0)
        return ENDED_VM;
    return escape ? ENDED_ESCAPE : ENDED_NOT;
}

static enum ended pass_out(int vm, int out)
{
    char buf[4096];
    ssize_t n = read(vm, buf, sizeof buf);

    if (n <= 0)
        return ENDED_VM;
    return write_all(out, buf, (size_t)n) < 0 ? ENDED_OUTPUT : ENDED_NOT;
}

static enum ended pass(int vm, int out, int signals, bool terminal)
{
    enum ended how = ENDED_NOT;
    int in = STDIN_FILENO;

    while (how == ENDED_NOT) {
        struct pollfd p[3] = {
            {.fd = vm, .events = POLLIN}, {.fd = in, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        if (poll(p, 3, -1) < 0)
            continue;
        if (p[0].revents)
            how = pass_out(vm, out);
        if (how == ENDED_NOT && p[1].revents)
            how = pass_in(&in, vm, terminal);
        if (how == ENDED_NOT && p[2].revents)
            how = ENDED_SIGNAL;
    }
    return how;
}

static int talk(const char *vm_name, int vm, const struct cli_io *io)
{
    bool terminal = isatty(STDIN_FILENO);
    struct termios before, raw;
    sigset_t ours, mask;
    static const char *const said[] = {
        [ENDED_ESCAPE] = "the console was left; the VM runs on",
        [ENDED_VM] = "the console was closed: the VM has ended here, or has moved to another host",
        [ENDED_SIGNAL] = "the console was left: interrupted",
        [ENDED_OUTPUT] = "the console was left: standard output cannot be written"};

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGHUP);
    sigprocmask(SIG_BLOCK, &ours, &mask);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
    terminal = terminal && tcgetattr(STDIN_FILENO, &before) == 0;
    if (terminal) {
        fprintf(io->err, "xmigrate: connected with %s; control-] ends it\n", vm_name);
        raw = before;
        cfmakeraw(&raw);
        tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    }
    fflush(io->out);
    enum ended how = pass(vm, fileno(io->out), signals, terminal);
    if (terminal)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
    fprintf(io->err, "%sxmigrate: %s\n", terminal ? "\n" : "", said[how]);
    struct signalfd_siginfo taken;
    while (read(signals, &taken, sizeof taken) > 0) {
    }
    close(signals);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    return how == ENDED_SIGNAL ? CLI_UNKNOWN : how == ENDED_OUTPUT ? CLI_FAILED : CLI_DONE;
}

int console_run(const struct args *a, json_t *request, const struct cli_io *io)
{
    struct xm_error e = {0};
    int status;
    json_t *answer = client_ask(a, request, io, &status);

    if (!answer)
        return status;
    const char *path = xm_json_str(answer, "socket", "");
    int lock = lock_console(path), vm = lock < 0 ? -1 : xm_unix_connect(path, &e);
    if (lock < 0)
        fprintf(io->err, "xmigrate: another `xmigrate console %s` is connected, and there can be one\n",
                a->word[0]);
    else if (vm < 0)
        fprintf(io->err, "xmigrate: %s\n", e.text);
    status = vm < 0 ? CLI_FAILED : talk(a->word[0], vm, io);
    if (vm >= 0)
        close(vm);
    if (lock >= 0)
        close(lock);
    json_decref(answer);
    return status;
}
