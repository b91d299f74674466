/* SPDX-License-Identifier: MIT */
/* The hand-off's state machine; handoff.h tells the protocol and its failures. */
#include "vm/handoff.h"

#include <stdio.h>
#include <string.h>

/* Which state may follow which: bit n of [s]: s -> n. */
#define TO(s) (1u << HANDOFF_##s)
static const unsigned legal[HANDOFF_STATES] = {
    [HANDOFF_OWNER] = TO(GIVING),
    [HANDOFF_GIVING] = TO(GIVEN) | TO(UNDOING),
    [HANDOFF_GIVEN] = TO(SETTLING) | TO(TAKING),
    [HANDOFF_UNDOING] = TO(OWNER),
    [HANDOFF_SETTLING] = TO(GONE),
    [HANDOFF_GONE] = TO(GIVING),
    [HANDOFF_WAITING] = TO(TAKING) | TO(DISCARDED),
    [HANDOFF_TAKING] = TO(OWNER) | TO(STARTING),
    [HANDOFF_STARTING] = TO(OWNER) | TO(GIVING),
    [HANDOFF_DISCARDED] = TO(GIVING),
};

/* The only one that changes it. Nothing from outside can lead to what it refuses. */
static void set_state(struct handoff *h, enum handoff_state state)
{
    if (!(legal[h->state] & (1u << state))) {
        xm_log(XM_LOG_ERROR, "hand-off with %s: refused to go from %s to %s", h->peer,
               handoff_state_name(h->state), handoff_state_name(state));
        return;
    }
    xm_log(XM_LOG_DEBUG, "hand-off with %s: %s -> %s, epoch %llu", h->peer, handoff_state_name(h->state),
           handoff_state_name(state), (unsigned long long)h->record.epoch);
    h->state = state;
}

/* ---- actions ---- */

static void write_record(struct handoff *h, enum handoff_state state, enum owner_side owner, uint64_t epoch,
                         struct handoff_actions *a)
{
    h->next = (struct owner_record){.epoch = epoch, .owner = owner};
    snprintf(owner == OWNER_GIVEN ? h->next.to : h->next.from, sizeof(h->next.to), "%s", h->peer);
    h->failed = false;
    set_state(h, state);
    a->write = true;
    a->record = h->next;
}

static void write_again(struct handoff *h, struct handoff_actions *a)
{
    h->failed = false;
    a->write = true;
    a->record = h->next;
}

static void send_plain(enum handoff_msg_type type, uint64_t epoch, struct handoff_actions *a)
{
    a->send = true;
    a->msg = (struct handoff_msg){.type = type, .epoch = epoch};
}

static void send_answer(const struct handoff *h, struct handoff_actions *a)
{
    send_plain(HANDOFF_MSG_ANSWER, h->record.epoch, a);
    a->msg.owner = h->record.owner;
    snprintf(a->msg.to, sizeof(a->msg.to), "%s", h->record.to);
}

/* The highest epoch that a host has been known to own it with: what is promised has not come to pass. */
static uint64_t known_epoch(const struct handoff *h)
{
    return h->record.epoch - (h->record.owner == OWNER_PROMISED);
}

void handoff_promised(struct handoff *h, const struct owner_record *record)
{
    if (h->state == HANDOFF_WAITING)
        h->record = *record;
}

/* The VM stays with the source: whatever the migration did, it is over, and the peer learns it. */
static void keep(struct handoff *h, struct handoff_actions *a)
{
    a->resume = !h->over;
    h->over = true;
    send_answer(h, a);
}

/* The peer runs it. A host that has handed it back has a copy to discard, one that gave it a copy to
 * destroy. */
static void gone(struct handoff *h, struct handoff_actions *a)
{
    set_state(h, HANDOFF_GONE);
    a->destroy = !h->destination;
    a->discard = h->destination;
}

static void let_go(struct handoff *h, struct handoff_actions *a)
{
    h->next = h->record;
    h->next.settled = true;
    h->failed = false;
    set_state(h, HANDOFF_SETTLING);
    a->write = true;
    a->record = h->next;
}

/* ---- events ---- */

