/* The VMs of this host: each is a shim, a process that outlives the agent, and a run directory that tells of
 * it.
 *
 * Happy path: a request claims the name, writes shim.json, runs the shim until that says that the VM runs,
 * starts the watcher; the watcher subscribes to the shim's events and passes those of this host's jobs on;
 * when the shim has ended, the run directory is removed and the VM forgotten. The agent dies: nothing changes
 * for shims. The next agent finds them by their run directories (vms_adopt). The shim dies while its QEMU
 * lives: a new shim is started with the same shim.json; it takes the QEMU over, whose disks wait. Shim and
 * QEMU are both dead: the directory is removed; if it was an incoming migration that never took over, the
 * disks that were made for it too. A process is taken for the VM's only when its command line names the run
 * directory: numbers are used again.
 */
#include "host/agent.h"
#include "host/facts.h"
#include "host/qemu.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SHIM_START_NS (120 * XM_NS_PER_S)
#define REVIVE_MAX    3
#define REVIVE_NS     (600 * XM_NS_PER_S) /* so many in that time, then it is left alone */

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
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    int r = text ? xm_file_replace(path, text, strlen(text), e)
                 : xm_error_set(e, EINVAL, "cannot write %s: a text in it is not UTF-8, or memory is short",
                                path);

    free(text);
    return r;
}

