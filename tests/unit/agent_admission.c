/* SPDX-License-Identifier: MIT */
/* Admission: one host, one request, and what each single change of them is answered with. */
#include "agent/admission.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)

/* A host that takes the VM, and a request that it takes; each test spoils one thing. */
static struct fact_datastore store[2];
static struct fact_link here[2], there[2];
static struct host_facts host;
static struct admission_request req;
static struct vm_spec vm;
static char *extra[4];
static json_t *reasons;
static int chosen;

static int set_up(void **state)
{
    (void)state;
    store[0] = (struct fact_datastore){.name = "small", .size = 100 * GIB, .free = 60 * GIB, .target = 80};
    store[1] = (struct fact_datastore){.name = "large", .size = 400 * GIB, .free = 300 * GIB, .target = 80};
    here[0] = (struct fact_link){.name = "l1", .address = "10.1.0.2", .up = true};
    here[1] = (struct fact_link){.name = "l2", .address = "10.2.0.2", .up = true, .speed = 125000000};
    there[0] = (struct fact_link){.name = "l1", .address = "10.1.0.1"};
    host = (struct host_facts){.host = "hostb",
                               .protocol = AGENT_PROTOCOL,
                               .qemu_version = "7.2.22",
                               .machine = true,
                               .kvm = KVM_WHOLE,
                               .cpu_flags = "fpu sse avx avx2",
                               .bridge = {true, true},
                               .kernel = true,
                               .initrd = true,
                               .memory_free = 8 * GIB,
                               .memory_promised = GIB,
                               .min_memory = GIB / 16,
                               .min_free = GIB,
                               .min_bandwidth = 31250000,
                               .max_migrations = 4,
                               .max_storage_migrations = 2,
                               .datastores = 2,
                               .datastore = store,
                               .links = 2,
                               .link = here};
    vm = (struct vm_spec){.name = "web1",
                          .memory = 2 * GIB,
                          .vcpus = 2,
                          .qemu = (char *)"qemu-system-x86_64",
                          .machine = (char *)"pc-q35-7.2",
                          .accel = (char *)"kvm",
                          .cpu = (char *)"host",
                          .kernel = (char *)"/boot/k",
                          .disks = 1,
                          .nics = 1,
                          .disk = {{.name = "root", .path = (char *)"/dev/loop0", .size = 40 * GIB}},
                          .nic = {{.name = "lan", .bridge = "br0"}}};
    req = (struct admission_request){.spec = &vm,
                                     .storage = true,
                                     .used = {20 * GIB},
                                     .epoch = 3,
                                     .protocol = AGENT_PROTOCOL,
                                     .source = "hosta",
                                     .qemu_version = "7.2.1",
                                     .booted = true,
                                     .cpu_flags = "fpu sse avx",
                                     .links = 1,
                                     .link = there};
    memset(extra, 0, sizeof extra);
    reasons = json_array();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    json_decref(reasons);
    return 0;
}

static void must_say(const char *sentence)
{
    json_array_clear(reasons);
    unsigned n = admit(&host, &req, reasons, &chosen);
    assert_int_equal(n, json_array_size(reasons));
    if (!sentence && n)
        fail_msg("%s", json_string_value(json_array_get(reasons, 0)));
    if (sentence) {
        assert_int_equal(n, 1);
        assert_string_equal(json_string_value(json_array_get(reasons, 0)), sentence);
    }
}

static void a_good_one_goes_to_the_datastore_with_most_room(void **state)
{
    (void)state;
    must_say(NULL);
    assert_int_equal(chosen, 1);
}

static void one_under_its_target_goes_before_one_with_more_room(void **state)
{
    (void)state;
    store[1].target = 25; /* with 20 GiB more it would be 30 % full */
    must_say(NULL);
    assert_int_equal(chosen, 0);
    store[0].target = 25; /* nowhere: then the one with the most room after all */
    must_say(NULL);
    assert_int_equal(chosen, 1);
}

