/* SPDX-License-Identifier: MIT */
/* What is said of VMs: list, show, and where their console and logs are.
 *
 * Of a VM that runs its shim is asked; of one that does not, the inventory (agent/inventory.h).
 */
#include "agent/inventory.h"
#include "agent/storage.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- of those that have a shim ---- */

/* Writes of its guest for which a file system has no room. */
static json_int_t waiting(const json_t *st)
{
    json_int_t n = 0;
    const json_t *d;
    size_t i;

    json_array_foreach (json_object_get(st, "disks"), i, d)
        n += xm_json_int(d, "waiting", 0);
    return n;
}

/* Its guest stands still until its hand-off, which was cut, is settled: by the record, which is read only
 * where it may say so. */
static bool is_undecided(struct agent *a, const char *name, const json_t *st)
{
    struct owner_record rec;

    if (strcmp(xm_json_str(st, "state", ""), "stopped") != 0 &&
        strcmp(xm_json_str(st, "role", ""), "undecided") != 0)
        return false;
    return owner_read(a, name, &rec, NULL) == 0 && verdict_open(&rec);
}

static json_t *describe(struct agent *a, const char *name, json_t *spec, const json_t *incoming,
                        bool starting, bool whole)
{
    struct xm_error e = {0};
    json_t *st =
        starting ? NULL : shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 3 * XM_NS_PER_S, &e);
    json_t *o = whole && st ? json_copy(st) : json_object();
    static const char *const keys[] = {"memory", "vcpus", "machine", "accel"};

    json_object_del(o, "ok");
    json_object_del(o, "id");
    json_object_del(o, "vm");
    json_object_set_new(o, "name", json_string(name));
    json_object_set_new(o, "host", json_string(a->conf.name));
    const char *state = starting                    ? "starting"
                        : is_undecided(a, name, st) ? "undecided"
                                                    : xm_json_str(st, "state", "no answer");
    /* A shim's «stopped» is a guest that stands still; here that word is for one that has ended. */
    json_object_set_new(o, "state", json_string(strcmp(state, "stopped") ? state : "paused"));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(o, keys[i], json_object_get(spec, keys[i]));
    json_object_set(o, "disks", st && whole ? json_object_get(st, "disks") : json_object_get(spec, "disks"));
    if (waiting(st))
        json_object_set_new(o, "waiting", json_integer(waiting(st)));
    if (st && json_object_get(st, "job"))
        json_object_set(o, "job", json_object_get(st, "job"));
    if (incoming && json_object_get(o, "job")) /* its number is the source's, and here another job's */
        json_object_set_new(
            o, "job", json_sprintf("%s:%s", xm_json_str(incoming, "source", ""), xm_json_str(o, "job", "")));
    if (!incoming)
        json_object_set_new(o, "autostart", json_boolean(json_is_true(json_object_get(spec, "autostart"))));
    if (incoming)
        json_object_set_new(o, "source", json_string(xm_json_str(incoming, "source", "")));
    if (!st && !starting)
        json_object_set_new(o, "error", json_string(e.text));
    if (whole)
        json_object_set(o, "spec", spec);
    json_decref(st);
    return o;
}

/* ---- of those in the inventory ---- */

static json_t *owner_json(const struct owner_record *rec)
{
    return json_pack("{s:s, s:I, s:s, s:s}", "owner", owner_side_name(rec->owner), "epoch",
                     (json_int_t)rec->epoch, "to", rec->to, "from", rec->from);
}

/* Looks whether the files are there: who sees a VM that does not start looks here first. */
static json_t *disks_json(const json_t *spec)
{
    json_t *disks = json_deep_copy(json_object_get(spec, "disks")), *d;
    size_t i;

    json_array_foreach (disks, i, d) {
        struct stat st;
        int r = storage_stat(xm_json_str(d, "path", ""), &st);
        if (r)
            json_object_set_new(d, r == -ETIMEDOUT ? "hangs" : "missing", json_true());
    }
    return disks;
}

