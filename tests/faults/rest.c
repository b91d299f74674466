/* SPDX-License-Identifier: MIT */
/* Brings the VM to rest, by what a user may do: waits while the agents settle it; runs the commands that the
 * move's last sentence advises; `recover` on both hosts; `start` where it is stopped. */
#include "tests/faults/faults.h"
#include "tests/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BY_ITSELF_S 30 /* until the agents have settled it, with every peer back */
#define ASKED_S     30

struct seen {
    bool agent, listed, busy; /* it answers; it has the VM; a job runs */
    char state[32];
};

static bool ask(char host, const char *words, json_t **o)
{
    char h[2] = {host, 0}, *out = NULL;
    bool ok = sh(&out, 20, "%s", xmigrate(h, "--json %s", words)) == 0;

    *o = last_json(out);
    free(out);
    return ok && *o;
}

static void look(char host, struct seen *s)
{
    json_t *o, *v;
    size_t i;

    memset(s, 0, sizeof *s);
    s->agent = ask(host, "list", &o);
    json_array_foreach (json_object_get(o, "vms"), i, v) {
        if (strcmp(string(v, "name"), VM) != 0)
            continue;
        s->listed = true;
        s->busy = string(v, "job")[0] != 0;
        snprintf(s->state, sizeof s->state, "%s", string(v, "state"));
    }
    json_decref(o);
    s->agent &= ask(host, "jobs", &o);
    json_array_foreach (json_object_get(o, "jobs"), i, v)
        s->busy |= !strcmp(string(v, "state"), "running");
    json_decref(o);
}

/* The host that has it: a, b; 0: that is not clear. The other one may still hold the stopped guest that it
 * gave away, until it has been seen to run where it is: `start` there is what `recover` says. */
static char rests_at(const struct seen s[2])
{
    for (int i = 0; i < 2; i++) {
        const struct seen *here = &s[i], *there = &s[1 - i];
        bool runs = !strcmp(here->state, "running") && !there->listed;
        bool ended = !strcmp(here->state, "stopped") && (!there->listed || !strcmp(there->state, "paused"));
        if (here->agent && there->agent && here->listed && !here->busy && !there->busy && (runs || ended))
            return "ab"[i];
    }
    return 0;
}

/* stays_ms: so long it has to look like that. A move whose command was killed may have its request read only
 * now. */
static bool comes_to_rest(struct world *w, struct seen s[2], unsigned seconds, unsigned stays_ms)
{
    char at = 0;

    for (struct limit l = limit_start(seconds), stays = l;;) {
        small_read(&w->guest);
        look('a', &s[0]);
        look('b', &s[1]);
        char now = rests_at(s);
        if (now != at)
            stays = limit_start(1);
        at = now;
        if (at && limit_elapsed(&stays) * 1000 >= stays_ms)
            return true;
        if (limit_over(&l))
            return false;
    }
}

/* What stands between ` and ` in the last sentence. `recover` with --peer-is-dead is for peers that are. */
static void follow_advice(char host, const char *said)
{
    json_t *o = last_json(said);
    char text[600];

    snprintf(text, sizeof text, "%s", string(o, "error"));
    for (char *at = strstr(text, "`xmigrate "), *end; at && (end = strchr(at + 1, '`'));
         at = strstr(end + 1, "`xmigrate ")) {
        char h[2] = {host, 0}, words[200];
        snprintf(words, sizeof words, "%.*s", (int)(end - at - 10), at + 10);
        if (strstr(words, "peer-is-dead") || !strncmp(words, "watch", 5))
            continue;
        sh(NULL, 60, "%s", xmigrate(h, "%s", words));
    }
    json_decref(o);
}

static void recover(char host, char *said, size_t size)
{
    char h[2] = {host, 0}, *out = NULL;

    sh(&out, 60, "%s", xmigrate(h, "recover " VM));
    snprintf(said, size, "%.300s", out ? out : "");
    said[strcspn(said, "\n")] = 0;
    free(out);
}

void rest(struct world *w, struct outcome *o)
{
    struct seen s[2];
    char a[320] = "", b[320] = "";

    if (!comes_to_rest(w, s, BY_ITSELF_S, o->exit < 0 ? 2000 : 200)) {
        o->asked = true;
        follow_advice(w->home, o->said);
        recover('a', a, sizeof a);
        recover('b', b, sizeof b);
        if (!comes_to_rest(w, s, ASKED_S, 200)) {
            wrong(o, "it does not come to rest: %s at hosta%s, %s at hostb%s; recover says: %s | %s",
                  s[0].listed ? s[0].state : "nothing", s[0].busy ? " with a job" : "",
                  s[1].listed ? s[1].state : "nothing", s[1].busy ? " with a job" : "", a, b);
            return;
        }
    }
    o->home = rests_at(s);
    if (!strcmp(s[o->home == 'b'].state, "stopped")) {
        char h[2] = {o->home, 0}, *out = NULL;
        o->started = true;
        bool started = sh(&out, 60, "%s", xmigrate(h, "start " VM)) == 0;
        /* The other host may have settled it, and started it, at that very moment. */
        if (!started && (!comes_to_rest(w, s, ASKED_S, 200) || !strcmp(s[o->home == 'b'].state, "stopped")))
            wrong(o, "it is stopped at host%c, and does not start: %s", o->home, out ? out : "");
        free(out);
    }
}
