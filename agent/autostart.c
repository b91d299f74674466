/* SPDX-License-Identifier: MIT */
/* Which boot of the host this is, and the VMs that start by themselves in it.
 *
 * A boot is told by run_dir/boot.json: {"boot_id": the kernel's, "boot": a name that we make up,
 * "autostart": whether it has been done, "waiting": but for these VMs}. The run directory is made of memory,
 * so after a boot there is none; where it is not, the kernel's boot_id differs. An agent that is started
 * again within a boot finds the file, and starts nothing.
 *
 * A VM is started by itself when its definition says so, its record says «mine», no peer that answers owns a
 * higher epoch, and it has not run in this boot yet. One that another host may have taken over waits until
 * that host has been asked (agent/returned.h), one whose disk is not there (its datastore is not mounted yet,
 * say) until it is, and one that somebody holds until that is over. The agent is killed in the middle: the
 * next one goes on with the others. */
#include "agent/inventory.h"
#include "agent/returned.h"
#include "agent/storage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_NS   (5 * XM_NS_PER_S)
#define BOOT_BYTES 8

static void read_boot_id(char *id, size_t size)
{
    char *text = NULL;
    size_t len;

    id[0] = 0;
    if (!xm_file_read("/proc/sys/kernel/random/boot_id", 100, &text, &len, NULL))
        snprintf(id, size, "%.*s", (int)strcspn(text, "\n"), text);
    free(text);
}

/* waiting: names; NULL: none */
static int boot_save(struct agent *a, bool done, json_t *waiting, struct xm_error *e)
{
    char id[100], *path = xm_printf("%s/boot.json", a->conf.run_dir);

    read_boot_id(id, sizeof id);
    json_t *o = json_pack("{s:s, s:s, s:b, s:O*}", "boot_id", id, "boot", a->boot, "autostart", done,
                          "waiting", waiting);
    int r = write_json(path, o, e);
    json_decref(o);
    free(path);
    return r;
}

int inventory_boot(struct agent *a, struct xm_error *e)
{
    char id[100], *path = xm_printf("%s/boot.json", a->conf.run_dir);
    json_t *o = read_json(path, NULL);
    const char *boot = xm_json_str(o, "boot", "");
    int r = 0;

    read_boot_id(id, sizeof id);
    if (*boot && !strcmp(xm_json_str(o, "boot_id", ""), id)) {
        snprintf(a->boot, sizeof a->boot, "%s", boot);
        a->autostart_due = !xm_json_bool(o, "autostart", false);
        a->autostart_waiting = json_incref(json_object_get(o, "waiting"));
    } else {
        r = xm_hex_random(a->boot, BOOT_BYTES, e);
        a->autostart_due = true;
        if (!r)
            r = boot_save(a, false, NULL, e);
    }
    json_decref(o);
    free(path);
    return r;
}

/* Its definition is being changed, or it just comes or goes; *up: it is there. */
static bool is_held(struct agent *a, const char *name, bool *up)
{
    agent_lock(a);
    const struct vm *vm = vm_find(a, name);
    *up = vm && vm->phase == VM_UP;
    bool held = vm && !*up;
    agent_unlock(a);
    return held;
}

/* Not there now, or its storage hangs. */
static bool disk_is_away(const json_t *spec)
{
    json_t *disks = json_object_get(spec, "disks"), *d;
    bool away = false;
    struct stat st;
    size_t i;

    json_array_foreach (disks, i, d)
        away = away || storage_stat(xm_json_str(d, "path", ""), &st) < 0;
    return away;
}

/* False: it is to be tried again: who may have taken it over does not answer, a disk is not there, or it is
 * held. first: nothing has been said of that. */
static bool start_one(struct agent *a, const char *name, bool *silent, bool first)
{
    struct inventory_vm v;
    struct xm_error e = {0};
    bool up, held = is_held(a, name, &up);

    if (inventory_read(a, name, &v) < 0)
        return true;
    bool wanted = !up && owner_may_run(&v.rec) && json_is_true(json_object_get(v.spec, "autostart")) &&
                  (v.life.state == LIFE_NEVER || strcmp(v.life.boot, a->boot) != 0);
    bool away = wanted && !held && disk_is_away(v.spec);
    inventory_free(&v);
    if (!wanted || held || (away && !first))
        return !wanted;
    if (returned_judge(a, name, silent, &e) != RETURNED_OURS) {
        bool later = e.code == EHOSTUNREACH || e.code == EBUSY;
        if (first || !later)
            xm_log(XM_LOG_WARN, "VM %s: not started by itself%s: %s", name,
                   later ? " before that is known" : "", e.text);
        return !later;
    }
    json_t *answer = start_again(a, name);
    bool ok = xm_json_bool(answer, "ok", false), later = !ok && (is_held(a, name, &up) || away);
    if (ok)
        xm_log(XM_LOG_INFO, "VM %s: started by itself (autostart)", name);
    else
        xm_log(later ? XM_LOG_WARN : XM_LOG_ERROR, "VM %s: could not be started by itself%s: %s", name,
               away ? ", and will be when its disks are there" : "", xm_json_str(answer, "error", ""));
    json_decref(answer);
    return !later;
}

/* Takes those out of `names` that are done with. True: the agent ends. */
static bool start_all(struct agent *a, json_t *names, bool *silent, bool first)
{
    bool ending = false;

    for (size_t i = 0; i < json_array_size(names);) {
        agent_lock(a);
        ending = a->ending;
        agent_unlock(a);
        if (ending)
            break;
        const char *name = json_string_value(json_array_get(names, i));
        if (!name || start_one(a, name, silent, first))
            json_array_remove(names, i);
        else
            i++;
    }
    return ending;
}

static void note_done(struct agent *a, json_t *waiting)
{
    struct xm_error e = {0};

    if (boot_save(a, true, waiting, &e) < 0)
        xm_log(XM_LOG_WARN, "that VMs have been started by themselves could not be noted: %s", e.text);
}

/* After the first pass an agent that is started again in this boot has no business with the others. */
static void *autostart_main(void *arg)
{
    struct agent *a = arg;
    bool silent[CONFIG_MANY] = {false}; /* in this pass: hours later they may answer */
    json_t *names = a->autostart_due ? inventory_names(a) : json_copy(a->autostart_waiting);
    bool ending = start_all(a, names, silent, true);

    if (!ending)
        note_done(a, names);
    for (size_t waiting; !ending && (waiting = json_array_size(names));) {
        memset(silent, 0, sizeof silent);
        ending = agent_pause(a, AGAIN_NS) || start_all(a, names, silent, false);
        if (json_array_size(names) < waiting)
            note_done(a, names);
    }
    json_decref(names);
    agent_thread_ends(a);
    return NULL;
}

void inventory_autostart(struct agent *a)
{
    struct xm_error e = {0};

    if ((a->autostart_due || json_array_size(a->autostart_waiting)) &&
        agent_thread(a, autostart_main, a, &e) < 0)
        xm_log(XM_LOG_ERROR, "no VM is started by itself: %s", e.text);
}
