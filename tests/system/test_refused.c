/* SPDX-License-Identifier: MIT */
/* What cannot work is refused by name before anything is copied. */
#include "tests/system/harness.h"
#include "tests/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LAB_GROUP("refused", "XM_LAB_VM=no XM_LAB_FAULTS=yes")

#define FIRMWARE "/usr/share/seabios/bios-256k.bin"

/* Exit status and words of a command. */
static void must(int status, const char *part, const char *command)
{
    char *out = NULL;
    int code = sh(&out, 30, "%s", command);

    if (code != status || !out || !strstr(out, part))
        fail_msg("%s: status %d, says: %s", command, code, out ? out : "");
    free(out);
}

/* Debian 12's OVMF.fd and Debian 13's, at one path: check said yes, disks and RAM were copied, and QEMU gave
 * up in the switch («Size mismatch: pc.bios»). Both hosts see this file, which is replaced after the VM was
 * started, as by an upgrade: what the guest has counts. */
static void firmware_of_another_size(void **state)
{
    char path[200], want[400];
    FILE *f;

    (void)state;
    need_lab();
    snprintf(path, sizeof(path), "%s/f1.ini", lab_run_dir());
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "[vm]\nname = f1\nmemory = 16M\naccel = tcg\nfirmware = %s/firmware/bios.bin\n",
            lab_store_dir());
    assert_int_equal(fclose(f), 0);
    assert_int_equal(sh(NULL, 10, "install -D -m 644 " FIRMWARE " %s/firmware/bios.bin", lab_store_dir()), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s", path), 0);
    must(0, "can be moved", xmigrate("a", "check --with-storage f1 hostb"));
    assert_int_equal(sh(NULL, 10,
                        "cd %s/firmware && cat bios.bin bios.bin >new && chmod 644 new && mv new bios.bin",
                        lab_store_dir()),
                     0);
    snprintf(want, sizeof(want),
             "firmware %s/firmware/bios.bin has 256.00 KiB in f1 on hosta and 512.00 KiB on hostb",
             lab_store_dir());
    must(3, want, xmigrate("a", "check --with-storage f1 hostb"));
    must(3, want, xmigrate("a", "--with-storage f1 hostb"));
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f1"), 0);
    assert_int_equal(sh(NULL, 10, "truncate -s -1 %s/firmware/bios.bin", lab_store_dir()), 0);
    must(3, "has 524287 bytes, and QEMU takes a multiple of 64 KiB", xmigrate("a", "start %s", path));
}

static void start_small(const char *name, const char *more)
{
    char path[200];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.ini", lab_run_dir(), name);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "[vm]\nname = %s\nmemory = 16M\naccel = tcg\n%s", name, more);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s", path), 0);
}

/* check said yes, all was copied, and the destination's QEMU could not load it. */
static void a_device_that_was_plugged_in(void **state)
{
    static const char plug[] =
        "ip netns exec %s-hosta bash -c 'exec 3<>/dev/tcp/127.0.0.1/4444; printf \"%%s\\n\" "
        "\"{\\\"execute\\\":\\\"qmp_capabilities\\\"}\" "
        "\"{\\\"execute\\\":\\\"device_add\\\",\\\"arguments\\\":"
        "{\\\"driver\\\":\\\"virtio-%s}}\" >&3; head -n 3 <&3'";
    char command[600];
    char *out = NULL;

    (void)state;
    need_lab();
    start_small("f2",
                "machine = pc\nrng = yes\nextra = -qmp\nextra = tcp:127.0.0.1:4444,server=on,wait=off\n");
    sh(&out, 30, "%s", xmigrate("a", "check --with-storage f2 hostb"));
    assert_non_null(out);
    assert_null(strstr(out, "was plugged"));
    free(out);
    snprintf(command, sizeof(command), plug, lab_prefix(), "rng-pci\\\"");
    assert_int_equal(sh(NULL, 30, "%s", command), 0);
    must(3, "device one without a name (virtio-rng-pci) was plugged into VM f2 while it ran",
         xmigrate("a", "check --with-storage f2 hostb"));
    snprintf(command, sizeof(command), plug, lab_prefix(), "balloon-pci\\\",\\\"id\\\":\\\"more\\\"");
    assert_int_equal(sh(NULL, 30, "%s", command), 0);
    must(3,
         "device more (virtio-balloon-pci) was plugged into VM f2 while it ran, and hostb would make it "
         "without",
         xmigrate("a", "check --with-storage f2 hostb"));
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f2"), 0);
}

