/* SPDX-License-Identifier: MIT */
/* VM specifications: what is read, what is made up, and the sentence for each thing that can be wrong. */
#include "vm/format.h"
#include "vm/spec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static int write_ini(const char *text)
{
    FILE *f = fopen(path, "we");
    fputs(text, f);
    return fclose(f);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/xmt-vm-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static const char whole[] =
    "[vm]\nname = web1\nmemory = 512M\nvcpus = 2\nkernel = /boot/k\nappend = console=ttyS0 a=b\n"
    "extra = -device\nextra = virtio-rng-pci\nautostart = yes\n"
    "[disk root]\npath = /dev/loop0\n"
    "[disk data]\ndatastore = ds1\nfile = web1-data.raw\nsize = 1G\nqueues = 1\n"
    "[nic lan]\nbridge = br0\nmac = 52:54:00:aa:bb:cc\n"
    "[nic two]\n";
static const char devices[] =
    "[vm]\nname = web1\nmemory = 512M\nfirmware = /f.fd\nnvram = /v.fd\nrng = yes\nballoon = "
    "yes\nguest_agent = yes\ntablet = yes\nclock = "
    "localtime\n"
    "video = virtio\nvnc = 7\nvnc_password = s3cret\nuuid = 123e4567-e89b-12d3-a456-426614174000\n"
    "smbios_manufacturer = Example Ltd.\nsmbios_product = web\nsmbios_version = 1\nsmbios_serial = "
    "ds=nocloud;s=http://10.0.0.1/\nsmbios_sku = x\nsmbios_family = y\n"
    "[disk root]\npath = /dev/loop0\nboot = 2\n[disk seed]\npath = /dev/loop1\nread_only = yes\nblock_size = "
    "4096\nformat = "
    "raw\n"
    "[cdrom install]\npath = /srv/images/debian-13.iso\nboot = 1\n[cdrom tools]\npath = /srv/images/t.iso\n";

static void an_ini_becomes_a_spec_with_defaults(void **state)
{
    struct vm_spec s = {0};
    struct xm_error e = {0};
    (void)state;

    write_ini(whole);
    assert_int_equal(vm_spec_load(&s, path, &e), 0);
    assert_string_equal(s.name, "web1");
    assert_int_equal(s.memory, 512ull << 20);
    assert_string_equal(s.qemu, "qemu-system-x86_64");
    assert_string_equal(s.machine, "q35");
    assert_null(s.accel); /* resolved at the start */
    assert_string_equal(s.append, "console=ttyS0 a=b");
    assert_string_equal(s.extra[1], "virtio-rng-pci");
    assert_null(s.extra[2]);
    assert_int_equal(s.disks, 2);
    assert_int_equal(s.disk[0].queues, 2); /* one per vCPU, at most 4 */
    assert_int_equal(s.disk[1].queues, 1);
    assert_string_equal(s.disk[1].datastore, "ds1");
    assert_string_equal(s.disk[1].path, "web1-data.raw");
    assert_string_equal(s.nic[0].mac, "52:54:00:aa:bb:cc");
    assert_memory_equal(s.nic[1].mac, "52:54:00:", 9);
    assert_int_not_equal(s.nic[0].tap[0], 0);
    assert_string_not_equal(s.nic[0].tap, s.nic[1].tap);
    vm_spec_free(&s);
}

static void all_devices_have_a_key(void **state)
{
    struct vm_spec s = {0};
    struct xm_error e = {0};
    (void)state;

    write_ini(devices);
    if (vm_spec_load(&s, path, &e))
        fail_msg("%s", e.text);
    assert_true(s.devices.rng && s.devices.balloon && s.devices.guest_agent && s.devices.tablet);
    assert_string_equal(s.nvram, "/v.fd");
    assert_string_equal(s.devices.clock, "localtime");
    assert_string_equal(s.devices.vnc, "7");
    assert_string_equal(s.devices.smbios_serial, "ds=nocloud;s=http://10.0.0.1/");
    assert_false(s.disk[0].read_only);
    assert_true(s.disk[1].read_only);
    assert_int_equal(s.disk[1].block_size, 4096);
    assert_true(!s.disk[0].raw && s.disk[1].raw);
    assert_int_equal(s.disk[0].boot, 2);
    assert_int_equal(s.cdroms, 2);
    assert_string_equal(s.cdrom[0].path, "/srv/images/debian-13.iso");
    assert_int_equal(s.cdrom[0].boot, 1);
    s.disk[0].size = s.disk[1].size = 4096;
    json_t *a = vm_spec_to_json(&s);
    vm_spec_free(&s);
    if (vm_spec_from_json(&s, a, &e))
        fail_msg("%s", e.text);
    json_t *b = vm_spec_to_json(&s);
    assert_true(json_equal(a, b));
    assert_int_equal(json_object_size(json_object_get(a, "devices")), 15);
    assert_true(json_is_true(json_object_get(json_array_get(json_object_get(a, "disks"), 1), "read_only")));
    json_decref(a);
    json_decref(b);
    vm_spec_free(&s);
}

static void json_there_and_back_is_the_same(void **state)
{
    struct vm_spec s = {0}, t = {0};
    struct xm_error e = {0};
    (void)state;

    write_ini(whole);
    assert_int_equal(vm_spec_load(&s, path, &e), 0);
    s.disk[0].size = 4096; /* as the agent resolves them */
    free(s.disk[1].path);
    s.disk[1].path = strdup("/ds1/web1-data.raw");
    s.accel = strdup("tcg");
    json_t *a = vm_spec_to_json(&s);
    assert_non_null(a);
    if (vm_spec_from_json(&t, a, &e))
        fail_msg("%s", e.text);
    json_t *b = vm_spec_to_json(&t);
    assert_true(json_equal(a, b));
    /* A peer of an earlier version takes it as long as nothing new is in it. */
    assert_null(json_object_get(a, "devices"));
    assert_null(json_object_get(a, "cdroms"));
    assert_int_equal(json_object_size(json_array_get(json_object_get(a, "disks"), 0)), 5);
    json_decref(a);
    json_decref(b);
    vm_spec_free(&s);
    vm_spec_free(&t);
}

/* What `xmigrate dump` prints is what `define` reads: nothing is lost on the way. */
static void what_is_dumped_is_read_again(void **state)
{
    static const char more[] =
        "[vm]\nname = b.1\nmemory = 3G\nvcpus = 3\nmachine = pc\naccel = tcg\ncpu = max,-avx\nkernel = /k\n"
        "initrd = /i\nappend = a;b # c=d\nfirmware = /f\nqemu = /opt/q\nrng = yes\nballoon = "
        "yes\nguest_agent = yes\n"
        "tablet = yes\nclock = localtime\nvideo = virtio\nvnc = 7\nvnc_password = secret\n"
        "uuid = 6ba7b810-9dad-11d1-80b4-00c04fd430c8\nsmbios_manufacturer = m\nsmbios_product = p q\n"
        "smbios_version = v\nsmbios_serial = ds=nocloud;s=http://x/\nsmbios_sku = s\nsmbios_family = f\n"
        "[disk a]\npath = /dev/x\nsize = 1536\nformat = raw\nread_only = yes\nboot = 2\nblock_size = 512\n"
        "[cdrom c]\npath = /c.iso\nboot = 1\n[cdrom d]\npath = /d.iso\n[nic n]\ntap = mine0\n";
    const char *const texts[] = {whole, more};
    struct xm_error e = {0};
    (void)state;

    for (size_t i = 0; i < 2; i++) {
        struct vm_spec s = {0}, t = {0};
        write_ini(texts[i]);
        if (vm_spec_load(&s, path, &e))
            fail_msg("%s", e.text);
        char *ini = vm_spec_to_ini(&s, &e);
        assert_non_null(ini);
        assert_int_equal(strstr(ini, "tap = ") != NULL, i); /* one that was made up is made up again */
        write_ini(ini);
        if (vm_spec_load(&t, path, &e))
            fail_msg("%s in:\n%s", e.text, ini);
        json_t *a = vm_spec_to_json(&s), *b = vm_spec_to_json(&t);
        assert_int_equal(s.disk[0].raw, t.disk[0].raw);
        if (!json_equal(a, b))
            fail_msg("%s\n%s", json_dumps(a, 0), json_dumps(b, 0));
        json_decref(a);
        json_decref(b);
        free(ini);
        vm_spec_free(&s);
        vm_spec_free(&t);
    }
}

/* A peer's JSON may hold what an INI cannot: never written as something else. */
static void what_an_ini_cannot_hold_is_not_dumped(void **state)
{
    static const char *const bad[] = {"a\nextra = -S", "a ; b", " a", "a ", ";a", "", "a\x01"};
    struct vm_spec s = {0};
    struct xm_error e = {0};
    (void)state;

    write_ini(whole);
    assert_int_equal(vm_spec_load(&s, path, &e), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        free(s.append);
        s.append = strdup(bad[i]);
        assert_null(vm_spec_to_ini(&s, &e));
        assert_non_null(strstr(e.text, "append: its value cannot be written in an INI"));
    }
    vm_spec_free(&s);
}

#define VM "[vm]\nname = a\nmemory = 64M\n"
static const struct {
    const char *ini, *sentence; /* what stands behind the path */
} wrong[] = {
    {"[vm]\nmemory = 64M\nname = list\n", ":3: 'list' cannot name a VM: it is a command of xmigrate"},
    {"[vm]\nmemory = 64M\nname = a/b\n",
     ":3: 'a/b' is no legal VM name: letters, digits, '.', '_' and '-', the first a letter or digit"},
    {"[vm]\nname = a\nmemory = 1000000\n",
     ":3: memory has to be a multiple of 2 MiB, from 2 MiB to 64 TiB, and is 1000000 bytes"},
    {"[vm]\nname = a\nmemory = 64M\ncolour = red\n", ":4: [vm] has no key \"colour\""},
    {"[vm]\nname = a\n", ":1: [vm] lacks the key \"memory\""},
    {VM "qemu = bin/q\n", ":4: qemu has to be a program's name or its whole path, and is 'bin/q'"},
    {VM "machine = q35,memory-backend=x\n", ":4: machine 'q35,memory-backend=x' names a memory-backend of "
                                            "its own; xmigrate makes the guest's memory itself"},
    {VM "accel = xen\n", ":4: accel has to be kvm or tcg, and is 'xen'"},
    {VM "append = quiet\n", ":4: append needs a kernel beside it"},
    {VM "kernel = vmlinuz\n", ":4: kernel: the path 'vmlinuz' has to begin with /"},
    {VM "[disk A]\npath = /x\n", ":4: [disk A]: 'A' is no legal name of a disk: 1 to 20 of a-z, 0-9 and '-'"},
    {VM "[disk a]\nsize = 1M\n", ":4: a disk needs 'path', or 'datastore' and 'file'"},
    {VM "[disk a]\ndatastore = d\n", ":4: a disk needs 'path', or 'datastore' and 'file'"},
    {VM "[disk a]\npath = /x\ndatastore = d\n", ":6: a disk has either 'path' or 'datastore' and 'file'"},
    {VM "[disk a]\npath = x\n", ":5: the path 'x' has to begin with /"},
    {VM "[disk a]\ndatastore = d\nfile = ../x\n",
     ":6: '../x' is no legal file name in a datastore: no '/', and no '.' in front"},
    {VM "[disk a]\npath = /x\nsize = 1000\n", ":6: the size 1000 is no multiple of 512 bytes"},
    {VM "[disk a]\npath = /x\nblock_size = 1024\n", ":6: block_size has to be 512 or 4096, and is 1024"},
    {VM "[disk a]\npath = /x\nsize = 512\nblock_size = 4096\n",
     ":6: the size has to be a multiple of block_size, 4096"},
    {VM "[disk a]\npath = /x\n[disk b]\npath = /x\n", ":6: '/x' is disk 'a' already"},
    {VM "[disk a]\npath = /x\n[disk a]\npath = /y\n", ":6: [disk a]: the VM has another disk 'a'"},
    {VM "machine = q35 -S\n",
     ":4: machine 'q35 -S' may have letters, digits and /._+:=,- alone, and none of '-' in front"},
    {VM "cpu = -S\n", ":4: cpu '-S' may have letters, digits and /._+:=,- alone, and none of '-' in front"},
    {VM "kernel = /a,/b\n", ":4: kernel: the path '/a,/b' may have letters, digits and /._+@~:=- alone"},
    {VM "nvram = /v.fd\n", ":4: nvram needs a firmware beside it"},
    {VM "firmware = /f\nnvram = v,x\n", ":5: nvram: the path 'v,x' has to begin with /"},
    {VM "clock = here\n", ":4: clock has to be utc or localtime, and is 'here'"},
    {VM "video = cirrus\n", ":4: video has to be std or virtio, and is 'cirrus'"},
    {VM "vnc = 0.0.0.0:1\n", ":4: vnc has to be unix or a display's number, 0 to 999, and is '0.0.0.0:1'"},
    {VM "vnc = 1\n", ":4: vnc = 1 needs a vnc_password beside it; vnc = unix does not"},
    {VM "vnc = 1\nvnc_password = too-long!\n",
     ":5: vnc_password has 1 to 8 letters, digits and ._+@~:=!?*/- (VNC has no longer ones)"},
    {VM "vnc_password = a\n", ":4: vnc_password needs vnc = NUMBER beside it"},
    {VM "uuid = 123\n", ":4: '123' is no UUID, like 123e4567-e89b-12d3-a456-426614174000"},
    {VM "smbios_serial = a,file=/etc/shadow\n",
     ":4: smbios_serial has at most 256 letters, digits, blanks and ._+@~:;=!?*/#&%()-: no comma"},
    {VM "[cdrom a]\npath = x.iso\n",
     ":5: the path 'x.iso' has to begin with / and to have letters, digits and /._+@~:=- alone"},
    {VM "[cdrom a]\npath = /a\n[cdrom a]\npath = /b\n", ":6: [cdrom a]: the VM has another CD-ROM 'a'"},
    {VM "[cdrom a]\npath = /a\nboot = 1\n[disk b]\npath = /b\nboot = 1\n",
     ":6: boot = 1 is another one's, or more than 99"},
    {VM "[disk a]\npath = /a\nformat = qcow2\n",
     ":6: format has to be raw, and is 'qcow2': convert the image by qemu-img"},
    {VM "[nic a]\nbridge = a/b\n", ":5: 'a/b' is no legal name of a bridge"},
    {VM "[nic a]\nmac = 01:00:00:00:00:00\n",
     ":5: '01:00:00:00:00:00' is no MAC address of one station, like 52:54:00:12:34:56"},
    {VM "[nic a]\nmac = 52:54:00:00:00:01\n[nic b]\nmac = 52:54:00:00:00:01\n",
     ":7: NIC 'a' has this MAC address already"},
};

static void what_is_wrong_is_said_with_file_and_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct vm_spec s = {0};
        struct xm_error e = {0};
        char want[600];
        write_ini(wrong[i].ini);
        snprintf(want, sizeof want, "%s%s", path, wrong[i].sentence);
        assert_int_equal(vm_spec_load(&s, path, &e), -EINVAL);
        assert_string_equal(e.text, want);
        vm_spec_free(&s);
    }
}

