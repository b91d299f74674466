/* SPDX-License-Identifier: MIT */
/* See returned.h. Who gives way first empties the journal of files, so that nothing is deleted for it, then
 * records whose the VM is, then ends what runs; killed in between, the next pass goes on. The disks are kept:
 * what the guest wrote here last may be in no other copy. */
#include "agent/returned.h"
#include "agent/known.h"

#include <stdio.h>
#include <string.h>

/* The hand-offs after which others have to be asked before the VM is started; how many, or -errno. */
static int open_with(struct agent *a, const char *vm, const struct owner_record *rec,
                     struct journal_open open[JOURNAL_OPEN_MAX + 1], struct xm_error *e)
{
    char *dir = vm_state_path(a, vm, NULL);
    struct journal j;
    int r = journal_read(dir, &j, e);

    memset(open, 0, (JOURNAL_OPEN_MAX + 1) * sizeof *open);
    if (!r) {
        r = (int)journal_asks(&j, rec, open);
        journal_free(&j);
    }
    free(dir);
    return r;
}

/* The paths of its disks here, for a sentence. */
static void name_disks(struct agent *a, const char *vm, char *text, size_t size)
{
    char *path = vm_state_path(a, vm, "spec.json");
    json_t *spec = read_json(path, NULL), *d;
    size_t i, n = 0;

    text[0] = 0;
    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        int more = snprintf(text + n, size - n, "%s%s", i ? ", " : "", xm_json_str(d, "path", "?"));
        n = XM_MIN(n + (size_t)XM_MAX(more, 0), size - 1);
    }
    json_decref(spec);
    free(path);
}

/* Recorded: then it is theirs here, too, whatever else fails. */
static int give_way(struct agent *a, const char *vm, const char *owner, uint64_t epoch, bool *recorded,
                    struct xm_error *e)
{
    struct owner_record rec = {.epoch = epoch, .owner = OWNER_GIVEN, .settled = true};
    char *dir = vm_state_path(a, vm, NULL);
    json_t *none = json_array();

    snprintf(rec.to, sizeof rec.to, "%s", owner);
    struct xm_error ignored = {0};
    struct journal j;
    journal_sweep(dir, vm, &ignored); /* what a move of its disks has left is in no copy's stead */
    int r = journal_read(dir, &j, e);
    if (!r) /* killed before the record says so, it may come to be the giver's: then what was before counts */
        r = journal_write(dir, JOURNAL_SOURCE, epoch, owner, j.had_record ? &j.before : NULL, none, e);
    journal_free(&j);
    xm_fault("give-way-journal");
    if (!r)
        r = owner_write(a, vm, &rec, e);
    xm_fault("give-way-record");
    *recorded = !r;
    if (!r)
        r = settle_end_here(a, vm, e);
    json_decref(none);
    free(dir);
    return r;
}

/* Our guest has gone on with the epoch above the one that was offered, since giving the VM could not be
 * recorded (HANDOFF_UNDOING); they have been told by an operator to take it as it was offered, if they have,
 * or had, it with that epoch. */
static bool took_the_offer(const struct journal_open *with, const struct owner_record *ours,
                           const struct owner_record *theirs)
{
    return with && with->side == JOURNAL_SOURCE && theirs->epoch >= with->epoch &&
           ours->epoch <= with->epoch + 1;
}

/* They have it, or had it and gave it to a third one, later than we had it. */
static const char *later_owner(const struct agent *a, const char *host, const struct journal_open *with,
                               const struct owner_record *ours, const struct owner_record *theirs)
{
    if (theirs->epoch <= ours->epoch && !took_the_offer(with, ours, theirs))
        return NULL;
    if (theirs->owner == OWNER_MINE)
        return host;
    return theirs->owner == OWNER_GIVEN && strcmp(theirs->to, a->conf.name) != 0 ? theirs->to : NULL;
}

/* What they are promised is not what we have offered them: somebody else has the VM, and they do not say who.
 * -EBUSY. */
static int offered_by_another(const char *vm, const char *host, const struct journal_open *with,
                              const struct owner_record *ours, const struct owner_record *theirs,
                              struct xm_error *e)
{
    uint64_t offer = with && with->side == JOURNAL_SOURCE ? with->epoch : ours->epoch + 1;

