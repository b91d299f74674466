/* SPDX-License-Identifier: MIT */
/* tests/run.c: runs test programs, a few at a time, and fails if one failed.
 *
 *   run [-j JOBS] [-t SECONDS] PROGRAM... [--alone PROGRAM...]
 *
 * They start in the order given, each in a session of its own (so the kernel's autogroups share the
 * processors among them, and a kill reaches all of it but the daemons, which a lab finds by their
 * namespaces). With -j 1 a program's output is seen as it comes; else it is printed whole when the program
 * ends, below a line that names it. What follows --alone runs at the end, one after the other. Programs that
 * failed are named last.
 *
 * A program that takes longer than -t (240) seconds of progress (progress.h: on a loaded machine longer by
 * the clock) gets SIGTERM, and SIGKILL when it does not end by that. SIGINT and SIGTERM end all of them in
 * the same way. */
#include "tests/progress.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_S 60 /* a lab is taken down in it */
#define MOST    16

struct job {
    const char *path;
    pid_t pid; /* 0: this place is free */
    int out;   /* a file without a name, -1: straight to ours */
    struct limit limit, grace;
    double took;
    bool told, late; /* got SIGTERM; because its time was over */
};

static struct job jobs[MOST];
static volatile sig_atomic_t interrupted;
static double seconds = 240;
static char failed[8192];

static void on_signal(int sig)
{
    interrupted = sig;
}

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* A file, not a pipe: what a test leaves running must not keep us waiting. */
static int nameless_file(void)
{
    FILE *f = tmpfile();
    int fd = f ? fcntl(fileno(f), F_DUPFD_CLOEXEC, 3) : -1;

    if (f)
        fclose(f);
    return fd;
}

static void start(struct job *j, const char *path, bool live)
{
    *j = (struct job){.path = path, .out = live ? -1 : nameless_file(), .limit = limit_start(seconds)};
    if (live)
        printf("== %s\n", name_of(path));
    fflush(NULL);
    j->pid = fork();
    if (j->pid < 0) {
        perror("fork");
        exit(2);
    }
    if (j->pid)
        return;
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    if (j->out >= 0) {
        dup2(j->out, 1);
        dup2(j->out, 2);
    }
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    execl(path, path, (char *)NULL);
    perror(path);
    _exit(127);
}

/* The session's leader alone gets a SIGTERM: it cleans up, with commands that shall not end. SIGKILL is for
 * all that is in it. */
static void kill_session(pid_t leader)
{
    DIR *proc = opendir("/proc");
    struct dirent *e;

    while (proc && (e = readdir(proc))) {
        pid_t pid = (pid_t)atoi(e->d_name);
        if (pid > 0 && getsid(pid) == leader)
            kill(pid, SIGKILL);
    }
    if (proc)
        closedir(proc);
}

static void tell_to_end(struct job *j)
{
    j->told = true;
    j->grace = limit_start(GRACE_S);
    kill(j->pid, SIGTERM);
}

static void print_output(const struct job *j)
{
    char buf[65536];
    ssize_t n;
    off_t at = 0;

    printf("== %s (%.0f s)\n", name_of(j->path), j->took);
    while (j->out >= 0 && (n = pread(j->out, buf, sizeof(buf), at)) > 0) {
        fwrite(buf, 1, (size_t)n, stdout);
        at += n;
    }
    fflush(stdout);
}

static void has_ended(struct job *j, int status)
{
    size_t len = strlen(failed);
    char why[64] = "";

    j->took = limit_elapsed(&j->limit);
    if (j->late || j->told)
        kill_session(j->pid);
    if (j->out >= 0) {
        print_output(j);
        close(j->out);
    }
    if (j->late)
        snprintf(why, sizeof(why), "over its limit of %g s of progress after %.0f s", seconds, j->took);
    else if (WIFSIGNALED(status))
        snprintf(why, sizeof(why), "%s", strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        snprintf(why, sizeof(why), "%d", WEXITSTATUS(status));
    if (*why) {
        printf("== %s FAILED: %s\n", name_of(j->path), why);
        fflush(stdout);
        snprintf(failed + len, sizeof(failed) - len, " %s(%s)", name_of(j->path), why);
    }
    j->pid = 0;
}

static void look_after(struct job *j)
{
    int status = 0;

    if (waitpid(j->pid, &status, WNOHANG) == j->pid) {
        has_ended(j, status);
    } else if (!j->told && (interrupted || limit_over(&j->limit))) {
        j->late = !interrupted;
        tell_to_end(j);
    } else if (j->told && limit_over(&j->grace)) {
        kill_session(j->pid);
    }
}

/* Until at most so many run. */
static void wait_for_room(unsigned most)
{
    for (;;) {
        unsigned running = 0;

        for (struct job *j = jobs; j < jobs + MOST; j++) {
            if (j->pid)
                look_after(j);
            running += j->pid != 0;
        }
        if (running <= most)
            return;
        usleep(20000);
    }
}

static struct job *free_place(void)
{
    struct job *j = jobs;

    while (j->pid)
        j++;
    return j;
}

int main(int argc, char **argv)
{
    struct sigaction sa = {.sa_handler = on_signal};
    int most = 1, opt;

    while ((opt = getopt(argc, argv, "+j:t:")) != -1) {
        if (opt == 'j')
            most = atoi(optarg);
        else if (opt == 't')
            seconds = atof(optarg);
        else
            return 2;
    }
    most = most < 1 ? 1 : most > MOST ? MOST : most;
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    for (; optind < argc && !interrupted; optind++) {
        if (strcmp(argv[optind], "--alone") == 0) {
            wait_for_room(0);
            most = 1;
            continue;
        }
        wait_for_room((unsigned)most - 1);
        if (!interrupted)
            start(free_place(), argv[optind], most == 1);
    }
    wait_for_room(0);
    if (*failed)
        fprintf(stderr, "FAILED:%s\n", failed);
    return interrupted ? 128 + interrupted : *failed ? 1 : 0;
}