static int written(struct handoff *h, struct handoff_actions *a)
{
    switch (h->state) {
    case HANDOFF_GIVING:
        h->record = h->next;
        set_state(h, HANDOFF_GIVEN);
        send_plain(HANDOFF_MSG_RUN, h->record.epoch, a);
        return 0;
    case HANDOFF_UNDOING:
        h->record = h->next;
        set_state(h, HANDOFF_OWNER);
        keep(h, a);
        return 0;
    case HANDOFF_SETTLING:
        h->record = h->next;
        gone(h, a);
        return 0;
    case HANDOFF_TAKING:
        h->record = h->next;
        if (h->destination) {
            set_state(h, HANDOFF_STARTING);
            a->run = true;
            return 0;
        }
        /* Handed back. */
        set_state(h, HANDOFF_OWNER);
        h->over = true;
        a->resume = true;
        send_plain(HANDOFF_MSG_RUN_ACK, h->record.epoch, a);
        return 0;
    default:
        return -EPROTO;
    }
}

static int write_failed(struct handoff *h, struct handoff_actions *a)
{
    switch (h->state) {
    case HANDOFF_GIVING:
        if (!h->destination && h->record.owner == OWNER_MINE) {
            write_record(h, HANDOFF_UNDOING, OWNER_MINE, h->next.epoch + 1, a);
            snprintf(h->next.from, sizeof(h->next.from), "%s", h->record.from);
            a->record = h->next;
            return 0;
        }
        h->failed = true;
        return 0;
    case HANDOFF_UNDOING:
    case HANDOFF_TAKING:
    case HANDOFF_SETTLING:
        h->failed = true;
        return 0;
    default:
        return -EPROTO;
    }
}

static int retry(struct handoff *h, struct handoff_actions *a)
{
    switch (h->state) {
    case HANDOFF_GIVING:
    case HANDOFF_UNDOING:
    case HANDOFF_TAKING:
    case HANDOFF_SETTLING:
        if (h->failed)
            write_again(h, a);
        return 0;
    case HANDOFF_GIVEN:
        send_plain(HANDOFF_MSG_RUN, h->record.epoch, a);
        return 0;
    case HANDOFF_WAITING:
        send_plain(HANDOFF_MSG_ASK, 0, a);
        return 0;
    case HANDOFF_OWNER:
        /* The source may not have heard that it can destroy its copy; the destination, that it can discard
         * its own. */
        if (h->destination)
            send_plain(HANDOFF_MSG_RUN_ACK, h->record.epoch, a);
        else if (h->over)
            send_answer(h, a);
        return 0;
    default:
        return 0;
    }
}

int handoff_event(struct handoff *h, enum handoff_event event, struct handoff_actions *a)
{
    *a = (struct handoff_actions){0};
    switch (event) {
    case HANDOFF_WANT:
        if (h->state != HANDOFF_OWNER || h->destination)
            return -EPROTO;
        if (h->over)
            return -ECANCELED;
        write_record(h, HANDOFF_GIVING, OWNER_GIVEN, h->record.epoch + 1, a);
        return 0;
    case HANDOFF_ABORT:
        if (h->state != HANDOFF_OWNER || h->destination)
            return -EPROTO;
        keep(h, a);
        return 0;
    case HANDOFF_WRITTEN:
        return h->failed ? -EPROTO : written(h, a);
    case HANDOFF_WRITE_FAILED:
        return h->failed ? -EPROTO : write_failed(h, a);
    case HANDOFF_RAN:
        if (h->state != HANDOFF_STARTING)
            return -EPROTO;
        set_state(h, HANDOFF_OWNER);
        send_plain(HANDOFF_MSG_RUN_ACK, h->record.epoch, a);
        return 0;
    case HANDOFF_CANNOT_RUN:
        if (h->state != HANDOFF_STARTING)
            return -EPROTO;
        write_record(h, HANDOFF_GIVING, OWNER_GIVEN, h->record.epoch + 1, a);
        return 0;
    case HANDOFF_RETRY:
        return retry(h, a);
    }
    return -EPROTO;
}

/* ---- messages ---- */

