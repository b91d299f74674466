/* SPDX-License-Identifier: MIT */
/* tests/unit/memxfer_kvm.c: pages that a guest writes under KVM are seen, as those that a process writes
 * itself are (memxfer_tracker.c). They go by KVM's own page tables, or are written by the kernel when it
 * emulates an instruction.
 *
 * The child process stands for QEMU: it has the RAM and runs one virtual processor, 32 bits without
 * paging, whose few bytes of code write a sequence of numbers to pages that follow from these numbers. The
 * parent computes the same sequence. */
#include "memxfer/memxfer.h"
#include "tests/unit/lib_ramchild.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define PAGES   8192u
#define SIZE    ((uint64_t)PAGES * XM_PAGE)
#define CODE_AT 0x100u
#define WORD_AT 0x800u /* in each page; clear of the code, which is in the first */
#define DONE    0x40   /* the port by which the guest says that it has written all */

/* ---- the guest ---- */

/* eax: the last number, ecx: how many more. */
static const uint8_t code[] = {
    0x69, 0xc0, 0x0d, 0x66,         0x19, 0x00, /* again: imul $1664525, %eax */
    0x05, 0x5f, 0xf3, 0x6e,         0x3c,       /* add $1013904223, %eax */
    0x89, 0xc2,                                 /* mov %eax, %edx */
    0xc1, 0xea, 0x13,                           /* shr $19, %edx: 8192 pages */
    0xc1, 0xe2, 0x0c,                           /* shl $12, %edx */
    0x89, 0x82, 0x00, WORD_AT >> 8, 0x00, 0,    /* mov %eax, WORD_AT(%edx) */
    0x49,                                       /* dec %ecx */
    0x75, 0xe4,                                 /* jnz again */
    0xe6, DONE,                                 /* out %al, $DONE */
};

static uint32_t next_number(uint32_t n)
{
    return n * 1664525u + 1013904223u;
}
static uint32_t page_of(uint32_t n)
{
    return n >> 19;
}

struct vm {
    int kvm, fd, vcpu;
    struct kvm_run *run;
    size_t run_size;
};