static void a_missing_file_is_named(void **state)
{
    struct vm_spec s = {0};
    struct xm_error e = {0};
    (void)state;

    assert_int_equal(vm_spec_load(&s, "/nowhere/x.ini", &e), -ENOENT);
    assert_non_null(strstr(e.text, "/nowhere/x.ini"));
    vm_spec_free(&s);
}

static void other_formats_are_known_by_their_magic(void **state)
{
    static const char tail[512] = "conectix";
    unsigned char head[VM_FORMAT_HEAD] = {0};
    (void)state;

    assert_null(vm_foreign_format(head, sizeof head, NULL));
    head[510] = 0x55, head[511] = 0xaa; /* a boot sector is none */
    assert_null(vm_foreign_format(head, sizeof head, head));
    assert_string_equal(vm_foreign_format(head, sizeof head, tail), "a vhd image");
    memcpy(head, "QFI\xfb\0\0\0\3", 8);
    assert_string_equal(vm_foreign_format(head, sizeof head, NULL), "a qcow2 image");
    assert_null(vm_foreign_format(head, 3, NULL));
    memcpy(head, "\0\0\0\0", 4);
    memcpy(head + 64, "\x7f\x10\xda\xbe", 4);
    assert_string_equal(vm_foreign_format(head, sizeof head, NULL), "a vdi image");
    assert_null(vm_foreign_format(head, 67, NULL));
    memset(head, 0, sizeof head);
    memcpy(head, "LUKS\xba\xbe", 6);
    assert_string_equal(vm_foreign_format(head, sizeof head, NULL), "encrypted with LUKS");
}

