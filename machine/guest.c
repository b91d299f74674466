/* SPDX-License-Identifier: MIT */
/* Whether a VM's guest runs, and whether it is to.
 *
 * A guest stands still for one of two reasons. Its user (by QMP) or QEMU itself has paused it: then nobody
 * but the user lets it go on. Or a start or a migration has stopped it: then it is to run. QEMU's run state
 * tells the two apart, but for three cases:
 *   - a guest that was paused when its migration began, and the switch-over failed: QEMU 7.2 says «postmigrate»;
 *   - one that was loaded from a stream and not let run yet: «paused», whatever it was;
 *   - one that a shim stopped for a moment, and was killed in that moment: «paused».
 * For the first there is a note in the run directory (it goes with QEMU's memory), from when the shim sees the
 * guest paused, before the switch-over at the latest, until it runs. The second is told by the journal of the
 * migration that comes in, as long as the owner record does not say that the guest was seen to run here. For
 * the third there is another note, from before that stop until it runs. */
#include "machine/machine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_TIMEOUT (10 * XM_NS_PER_S)

static bool noted(const struct machine *vm, const char *what)
{
    char *path = xm_printf("%s/%s", vm->run_dir, what);
    bool yes = access(path, F_OK) == 0;

    free(path);
    return yes;
}

/* A note that cannot be written matters only if this shim is killed besides. */
static void note(struct machine *vm, const char *what, bool is)
{
    char *path = xm_printf("%s/%s", vm->run_dir, what);
    struct xm_error e = {0};

    if (!is)
        unlink(path);
    else if (xm_file_replace(path, "", 0, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: that its guest is %s could not be noted: %s", vm->spec.name, what,
               e.text);
    free(path);
}

bool machine_noted_paused(const struct machine *vm)
{
    return noted(vm, "paused");
}

void machine_note_paused(struct machine *vm, bool paused)
{
    note(vm, "paused", paused);
}

void machine_note_stopped(struct machine *vm, bool stopped)
{
    note(vm, "stopped", stopped);
}

int machine_hold(struct machine *vm, const char *owner, struct xm_error *e)
{
    xm_log(XM_LOG_WARN,
           "VM %s is %s's, or about to be, and its guest was let go on here by somebody: it is stopped again",
           vm->spec.name, owner);
    machine_note_stopped(vm, true); /* by us: it goes on should it be this host's again */
    return qmp_do(&vm->qemu.qmp, "stop", NULL, ASK_TIMEOUT, e);
}

/* Its guest would go on without anybody's doing. */
static bool goes_on(const char *status)
{
    return !strcmp(status, "running") ||
           !strcmp(status, "suspended"); /* ACPI S3: it wakes by its own means */
}

/* What a start or a migration leaves, and no user. */
static bool stopped_by_us(const char *status)
{
    static const char *const ours[] = {"prelaunch", "inmigrate", "finish-migrate", "postmigrate"};

    for (unsigned i = 0; i < 4; i++) {
        if (!strcmp(status, ours[i]))
            return true;
    }
    return false;
}

bool machine_paused_in(const char *runstate)
{
    return !goes_on(runstate) && !stopped_by_us(runstate);
}

/* The journal stays after a migration, until the source is known to have settled: but once the guest has been
 * seen to run here the record says so. */
static bool was_loaded(const struct machine *vm)
{
    struct owner_record rec;
    struct journal j;

    if (journal_read(vm->state_dir, &j, NULL) < 0)
        return false;
    bool comes = j.side == JOURNAL_DESTINATION;
    bool has_run =
        owner_load(vm->state_dir, vm->spec.name, &rec, NULL) == 0 && rec.owner == OWNER_MINE && rec.settled;
    journal_free(&j);
    return comes && !has_run;
}

int machine_guest_paused(struct machine *vm, bool *paused, struct xm_error *e)
{
    json_t *st = qmp_call(&vm->qemu.qmp, "query-status", NULL, ASK_TIMEOUT, e);
    const char *status = xm_json_str(st, "status", "");

    if (!st)
        return -EIO;                     /* what its events said stands */
    vm->guest_running = goes_on(status); /* one that sleeps too, as by QEMU's events */
    vm->postmigrate = !strcmp(status, "postmigrate");
    *paused = !vm->guest_running && (machine_noted_paused(vm) ||
                                     !(stopped_by_us(status) || noted(vm, "stopped") || was_loaded(vm)));
    if (vm->guest_running)
        machine_note_stopped(vm, false);
    json_decref(st);
    return 0;
}

/* What QEMU says of a ring. NULL: the device has not so many, or *e says why that is not known. */
static json_t *ask_ring(struct machine_disk *d, int number, struct xm_error *e)
{
    char *path = xm_printf("/machine/peripheral/disk-%s/virtio-backend", d->spec->name);
    json_t *ring = qmp_call(&d->machine->qemu.qmp, "x-query-virtio-queue-status",
                            json_pack("{s:s s:i}", "path", path, "queue", number), ASK_TIMEOUT, e);

    free(path);
    if (!ring && number && e->code == EIO) /* refused, and the one before was not */
        e->code = 0;
    return ring;
}

int machine_disk_left(struct machine_disk *d, struct xm_error *e)
{
    struct xm_error why = {0};
    bool left = false;

    if (xm_vhost_connected(d->vhost))
        left = !xm_vhost_stopped(d->vhost) && !xm_vhost_rests(d->vhost);
    for (int i = 0; !left && !xm_vhost_connected(d->vhost); i++) {
        json_t *ring = ask_ring(d, i, &why);
        if (!ring)
            break;
        left = xm_json_int(ring, "last-avail-idx", 0) != xm_json_int(ring, "used-idx", 0);
        json_decref(ring);
    }
    if (why.code)
        return xm_error_set(e, why.code, "whether all that its guest has asked for is done: %s", why.text);
    return left;
}