/* NULL, or what this machine does not let us do. */
static const char *vm_open(struct vm *v, uint8_t *ram, uint64_t size)
{
    struct kvm_userspace_memory_region r = {.memory_size = size, .userspace_addr = (uintptr_t)ram};
    struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_sregs s;

    v->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (v->kvm < 0)
        return "/dev/kvm is missing or not ours to use";
    v->fd = ioctl(v->kvm, KVM_CREATE_VM, 0);
    if (v->fd < 0 || ioctl(v->fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
        return "KVM makes no virtual machine";
    ioctl(v->fd, KVM_SET_TSS_ADDR, 0xfffbd000ul); /* older Intel processors want it, others do not mind */
    v->vcpu = ioctl(v->fd, KVM_CREATE_VCPU, 0);
    int bytes = ioctl(v->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (v->vcpu < 0 || bytes <= 0)
        return "KVM makes no processor";
    v->run_size = (size_t)bytes;
    v->run = mmap(NULL, v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->vcpu, 0);
    if (v->run == MAP_FAILED || ioctl(v->vcpu, KVM_GET_SREGS, &s) < 0)
        return "KVM does not show its processor";
    s.cr0 |= 1;
    flat.selector = 8;
    flat.type = 11;
    s.cs = flat;
    flat.selector = 16;
    flat.type = 3;
    s.ds = s.es = s.fs = s.gs = s.ss = flat;
    memcpy(ram + CODE_AT, code, sizeof code);
    return ioctl(v->vcpu, KVM_SET_SREGS, &s) < 0 ? "KVM does not take protected mode" : NULL;
}

/* The guest writes so many numbers, behind this one. */
static const char *vm_write_numbers(struct vm *v, uint32_t last, uint32_t count)
{
    struct kvm_regs r = {.rip = CODE_AT, .rflags = 2, .rax = last, .rcx = count};

    if (ioctl(v->vcpu, KVM_SET_REGS, &r) < 0)
        return "KVM does not take registers";
    while (ioctl(v->vcpu, KVM_RUN, 0) < 0) {
        if (errno != EINTR) /* by who traces us */
            return "KVM does not run";
    }
    return v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == DONE ? NULL
                                                                         : "KVM does not know an instruction";
}

static void vm_close(struct vm *v)
{
    if (v->run_size && v->run != MAP_FAILED)
        munmap(v->run, v->run_size);
    for (int i = 0; i < 3; i++) {
        int fd = i == 0 ? v->vcpu : i == 1 ? v->fd : v->kvm;
        if (fd > 0)
            close(fd);
    }
}

static void need_kvm(void)
{
    struct vm v = {0};
    uint8_t *ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_true(ram != MAP_FAILED);
    const char *why = vm_open(&v, ram, SIZE);
    if (!why)
        why = vm_write_numbers(&v, 1, 10);
    vm_close(&v);
    munmap(ram, SIZE);
    if (why) {
        print_message("skipped: no guest runs under KVM here: %s\n", why);
        skip();
    }
}

/* ---- the child ---- */

static bool child_vm(struct ramchild *c, struct vm *v)
{
    memset(c->ram, 1, c->size);
    const char *why = vm_open(v, c->ram, c->size);
    if (why)
        ramchild_error(c, "%s", why);
    return !why;
}

/* The parent gives (last number, count). */
static void write_on_order(struct ramchild *c)
{
    struct vm v = {0};
    bool works = child_vm(c, &v);

    while (!atomic_load(&c->page->quit)) {
        if (!atomic_load(&c->page->go)) {
            usleep(20);
            continue;
        }
        const char *why =
            works ? vm_write_numbers(&v, (uint32_t)c->page->arg[0], (uint32_t)c->page->arg[1]) : NULL;
        if (why)
            ramchild_error(c, "%s", why);
        atomic_store(&c->page->go, 0);
    }
}

static void write_without_end(struct ramchild *c)
{
    struct vm v = {0};

    if (!child_vm(c, &v))
        return;
    while (ramchild_gate(c)) {
        const char *why = vm_write_numbers(&v, (uint32_t)ramchild_random(c), 300);
        if (why) {
            ramchild_error(c, "%s", why);
            return;
        }
        atomic_fetch_add(&c->page->steps, 1);
    }
}

/* ---- the parent ---- */

struct world {
    struct ramchild child;
    struct xm_ram ram;
    struct xm_tracker *tracker;
    struct xm_bitmap dirty;
};
static struct world w;

static void begin(void (*body)(struct ramchild *))
{
    struct xm_error e = {0};

    memset(&w, 0, sizeof w);
    need_kvm();
    ramchild_need_tracking();
    ramchild_start(&w.child, SIZE, -1, body, 11);
    w.ram.pid = w.child.pid;
    assert_int_equal(xm_ram_add(&w.ram, "ram", w.child.memfd, atomic_load(&w.child.page->va), &e), 0);
    assert_int_equal(xm_bitmap_init(&w.dirty, PAGES), 0);
}

static void track(void)
{
    struct xm_error e = {0};

    if (xm_tracker_open(&w.tracker, &w.ram, &e) < 0)
        fail_msg("%s", e.text);
}

static uint64_t collect(void)
{
    struct xm_error e = {0};
    uint64_t pages = 0;

    for (uint64_t i = 0; i < PAGES / 64; i++)
        xm_bitmap_take_word(&w.dirty, i);
    if (xm_tracker_collect(w.tracker, &w.dirty, &pages, &e) < 0)
        fail_msg("%s", e.text);
    return pages;
}

static int teardown(void **state)
{
    (void)state;
    xm_tracker_close(w.tracker);
    w.tracker = NULL;
    ramchild_kill(&w.child);
    xm_ram_close(&w.ram);
    if (w.dirty.word)
        xm_bitmap_destroy(&w.dirty);
    return 0;
}

static void order(uint32_t last, uint32_t count)
{
    w.child.page->arg[0] = last;
    w.child.page->arg[1] = count;
    atomic_store(&w.child.page->go, 1);
    while (atomic_load(&w.child.page->go))
        usleep(20);
    if (atomic_load(&w.child.page->errors))
        fail_msg("%s", w.child.page->error);
}

/* Each page that the guest has written is reported, no other one is, and through our own mapping it holds
 * what was written last. */
static void sees_what_a_guest_writes(void **state)
{
    static uint32_t holds[PAGES];
    uint64_t written = 0;

    (void)state;
    begin(write_on_order);
    order(1, 1); /* the processor is there, all RAM is populated */
    track();
    collect();
    for (uint32_t round = 1; round <= 40; round++) {
        uint32_t seed = round * 2654435761u, count = round % 4 ? 50 * round : 1, n = seed, pages = 0;
        memset(holds, 0, sizeof holds);
        for (uint32_t i = 0; i < count; i++) {
            n = next_number(n);
            pages += !holds[page_of(n)];
            holds[page_of(n)] = n ? n : 1;
        }
        order(seed, count);
        assert_int_equal(collect(), pages);
        for (uint32_t p = 0; p < PAGES; p++) {
            uint32_t found;
            memcpy(&found, w.ram.block[0].map + (uint64_t)p * XM_PAGE + WORD_AT, sizeof found);
            if (xm_bitmap_test(&w.dirty, p) != (holds[p] != 0) || (holds[p] && found != holds[p]))
                fail_msg("round %u, page %u: wrote %x, %s, holds %x", round, p, holds[p],
                         xm_bitmap_test(&w.dirty, p) ? "reported" : "not reported", found);
        }
        written += pages;
    }
    print_message("%llu pages\n", (unsigned long long)written);
    ramchild_end(&w.child);
}

/* A copy that is kept up by what is reported, while the guest goes on, is right whenever the guest stands.
 * Tracking begins while it runs. */
static void loses_no_write_of_a_running_guest(void **state)
{
    uint64_t steps = 0;

    (void)state;
    begin(write_without_end);
    while (!atomic_load(&w.child.page->steps) && !atomic_load(&w.child.page->errors))
        usleep(100);
    track();
    uint8_t *copy = calloc(1, SIZE);
    assert_non_null(copy);
    memcpy(copy, w.ram.block[0].map, SIZE); /* what is written meanwhile will be reported */
    for (unsigned round = 1; round <= 60; round++) {
        bool stands = round % 6 == 0;
        uint64_t before = atomic_load(&w.child.page->steps);
        while (atomic_load(&w.child.page->steps) == before && !atomic_load(&w.child.page->errors))
            usleep(50); /* something new in each round */
        if (stands)
            ramchild_pause(&w.child, true);
        collect();
        for (uint64_t p = 0; (p = xm_bitmap_next(&w.dirty, p)) < PAGES; p++)
            memcpy(copy + p * XM_PAGE, w.ram.block[0].map + p * XM_PAGE, XM_PAGE);
        if (stands) {
            assert_memory_equal(copy, w.ram.block[0].map, SIZE);
            ramchild_pause(&w.child, false);
        }
        steps = atomic_load(&w.child.page->steps);
    }
    print_message("%llu pages written\n", (unsigned long long)steps * 300);
    free(copy);
    ramchild_end(&w.child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(sees_what_a_guest_writes, teardown),
        cmocka_unit_test_teardown(loses_no_write_of_a_running_guest, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