/* The peer says that the VM is ours from this epoch on. */
static void told_to_run(struct handoff *h, uint64_t epoch, struct handoff_actions *a)
{
    static struct xm_log_limit ignored;
    bool newer = epoch > known_epoch(h);

    switch (h->state) {
    case HANDOFF_WAITING:
    case HANDOFF_DISCARDED:
    case HANDOFF_GIVEN:
    case HANDOFF_GONE:
        if (newer && (h->state == HANDOFF_WAITING || h->state == HANDOFF_GIVEN))
            write_record(h, HANDOFF_TAKING, OWNER_MINE, epoch, a);
        else if (newer)
            write_record(h, HANDOFF_GIVING, OWNER_GIVEN, epoch + 1, a); /* nothing here that could run */
        else
            send_answer(h, a); /* which says so if it is the peer's own since */
        return;
    case HANDOFF_TAKING:
        if (h->failed && epoch == h->next.epoch)
            write_again(h, a);
        return;
    case HANDOFF_GIVING: /* a destination that hands it back, and could not write that yet */
        if (h->failed && h->destination)
            write_again(h, a);
        return;
    case HANDOFF_OWNER:
        if (epoch == h->record.epoch)
            send_plain(HANDOFF_MSG_RUN_ACK, epoch, a);
        else if (!newer)
            send_answer(h, a);
        else
            xm_log_limited(&ignored, XM_LOG_ERROR,
                           "%s hands over epoch %llu of a VM that this host owns with epoch %llu: ignored",
                           h->peer, (unsigned long long)epoch, (unsigned long long)h->record.epoch);
        return;
    default:
        return;
    }
}

static void asked(struct handoff *h, struct handoff_actions *a)
{
    switch (h->state) {
    case HANDOFF_OWNER:
        /* Who asks has lost touch; once it has heard «mine» it discards what we would hand over to. */
        if (h->destination)
            send_answer(h, a);
        else
            keep(h, a);
        return;
    case HANDOFF_GIVEN:
    case HANDOFF_GONE:
    case HANDOFF_WAITING:
    case HANDOFF_DISCARDED:
        send_answer(h, a);
        return;
    default:
        return; /* a record is on its way: what is to be said follows it */
    }
}

static void answered(struct handoff *h, const struct handoff_msg *m, struct handoff_actions *a)
{
    if (m->owner == OWNER_GIVEN && strcmp(m->to, h->self) == 0) {
        told_to_run(h, m->epoch, a);
        return;
    }
    if (m->owner != OWNER_MINE && m->owner != OWNER_GIVEN)
        return; /* nothing that decides */
    if (h->state == HANDOFF_WAITING && m->epoch >= known_epoch(h)) {
        set_state(h, HANDOFF_DISCARDED);
        a->discard = true;
    } else if (h->state == HANDOFF_GIVEN && m->epoch > h->record.epoch) {
        let_go(h, a); /* the VM has lived on since */
    }
}

void handoff_message(struct handoff *h, const struct handoff_msg *m, struct handoff_actions *a)
{
    *a = (struct handoff_actions){0};
    switch (m->type) {
    case HANDOFF_MSG_RUN:
        told_to_run(h, m->epoch, a);
        return;
    case HANDOFF_MSG_RUN_ACK:
        if (h->state == HANDOFF_GIVEN && m->epoch == h->record.epoch)
            let_go(h, a);
        return;
    case HANDOFF_MSG_ASK:
        asked(h, a);
        return;
    case HANDOFF_MSG_ANSWER:
        answered(h, m, a);
        return;
    }
}

/* ---- start ---- */