/* What broke: the check had looked once. A device that came while the disks were copied stopped the guest in
 * vain, and nobody said which; and one that has no state of its own was gone when the move was done. */
static void a_device_that_is_plugged_in_on_the_way(void **state)
{
    static const char plug[] =
        "ip netns exec %s-hosta bash -c 'exec 3<>/dev/tcp/127.0.0.1/4444; printf \"%%s\\n\" "
        "\"{\\\"execute\\\":\\\"qmp_capabilities\\\"}\" "
        "\"{\\\"execute\\\":\\\"device_add\\\",\\\"arguments\\\":"
        "{\\\"driver\\\":\\\"pci-testdev\\\",\\\"id\\\":\\\"late\\\"}}\" >&3; head -n 3 <&3'";
    struct job move;
    char *out = NULL;

    (void)state;
    need_lab();
    assert_int_equal(sh(NULL, 30,
                        "cd %s && sed -i '/^.peer/a extra = -qmp tcp:127.0.0.1:4444,server=on,wait=off' "
                        "b/xmigrated.conf && kill -9 $(cat b/agent.pid)",
                        lab_run_dir()),
                     0);
    assert_int_equal(sh(NULL, 30, "tests/system/lab.sh agent b"), 0);
    start_small("f6", "machine = pc\nextra = -qmp\nextra = tcp:127.0.0.1:4444,server=on,wait=off\n");
    assert_int_equal(
        sh(NULL, 5, "cd %s/a && echo memory-copied:1:stop >fault.new && mv fault.new fault", lab_run_dir()),
        0);
    job_start(&move, "%s", xmigrate("a", "--json --with-storage f6 hostb"));
    assert_true(wait_until(60, "test ! -e %s/a/fault", lab_run_dir()));
    assert_int_equal(sh(NULL, 30, plug, lab_prefix()), 0);
    assert_int_equal(sh(NULL, 5, "kill -CONT $(cat %s/a/run/vms/f6/shim.pid)", lab_run_dir()), 0);
    assert_int_equal(job_end(&move, 60, &out), 1);
    if (!out || !strstr(out, "device late (pci-testdev) was plugged into VM f6 while it was being moved, and "
                             "hostb would make it without: unplug it first"))
        fail_msg("it says: %s", out ? out : "");
    assert_null(strstr(out, "stood_ms")); /* nobody has stopped it for that */
    free(out);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f6"), 0);
}

/* check said yes, and the move failed at its first word to QEMU. */
static void a_qemu_that_hangs(void **state)
{
    static const char signal[] = "kill -%s $(cat %s/a/run/vms/f5/qemu.pid)";

    (void)state;
    need_lab();
    start_small("f5", "");
    assert_int_equal(sh(NULL, 10, signal, "STOP", lab_run_dir()), 0);
    must(3, "QEMU of VM f5 does not answer: QEMU's monitor, query-status: no answer in time",
         xmigrate("a", "check --with-storage f5 hostb"));
    assert_int_equal(sh(NULL, 10, signal, "CONT", lab_run_dir()), 0);
    must(0, "can be moved", xmigrate("a", "check --with-storage f5 hostb"));
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f5"), 0);
}

/* What broke: of a device that QEMU has from a file, or whose word begins with its id, it was said that it
 * had been plugged in. */
