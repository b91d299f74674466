/* SPDX-License-Identifier: MIT */
/* Twelve migrations back and forth (XM_MOVES: another number): no process grows, nothing piles up, and the
 * guest stays whole. */
#include "tests/system/harness.h"
#include "tests/system/small.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

SMALL_GROUP("repeat", "", .fill = 64)

#define STEADY 4 /* by then the allocators have what they need */

struct footprint {
    long anon_kib, fds, threads;
};

/* Memory of its own, descriptors and threads of the process in a pid file. */
static struct footprint look_at(const char *pid_file)
{
    struct footprint f = {0, 0, 0};
    char *out = NULL;

    assert_int_equal(
        sh(&out, 5,
           "p=$(cat %s) && awk '/RssAnon/{print $2}' /proc/$p/status && ls /proc/$p/fd | wc -l && "
           "awk '/Threads/{print $2}' /proc/$p/status",
           pid_file),
        0);
    sscanf(out, "%ld %ld %ld", &f.anon_kib, &f.fds, &f.threads);
    free(out);
    return f;
}

static struct footprint agent_footprint(const char *host)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s/agent.pid", lab_run_dir(), host);
    return look_at(path);
}

/* ---- the most that a shim ever had, also while it migrates: looked at every 10 ms ---- */

static atomic_bool sampling;
static long peak_kib;

static long anon_kib_of(const char *host)
{
    char path[256], line[128];
    long pid = 0, kib = 0;

    snprintf(path, sizeof(path), "%s/%s/run/vms/web1/shim.pid", lab_run_dir(), host);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    if (fscanf(f, "%ld", &pid) != 1)
        pid = 0;
    fclose(f);
    snprintf(path, sizeof(path), "/proc/%ld/status", pid);
    f = pid ? fopen(path, "r") : NULL;
    while (f && fgets(line, sizeof(line), f))
        sscanf(line, "RssAnon: %ld", &kib);
    if (f)
        fclose(f);
    return kib;
}

static void *sample(void *arg)
{
    const struct timespec pause = {.tv_nsec = 10000000};

    while (atomic_load(&sampling)) {
        for (const char *host = "ab"; *host; host++) {
            const char name[2] = {*host, 0};
            long kib = anon_kib_of(name);
            peak_kib = kib > peak_kib ? kib : peak_kib;
        }
        nanosleep(&pause, NULL);
    }
    return arg;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void there_and_back(void **state)
{
    const char *asked = getenv("XM_MOVES");
    int moves = asked ? atoi(asked) : 12, i;
    bool sanitized = strstr(build_dir(), "san-") != NULL;
    struct footprint first[2] = {{0, 0, 0}, {0, 0, 0}}, last[2], shim;
    long shim_most = 0;
    double downtime[200], total = 0;
    pthread_t sampler;

    (void)state;
    need_lab();
    atomic_store(&sampling, true);
    assert_int_equal(pthread_create(&sampler, NULL, sample, NULL), 0);
    moves = moves < STEADY + 2 ? STEADY + 2 : moves > 200 ? 200 : moves;
    for (i = 0; i < moves; i++) {
        const char *from = i % 2 ? "b" : "a", *to = i % 2 ? "a" : "b";
        char path[256];
        json_t *done = NULL;

        assert_int_equal(xmigrate_run(from, 0, &done, "--json --with-storage web1 host%s", to), 0);
        downtime[i] = number(done, "downtime_ms");
        total += number(done, "total_s");
        json_decref(done);
        vm_must_run_at(to, "web1");
        small_must_be_whole(&guest, to);
        host_must_be_clean(from);
        snprintf(path, sizeof(path), "%s/%s/run/vms/web1/shim.pid", lab_run_dir(), to);
        shim = look_at(path);
        shim_most = shim.anon_kib > shim_most ? shim.anon_kib : shim_most;
        if (i == STEADY - 1) {
            first[0] = agent_footprint("a");
            first[1] = agent_footprint("b");
        }
    }
    atomic_store(&sampling, false);
    pthread_join(sampler, NULL);
    shim_most = peak_kib > shim_most ? peak_kib : shim_most;
    last[0] = agent_footprint("a");
    last[1] = agent_footprint("b");
    qsort(downtime, (size_t)moves, sizeof(downtime[0]), compare_doubles);
    print_message("%d moves, %.2f s each; downtime min %.1f median %.1f max %.1f ms; shim at most %ld KiB\n",
                  moves, total / moves, downtime[0], downtime[moves / 2], downtime[moves - 1], shim_most);
    for (i = 0; i < 2; i++) {
        print_message("agent %c: %ld -> %ld KiB, %ld -> %ld descriptors, %ld -> %ld threads\n", 'a' + i,
                      first[i].anon_kib, last[i].anon_kib, first[i].fds, last[i].fds, first[i].threads,
                      last[i].threads);
        assert_true(last[i].fds <= first[i].fds + 2);
        assert_true(last[i].threads <= first[i].threads + 2);
        if (!sanitized) /* its quarantine grows on purpose */
            assert_true(last[i].anon_kib <= first[i].anon_kib + 2048);
    }
    if (!sanitized) /* docs/design.md, «Bounds», for two disks */
        assert_true(shim_most <= (64 + 1 + 2 * 64) * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_and_back)};

    return cmocka_run_group_tests(tests, lab_setup, lab_teardown);
}
