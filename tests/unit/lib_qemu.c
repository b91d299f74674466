/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_qemu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

const struct qemu_facts *qemu_real(void)
{
    struct xm_error e = {0};
    const struct qemu_facts *q = qemu_facts("qemu-system-x86_64", &e);

    if (!q) {
        print_message("skipped: %s\n", e.text);
        skip();
    }
    return q;
}

struct vm_spec spec_with_all_devices(void)
{
    return (struct vm_spec){.name = "web1",
                            .memory = 16 << 20,
                            .vcpus = 1,
                            .qemu = (char *)"qemu-system-x86_64",
                            .machine = (char *)"q35",
                            .accel = (char *)"tcg",
                            .cdroms = 1,
                            .cdrom = {{.name = "seed", .path = (char *)"/srv/a=b.iso", .boot = 1}},
                            .devices = {.rng = true,
                                        .balloon = true,
                                        .guest_agent = true,
                                        .tablet = true,
                                        .clock = (char *)"localtime",
                                        .vnc = (char *)"unix",
                                        .uuid = (char *)"123e4567-e89b-12d3-a456-426614174000",
                                        .smbios_product = (char *)"web",
                                        .smbios_serial = (char *)"ds=x;y"}};
}
