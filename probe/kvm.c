/* SPDX-License-Identifier: MIT */
/* A guest of some instructions, given to KVM by ioctls (Documentation/virt/kvm/api.rst): in 64-bit mode with
 * paging it uses the FPU and SSE2 as every kernel does when it boots, adds 42 to itself and writes the sum to
 * a port. A software KVM below another hypervisor may offer /dev/kvm, and emulate integer code alone.
 *
 * The guest runs in a child process, which is killed when it does not come to its end: a KVM that hangs holds
 * nobody up. */
#include "probe/probe.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define MEMORY      (64u << 10)
#define CODE        0x1000u
#define PML4        0x2000u
#define PDPT        0x3000u
#define PD          0x4000u
#define PORT        0x10
#define SUM         84

#define PTE_PRESENT 1u
#define PTE_WRITE   2u
#define PTE_LARGE   0x80u
#define CR0_PE      1u
#define CR0_MP      2u
#define CR0_NE      0x20u
#define CR0_PG      0x80000000u
#define CR4_PAE     0x20u
#define CR4_OSFXSR  0x200u
#define EFER_LME    0x100u
#define EFER_LMA    0x400u

static const uint8_t code[] = {
    0xdb, 0xe3,                   /* fninit */
    0xb8, SUM / 2, 0,    0,    0, /* mov   $42, %eax */
    0x66, 0x0f,    0x6e, 0xc0,    /* movd  %eax, %xmm0 */
    0x66, 0x0f,    0xfe, 0xc0,    /* paddd %xmm0, %xmm0 */
    0x66, 0x0f,    0x7e, 0xc0,    /* movd  %xmm0, %eax */
    0xe7, PORT,                   /* out   %eax, $PORT */
    0xf4,                         /* hlt */
};

/* What the child tells: how far it came, and the error there. */
struct told {
    enum { OPENING, MAKING, RUNNING, WRONG, WELL } at;
    int error; /* errno, or at WRONG the reason of the exit */
};

static void put64(uint8_t *ram, uint32_t at, uint64_t v)
{
    memcpy(ram + at, &v, sizeof v);
}

static int set_mode(int vcpu)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = CODE, .rflags = 2, .rsp = MEMORY};
    struct kvm_segment seg = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};

    if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
        return -1;
    s.cr3 = PML4;
    s.cr4 = CR4_PAE | CR4_OSFXSR;
    s.cr0 = CR0_PE | CR0_MP | CR0_NE | CR0_PG;
    s.efer = EFER_LME | EFER_LMA;
    s.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    s.ds = s.es = s.fs = s.gs = s.ss = seg;
    return ioctl(vcpu, KVM_SET_SREGS, &s) < 0 || ioctl(vcpu, KVM_SET_REGS, &r) < 0 ? -1 : 0;
}

/* The guest may use what KVM can give. */
static int set_cpuid(int kvm, int vcpu)
{
    enum { ENTRIES = 256 };
    static _Alignas(struct kvm_cpuid2)
        uint8_t room[sizeof(struct kvm_cpuid2) + ENTRIES * sizeof(struct kvm_cpuid_entry2)];
    struct kvm_cpuid2 *id = (struct kvm_cpuid2 *)(void *)room;

    id->nent = ENTRIES;
    return ioctl(kvm, KVM_GET_SUPPORTED_CPUID, id) < 0 || ioctl(vcpu, KVM_SET_CPUID2, id) < 0 ? -1 : 0;
}

/* Only system calls: the process it was forked from may have threads. */
static struct told try_it(void)
{
    struct told t = {.at = OPENING};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

    if (vm < 0) {
        t.error = errno;
        return t;
    }
    t.at = MAKING;
    uint8_t *ram = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region mem = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)ram};
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vcpu = -1;
    struct kvm_run *run = MAP_FAILED;
    if (ram != MAP_FAILED && size > 0) {
        memcpy(ram + CODE, code, sizeof code);
        put64(ram, PML4, PDPT | PTE_PRESENT | PTE_WRITE);
        put64(ram, PDPT, PD | PTE_PRESENT | PTE_WRITE);
        put64(ram, PD, PTE_PRESENT | PTE_WRITE | PTE_LARGE);
        ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
        if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mem) == 0)
            vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
        if (vcpu >= 0)
            run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    }
    if (run == MAP_FAILED || set_cpuid(kvm, vcpu) < 0 || set_mode(vcpu) < 0) {
        t.error = errno;
        return t;
    }
    t.at = RUNNING;
    if (ioctl(vcpu, KVM_RUN, 0) < 0) {
        t.error = errno;
        return t;
    }
    uint32_t sum = 0;
    if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT && run->io.size == sizeof sum)
        memcpy(&sum, (uint8_t *)run + run->io.data_offset, sizeof sum);
    t.at = sum == SUM ? WELL : WRONG;
    t.error = (int)run->exit_reason;
    return t;
}

static struct told ask_child(void)
{
    struct told t = {.at = OPENING, .error = EIO};
    int p[2];
    pid_t parent = getpid(), pid = -1;

    if (pipe2(p, O_CLOEXEC) == 0 && (pid = fork()) < 0) {
        t.error = errno;
        close(p[0]);
        close(p[1]);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* No listener or lock of the parent's may outlive it here. */
        if (getppid() != parent || dup2(p[1], 1) < 0 || syscall(SYS_close_range, 2u, ~0u, 0u) < 0)
            _exit(1); /* in the forked child only */
        struct told mine = try_it();
        _exit(write(1, &mine, sizeof mine) != sizeof mine);
    }
    if (pid < 0)
        return t;
    close(p[1]);
    struct pollfd f = {.fd = p[0], .events = POLLIN};
    int n;
    while ((n = poll(&f, 1, PATIENCE_MS)) < 0 && errno == EINTR) {
    }
    if (n <= 0 || read(p[0], &t, sizeof t) != sizeof t)
        t = (struct told){.at = RUNNING, .error = ETIMEDOUT};
    close(p[0]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return t;
}

enum kvm_level kvm_probe(struct xm_error *why)
{
    struct told t = ask_child();

    switch (t.at) {
    case WELL:
        return KVM_WHOLE;
    case OPENING:
        xm_error_errno(why, t.error, "/dev/kvm cannot be used");
        return KVM_NONE;
    case MAKING:
        xm_error_errno(why, t.error, "KVM makes no guest");
        return KVM_NONE;
    case RUNNING:
        xm_error_errno(why, t.error, "KVM does not run a guest of 64-bit code with SSE");
        break;
    case WRONG:
        xm_error_set(why, EIO,
                     "KVM does not run a guest of 64-bit code with SSE (it ended with exit reason %d)",
                     t.error);
        break;
    }
    return KVM_PART;
}
