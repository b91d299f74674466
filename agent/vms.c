/* SPDX-License-Identifier: MIT */
/* The VMs of this host: each is a shim, a process that outlives the agent, and a run directory that tells of
 * it. Here: where its files are, the list of the VMs, what is reserved for them, and how they are found
 * again.
 *
 * Happy path: a request claims the name, brings the shim up and has it watched (watch.c), which forgets
 * the VM when its shim has ended. The agent dies: nothing changes for shims. The next agent finds them by
 * their run directories (vms_adopt), takes those that live into its list, and cleans up after the others.
 *
 * A process is taken for the VM's only when its command line names the run directory: numbers are used again.
 */
#include "agent/agent.h"
#include "agent/facts.h"
#include "agent/inventory.h"
#include "agent/storage.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- paths and files ---- */

char *vm_path(const struct agent *a, const char *name, const char *file)
{
    return file ? xm_printf("%s/vms/%s/%s", a->conf.run_dir, name, file)
                : xm_printf("%s/vms/%s", a->conf.run_dir, name);
}

char *vm_state_path(const struct agent *a, const char *name, const char *file)
{
    return file ? xm_printf("%s/vms/%s/%s", a->conf.state_dir, name, file)
                : xm_printf("%s/vms/%s", a->conf.state_dir, name);
}

int write_json(const char *path, const json_t *o, struct xm_error *e)
{
    return xm_json_save(path, o, e);
}

json_t *read_json(const char *path, struct xm_error *e)
{
    json_t *o;

    xm_json_load(path, &o, e);
    return o;
}

json_t *read_vm_json(struct agent *a, const char *name, const char *file)
{
    char *path = vm_path(a, name, file);
    json_t *o = read_json(path, NULL);

    free(path);
    return o;
}

int owner_read(struct agent *a, const char *name, struct owner_record *rec, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    int r = owner_load(dir, name, rec, e);

    free(dir);
    return r;
}

int owner_write(struct agent *a, const char *name, const struct owner_record *rec, struct xm_error *e)
{
    char *dir = vm_state_path(a, name, NULL);
    int r = owner_save(dir, name, rec, e);

    free(dir);
    return r;
}

bool vm_owned(struct agent *a, const char *name, uint64_t *epoch)
{
    struct owner_record rec;
    int r = owner_read(a, name, &rec, NULL);

    if (epoch)
        *epoch = r ? 0 : rec.epoch;
    return !r && owner_may_run(&rec);
}

/* And its arguments, each with its 0, in *args (malloc'ed; NULL without a process). */
static pid_t process_of(struct agent *a, const char *name, const char *file, char **args, size_t *args_len)
{
    char *path = vm_path(a, name, file), *dir = vm_path(a, name, ""), *text = NULL; /* ends with a slash */
    char proc[64];
    size_t len = 0;
    pid_t pid = 0;

    if (!xm_file_read(path, 64, &text, &len, NULL))
        pid = (pid_t)strtol(text, NULL, 10);
    free(text);
    text = NULL;
    snprintf(proc, sizeof proc, "/proc/%d/cmdline", pid);
    size_t dir_len = strlen(dir);
    if (pid <= 0 || xm_file_read(proc, 1 << 20, &text, &len, NULL) < 0 || !memmem(text, len, dir, dir_len))
        pid = 0;
    if (!pid) {
        free(text);
        text = NULL;
    }
    *args = text;
    *args_len = len;
    free(path);
    free(dir);
    return pid;
}

pid_t vm_process(struct agent *a, const char *name, const char *file)
{
    char *args;
    size_t len;
    pid_t pid = process_of(a, name, file, &args, &len);

    free(args);
    return pid;
}

bool vm_booted_here(struct agent *a, const char *name)
{
    static const char incoming[] = "\0-incoming";
    char *args;
    size_t len;
    bool booted = process_of(a, name, "qemu.pid", &args, &len) &&
                  !memmem(args, len, incoming, sizeof incoming); /* with both zeros */

    free(args);
    return booted;
}