static json_t *describe_stopped(struct agent *a, const struct inventory_vm *v, bool whole)
{
    static const char *const keys[] = {"memory", "vcpus", "machine", "accel"};
    json_t *o = json_pack("{s:s, s:s, s:s}", "name", v->name, "host", a->conf.name, "state",
                          v->damage.code                   ? "damaged"
                          : v->rec.owner == OWNER_PROMISED ? "undecided"
                                                           : "stopped");
    json_t *why = inventory_why_json(a, v);

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(o, keys[i], json_object_get(v->spec, keys[i]));
    if (v->spec)
        json_object_set_new(o, "disks",
                            whole ? disks_json(v->spec) : json_incref(json_object_get(v->spec, "disks")));
    json_object_set_new(o, "autostart", json_boolean(json_is_true(json_object_get(v->spec, "autostart"))));
    if (v->damage.code)
        json_object_set_new(o, "error", json_string(v->damage.text));
    if (why)
        json_object_set_new(o, "ended", why);
    if (whole && v->spec)
        json_object_set(o, "spec", v->spec);
    return o;
}

/* ---- list, show ---- */

static bool listed(const json_t *list, const char *name)
{
    const json_t *o;
    size_t i;

    json_array_foreach (list, i, o) {
        if (!strcmp(xm_json_str(o, "name", ""), name))
            return true;
    }
    return false;
}

static void list_stopped(struct agent *a, json_t *list)
{
    json_t *names = inventory_names(a), *name;
    size_t i;

    json_array_foreach (names, i, name) {
        struct inventory_vm v;
        if (listed(list, json_string_value(name)) || inventory_read(a, json_string_value(name), &v) < 0)
            continue;
        if (inventory_owns(&v))
            json_array_append_new(list, describe_stopped(a, &v, false));
        inventory_free(&v);
    }
    json_decref(names);
}

static int by_name(const void *x, const void *y)
{
    return strcmp(xm_json_str(*(json_t *const *)x, "name", ""), xm_json_str(*(json_t *const *)y, "name", ""));
}

/* Steals it. */
static json_t *sorted(json_t *list)
{
    size_t n = json_array_size(list);
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): pointers are sorted */
    json_t **vm = calloc(n + 1, sizeof *vm), *by = json_array();

    if (!vm) {
        json_decref(by);
        return list;
    }
    for (size_t i = 0; i < n; i++)
        vm[i] = json_array_get(list, i);
    qsort(vm, n, sizeof *vm, by_name); /* NOLINT(bugprone-sizeof-expression): likewise */
    for (size_t i = 0; i < n; i++)
        json_array_append(by, vm[i]);
    free(vm);
    json_decref(list);
    return by;
}

json_t *verb_list(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    json_t *answer = ok_answer(), *list = json_array(), *now = json_array(), *o;
    struct vm *vm;
    size_t i;

    (void)request;
    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        if (vm->phase < VM_HELD)
            json_array_append_new(now,
                                  json_pack("{s:s, s:O, s:O?, s:b}", "name", vm->name, "spec", vm->spec,
                                            "incoming", vm->incoming, "starting", vm->phase == VM_STARTING));
    }
    agent_unlock(a);
    json_array_foreach (now, i, o) {
        json_t *in = json_object_get(o, "incoming");
        json_array_append_new(list, describe(a, xm_json_str(o, "name", ""), json_object_get(o, "spec"),
                                             json_is_object(in) ? in : NULL,
                                             xm_json_bool(o, "starting", false), false));
    }
    json_decref(now);
    list_stopped(a, list);
    json_object_set_new(answer, "host", json_string(a->conf.name));
    json_object_set_new(answer, "vms", sorted(list));
    return answer;
}

json_t *not_running(struct agent *a, const char *name, int exit)
{
    struct inventory_vm v;

    if (inventory_read(a, name, &v) < 0)
        return refusal(exit, "there is no VM '%s' on %s", name, a->conf.name);
    struct owner_record rec = v.rec;
    json_t *no = NULL;
    if (v.damage.code && inventory_owns(&v))
        no = refusal(exit, "VM %s: %s", name, v.damage.text);
    inventory_free(&v);
    if (no)
        return no;
    if (rec.owner == OWNER_MINE)
        return refusal(exit, "VM %s is stopped; `xmigrate start %s` starts it", name, name);
    char *where = inventory_whereabouts(a, name, &rec, NULL);
    no = refusal(exit, "VM %s is not here: %s", name, where);
    free(where);
    return no;
}

