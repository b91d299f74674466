/* SPDX-License-Identifier: MIT */
/* What a host is, as admission wants to know it: all there is, and enough of it. Logs go to the trace;
 * fault points are points of the simulator, and fail now and then. */
#include "tests/sim/sim.h"
#include "agent/datastore.h"
#include "agent/facts.h"
#include "machine/machine.h"
#include "probe/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct qemu_facts facts = {.version = "7.2.0"};

const struct qemu_facts *__wrap_qemu_facts(const char *program, struct xm_error *e)
{
    (void)program, (void)e;
    return &facts;
}

bool __wrap_qemu_facts_machine(const struct qemu_facts *q, const char *machine, char full[128])
{
    (void)q;
    snprintf(full, 128, "%s", machine);
    return true;
}

json_t *__wrap_qemu_facts_cpu(const char *program, const char *accel, const char *cpu, struct xm_error *e)
{
    (void)program, (void)accel, (void)cpu, (void)e;
    return json_array();
}

bool __wrap_qemu_facts_large_rings(const char *program)
{
    (void)program;
    return false;
}

int __wrap_qemu_machine_try(const char *program, const char *machine, const char *accel, bool *pci,
                            struct xm_error *e)
{
    (void)program, (void)machine, (void)accel, (void)e;
    *pci = true;
    return 0;
}

/* Not modelled: datastores are there. */
int __wrap_datastore_judge(struct agent *a, const struct conf_datastore *ds, struct xm_error *e)
{
    (void)a, (void)ds, (void)e;
    return 0;
}

int __wrap_datastore_use(struct agent *a, const struct conf_datastore *ds, struct xm_error *e)
{
    (void)a, (void)ds, (void)e;
    return 0;
}

int __wrap_probe_tracking(struct xm_error *e)
{
    (void)e;
    return 0;
}

int __wrap_kvm_probe(struct xm_error *e)
{
    (void)e;
    return KVM_NONE;
}

int __wrap_facts_qemu_user(const char *wanted, const char *program, bool kvm, struct xm_error *e)
{
    (void)wanted, (void)program, (void)kvm, (void)e;
    return 0;
}

const char *__wrap_facts_cpu_flags(void)
{
    return "";
}

uint64_t __wrap_facts_memory_available(void)
{
    return 1ull << 36;
}

uint64_t __wrap_facts_shared_rss(pid_t pid)
{
    (void)pid;
    return 0;
}

int __wrap_storage_space(const char *dir, uint64_t *size, uint64_t *unused)
{
    (void)dir;
    *size = *unused = 1ull << 40;
    return 0;
}

int __wrap_storage_stat(const char *path, struct stat *st)
{
    return stat(path, st) ? -errno : 0;
}

char *__wrap_mounts_missing(const char *path, char **by)
{
    (void)path;
    *by = NULL;
    return NULL;
}

int __wrap_storage_hangs(const char *path, struct xm_error *e)
{
    (void)path, (void)e;
    return 0;
}

ssize_t __wrap_getrandom(void *to, size_t n, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < n; i++)
        ((unsigned char *)to)[i] = (unsigned char)sim_random();
    return (ssize_t)n;
}

/* ---- what there is none of ---- */

void __wrap_xm_sched_background(pid_t tid, bool yes)
{
    (void)tid, (void)yes;
}

void __wrap_confine_shim(bool started)
{
    (void)started;
}

int __wrap_qemu_user_choose(const struct vm_spec *vm, const char *run_dir, const char *wanted,
                            struct qemu_user *user, struct xm_error *e)
{
    (void)vm, (void)run_dir, (void)wanted, (void)user, (void)e;
    return 0;
}

int __wrap_machine_console_open(struct machine *vm)
{
    (void)vm;
    return -ENOENT;
}

void __wrap_machine_console_end(struct machine *vm)
{
    (void)vm;
}

void __wrap_machine_logs_turn(struct machine *vm)
{
    (void)vm;
}

int __wrap_pthread_sigmask(int how, const void *set, void *old)
{
    (void)how, (void)set, (void)old;
    return 0;
}

void *__wrap_signal(int sig, void *handler)
{
    (void)sig, (void)handler;
    return NULL;
}

/* ---- logs and fault points ---- */

void __wrap_xm_log(enum xm_log_level level, const char *fmt, ...)
{
    static const char *const levels[] = {"error", "warning", "", "debug"};
    char text[700];
    va_list ap;

    if (!w.verbose)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sim_trace("  %s %s", levels[level], text);
}

void __wrap_xm_log_limited(struct xm_log_limit *limit, enum xm_log_level level, const char *fmt, ...)
{
    char text[700];
    va_list ap;

    (void)limit;
    if (!w.verbose)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    __wrap_xm_log(level, "%s", text);
}

bool __wrap_xm_fault(const char *name)
{
    static const char *const refusing[] = {"run-refused", "handoff-before-record", "switch-stopped"};
    bool may = !strcmp(name, "owner-save") || !strcmp(name, "file-replace");

    sim_point(name);
    if (may)
        return w.begun && !w.ending && chance(w.write_errors);
    for (int i = 0; i < 3; i++) {
        if (!strcmp(name, refusing[i]))
            return w.begun && !w.ending && chance(w.refusals);
    }
    return false;
}
