/* SPDX-License-Identifier: MIT */
/* QEMU's command line, made of a VM's specification.
 *
 * Every value that is put in here was checked for its characters (vm/spec_words.c, vm/spec_devices.c): a
 * comma would begin another option. No file is named but as a descriptor that QEMU is handed (enum qemu_fd).
 *
 * Devices get their places on the bus in the order in which they stand here, and both hosts of a migration,
 * of different versions of ours maybe, must build the same machine: a new kind of device goes behind all
 * others, in front of `extra`, and never comes without its key.
 */
#include "machine/confine.h"
#include "machine/qemu.h"

#include <stdlib.h>
#include <string.h>

struct args {
    char **v;
    size_t n;
};

static void add(struct args *a, char *s)
{
    char **v = realloc(a->v, (a->n + 2) * sizeof *v);
    if (!v) {
        free(s);
        return; /* QEMU would say what is missing; memory of this size is not refused */
    }
    a->v = v;
    a->v[a->n++] = s;
    a->v[a->n] = NULL;
}

static void add2(struct args *a, const char *option, char *value)
{
    add(a, xm_printf("%s", option));
    add(a, value);
}

static void add_opt(struct args *a, const char *option, const char *value)
{
    if (value)
        add2(a, option, xm_printf("%s", value));
}

/* What QEMU is handed under this number, by the name of its descriptor. */
static void add_handed(struct args *a, const char *option, enum qemu_fd number, const char *wanted)
{
    if (wanted)
        add2(a, option, xm_printf("/proc/self/fd/%d", number));
}

/* In a set of descriptors, of which QEMU takes the one that it may use as it wants to. */
static void add_set(struct args *a, enum qemu_fd set, enum qemu_fd number)
{
    add2(a, "-add-fd", xm_printf("fd=%d,set=%d", number, set));
}

/* A named, shared file is the one kind of RAM that every QEMU from 7.2 to 11 leaves out of its stream with
 * x-ignore-shared; since 8.1 memory-backend-memfd is sent. So the memfd is ours, and QEMU opens it by a name.
 */
static char *ram_backend(const struct vm_spec *vm)
{
    return xm_printf("memory-backend-file,id=mem0,size=%lluM,share=on,mem-path=/proc/self/fd/%d",
                     (unsigned long long)(vm->memory >> 20), QEMU_FD_RAM);
}

/* "" or ",bootindex=N": freed by the caller. */
static char *boot_index(unsigned boot)
{
    return boot ? xm_printf(",bootindex=%u", boot) : xm_printf("%s", "");
}

static void add_machine(struct args *a, const struct vm_spec *vm, const struct qemu_facts *knows)
{
    bool kvm = vm->accel && !strncmp(vm->accel, "kvm", 3);

    add_opt(a, "-name", vm->name);
    add(a, xm_printf("-nodefaults"));
    add(a, xm_printf("-no-user-config"));
    if (knows->sandbox)
        add2(a, "-sandbox", xm_printf("%s", CONFINE_SANDBOX));
    add2(a, "-display", xm_printf("none"));
    add2(a, "-vga", xm_printf("none"));
    add2(a, "-machine", xm_printf("%s,memory-backend=mem0", vm->machine));
    add_opt(a, "-accel", vm->accel);
    add2(a, "-cpu", xm_printf("%s", vm->cpu ? vm->cpu : kvm ? "host" : "max"));
    add2(a, "-m", xm_printf("size=%lluM", (unsigned long long)(vm->memory >> 20)));
    add2(a, "-object", ram_backend(vm));
    add2(a, "-smp", xm_printf("%u", vm->vcpus));
}