    return theirs->owner != OWNER_PROMISED || theirs->epoch <= offer
               ? 0
               : xm_error_set(e, EBUSY,
                              "VM %s has been taken over: another host is just giving it to %s (epoch %llu); "
                              "ask again when that is over",
                              vm, host, (unsigned long long)theirs->epoch);
}

enum returned returned_give_way(struct agent *a, const char *vm, const struct owner_record *ours,
                                const char *owner, uint64_t epoch, struct xm_error *e)
{
    struct xm_error why = {0};
    struct owner_record now;
    char disks[200];

    if (owner_read(a, vm, &now, e) < 0 || now.owner != ours->owner || now.epoch != ours->epoch) {
        xm_error_set(e, EBUSY, "VM %s has changed at this moment: try again", vm);
        return RETURNED_UNKNOWN;
    }
    bool recorded;
    int r = give_way(a, vm, owner, epoch, &recorded, &why);

    if (!recorded) {
        xm_error_set(
            e, EBUSY,
            "VM %s is %s's (epoch %llu), which has taken it over, and that cannot be recorded on %s: %s", vm,
            owner, (unsigned long long)epoch, a->conf.name, why.text);
        return RETURNED_UNKNOWN;
    }
    name_disks(a, vm, disks, sizeof disks);
    xm_error_set(e, r ? EINPROGRESS : EEXIST,
                 "VM %s is %s's (epoch %llu), which has taken it over; what %s has of it is kept: %s%s%s%s",
                 vm, owner, (unsigned long long)epoch, a->conf.name, disks, r ? "; " : "", r ? why.text : "",
                 r ? ", which is tried again" : "");
    xm_log(XM_LOG_WARN, "%s", e->text);
    return RETURNED_THEIRS;
}

/* It had the VM from itself given to us, and has not heard that we run it. */
static bool not_settled(const struct agent *a, const struct owner_record *theirs)
{
    return theirs->owner == OWNER_MINE ||
           (theirs->owner == OWNER_GIVEN && !theirs->settled && !strcmp(theirs->to, a->conf.name));
}

/* The other host took it on an operator's word, could not let it run, and handed it back: it is ours with the
 * epoch that says so, or its record and ours would be in doubt for ever. */
static int taken_back(struct agent *a, const char *vm, const struct owner_record *ours,
                      const struct owner_record *theirs, struct xm_error *e)
{
    struct owner_record rec = *ours;

    if (theirs->owner != OWNER_GIVEN || strcmp(theirs->to, a->conf.name) != 0 || theirs->epoch <= rec.epoch)
        return 0;
    rec.epoch = theirs->epoch;
    return owner_write(a, vm, &rec, e);
}

/* who: the other host of a hand-off; with: that one, NULL when it is over. */
static enum returned ask(struct agent *a, const char *vm, const struct owner_record *ours, const char *who,
                         const struct journal_open *with, bool *over, struct xm_error *e)
{
    const struct conf_peer *p = config_peer(&a->conf, who);
    struct known there;
    struct xm_error why = {0};
    int r = p ? known_there_soon(a, p, vm, &there, &why) : -ENOENT;

    if (!p)
        xm_error_set(&why, ENOENT, "it is no [peer] of %s", a->conf.name);
    *over = !r;
    if (r && !with)
        return RETURNED_OURS;
    if (known_answered(r)) {
        xm_error_set(e, EBUSY, "whether %s has taken VM %s over is not known: it answers, but: %s", who, vm,
                     why.text);
        return RETURNED_UNKNOWN;
    }
    if (r) {
        xm_error_set(e, EHOSTUNREACH,
                     "VM %s was in a hand-off with %s when %s was last there, and %s may run it by now, "
                     "which cannot be asked: %s; if %s is lost for good, `xmigrate recover %s "
                     "--peer-is-dead` (or if it is only off, and nobody had it take the VM)",
                     vm, who, a->conf.name, who, why.text, who, vm);
        return RETURNED_UNKNOWN;
    }
    const char *owner = later_owner(a, who, with, ours, &there.rec);
    if (owner)
        return returned_give_way(a, vm, ours, owner, there.rec.epoch, e);
    if (offered_by_another(vm, who, with, ours, &there.rec, e) < 0) {
        *over = false;
        return RETURNED_UNKNOWN;
    }
    *over = there.rec.owner != OWNER_PROMISED && !not_settled(a, &there.rec);
    return taken_back(a, vm, ours, &there.rec, e) < 0 ? RETURNED_UNKNOWN : RETURNED_OURS;
}

