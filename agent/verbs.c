/* SPDX-License-Identifier: MIT */
/* The verbs, by table: who may say them and who answers. */
#include "agent/agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LOCAL = 1, PEER = 2 };

static const struct {
    const char *name;
    verb_handler *handler;
    unsigned from;
} verbs[] = {
    {"start", verb_start, LOCAL},
    {"stop", verb_stop, LOCAL},
    {"define", verb_define, LOCAL},
    {"undefine", verb_undefine, LOCAL},
    {"dump", verb_dump, LOCAL},
    {"console", verb_console, LOCAL},
    {"log", verb_log, LOCAL},
    {"list", verb_list, LOCAL},
    {"show", verb_show, LOCAL},
    {"check", verb_check, LOCAL},
    {"move", verb_move, LOCAL},
    {"jobs", verb_jobs, LOCAL},
    {"watch", verb_watch, LOCAL},
    {"abort", verb_abort, LOCAL},
    {"set", verb_set, LOCAL},
    {"recover", verb_recover, LOCAL},
    {"rebalance", verb_rebalance, LOCAL},
    {"peer.datastores", verb_peer_datastores, LOCAL | PEER},
    {"peer.owner", verb_peer_owner, PEER},
    {"peer.recover", verb_peer_recover, PEER},
    {"peer.hello", verb_peer_hello, LOCAL | PEER},
    {"peer.check", verb_peer_check, PEER},
    {"peer.prepare", verb_peer_prepare, PEER},
    {"peer.cancel", verb_peer_cancel, PEER},
};

json_t *ok_answer(void)
{
    return json_pack("{s:b}", "ok", 1);
}

json_t *ok_text(const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    xm_text_mend(text);
    json_t *answer = ok_answer();
    json_object_set_new(answer, "text", json_string(text));
    return answer;
}

json_t *refusal(int exit, const char *fmt, ...)
{
    char text[1000];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    xm_text_mend(text); /* what was asked may be quoted in it and cut in the middle of a character */
    return json_pack("{s:b, s:s, s:i}", "ok", 0, "error", text, "exit", exit);
}

/* A peer says which it is; its address has to be that one's. */
static json_t *check_peer(struct conn *c, const json_t *request)
{
    const char *from = xm_json_str(request, "from", "");
    const struct conf_peer *p = config_peer(&c->agent->conf, from);

    if (!p || !address_equal(&p->parsed, &c->from))
        return refusal(EXIT_REFUSED, "%s has no [peer %.64s] with the address %s", c->agent->conf.name, from,
                       address_format(&c->from).s);
    return NULL;
}

json_t *verb_run(struct conn *c, const json_t *request)
{
    const char *name = xm_json_str(request, "verb", "");
    unsigned from = c->peer ? PEER : LOCAL;

    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(verbs[i].name, name) || !(verbs[i].from & from))
            continue;
        json_t *no = c->peer ? check_peer(c, request) : NULL;
        return no ? no : verbs[i].handler(c, request);
    }
    return refusal(EXIT_USAGE, "unknown verb '%.40s'", name);
}