int handoff_start(struct handoff *h, enum handoff_role role, bool restarted, const char *self,
                  const char *peer, const struct owner_record *record, struct handoff_actions *a,
                  struct xm_error *e)
{
    *a = (struct handoff_actions){0};
    *h = (struct handoff){.destination = role != HANDOFF_SOURCE};
    snprintf(h->self, sizeof(h->self), "%s", self);
    snprintf(h->peer, sizeof(h->peer), "%s", peer);
    if (record)
        h->record = *record;
    if (h->record.owner == OWNER_MINE) {
        if (h->destination && !restarted)
            return xm_error_set(e, EEXIST, "the record of %s says that it owns the VM already", self);
        h->state = HANDOFF_OWNER;
        h->over = restarted;
        a->resume = restarted;
        return 0;
    }
    if (role == HANDOFF_EMPTY) {
        h->state = HANDOFF_DISCARDED;
        return 0;
    }
    if (role == HANDOFF_DESTINATION) {
        h->state = HANDOFF_WAITING;
        if (restarted)
            send_plain(HANDOFF_MSG_ASK, 0, a);
        return 0;
    }
    if (h->record.owner == OWNER_GIVEN && h->record.settled && restarted) {
        h->state = HANDOFF_SETTLING;
        gone(h, a);
        return 0;
    }
    if (h->record.owner == OWNER_GIVEN && restarted) {
        h->state = HANDOFF_GIVEN;
        send_plain(HANDOFF_MSG_RUN, h->record.epoch, a);
        return 0;
    }
    return xm_error_set(e, EPERM, "the record of %s does not say that it owns the VM", self);
}

/* ---- driving it ---- */

void handoff_drive(struct handoff *h, struct handoff_actions a, const struct handoff_hands *hands, void *ctx,
                   struct handoff_done *done)
{
    for (;;) {
        done->resume |= a.resume;
        done->destroy |= a.destroy;
        done->discard |= a.discard;
        if (a.write) {
            int r = hands->save(ctx, &a.record);
            handoff_event(h, r ? HANDOFF_WRITE_FAILED : HANDOFF_WRITTEN, &a);
        } else if (a.run) {
            enum handoff_ran ran = hands->run(ctx);
            if (ran == HANDOFF_PERHAPS) /* ours, and not known to run: the source keeps what it has */
                return;
            handoff_event(h, ran == HANDOFF_DID_RUN ? HANDOFF_RAN : HANDOFF_CANNOT_RUN, &a);
        } else if (a.send) {
            struct handoff_msg msg = a.msg, answer;
            a = (struct handoff_actions){0};
            if (hands->send(ctx, &msg, &answer))
                handoff_message(h, &answer, &a);
        } else {
            return;
        }
    }
}

bool handoff_open(const struct handoff *h)
{
    return h->state != HANDOFF_OWNER && h->state != HANDOFF_GONE && h->state != HANDOFF_DISCARDED;
}

const char *handoff_state_name(enum handoff_state state)
{
    static const char *const names[] = {"owner", "giving",  "given",  "undoing",  "settling",
                                        "gone",  "waiting", "taking", "starting", "discarded"};
    return (unsigned)state < sizeof(names) / sizeof(*names) ? names[state] : "?";
}

/* ---- on the wire ---- */

static const char *const msg_names[] = {"run", "run-ack", "ask", "answer"};

static int find_name(const char *name, const char *const *names, int count)
{
    int i = 0;

    while (i < count && strcmp(name, names[i]) != 0)
        i++;
    return i < count ? i : -1;
}

json_t *handoff_msg_pack(const struct handoff_msg *m)
{
    if (m->type == HANDOFF_MSG_ANSWER)
        return json_pack("{s:s s:I s:s s:s}", "handoff", msg_names[m->type], "epoch", (json_int_t)m->epoch,
                         "owner", owner_side_name(m->owner), "to", m->to);
    return json_pack("{s:s s:I}", "handoff", msg_names[m->type], "epoch", (json_int_t)m->epoch);
}

int handoff_msg_unpack(struct handoff_msg *m, const json_t *o, struct xm_error *e)
{
    int type = find_name(xm_json_str(o, "handoff", ""), msg_names, 4);
    int side = owner_side_of(xm_json_str(o, "owner", "none"));
    int64_t epoch = xm_json_int(o, "epoch", -1);
    const char *to = xm_json_str(o, "to", "");

    if (type < 0 || side < 0 || epoch < 0 || (uint64_t)epoch > OWNER_EPOCH_MAX + 2 ||
        strlen(to) >= sizeof(m->to))
        return xm_error_set(e, EPROTO, "the peer sent a hand-off message that makes no sense");
    *m = (struct handoff_msg){
        .type = (enum handoff_msg_type)type, .epoch = (uint64_t)epoch, .owner = (enum owner_side)side};
    snprintf(m->to, sizeof(m->to), "%s", to);
    return 0;
}