json_t *read_json(const char *path, struct xm_error *e)
{
    char *text;
    size_t len;
    json_error_t why;

    if (xm_file_read(path, 4 << 20, &text, &len, e) < 0)
        return NULL;
    json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (!json_is_object(o)) {
        xm_error_set(e, EINVAL, "%s:%d: %s", path, why.line, o ? "no JSON object" : why.text);
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *read_vm_json(struct agent *a, const char *name, const char *file)
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

/* The process that FILE (shim.pid, qemu.pid) names, if it is still the VM's; 0 when not. */
static pid_t vm_process(struct agent *a, const char *name, const char *file)
{
    char *path = vm_path(a, name, file), *dir = vm_path(a, name, NULL), *text = NULL;
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
    free(text);
    free(path);
    free(dir);
    return pid;
}

/* A log outlives its run directory, the last 256 KiB of it: someone will ask why. */
static void keep_log(struct agent *a, const char *name, const char *file)
{
    char *from = vm_path(a, name, file), *to = xm_printf("%s/logs/%s-%s", a->conf.state_dir, name, file);
    enum { KEEP = 256 << 10 };
    char *text = malloc(KEEP);
    int in = open(from, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (text && in >= 0 && !fstat(in, &st) && st.st_size > 0) {
        ssize_t n = pread(in, text, KEEP, st.st_size > KEEP ? st.st_size - KEEP : 0);
        int out = n > 0 ? open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
        if (out >= 0 && write(out, text, (size_t)n) < 0)
            xm_log(XM_LOG_WARN, "cannot keep %s: %s", to, strerror(errno));
        if (out >= 0)
            close(out);
    }
    if (in >= 0)
        close(in);
    free(text);
    free(from);
    free(to);
}

void vm_remove_run_dir(struct agent *a, const char *name)
{
    char *dir = vm_path(a, name, NULL);
    struct xm_error e = {0};

    keep_log(a, name, "shim.log");
    keep_log(a, name, "qemu.log");
    if (xm_rmdir_files(dir, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: %s", name, e.text);
    free(dir);
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
    vm->spec = json_incref(spec);
    vm->memory = (uint64_t)xm_json_int(spec, "memory", 0);
    vm->watch_fd = -1;
    TAILQ_INSERT_TAIL(&a->vms, vm, link);
    return vm;
}

/* One that is expected, but whose shim does not answer, is on its way out. */
bool vm_wait_ending(struct agent *a, const char *name)
{
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
    json_decref(vm->moving);
    free(vm->dir);
    free(vm);
}

/* RAM that was promised and that nobody has touched yet: it is still counted as available by the kernel. */
uint64_t vms_memory_promised(struct agent *a)
{
    uint64_t sum = 0;
    struct vm *vm;

    TAILQ_FOREACH (vm, &a->vms, link) {
        uint64_t qemu = facts_shared_rss(vm_process(a, vm->name, "qemu.pid"));
        uint64_t shim = facts_shared_rss(vm_process(a, vm->name, "shim.pid"));
        uint64_t used = XM_MAX(qemu, shim); /* both map the same memory; who touched a page has it */
        sum += vm->memory > used ? vm->memory - used : 0;
    }
    return sum;
}

uint64_t vms_space_promised(struct agent *a, const char *datastore)
{
    uint64_t sum = 0;
    struct vm *vm;
    size_t i;
    json_t *disk;

    TAILQ_FOREACH (vm, &a->vms, link) {
        const json_t *r = vm->incoming ? vm->incoming : vm->moving;
        if (!r || strcmp(xm_json_str(r, "datastore", ""), datastore) != 0)
            continue;
        json_array_foreach (json_object_get(r, "reserve"), i, disk) {
            struct stat st;
            uint64_t want = (uint64_t)xm_json_int(disk, "used", 0);
            uint64_t have = stat(xm_json_str(disk, "path", ""), &st) ? 0 : (uint64_t)st.st_blocks * 512;
            sum += want > have ? want - have : 0;
        }
    }
    return sum;
}

/* ---- the shim ---- */

json_t *shim_call(struct agent *a, const char *name, json_t *request, int pass_fd, uint64_t timeout_ns,
                  struct xm_error *e)
{
    char *path = vm_path(a, name, "shim.sock");
    struct xm_jsonl js;
    json_t *answer = NULL;
    int fd = xm_unix_connect(path, e);

    free(path);
    if (fd < 0) {
        json_decref(request);
        xm_error_prefix(e, "VM %s: its shim does not answer", name);
        return NULL;
    }
    xm_jsonl_init(&js, fd);
    json_object_set_new(request, "id", json_integer(1));
    if (xm_jsonl_send(fd, request, pass_fd, e) == 0) {
        uint64_t deadline = xm_now() + timeout_ns;
        while ((answer = xm_jsonl_recv(&js, deadline, e)) && xm_json_int(answer, "id", 0) != 1)
            json_decref(answer);
    }
    xm_jsonl_close(&js);
    if (!answer) {
        xm_error_prefix(e, "VM %s: its shim does not answer", name);
    } else if (!xm_json_bool(answer, "ok", false)) {
        xm_error_set(e, EIO, "%s", xm_json_str(answer, "error", "the shim refused without saying why"));
        json_decref(answer);
        answer = NULL;
    }
    return answer;
}

int vm_spawn(struct agent *a, const char *name, json_t *spec, uint64_t epoch, json_t *incoming,
             struct xm_error *e)
{
    char *dir = vm_path(a, name, NULL), *path = vm_path(a, name, "shim.json");
    json_t *o = json_pack("{s:O, s:s, s:s, s:s, s:s, s:I, s:O?}", "vm", spec, "host", a->conf.name,
                          "state_dir", a->conf.state_dir, "run_dir", a->conf.run_dir, "engine",
                          a->conf.engine, "epoch", (json_int_t)epoch, "incoming", incoming);
    int r = xm_mkdir_all(dir, e);

    if (!r)
        r = write_json(path, o, e);
    const char *const argv[] = {a->conf.shim, path, NULL};
    if (!r)
        r = xm_run(argv, SHIM_START_NS, NULL, e);
    json_decref(o);
    free(path);
    free(dir);
    return r;
}

/* ---- watching ---- */

struct watch {
    struct agent *agent;
    char name[VM_NAME_MAX + 1];
};

/* Is it still expected, or this host's own by now? Asked again whenever something happened. */
static void learn_role(struct agent *a, const char *name)
{
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && vm->incoming && st && !strcmp(xm_json_str(st, "role", ""), "owner")) {
        xm_log(XM_LOG_INFO, "VM %s has come from %s and runs here", name,
               xm_json_str(vm->incoming, "source", "?"));
        json_decref(vm->incoming);
        vm->incoming = NULL;
        pthread_cond_broadcast(&a->changed);
    }
    agent_unlock(a);
    json_decref(st);
}

static void learn_spec(struct agent *a, const char *name)
{
    char *path = vm_state_path(a, name, "spec.json");
    json_t *spec = read_json(path, NULL);

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && spec) {
        json_decref(vm->spec);
        vm->spec = json_incref(spec);
    }
    agent_unlock(a);
    json_decref(spec);
    free(path);
}

static void on_event(struct agent *a, const char *name, json_t *event)
{
    const char *what = xm_json_str(event, "event", "");
    struct job *job = NULL;

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool incoming = vm && vm->incoming;
    char id[16] = "";
    /* The other side's jobs are counted by the other side. */
    if (vm && !incoming && vm->job[0] && !strcmp(vm->job, xm_json_str(event, "job", "")))
        memcpy(id, vm->job, sizeof id);
    agent_unlock(a);
    bool done = !strcmp(what, "done");
    if (id[0] && (job = job_get(a, id))) {
        bool stays = !strcmp(xm_json_str(job->about, "mode", ""), "storage-only");
        if (done && stays)
            learn_spec(a, name);
        /* When the VM has gone, «done» is said after it has gone from the list too (vm_ended). */
        if (!done || stays)
            job_event(a, job, json_incref(event));
        job_put(a, job);
    }
    if (incoming && strcmp(what, "progress"))
        learn_role(a, name);
}

/* Until the shim hangs up. False: it could not be reached. */
static bool listen_to(struct agent *a, const char *name)
{
    char *path = vm_path(a, name, "shim.sock");
    struct xm_jsonl js;
    int fd = xm_unix_connect(path, NULL);

    free(path);
    if (fd < 0)
        return false;
    xm_jsonl_init(&js, fd);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    bool go_on = vm && !a->ending;
    if (go_on)
        vm->watch_fd = fd;
    agent_unlock(a);
    if (go_on && !xm_jsonl_send(fd, json_pack("{s:i, s:s}", "id", 1, "cmd", "subscribe"), -1, NULL)) {
        struct xm_error e;
        for (json_t *o; (o = xm_jsonl_recv(&js, UINT64_MAX, &e)); json_decref(o)) {
            if (json_object_get(o, "event"))
                on_event(a, name, o);
            else if (xm_json_int(o, "id", 0) == 1)
                learn_role(a, name); /* nothing that happens from now on is missed */
        }
    }
    agent_lock(a);
    if ((vm = vm_find(a, name)))
        vm->watch_fd = -1;
    agent_unlock(a);
    xm_jsonl_close(&js);
    return true;
}

static void fail_job_of(struct agent *a, const char *name, const char *why)
{
    char id[16] = "";

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm)
        memcpy(id, vm->job, sizeof id);
    agent_unlock(a);
    struct job *job = id[0] ? job_get(a, id) : NULL;
    if (job) {
        job_fail(a, job, EXIT_FAILED, why);
        job_put(a, job);
    }
}

/* The shim is gone and QEMU is not: another shim for it. */
static bool revive(struct agent *a, const char *name)
{
    struct xm_error e = {0};
    uint64_t epoch;

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm && xm_now() - vm->revived_at > REVIVE_NS) {
        vm->revived = 0;
        vm->revived_at = xm_now();
    }
    json_t *spec = vm && !vm->incoming && vm->revived++ < REVIVE_MAX ? json_incref(vm->spec) : NULL;
    agent_unlock(a);
    if (!spec || !vm_process(a, name, "qemu.pid") || !vm_owned(a, name, &epoch)) {
        json_decref(spec);
        return false;
    }
    xm_log(XM_LOG_WARN, "VM %s: its shim has died; starting another one for its running QEMU", name);
    int r = vm_spawn(a, name, spec, epoch, NULL, &e);
    json_decref(spec);
    if (r)
        xm_log(XM_LOG_ERROR, "%s", e.text);
    else
        fail_job_of(a, name, "the shim died, and with it the migration; the VM runs on here with a new one");
    return r == 0;
}

static void kill_qemu(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};

    kill(pid, SIGKILL);
    if (fd >= 0) {
        poll(&p, 1, 5000); /* its taps are busy until it has gone */
        close(fd);
    }
}