/* What broke: a database in «fast» moved to the «slow» of the other host, which had a «fast», too. */
static void one_of_the_same_name_goes_before_one_with_more_room(void **state)
{
    (void)state;
    snprintf(vm.disk[0].datastore, sizeof vm.disk[0].datastore, "small");
    must_say(NULL);
    assert_int_equal(chosen, 0);
    store[0].target = 50; /* with 20 GiB more it would be 60 % full */
    must_say(NULL);
    assert_int_equal(chosen, 1);
}

static void what_is_promised_to_others_is_not_given_twice(void **state)
{
    (void)state;
    req.datastore = "small";
    must_say(NULL);
    assert_int_equal(chosen, 0);
    store[0].reserved = 40 * GIB; /* 60 free - 40 promised - 1 kept = 19 */
    must_say("datastore 'small' on hostb has 19.00 GiB to give (60.00 GiB free, 40.00 GiB promised, 1.00 GiB "
             "kept) and web1's "
             "disks need 20.00 GiB");
    assert_int_equal(chosen, -1);
    req.datastore = NULL;
    host.memory_promised = 6 * GIB + GIB / 2;
    must_say("hostb has 1.44 GiB of RAM to give (8.00 GiB available, 6.50 GiB promised to other VMs, 64.00 "
             "MiB kept) and web1 "
             "needs 2.00 GiB");
}

static void a_datastore_that_takes_nothing_from_others_is_not_chosen(void **state)
{
    (void)state;
    store[1].closed = true;
    must_say(NULL);
    assert_int_equal(chosen, 0);
    req.datastore = "large";
    must_say("datastore 'large' on hostb takes no disks from other hosts (incoming = no)");
    assert_int_equal(chosen, -1);
}

static void a_datastore_that_is_not_what_it_was_is_not_chosen(void **state)
{
    (void)state;
    store[1].wrong = "datastore 'large' of hostb: is it mounted?";
    must_say(NULL);
    assert_int_equal(chosen, 0);
    req.datastore = "large";
    must_say("datastore 'large' of hostb: is it mounted?");
    assert_int_equal(chosen, -1);
}

