/* SPDX-License-Identifier: MIT */
/* A switch-over that the source gives up, to try another one: its guest goes on there, and all here is as it
 * was before `incoming`: disks follow, and memory comes anew.
 *
 * Two steps. While the guest stands still, and before it goes on: nothing stands of what was promised,
 * durably, and frames are taken again. From then on who comes after us (a shim that is started, an
 * operator's word) finds what he finds in any copy under way: nothing that may run. Then, while the guest
 * runs: a QEMU that has loaded device state, or a part of it, can load no other, and may have written to the
 * guest's memory. Another one takes its place, with the same memory, all of which the source sends anew.
 *
 * What is still on its way of the try before has its number (`attempt`), and is refused.
 *
 * Failures: a record that cannot be written: the promise stands, the source hears it, and the migration
 * ends as any switch-over does that fails. A QEMU that does not start: this side ends; the VM runs at the
 * source. */
#include "migrate/destination.h"

/* Each costs this host a QEMU's start. */
#define ATTEMPTS_MAX 4u

int destination_take_back(struct destination *dst, struct xm_error *e)
{
    struct machine *vm = dst->machine;
    struct owner_record now;

    if (owner_load(vm->state_dir, vm->spec.name, &now, NULL) < 0 || now.owner != OWNER_PROMISED)
        return 0; /* it says more than that by now, or cannot be read: then it stays as it is */
    xm_fault("promise-withdraw");
    return owner_restore(vm->state_dir, vm->spec.name, dst->had_record ? &dst->before : NULL, e);
}

/* The promise is taken back, for certain: also one that could not be read is none. */
static int take_back_surely(struct destination *dst, struct xm_error *e)
{
    struct machine *vm = dst->machine;
    struct owner_record now;
    struct handoff_actions none;
    int r = destination_take_back(dst, e);

    if (!r)
        r = owner_load(vm->state_dir, vm->spec.name, &now, e);
    if (r == -ENOENT && !dst->had_record)
        r = e->code = 0;
    else if (!r && (!dst->had_record || now.owner != dst->before.owner || now.epoch != dst->before.epoch))
        r = xm_error_set(e, EIO, "the record of %s is not what it was before", vm->host);
    if (!r)
        r = handoff_start(&dst->handoff, HANDOFF_DESTINATION, false, vm->host, dst->source,
                          dst->had_record ? &dst->before : NULL, &none, e);
    return r;
}

int destination_again(struct destination *dst, struct xm_error *e)
{
    if (dst->state != DEST_LOADING && dst->state != DEST_PROMISED)
        return xm_error_set(e, EPROTO, "nothing is being loaded");
    if (!dst->storage || dst->machine->ram.blocks != 1 || dst->attempt + 1 >= ATTEMPTS_MAX)
        return xm_error_set(e, ENOTSUP, "no other try");
    int r = take_back_surely(dst, e);
    if (r)
        return r;
    dst->promised = false;
    xm_fault("again-withdrawn");
    if ((r = destination_set_state(dst, DEST_COPYING, e)) < 0)
        return r;
    dst->machine->between = true; /* QEMU may end as soon as its stream does */
    pthread_mutex_lock(&dst->lock);
    struct stream *old = dst->stream;
    dst->stream = NULL;
    dst->attempt++;
    dst->sealed = false;
    pthread_mutex_unlock(&dst->lock);
    stream_free(old);
    xm_ramsink_reopen(dst->ramsink);
    xm_log(XM_LOG_WARN, "VM %s, job %s: %s has given its switch-over up, and will try again",
           dst->machine->spec.name, dst->job, dst->source);
    return 0;
}

void destination_wait_anew(struct destination *dst)
{
    struct xm_error e = {0};

    xm_fault("again-told");
    destination_gives_way(dst, true);
    dst->qemu_status[0] = 0;
    dst->warm = (struct xm_warm){0};
    if (machine_wait_anew(dst->machine, &e) < 0)
        destination_fail(dst, e.text);
    dst->qemu_status[0] = 0; /* what the one before has still said */
    dst->heard = xm_now();
}