static int remove_run_dir(struct agent *a, const char *name, struct xm_error *e)
{
    char *dir = vm_path(a, name, NULL);

    logs_keep(a, name);
    int r = xm_rmdir_files(dir, e);
    free(dir);
    return r;
}

void vm_remove_run_dir(struct agent *a, const char *name)
{
    struct xm_error e = {0};

    if (remove_run_dir(a, name, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", name, e.text);
}

/* ---- the list ---- */

struct vm *vm_find(struct agent *a, const char *name)
{
    struct vm *vm;

    TAILQ_FOREACH (vm, &a->vms, link) {
        if (!strcmp(vm->name, name))
            return vm;
    }
    return NULL;
}

struct vm *vm_claim(struct agent *a, const char *name, json_t *spec, struct xm_error *e)
{
    struct vm *vm;

    if (vm_find(a, name)) {
        xm_error_set(e, EEXIST, "VM %s is on %s already", name, a->conf.name);
        return NULL;
    }
    vm = calloc(1, sizeof *vm);
    if (!vm) {
        xm_error_set(e, ENOMEM, "no memory for VM %s", name);
        return NULL;
    }
    vm->agent = a;
    snprintf(vm->name, sizeof vm->name, "%s", name);
    vm->dir = vm_path(a, name, NULL);
    vm->claimed = xm_now();
    vm->spec = json_incref(spec);
    vm->memory = (uint64_t)xm_json_int(spec, "memory", 0);
    vm->watch_fd = -1;
    TAILQ_INSERT_TAIL(&a->vms, vm, link);
    return vm;
}

/* One that is expected, but whose shim does not answer, is on its way out. */
bool vm_wait_ending(struct agent *a, const char *name)
{
    vm_wait_ended(a, name);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool expected = vm && vm->incoming && vm->phase == VM_UP;
    agent_unlock(a);
    if (!expected)
        return false;
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);
    json_decref(st);
    if (st)
        return false;
    agent_lock(a);
    uint64_t until = xm_now() + 10 * XM_NS_PER_S;
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    bool gone = !vm_find(a, name);
    agent_unlock(a);
    return gone;
}

void vm_forget(struct vm *vm)
{
    TAILQ_REMOVE(&vm->agent->vms, vm, link);
    pthread_cond_broadcast(&vm->agent->changed);
    json_decref(vm->spec);
    json_decref(vm->incoming);
    json_decref(vm->last);
    json_decref(vm->moving);
    free(vm->dir);
    free(vm);
}

/* Its directory could not be removed when it ended (it was read-only, say). The name is claimed for
 * settling; and in the list, or who starts it meanwhile would lose what it has just made there. */
void vm_remove_left(struct agent *a, const char *name)
{
    char *dir = vm_path(a, name, NULL);
    json_t *nothing = json_object();
    bool may = access(dir, W_OK) == 0 && !vm_process(a, name, "shim.pid") && !vm_process(a, name, "qemu.pid");

    agent_lock(a);
    struct vm *vm = may ? vm_claim(a, name, nothing, NULL) : NULL;
    if (vm)
        vm->phase = VM_ENDING; /* waited for by who starts it */
    agent_unlock(a);
    /* One that has begun and ended since we looked has taken it away itself. */
    if (vm && !vm_process(a, name, "shim.pid") && !vm_process(a, name, "qemu.pid"))
        remove_run_dir(a, name, NULL); /* why not was told when it ended */
    agent_lock(a);
    if (vm)
        vm_forget(vm);
    agent_unlock(a);
    json_decref(nothing);
    free(dir);
}

static uint64_t memory_used(struct agent *a, const char *name)
{
    uint64_t qemu = facts_shared_rss(vm_process(a, name, "qemu.pid"));
    uint64_t shim = facts_shared_rss(vm_process(a, name, "shim.pid"));

    return XM_MAX(qemu, shim); /* both map the same memory; who touched a page has it */
}

/* Of storage that hangs nothing is known: all that was promised of it still is. */
static uint64_t space_used(const char *path)
{
    struct stat st;

    return storage_stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static const json_t *reserved_disks(const struct vm *vm)
{
    return json_object_get(vm->incoming ? vm->incoming : vm->moving, "reserve");
}

json_t *vms_usage(struct agent *a, bool of_space)
{
    json_t *memory = json_object(), *space = json_object(), *v, *disk;
    struct vm *vm;
    const char *key;
    size_t i;

    agent_lock(a);
    TAILQ_FOREACH (vm, &a->vms, link) {
        json_object_set_new(memory, vm->name, json_integer(0));
        json_array_foreach (of_space ? reserved_disks(vm) : NULL, i, disk)
            json_object_set_new(space, xm_json_str(disk, "path", ""), json_integer(0));
    }
    agent_unlock(a);
    json_object_foreach (memory, key, v)
        json_integer_set(v, (json_int_t)memory_used(a, key));
    json_object_foreach (space, key, v)
        json_integer_set(v, *key ? (json_int_t)space_used(key) : 0);
    return json_pack("{s:o, s:o}", "memory", memory, "space", space);
}

static uint64_t not_yet(uint64_t promised, const json_t *usage, const char *of, const char *what)
{
    uint64_t used = (uint64_t)xm_json_int(json_object_get(usage, of), what, 0);

    return promised > used ? promised - used : 0;
}

/* RAM that was promised and that nobody has touched yet: it is still counted as available by the kernel. */
uint64_t vms_memory_promised(struct agent *a, const json_t *usage)
{
    uint64_t sum = 0;
    struct vm *vm;

    TAILQ_FOREACH (vm, &a->vms, link)
        sum += not_yet(vm->memory, usage, "memory", vm->name);
    return sum;
}

uint64_t vms_space_promised(struct agent *a, const char *datastore, const char *but, const json_t *usage)
{
    uint64_t sum = 0;
    struct vm *vm;
    size_t i;
    json_t *disk;

    TAILQ_FOREACH (vm, &a->vms, link) {
        const json_t *r = vm->incoming ? vm->incoming : vm->moving;
        if (!r || strcmp(xm_json_str(r, "datastore", ""), datastore) != 0 || (but && !strcmp(vm->name, but)))
            continue;
        json_array_foreach (reserved_disks(vm), i, disk)
            sum += not_yet((uint64_t)xm_json_int(disk, "used", 0), usage, "space",
                           xm_json_str(disk, "path", ""));
    }
    return sum;
}

/* ---- at the agent's start ---- */

#define ENDED_NS (5 * XM_NS_PER_S) /* how long a start waits for what an ended VM left to be taken away */

void vm_take_result(struct agent *a, const char *name)
{
    json_t *result = read_vm_json(a, name, "result.json");
    struct job *job = result ? job_get(a, xm_json_str(result, "job", "")) : NULL;

    if (job && !strcmp(xm_json_str(job->about, "vm", ""), name))
        job_event(a, job, json_incref(result));
    if (job)
        job_put(a, job);
    json_decref(result);
}

/* It was started to be filled by a migration, and that is not over: shim.json may be of long ago. */
static bool still_incoming(struct agent *a, const char *name)
{
    char *dir = vm_state_path(a, name, NULL);
    struct owner_record rec;
    struct journal j;
    bool is = journal_read(dir, &j, NULL) == 0 && j.side == JOURNAL_DESTINATION;
    int r = owner_read(a, name, &rec, NULL);

    if (is && !r)
        is = rec.owner == OWNER_PROMISED || rec.epoch < j.epoch;
    journal_free(&j);
    free(dir);
    return is && (!r || r == -ENOENT);
}

static void adopt_living(struct agent *a, const char *name, json_t *spec, json_t *incoming)
{
    struct xm_error e = {0};
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 2 * XM_NS_PER_S, NULL);

    agent_lock(a);
    struct vm *vm = vm_claim(a, name, spec, &e);
    if (vm && !incoming && !st) { /* it may still take one that it was asked for */
        jobs_find(a, name, vm->job);
        vm->job_assumed = vm->job[0];
    } else if (vm && !incoming && !json_object_get(st, "source")) /* else it is its source's */
        snprintf(vm->job, sizeof vm->job, "%s", xm_json_str(st, "job", ""));
    if (vm && incoming)
        vm->incoming = json_incref(incoming);
    agent_unlock(a);
    json_decref(st);
    if (!incoming)
        inventory_came(a, name, false); /* perhaps while no agent was there */
    xm_log(XM_LOG_INFO, "VM %s: found again", name);
    if (vm)
        vm_watch(a, name);
    else
        xm_log(XM_LOG_ERROR, "%s", e.text);
}

struct ended {
    struct agent *agent;
    char name[VM_NAME_MAX + 1];
};

static void *ended_main(void *arg)
{
    struct ended *v = arg;
    struct agent *a = v->agent;

    vm_clean_up(a, v->name);
    agent_lock(a);
    vm_forget(vm_find(a, v->name));
    agent_unlock(a);
    free(v);
    agent_thread_ends(a);
    return NULL;
}

/* Its name is claimed meanwhile. What it left may be on storage that hangs: the others are not kept
 * waiting. */
static void clean_up_ended(struct agent *a, const char *name)
{
    struct ended *v = calloc(1, sizeof *v);
    struct xm_error e = {0};

    xm_log(XM_LOG_INFO, "VM %s has ended while no agent ran; cleaning up", name);
    agent_lock(a);
    struct vm *vm = v ? vm_claim(a, name, NULL, &e) : NULL;
    if (vm)
        vm->phase = VM_ENDING; /* waited for by who starts it */
    agent_unlock(a);
    if (!vm) {
        free(v);
        return;
    }
    v->agent = a;
    snprintf(v->name, sizeof v->name, "%s", name);
    if (agent_thread(a, ended_main, v, &e) < 0) {
        xm_log(XM_LOG_ERROR, "VM %s: %s", name, e.text);
        return;
    }
    agent_lock(a);
    uint64_t until = xm_now() + ENDED_NS;
    while (vm_find(a, name) && agent_wait(a, until))
        ;
    agent_unlock(a);
}

static void adopt(struct agent *a, const char *name)
{
    struct xm_error e = {0};
    json_t *conf = read_vm_json(a, name, "shim.json");
    json_t *spec = json_object_get(conf, "vm"), *incoming = json_object_get(conf, "incoming");
    bool expected = json_is_object(incoming) && still_incoming(a, name);
    struct vm_spec check = {0};
    char *spec_path = vm_state_path(a, name, "spec.json");
    json_t *newer = expected ? NULL : read_json(spec_path, NULL);

    free(spec_path);
    if (newer)
        spec = newer; /* its disks may have moved since the shim was started */
    incoming = expected ? incoming : NULL;
    vm_take_result(a, name);
    if (!vm_process(a, name, "shim.pid") && !vm_process(a, name, "qemu.pid")) {
        clean_up_ended(a, name);
    } else if (vm_spec_from_json(&check, spec, &e) < 0 || strcmp(check.name, name) != 0) {
        xm_log(XM_LOG_ERROR, "VM %s: its shim.json cannot be used, it is left alone: %s", name, e.text);
    } else {
        adopt_living(a, name, spec, incoming);
    }
    vm_spec_free(&check);
    json_decref(newer);
    json_decref(conf);
}

int vms_adopt(struct agent *a)
{
    char *path = xm_printf("%s/vms", a->conf.run_dir);
    DIR *d = opendir(path);

    free(path);
    for (struct dirent *f; d && (f = readdir(d));) {
        if (vm_name_check(f->d_name, NULL) == 0)
            adopt(a, f->d_name);
    }
    if (d)
        closedir(d);
    return 0;
}
