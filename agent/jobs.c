/* SPDX-License-Identifier: MIT */
/* Jobs: what a user waits for, watches, or asks about later. A job's events come from the shim; here they are
 * kept for those who watch, and the last one ends the job. jobs/ID.json is written when it begins (so that an
 * agent that was killed knows of it) and when it is over. The counter of ids is a file of its own, written
 * before an id is used: none is ever given twice. */
#include "agent/agent.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define JOBS_KEPT 200         /* ended jobs, in memory and as files */
#define ROOM      (64u << 10) /* for a job's file with its result, kept while it runs */

static char *job_file(struct agent *a, const char *id)
{
    return xm_printf("%s/jobs/%s.json", a->conf.state_dir, id);
}

/* The first one is never overwritten. */
static unsigned slot(unsigned n)
{
    return n < JOB_EVENTS ? n : 1 + (n - 1) % (JOB_EVENTS - 1);
}

const json_t *job_event_at(const struct job *job, unsigned n)
{
    return job->event[slot(n)];
}

static void job_save(struct agent *a, struct job *job)
{
    struct xm_error e = {0};
    char *path = job_file(a, job->id);

    agent_lock(a);
    json_t *o = json_deep_copy(job->about);
    bool over = job->over;
    if (o && over && job->events)
        json_object_set(o, "result", job->event[slot(job->events - 1)]);
    agent_unlock(a);
    if (over)
        xm_room_use(path);
    if (write_json(path, o, &e) < 0)
        xm_log(XM_LOG_ERROR, "job %s: %s", job->id, e.text);
    else if (!over)
        xm_room_keep(path, ROOM);
    json_decref(o);
    free(path);
}

/* ---- the list ---- */

static struct job *job_add(struct agent *a, const char *id, json_t *about)
{
    struct job *job = calloc(1, sizeof *job);

    if (!job)
        return NULL;
    snprintf(job->id, sizeof job->id, "%s", id);
    job->about = about;
    job->refs = 1; /* the list's */
    TAILQ_INSERT_TAIL(&a->jobs, job, link);
    return job;
}

static void job_free(struct job *job)
{
    for (unsigned i = 0; i < JOB_EVENTS; i++)
        json_decref(job->event[i]);
    json_decref(job->about);
    free(job);
}

/* The oldest ended ones go when there are too many. Returns the id whose file is to be removed. */
static bool drop_oldest(struct agent *a, char id[16])
{
    unsigned over = 0;
    struct job *job, *oldest = NULL;

    TAILQ_FOREACH (job, &a->jobs, link) {
        if (job->over && job->refs == 1) {
            over++;
            oldest = oldest ? oldest : job;
        }
    }
    if (over <= JOBS_KEPT)
        return false;
    memcpy(id, oldest->id, sizeof oldest->id);
    TAILQ_REMOVE(&a->jobs, oldest, link);
    job_free(oldest);
    return true;
}

struct job *job_get(struct agent *a, const char *id)
{
    struct job *job;

    agent_lock(a);
    TAILQ_FOREACH (job, &a->jobs, link) {
        if (!strcmp(job->id, id)) {
            job->refs++;
            break;
        }
    }
    agent_unlock(a);
    return job;
}

void job_put(struct agent *a, struct job *job)
{
    agent_lock(a);
    job->refs--; /* the list has one: it is freed there */
    agent_unlock(a);
}

void jobs_free(struct agent *a)
{
    struct job *job;

    while ((job = TAILQ_FIRST(&a->jobs))) {
        TAILQ_REMOVE(&a->jobs, job, link);
        job_free(job);
    }
}

unsigned jobs_running(struct agent *a, bool storage_only)
{
    unsigned n = 0;
    struct job *job;

    TAILQ_FOREACH (job, &a->jobs, link)
        n += !job->over && (job->storage || !storage_only);
    return n;
}

/* ---- one job's life ---- */

static int next_id(struct agent *a, char id[16], struct xm_error *e)
{
    char *path = xm_printf("%s/next_job", a->conf.state_dir);
    char text[16];

    agent_lock(a);
    unsigned n = a->next_job++;
    agent_unlock(a);
    snprintf(id, 16, "%u", n);
    int len = snprintf(text, sizeof text, "%u\n", n + 1);
    int r = xm_file_replace(path, text, (size_t)len, e);
    free(path);
    return r;
}

