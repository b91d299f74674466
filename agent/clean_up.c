/* SPDX-License-Identifier: MIT */
/* What is left of a VM whose shim has gone, above all one that was killed: its QEMU, if the record says
 * that nothing of the VM is needed here, what its journal may undo, its taps, its run directory. A QEMU
 * that may be the last one is left, and with it everything. */
#include "agent/inventory.h"

#include <stdlib.h>
#include <unistd.h>

#define CLEAN_UP_NS (120 * XM_NS_PER_S) /* of the shim that deletes taps */
#define ENDED_NS    (10 * XM_NS_PER_S)  /* who starts a VM that is just being taken away waits so long */

static void delete_taps(struct agent *a, const char *name)
{
    char *path = vm_path(a, name, "shim.json");
    const char *const argv[] = {a->conf.shim, "--clean-up", path, NULL};
    struct xm_error e = {0};

    if (access(path, F_OK) == 0 && xm_run(argv, CLEAN_UP_NS, NULL, &e) < 0)
        xm_log(XM_LOG_WARN, "VM %s: what it left in the kernel is still there: %s", name, e.text);
    free(path);
}

/* Nothing of the VM is needed here: the record can be read, and says so, or there never was one and a
 * migration that has come to nothing made what is here. Who asks this before ending a QEMU never ends the
 * last one. */
static bool expendable(struct agent *a, const char *name)
{
    char *dir = vm_state_path(a, name, NULL);
    struct owner_record rec;
    struct journal j;
    int r = owner_read(a, name, &rec, NULL);
    bool incoming = journal_read(dir, &j, NULL) == 0 && j.side == JOURNAL_DESTINATION;
    bool is = r == -ENOENT
                  ? incoming
                  : !r && rec.owner == OWNER_GIVEN && (rec.settled || (incoming && rec.epoch < j.epoch));

    journal_free(&j);
    free(dir);
    return is;
}

/* The shim does the same when it can; it cannot when it was killed. */
bool vm_clean_up(struct agent *a, const char *name)
{
    pid_t qemu = vm_process(a, name, "qemu.pid");
    char *dir = vm_state_path(a, name, NULL);
    struct xm_error e = {0};

    if (qemu && !expendable(a, name)) {
        xm_log(XM_LOG_ERROR,
               "VM %s: its QEMU (process %d) has no shim, and is left as it is; see `xmigrate recover %s`",
               name, qemu, name);
        free(dir);
        return false;
    }
    if (qemu)
        vm_kill(a, name, "qemu.pid", qemu);
    /* -EBUSY: it may be ours. What came, and has ended here, has a journal until its source has settled. */
    int r = journal_undo(dir, name, &e);
    if (r < 0 && r != -EBUSY)
        xm_log(XM_LOG_WARN, "%s", e.text);
    free(dir);
    xm_fault("clean-up-undone");
    free(left_wait(a, name)); /* who waits for its end may want the room, or the names */
    delete_taps(a, name);
    vm_remove_run_dir(a, name);
    xm_fault("clean-up-removed");
    inventory_ended(a, name);
    return true;
}

struct vm *vm_find_claimed(struct agent *a, const char *name, uint64_t claimed)
{
    struct vm *vm = vm_find(a, name);

    return vm && vm->claimed == claimed ? vm : NULL;
}

/* It is one cleaner's from here to ending_end. False: it is another's, or has gone. claimed: of that claim,
 * whose new shim, if one is just coming up, is waited for; 0: as it is, and in the list for the time if it
 * is not. */
static bool ending_begin(struct agent *a, const char *name, uint64_t claimed, bool *listed)
{
    json_t *nothing = json_object();
    struct vm *vm;

    agent_lock(a);
    while ((vm = claimed ? vm_find_claimed(a, name, claimed) : vm_find(a, name)) &&
           (vm->phase == VM_ENDING || (claimed && vm->phase != VM_UP)) && agent_wait(a, UINT64_MAX))
        ;
    *listed = vm != NULL;
    if (!vm && !claimed && (vm = vm_claim(a, name, nothing, NULL)))
        vm->phase = VM_UP;
    bool mine = vm && vm->phase == VM_UP;
    if (mine)
        vm->phase = VM_ENDING;
    agent_unlock(a);
    json_decref(nothing);
    return mine;
}

static void ending_end(struct agent *a, const char *name, bool gone)
{
    agent_lock(a);
    struct vm *vm = vm_find(a, name);
    if (gone)
        vm_forget(vm);
    else
        vm->phase = VM_UP;
    pthread_cond_broadcast(&a->changed);
    agent_unlock(a);
}

void vm_wait_ended(struct agent *a, const char *name)
{
    uint64_t until = xm_now() + ENDED_NS;
    struct vm *vm;

    agent_lock(a);
    while ((vm = vm_find(a, name)) && vm->phase == VM_ENDING && agent_wait(a, until))
        ;
    agent_unlock(a);
}

bool vm_end_orphan(struct agent *a, const char *name)
{
    bool listed;

    if (vm_process(a, name, "shim.pid") || !ending_begin(a, name, 0, &listed))
        return false;
    bool gone = !vm_process(a, name, "shim.pid") && vm_clean_up(a, name);
    ending_end(a, name, gone || !listed);
    return gone;
}

bool vm_end_claimed(struct agent *a, const char *name, uint64_t claimed)
{
    bool listed, ours = ending_begin(a, name, claimed, &listed); /* else who settled it was quicker */
    bool gone = !ours || (!vm_process(a, name, "shim.pid") && vm_clean_up(a, name));

    xm_log(XM_LOG_INFO, "VM %s: its shim has ended", name);
    if (ours)
        ending_end(a, name, gone);
    return gone;
}
