/* SPDX-License-Identifier: MIT */
/* One disk's thread: it opens the file, owns the engine and turns it until it is told to stop. Everything
 * else reaches the disk through the engine's mailbox. A disk that cannot be opened fails machine_disk_start
 * with a sentence; later errors go to the guest as I/O errors. */
#include "machine/confine.h"
#include "machine/machine.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENGINE_DEPTH  256
#define LOCK_PATIENCE (5 * XM_NS_PER_S)

/* Another file may stand there than the one that was judged. But it may have been enlarged under a running
 * VM: its QEMU, and with it the guest's disk, has the size that it was started with. */
static int check_size(struct machine_disk *d, struct xm_error *e)
{
    const struct vm_disk *s = d->spec;

    if (!s->size || d->file->size == s->size)
        return 0;
    if (d->file->size < s->size || !qemu_is_left(d->machine->run_dir))
        return xm_error_set(e, EINVAL, "%s has %llu bytes, and the VM's disk has %llu", s->path,
                            (unsigned long long)d->file->size, (unsigned long long)s->size);
    xm_log(XM_LOG_WARN, "VM %s: %s has %llu bytes, and disk %s stays as it was started, with %llu",
           d->machine->spec.name, s->path, (unsigned long long)d->file->size, s->name,
           (unsigned long long)s->size);
    d->file->size = s->size;
    return 0;
}

/* A shim of this VM that was killed a moment ago: the kernel keeps its lock until the I/O that it had under
 * way has ended, which also keeps those writes from landing after ours. */
static int open_file(struct machine_disk *d, struct xm_error *e)
{
    const struct vm_disk *s = d->spec;
    unsigned how = (d->machine->shares_disks ? XM_FILE_SHARED : 0) | (s->datastore[0] ? XM_FILE_PLAIN : 0) |
                   (s->block_size == 512 ? XM_FILE_SECTORS : 0);
    char *left = xm_printf("%s/qemu.pid", d->machine->run_dir);
    uint64_t deadline = xm_now() + (access(left, F_OK) == 0 ? LOCK_PATIENCE : 0);
    int r;

    while ((r = xm_file_open(d->file, s->path, how, 0, e)) == -EBUSY && xm_now() < deadline)
        poll(NULL, 0, 10);
    free(left);
    if (!r && (r = check_size(d, e)) < 0)
        xm_file_close(d->file);
    /* What the guest sees now it sees from now on, on whatever storage. */
    if (!r && !d->spec->block_size)
        d->spec->block_size = XM_MAX(512, d->file->block);
    return r;
}

static void *disk_main(void *arg)
{
    struct machine_disk *d = arg;
    struct xm_error *e = &d->error;

    pthread_setname_np(pthread_self(), d->spec->name[0] ? d->spec->name : "disk");
    confine_shim(true);
    d->file = calloc(1, sizeof *d->file);
    if (d->file && open_file(d, e) == 0) {
        d->engine = xm_engine_open(d->machine->engine, ENGINE_DEPTH, e);
        if (d->engine) {
            xm_mailbox_own(&d->engine->mailbox);
            d->disk = xm_disk_new(d->engine, d->file, NULL, e);
        }
        if (!d->disk) {
            if (d->engine)
                xm_engine_free(d->engine);
            d->engine = NULL;
            xm_file_close(d->file);
        }
    }
    if (!d->disk) {
        free(d->file);
        d->file = NULL;
    }
    bool ok = d->disk;
    sem_post(&d->ready);
    while (ok && !d->stop)
        xm_engine_turn(d->engine);
    return NULL;
}

int machine_disk_start(struct machine_disk *d, struct xm_error *e)
{
    sem_init(&d->ready, 0, 0);
    int r = pthread_create(&d->thread, NULL, disk_main, d);
    if (r)
        return xm_error_errno(e, r, "disk %s: thread", d->spec->name);
    d->started = true;
    while (sem_wait(&d->ready) < 0) {
    }
    if (d->disk)
        return 0;
    pthread_join(d->thread, NULL);
    d->started = false;
    *e = d->error;
    return xm_error_prefix(e, "disk %s", d->spec->name);
}

static struct xm_bitmap *wrote_bitmap(void *ctx, int memfd, uint64_t size)
{
    struct machine *vm = ctx;

    (void)size;
    return xm_ram_bitmap(&vm->ram, memfd);
}

/* On the disk's thread, which has given up what it does not need: so has the device's. */
static void serve_here(struct machine_disk *d, void *arg)
{
    struct xm_error *e = arg;
    char *path = xm_printf("%s/disk-%s.sock", d->machine->run_dir, d->spec->name);
    struct xm_vhost_opts o = {
        .socket_path = path,
        .serial = d->spec->name,
        .queues = d->spec->queues ? d->spec->queues : XM_MIN(d->machine->spec.vcpus, 4u),
        .block = d->spec->block_size,
        .read_only = d->spec->read_only,
        /* Memory that somebody adds by `extra` may be in a file of his own. */
        .mem = {wrote_bitmap, d->machine, !d->machine->spec.extra},
    };
    d->vhost = xm_vhost_new(d->disk, &o, e);
    if (d->vhost)
        qemu_user_give(&d->machine->user, path, e);
    free(path);
    /* No guest of ours waits for a disk that is being filled. The device's thread has been made before that:
     * QEMU waits for it in the switch-over. */
    if (d->machine->incoming)
        xm_sched_background(0, true);
}

struct disk_call {
    struct machine_disk *d;
    void (*fn)(struct machine_disk *, void *);
    void *arg;
};

static void disk_call_run(void *arg)
{
    struct disk_call *c = arg;
    c->fn(c->d, c->arg);
}

void machine_disk_call(struct machine_disk *d, void (*fn)(struct machine_disk *, void *), void *arg)
{
    struct disk_call c = {d, fn, arg};
    xm_mailbox_call(&d->engine->mailbox, disk_call_run, &c);
}

int machine_disk_serve(struct machine_disk *d, struct xm_error *e)
{
    struct xm_error why = {0};

    machine_disk_call(d, serve_here, &why);
    if (!why.code)
        return 0;
    *e = why;
    return xm_error_prefix(e, "disk %s", d->spec->name);
}

static void stop_here(struct machine_disk *d, void *arg)
{
    (void)arg;
    xm_disk_free(d->disk);
    d->disk = NULL;
    d->stop = true;
}

void machine_disk_stop(struct machine_disk *d)
{
    if (!d->started)
        return;
    if (d->vhost)
        xm_vhost_free(d->vhost);
    d->vhost = NULL;
    machine_disk_call(d, stop_here, NULL);
    pthread_join(d->thread, NULL);
    xm_engine_free(d->engine);
    xm_file_close(d->file);
    free(d->file);
    d->file = NULL;
    d->engine = NULL;
    d->started = d->stop = false;
}
