/* SPDX-License-Identifier: MIT */
#include "base/base.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POINTS_MAX 32

enum action { KILL, ERROR, STOP, DELAY };

struct point {
    char name[48];
    unsigned nth; /* 0: every passage */
    enum action action;
    unsigned delay_ms;
    unsigned passed; /* atomic */
};

/* Written once, under `once`, before `armed` says that they may be read. */
static struct point points[POINTS_MAX];
static unsigned npoints;
static enum { UNKNOWN, NONE, ARMED, BY_FILE } armed; /* atomic */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char file[256];

/* NAME:N:ACTION */
static bool read_point(char *text, struct point *p)
{
    char *nth = strchr(text, ':');
    char *action = nth ? strchr(nth + 1, ':') : NULL;
    char *end;

    if (!action || nth == text || (size_t)(nth - text) >= sizeof p->name)
        return false;
    *nth++ = *action++ = 0;
    memcpy(p->name, text, strlen(text) + 1);
    if (strcmp(nth, "*")) {
        p->nth = (unsigned)strtoul(nth, &end, 10);
        if (*end || !p->nth)
            return false;
    }
    if (!strcmp(action, "kill"))
        p->action = KILL;
    else if (!strcmp(action, "error"))
        p->action = ERROR;
    else if (!strcmp(action, "stop"))
        p->action = STOP;
    else if (!strncmp(action, "delay=", 6)) {
        p->action = DELAY;
        p->delay_ms = (unsigned)strtoul(action + 6, &end, 10);
        return action[6] && !*end;
    } else
        return false;
    return true;
}

static void fault_arm(void)
{
    const char *env = getenv("XMIGRATE_FAULT");
    char *copy = env ? strdup(env) : NULL;
    char *rest = copy;

    if (env && env[0] == '@' && strlen(env) < sizeof file) {
        memcpy(file, env + 1, strlen(env)); /* NOLINT(bugprone-not-null-terminated-result): its end too */
        free(copy);
        __atomic_store_n(&armed, BY_FILE, __ATOMIC_RELEASE);
        return;
    }
    for (char *text; rest && (text = strsep(&rest, ","));) {
        if (!*text)
            continue;
        if (npoints == POINTS_MAX || !read_point(text, &points[npoints]))
            xm_log(XM_LOG_ERROR,
                   "XMIGRATE_FAULT: cannot understand or hold all of \"%s\"; it is NAME:N:ACTION,...", env);
        else
            npoints++;
    }
    free(copy);
    __atomic_store_n(&armed, npoints ? ARMED : NONE, __ATOMIC_RELEASE);
}

/* True: fails. */
static bool fault_act(const struct point *p, unsigned n)
{
    xm_log(XM_LOG_WARN, "fault point %s, passage %u: acting as XMIGRATE_FAULT says", p->name, n);
    switch (p->action) {
    case KILL:
        raise(SIGKILL);
        break;
    case STOP:
        raise(SIGSTOP);
        break;
    case DELAY: {
        struct timespec ts = {p->delay_ms / 1000, (long)(p->delay_ms % 1000) * 1000000};
        nanosleep(&ts, NULL);
        break;
    }
    case ERROR:
        return true;
    }
    return false;
}

/* The point that the file names, if it is there. Passages are counted from when a process first reads that
 * text; who can remove the file acts, so that one process does, once. One for each passage stays. */
static bool by_file(const char *name)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char known[128];
    static struct point p;
    static bool good;
    char text[sizeof known] = "";
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return false;
    text[strcspn(text, "\n")] = 0;
    pthread_mutex_lock(&lock);
    if (strcmp(text, known) != 0) {
        memcpy(known, text, sizeof known);
        p = (struct point){0};
        good = read_point(text, &p);
    }
    bool here = good && !strcmp(p.name, name) && (++p.passed == p.nth || !p.nth);
    struct point acts = p;
    pthread_mutex_unlock(&lock);
    return here && (!acts.nth || unlink(file) == 0) && fault_act(&acts, acts.passed);
}

bool xm_fault(const char *name)
{
    bool fail = false;

    if (__atomic_load_n(&armed, __ATOMIC_ACQUIRE) == UNKNOWN)
        pthread_once(&once, fault_arm);
    switch (__atomic_load_n(&armed, __ATOMIC_ACQUIRE)) {
    case BY_FILE:
        return by_file(name);
    case ARMED:
        break;
    default:
        return false;
    }
    for (unsigned i = 0; i < npoints; i++) {
        struct point *p = &points[i];
        if (strcmp(p->name, name))
            continue;
        unsigned n = __atomic_add_fetch(&p->passed, 1, __ATOMIC_RELAXED);
        if (p->nth && n != p->nth)
            continue;
        fail |= fault_act(p, n);
    }
    return fail;
}
