/* SPDX-License-Identifier: MIT */
/* undefine: the VM does not run, and its record is «mine», or «given» and settled, and who has it since does
 * not have it any more: the record keeps another VM of its name from being defined here, whoever is silent
 * then. Its files in the state directory go, its disks stay. */
#include "agent/inventory.h"
#include "agent/storage.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the journal of its last migration still waits for. NULL: nothing. */
static json_t *not_cleaned_up(struct agent *a, const struct inventory_vm *v)
{
    struct journal_open open[JOURNAL_OPEN_MAX + 1];
    char *dir = vm_state_path(a, v->name, NULL);
    struct xm_error e = {0};
    struct journal j;
    json_t *no = NULL;
    int r = journal_read(dir, &j, &e);
    const char *file = journal_path(json_array_get(j.files, 0));

    if (r)
        no = refusal(EXIT_REFUSED,
                     "VM %s: what its last migration left is not known: %s. With --force it is forgotten all "
                     "the same, and that stays",
                     v->name, e.text);
    else if (v->rec.owner == OWNER_MINE && journal_asks(&j, &v->rec, open))
        no =
            refusal(EXIT_REFUSED,
                    "VM %s: its last migration is not cleaned up yet; that is done within seconds, when %s "
                    "answers: try again; if that host is lost for good: `xmigrate recover %s --peer-is-dead`",
                    v->name, open[0].peer, v->name);
    else if (j.side != JOURNAL_NONE)
        no = refusal(EXIT_REFUSED,
                     "VM %s: what its last migration left is not cleaned up yet (%s), which is tried every "
                     "few seconds. With --force the VM is forgotten all the same, and that stays",
                     v->name, file[0] ? file : "its journal");
    journal_free(&j);
    free(dir);
    return no;
}

/* NULL: it may be forgotten. With force what is in doubt, too, but not what cannot be read. */
static json_t *must_stay(struct agent *a, const struct inventory_vm *v, bool force)
{
    bool known = v->rec.owner == OWNER_MINE || (v->rec.owner == OWNER_GIVEN && v->rec.settled);
    json_t *no = NULL;
    enum whereabouts is = WHERE_NOWHERE;
    char *where = v->rec.owner != OWNER_NONE && v->rec.owner != OWNER_MINE && !force
                      ? inventory_whereabouts(a, v->name, &v->rec, &is)
                      : NULL;

    if (v->rec.owner == OWNER_NONE) {
        no = refusal(EXIT_REFUSED, "VM %s: %s", v->name, v->damage.text);
    } else if (!force && !known) {
        no = refusal(
            EXIT_REFUSED,
            "VM %s is not forgotten while it is not settled where it is: %s. With --force it is, and only "
            "you know then where its disks are",
            v->name, where);
    } else if (is == WHERE_OWNED) {
        no = refusal(EXIT_REFUSED,
                     "VM %s: %s. Nothing needs to be done here: what %s remembers of it keeps another VM of "
                     "its name from being started",
                     v->name, where, a->conf.name);
    } else if (is == WHERE_UNKNOWN) {
        no = refusal(EXIT_REFUSED,
                     "VM %s: %s. What %s remembers of it keeps another VM of its name from being started; "
                     "if it is to be forgotten all the same: `xmigrate undefine --force %s`",
                     v->name, where, a->conf.name, v->name);
    } else if (!force) {
        no = not_cleaned_up(a, v);
    }
    free(where);
    return no;
}

/* The variables of its firmware are the guest's, as its disks are. Linked before the record goes: killed in
 * between, the VM still has them. *kept: where, malloc'ed; NULL: there are none. */
static int keep_nvram(struct agent *a, const char *name, char **kept, struct xm_error *e)
{
    char *from = vm_state_path(a, name, "nvram.fd"), *dir = xm_printf("%s/kept", a->conf.state_dir),
         *to = NULL;
    int r = access(from, F_OK) < 0 ? -ENOENT : xm_mkdir_all(dir, e);

    for (unsigned n = 0; !r && !*kept; n++) {
        to = n ? xm_printf("%s/%s-nvram.%u.fd", dir, name, n) : xm_printf("%s/%s-nvram.fd", dir, name);
        if (!link(from, to))
            *kept = to;
        else if (errno != EEXIST)
            r = xm_error_errno(e, errno, "cannot keep %s as %s", from, to);
        if (!*kept)
            free(to);
    }
    free(dir);
    free(from);
    return r == -ENOENT ? 0 : r;
}

/* What is here still of the disks that it had when it was given away: what a move leaves (--keep-source, no
 * datastore's), or what the hosts share. */
static json_t *disks_left(const json_t *spec)
{
    json_t *left = json_array(), *d;
    size_t i;

    json_array_foreach (json_object_get(spec, "disks"), i, d) {
        struct stat st;
        if (storage_stat(xm_json_str(d, "path", ""), &st) != -ENOENT)
            json_array_append(left, d);
    }
    return left;
}

static json_t *undefine(struct agent *a, const char *name, bool force)
{
    struct inventory_vm v;
    struct xm_error e = {0};
    char *nvram = NULL;

    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    json_t *answer = must_stay(a, &v, force);
    json_t *left = !answer && !owner_may_run(&v.rec) ? disks_left(v.spec) : NULL;
    if (!answer && ((owner_may_run(&v.rec) && keep_nvram(a, name, &nvram, &e) < 0) ||
                    inventory_remove(a, name, v.rec.epoch, &e) < 0))
        answer = refusal(EXIT_FAILED, "VM %s: %s", name, e.text);
    if (!answer) {
        xm_log(XM_LOG_INFO, "VM %s: undefined (epoch %llu)", name, (unsigned long long)v.rec.epoch);
        answer = ok_answer();
        json_object_set_new(answer, "text", json_sprintf("%s has forgotten VM %s", a->conf.name, name));
        if (owner_may_run(&v.rec) && v.spec) /* the only place that said where they are */
            json_object_set(answer, "disks_kept", json_object_get(v.spec, "disks"));
        else if (left)
            json_object_set(answer, "disks_left", left);
        if (nvram)
            json_object_set_new(answer, "nvram_kept", json_string(nvram));
    }
    free(nvram);
    json_decref(left);
    inventory_free(&v);
    return answer;
}

json_t *verb_undefine(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");

    if (vm_name_check(name, NULL) < 0)
        return not_running(a, name, EXIT_FAILED);
    /* Who settles it meanwhile would write its record anew. */
    if (!settle_claim(a, name, SETTLE_PREPARE_PATIENCE))
        return refusal(EXIT_REFUSED, "what is open of VM %s is just being settled on %s: try again", name,
                       a->conf.name);
    json_t *nothing = json_object(), *answer = define_hold(a, name, nothing);
    if (answer) {
        json_decref(answer);
        answer = refusal(EXIT_REFUSED, "VM %s runs, or is on its way: it can be undefined when it is stopped",
                         name);
    } else {
        answer = undefine(a, name, xm_json_bool(request, "force", false));
        define_let_go(a, name);
    }
    json_decref(nothing);
    settle_release(a, name);
    return answer;
}
