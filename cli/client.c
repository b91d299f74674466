/* SPDX-License-Identifier: MIT */
/* Happy path: connect, send one line, print each event, stop at the answer.
 *
 * What the last line is: for verbs that follow a migration the event `done` or `failed` (the answer behind it
 * is not waited for); with --detach the first that names the job; else the object with "ok".
 *
 * Failures: no agent: nothing was changed (1). The connection is lost, or we are interrupted: what runs runs
 * on without us; for a verb that changes something the state is unknown (4), and what is printed says how to
 * find out. An answer that is no JSON is a lost connection.
 */
#include "cli/client.h"
#include "cli/outcome.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/text.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct talk {
    const struct args *args;
    const struct cli_io *io;
    struct xm_jsonl conn;
    struct progress progress;
    char job[64];  /* as the agent named it; "" until then */
    json_t *first; /* the `job` event */
    bool sent;
    bool over;
    int status;
};

static bool as_json(const struct talk *t)
{
    return args_has(t->args, OPT_JSON);
}

static void talk_finish(struct talk *t, int status)
{
    t->over = true;
    t->status = status;
}

static void print_json(const struct talk *t, const json_t *o)
{
    json_dumpf(o, t->io->out, JSON_COMPACT);
    fputc('\n', t->io->out);
    fflush(t->io->out);
}

/* For --json: the last line when the agent has not given one. */
static void print_json_failure(const struct talk *t, const char *event, const char *error, int status)
{
    json_t *o = t->args->verb->follows
                    ? json_pack("{s:s s:s s:i}", "event", event, "error", error, "exit", status)
                    : json_pack("{s:b s:s s:i}", "ok", 0, "error", error, "exit", status);
    if (*t->job)
        json_object_set_new(o, "job", json_string(t->job));
    print_json(t, o);
    json_decref(o);
}

static void say_how_to_find_out(const struct talk *t)
{
    FILE *err = t->io->err;

    if (*t->job)
        fprintf(err,
                "The migration goes on without this command. See it again:  xmigrate watch %s\n"
                "End it, with the VM where it is:                         xmigrate abort %s\n",
                t->job, t->job);
    else if (t->args->verb->follows)
        fprintf(
            err,
            "If the migration has begun, it goes on without this command. See what runs:  xmigrate jobs\n");
    else if (t->args->verb->moves)
        fprintf(
            err,
            "If a move runs, it goes on without this command; no other is begun. See it:  xmigrate jobs\n");
    else if (t->args->verb->changes)
        fprintf(err, "Whether it was done is not known. See what is:  xmigrate list\n");
}

static void lose(struct talk *t, const char *why)
{
    bool unknown = t->sent && (t->args->verb->changes || t->args->verb->follows);

    progress_clear(&t->progress);
    talk_finish(t, unknown ? CLI_UNKNOWN : CLI_FAILED);
    if (as_json(t))
        print_json_failure(t, unknown ? "lost" : "failed", why, t->status);
    fputs("xmigrate: ", t->io->err);
    put_text(t->io->err, why);
    fputc('\n', t->io->err);
    if (unknown)
        say_how_to_find_out(t);
}

static void take_job(struct talk *t, const json_t *o)
{
    const json_t *job = json_object_get(o, "job");

    if (json_is_string(job))
        snprintf(t->job, sizeof t->job, "%s", json_string_value(job));
    else if (json_is_integer(job))
        snprintf(t->job, sizeof t->job, "%lld", (long long)json_integer_value(job));
}

static void print_detached(struct talk *t)
{
    if (!as_json(t))
        fprintf(t->io->out, "%s\n", t->job);
    talk_finish(t, CLI_DONE);
}

static void take_event(struct talk *t, const json_t *o, const char *event)
{
    bool last = t->args->verb->follows;

    if (last) /* else it is one of several */
        take_job(t, o);
    if (as_json(t))
        print_json(t, o);
    if (!strcmp(event, "job")) {
        json_decref(t->first);
        t->first = json_incref((json_t *)o);
    }
    if (!strcmp(event, "done")) {
        progress_clear(&t->progress);
        if (!as_json(t))
            report_done(o, t->first, t->io);
        if (last)
            talk_finish(t, CLI_DONE);
    } else if (!strcmp(event, "failed")) {
        progress_clear(&t->progress);
        int status = report_failure(o, t->io);
        if (last)
            talk_finish(t, status);
    } else if (args_has(t->args, OPT_DETACH) && *t->job) {
        print_detached(t);
    } else if (!strcmp(event, "state") || !strcmp(event, "progress")) {
        if (!as_json(t))
            progress_event(&t->progress, o, xm_now());
    } else if (!as_json(t)) {
        progress_clear(&t->progress);
        report_text(t->args, o, t->io);
    }
}