/* Whoever says so, and had no part in a hand-off with us: a reason not to start it, and not to give anything
 * up. Our record is an older one: a file system with the state directory was put back to what it had been,
 * say. */
static enum returned ask_others(struct agent *a, const char *vm, const struct owner_record *ours,
                                const char *who, bool *silent, struct xm_error *e)
{
    struct known_answer answer[CONFIG_MANY];
    enum returned is = RETURNED_OURS;
    bool skip[CONFIG_MANY];

    for (unsigned i = 0; i < a->conf.peers; i++)
        skip[i] = silent[i] || !strcmp(a->conf.peer[i].name, who);
    known_everywhere(a, vm, skip, answer);
    for (unsigned i = 0; i < a->conf.peers; i++) {
        const struct owner_record *rec = &answer[i].there.rec;
        if (skip[i])
            continue;
        silent[i] = answer[i].result < 0;
        if (is == RETURNED_OURS && answer[i].result == -EBUSY) { /* it may have the VM in a moment */
            xm_error_set(e, EBUSY, "whether %s has VM %s is not known: it answers, but: %s",
                         a->conf.peer[i].name, vm, answer[i].error.text);
            is = RETURNED_UNKNOWN;
        }
        if (is != RETURNED_OURS || silent[i] || rec->owner != OWNER_MINE || rec->epoch <= ours->epoch)
            continue;
        xm_error_set(e, EEXIST,
                     "%s owns a newer epoch of VM %s (%llu) than the record of %s has (%llu; is its state "
                     "directory as it was some time ago?): `xmigrate recover %s`",
                     a->conf.peer[i].name, vm, (unsigned long long)rec->epoch, a->conf.name,
                     (unsigned long long)ours->epoch, vm);
        is = RETURNED_UNKNOWN;
    }
    return is;
}

static bool silent_already(const struct agent *a, const char *host, const bool *silent)
{
    for (unsigned i = 0; silent && i < a->conf.peers; i++) {
        if (silent[i] && !strcmp(a->conf.peer[i].name, host))
            return true;
    }
    return false;
}

