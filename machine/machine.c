/* SPDX-License-Identifier: MIT */
/* machine/machine.c: one VM's start and end on this host.
 *
 * Start: disks (threads, files, drivers) -> vhost-user sockets -> QEMU, stopped -> the guest's RAM is found
 * -> run (or wait for the migration). A failure at any step is one sentence; machine_stop takes the steps
 * before it back.
 *
 * A QEMU that waits for a migration may have to be started a second time, by that migration's thread
 * (machine_wait_anew). */
#include "machine/confine.h"
#include "machine/machine.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECONNECT_TIMEOUT (5 * XM_NS_PER_S) /* QEMU tries once a second */
#define NOTICE_TIMEOUT    XM_NS_PER_S
#define RUN_TIMEOUT       (20 * XM_NS_PER_S)

int machine_init(struct machine *vm, const json_t *o, struct xm_error *e)
{
    const char *state = xm_json_str(o, "state_dir", NULL);
    const char *run = xm_json_str(o, "run_dir", NULL);
    const char *host = xm_json_str(o, "host", NULL);
    const char *engine = xm_json_str(o, "engine", "auto");

    qemu_init(&vm->qemu);
    if (!state || !run || !host)
        return xm_error_set(e, EINVAL, "not a shim's configuration");
    int r = vm_spec_from_json(&vm->spec, json_object_get(o, "vm"), e);
    vm->host = xm_printf("%s", host);
    vm->run_dir = xm_printf("%s/vms/%s", run, vm->spec.name);
    vm->state_dir = xm_printf("%s/vms/%s", state, vm->spec.name);
    vm->log_dir = xm_printf("%s/logs", state);
    vm->qemu_rights = xm_json_bool(o, "qemu_rights", false);
    if (xm_json_str(o, "qemu_user", "")[0])
        vm->qemu_user = xm_printf("%s", xm_json_str(o, "qemu_user", ""));
    vm->vnc_address =
        xm_json_str(o, "vnc_address", "")[0] ? xm_printf("%s", xm_json_str(o, "vnc_address", "")) : NULL;
    vm->epoch = (uint64_t)xm_json_int(o, "epoch", 1);
    vm->engine = !strcmp(engine, "libaio")     ? XM_ENGINE_LIBAIO
                 : !strcmp(engine, "io_uring") ? XM_ENGINE_URING
                                               : XM_ENGINE_AUTO;
    const json_t *in = json_object_get(o, "incoming");
    vm->incoming = json_is_object(in);
    vm->shares_disks = vm->incoming && !xm_json_bool(in, "storage", true);
    vm->disks = vm->spec.disks;
    for (unsigned i = 0; i < vm->disks; i++) {
        vm->disk[i].machine = vm;
        vm->disk[i].spec = &vm->spec.disk[i];
        vm->disk[i].object = (uint16_t)i;
    }
    return r;
}

char *machine_kept_log(const struct machine *vm, const char *file)
{
    size_t below = strlen("/vms/") + strlen(vm->spec.name);
    return xm_printf("%.*s/logs/%s-%s", (int)(strlen(vm->state_dir) - below), vm->state_dir, vm->spec.name,
                     file);
}

int machine_save_spec(struct machine *vm, struct xm_error *e)
{
    json_t *o = vm_spec_to_json(&vm->spec);
    char *path = xm_printf("%s/spec.json", vm->state_dir);
    int r = xm_mkdir_all(vm->state_dir, e);

    if (!r)
        r = xm_json_save(path, o, e);
    if (!r)
        vm->spec_uncertain = false;
    free(path);
    json_decref(o);
    return r;
}

/* ---- QEMU ---- */

static void on_qmp_event(void *ctx, const char *name, const json_t *data, uint64_t when)
{
    struct machine *vm = ctx;

    if (!strcmp(name, "STOP"))
        vm->guest_running = false;
    else if (!strcmp(name, "RESUME")) {
        vm->guest_running = true;
        vm->postmigrate = false;
        machine_note_paused(vm, false);
        machine_note_stopped(vm, false);
    }
    if (vm->qmp_event)
        vm->qmp_event(vm, name, data, when);
}

/* A QEMU whose guest stood still when a shim died watches its disks' sockets no more (7.2): it is connected
 * with the next shim, and with each that follows, but does not know that, and the guest's requests are never
 * taken again. It begins anew with its disks when the guest is let go on. (One whose shim died just while it
 * began anew has no way back: it ends here, or would in its next migration.) One that has not come back yet
 * begins when it does. *paused: its user has paused it meanwhile. */
static int stop_unless_noticed(struct machine *vm, bool *paused, struct xm_error *e)
{
    uint64_t deadline = xm_now() + NOTICE_TIMEOUT;
    bool silent = false;

    for (unsigned i = 0; i < vm->disks; i++) {
        bool is;
        while ((is = xm_vhost_silent(vm->disk[i].vhost)) && xm_now() < deadline)
            poll(NULL, 0, 10);
        silent = silent || is;
    }
    if (!silent)
        return 0;
    int r = machine_guest_paused(vm, paused, e);
    if (!r)
        machine_note_paused(vm, *paused);
    if (r || *paused)
        return r;
    xm_log(XM_LOG_WARN,
           "VM %s: its QEMU has not noticed that its disks are served again; its guest is "
           "stopped for a moment so that it does",
           vm->spec.name);
    machine_note_stopped(vm, true);
    r = qmp_do(&vm->qemu.qmp, "stop", NULL, RUN_TIMEOUT, e);
    xm_fault("machine-stopped");
    return r;
}

/* The guest runs only where the record says so (docs/design.md, «Ownership»); and if an earlier shim of ours
 * died in a switch-over before it gave the VM away, the guest has to be brought back. */