static void add_boot(struct args *a, const struct vm_spec *vm)
{
    add_handed(a, "-kernel", QEMU_FD_KERNEL, vm->kernel);
    add_handed(a, "-initrd", QEMU_FD_INITRD, vm->initrd);
    add_opt(a, "-append", vm->append);
    if (!vm->nvram) {
        add_handed(a, "-bios", QEMU_FD_FIRMWARE, vm->firmware);
        return;
    }
    add_set(a, QEMU_FD_FIRMWARE, QEMU_FD_FIRMWARE);
    add2(a, "-drive",
         xm_printf("if=pflash,unit=0,format=raw,readonly=on,file.driver=file,file.filename=/dev/fdset/%d",
                   QEMU_FD_FIRMWARE));
    /* Not writethrough: a firmware programs its flash byte by byte, some thousand times in its first boot,
     * and a flush of the disk after each took 7 s there, more on a slow disk; and one more would stand in
     * the downtime. */
    add_set(a, QEMU_FD_NVRAM, QEMU_FD_NVRAM);
    add_set(a, QEMU_FD_NVRAM, QEMU_FD_NVRAM_READ);
    add2(
        a, "-drive",
        xm_printf("if=pflash,unit=1,format=raw,file.driver=file,file.filename=/dev/fdset/%d", QEMU_FD_NVRAM));
}

static void add_disks(struct args *a, const struct vm_spec *vm, const struct qemu_facts *knows)
{
    for (unsigned i = 0; i < vm->disks; i++) {
        const struct vm_disk *d = &vm->disk[i];
        unsigned queues = d->queues ? d->queues : XM_MIN(vm->vcpus, 4u);
        char *boot = boot_index(d->boot);
        add2(a, "-chardev",
             xm_printf("socket,id=chr-%s,path=/proc/self/fd/%d/disk-%s.sock,%s", d->name, QEMU_FD_DIR,
                       d->name, knows->reconnect_ms ? "reconnect-ms=1000" : "reconnect=1"));
        /* config-wce=off: the guest cannot change the cache mode, which QEMU would not tell the driver again
         * after a reconnect or a move. The disk is write-back, and the guest flushes. queue-size: 10.0 tells
         * its guests 1024 whatever it is set to, and 11 refuses a guest whose rings are larger than that: so
         * it is what 10.0 tells. */
        add2(
            a, "-device",
            xm_printf(
                "vhost-user-blk-pci,id=disk-%s,chardev=chr-%s,num-queues=%u,queue-size=1024,config-wce=off%s",
                d->name, d->name, queues, boot));
        free(boot);
    }
}

static void add_nics(struct args *a, const struct vm_spec *vm)
{
    for (unsigned i = 0; i < vm->nics; i++) {
        const struct vm_nic *n = &vm->nic[i];
        add2(a, "-netdev", xm_printf("tap,id=net-%s,fd=%d,vhost=off", n->name, QEMU_FD_TAP + (int)i));
        add2(a, "-device",
             xm_printf("virtio-net-pci,id=nic-%s,netdev=net-%s,mac=%s,romfile=", n->name, n->name, n->mac));
    }
}

/* ---- devices of one key each ---- */

static void add_smbios(struct args *a, const struct vm_devices *d)
{
    const struct {
        const char *name, *value;
    } field[] = {{"manufacturer", d->smbios_manufacturer},
                 {"product", d->smbios_product},
                 {"version", d->smbios_version},
                 {"serial", d->smbios_serial},
                 {"sku", d->smbios_sku},
                 {"family", d->smbios_family}};
    char *all = NULL;

    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        if (!field[i].value)
            continue;
        char *more = xm_printf("%s,%s=%s", all ? all : "type=1", field[i].name, field[i].value);
        free(all);
        all = more;
    }
    if (all)
        add2(a, "-smbios", all);
}

static void add_vnc(struct args *a, const struct vm_devices *d, const struct qemu_place *at)
{
    if (!d->vnc)
        return;
    if (!strcmp(d->vnc, "unix")) {
        add2(a, "-vnc", xm_printf("unix:/proc/self/fd/%d/vnc.sock", QEMU_FD_DIR));
        return;
    }
    bool v6 = at->vnc_address && strchr(at->vnc_address, ':');
    add2(a, "-object", xm_printf("secret,id=vnc-password,file=/proc/self/fd/%d/vnc.secret", QEMU_FD_DIR));
    add2(a, "-vnc",
         xm_printf("%s%s%s:%s,password-secret=vnc-password", v6 ? "[" : "",
                   at->vnc_address ? at->vnc_address : "127.0.0.1", v6 ? "]" : "", d->vnc));
}

