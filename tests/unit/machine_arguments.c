/* SPDX-License-Identifier: MIT */
/* The arguments that follow from a VM's specification and from what QEMU knows. */
#include "machine/qemu.h"
#include "tests/unit/lib_qemu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <string.h>

static bool has(char **args, const char *option, const char *part)
{
    for (char **a = args; a[0] && a[1]; a++) {
        if (!strcmp(a[0], option) && strstr(a[1], part))
            return true;
    }
    return false;
}

static char **arguments(bool reconnect_ms)
{
    static struct vm_spec vm;
    struct qemu_facts knows = {.reconnect_ms = reconnect_ms};

    vm = (struct vm_spec){.name = "web1",
                          .memory = 256 << 20,
                          .vcpus = 2,
                          .qemu = (char *)"qemu-system-x86_64",
                          .machine = (char *)"pc-q35-7.2",
                          .accel = (char *)"tcg",
                          .disks = 1,
                          .disk = {{.name = "root"}}};
    return qemu_arguments(&vm, &knows, &(struct qemu_place){.host = "hosta", .run_dir = "/run/x"});
}

/* QEMU 11 knows reconnect-ms alone, 7.2 reconnect alone. */
static void reconnect_is_what_qemu_knows(void **state)
{
    (void)state;
    char **new = arguments(true), **old = arguments(false);
    assert_true(has(new, "-chardev", "disk-root.sock,reconnect-ms=1000"));
    assert_true(has(old, "-chardev", "disk-root.sock,reconnect=1"));
    qemu_arguments_free(new);
    qemu_arguments_free(old);
}

/* QEMU from 8.1 on sends all other kinds of RAM in its stream, x-ignore-shared or not. */
static void ram_is_a_named_shared_file(void **state)
{
    (void)state;
    char **args = arguments(true);
    assert_true(
        has(args, "-object", "memory-backend-file,id=mem0,size=256M,share=on,mem-path=/proc/self/fd/3"));
    qemu_arguments_free(args);
}

/* Where QEMU has one. A Debian's has. */
static void it_is_sandboxed(void **state)
{
    (void)state;
    static struct vm_spec vm;
    struct qemu_facts knows = {.sandbox = true};

    vm = (struct vm_spec){.name = "web1", .memory = 256 << 20, .vcpus = 1, .machine = (char *)"pc"};
    struct qemu_place at = {.host = "hosta", .run_dir = "/run/x"};
    char **args = qemu_arguments(&vm, &knows, &at);
    assert_true(
        has(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"));
    qemu_arguments_free(args);
    args = arguments(true);
    assert_false(has(args, "-sandbox", "on"));
    qemu_arguments_free(args);
}

static size_t place(char **args, const char *part)
{
    for (size_t i = 0; args[i]; i++) {
        if (strstr(args[i], part))
            return i;
    }
    fail_msg("%s is not there", part);
    return 0;
}

/* A VM that is running, and that came from an earlier version, has its disks and NICs in their places. */
static void new_devices_stand_behind_the_others(void **state)
{
    (void)state;
    struct qemu_facts knows = {0};
    struct qemu_place at = {.run_dir = "/run/x", .vnc_address = "fd00::1"};
    struct vm_spec vm = spec_with_all_devices();
    char *extra[] = {(char *)"-device", (char *)"pvpanic", NULL};

    vm.extra = extra;
    vm.nics = 1;
    vm.nic[0] = (struct vm_nic){.name = "lan", .tap = "t0", .mac = "52:54:00:00:00:01"};
    char **a = qemu_arguments(&vm, &knows, &at);
    static const char *const order[] = {"virtio-net-pci", "ide-cd",      "VGA",
                                        "qemu-xhci",      "usb-tablet",  "virtio-serial",
                                        "virtio-rng-pci", "balloon-pci", "pvpanic"};
    for (size_t i = 1; i < sizeof order / sizeof *order; i++)
        assert_true(place(a, order[i - 1]) < place(a, order[i]));
    assert_true(has(a, "-vnc", "unix:/proc/self/fd/5/vnc.sock"));
    assert_true(has(a, "-smbios", "type=1,product=web,serial=ds=x;y"));
    assert_true(has(a, "-device", "ide-cd,id=cdrom-seed,drive=cd-seed,bootindex=1"));
    assert_true(has(a, "-blockdev", "\"read-only\":true"));
    qemu_arguments_free(a);
    vm.devices.vnc = (char *)"7";
    vm.devices.vnc_password = (char *)"pw";
    a = qemu_arguments(&vm, &knows, &at);
    assert_true(has(a, "-vnc", "[fd00::1]:7,password-secret=vnc-password"));
    for (size_t i = 0; a[i]; i++)
        assert_null(strstr(a[i], "=pw")); /* every user of the host sees the command line */
    qemu_arguments_free(a);
}

static void firmware_with_variables_is_flash(void **state)
{
    (void)state;
    struct qemu_facts knows = {0};
    struct qemu_place at = {.run_dir = "/run/x", .nvram = "/s/web1/nvram.fd"};
    struct vm_spec vm = spec_with_all_devices();

    vm.firmware = (char *)"/f/CODE.fd";
    char **a = qemu_arguments(&vm, &knows, &at);
    assert_true(has(a, "-bios", "/proc/self/fd/12"));
    assert_false(has(a, "-drive", "pflash"));
    qemu_arguments_free(a);
    vm.nvram = (char *)"/f/VARS.fd";
    a = qemu_arguments(&vm, &knows, &at);
    assert_false(has(a, "-bios", ""));
    assert_true(has(a, "-drive",
                    "if=pflash,unit=0,format=raw,readonly=on,file.driver=file,file.filename=/dev/fdset/12"));
    assert_true(has(a, "-drive", "if=pflash,unit=1,format=raw,file.driver=file,file.filename=/dev/fdset/13"));
    for (size_t i = 0; a[i]; i++)
        assert_null(strstr(a[i], "VARS")); /* the template is nobody's to write to */
    qemu_arguments_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reconnect_is_what_qemu_knows),
        cmocka_unit_test(ram_is_a_named_shared_file),
        cmocka_unit_test(it_is_sandboxed),
        cmocka_unit_test(new_devices_stand_behind_the_others),
        cmocka_unit_test(firmware_with_variables_is_flash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