static void delete_taps(struct agent *a, const char *name)
{
    json_t *conf = read_vm_json(a, name, "shim.json");
    struct vm_spec s = {0};

    if (!vm_spec_from_json(&s, json_object_get(conf, "vm"), NULL)) {
        for (unsigned i = 0; i < s.nics; i++)
            tap_delete(&s.nic[i]);
    }
    vm_spec_free(&s);
    json_decref(conf);
}

/* No shim any more: what is left of the VM here? False: its QEMU, which nobody may end before it is known
 * whose the VM is. The shim does the same when it can; it cannot when it was killed. */
static bool clean_up_after(struct agent *a, const char *name, const json_t *incoming)
{
    pid_t qemu = vm_process(a, name, "qemu.pid");
    bool owned = vm_owned(a, name, NULL);

    if (qemu && (!incoming || owned)) {
        xm_log(XM_LOG_ERROR,
               "VM %s: its QEMU (process %d) has no shim, and is left as it is; see `xmigrate recover %s`",
               name, qemu, name);
        return false;
    }
    /* An incoming one that was never taken over: the source still has everything. */
    if (qemu)
        kill_qemu(qemu);
    if (incoming && !owned)
        delete_created(json_object_get(incoming, "created"));
    delete_taps(a, name);
    vm_remove_run_dir(a, name);
    return true;
}

bool vm_end_orphan(struct agent *a, const char *name)
{
    pid_t qemu = vm_process(a, name, "qemu.pid");

    if (vm_process(a, name, "shim.pid"))
        return false;
    if (qemu)
        kill_qemu(qemu);
    bool gone = clean_up_after(a, name, NULL);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (gone && vm)
        vm_forget(vm);
    agent_unlock(a);
    return gone;
}