/* The VM is claimed. with: as `ask` says. */
static enum returned judge_held(struct agent *a, const char *vm, const struct owner_record *rec,
                                const char *who, const struct journal_open *with, struct xm_error *e)
{
    bool over = false;

    if (!settle_hold(a, vm, true)) {
        xm_error_set(e, EBUSY, "VM %s just comes or goes, or is being changed: try again", vm);
        return with ? RETURNED_UNKNOWN : RETURNED_OURS;
    }
    enum returned is = ask(a, vm, rec, who, with, &over, e);
    if (is == RETURNED_OURS && with && over) {
        char *dir = vm_state_path(a, vm, NULL);
        struct xm_error why = {0};
        if (journal_close(dir, who, with->epoch, &why) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s", vm, why.text);
        free(dir);
    }
    settle_hold(a, vm, false);
    return is;
}

/* False: *is says what there is to say. A record that cannot be read at this moment may say anything in the
 * next: who reads it then, and finds that it is ours, has not asked anybody. */
static bool is_ours(struct agent *a, const char *vm, struct owner_record *rec, enum returned *is,
                    struct xm_error *e)
{
    struct xm_error why = {0};
    int r = owner_read(a, vm, rec, &why);
    bool readable = !r || r == -ENOENT || r == -EINVAL; /* EINVAL: damaged, and so it stays */

    if (!readable)
        *e = why;
    *is = readable ? RETURNED_OURS : RETURNED_UNKNOWN; /* another's: whoever asks sees to that */
    return !r && rec->owner == OWNER_MINE;
}

/* "hostb, hostc": with one more. */
static void name_too(char *names, size_t size, const char *host)
{
    size_t n = strlen(names);

    snprintf(names + n, size - n, "%s%s", n ? ", " : "", host);
}

/* An operator's word is about all that are silent: he hears of all of them before he gives it. */
static void say_silent(struct agent *a, const char *vm, const char *silent, struct xm_error *e)
{
    xm_error_set(
        e, EHOSTUNREACH,
        "VM %s was in hand-offs with %s when %s was last there; each of them may run it by now, and none "
        "of them can be asked: start their agents; if all of them are lost for good, `xmigrate recover "
        "%s --peer-is-dead`, which is about all of them (or if they are only off, and nobody had one "
        "take the VM)",
        vm, silent, a->conf.name, vm);
}

enum returned returned_judge_claimed(struct agent *a, const char *vm, struct xm_error *e)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    enum returned is = RETURNED_OURS;
    struct owner_record rec, now;
    char silent[200] = "";
    unsigned silents = 0;

    if (!is_ours(a, vm, &rec, &is, e))
        return is;
    int n = open_with(a, vm, &rec, open, e);
    if (n < 0)
        return RETURNED_UNKNOWN;
    /* All of them: one that has it counts, whoever else is silent. What one has said may have changed the
     * record: then the next pass asks the others. */
    for (int i = 0; i < n && is != RETURNED_THEIRS; i++) {
        struct xm_error why = {0};
        if (i && (owner_read(a, vm, &now, NULL) < 0 || now.owner != rec.owner || now.epoch != rec.epoch))
            break;
        enum returned it = judge_held(a, vm, &rec, open[i].peer, &open[i], &why);
        if (it == RETURNED_UNKNOWN && why.code == EHOSTUNREACH) {
            name_too(silent, sizeof silent, open[i].peer);
            silents++;
        }
        if (it == RETURNED_OURS || (it == RETURNED_UNKNOWN && is == RETURNED_UNKNOWN))
            continue;
        is = it;
        *e = why;
    }
    if (is == RETURNED_UNKNOWN && e->code == EHOSTUNREACH && silents > 1)
        say_silent(a, vm, silent, e);
    return n || !rec.from[0] ? is : judge_held(a, vm, &rec, rec.from, NULL, e);
}

enum returned returned_judge(struct agent *a, const char *vm, bool *silent, struct xm_error *e)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    enum returned is = RETURNED_OURS;
    struct owner_record rec;

    if (!is_ours(a, vm, &rec, &is, e))
        return is;
    int n = open_with(a, vm, &rec, open, e);
    if (n < 0)
        return RETURNED_UNKNOWN;
    if (n || (rec.from[0] && !silent_already(a, rec.from, silent))) {
        if (!settle_claim(a, vm, SETTLE_PREPARE_PATIENCE)) {
            xm_error_set(e, EBUSY, "what is open of VM %s is just being settled on %s: try again", vm,
                         a->conf.name);
            return RETURNED_UNKNOWN;
        }
        is = returned_judge_claimed(a, vm, e);
        settle_release(a, vm);
    }
    return is == RETURNED_OURS && silent ? ask_others(a, vm, &rec, n ? open[0].peer : rec.from, silent, e)
                                         : is;
}

static bool is_open_with(const struct journal_open *open, int n, const char *host)
{
    bool is = false;

    for (int i = 0; i < n && !is; i++)
        is = !strcmp(open[i].peer, host);
    return is;
}

/* Who is said to be dead may have taken it, and given it on before it died: nothing is given up for who says
 * so, and nothing taken from it. -errno: one has it, or may have it. Those that do not answer are named. */