int machine_resume(struct machine *vm, struct xm_error *e)
{
    struct owner_record rec;
    bool paused = false;
    int r = owner_load(vm->state_dir, vm->spec.name, &rec, e);

    xm_fault("machine-resume");
    if (!r && !owner_may_run(&rec))
        r = xm_error_set(e, EPERM, "it is %s %s (epoch %llu); see `xmigrate recover %s`",
                         rec.owner == OWNER_GIVEN ? "given to" : "promised by",
                         rec.owner == OWNER_GIVEN ? rec.to : rec.from, (unsigned long long)rec.epoch,
                         vm->spec.name);
    if (!r)
        vm->epoch = rec.epoch;
    /* Disks that both hosts reach were let go of for the other one. */
    for (unsigned i = 0; !r && i < vm->disks; i++)
        r = xm_file_lock(vm->disk[i].file, e);
    /* A QEMU that goes on before it has come back to its disks starts them in vain, and never again (7.2). */
    uint64_t deadline = xm_now() + RECONNECT_TIMEOUT;
    for (unsigned i = 0; !r && vm->adopted && i < vm->disks; i++) {
        while (!xm_vhost_attached(vm->disk[i].vhost) && xm_now() < deadline)
            poll(NULL, 0, 10);
    }
    if (!r)
        r = machine_guest_paused(vm, &paused, e);
    if (!r)
        machine_note_paused(vm, paused);
    if (!r)
        r = qemu_cancel_migration(&vm->qemu, RUN_TIMEOUT, e);
    if (!r && vm->adopted && vm->guest_running)
        r = stop_unless_noticed(vm, &paused, e);
    return r || paused ? r : qemu_continue(&vm->qemu, RUN_TIMEOUT, e);
}

/* ram: of a QEMU before it; 0: none. */
static int launch(struct machine *vm, int ram, struct xm_error *e)
{
    char *nvram = xm_printf("%s/nvram.fd", vm->state_dir);
    struct qemu_place place = {.host = vm->host,
                               .run_dir = vm->run_dir,
                               .nvram = nvram,
                               .vnc_address = vm->vnc_address,
                               .user = &vm->user,
                               .rights = vm->qemu_rights,
                               .ram = ram,
                               .incoming = vm->incoming};

    machine_note_paused(vm, false); /* of an earlier QEMU */
    machine_note_stopped(vm, false);
    int console = machine_console_open(vm);
    place.console = XM_MAX(console, 0);
    int r = qemu_start(&vm->qemu, &vm->spec, &place, e);
    if (console >= 0)
        close(console);
    free(nvram);
    return r;
}

static void hear_qemu(struct machine *vm)
{
    vm->qemu.qmp.ctx = vm;
    vm->qemu.qmp.event = on_qmp_event;
}

int machine_wait_anew(struct machine *vm, struct xm_error *e)
{
    if (!vm->incoming || vm->ram.blocks != 1) {
        vm->between = false;
        return xm_error_set(e, ENOTSUP, "this VM's QEMU cannot be started a second time");
    }
    vm->between = true;
    qemu_end(&vm->qemu, &vm->spec);
    xm_fault("wait-anew");
    int r = launch(vm, vm->ram.block[0].memfd, e);
    if (!r)
        hear_qemu(vm);
    if (!r)
        r = xm_ram_follow(&vm->ram, vm->qemu.pid, e);
    vm->between = false;
    return r;
}

static int start_qemu(struct machine *vm, struct xm_error *e)
{
    int r = qemu_adopt(&vm->qemu, vm->run_dir, e);

    /* Also one whose monitor does not answer in time: it is not ours to end because of that. */
    vm->adopted = r != -ESRCH;
    if (r == -ESRCH)
        r = launch(vm, 0, e);
    if (r)
        return r;
    hear_qemu(vm);
    if (vm->adopted)
        xm_log(XM_LOG_WARN, "VM %s: took over its running QEMU (process %d)", vm->spec.name, vm->qemu.pid);
    if ((r = xm_ram_find(&vm->ram, vm->qemu.pid, e)) < 0)
        return r;
    if (!vm->incoming && (r = machine_resume(vm, e)) < 0)
        return r;
    bool paused;
    return machine_guest_paused(vm, &paused, e);
}

/* ---- start and end ---- */

int machine_start(struct machine *vm, struct xm_error *e)
{
    int r = 0;

    late_open(vm);
    if (!vm->qemu_rights) { /* a wrapper may need any of the others */
        confine_shim(false);
        r = qemu_user_choose(&vm->spec, vm->run_dir, vm->qemu_user, &vm->user, e);
    }
    for (unsigned i = 0; !r && i < vm->disks; i++)
        r = machine_disk_start(&vm->disk[i], e);
    for (unsigned i = 0; !r && i < vm->disks; i++)
        r = machine_disk_serve(&vm->disk[i], e);
    return r ? r : start_qemu(vm, e);
}

void machine_started(void)
{
    confine_shim(true);
}

void machine_stop(struct machine *vm)
{
    if (vm->qemu.pid > 0)
        qemu_end(&vm->qemu, &vm->spec);
    machine_console_end(vm);
    for (unsigned i = 0; i < vm->disks; i++)
        machine_disk_stop(&vm->disk[i]);
    late_close(vm);
    xm_ram_close(&vm->ram);
}

void machine_free(struct machine *vm)
{
    vm_spec_free(&vm->spec);
    free(vm->host);
    free(vm->run_dir);
    free(vm->state_dir);
    free(vm->log_dir);
    free(vm->qemu_user);
    free(vm->vnc_address);
}
