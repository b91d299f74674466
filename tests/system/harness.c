/* SPDX-License-Identifier: MIT */
/* tests/system/harness.c: commands with a time limit, background jobs, and the lab's life. See harness.h. */
#include "tests/system/harness.h"
#include "tests/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct {
    bool up, wanted;
    char prefix[64], run[96], store[512], why[256];
} lab;

/* ---- commands ---- */

static void pause_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&t, NULL);
}

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 1), *more;
    size_t len = 0, n;
    char buf[4096];

    while (f && text && (n = fread(buf, 1, sizeof(buf), f)) > 0) {
        more = realloc(text, len + n + 1);
        if (!more)
            break;
        text = more;
        memcpy(text + len, buf, n);
        len += n;
        text[len] = 0;
    }
    if (f)
        fclose(f);
    return text;
}

/* In a group of its own, so that a kill reaches all of it. */
static pid_t spawn_shell(const char *command, const char *out_path)
{
    pid_t pid = fork();

    if (pid == 0) {
        int in = open("/dev/null", O_RDONLY), out = open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        setpgid(0, 0);
        dup2(in, 0);
        dup2(out, 1);
        dup2(out, 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    setpgid(pid, pid);
    return pid;
}

void job_start(struct job *j, const char *fmt, ...)
{
    static unsigned count;
    char command[4096];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    snprintf(j->path, sizeof(j->path), "/tmp/xmigrate-test.%d.%u", getpid(), count++);
    snprintf(j->what, sizeof(j->what), "%.500s", command);
    j->pid = spawn_shell(command, j->path);
    assert_true(j->pid > 0);
}

static bool ended(struct job *j, int *status)
{
    if (j->pid > 0 && waitpid(j->pid, status, WNOHANG) == j->pid)
        j->pid = 0;
    return j->pid == 0;
}

bool job_saw(struct job *j, const char *text, unsigned timeout_s)
{
    siginfo_t info;

    for (struct limit l = limit_start(timeout_s);;) {
        bool over = (info.si_pid = 0,
                     waitid(P_PID, (id_t)j->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid);
        char *out = read_file(j->path);
        bool saw = out && strstr(out, text);

        free(out);
        if (saw && getenv("XM_TRACE"))
            fprintf(stderr, "TRACE %6.2f s until it said %s\n", limit_elapsed(&l), text);
        if (saw)
            return true;
        if (over || !limit_wait(&l))
            return false;
    }
}

void job_signal(struct job *j, int sig)
{
    if (j->pid > 0)
        kill(-j->pid, sig);
}

int job_end(struct job *j, unsigned timeout_s, char **out)
{
    struct limit l = limit_start(timeout_s);
    int status = 0;
    bool late = false;

    while (!ended(j, &status)) {
        if (!limit_wait(&l) && !late) {
            late = true;
            job_signal(j, SIGKILL);
        }
    }
    if (getenv("XM_TRACE"))
        fprintf(stderr, "TRACE %6.2f s %.110s\n", limit_elapsed(&l), j->what);
    if (out)
        *out = read_file(j->path);
    unlink(j->path);
    return late || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

int sh(char **out, unsigned timeout_s, const char *fmt, ...)
{
    char command[4096];
    struct job j;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    job_start(&j, "%s", command);
    return job_end(&j, timeout_s, out);
}

bool wait_until(unsigned timeout_s, const char *fmt, ...)
{
    struct limit l = limit_start(timeout_s);
    char command[4096];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    while (sh(NULL, timeout_s + 1, "%s", command) != 0) {
        if (limit_over(&l))
            return false;
        pause_ms(20);
    }
    return true;
}

json_t *last_json(const char *text)
{
    const char *end = text ? text + strlen(text) : NULL;

    while (text && end > text) {
        const char *line = memrchr(text, '\n', (size_t)(end - text));
        json_t *o;

        line = line ? line + 1 : text;
        o = json_loadb(line, (size_t)(end - line), 0, NULL);
        if (json_is_object(o))
            return o;
        json_decref(o);
        end = line > text ? line - 1 : text;
    }
    return NULL;
}

double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

const char *string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

bool truth(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key));
}

/* XM_TEST=pattern runs only the tests of that name. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("XM_TEST");

    if (pattern)
        cmocka_set_test_filter(pattern);
}

/* ---- the lab ---- */

const char *build_dir(void)
{
    const char *b = getenv("XM_BUILD");

    return b ? b : "build";
}

const char *lab_prefix(void)
{
    return lab.prefix;
}

const char *lab_run_dir(void)
{
    return lab.run;
}

const char *lab_store_dir(void)
{
    return lab.store;
}

const char *lab_missing(void)
{
    struct stat st;

    if (geteuid() != 0)
        return "needs root";
    if (stat("/dev/net/tun", &st) < 0)
        return "this machine has no /dev/net/tun";
    if (stat("/dev/loop-control", &st) < 0)
        return "this machine has no loop devices";
    if (sh(NULL, 10, "ip netns add xmigrate-probe-%d && ip netns del xmigrate-probe-%d", getpid(),
           getpid()) != 0)
        return "this machine allows no network namespaces";
    return NULL;
}

/* Only what a signal handler may do. */
static void on_signal(int sig)
{
    pid_t pid = lab.wanted ? fork() : -1;

    if (pid == 0) {
        execl("/bin/sh", "sh", "tests/system/lab.sh", "down", (char *)NULL);
        _exit(127);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
    _exit(128 + sig);
}

static unsigned hash_of(const char *text, unsigned hash)
{
    for (; *text; text++)
        hash = hash * 33 + (unsigned char)*text;
    return hash;
}

/* Labs of other trees and build directories on this machine have other names; a lab that an earlier run of
 * this program has left has ours. */
static void choose_names(const char *name)
{
    char top[256] = "";
    unsigned hash;

    if (!getcwd(top, sizeof(top)))
        top[0] = 0;
    hash = hash_of(build_dir(), hash_of(top, 5381));
    snprintf(lab.prefix, sizeof(lab.prefix), "xmt%04x-%.16s", hash & 0xffff, name);
    snprintf(lab.run, sizeof(lab.run), "/run/%s-lab", lab.prefix);
    snprintf(lab.store, sizeof(lab.store), "%s/build/lab/%s", top, lab.prefix);
    setenv("XM_PREFIX", lab.prefix, 1);
    setenv("XM_LAB_QUIET", "1", 1);
}

int lab_up(const char *name, const char *env)
{
    struct sigaction sa = {.sa_handler = on_signal};
    char *out = NULL;
    int rc;

    choose_names(name);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    lab.wanted = true;
    rc = sh(&out, 60, "tests/system/lab.sh down");
    if (rc == 0) {
        free(out);
        /* A busy machine is no reason against a move: what a VM's switches took is held against this. */
        rc = sh(&out, 120, "XM_LAB_DOWNTIME=1s %s tests/system/lab.sh up", env);
    }
    if (rc != 0)
        fprintf(stderr, "the lab did not come up (%d):\n%s\n", rc, out ? out : "");
    free(out);
    lab.up = rc == 0;
    if (rc != 0)
        lab_down();
    return rc == 0 ? 0 : -1;
}

/* Agents end regularly, so that a sanitizer has its last word; then nothing in any log may be one of its, or
 * a guest's complaint. */
static bool logs_are_clean(void)
{
    char *out = NULL;
    bool clean;

    sh(NULL, 30,
       "cd %s && kill $(cat a/agent.pid b/agent.pid); "
       "for h in a b; do while [ -n \"$(readlink /proc/$(cat $h/agent.pid)/exe)\" ]; do sleep 0.05; done; "
       "done",
       lab.run);
    clean =
        sh(&out, 10,
           "grep -rE -A 25 'Sanitizer: |runtime error: |XMGUEST FAIL' %s --include=*.log && exit 1; exit 0",
           lab.run) == 0;
    if (!clean)
        fprintf(stderr, "in the lab's logs:\n%.8000s\n", out ? out : "");
    free(out);
    return clean;
}

int lab_down(void)
{
    char *out = NULL;
    int rc = 0;

    if (!lab.wanted)
        return 0;
    if (lab.up && !logs_are_clean())
        rc = -1;
    if (getenv("XM_KEEP_LOGS"))
        sh(NULL, 10, "rm -rf /tmp/%s-logs; cp -r %s /tmp/%s-logs", lab.prefix, lab.run, lab.prefix);
    if (sh(&out, 60, "tests/system/lab.sh down") != 0)
        fprintf(stderr, "the lab was not taken down: %s\n", out ? out : "");
    free(out);
    lab.up = lab.wanted = false;
    return rc;
}

int lab_group_setup(const char *name, const char *env)
{
    const char *why = lab_missing();

    if (why) {
        snprintf(lab.why, sizeof(lab.why), "%s", why);
        return 0;
    }
    return lab_up(name, env);
}

void need_lab(void)
{
    if (lab.up)
        return;
    print_message("skipped: %s\n", lab.why);
    skip();
}
