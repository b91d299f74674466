/* SPDX-License-Identifier: MIT */
/* jobs and watch; and who waits for a job of his own. */
#include "agent/agent.h"

#include <stdio.h>
#include <string.h>

json_t *job_last_event(const struct job *job)
{
    return job->events ? json_deep_copy(job_event_at(job, job->events - 1)) : NULL;
}

json_t *jobs_list(struct agent *a)
{
    json_t *list = json_array();
    struct job *job;

    agent_lock(a);
    TAILQ_FOREACH (job, &a->jobs, link) {
        json_t *o = json_copy(job->about);
        if (job->over)
            json_object_set_new(o, "result", json_string(job->error[0] ? job->error : "done"));
        for (unsigned i = job->events; !job->over && i > 1 && i + JOB_EVENTS > job->events + 1; i--) {
            const json_t *ev = job_event_at(job, i - 1);
            if (!strcmp(xm_json_str(ev, "event", ""), "progress")) {
                static const char *const keys[] = {"bytes_done", "bytes_total", "rate"};
                for (size_t k = 0; k < 3; k++)
                    json_object_set(o, keys[k], json_object_get(ev, keys[k]));
                json_object_set(o, "step", json_object_get(ev, "state"));
                break;
            }
        }
        json_array_append_new(list, o);
    }
    agent_unlock(a);
    return list;
}

json_t *verb_jobs(struct conn *c, const json_t *request)
{
    json_t *answer = ok_answer();

    (void)request;
    json_object_set_new(answer, "jobs", jobs_list(c->agent));
    return answer;
}

json_t *job_stream(struct conn *c, struct job *job)
{
    struct agent *a = c->agent;
    unsigned next = 0;
    json_t *answer;

    agent_lock(a);
    for (;;) {
        if (next && job->events - next > JOB_EVENTS - 1)
            next = job->events - (JOB_EVENTS - 1);
        if (next < job->events) {
            json_t *event = json_deep_copy(job_event_at(job, next++));
            agent_unlock(a);
            conn_event(c, event);
            agent_lock(a);
        } else if (job->over || a->ending || c->dead) {
            break;
        } else {
            agent_wait(a, UINT64_MAX);
        }
    }
    bool lost = !job->over;
    if (lost)
        answer =
            refusal(EXIT_UNKNOWN, "the agent ends; job %s goes on, and the next agent knows of it", job->id);
    else if (job->error[0])
        answer = refusal(job->exit, "%s", job->error);
    else
        answer = ok_answer();
    agent_unlock(a);
    if (lost)
        json_object_set_new(answer, "lost", json_true());
    json_object_set_new(answer, "job", json_string(job->id));
    job_put(a, job);
    return answer;
}

json_t *no_such_job(const char *id)
{
    return strchr(id, ':') ? refusal(EXIT_FAILED, "job %.140s is that host's: say it there", id)
                           : refusal(EXIT_FAILED, "there is no job '%.40s'; `xmigrate jobs` lists them", id);
}

json_t *verb_watch(struct conn *c, const json_t *request)
{
    const json_t *v = json_object_get(request, "job");
    char id[160] = "";

    if (json_is_integer(v))
        snprintf(id, sizeof id, "%lld", (long long)json_integer_value(v));
    else
        snprintf(id, sizeof id, "%s", xm_json_str(request, "job", ""));
    struct job *job = job_get(c->agent, id);
    if (!job)
        return no_such_job(id);
    return job_stream(c, job);
}
