/* SPDX-License-Identifier: MIT */
/* One CALL frame with a JSON object each, answered by one. Each has its number: one that comes again, since a
 * link was lost before its answer had come, is answered as the first time. */
#include "migrate/call.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* over: asked whether the answer is still waited for; NULL: for timeout_ns. */
static json_t *call(struct xm_links *links, unsigned attempt, json_t *steals, uint64_t timeout_ns,
                    bool (*over)(void *), void *ctx, struct xm_error *e)
{
    static atomic_ullong calls;
    char *text = json_dumps(steals, JSON_COMPACT);
    struct xm_msg msg = {
        .type = XM_FRAME_CALL, .urgent = true, .seq = ++calls, .after = attempt, .payload = text};
    json_t *reply = NULL;
    char what[64];

    snprintf(what, sizeof what, "%s", xm_json_str(steals, "call", "?"));
    json_decref(steals);
    if (!text) {
        xm_error_set(e, ENOMEM, "no memory");
        return NULL;
    }
    msg.length = (uint32_t)strlen(text);
    struct xm_transport *to = xm_links_transport(links);
    int r =
        over ? xm_transport_call_until(to, &msg, over, ctx, e) : xm_transport_call(to, &msg, timeout_ns, e);
    free(text);
    if (r < 0) {
        struct xm_error lost = {0}, said = {0};
        xm_links_error(links, &lost);
        xm_links_peer_said(links, &said);
        if (said.code)
            xm_error_set(e, said.code, "the destination has ended the migration: %s", said.text);
        else if (lost.code)
            xm_error_set(e, lost.code, "%s", lost.text);
        if (!said.code)
            xm_error_prefix(e, "the destination does not answer «%s»", what);
    } else {
        reply = msg.reply ? xm_json_parse(msg.reply, msg.reply_len, &xm_json_answer, NULL) : NULL;
        if (!xm_json_bool(reply, "ok", false)) {
            xm_error_set(e, EIO, "the destination refuses «%s»: %s", what,
                         xm_json_str(reply, "error", "no reason given"));
            json_decref(reply);
            reply = NULL;
        }
    }
    free(msg.reply);
    return reply;
}

json_t *call_destination(struct xm_links *links, unsigned attempt, json_t *steals, uint64_t timeout_ns,
                         struct xm_error *e)
{
    return call(links, attempt, steals, timeout_ns, NULL, NULL, e);
}

json_t *call_destination_until(struct xm_links *links, unsigned attempt, json_t *steals, bool (*over)(void *),
                               void *ctx, struct xm_error *e)
{
    return call(links, attempt, steals, 0, over, ctx, e);
}