static void what_is_written_tells_a_disks_block(void **state)
{
    unsigned char head[VM_BLOCK_HEAD] = {0};
    (void)state;

    assert_int_equal(vm_written_block(head, sizeof head), 0);
    head[446 + 4] = 0xee, head[510] = 0x55, head[511] = 0xaa; /* a protective MBR goes before each GPT */
    assert_int_equal(vm_written_block(head, sizeof head), 512);
    memcpy(head + 4096, "EFI PART", 8);
    assert_int_equal(vm_written_block(head, sizeof head), 4096);
    assert_int_equal(vm_written_block(head, 4100), 512); /* a short one has none */
    memcpy(head + 512, "EFI PART", 8);
    memset(head + 4096, 0, 8);
    assert_int_equal(vm_written_block(head, sizeof head), 512);
}

/* What a peer may send instead of a good value: each must be refused, none may crash. */
static void hostile_json_is_refused(void **state)
{
    static const char good[] =
        "{'name':'a','memory':67108864,'vcpus':1,'qemu':'q','machine':'q35','disks':[{'name':'d',"
        "'path':'/x','size':512,'datastore':'','queues':1}],'nics':[]}";
    static const struct {
        const char *from, *to; /* replaced in the good one */
    } change[] = {
        {"'name':'a'", "'name':7"},
        {"'name':'a'", "'name':'../a'"},
        {"67108864", "-2097152"},
        {"67108864", "1e300"},
        {"'vcpus':1", "'vcpus':4294967297"},
        {"'machine':'q35',", ""},
        {"'nics':[]", "'nics':{}"},
        {"'nics':[]", "'nics':[7]"},
        {"'nics':[]", "'nics':[{'name':'n','bridge':'x/y','mac':'','tap':''}]"},
        {"'nics':[]", "'nics':[],'extra':[1]"},
        {"'nics':[]", "'nics':[],'surprise':1"},
        {"'/x'", "'x'"},
        {"'size':512", "'size':0"},
        {"'size':512", "'size':513"},
        {"'name':'d'", "'name':'d/../../x'"},
        {"'nics':[]", "'nics':[],'devices':{'rng':1}"},
        {"'nics':[]", "'nics':[],'devices':{'vnc':'0.0.0.0:1'}"},
        {"'nics':[]", "'nics':[],'devices':{'vnc':'unix:/x'}"},
        {"'nics':[]", "'nics':[],'devices':{'smbios_sku':'a,file=/x'}"},
        {"'nics':[]", "'nics':[],'devices':{'clock':'utc,x=y'}"},
        {"'nics':[]", "'nics':[],'devices':{'video':'std,rom=/x'}"},
        {"'nics':[]", "'nics':[],'devices':{'extra':'x'}"},
        {"'nics':[]", "'nics':[],'devices':[]"},
        {"'nics':[]", "'nics':[],'cdroms':[{'name':'c','path':'nbd:x'}]"},
        {"'nics':[]", "'nics':[],'cdroms':[{'name':'c','path':'/a,/b'}]"},
        {"'nics':[]", "'nics':[],'cdroms':[7]"},
        {"'nics':[]", "'nics':[],'kernel':'/a','initrd':'/b,/c'"},
        {"'nics':[]", "'nics':[],'kernel':'/a','append':'x\\u0001y'"},
        {"'queues':1", "'queues':1,'read_only':1"},
        {"'queues':1", "'queues':1,'boot':100"},
        {"'queues':1", "'queues':1,'block_size':1024"},
        {"'queues':1", "'queues':1,'block_size':8192"},
        {"'q35'", "'-S'"},
        {"'q35'", "'q35 x'"},
        {"'queues':1", "'queues':100000"},
    };
    (void)state;

    for (size_t i = 0; i <= sizeof change / sizeof change[0]; i++) {
        char text[1000];
        struct vm_spec s = {0};
        struct xm_error e = {0};
        if (i == sizeof change / sizeof change[0]) {
            snprintf(text, sizeof text, "%s", good);
        } else {
            const char *at = strstr(good, change[i].from);
            snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, change[i].to,
                     at + strlen(change[i].from));
        }
        for (char *c = text; *c; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *o = json_loads(text, 0, NULL);
        assert_non_null(o);
        int r = vm_spec_from_json(&s, o, &e);
        if ((r == 0) != (i == sizeof change / sizeof change[0]))
            fail_msg("%s: %d %s", text, r, e.text);
        vm_spec_free(&s);
        json_decref(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_ini_becomes_a_spec_with_defaults, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_devices_have_a_key, set_up, tear_down),
        cmocka_unit_test_setup_teardown(json_there_and_back_is_the_same, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_dumped_is_read_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_an_ini_cannot_hold_is_not_dumped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_said_with_file_and_line, set_up, tear_down),
        cmocka_unit_test(a_missing_file_is_named),
        cmocka_unit_test(other_formats_are_known_by_their_magic),
        cmocka_unit_test(what_is_written_tells_a_disks_block),
        cmocka_unit_test(hostile_json_is_refused),
    };
    return cmocka_run_group_tests_name("host: VM specifications", tests, NULL, NULL);
}