/* The shim leaves its last event in a file: the agent may have been away when it was sent. */
static void end_job(struct agent *a, const char *name, const char *id, json_t *result)
{
    struct job *job = job_get(a, id);

    if (job && result && !strcmp(xm_json_str(result, "job", ""), id)) {
        job_event(a, job, json_incref(result));
    } else if (job) {
        char *why = xm_printf(
            "the shim of VM %s ended without a report; `xmigrate recover %s` finds out where the VM is", name,
            name);
        job_fail(a, job, EXIT_UNKNOWN, why);
        free(why);
    }
    if (job)
        job_put(a, job);
}

static void vm_ended(struct agent *a, const char *name)
{
    char id[16] = "";
    json_t *incoming = NULL, *result = read_vm_json(a, name, "result.json");

    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm) {
        memcpy(id, vm->job, sizeof id);
        incoming = json_incref(vm->incoming);
    }
    agent_unlock(a);
    bool gone = clean_up_after(a, name, incoming);
    json_decref(incoming);
    xm_log(XM_LOG_INFO, "VM %s: its shim has ended", name);
    agent_lock(a);
    if (gone && (vm = vm_find(a, name)))
        vm_forget(vm);
    agent_unlock(a);
    if (id[0] && strcmp(id, "-") != 0)
        end_job(a, name, id, result);
    json_decref(result);
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    struct agent *a = w->agent;
    bool ending = false;

    while (!ending) {
        listen_to(a, w->name);
        /* It hung up, or is not there yet, or is dead. */
        if (!vm_process(a, w->name, "shim.pid") && !revive(a, w->name))
            break;
        agent_lock(a);
        uint64_t until = xm_now() + 100 * XM_NS_PER_MS;
        while (agent_wait(a, until))
            ;
        ending = a->ending;
        agent_unlock(a);
    }
    agent_lock(a);
    ending = a->ending;
    agent_unlock(a);
    if (!ending)
        vm_ended(a, w->name);
    free(w);
    agent_thread_ends(a);
    return NULL;
}

int vm_watch(struct agent *a, const char *name, struct xm_error *e)
{
    struct watch *w = calloc(1, sizeof *w);

    if (!w)
        return xm_error_set(e, ENOMEM, "no memory to watch VM %s", name);
    w->agent = a;
    snprintf(w->name, sizeof w->name, "%s", name);
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (vm)
        vm->phase = VM_UP;
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
    int r = agent_thread(a, watch_main, w, e);
    if (r)
        free(w);
    return r;
}

/* ---- at the agent's start ---- */

/* A job may have ended while no agent was there: its last event stands in a file. */
static void take_result(struct agent *a, const char *name)
{
    json_t *result = read_vm_json(a, name, "result.json");
    struct job *job = result ? job_get(a, xm_json_str(result, "job", "")) : NULL;

    if (job && !strcmp(xm_json_str(job->about, "vm", ""), name))
        job_event(a, job, json_incref(result));
    if (job)
        job_put(a, job);
    json_decref(result);
}

static void adopt_living(struct agent *a, const char *name, json_t *spec, json_t *incoming)
{
    struct xm_error e = {0};
    bool mine = vm_owned(a, name, NULL); /* what came in and was taken over is this host's own */
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 2 * XM_NS_PER_S, NULL);

    agent_lock(a);
    struct vm *vm = vm_claim(a, name, spec, &e);
    if (vm && mine)
        snprintf(vm->job, sizeof vm->job, "%s", xm_json_str(st, "job", ""));
    else if (vm)
        vm->incoming = json_incref(incoming);
    agent_unlock(a);
    json_decref(st);
    xm_log(XM_LOG_INFO, "VM %s: found again", name);
    if (!vm || vm_watch(a, name, &e) < 0)
        xm_log(XM_LOG_ERROR, "%s", e.text);
}

static void adopt(struct agent *a, const char *name)
{
    struct xm_error e = {0};
    json_t *conf = read_vm_json(a, name, "shim.json");
    json_t *spec = json_object_get(conf, "vm"), *incoming = json_object_get(conf, "incoming");
    struct vm_spec check = {0};
    char *spec_path = vm_state_path(a, name, "spec.json");
    json_t *newer = json_is_object(incoming) ? NULL : read_json(spec_path, NULL);

    free(spec_path);
    if (newer)
        spec = newer; /* its disks may have moved since the shim was started */
    incoming = json_is_object(incoming) ? incoming : NULL;
    take_result(a, name);
    if (!vm_process(a, name, "shim.pid") && !vm_process(a, name, "qemu.pid")) {
        xm_log(XM_LOG_INFO, "VM %s has ended while no agent ran; cleaning up", name);
        clean_up_after(a, name, incoming);
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
