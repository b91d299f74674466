/* SPDX-License-Identifier: MIT */
/* Devices that have a key of their own: a real guest has them, and has them still where it has moved to; and
 * what a host does not take from another one. */
#include "tests/system/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

LAB_GROUP("devices", "XM_LAB_VM=no" LAB_SMALL)

#define KEYS                                                                                                 \
    "rng = yes\\nballoon = yes\\nguest_agent = yes\\ntablet = yes\\nclock = utc\\nvnc = unix\\n"             \
    "uuid = 123e4567-e89b-12d3-a456-426614174000\\nsmbios_product = Example 9\\n"

/* web1 as the lab has written it, with these lines in [vm], and with more disks. */
static void write_spec(const char *keys)
{
    assert_int_equal(
        sh(NULL, 10,
           "cd %s && sed 's|^accel = .*|&\\n%s|' web1.ini >devices.ini && printf '\\n[disk seed]\\n"
           "datastore = ds1\\nfile = seed.img\\nread_only = yes\\n\\n[cdrom tools]\\npath = "
           "%s/images/tools.iso\\n' >>devices.ini",
           lab_run_dir(), keys, lab_store_dir()),
        0);
    assert_int_equal(sh(NULL, 10,
                        "mkdir -p %s/images && head -c 1M /dev/urandom >%s/images/tools.iso && "
                        "chmod -R a+rX %s/images && head -c 4M /dev/urandom >%s/a/ds1/seed.img",
                        lab_store_dir(), lab_store_dir(), lab_store_dir(), lab_store_dir()),
                     0);
}

static void guest_reads(const char *path, const char *line)
{
    char *out = NULL;
    json_t *o;

    assert_int_equal(sh(&out, 30, "%s", as_client("cmd %s read %s", GUEST, path)), 0);
    o = last_json(out);
    if (strcmp(string(o, "line"), line) != 0)
        fail_msg("%s: %s", path, out);
    json_decref(o);
    free(out);
}

/* QEMU's viewer is greeted on the VM's socket. */
static void vnc_must_answer(char host)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char said[12];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s/%c/run/vms/web1/vnc.sock", lab_run_dir(), host);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(recv(fd, said, sizeof(said), MSG_WAITALL), sizeof(said));
    assert_memory_equal(said, "RFB 003.", 8);
    close(fd);
}

static void devices_must_be_there(char host)
{
    guest_reads("/sys/block/vda/ro", "0");
    guest_reads("/sys/block/vdc/ro", "1");
    guest_reads("/sys/class/dmi/id/product_name", "Example 9");
    guest_reads("/sys/class/dmi/id/product_uuid", "123e4567-e89b-12d3-a456-426614174000");
    vnc_must_answer(host);
    assert_int_equal(sh(NULL, 5, "test -S %s/%c/run/vms/web1/qga.sock", lab_run_dir(), host), 0);
}

static void a_guest_takes_its_devices_along(void **state)
{
    char seed[512];
    json_t *done = NULL;

    (void)state;
    need_lab();
    write_spec(KEYS);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s/devices.ini", lab_run_dir()), 0);
    guest_must_come("a", "web1");
    devices_must_be_there('a');
    assert_int_equal(sh(NULL, 10, "cp %s/a/ds1/seed.img %s/seed.copy", lab_store_dir(), lab_run_dir()), 0);
    assert_int_equal(xmigrate_run("a", 0, &done, "--json --with-storage web1 hostb"), 0);
    print_message("downtime %.1f ms\n", number(done, "downtime_ms"));
    json_decref(done);
    vm_must_run_at("b", "web1");
    devices_must_be_there('b');
    guest_verify();
    disk_path("b", "web1", "seed", seed, sizeof(seed));
    assert_int_equal(sh(NULL, 10, "cmp %s %s/seed.copy", seed, lab_run_dir()), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "--with-storage web1 hosta"), 0);
    vm_must_run_at("a", "web1");
    devices_must_be_there('a');
    guest_verify();
    host_must_be_clean("b");
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force web1"), 0);
}

#define OVMF "/usr/share/OVMF/OVMF_"

/* UEFI's variables are written by the firmware itself as it boots. They come to the destination with the
 * request to prepare, and once more with the VM: what is wrong in the file by then is put right before the
 * guest runs. */
static void the_firmwares_variables_go_along(void **state)
{
    const char *run = lab_run_dir();
    struct job move;
    char *out = NULL;
    json_t *done;

    (void)state;
    need_lab();
    /* Without KVM the firmware alone takes longer than most tests. */
    if (!getenv("XM_LONG")) {
        print_message("skipped: a boot by UEFI is long; make check-long has it\n");
        skip();
    }
    if (access(OVMF "CODE_4M.fd", R_OK) != 0) {
        print_message("skipped: " OVMF "CODE_4M.fd is not there\n");
        skip();
    }
    /* One disk, which its guest leaves alone. */
    assert_int_equal(
        sh(NULL, 10,
           "cd %s && sed -e 's/ = web1$/ = uefi1/' -e '/^.disk data/,/^$/d' -e 's/xm.disk=[^ ]*//g' -e "
           "'s|^accel = .*|&\\nfirmware = " OVMF "CODE_4M.fd\\nnvram = " OVMF "VARS_4M.fd|' web1.ini "
           ">uefi.ini",
           run),
        0);
    assert_int_equal(
        sh(NULL, 5,
           "ln -sfn %s/a/state/vms/uefi1/nvram.fd %s/va; ln -sfn %s/b/state/vms/uefi1/nvram.fd %s/vb", run,
           run, run, run),
        0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s/uefi.ini", lab_run_dir()), 0);
    guest_must_come("a", "uefi1");
    assert_int_equal(sh(NULL, 5, "cmp -s %s/va " OVMF "VARS_4M.fd", run),
                     1); /* the firmware has written to it */
    job_start(&move, "%s", xmigrate("a", "--json --with-storage uefi1 hostb"));
    assert_true(job_saw(&move, "\"disks\"", 30));
    assert_int_equal(sh(NULL, 5, "cmp %s/va %s/vb", run, run), 0); /* there before the VM is */
    assert_int_equal(sh(NULL, 5, "dd if=/dev/zero of=%s/vb bs=4096 count=20 conv=notrunc status=none", run),
                     0);
    if (job_end(&move, 120, &out) != 0)
        fail_msg("%s", out);
    done = last_json(out);
    print_message("downtime %.1f ms\n", number(done, "downtime_ms"));
    json_decref(done);
    free(out);
    vm_must_run_at("b", "uefi1");
    guest_verify();
    assert_int_equal(sh(NULL, 5, "cmp %s/va %s/vb", run, run), 0);
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force uefi1"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_takes_its_devices_along),
        cmocka_unit_test(the_firmwares_variables_go_along),
    };
    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