static void each_thing_that_lacks_is_said(void **state)
{
    (void)state;
    host.bridge[0] = false;
    must_say("hostb has no bridge 'br0' (for NIC 'lan')");
    host.bridge[0] = true;
    host.kernel = false;
    must_say("hostb has no kernel /boot/k that may be used");
    host.kernel = true;
    vm.firmware = (char *)"/f.fd";
    must_say("hostb has no firmware /f.fd that may be used");
    host.firmware = true;
    host.firmware_bytes = 4 << 20;
    must_say(NULL);
    vm.cdroms = 1;
    vm.cdrom[0] = (struct vm_cdrom){.name = "seed", .path = (char *)"/srv/s.iso"};
    must_say("hostb has no image /srv/s.iso that may be used (for CD-ROM 'seed')");
    host.cdrom_private[0] = true;
    must_say("image /srv/s.iso (for CD-ROM 'seed') is on hostb, and not everybody may read it, so a VM of "
             "another host may not use it: chmod o+r there");
    host.cdrom_private[0] = false;
    host.cdrom[0] = true;
    must_say(NULL);
    host.cdrom_bytes[0] = 1 << 20; /* an older agent asks */
    must_say(NULL);
    req.cdrom_bytes[0] = 2 << 20; /* seen: the guest went on with another disc */
    must_say("image /srv/s.iso (for CD-ROM 'seed') has 2097152 bytes on hosta and 1048576 on hostb, so it is "
             "another disc: put the same file there");
    host.cdrom_bytes[0] = 2 << 20;
    must_say(NULL);
    vm.devices.vnc = (char *)"unix";
    must_say(NULL);
    vm.devices.vnc = (char *)"7";
    vm.devices.vnc_password = (char *)"pw";
    must_say("hostb gives VMs no address for VNC ([host] vnc_address): use vnc = unix");
    host.vnc_address = true;
    must_say(NULL);
    host.twin[0] = "web2";
    snprintf(vm.nic[0].mac, sizeof vm.nic[0].mac, "52:54:00:00:00:01");
    must_say("NIC 'lan' of web1 has the MAC address 52:54:00:00:00:01, which VM web2 has on bridge 'br0' of "
             "hostb, too: "
             "one of the two needs another (without mac in its definition, one is made of the VM's name)");
    host.twin[0] = NULL;
    host.vnc_busy = true;
    must_say("display 7 is in use on hostb (somebody listens at port 5907), and web1 has it on each host "
             "(vnc = 7): "
             "give it another number, or vnc = unix");
    host.present = true; /* and listens there itself */
    must_say("a VM 'web1' is on hostb already");
    host.present = false;
    host.vnc_busy = false;
    host.machine = false;
    must_say("QEMU 7.2.22 on hostb has no machine type 'pc-q35-7.2': power web1 off and start it with one "
             "that both "
             "hosts know");
    host.machine_like = "pc-q35-7.1";
    must_say("QEMU 7.2.22 on hostb has no machine type 'pc-q35-7.2': power web1 off and start it with one "
             "that both "
             "hosts know, such as pc-q35-7.1");
    req.start = true;
    must_say("QEMU 7.2.22 on hostb has no machine type 'pc-q35-7.2'; it has, for one, pc-q35-7.1");
    req.start = false;
    host.machine = true;
    req.qemu_version = "8.0.0";
    must_say("QEMU 7.2.22 on hostb is older than 8.0.0 on hosta; with --allow-older it is tried when machine "
             "type and CPU allow");
    req.qemu_version = "7.2.99"; /* the same series: the stream is the same */
    must_say(NULL);
    host.qemu_version = NULL;
    must_say("hostb has no program 'qemu-system-x86_64' (in Debian: package qemu-system-x86)");
    host.qemu_version = "7.2.22";
    host.kvm = KVM_NONE;
    host.kvm_why = "no way";
    must_say("web1 needs KVM and hostb has none: no way");
    host.kvm = KVM_PART; /* the source's is no better, or it is not known to be */
    must_say(NULL);
    req.kvm = KVM_WHOLE;
    must_say("KVM on hostb can do less than on hosta, and web1 might not run there: no way");
    host.kvm = KVM_WHOLE;
    host.no_tracking = "the memory of VMs cannot be tracked on this kernel (6.1.0): no";
    must_say("hostb: the memory of VMs cannot be tracked on this kernel (6.1.0): no");
    req.start = true; /* it may run all the same */
    must_say(NULL);
    req.start = false;
    host.no_tracking = NULL;
    req.datastore = "tape";
    must_say("hostb has no datastore 'tape'");
    req.datastore = NULL;
    req.used[0] = 500 * GIB;
    must_say("no datastore of hostb has room for the 500.00 GiB of web1's disks");
}

static void the_cpu_has_to_have_what_the_guest_has_seen(void **state)
{
    (void)state;
    req.cpu_flags = "fpu sse avx512f avx";
    must_say("the CPU of hostb lacks what web1 has seen: avx512f; use a named CPU model");
    vm.cpu = (char *)"Skylake-Server"; /* QEMU itself judges that */
    must_say(NULL);
    vm.cpu = (char *)"host";
    vm.accel = (char *)"tcg";
    must_say(NULL);
}

