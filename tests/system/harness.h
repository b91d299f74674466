/* SPDX-License-Identifier: MIT */
/* tests/system/harness.h: what the system tests share: commands with a time limit, a lab that is always taken
 * down, the guest.
 *
 * One test program has at most one lab, made in its group's setup. It goes away in the group's teardown, and
 * also when the program is interrupted or timed out (SIGINT, SIGTERM). Run from the top of the tree.
 *
 * XM_TRACE=1 in the environment tells how long each command took. All time limits count progress, not
 * seconds (tests/progress.h). */
#ifndef XM_TESTS_SYSTEM_HARNESS_H
#define XM_TESTS_SYSTEM_HARNESS_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#define GUEST "10.9.0.2"

/* ---- commands ---- */

/* Runs a shell command; its exit status, -1 when it took longer. out (malloc'ed, may be NULL): what it wrote,
 * both streams. */
int sh(char **out, unsigned timeout_s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The last line of the text that is a JSON object. NULL: none. */
json_t *last_json(const char *text);
/* One field of an object, without fuss: 0, "" or false when it is not there. */
double number(const json_t *o, const char *key);
const char *string(const json_t *o, const char *key);
bool truth(const json_t *o, const char *key);

/* A command in the background, with its output in a file. */
struct job {
    pid_t pid;
    char path[128], what[512];
};
void job_start(struct job *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Waits until the output so far contains the text. false: the job ended without it, or the time is over. */
bool job_saw(struct job *, const char *text, unsigned timeout_s);
void job_signal(struct job *, int sig);
/* Waits for the end, kills it when it takes longer. Its exit status (-1: killed); *out as in sh. */
int job_end(struct job *, unsigned timeout_s, char **out);

/* Waits until the shell command succeeds. */
bool wait_until(unsigned timeout_s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- the lab ---- */

/* NULL, or the reason why this machine cannot have a lab. */
const char *lab_missing(void);
/* Makes it; env: "XM_ENGINE=libaio ..." or "". 0 or -1, with the reason printed. */
int lab_up(const char *name, const char *env);
int lab_down(void); /* 0, or -1 when a log holds what no log may hold (a sanitizer's report, say) */
const char *lab_prefix(void);
const char *lab_run_dir(void);   /* /run/PREFIX-lab */
const char *lab_store_dir(void); /* build/lab/PREFIX, absolute */
const char *build_dir(void);
/* Group setup and teardown made of the two: LAB_GROUP(name, env) defines lab_setup and lab_teardown. A test
 * whose group has no lab begins with need_lab(), which skips it and says why. */
int lab_group_setup(const char *name, const char *env);
void need_lab(void);
/* For env: less to copy and to verify, where the test is not about that. */
#define LAB_SMALL                                                                                            \
    " XM_LAB_APPEND='xm.disk=vda:rate=4M:span=64M:trim=8M:prefilled xm.disk=vdb:rate=2M:span=32M:prefilled " \
    "xm.mem=64M:rate=16M' "
#define LAB_GROUP(name, env)                                                                                 \
    static int lab_setup(void **state)                                                                       \
    {                                                                                                        \
        (void)state;                                                                                         \
        return lab_group_setup(name, env);                                                                   \
    }                                                                                                        \
    static int lab_teardown(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        return lab_down();                                                                                   \
    }

/* ---- in the lab: host is "a" or "b" ---- */

/* The text of a shell command that runs `words` on a host / in the client's namespace; buffers from a small
 * ring. */
const char *on_host(const char *host, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *as_client(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* xmigrate's command line on a host. */
const char *xmigrate(const char *host, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Runs xmigrate; *out: its last JSON line (new reference or NULL). Prints what it wrote when the status is
 * not the expected one. */
int xmigrate_run(const char *host, int expected, json_t **out, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The VM that was started there answers within a minute. */
void guest_must_come(const char *host, const char *vm);
/* Without a lab: the guest behind that port of ours does; if not, prints its console.log in dir. */
bool guest_came(unsigned port, const char *dir);
/* A command to the guest must be answered by ok. */
void guest_must(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Guest's verification of disks and memory passes. */
void guest_verify(void);
/* The VM's disk's path on a host, "" when the VM is not there. */
void disk_path(const char *host, const char *vm, const char *disk, char *path, size_t size);
/* The VM's state on a host as `show` says it, "" when it is not there. */
void vm_state(const char *host, const char *vm, char *state, size_t size);
void vm_must_run_at(const char *host, const char *vm);
/* One command to a VM's QEMU, by a monitor of its user's (extra = -qmp, tcp:127.0.0.1:4444,...), until QEMU
 * tells of the event. */
void vm_monitor(const char *host, const char *command, const char *event);
/* SIGKILL for a VM's shim or qemu. */
void kill_process(const char *host, const char *vm, const char *what);
/* Kills a VM's shim, and waits for the next. */
void shim_is_killed(const char *host, const char *vm);
/* No VM, no process but the agent, no tap, no file in a datastore. */
void host_must_be_clean(const char *host);
void host_must_be_clean_but(const char *host, const char *files); /* files that end so may be left */

#endif
