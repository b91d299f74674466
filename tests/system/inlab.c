/* SPDX-License-Identifier: MIT */
/* tests/system/inlab.c: what tests do in a lab that is up: commands on its hosts, the guest, and what a host
 * must look like. */
#include "tests/system/harness.h"
#include "tests/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Texts of commands are short-lived: the caller's expression uses a few at once. */
static char *next_text(void)
{
    static char ring[8][2048];
    static unsigned at;

    return ring[at++ % 8];
}

static void append_words(char *text, const char *fmt, va_list ap)
{
    size_t len = strlen(text);

    vsnprintf(text + len, 2048 - len, fmt, ap);
}

const char *on_host(const char *host, const char *fmt, ...)
{
    char *text = next_text();
    va_list ap;

    snprintf(text, 2048, "exec ip netns exec %s-host%s ", lab_prefix(), host);
    va_start(ap, fmt);
    append_words(text, fmt, ap);
    va_end(ap);
    return text;
}

const char *as_client(const char *fmt, ...)
{
    char *text = next_text();
    va_list ap;

    snprintf(text, 2048, "exec ip netns exec %s-client build/guest/xm-client ", lab_prefix());
    va_start(ap, fmt);
    append_words(text, fmt, ap);
    va_end(ap);
    return text;
}

static char *xmigrate_text(const char *host)
{
    char *text = next_text();

    snprintf(text, 2048, "exec ip netns exec %s-host%s %s/xmigrate --socket %s/%s/run/agent.sock ",
             lab_prefix(), host, build_dir(), lab_run_dir(), host);
    return text;
}

const char *xmigrate(const char *host, const char *fmt, ...)
{
    char *text = xmigrate_text(host);
    va_list ap;

    va_start(ap, fmt);
    append_words(text, fmt, ap);
    va_end(ap);
    return text;
}

int xmigrate_run(const char *host, int expected, json_t **out, const char *fmt, ...)
{
    char *text = xmigrate_text(host), *said = NULL;
    va_list ap;
    int code;

    va_start(ap, fmt);
    append_words(text, fmt, ap);
    va_end(ap);
    code = sh(&said, 120, "%s", text);
    if (code != expected)
        fprintf(stderr, "%s\n-> %d, should be %d:\n%s\n", text, code, expected, said ? said : "");
    if (out)
        *out = last_json(said);
    free(said);
    return code;
}

/* QEMU under TCG has faults of its own, seen without anything of ours: at a boot or reboot, once in some
 * hundred, it ends by an assertion (msix_table_mmio_write; 7.2 and 10) or a segmentation fault, or (10) a
 * vCPU has no timer any more, which the guest's kernel says. That is not what is tested. */
static const char *qemus_own_fault(const char *host, const char *vm)
{
    if (sh(NULL, 5,
           "cd %s/%s/state && grep -q '\"died\"' vms/%s/life.json && "
           "{ ! test -s logs/%s-qemu.log || grep -q 'hw/.*Assertion .* failed' logs/%s-qemu.log; }",
           lab_run_dir(), host, vm, vm, vm) == 0)
        return "QEMU ended by itself";
    if (sh(NULL, 5,
           "tail -n 60 %s/%s/state/logs/%s-console.log | grep -q 'kthread timer wakeup didn.t happen'",
           lab_run_dir(), host, vm) == 0)
        return "QEMU gives its guest no timer";
    return NULL;
}

void guest_must_come(const char *host, const char *vm)
{
    char *out = NULL;
    const char *fault;
    int code = sh(NULL, 90, "%s", as_client("wait %s 60", GUEST));

    if (code != 0 && (fault = qemus_own_fault(host, vm))) {
        sh(&out, 10, "tail -n 20 %s/%s/state/logs/%s-qemu.log %s/%s/state/logs/%s-console.log 2>/dev/null",
           lab_run_dir(), host, vm, lab_run_dir(), host, vm);
        fprintf(stderr, "%s at host%s: %s; it is started once more: %s\n", vm, host, fault, out ? out : "");
        free(out);
        out = NULL;
        sh(NULL, 30, "%s", xmigrate(host, "stop --force %s", vm)); /* one that runs still */
        code = sh(NULL, 30, "%s", xmigrate(host, "start %s", vm));
        if (code == 0)
            code = sh(NULL, 90, "%s", as_client("wait %s 60", GUEST));
    }
    if (code != 0) {
        sh(&out, 10, "tests/system/lab.sh tell %s %s", host, vm);
        fprintf(stderr, "%s at host%s does not answer:\n%s\n", vm, host, out ? out : "");
        free(out);
    }
    assert_int_equal(code, 0);
}

bool guest_came(unsigned port, const char *dir)
{
    char *out = NULL;
    bool came = sh(NULL, 70, "build/guest/xm-client wait 127.0.0.1:%u 60", port) == 0;

    if (!came) {
        sh(&out, 10, "tail -n 25 %s/console.log", dir);
        fprintf(stderr, "the guest does not answer; on its console:\n%s\n", out ? out : "");
        free(out);
    }
    return came;
}