struct job *job_new(struct agent *a, json_t *about, bool storage, struct xm_error *e)
{
    char id[16];

    if (next_id(a, id, e) < 0) {
        json_decref(about);
        return NULL;
    }
    json_object_set_new(about, "job", json_string(id));
    json_object_set_new(about, "state", json_string("running"));
    json_object_set_new(about, "started", json_integer(time(NULL)));
    agent_lock(a);
    struct job *job = job_add(a, id, about);
    if (job) {
        job->refs++;
        job->storage = storage;
    }
    agent_unlock(a);
    if (!job) {
        json_decref(about);
        xm_error_set(e, ENOMEM, "no memory for a job");
        return NULL;
    }
    job_save(a, job);
    xm_fault("job-made");
    json_t *first = json_copy(about);
    json_object_set_new(first, "event", json_string("job"));
    job_event(a, job, first);
    return job;
}

static void job_finish(struct job *job, const json_t *event)
{
    bool done = !strcmp(xm_json_str(event, "event", ""), "done");

    job->over = true;
    json_object_set_new(job->about, "state", json_string(done ? "done" : "failed"));
    json_object_set_new(job->about, "ended", json_integer(time(NULL)));
    if (done)
        return;
    snprintf(job->error, sizeof job->error, "%s",
             xm_json_str(event, "error", "it failed, and does not say why"));
    xm_text_mend(job->error);
    job->exit =
        (int)xm_json_int(event, "exit", xm_json_bool(event, "vm_safe", false) ? EXIT_FAILED : EXIT_UNKNOWN);
    json_object_set_new(job->about, "error", json_string(job->error));
}

void job_event(struct agent *a, struct job *job, json_t *event)
{
    const char *what = xm_json_str(event, "event", "");
    bool ends = !strcmp(what, "done") || !strcmp(what, "failed");
    char drop[16];

    json_object_set_new(event, "job", json_string(job->id));
    agent_lock(a);
    if (job->over) {
        agent_unlock(a);
        json_decref(event);
        return;
    }
    if (ends) { /* who reads only the last event finds everything in it */
        static const char *const keys[] = {"vm", "source", "destination", "mode", "datastore"};
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            if (!json_object_get(event, keys[i]) && json_object_get(job->about, keys[i]))
                json_object_set(event, keys[i], json_object_get(job->about, keys[i]));
        }
    }
    unsigned at = slot(job->events++);
    json_decref(job->event[at]);
    job->event[at] = event;
    if (ends) { /* in one step: from here on nothing is done in its name */
        job_finish(job, event);
        struct vm *vm = vm_find(a, xm_json_str(job->about, "vm", ""));
        if (vm && !strcmp(vm->job, job->id)) {
            vm->job[0] = 0;
            json_decref(vm->moving);
            vm->moving = NULL;
        }
    }
    agent_unlock(a);
    if (ends)
        xm_fault("job-ending");
    if (ends)
        job_save(a, job);
    agent_lock(a);
    pthread_cond_broadcast(&a->changed);
    bool dropped = ends && drop_oldest(a, drop);
    agent_unlock(a);
    if (dropped) {
        char *path = job_file(a, drop);
        unlink(path);
        free(path);
    }
}

void job_fail(struct agent *a, struct job *job, int exit, const char *why)
{
    bool safe = exit != EXIT_UNKNOWN;
    json_t *event =
        json_pack("{s:s, s:s, s:b, s:i}", "event", "failed", "error", why, "vm_safe", safe, "exit", exit);

    if (!event)
        event = json_pack("{s:s, s:s, s:b, s:i}", "event", "failed", "error", "it failed", "vm_safe", safe,
                          "exit", exit);
    job_event(a, job, event);
}

/* ---- after a restart ---- */

/* The agent was not there when it ended: what it has left, or else the record, says what can be said. */
static void settle_lost(struct agent *a, struct job *job)
{
    const char *vm = xm_json_str(job->about, "vm", ""), *to = xm_json_str(job->about, "destination", "");
    bool named = vm_name_check(vm, NULL) == 0;
    struct owner_record rec;

    if (named)
        vm_take_result(a, vm);
    agent_lock(a);
    bool over = job->over;
    agent_unlock(a);
    if (over)
        return;
    if (!named || owner_read(a, vm, &rec, NULL) < 0)
        job_fail(a, job, EXIT_UNKNOWN, "it ended while no agent ran here, and nothing tells how");
    else if (rec.owner == OWNER_MINE)
        job_fail(a, job, EXIT_FAILED, "it ended while no agent ran here; the VM is this host's");
    else if (!strcmp(to, rec.to) && !rec.settled)
        job_fail(
            a, job, EXIT_UNKNOWN,
            "it ended while no agent ran here: the VM was given away, and has not been seen to run there");
    else if (!strcmp(to, rec.to))
        job_event(a, job,
                  json_pack("{s:s, s:s}", "event", "done", "note",
                            "it ended while no agent ran here: there are no figures"));
    else
        job_fail(a, job, EXIT_UNKNOWN,
                 "it ended while no agent ran here, and the VM belongs to another host");
}