static void take_answer(struct talk *t, json_t *o)
{
    bool ok = xm_json_bool(o, "ok", false);
    const struct verb *v = t->args->verb;

    take_job(t, o);
    progress_clear(&t->progress);
    if (xm_json_bool(o, "lost", false)) {
        lose(t, xm_json_str(o, "error", "the agent ends"));
        return;
    }
    if (as_json(t)) {
        /* The same last line whether the agent gave it as an event or not. */
        if (v->follows && !args_has(t->args, OPT_DRY_RUN))
            json_object_set_new(o, "event", json_string(ok ? "done" : "failed"));
        print_json(t, o);
    }
    if (!ok) {
        talk_finish(t, report_failure(o, t->io));
    } else if (args_has(t->args, OPT_DETACH) && *t->job) {
        print_detached(t);
    } else if (v->follows && json_object_get(o, "total_s")) {
        if (!as_json(t))
            report_done(o, t->first, t->io);
        talk_finish(t, CLI_DONE);
    } else if (v->follows && !args_has(t->args, OPT_DRY_RUN)) {
        lose(t, "the agent ended its answer without saying how the migration ended");
    } else {
        struct cli_io quiet = *t->io;
        if (as_json(t))
            quiet.out = fopen("/dev/null", "w");
        talk_finish(t, v->print && quiet.out ? v->print(t->args, o, &quiet) : CLI_DONE);
        if (as_json(t) && quiet.out)
            fclose(quiet.out);
    }
}

static void take_all(struct talk *t)
{
    struct xm_error e = {0};
    bool bad = false;

    while (!t->over) {
        json_t *o = xm_jsonl_next(&t->conn, &bad, &e);
        if (!o)
            break;
        const char *event = xm_json_str(o, "event", NULL);
        if (event)
            take_event(t, o, event);
        else
            take_answer(t, o);
        json_decref(o);
    }
    if (bad) {
        xm_error_prefix(&e, "the agent's answer makes no sense");
        lose(t, e.text);
    }
}

static void follow(struct talk *t, int signals)
{
    struct xm_error e = {0};

    while (!t->over) {
        struct pollfd p[2] = {{.fd = t->conn.fd, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        if (poll(p, 2, -1) < 0)
            continue;
        /* What is there already is read first: it may name the job, or be the end. */
        int more = xm_jsonl_fill(&t->conn, &e);
        take_all(t);
        if (!t->over && more == 0)
            lose(t, "the agent closed the connection before it had answered");
        if (!t->over && more < 0)
            lose(t, e.text);
        if (!t->over && p[1].revents) {
            lose(t, "interrupted");
            t->status = CLI_UNKNOWN;
        }
    }
}

static const char *socket_path(const struct args *a)
{
    const char *env = getenv("XMIGRATE_SOCKET");

    return args_has(a, OPT_SOCKET) || !env || !*env ? a->value[OPT_SOCKET] : env;
}

/* 0, or -errno and a sentence for who has set up no host yet, or is not root. */
static int connect_agent(struct talk *t, struct xm_error *e)
{
    xm_jsonl_init(&t->conn, xm_unix_connect(socket_path(t->args), e));
    if (t->conn.fd >= 0)
        return 0;
    if (e->code == EACCES || e->code == EPERM)
        return xm_error_prefix(e, "only root may ask the agent");
    return xm_error_prefix(e, "is xmigrated running on this host?");
}

json_t *client_ask(const struct args *a, json_t *request, const struct cli_io *io, int *status)
{
    struct talk t = {.args = a, .io = io};
    struct xm_error e = {0};
    json_t *o = NULL;

    progress_init(&t.progress, io);
    if (connect_agent(&t, &e) < 0) {
        json_decref(request);
    } else if (xm_jsonl_send(t.conn.fd, request, -1, &e) == 0) {
        o = xm_jsonl_recv(&t.conn, UINT64_MAX, &e);
    }
    if (t.conn.fd >= 0)
        xm_jsonl_close(&t.conn);
    if (!o)
        lose(&t, e.text);
    *status = t.status;
    if (o && !xm_json_bool(o, "ok", false)) {
        if (as_json(&t))
            print_json(&t, o);
        *status = report_failure(o, io);
        json_decref(o);
        o = NULL;
    }
    return o;
}

int client_run(const struct args *a, json_t *request, const struct cli_io *io)
{
    struct talk t = {.args = a, .io = io};
    struct xm_error e = {0};
    sigset_t ours, before;

    sigemptyset(&ours);
    sigaddset(&ours, SIGINT);
    sigaddset(&ours, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ours, &before);
    int signals = signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
    progress_init(&t.progress, io);
    if (connect_agent(&t, &e) < 0) {
        json_decref(request);
        lose(&t, e.text);
    } else if (xm_jsonl_send(t.conn.fd, request, -1, &e) < 0) {
        lose(&t, e.text);
    } else {
        t.sent = true;
        follow(&t, signals);
    }
    if (t.conn.fd >= 0)
        xm_jsonl_close(&t.conn);
    json_decref(t.first);
    struct signalfd_siginfo taken;
    while (read(signals, &taken, sizeof taken) > 0) {
        /* else it would end us when unblocked, with another status */
    }
    close(signals);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return t.status;
}