void guest_must(const char *fmt, ...)
{
    char words[256], *out = NULL;
    va_list ap;
    int code;

    va_start(ap, fmt);
    vsnprintf(words, sizeof(words), fmt, ap);
    va_end(ap);
    code = sh(&out, 60, "%s", as_client("cmd %s %s", GUEST, words));
    if (code != 0)
        fprintf(stderr, "guest: %s -> %d: %s\n", words, code, out ? out : "");
    free(out);
    assert_int_equal(code, 0);
}

void guest_verify(void)
{
    guest_must("verify");
}

/* The answer's "vm": {"name","state","disks":[{"name","path",...}],...}. NULL: it is not there. */
static json_t *show(const char *host, const char *vm)
{
    char *said = NULL;
    json_t *o = NULL, *found = NULL;

    if (sh(&said, 20, "%s", xmigrate(host, "--json show %s", vm)) == 0)
        o = last_json(said);
    if (json_is_object(json_object_get(o, "vm")))
        found = json_incref(json_object_get(o, "vm"));
    json_decref(o);
    free(said);
    return found;
}

void disk_path(const char *host, const char *vm, const char *disk, char *path, size_t size)
{
    json_t *o = show(host, vm), *d;
    size_t i;

    path[0] = 0;
    json_array_foreach (json_object_get(o, "disks"), i, d) {
        if (strcmp(string(d, "name"), disk) == 0)
            snprintf(path, size, "%s", string(d, "path"));
    }
    json_decref(o);
}

void vm_state(const char *host, const char *vm, char *state, size_t size)
{
    json_t *o = show(host, vm);

    snprintf(state, size, "%s", string(o, "state"));
    json_decref(o);
}

/* What is left of a failed migration at the other host may take a moment to go, and so may a new shim to
 * come, or a guest that stood still to go on. */
void vm_must_run_at(const char *host, const char *vm)
{
    char here[32], there[32] = "";

    for (struct limit l = limit_start(15);;) {
        vm_state(host, vm, here, sizeof(here));
        vm_state(*host == 'a' ? "b" : "a", vm, there, sizeof(there));
        if ((!*there && !strcmp(here, "running")) || !limit_wait(&l))
            break;
    }
    assert_string_equal(here, "running");
    assert_string_equal(there, "");
}

static void must_be_empty(const char *what, const char *command)
{
    char *out = NULL;

    /* What ends by itself may take a moment: processes after an answer, files after those. */
    if (!wait_until(15, "test -z \"$(%s)\"", command)) {
        sh(&out, 10, "%s", command);
        fprintf(stderr, "left behind: %s: %s\n", what, out ? out : "");
        free(out);
        fail();
    }
    free(out);
}

void host_must_be_clean(const char *host)
{
    host_must_be_clean_but(host, "");
}

void host_must_be_clean_but(const char *host, const char *files)
{
    char command[1024];

    snprintf(command, sizeof(command),
             "ip netns pids %s-host%s | while read p; do cat /proc/$p/comm 2>/dev/null; done | grep -v "
             "'^xmigrated$'",
             lab_prefix(), host);
    must_be_empty("processes", command);
    snprintf(command, sizeof(command), "find %s/%s/ds* -type f ! -name '*%s'", lab_store_dir(), host,
             *files ? files : "/");
    must_be_empty("files in datastores", command);
    snprintf(command, sizeof(command), "find %s/%s/run/vms -mindepth 1 2>/dev/null", lab_run_dir(), host);
    must_be_empty("run directory", command);
    snprintf(command, sizeof(command), "ip netns exec %s-host%s ip -o link show type tun", lab_prefix(),
             host);
    must_be_empty("tap devices", command);
}

void vm_monitor(const char *host, const char *command, const char *event)
{
    char *out = NULL;
    int r =
        sh(&out, 60, "%s",
           on_host(
               host,
               "timeout 50 bash -c 'exec 3<>/dev/tcp/127.0.0.1/4444; "
               "printf \"{\\\"execute\\\":\\\"qmp_capabilities\\\"}\\n{\\\"execute\\\":\\\"%s\\\"}\\n\" >&3; "
               "grep -m 1 %s <&3'",
               command, event));

    if (r)
        fail_msg("%s: %s", command, out);
    free(out);
}

void kill_process(const char *host, const char *name, const char *what)
{
    sh(NULL, 5, "kill -9 $(cat %s/%s/run/vms/%s/%s.pid)", lab_run_dir(), host, name, what);
}

static bool has_a_new_shim(const char *host, const char *name, const char *old)
{
    char *now = NULL;
    int r = sh(&now, 5, "cat %s/%s/run/vms/%s/shim.pid", lab_run_dir(), host, name);
    bool yes = r == 0 && *now && strcmp(now, old) != 0;

    free(now);
    return yes;
}

void shim_is_killed(const char *host, const char *name)
{
    char *old = NULL;

    assert_int_equal(sh(&old, 5, "cat %s/%s/run/vms/%s/shim.pid", lab_run_dir(), host, name), 0);
    kill_process(host, name, "shim");
    for (struct limit l = limit_start(60); !has_a_new_shim(host, name, old) && limit_wait(&l);) {
    }
    assert_true(has_a_new_shim(host, name, old));
    free(old);
}