void job_lost(struct agent *a, const char *id)
{
    struct job *job = job_get(a, id);

    if (job) {
        settle_lost(a, job);
        job_put(a, job);
    }
}

void jobs_find(struct agent *a, const char *vm, char id[16])
{
    struct job *job;

    id[0] = 0;
    TAILQ_FOREACH (job, &a->jobs, link) {
        if (!job->over && !strcmp(xm_json_str(job->about, "vm", ""), vm))
            memcpy(id, job->id, sizeof job->id);
    }
}

static int by_number(const void *x, const void *y)
{
    unsigned a = *(const unsigned *)x, b = *(const unsigned *)y;
    return (a > b) - (a < b);
}

static void load_one(struct agent *a, unsigned n)
{
    char id[16];
    struct xm_error e = {0};

    snprintf(id, sizeof id, "%u", n);
    char *path = job_file(a, id);
    json_t *o = read_json(path, &e);
    free(path);
    if (!o) {
        xm_log(XM_LOG_WARN, "%s", e.text);
        return;
    }
    json_object_set_new(o, "job", json_string(id));
    json_t *result = json_object_get(o, "result");
    json_t *first = json_copy(o);
    json_object_set_new(first, "event", json_string("job"));
    json_object_del(first, "result");
    struct job *job = job_add(a, id, o);
    if (!job) {
        json_decref(o);
        json_decref(first);
        return;
    }
    job->storage = strcmp(xm_json_str(o, "mode", ""), "compute") != 0;
    job->launched = true;
    job->event[job->events++] = first;
    if (strcmp(xm_json_str(o, "state", ""), "running")) {
        job->over = true;
        if (json_is_object(result)) {
            job->event[job->events++] = json_incref(result);
            job_finish(job, result);
        }
        json_object_del(o, "result");
    }
}

/* Called before VMs are adopted; jobs that no VM's shim works on are settled by jobs_settle. */
int jobs_load(struct agent *a)
{
    char *path = xm_printf("%s/jobs", a->conf.state_dir), *next = xm_printf("%s/next_job", a->conf.state_dir),
         *text = NULL;
    unsigned *list = NULL;
    size_t n = 0, len;
    DIR *d = opendir(path);

    for (struct dirent *f; d && (f = readdir(d));) {
        char *end;
        unsigned long id = strtoul(f->d_name, &end, 10);
        if (f->d_name[0] < '1' || f->d_name[0] > '9' || strcmp(end, ".json") || id > UINT32_MAX / 2)
            continue;
        unsigned *more = n % 64 ? list : realloc(list, (n + 64) * sizeof *list);
        if (!more)
            break;
        list = more;
        list[n++] = (unsigned)id;
    }
    if (d)
        closedir(d);
    if (n)
        qsort(list, n, sizeof *list, by_number);
    for (size_t i = 0; i < n; i++)
        load_one(a, list[i]);
    a->next_job = n ? list[n - 1] + 1 : 1;
    if (!xm_file_read(next, 32, &text, &len, NULL))
        a->next_job = XM_MAX(a->next_job, (unsigned)strtoul(text, NULL, 10));
    free(text);
    free(list);
    free(path);
    free(next);
    return 0;
}

void jobs_settle(struct agent *a)
{
    for (;;) {
        struct job *job;
        agent_lock(a);
        TAILQ_FOREACH (job, &a->jobs, link) {
            struct vm *vm = vm_find(a, xm_json_str(job->about, "vm", ""));
            if (!job->over && (!vm || strcmp(vm->job, job->id)))
                break;
        }
        if (job)
            job->refs++;
        agent_unlock(a);
        if (!job)
            return;
        settle_lost(a, job);
        job_put(a, job);
    }
}