static void features_seen_may_not_go_away(void **state)
{
    (void)state;
    json_t *much = json_pack("[s, s, s]", "avx", "avx2", "sha-ni"),
           *less = json_pack("[s, s]", "avx", "rdseed");

    host.cpu = less;
    req.cpu = much;
    vm.cpu = (char *)"Skylake-Server";
    must_say("web1 has seen CPU features that QEMU 7.2.22 on hostb cannot give to 'Skylake-Server': avx2 "
             "sha-ni; give it a "
             "CPU model that both hosts can run");
    vm.cpu =
        (char *)"host"; /* said once, by what QEMU says: the guest may not have seen all of the processor */
    req.cpu_flags = "fpu sse avx512f avx";
    req.cpu = less;
    must_say(NULL);
    /* Without KVM a newer QEMU is trusted to have what an older one had. */
    vm.accel = (char *)"tcg";
    vm.cpu = (char *)"max";
    req.cpu = much;
    must_say(NULL);
    req.qemu_version = "10.0.13";
    req.allow_older = true;
    must_say(
        "web1 has seen CPU features that QEMU 7.2.22 on hostb cannot give to 'max': avx2 sha-ni; give it a "
        "CPU model that both hosts can run");
    req.cpu = less;
    must_say(NULL);
    host.machine = false;
    must_say("QEMU 7.2.22 on hostb has no machine type 'pc-q35-7.2': power web1 off and start it with one "
             "that both "
             "hosts know");
    host.machine = true;
    host.cpu = NULL;
    host.cpu_why = "QEMU does not know the CPU 'max' with tcg";
    must_say("the CPU 'max' of web1: QEMU does not know the CPU 'max' with tcg (on hostb)");
    req.cpu = NULL;
    must_say("what CPU features web1 has seen is not known (was QEMU on hosta replaced since it was "
             "started?): it cannot go to an older QEMU");
    req.qemu_version = NULL;
    host.qemu_version = NULL;
    host.qemu_why = "it does not answer by QMP";
    must_say("QEMU on hostb cannot be asked what it knows: it does not answer by QMP");
    json_decref(much);
    json_decref(less);
}

/* It moved to a newer QEMU or another processor, where «host» is more, and is to go back. */
static void features_that_nobody_knows_to_be_seen_are_not_said_to_be(void **state)
{
    (void)state;
    json_t *much = json_pack("[s, s, s]", "avx", "avx2", "sha-ni"), *less = json_pack("[s]", "avx");

    host.cpu = less;
    req.cpu = much;
    req.qemu_version = "10.0.13";
    req.allow_older = true;
    req.booted = false;
    must_say(
        "QEMU 10.0.13 on hosta gives CPU features to 'host' that QEMU 7.2.22 on hostb does not: avx2 sha-ni; "
        "web1 was not started there, and whether it has seen them is not known; give it a CPU model that "
        "both "
        "hosts can run");
    req.booted = true;
    must_say(
        "web1 has seen CPU features that QEMU 7.2.22 on hostb cannot give to 'host': avx2 sha-ni; give it a "
        "CPU model that both hosts can run");
    /* A long list is cut, and what is cut is counted. */
    json_t *many = json_array();
    for (int i = 0; i < 100; i++)
        json_array_append_new(many, json_sprintf("feature%02d", i));
    req.cpu = many;
    json_array_clear(reasons);
    assert_int_equal(admit(&host, &req, reasons, &chosen), 1);
    const char *text = json_string_value(json_array_get(reasons, 0));
    if (!strstr(text, ": feature00 feature01 ") ||
        !strstr(text, " feature14 and 85 more; give it a CPU model"))
        fail_msg("%s", text);
    json_decref(many);
    json_decref(much);
    json_decref(less);
}

/* Under KVM nothing is passed over in silence: who should know and does not is a reason. */
static void features_that_cannot_be_asked_for_are_a_reason(void **state)
{
    (void)state;
    json_t *list = json_pack("[s]", "avx");

    vm.cpu = (char *)"Skylake-Server";
    must_say(NULL); /* another QEMU is on the source's disk than the one that runs */
    req.cpu_why = "qemu-system-x86_64 did not end within 10 s and was killed";
    must_say(
        "what CPU features web1 has seen cannot be found out on hosta: qemu-system-x86_64 did not end within "
        "10 s and was killed");
    vm.accel = (char *)"tcg"; /* a newer QEMU, or the same, has what this one has */
    must_say(NULL);
    req.qemu_version = "10.0.13";
    req.allow_older = true;
    must_say(
        "what CPU features web1 has seen cannot be found out on hosta: qemu-system-x86_64 did not end within "
        "10 s and was killed");
    req.qemu_version = "7.2.1";
    vm.accel = (char *)"kvm";
    req.cpu_why = NULL;
    req.cpu = list;
    host.cpu = NULL;
    host.cpu_why = "qemu-system-x86_64: it does not answer by QMP";
    must_say("the CPU 'Skylake-Server' of web1: qemu-system-x86_64: it does not answer by QMP (on hostb)");
    host.cpu_why = NULL;
    must_say("the CPU 'Skylake-Server' of web1: what it has with QEMU is not known (on hostb)");
    host.kvm = KVM_NONE; /* said once */
    host.kvm_why = "no way";
    must_say("web1 needs KVM and hostb has none: no way");
    host.kvm = KVM_WHOLE;
    host.qemu_version = NULL;
    must_say("hostb has no program 'qemu-system-x86_64' (in Debian: package qemu-system-x86)");
    json_decref(list);
}

