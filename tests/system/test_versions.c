/* SPDX-License-Identifier: MIT */
/* Stock kernels of Debian 13 and 12, with UEFI (OVMF) and without, on every QEMU at hand and from one to
 * another: a VM boots, moves with its disk, reboots where it is then, moves back and reboots again; its data
 * are read back whole each time.
 *
 * QEMUs: this machine's own, and Debian 13's 10 and its backports' 11 (tests/debian13.sh --qemu). Machine
 * type and CPU model are such as all of them know. Without XM_VERSIONS=all only one case runs: there and back
 * between the own one and the next newer, which is what a host's upgrade is, and its rollback. */
#include "tests/progress.h"
#include "tests/system/harness.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LAB_GROUP("versions", "XM_LAB_VM=no XM_LAB_QEMU_RIGHTS=yes")

struct qemu {
    unsigned major;
    char dir[200]; /* "" is this machine's own */
};
static struct qemu qemus[3];
static unsigned qemu_count;

struct scenario {
    char name[64];
    unsigned from, to;  /* in qemus */
    const char *kernel; /* "debian13", "debian12" */
    bool uefi;
};

/* ---- what is at hand ---- */

static unsigned major_of(const char *dir)
{
    char *out = NULL, *at;
    unsigned major = 0;

    if (sh(&out, 60, "PATH=%s%s$PATH qemu-system-x86_64 --version", dir, *dir ? ":" : "") == 0 &&
        (at = strstr(out, "version ")))
        major = (unsigned)atoi(at + 8);
    free(out);
    return major;
}

static void add_qemu(const char *dir)
{
    struct qemu q = {.major = major_of(dir)};

    for (unsigned i = 0; i < qemu_count; i++) {
        if (qemus[i].major == q.major)
            return;
    }
    snprintf(q.dir, sizeof(q.dir), "%s", dir);
    if (q.major)
        qemus[qemu_count++] = q;
}

static void find_qemus(bool all)
{
    add_qemu("");
    for (int version = 10; version <= 11 && (all || qemu_count < 2); version++) {
        char *out = NULL;

        /* One that has to be made takes minutes. */
        if (sh(&out, 900, "tests/debian13.sh --qemu %d 2>&1", version) == 0) {
            char *line = strrchr(out, '\n');
            if (line)
                *line = 0;
            line = strrchr(out, '\n');
            add_qemu(line ? line + 1 : out);
        } else {
            fprintf(stderr, "no QEMU %d here: %s\n", version, out ? out : "");
        }
        free(out);
    }
}

/* That kernel, with an initramfs of its modules, in build/guest/NAME. */
static bool have_kernel(const char *kernel)
{
    char *out = NULL;
    bool have = sh(&out, 300,
                   "d=build/guest/%s && tests/kernel.sh $d/kernel %s && "
                   "tests/guest/initramfs.sh build/guest/init $d/kernel $d/initramfs",
                   kernel, kernel) == 0;

    if (!have)
        fprintf(stderr, "no kernel of %s here: %s\n", kernel, out ? out : "");
    free(out);
    return have;
}

/* Both hosts' QEMUs get the same file, whatever firmware their own systems have. */
static bool have_firmware(void)
{
    return sh(NULL, 10, "install -m 644 /usr/share/ovmf/OVMF.fd build/guest/OVMF.fd") == 0;
}

/* ---- one case ---- */

static void restart_agent(const char *host, const struct qemu *q)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/agent.pid)", lab_run_dir(), host);
    assert_int_equal(sh(NULL, 30, "XM_LAB_QEMU_%s=%s tests/system/lab.sh agent %s", *host == 'a' ? "A" : "B",
                        q->dir, host),
                     0);
}

static void write_spec(const struct scenario *c)
{
    char path[200], top[PATH_MAX];
    FILE *f;

    assert_non_null(getcwd(top, sizeof(top)));
    snprintf(path, sizeof(path), "%s/v1.ini", lab_run_dir());
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "[vm]\nname = v1\nmemory = 320M\nvcpus = 2\naccel = tcg\ncpu = qemu64\nmachine = pc-q35-7.2\n");
    fprintf(f, "kernel = %s/build/guest/%s/kernel/vmlinuz\ninitrd = %s/build/guest/%s/initramfs\n", top,
            c->kernel, top, c->kernel);
    if (c->uefi)
        fprintf(f, "firmware = %s/build/guest/OVMF.fd\n", top);
    fprintf(f,
            "append = console=ttyS0 quiet no_timer_check xm.seed=7 xm.ip=%s/24 "
            "xm.disk=vda:rate=4M:span=64M:name=data "
            "xm.mem=32M:rate=8M\n",
            GUEST);
    fprintf(f, "[disk data]\ndatastore = ds1\nfile = v1.img\n[nic lan]\nbridge = br0\n");
    assert_int_equal(fclose(f), 0);
    assert_int_equal(sh(NULL, 10, "truncate -s 128M %s/a/ds1/v1.img && ip -n %s-client neigh flush all",
                        lab_store_dir(), lab_prefix()),
                     0);
}

/* The boot's own name, "" when the guest does not answer. */
static void boot_id(char id[64])
{
    char *out = NULL;
    json_t *o = NULL;

    id[0] = 0;
    if (sh(&out, 20, "%s", as_client("cmd %s status", GUEST)) == 0 && (o = last_json(out)))
        snprintf(id, 64, "%s", string(o, "boot"));
    json_decref(o);
    free(out);
}