static void add_cdroms(struct args *a, const struct vm_spec *vm)
{
    for (unsigned i = 0; i < vm->cdroms; i++) {
        const struct vm_cdrom *c = &vm->cdrom[i];
        char *node = xm_printf("cd-%s", c->name), *boot = boot_index(c->boot);
        char *image = xm_printf("/dev/fdset/%d", QEMU_FD_CDROM + (int)i);
        json_t *o = json_pack("{s:s, s:s, s:b, s:{s:s, s:s}}", "driver", "raw", "node-name", node,
                              "read-only", 1, "file", "driver", "file", "filename", image);
        char *text = json_dumps(o, JSON_COMPACT);
        add_set(a, QEMU_FD_CDROM + i, QEMU_FD_CDROM + i);
        add2(a, "-blockdev", xm_printf("%s", text ? text : ""));
        add2(a, "-device", xm_printf("ide-cd,id=cdrom-%s,drive=%s%s", c->name, node, boot));
        free(text);
        json_decref(o);
        free(image);
        free(node);
        free(boot);
    }
}

static void add_devices(struct args *a, const struct vm_spec *vm, const struct qemu_place *at)
{
    const struct vm_devices *d = &vm->devices;
    const char *video = d->video ? d->video : d->vnc ? "std" : NULL;

    add_opt(a, "-uuid", d->uuid);
    add_smbios(a, d);
    if (d->clock)
        add2(a, "-rtc", xm_printf("base=%s", d->clock));
    add_vnc(a, d, at);
    add_cdroms(a, vm);
    if (video)
        add2(a, "-device",
             xm_printf("%s,id=video", !strcmp(video, "std") ? "VGA,vgamem_mb=16" : "virtio-vga"));
    if (d->tablet) {
        add2(a, "-device", xm_printf("qemu-xhci,id=usb"));
        add2(a, "-device", xm_printf("usb-tablet,id=tablet,bus=usb.0"));
    }
    if (d->guest_agent) {
        add2(a, "-chardev", xm_printf("socket,id=agent0,fd=%d,server=on,wait=off", QEMU_FD_AGENT));
        add2(a, "-device", xm_printf("virtio-serial-pci,id=channels"));
        add2(a, "-device",
             xm_printf(
                 "virtserialport,id=agent,bus=channels.0,nr=1,chardev=agent0,name=org.qemu.guest_agent.0"));
    }
    if (d->rng) {
        add2(a, "-object", xm_printf("rng-builtin,id=rng0"));
        add2(a, "-device", xm_printf("virtio-rng-pci,id=rng,rng=rng0"));
    }
    if (d->balloon)
        add2(a, "-device", xm_printf("virtio-balloon-pci,id=balloon"));
}

char **qemu_arguments(const struct vm_spec *vm, const struct qemu_facts *knows, const struct qemu_place *at)
{
    struct args a = {0};

    add(&a, xm_printf("%s", vm->qemu));
    add_machine(&a, vm, knows);
    /* Whose QEMU it is, for whoever finds the process. */
    add2(&a, "-add-fd", xm_printf("fd=%d,set=%d,opaque=%s/", QEMU_FD_MARK, QEMU_FD_MARK, at->run_dir));
    add2(&a, "-chardev", xm_printf("socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP));
    add2(&a, "-mon", xm_printf("chardev=qmp,mode=control"));
    if (at->console)
        add_set(&a, QEMU_FD_CONSOLE, QEMU_FD_CONSOLE);
    char *log = at->console ? xm_printf(",logfile=/dev/fdset/%d,logappend=on", QEMU_FD_CONSOLE) : NULL;
    add2(&a, "-chardev",
         xm_printf("socket,id=serial0,fd=%d,server=on,wait=off%s", QEMU_FD_SERIAL, log ? log : ""));
    free(log);
    add2(&a, "-serial", xm_printf("chardev:serial0"));
    add_boot(&a, vm);
    add_disks(&a, vm, knows);
    add_nics(&a, vm);
    add_devices(&a, vm, at);
    for (char **x = vm->extra; x && *x; x++)
        add(&a, xm_printf("%s", *x));
    /* Stopped at first: the shim has to know the guest's RAM before the guest writes to it through us. */
    add(&a, xm_printf("-S"));
    if (at->incoming)
        add2(&a, "-incoming", xm_printf("defer"));
    return a.v;
}

void qemu_arguments_free(char **v)
{
    for (char **p = v; p && *p; p++)
        free(*p);
    free(v);
}
