/* SPDX-License-Identifier: MIT */
/* A guest under KVM (tests/guest/kvm) goes back and forth ten times with its two disks. At each new host
 * it checks all of its RAM and as many sectors as its disks have, and tells so on its console; what was
 * said at the old host is read to the end, too: no error anywhere. Skipped where there is no KVM, or one
 * that runs this guest under plain QEMU no better than under us. */
#include "tests/system/harness.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MOVES  10
#define VM     "kvm1"
#define CPU    "host,-arch-capabilities"
#define SPAN   512 /* KiB of each of two disks, as in APPEND */
#define APPEND "ram=4000 disk=250 span=512"
/* Seconds without a tick: it has stopped. A busy machine makes it slow, which is none of its faults; the
 * firmware says nothing. */
#define SILENCE 120

static int lab_setup(void **state)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    bool works = kvm >= 0 && ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION;

    (void)state;
    if (kvm >= 0)
        close(kvm);
    return works ? lab_group_setup("kvm",
                                   "XM_LAB_VM=no XM_LAB_PARTIAL_KVM=yes XM_LAB_SYSTEM=512M XM_LAB_DATA=64M")
                 : 0;
}

static int lab_teardown(void **state)
{
    (void)state;
    return lab_down();
}

/* ---- what the guest says ---- */

/* What the guest says while it is at one host, read on as it grows. The file stays there from stay to stay, so
 * each is read from where the last one has ended. */
struct console {
    int fd;
    bool at_b;
    char *text;
    size_t len;
};
static off_t said_before[2]; /* bytes, in stays at host A and B that are over */

struct progress {
    unsigned up, rounds, pages, sweeps, sectors, errors;
};

static bool console_open(struct console *c, const char *host)
{
    char path[256];

    memset(c, 0, sizeof *c);
    snprintf(path, sizeof path, "%s/%s/state/logs/" VM "-console.log", lab_run_dir(), host);
    c->at_b = *host == 'b';
    c->fd = open(path, O_RDONLY | O_CLOEXEC);
    c->text = calloc(1, 1);
    return c->fd >= 0 && c->text && lseek(c->fd, said_before[c->at_b], SEEK_SET) >= 0;
}

static void console_close(struct console *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->text);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

/* All that has come; fails when one of the guest's letters for an error is in it. */
static void console_read(struct console *c)
{
    char buf[4096], *wrong;
    ssize_t n;

    while ((n = read(c->fd, buf, sizeof buf)) > 0) {
        c->text = realloc(c->text, c->len + (size_t)n + 1);
        assert_non_null(c->text);
        memcpy(c->text + c->len, buf, (size_t)n);
        c->len += (size_t)n;
        c->text[c->len] = 0;
    }
    wrong = strpbrk(c->text, "MBEF");
    if (wrong)
        fail_msg("the guest found an error: %.300s", wrong);
}

/* The last whole line in which it says how far it is. */
static bool told(struct console *c, struct progress *p)
{
    bool found = false;

    console_read(c);
    for (const char *at = c->text; (at = strstr(at, "\nup ")); at++) {
        struct progress q;
        char end = 0;
        if (sscanf(at, "\nup %u ram %u pages %u disk %u sectors %u errors %u%c", &q.up, &q.rounds, &q.pages,
                   &q.sweeps, &q.sectors, &q.errors, &end) == 7 &&
            end == '\n') {
            *p = q;
            found = true;
        }
    }
    if (found && p->errors)
        fail_msg("the guest counts %u errors", p->errors);
    return found;
}

static bool reached(const struct progress *now, const struct progress *goal)
{
    return now->up >= goal->up && now->rounds >= goal->rounds && now->pages >= goal->pages &&
           now->sweeps >= goal->sweeps && now->sectors >= goal->sectors;
}

/* Waits for it as long as the guest ticks. */
static bool wait_for(struct console *c, const struct progress *goal, struct progress *now)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    struct timespec t;
    time_t last = 0;
    unsigned up = 0;

    memset(now, 0, sizeof *now);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &t);
        if (told(c, now) && reached(now, goal))
            return true;
        if (!last || now->up != up)
            last = t.tv_sec;
        up = now->up;
        if (t.tv_sec - last > SILENCE)
            return false;
        nanosleep(&pause, NULL);
    }
}

/* ---- the guest ---- */