static void limits_and_records_are_kept(void **state)
{
    (void)state;
    host.storage_migrations = 2;
    must_say("hostb takes part in 2 migrations with disks, which is its limit");
    req.storage = false;
    req.shared[0] = true;
    must_say(NULL);
    req.storage = true;
    host.storage_migrations = 0;
    host.migrations = 4;
    must_say("hostb takes part in 4 migrations, which is its limit");
    host.migrations = 0;
    host.present = true;
    must_say("a VM 'web1' is on hostb already");
    host.present = false;
    host.known_epoch = 2; /* an old record: hosta's epoch is higher */
    must_say(NULL);
    host.known_epoch = host.owned_epoch = 2; /* not while it says «mine», whatever its epoch */
    must_say(
        "hostb has a VM 'web1' of its own (epoch 2), so one of the two needs another name. The one of "
        "hostb gets it there, when it is stopped: `xmigrate dump web1`, then `xmigrate undefine web1` (its "
        "disks stay), and define of what was dumped, with another name");
    host.present = true;
    must_say(
        "hostb has a VM 'web1' of its own (epoch 2), so one of the two needs another name. The one of "
        "hostb gets it there, when it is stopped: `xmigrate dump web1`, then `xmigrate undefine web1` (its "
        "disks stay), and define of what was dumped, with another name");
    host.present = false;
    host.owned_epoch = 0;
    host.known_epoch = 4; /* it would take the hand-off of epoch 4 for one that is past */
    must_say("hostb remembers a VM 'web1' of a later epoch (4, this one's is 3), so that is another VM: "
             "`xmigrate undefine "
             "web1` there forgets it");
}

static void links_have_to_be_up_and_fast_enough_and_pair(void **state)
{
    (void)state;
    here[0].up = false;
    must_say("link 'l1' of hostb is down: no interface that is up has its address 10.1.0.2");
    here[0].up = true;
    here[1].speed = 1250000;
    must_say("link 'l2' of hostb runs at 1.25 MB/s, less than the minimum of 31.25 MB/s");
    here[1].speed = 0; /* unknown is fine */
    must_say(NULL);
    there[0].address = "fd00::1";
    must_say("no link of hostb pairs with one of hosta: their addresses are of different families");
    host.links = 0; /* then the control connection is the link */
    must_say(NULL);
}

static void disks_stay_only_where_both_reach_them(void **state)
{
    (void)state;
    req.storage = false;
    must_say("hostb does not reach disk 'root' (/dev/loop0): only files in a datastore that both hosts have, "
             "under one name, can "
             "stay where they are; use --with-storage");
}

static void all_reasons_come_at_once(void **state)
{
    (void)state;
    host.bridge[0] = host.kernel = host.machine = false;
    host.memory_free = 0;
    assert_int_equal(admit(&host, &req, reasons, &chosen), 4);
}

/* Guests of QEMU 10.0.13 set up rings that QEMU 11.1 does not take. */
static void large_rings_go_where_they_are_taken(void **state)
{
    (void)state;
    req.qemu_version = "10.0.13";
    host.qemu_version = "11.0.2";
    req.large_rings = true;
    must_say(NULL);
    host.qemu_version = "11.1.3";
    must_say("QEMU 10.0.13 on hosta tells guests larger rings than its devices have, and QEMU 11.1.3 "
             "on hostb "
             "takes no guest that has set them up: it can move when it has been powered off on hosta and "
             "started by another QEMU there, such as 11.1.3");
    req.large_rings = false;
    must_say(NULL);
}