static int gone_on(struct agent *a, const char *vm, const struct owner_record *ours,
                   const struct journal_open *open, int n, char *silent, size_t size, struct xm_error *e)
{
    uint64_t since = ours->epoch;
    int r = 0;

    for (int i = 0; i < n; i++) { /* what came of the offer, our guest having gone on above it */
        if (open[i].side == JOURNAL_SOURCE && ours->epoch <= open[i].epoch + 1)
            since = XM_MIN(since, open[i].epoch);
    }
    for (unsigned i = 0; !r && i < a->conf.peers; i++) {
        const struct conf_peer *p = &a->conf.peer[i];
        char host[CONFIG_NAME_MAX + 1];
        struct xm_error why = {0};
        struct known there;
        if (is_open_with(open, n, p->name))
            continue;
        int is = known_there(a, p, vm, &there, &why);
        if (known_answered(is))
            return xm_error_set(e, EBUSY, "whether %s has it is not known: it answers, but: %s", p->name,
                                why.text);
        if (is) {
            name_too(silent, size, p->name);
            continue;
        }
        if (there.rec.owner == OWNER_GIVEN && is_open_with(open, n, there.rec.to))
            continue;
        snprintf(host, sizeof host, "%s", p->name);
        r = known_follow(a, vm, since, "", host, &there, e);
        if (!r && there.rec.owner == OWNER_MINE && there.rec.epoch > since)
            r = xm_error_set(e, EEXIST,
                             "it is %s's (epoch %llu), which is later, and not taken from it: what %s has "
                             "of it is forgotten, when it is stopped, by `xmigrate undefine --force %s`, "
                             "and its disks stay; if that is another VM, one of the two needs another name",
                             host, (unsigned long long)there.rec.epoch, a->conf.name, vm);
        else if (!r && there.rec.owner == OWNER_PROMISED && there.rec.epoch > since)
            r = xm_error_set(e, EEXIST,
                             "%s has a later copy of it, which another host was about to give it: `xmigrate "
                             "recover %s --peer-is-dead` on %s",
                             host, vm, host);
    }
    return r;
}

/* Claimed and held. Those of the hand-offs' hosts that do not answer are named in `dead`. */
static int take_by_word(struct agent *a, const char *vm, struct returned_word *w, struct xm_error *e)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    char *dir = vm_state_path(a, vm, NULL);
    bool silent[JOURNAL_OPEN_MAX + 1] = {false};
    struct owner_record rec;
    struct known there;
    int r = owner_read(a, vm, &rec, e);
    int n = r || rec.owner != OWNER_MINE ? 0 : open_with(a, vm, &rec, open, e);

    for (int i = 0; i < n; i++) {
        const struct conf_peer *p = config_peer(&a->conf, open[i].peer);
        struct xm_error why = {0};
        int is = p ? known_there(a, p, vm, &there, &why) : -ENOENT;
        silent[i] = is && !known_answered(is);
        if (!is && later_owner(a, open[i].peer, &open[i], &rec, &there.rec))
            r = xm_error_set(e, EEXIST, "%s has taken it over (epoch %llu)", open[i].peer,
                             (unsigned long long)there.rec.epoch);
        else if (!r && !is)
            r = offered_by_another(vm, open[i].peer, &open[i], &rec, &there.rec, e);
        else if (!r && known_answered(is))
            r = xm_error_set(e, EBUSY, "%s answers, but: %s", open[i].peer, why.text);
        if (silent[i])
            name_too(w->dead, sizeof w->dead, open[i].peer);
    }
    if (!r)
        r = n < 0 ? n : w->dead[0] ? 0 : -ENOENT;
    if (!r)
        r = gone_on(a, vm, &rec, open, n, w->silent, sizeof w->silent, e);
    if (!r) {
        rec.epoch += BY_WORD_MINE;
        xm_log(XM_LOG_WARN, "VM %s: %s declared dead by an operator; kept with epoch %llu", vm, w->dead,
               (unsigned long long)rec.epoch);
        r = owner_write(a, vm, &rec, e);
    }
    for (int i = 0; !r && i < n; i++)
        r = silent[i] ? journal_close(dir, open[i].peer, open[i].epoch, e) : 0;
    free(dir);
    return r;
}

int returned_by_word(struct agent *a, const char *vm, struct returned_word *w, struct xm_error *e)
{
    int r = -EBUSY;

    memset(w, 0, sizeof *w);
    if (!settle_claim(a, vm, SETTLE_PREPARE_PATIENCE))
        return xm_error_set(e, EBUSY, "what is open of it is just being settled: try again");
    if (settle_hold(a, vm, true)) {
        r = take_by_word(a, vm, w, e);
        settle_hold(a, vm, false);
    } else {
        xm_error_set(e, EBUSY, "it just comes or goes, or is being changed: try again");
    }
    settle_release(a, vm);
    return r;
}
