/* SPDX-License-Identifier: MIT */
/* One request to a VM's shim, and the start of one: shim.json is written, the shim is run until it says that
 * the VM runs (or waits for its migration). When it does not come up, its sentence is the error. */
#include "agent/agent.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SHIM_START_NS (120 * XM_NS_PER_S)
#define SHIM_END_NS   (10 * XM_NS_PER_S)

int shim_connect(struct agent *a, const char *name, struct xm_error *e)
{
    char *path = vm_path(a, name, "shim.sock");
    int fd = xm_unix_connect(path, e);

    free(path);
    return fd < 0 ? xm_error_prefix(e, "VM %s: its shim does not answer", name) : fd;
}

json_t *shim_call_on(int fd, const char *name, json_t *request, int pass_fd, uint64_t timeout_ns,
                     struct xm_error *e)
{
    struct xm_jsonl js;
    json_t *answer = NULL;

    xm_jsonl_init(&js, fd);
    json_object_set_new(request, "id", json_integer(1));
    if (xm_jsonl_send(fd, request, pass_fd, e) == 0) {
        uint64_t now = xm_now(), deadline = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
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

json_t *shim_call(struct agent *a, const char *name, json_t *request, int pass_fd, uint64_t timeout_ns,
                  struct xm_error *e)
{
    int fd = shim_connect(a, name, e);

    if (fd < 0) {
        json_decref(request);
        return NULL;
    }
    return shim_call_on(fd, name, request, pass_fd, timeout_ns, e);
}

int shim_abort_incoming(struct agent *a, const char *vm, const char *source, const char *job,
                        uint64_t timeout_ns, struct xm_error *e)
{
    json_t *o =
        shim_call(a, vm, json_pack("{s:s, s:s, s:s}", "cmd", "abort", "source", source, "incoming", job), -1,
                  timeout_ns, e);

    json_decref(o);
    return o ? 0 : -XM_MAX(e->code, 1);
}

void vm_kill(struct agent *a, const char *name, const char *file, pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (fd < 0)
        return;
    if (vm_process(a, name, file) == pid) {
        syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
        poll(&p, 1, 5000); /* its taps are busy until it has gone */
    }
    close(fd);
}

/* Who asked for it is told that it failed, and so it is not to live on, unknown to anybody: unless it has
 * come up by now, since one that answers has. */
static int spawned_late(struct agent *a, const char *name, pid_t shim, int r)
{
    json_t *st = shim_call(a, name, json_pack("{s:s}", "cmd", "status"), -1, 5 * XM_NS_PER_S, NULL);

    json_decref(st);
    if (st)
        return 0;
    xm_log(XM_LOG_WARN, "VM %s: its shim (process %d) has not come up, and is ended", name, shim);
    vm_kill(a, name, "shim.pid", shim);
    return r;
}

int vm_spawn(struct agent *a, const char *name, json_t *spec, uint64_t epoch, json_t *incoming,
             struct xm_error *e)
{
    char *dir = vm_path(a, name, NULL), *path = vm_path(a, name, "shim.json");
    json_t *o =
        json_pack("{s:O, s:s, s:s, s:s, s:s, s:s*, s:b, s:s*, s:I, s:O?}", "vm", spec, "host", a->conf.name,
                  "state_dir", a->conf.state_dir, "run_dir", a->conf.run_dir, "engine", a->conf.engine,
                  "vnc_address", a->conf.vnc_address, "qemu_rights", a->conf.qemu_rights, "qemu_user",
                  a->conf.qemu_user, "epoch", (json_int_t)epoch, "incoming", incoming);
    int r = xm_mkdir_all(dir, e);

    if (!r)
        r = write_json(path, o, e);
    const char *const argv[] = {a->conf.shim, path, NULL};
    pid_t before = vm_process(a, name, "shim.pid"), shim; /* before: another thread's */
    if (!r && (r = xm_run(argv, xm_fault("shim-late") ? XM_NS_PER_S : SHIM_START_NS, NULL, e))) {
        /* It has said why, and may be taking its steps back still: who cleans up comes after it. */
        uint64_t until = xm_now() + SHIM_END_NS;
        while ((shim = vm_process(a, name, "shim.pid")) && r != -ETIMEDOUT && xm_now() < until)
            poll(NULL, 0, 20);
        if (r == -ETIMEDOUT && shim && shim != before)
            r = spawned_late(a, name, shim, r);
    }
    json_decref(o);
    free(path);
    free(dir);
    return r;
}