/* Debian 12's OVMF.fd has 2 MiB and 13's 4 MiB: check said yes, and after disks and RAM the switch failed
 * with QEMU's «Size mismatch: pc.bios». */
static void firmware_of_another_size_is_refused_by_name(void **state)
{
    (void)state;
    vm.firmware = (char *)"/usr/share/ovmf/OVMF.fd";
    must_say("hostb has no firmware /usr/share/ovmf/OVMF.fd that may be used");
    host.firmware = true;
    req.firmware_bytes = 2 << 20;
    host.firmware_bytes = 4 << 20;
    must_say(
        "firmware /usr/share/ovmf/OVMF.fd has 2.00 MiB in web1 on hosta and 4.00 MiB on hostb, and QEMU "
        "moves no guest to one of another size: put the same file at a path of its own on both hosts, name "
        "that in the specification, power web1 off and start it again");
    req.firmware_bytes = 0; /* an older agent asks */
    must_say(NULL);
    req.firmware_bytes = 4 << 20;
    must_say(NULL);
    req.start = true;
    req.firmware_bytes = 0;
    must_say(NULL);
    vm.firmware = (char *)"/usr/share/OVMF/OVMF_CODE_4M.fd"; /* QEMU would not start */
    host.firmware_bytes = 3653632;
    must_say(
        "firmware /usr/share/OVMF/OVMF_CODE_4M.fd on hostb has 3653632 bytes, and QEMU takes a multiple of "
        "64 KiB: a file with code and variables in one (Debian's OVMF.fd, not OVMF_CODE)");
    vm.nvram = (char *)"/usr/share/OVMF/OVMF_VARS_4M.fd"; /* flash takes it */
    must_say(NULL);
    vm.nvram = NULL;
    vm.qemu = (char *)"qemu-system-aarch64"; /* other machines pad it */
    must_say(NULL);
}

/* QEMU was started all the same, and its last words were what the user read. */
static void what_qemu_would_not_start_with_is_refused_by_name(void **state)
{
    (void)state;
    req = (struct admission_request){.spec = &vm, .start = true, .source = "hostb"};
    must_say(NULL);
    host.kvm = KVM_PART;
    host.kvm_why = "no SSE";
    must_say(
        "web1 needs KVM and that of hostb runs no ordinary guest: no SSE; without accel it runs by software "
        "emulation, which is slow");
    host.partial_kvm = true;
    must_say(NULL);
    vm.accel = (char *)"tcg";
    must_say("the CPU 'host' is the processor's own, which only KVM can give to web1, and its accel is tcg: "
             "leave cpu "
             "out, or name a model");
    vm.cpu = (char *)"max,+foo";
    host.cpu_why = "QEMU knows no flag 'foo' of the CPU 'max'";
    must_say(NULL); /* it may be that it could not be asked: then QEMU says it itself */
    host.cpu_unknown = true;
    must_say("the CPU 'max,+foo' of web1: QEMU knows no flag 'foo' of the CPU 'max' (on hostb); "
             "`qemu-system-x86_64 -cpu help` lists models and flags");
    host.cpu_unknown = false;
    host.no_pci = true;
    must_say(
        "the machine 'pc-q35-7.2' of QEMU 7.2.22 on hostb has no PCI bus, which the disks, network cards and "
        "other devices of web1 need: use q35 or pc");
    vm.disks = vm.nics = 0;
    must_say(NULL);
    vm.devices.rng = true;
    json_array_clear(reasons);
    assert_int_equal(admit(&host, &req, reasons, &chosen), 1);
    host.machine_why = "it says no";
    must_say("QEMU 7.2.22 on hostb cannot make the machine 'pc-q35-7.2': it says no");
}

