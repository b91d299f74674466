/* SPDX-License-Identifier: MIT */
/* Which QEMUs there are, and what they know: each is started once and asked over QMP. See lib_version.h. */
#include "tests/bench/lib_version.h"
#include "tests/bench/lib_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct version {
    char path[4400]; /* PATH with it in front */
    char brief[32], name[120];
    json_t *schema;
} known[VERSIONS_MAX];
static unsigned count, in_use;

static bool version_ask(struct version *v)
{
    struct peer_qemu q = {0};
    char sock[200];

    setenv("PATH", v->path, 1);
    snprintf(sock, sizeof sock, "%s/version", bench_dir(true));
    unlink(sock);
    q.pid = bench_spawn("qemu-system-x86_64 -M none -accel tcg -S -nodefaults -display none -qmp "
                        "unix:%s,server=on,wait=off",
                        sock);
    json_t *said = peer_qmp(&q, sock) ? peer_get(&q, "query-version") : NULL;
    const char *package = xm_json_str(said, "package", "");
    int major, minor, micro;
    bool good =
        !json_unpack(said, "{s:{s:i s:i s:i}}", "qemu", "major", &major, "minor", &minor, "micro", &micro);
    if (good) {
        v->schema = peer_get(&q, "query-qmp-schema");
        good = json_is_array(v->schema);
        snprintf(v->brief, sizeof v->brief, "%d.%d.%d", major, minor, micro);
        snprintf(v->name, sizeof v->name, package[0] ? "%s (%.80s)" : "%s", v->brief, package);
    }
    json_decref(said);
    peer_end(&q);
    return good;
}

/* A program that is missing there would be the host's, found further down PATH. */
static void check_directory(const char *dir)
{
    static const char *const programs[] = {"qemu-system-x86_64", "qemu-storage-daemon"};
    char path[300];

    if (strlen(dir) > 250)
        bench_die("XM_BENCH_QEMU is longer than 250 bytes");
    for (unsigned i = 0; i < sizeof programs / sizeof *programs; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, programs[i]);
        if (access(path, X_OK))
            bench_die("XM_BENCH_QEMU: there is no %s", path);
    }
}

unsigned version_count(void)
{
    const char *dir = getenv("XM_BENCH_QEMU"), *path = getenv("PATH");
    char own[4000];

    if (count)
        return count;
    snprintf(own, sizeof own, "%s", path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
    if (dir && dir[0]) {
        check_directory(dir);
        snprintf(known[0].path, sizeof known[0].path, "%.250s:%s", dir, own);
        if (!version_ask(&known[count++]))
            bench_die("the QEMU in %s does not start", dir);
    }
    snprintf(known[count].path, sizeof known[count].path, "%s", own);
    bool there = version_ask(&known[count]);
    if (!count && !there)
        bench_die("there is no QEMU that starts here");
    if (there && (!count || strcmp(known[0].name, known[1].name)))
        count++;
    for (unsigned v = 0; v < count; v++)
        printf("  QEMU %s%s\n", known[v].name, v ? ", the host's own" : "");
    fflush(stdout);
    version_use(0);
    return count;
}

const char *version_short(unsigned v)
{
    return known[v].brief;
}

const char *version_name(unsigned v)
{
    return known[v].name;
}

void version_use(unsigned v)
{
    version_count();
    in_use = v;
    setenv("PATH", known[v].path, 1);
}

static const json_t *schema_entry(const json_t *schema, const char *name)
{
    for (size_t i = 0; i < json_array_size(schema); i++) {
        const json_t *entry = json_array_get(schema, i);
        if (!strcmp(xm_json_str(entry, "name", ""), name))
            return entry;
    }
    return NULL;
}

bool version_knows(const char *command, const char *argument)
{
    version_count();
    const json_t *schema = known[in_use].schema, *c = schema_entry(schema, command),
                 *type = schema_entry(schema, xm_json_str(c, "arg-type", "")),
                 *members = json_object_get(type, "members");

    for (size_t i = 0; i < json_array_size(members); i++) {
        if (!strcmp(xm_json_str(json_array_get(members, i), "name", ""), argument))
            return true;
    }
    return false;
}

unsigned version_of_ours(void)
{
    const char *s = getenv("XM_BENCH_OURS");

    return s && !strcmp(s, "host") ? version_count() - 1 : 0;
}

bool version_turn(unsigned v, unsigned round)
{
    return v == 0 || round % 4 == 0;
}

void version_result(const char *unit, const struct bench_stat *const ours[],
                    const struct bench_stat *const peer[], const char *peer_name, double goal,
                    bool higher_is_better)
{
    struct bench_pair pair[VERSIONS_MAX];

    for (unsigned v = 0; v < count; v++)
        pair[v] = (struct bench_pair){known[v].name, ours[v], peer[v]};
    bench_result_better(unit, pair, count, peer_name, goal, higher_is_better);
}

void version_results(const char *unit, const struct bench_stat *ours, const struct bench_stat peer[],
                     const char *peer_name, double goal, bool higher_is_better)
{
    const struct bench_stat *o[VERSIONS_MAX], *p[VERSIONS_MAX];

    for (unsigned v = 0; v < count; v++) {
        o[v] = ours;
        p[v] = &peer[v];
    }
    version_result(unit, o, p, peer_name, goal, higher_is_better);
}