static void devices_that_were_there_from_the_start(void **state)
{
    char more[2][300];
    char *out = NULL;

    (void)state;
    need_lab();
    assert_int_equal(
        sh(NULL, 5, "printf '[device \"filed\"]\ndriver = \"virtio-rng-pci\"\n' >%s/f4.cfg", lab_run_dir()),
        0);
    snprintf(more[0], sizeof(more[0]), "extra = -readconfig\nextra = %s/f4.cfg\n", lab_run_dir());
    snprintf(more[1], sizeof(more[1]), "extra = -device\nextra = id=first,driver=virtio-rng-pci\n");
    for (int i = 0; i < 2; i++) {
        start_small("f4", more[i]);
        sh(&out, 30, "%s", xmigrate("a", "check --with-storage f4 hostb"));
        assert_non_null(out);
        if (strstr(out, "was plugged") || !strstr(out, "extra ="))
            fail_msg("%s", out);
        free(out);
        assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f4"), 0);
        assert_int_equal(xmigrate_run("a", 0, NULL, "undefine f4"), 0);
    }
}

/* A guest that came to a bridge that keeps a spanning tree was cut off for two forward delays, and what tells
 * the network of its move was lost. */
static void a_bridge_that_listens_first(void **state)
{
    char *out = NULL;

    (void)state;
    need_lab();
    assert_int_equal(
        sh(NULL, 10, "ip -n %s-hostb link set br0 type bridge stp_state 1 forward_delay 200", lab_prefix()),
        0);
    start_small("f3", "[nic lan]\nbridge = br0\n");
    must(0, "bridge 'br0' of hostb keeps a spanning tree (STP), and passes nothing of a new port for 4.00 s",
         xmigrate("a", "check --with-storage f3 hostb"));
    must(0, "f3 has moved to hostb", xmigrate("a", "--with-storage f3 hostb"));
    assert_int_equal(sh(&out, 10, "ip -n %s-hostb -d link show type tun", lab_prefix()), 0);
    if (!out || !strstr(out, "state forwarding"))
        fail_msg("the guest has come before its port passes anything: %s", out ? out : "");
    free(out);
    assert_int_equal(xmigrate_run("b", 0, NULL, "stop --force f3"), 0);
    assert_int_equal(sh(NULL, 10, "ip -n %s-hostb link set br0 type bridge stp_state 0", lab_prefix()), 0);
}

/* Only the agent's log said that the old file stays, and the VM could not come back because of it; and when
 * it could, the file was forgotten. */
static void a_file_that_cannot_be_deleted(void **state)
{
    char path[600];

    (void)state;
    need_lab();
    start_small("f4", "[disk d1]\ndatastore = ds1\nfile = f4.raw\nsize = 4M\n");
    snprintf(path, sizeof(path), "%s/a/ds1/f4.raw", lab_store_dir());
    assert_int_equal(sh(NULL, 10, "chattr +i %s", path), 0);
    must(0, "f4.raw cannot be opened: Operation not permitted; that is tried again",
         xmigrate("a", "--with-storage f4 hostb"));
    must(0, "can be moved", xmigrate("b", "check --with-storage f4 hosta:ds1"));
    must(0, "f4 has moved to hosta", xmigrate("b", "--with-storage f4 hosta:ds1"));
    assert_int_equal(sh(NULL, 10, "test -e %s && chattr -i %s", path, path), 0);
    for (struct limit l = limit_start(20); access(path, F_OK) == 0 && limit_wait(&l);)
        ;
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force f4"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(firmware_of_another_size),
        cmocka_unit_test(a_device_that_was_plugged_in),
        cmocka_unit_test(a_device_that_is_plugged_in_on_the_way),
        cmocka_unit_test(a_qemu_that_hangs),
        cmocka_unit_test(devices_that_were_there_from_the_start),
        cmocka_unit_test(a_bridge_that_listens_first),
        cmocka_unit_test(a_file_that_cannot_be_deleted),
    };
    return cmocka_run_group_tests_name("refused by name", tests, lab_setup, lab_teardown);
}
