/* SPDX-License-Identifier: MIT */
/* What of another host's specification reaches QEMU here: every attack that was seen, and its neighbours.
 * Each has to be refused by name, and what is meant by it has to have another way. */
#include "agent/outside.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static struct config conf;
static struct vm_spec vm;
static char *extra[8], *lines[4], *kernels[3], *firmware[2], *bridges[2];
static json_t *reasons;

static int set_up(void **state)
{
    (void)state;
    memset(extra, 0, sizeof extra);
    memset(lines, 0, sizeof lines);
    kernels[0] = (char *)"/srv/kernels/";
    kernels[1] = (char *)"/boot";
    firmware[0] = (char *)"/usr/share/OVMF";
    bridges[0] = (char *)"br0";
    conf = (struct config){.name = (char *)"hostb",
                           .kernels = kernels,
                           .firmware = firmware,
                           .bridge = bridges,
                           .peers = 1,
                           .peer = {{.name = "hosta"}}};
    vm = (struct vm_spec){.name = "web1",
                          .qemu = (char *)"qemu-system-x86_64",
                          .machine = (char *)"pc-q35-7.2",
                          .accel = (char *)"kvm",
                          .cpu = (char *)"Skylake-Server,+avx,-tsx,pcid=on",
                          .kernel = (char *)"/boot/vmlinuz",
                          .nics = 1,
                          .nic = {{.name = "lan", .bridge = "br0"}}};
    reasons = json_array();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    json_decref(reasons);
    return 0;
}

static const char *first_reason(void)
{
    json_array_clear(reasons);
    unsigned n = outside_judge(&vm, &conf, "hosta", reasons);
    assert_int_equal(n, json_array_size(reasons));
    return n ? json_string_value(json_array_get(reasons, 0)) : NULL;
}

static void must_refuse(const char *part)
{
    const char *why = first_reason();
    if (!why || !strstr(why, part))
        fail_msg("not refused with «%s»: %s", part, why ? why : "(taken)");
}

static void must_take(void)
{
    const char *why = first_reason();
    if (why)
        fail_msg("%s", why);
}

static void an_ordinary_one_is_taken(void **state)
{
    (void)state;
    must_take();
    vm.machine = (char *)"pc-q35-7.2,usb=off,smm=on";
    vm.accel = (char *)"tcg,thread=multi";
    vm.cpu = (char *)"max";
    must_take();
}

/* The first opened a file that only root may read, read-write, in the guest. */
static void no_word_of_extra_is_taken(void **state)
{
    static const char *const attacks[][2] = {
        {"-blockdev", "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"\\u002fetc\"}}"},
        {"-drive", "file=json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"\\u002fx\"}}"},
        {"-device", "{\"driver\":\"virtio-blk\",\"drive\":\"x\"}"},
        {"-drive", "file=fat:rw:etc,if=virtio"},
        {"-drive", "file=nbd:unix:x"},
        {"-icount", "shift=auto,rr=replay,rrfile=x"},
        {"-vnc", "0.0.0.0:1"},
        {"-display", "vnc=0.0.0.0:1"},
        {"-chardev", "file,id=x,path=/etc/passwd"},
        {"-device", "virtio-net-pci,romfile=/etc/shadow"},
        {"-device", "virtio-rng-pci"}, /* harmless; so it has a key */
        {"-object", "memory-backend-file,id=m"},
        {"-object", "secret,id=s,file=x"},
        {"--device", "x"},
        {"-monitor", "stdio"},
        {"-incoming", "exec:id"},
        {"-no-reboot", NULL},
        {"-S", NULL},
        {"word", NULL},
    };

    (void)state;
    vm.extra = extra;
    for (size_t i = 0; i < sizeof attacks / sizeof attacks[0]; i++) {
        char want[64];
        extra[0] = (char *)attacks[i][0];
        extra[1] = (char *)attacks[i][1];
        snprintf(want, sizeof want, "extra = '%s", attacks[i][0]);
        must_refuse(want);
        assert_int_equal(json_array_size(reasons), 1);
    }
}

static void the_key_to_use_instead_is_named(void **state)
{
    static const char *const pairs[][3] = {
        {"-device", "virtio-rng-pci", "write «rng = yes» instead"},
        {"-device", "virtio-balloon-pci", "write «balloon = yes» instead"},
        {"-vnc", "unix:/x", "write «vnc = unix» instead"},
        {"-cdrom", "/x.iso", "write «[cdrom NAME]» instead"},
        {"-rtc", "base=localtime", "write «clock = utc or localtime» instead"},
        {"-drive", "if=pflash,file=/x", "write «firmware and nvram» instead"},
        {"-device", "pvpanic",
         "«extra = -device pvpanic» in [peer hosta] of hostb's configuration would allow exactly "
         "that"},
    };

    (void)state;
    vm.extra = extra;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        extra[0] = (char *)pairs[i][0];
        extra[1] = (char *)pairs[i][1];
        must_refuse(pairs[i][2]);
    }
}