static void another_protocol_is_the_only_reason(void **state)
{
    (void)state;
    host.bridge[0] = false;
    req.protocol = AGENT_PROTOCOL - 1;
    must_say("hostb speaks version 2 of the agents' protocol and hosta version 1");
}

static void a_start_is_not_asked_for_links_and_space(void **state)
{
    (void)state;
    req = (struct admission_request){.spec = &vm, .start = true, .source = "hostb"};
    here[0].up = false;
    host.datastores = 0;
    host.migrations = 9;
    host.owned_epoch = 5;
    must_say(NULL);
}

static void what_cannot_move_is_named(void **state)
{
    (void)state;
    extra[0] = (char *)"-device";
    extra[1] = (char *)"vfio-pci,host=01:00.0";
    vm.extra = extra;
    assert_int_equal(admit_extra(&vm, reasons), 1);
    assert_string_equal(
        json_string_value(json_array_get(reasons, 0)),
        "'vfio-pci,host=01:00.0' attaches something of its host to web1 that cannot move (vfio)");
    /* A property of our own disks' device attaches nothing. */
    json_array_clear(reasons);
    extra[0] = (char *)"-global";
    extra[1] = (char *)"vhost-user-blk-pci.queue-size=64";
    assert_int_equal(admit_extra(&vm, reasons), 0);
    assert_int_equal(admit_extra(&vm, reasons), 0);
    extra[0] = (char *)"-device";
    assert_int_equal(admit_extra(&vm, reasons), 1);
    extra[1] = (char *)"virtio-rng-pci";
    assert_int_equal(admit_extra(&vm, reasons), 0);
}

/* It is served all the same, which a user may want to know before. */
static void small_blocks_on_large_ones_are_told(void **state)
{
    struct vm_disk d = {.name = "data", .block_size = 512};

    (void)state;
    admit_note_block(&d, "web1", "datastore 'x' of hostb", 512, reasons);
    d.block_size = 4096;
    admit_note_block(&d, "web1", "datastore 'x' of hostb", 512, reasons);
    admit_note_block(&d, "web1", "datastore 'x' of hostb", 4096, reasons);
    assert_int_equal(json_array_size(reasons), 0);
    d.block_size = 512;
    admit_note_block(&d, "web1", "datastore 'x' of hostb", 4096, reasons);
    assert_string_equal(
        json_string_value(json_array_get(reasons, 0)),
        "disk 'data' of web1 has blocks of 512 bytes and datastore 'x' of hostb has 4096: it will "
        "go through the page cache there, which is slower");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_good_one_goes_to_the_datastore_with_most_room),
        TEST(one_under_its_target_goes_before_one_with_more_room),
        TEST(one_of_the_same_name_goes_before_one_with_more_room),
        TEST(what_is_promised_to_others_is_not_given_twice),
        TEST(a_datastore_that_takes_nothing_from_others_is_not_chosen),
        TEST(a_datastore_that_is_not_what_it_was_is_not_chosen),
        TEST(each_thing_that_lacks_is_said),
        TEST(the_cpu_has_to_have_what_the_guest_has_seen),
        TEST(features_seen_may_not_go_away),
        TEST(features_that_nobody_knows_to_be_seen_are_not_said_to_be),
        TEST(features_that_cannot_be_asked_for_are_a_reason),
        TEST(limits_and_records_are_kept),
        TEST(links_have_to_be_up_and_fast_enough_and_pair),
        TEST(disks_stay_only_where_both_reach_them),
        TEST(all_reasons_come_at_once),
        TEST(firmware_of_another_size_is_refused_by_name),
        TEST(what_qemu_would_not_start_with_is_refused_by_name),
        TEST(another_protocol_is_the_only_reason),
        TEST(large_rings_go_where_they_are_taken),
        TEST(a_start_is_not_asked_for_links_and_space),
        TEST(what_cannot_move_is_named),
        TEST(small_blocks_on_large_ones_are_told),
    };
    return cmocka_run_group_tests_name("host: admission", tests, NULL, NULL);
}
