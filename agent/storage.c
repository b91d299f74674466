/* SPDX-License-Identifier: MIT */
#include "agent/storage.h"
#include "agent/mounts.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/statvfs.h>

/* Threads that hang at once, at most: one a mount point, so as many as there is storage that hangs. */
#define QUESTIONS_MAX 64u

struct question {
    LIST_ENTRY(question) link;
    bool space; /* of the file system; else of the file */
    bool answered, forsaken;
    int code;
    struct stat st;
    struct statvfs fs;
    size_t
        key; /* bytes of path that name the storage: the mount point; of what the root has: all of them, since
                   then a link leads to what hangs */
    char path[PATH_MAX];
};

static pthread_mutex_t lock =
    PTHREAD_MUTEX_INITIALIZER; /* protects the list and what changes of a question */
static pthread_cond_t changed;
static LIST_HEAD(, question) asked = LIST_HEAD_INITIALIZER(asked); /* forsaken by who asked them */
static unsigned forsaken;

static void make_cond(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attr);
    pthread_condattr_destroy(&attr);
}

static void *question_main(void *arg)
{
    struct question *q = arg;
    int r = q->space ? statvfs(q->path, &q->fs) : stat(q->path, &q->st);
    int code = r < 0 ? -errno : 0;

    pthread_mutex_lock(&lock);
    q->code = code;
    q->answered = true;
    bool ours = q->forsaken;
    if (ours) {
        LIST_REMOVE(q, link);
        forsaken--;
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    if (ours)
        free(q);
    return NULL;
}

/* With the lock held: one about the same storage has not been answered yet. */
static bool known_to_hang(const struct question *q)
{
    const struct question *other;

    LIST_FOREACH (other, &asked, link) {
        char next = strncmp(other->path, q->path, other->key) ? '-' : q->path[other->key];
        if (!next || next == '/')
            return true;
    }
    return forsaken >= QUESTIONS_MAX;
}

static int question_start(struct question *q)
{
    pthread_attr_t attr;
    pthread_t t;
    sigset_t all, before;

    sigfillset(&all); /* signals are for those who wait for them */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 128u << 10);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int r = pthread_create(&t, &attr, question_main, q);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -r;
}

/* Takes the question over; *answer is filled when there is one. */
static int question_ask(struct question *q, struct question *answer)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t until = xm_now() + STORAGE_PATIENCE;
    struct timespec ts = {.tv_sec = (time_t)(until / XM_NS_PER_S), .tv_nsec = (long)(until % XM_NS_PER_S)};

    pthread_once(&once, make_cond);
    pthread_mutex_lock(&lock);
    int r = known_to_hang(q) ? -ETIMEDOUT : question_start(q);
    if (!r) {
        while (!q->answered && xm_now() < until)
            pthread_cond_timedwait(&changed, &lock, &ts);
        if (!q->answered) {
            q->forsaken = true;
            forsaken++;
            LIST_INSERT_HEAD(&asked, q, link);
            q = NULL;
            r = -ETIMEDOUT;
        } else {
            *answer = *q;
            r = q->code;
        }
    }
    pthread_mutex_unlock(&lock);
    free(q);
    return r;
}

static struct question *question_new(const char *path, bool space)
{
    struct question *q = calloc(1, sizeof *q);
    size_t len = strlen(path);

    if (!q || len >= sizeof q->path) {
        free(q);
        return NULL;
    }
    while (len > 1 && path[len - 1] == '/')
        len--;
    memcpy(q->path, path, len); /* NOLINT(bugprone-not-null-terminated-result): it was all zeros */
    q->space = space;
    q->key = mounts_below(q->path);
    if (q->key == 1)
        q->key = len;
    return q;
}

int storage_stat(const char *path, struct stat *st)
{
    struct question *q = question_new(path, false), answer;
    int r = q ? question_ask(q, &answer) : strlen(path) >= PATH_MAX ? -ENAMETOOLONG : -ENOMEM;

    if (!r)
        *st = answer.st;
    return r;
}

int storage_space(const char *dir, uint64_t *size, uint64_t *free_bytes)
{
    struct question *q = question_new(dir, true), answer;
    int r = q ? question_ask(q, &answer) : strlen(dir) >= PATH_MAX ? -ENAMETOOLONG : -ENOMEM;

    if (!r) {
        *size = (uint64_t)answer.fs.f_blocks * answer.fs.f_frsize;
        *free_bytes = (uint64_t)answer.fs.f_bavail * answer.fs.f_frsize;
    }
    return r;
}

int storage_takes_files(const char *dir, struct xm_error *e)
{
    struct question *q = question_new(dir, true), answer;

    if (!q || question_ask(q, &answer) || !answer.fs.f_files || answer.fs.f_favail)
        return 0;
    return xm_error_set(e, ENOSPC, "%s: its file system has no inode left for another file", dir);
}

int storage_hangs(const char *path, struct xm_error *e)
{
    struct stat st;

    if (storage_stat(path, &st) != -ETIMEDOUT)
        return 0;
    return xm_error_set(e, ETIMEDOUT, "%s does not answer: its storage hangs", path);
}