/* By the guest's own reboot: firmware and kernel are those of the host where it is. */
static void reboot_guest(const char *host)
{
    char before[64], now[64] = "", state[32] = "running";

    boot_id(before);
    assert_true(*before);
    sh(NULL, 1, "%s", as_client("cmd %s reboot", GUEST)); /* no answer comes */
    for (struct limit l = limit_start(120); !*now || strcmp(now, before) == 0;) {
        vm_state(host, "v1", state, sizeof(state));
        if (strcmp(state, "running") != 0 || !limit_wait(&l))
            break;
        boot_id(now);
    }
    guest_must_come(host, "v1");
    boot_id(now);
    assert_string_not_equal(now, before);
    guest_verify();
}

static void move(const char *from, const struct qemu *at, const struct qemu *to)
{
    assert_int_equal(xmigrate_run(from, 0, NULL, "--json --with-storage %sv1 host%s",
                                  to->major < at->major ? "--allow-older " : "", *from == 'a' ? "b" : "a"),
                     0);
    vm_must_run_at(*from == 'a' ? "b" : "a", "v1");
    guest_verify();
}

/* QEMU 10.0.13 tells its guests larger rings than it has, and 11.1 takes no such guest: refused by name
 * before anything is copied. */
static bool refused_for_its_rings(const char *from)
{
    char *out = NULL;
    int code = sh(&out, 30, "%s", xmigrate(from, "check --with-storage v1 host%s", *from == 'a' ? "b" : "a"));
    bool is = code == 3 && out && strstr(out, "larger rings");

    free(out);
    return is;
}

static void there_and_back(void **state)
{
    const struct scenario *c = *state;
    const struct qemu *a = &qemus[c->from], *b = &qemus[c->to];

    need_lab();
    if (!have_kernel(c->kernel) || (c->uefi && !have_firmware())) {
        fprintf(stderr, "%s: skipped, this machine has no %s\n", c->name,
                c->uefi ? "such kernel or no OVMF" : "such kernel");
        skip();
    }
    restart_agent("a", a);
    restart_agent("b", b);
    write_spec(c);
    assert_int_equal(xmigrate_run("a", 0, NULL, "start %s/v1.ini", lab_run_dir()), 0);
    /* OVMF on QEMU 11 took a busy machine more than the minute that the next step grants. */
    sh(NULL, 200, "%s", as_client("wait %s 180", GUEST));
    guest_must_come("a", "v1");
    if (refused_for_its_rings("a")) {
        fprintf(stderr, "%s: refused by name for its large rings\n", c->name);
        assert_true(a->major == 10 && b->major >= 11);
        assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force v1"), 0);
        assert_int_equal(xmigrate_run("a", 0, NULL, "undefine v1"), 0);
        return;
    }
    move("a", a, b);
    reboot_guest("b");
    move("b", b, a);
    reboot_guest("a");
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force v1"), 0);
    assert_int_equal(xmigrate_run("a", 0, NULL, "undefine v1"), 0); /* the next is another VM of this name */
    host_must_be_clean("b");
}

/* So that one that fails does not take the others with it. */
static int stop_all(void **state)
{
    (void)state;
    sh(NULL, 20, "%s", xmigrate("a", "stop --force v1"));
    sh(NULL, 20, "%s", xmigrate("b", "stop --force v1"));
    sh(NULL, 20, "%s", xmigrate("a", "undefine --force v1"));
    sh(NULL, 20, "%s", xmigrate("b", "undefine --force v1"));
    sh(NULL, 10, "rm -f %s/?/ds?/v1*", lab_store_dir());
    return 0;
}

/* ---- which cases ---- */

static void no_other_qemu(void **state)
{
    (void)state;
    need_lab();
    fprintf(stderr, "skipped: this machine has one QEMU only\n");
    skip();
}

static struct scenario scenarios[36];
static struct CMUnitTest tests[36];
static unsigned count;

static void add_scenario(unsigned from, unsigned to, const char *kernel, bool uefi)
{
    struct scenario *c = &scenarios[count];

    *c = (struct scenario){.from = from, .to = to, .kernel = kernel, .uefi = uefi};
    snprintf(c->name, sizeof(c->name), "%s_%s_%u_to_%u", kernel, uefi ? "uefi" : "bios", qemus[from].major,
             qemus[to].major);
    tests[count++] = (struct CMUnitTest){
        .name = c->name, .test_func = there_and_back, .teardown_func = stop_all, .initial_state = c};
}

int main(void)
{
    const struct CMUnitTest none[] = {cmocka_unit_test(no_other_qemu)};
    const char *wish = getenv("XM_VERSIONS");
    bool all = wish && strcmp(wish, "all") == 0;

    if (!lab_missing())
        find_qemus(all);
    for (unsigned from = 0; all && from < qemu_count; from++) {
        for (unsigned to = from; to < qemu_count; to++) {
            for (int k = 0; k < 4; k++)
                add_scenario(from, to, k & 1 ? "debian12" : "debian13", k & 2);
        }
    }
    if (!all && qemu_count > 1)
        add_scenario(0, 1, "debian13", false);
    if (!count)
        return cmocka_run_group_tests(none, lab_setup, lab_teardown);
    return _cmocka_run_group_tests("versions", tests, count, lab_setup, lab_teardown);
}