static void write_spec(const char *path)
{
    char top[512];
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_non_null(getcwd(top, sizeof top));
    fprintf(f,
            "[vm]\nname = " VM "\nmemory = 16M\nvcpus = 1\naccel = kvm\ncpu = " CPU
            "\nkernel = %s/build/guest/kvmguest\nappend = " APPEND "\n\n[disk one]\ndatastore = ds1\n"
            "file = one.img\n\n[disk two]\ndatastore = ds1\nfile = two.img\n",
            top);
    fclose(f);
}

/* Is it this machine's KVM, and nothing of ours? */
static bool runs_in_plain_qemu(void)
{
    struct job qemu;

    job_start(&qemu,
              "exec qemu-system-x86_64 -nodefaults -display none -vga none -machine q35 -accel kvm -cpu " CPU
              " -m 16M -kernel build/guest/kvmguest -serial stdio");
    bool runs = job_saw(&qemu, "\nup ", SILENCE);
    job_signal(&qemu, SIGKILL);
    job_end(&qemu, 5, NULL);
    return runs;
}

/* Returns with both disks filled and both compared once. */
static void start_guest(const char *host, struct console *c)
{
    static const struct progress goal = {.rounds = 1, .sweeps = 1};
    struct progress now;
    char spec[256], *said = NULL;

    snprintf(spec, sizeof spec, "%s/" VM ".ini", lab_run_dir());
    write_spec(spec);
    /* In the place of the disk that the lab made for its own guest. */
    assert_int_equal(sh(NULL, 10, "cd %s/%s/ds1 && rm -f web1-data.img && truncate -s 16M one.img two.img",
                        lab_store_dir(), host),
                     0);
    bool started = sh(&said, 60, "%s", xmigrate(host, "start %s", spec)) == 0;
    started = started && console_open(c, host) && wait_for(c, &goal, &now);
    if (!started && !runs_in_plain_qemu()) {
        print_message("skipped: this machine's KVM does not run the guest under plain QEMU either: %s\n",
                      said);
        free(said);
        skip();
    }
    if (!started)
        fail_msg("the guest does not start: %s; on its console: %s", said, c->text ? c->text : "nothing");
    free(said);
}

static unsigned pages_of(const struct console *c)
{
    const char *at = strstr(c->text, "kvmguest with ");

    assert_non_null(at);
    return (unsigned)strtoul(at + strlen("kvmguest with "), NULL, 10);
}

/* ---- the test ---- */

static void ten_moves_under_kvm(void **state)
{
    struct console here = {.fd = -1}, there;
    struct progress now, goal;

    (void)state;
    if (!*lab_prefix() && access("/dev/kvm", F_OK) != 0) {
        print_message("skipped: this machine has no /dev/kvm\n");
        skip();
    }
    if (!*lab_prefix() && geteuid() == 0) {
        print_message("skipped: /dev/kvm cannot be used\n");
        skip();
    }
    need_lab();
    start_guest("a", &here);
    unsigned pages = pages_of(&here), sectors = 2 * SPAN * 2;
    for (int i = 0; i < MOVES; i++) {
        const char *from = i % 2 ? "b" : "a", *to = i % 2 ? "a" : "b";
        json_t *done = NULL;
        assert_int_equal(xmigrate_run(from, 0, &done, "--json --with-storage " VM " host%s", to), 0);
        vm_must_run_at(to, VM);
        assert_true(console_open(&there, to));
        goal = (struct progress){.up = 1};
        if (!wait_for(&there, &goal, &now))
            fail_msg("the guest does not tick at host%s: %s", to, there.text);
        print_message("move %d: %.2f s, downtime %.1f ms, then at tick %u\n", i + 1, number(done, "total_s"),
                      number(done, "downtime_ms"), now.up);
        json_decref(done);
        goal = now;
        goal.pages += pages;
        goal.sectors += sectors;
        if (i == MOVES - 1)
            goal.sweeps += 2;
        if (!wait_for(&there, &goal, &now))
            fail_msg("the guest has stopped at host%s: up %u, %u pages, %u sectors", to, now.up, now.pages,
                     now.sectors);
        console_read(&here); /* what it said last at the old host */
        said_before[here.at_b] = lseek(here.fd, 0, SEEK_CUR);
        console_close(&here);
        here = there;
        host_must_be_clean(from);
    }
    print_message("rounds: %u through RAM, %u through the disks\n", now.rounds, now.sweeps);
    console_close(&here);
    assert_int_equal(xmigrate_run("a", 0, NULL, "stop --force " VM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ten_moves_under_kvm)};

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