static json_t *shown(json_t *o, const struct owner_record *rec)
{
    json_t *answer = ok_answer();

    if (rec)
        json_object_set_new(o, "owner", owner_json(rec));
    json_object_set(answer, "state", json_object_get(o, "state")); /* for scripts: what they ask most */
    json_object_set(answer, "disks", json_object_get(o, "disks"));
    json_object_set_new(answer, "vm", o);
    return answer;
}

static json_t *show_stopped(struct agent *a, const char *name)
{
    struct inventory_vm v;

    if (inventory_read(a, name, &v) < 0)
        return not_running(a, name, EXIT_FAILED);
    json_t *answer = inventory_owns(&v) ? shown(describe_stopped(a, &v, true), v.rec.owner ? &v.rec : NULL)
                                        : not_running(a, name, EXIT_FAILED);
    inventory_free(&v);
    return answer;
}

json_t *verb_show(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    struct owner_record rec;

    vm_wait_ending(a, name);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && vm->phase >= VM_HELD)
        vm = NULL;
    json_t *spec = vm ? json_incref(vm->spec) : NULL, *incoming = vm ? json_incref(vm->incoming) : NULL;
    bool starting = vm && vm->phase == VM_STARTING;
    agent_unlock(a);
    if (!spec)
        return show_stopped(a, name);
    json_t *answer = shown(describe(a, name, spec, incoming, starting, true),
                           owner_read(a, name, &rec, NULL) ? NULL : &rec);
    json_decref(spec);
    json_decref(incoming);
    return answer;
}

/* ---- console, log ---- */

json_t *verb_console(struct conn *c, const json_t *request)
{
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool up = vm && vm->phase == VM_UP;
    agent_unlock(a);
    if (!up)
        return not_running(a, name, EXIT_FAILED);
    char *path = vm_path(a, name, "serial.sock");
    json_t *answer = access(path, F_OK) < 0
                         ? refusal(EXIT_FAILED, "VM %s has no console: there is no %s", name, path)
                         : ok_answer();
    if (xm_json_bool(answer, "ok", false))
        json_object_set_new(answer, "socket", json_string(path));
    free(path);
    return answer;
}

static void add_log(json_t *logs, const char *file, const char *path)
{
    json_array_append_new(
        logs, json_pack("{s:s%, s:s}", "name", file, strlen(file) - strlen(".log"), "path", path));
}

/* Of a VM that runs, else what was kept when it ended (vm_remove_run_dir). The console's is in the state
 * directory; what has not come to go there yet (machine/logs.c) follows it. */
json_t *verb_log(struct conn *c, const json_t *request)
{
    static const char *const files[] = {"shim.log", "qemu.log", "console.log"};
    struct agent *a = c->agent;
    const char *name = xm_json_str(request, "vm", "");
    json_t *logs = json_array();

    for (size_t i = 0; i < sizeof files / sizeof *files && !vm_name_check(name, NULL); i++) {
        char *now = vm_path(a, name, files[i]),
             *kept = xm_printf("%s/logs/%s-%s", a->conf.state_dir, name, files[i]);
        struct stat st;
        bool console = !strcmp(files[i], "console.log"), here = stat(now, &st) == 0;
        if (access(kept, R_OK) == 0 && (console || !here))
            add_log(logs, files[i], kept);
        if (here && (!console || st.st_size > 0))
            add_log(logs, files[i], now);
        free(now);
        free(kept);
    }
    if (!json_array_size(logs)) {
        json_decref(logs);
        return not_running(a, name, EXIT_FAILED);
    }
    json_t *answer = ok_answer();
    json_object_set_new(answer, "logs", logs);
    return answer;
}