static void what_the_configuration_allows_is_taken_word_by_word(void **state)
{
    (void)state;
    vm.extra = extra;
    conf.peer[0].extra = lines;
    lines[0] = (char *)"-device pvpanic";
    lines[1] = (char *)"-no-hpet";
    extra[0] = (char *)"-no-hpet";
    extra[1] = (char *)"-device";
    extra[2] = (char *)"pvpanic";
    must_take();
    extra[2] = (char *)"pvpanic,ioport=1";
    must_refuse("extra = '-device pvpanic,ioport=1'");
    extra[2] = (char *)"pvpanic"; /* the second time, after what is allowed, it is judged as well */
    extra[3] = (char *)"-device";
    extra[4] = (char *)"vmcoreinfo";
    must_refuse("extra = '-device vmcoreinfo'");
    extra[1] = (char *)"pvpanic"; /* only together with its option */
    extra[2] = NULL;
    must_refuse("extra = 'pvpanic'");
    extra[1] = NULL;
    json_array_clear(reasons);
    assert_int_equal(outside_judge(&vm, &conf, "hostc", reasons), 1); /* it is that peer's alone */
}

static void words_with_options_are_held_to_a_list(void **state)
{
    static const char *const machines[] = {
        "q35,dumpdtb=x", "q35,kernel=x", "q35,,x",    "q35,firmware=x", "q35,pflash0=x",
        "q35,initrd=x",  "q35,append=x", "q35,",      "q35,usb=a/b",    "-S",
        "q35,usb=",      "q35 -S",       "{\"a\":1}", "q35,+usb",       "q35,memory-backend=x"};
    static const char *const accels[] = {"kvm,device=/dev/x", "tcg,device=x", "kvm,,x", "tcg,thread=a/b"};
    static const char *const cpus[] = {"max,x=/etc",  "-max",    "max,", "max,,model-id=x",
                                       "max,+avx=on", "max,=on", "ma x"};

    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        vm.machine = (char *)machines[i];
        must_refuse("machine = '");
    }
    vm.machine = (char *)"q35";
    for (size_t i = 0; i < sizeof accels / sizeof *accels; i++) {
        vm.accel = (char *)accels[i];
        must_refuse("accel = '");
    }
    vm.accel = NULL;
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        vm.cpu = (char *)cpus[i];
        must_refuse("cpu = '");
    }
}

static void no_other_program_is_run(void **state)
{
    static const char *const programs[] = {"/bin/sh",
                                           "sh",
                                           "qemu-system-",
                                           "qemu-system-x/../sh",
                                           "qemu-system-x86_64 -S",
                                           "qemu-system-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    struct xm_error e;

    (void)state;
    assert_int_equal(outside_program(&vm, &e), 0);
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
        vm.qemu = (char *)programs[i];
        assert_int_equal(outside_program(&vm, &e), -EPERM);
        must_refuse("the program '");
    }
}

static void files_and_bridges_are_the_configurations(void **state)
{
    (void)state;
    vm.initrd = (char *)"/srv/kernels/6.1/initrd";
    vm.firmware = (char *)"/usr/share/OVMF/OVMF.fd";
    must_take();
    vm.firmware = (char *)"/usr/share/OVMFX/OVMF.fd";
    must_refuse(
        "hostb lets web1 of another host use no firmware '/usr/share/OVMFX/OVMF.fd': its configuration "
        "names the directories, by «firmware» in [incoming]");
    vm.firmware = NULL;
    vm.initrd = (char *)"/srv/kernels/../../etc/shadow";
    must_refuse("use no initrd '/srv/kernels/../../etc/shadow'");
    vm.initrd = (char *)"/srv/kernels/..";
    must_refuse("use no initrd");
    vm.initrd = (char *)"/srv/kernels/..x"; /* a name like others */
    must_take();
    vm.kernel = (char *)"/etc/shadow";
    must_refuse("use no kernel '/etc/shadow'");
    conf.kernels = NULL;
    vm.kernel = (char *)"/boot/vmlinuz";
    must_refuse("use no kernel '/boot/vmlinuz'");
    vm.kernel = vm.initrd = NULL;
    memcpy(vm.nic[0].bridge, "mgmt0", 6);
    must_refuse("hostb lets web1 of another host use no bridge 'mgmt0' (for NIC 'lan'): «bridge = mgmt0» in "
                "[incoming] of its configuration would allow that");
    vm.cdroms = 1;
    vm.cdrom[0] = (struct vm_cdrom){.name = "seed", .path = (char *)"/srv/images/s.iso"};
    vm.nic[0].bridge[0] = 0;
    must_refuse("use no image '/srv/images/s.iso'");
    conf.images = kernels;
    vm.cdrom[0].path = (char *)"/boot/s.iso";
    must_take();
    vm.nic[0].bridge[0] = 0; /* it is connected to nothing */
    must_take();
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_ordinary_one_is_taken),
        TEST(no_word_of_extra_is_taken),
        TEST(the_key_to_use_instead_is_named),
        TEST(what_the_configuration_allows_is_taken_word_by_word),
        TEST(words_with_options_are_held_to_a_list),
        TEST(no_other_program_is_run),
        TEST(files_and_bridges_are_the_configurations),
    };
    return cmocka_run_group_tests_name("agent: what comes from outside", tests, NULL, NULL);
}
