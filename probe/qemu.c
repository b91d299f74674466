/* SPDX-License-Identifier: MIT */
/* A QEMU of no machine is started, asked by QMP on its standard input, and ended again: 0.2 to 0.3 s. */
#include "probe/probe.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ASK_TIMEOUT   (10 * XM_NS_PER_S)
#define FAILURE_KEPT  (10 * XM_NS_PER_S) /* so that each who asks does not wait for the time-out again */
#define CPUS_KEPT     64
#define FAILURES_KEPT 64
#define LAST_ID       "asked-last"

/* ---- one conversation ---- */

/* The answers to `commands` (each a JSON object), in their order: an array of the "return" values. NULL with
 * a sentence. QEMU is told to quit when the last answer is here: what a pipe did not hold by then is lost. */
static json_t *converse(const char *program, const char *accel, json_t *commands, struct xm_error *e)
{
    const char *argv[] = {program, "-machine", "none", "-accel", accel,   "-nodefaults", "-no-user-config",
                          "-S",    "-display", "none", "-qmp",   "stdio", NULL};
    char *first = xm_printf("{\"execute\":\"qmp_capabilities\",\"id\":\"ready\"}\n"), *out = NULL;
    json_t *answers = json_array(), *c;
    size_t i;

    json_array_foreach (commands, i, c) {
        json_object_set_new(c, "id", json_string(i + 1 < json_array_size(commands) ? "asked" : LAST_ID));
        char *text = json_dumps(c, JSON_COMPACT);
        char *more = xm_printf("%s%s\n", first, text);
        free(text);
        free(first);
        first = more;
    }
    const struct xm_run_input input = {first, LAST_ID, "{\"execute\":\"quit\"}\n"};
    int r = xm_run_input(argv, &input, ASK_TIMEOUT, &out, e);
    for (char *line = out, *next; !r && line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        else
            next = line + strlen(line);
        /* As reals: some CPU properties do not fit into a signed number. */
        json_t *o = json_loads(line, JSON_DECODE_INT_AS_REAL, NULL), *v = json_object_get(o, "return");
        if (!strncmp(xm_json_str(o, "id", ""), "asked", 5))
            json_array_append_new(answers, v ? json_incref(v) : json_null());
        json_decref(o);
    }
    if (!r && json_array_size(answers) != json_array_size(commands))
        r = xm_error_set(e, EPROTO, "it does not answer by QMP");
    free(out);
    free(first);
    json_decref(commands);
    if (r) {
        json_decref(answers);
        xm_error_prefix(e, "%s", program);
        return NULL;
    }
    return answers;
}

static json_t *command(const char *name)
{
    return json_pack("{s:s}", "execute", name);
}

/* ---- what is known already ---- */

/* The file that PATH finds, so that another QEMU in its place is asked anew. */
struct identity {
    dev_t dev;
    ino_t ino;
    int64_t mtime;
};

char *qemu_path(const char *program)
{
    struct stat st = {0};
    const char *path = strchr(program, '/') ? "" : getenv("PATH");

    for (const char *p = path ? path : "/usr/bin:/bin"; p; p = strchr(p, ':'), p = p ? p + 1 : NULL) {
        int n = (int)strcspn(p, ":");
        char *file = xm_printf("%.*s%s%s", n, p, n ? "/" : "", program);
        if (access(file, X_OK) == 0 && stat(file, &st) == 0 && S_ISREG(st.st_mode))
            return file;
        free(file);
    }
    return NULL;
}

static struct identity identify(const char *program)
{
    struct identity id = {0};
    struct stat st = {0};
    char *file = qemu_path(program);

    if (file && stat(file, &st) == 0)
        id = (struct identity){st.st_dev, st.st_ino, st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec};
    free(file);
    return id;
}

bool qemu_present(const char *program)
{
    return identify(program).ino != 0;
}

/* What one has said, or why it could not be asked. */
struct answer {
    const struct qemu_facts *facts; /* of a program */
    json_t *features;               /* of a CPU; a reference of its own */
    struct xm_error error;
};

struct known {
    struct known *next; /* the latest is the first */
    char *key;          /* program; for CPUs with accelerator and CPU */
    struct identity id;
    struct qemu_facts facts;
    json_t *features;
    struct xm_error error; /* when it could not be asked, and until when that is believed */
    uint64_t believed;
};

/* `lock` protects the list. Who asks a QEMU holds `asking` meanwhile, so that the same is not asked twice;
 * what is known already nobody waits for. Programs stay as long as the process, CPUs and failures are copied
 * out under the lock: the oldest go when there are many, since peers may name any. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, asking = PTHREAD_MUTEX_INITIALIZER;
static struct known *all;

static void known_free(struct known *k)
{
    json_decref(k->facts.machines);
    json_decref(k->features);
    free(k->key);
    free(k);
}

/* Under the lock. */
static void drop_oldest(void)
{
    unsigned cpus = 0, failures = 0;

    for (struct known **at = &all, *k; (k = *at);) {
        bool drop = k->believed ? k->believed < xm_now() || ++failures > FAILURES_KEPT
                                : k->features && ++cpus > CPUS_KEPT;
        if (drop) {
            *at = k->next;
            known_free(k);
        } else {
            at = &k->next;
        }
    }
}

static void tell_known(struct known *k, struct answer *a)
{
    *a = (struct answer){.features = json_incref(k->features), .error = k->error};
    if (!k->believed && !k->features)
        a->facts = &k->facts;
}

/* Something is known of it, or a failure that is not old. */
static bool find_known(const char *key, struct identity id, struct answer *a)
{
    pthread_mutex_lock(&lock);
    struct known *k = all;
    while (k &&
           (strcmp(k->key, key) || memcmp(&k->id, &id, sizeof id) || (k->believed && k->believed < xm_now())))
        k = k->next;
    if (k)
        tell_known(k, a);
    pthread_mutex_unlock(&lock);
    return k != NULL;
}

/* Takes it over. */
static void remember(const char *key, struct identity id, struct known *what, struct answer *a)
{
    struct known *k = malloc(sizeof *k);

    if (!k) {
        json_decref(what->facts.machines);
        json_decref(what->features);
        xm_error_set(&a->error, ENOMEM, "no memory");
        return;
    }
    *k = *what;
    k->key = xm_printf("%s", key);
    k->id = id;
    pthread_mutex_lock(&lock);
    k->next = all;
    all = k;
    tell_known(k, a);
    drop_oldest();
    pthread_mutex_unlock(&lock);
}

static const char *accel_name(const char *accel)
{
    return accel && !strncmp(accel, "kvm", 3) ? "kvm" : "tcg";
}

/* ---- the program ---- */

static bool has_parameter(const json_t *options, const char *option, const char *parameter)
{
    const json_t *o, *p;
    size_t i, k;

    json_array_foreach (options, i, o) {
        if (strcmp(xm_json_str(o, "option", ""), option) != 0)
            continue;
        json_array_foreach (json_object_get(o, "parameters"), k, p) {
            if (!strcmp(xm_json_str(p, "name", ""), parameter))
                return true;
        }
    }
    return false;
}

/* Without KVM, which may not be there: nothing of this depends on it. */
static void ask_program(const char *program, struct known *k)
{
    json_t *ask = json_pack("[o, o, o]", command("query-version"), command("query-machines"),
                            command("query-command-line-options"));
    json_t *answers = converse(program, "tcg", ask, &k->error);
    const json_t *v = json_object_get(json_array_get(answers, 0), "qemu");
    struct qemu_facts *f = &k->facts;

    if (answers && (!json_is_object(v) || !json_is_array(json_array_get(answers, 1))))
        xm_error_set(&k->error, EPROTO, "%s: its answers by QMP are not QEMU's", program);
    if (k->error.code) {
        json_decref(answers);
        k->believed = xm_now() + FAILURE_KEPT;
        return;
    }
    snprintf(f->version, sizeof f->version, "%.0f.%.0f.%.0f", xm_json_real(v, "major", 0),
             xm_json_real(v, "minor", 0), xm_json_real(v, "micro", 0));
    f->machines = json_incref(json_array_get(answers, 1));
    f->reconnect_ms = has_parameter(json_array_get(answers, 2), "chardev", "reconnect-ms");
    f->sandbox = has_parameter(json_array_get(answers, 2), "sandbox", "spawn");
    json_decref(answers);
}

const struct qemu_facts *qemu_facts(const char *program, struct xm_error *e)
{
    struct identity id = identify(program);
    struct answer a = {0};

    if (!find_known(program, id, &a)) {
        pthread_mutex_lock(&asking);
        if (!find_known(program, id, &a)) {
            struct known fresh = {0};
            ask_program(program, &fresh);
            remember(program, id, &fresh, &a);
        }
        pthread_mutex_unlock(&asking);
    }
    if (!a.facts)
        xm_error_set(e, a.error.code, "%s", a.error.text);
    return a.facts;
}

bool qemu_facts_machine(const struct qemu_facts *q, const char *machine, char full[128])
{
    size_t n = strcspn(machine, ","), i;
    const json_t *m;

    snprintf(full, 128, "%s", machine);
    json_array_foreach (q->machines, i, m) {
        const char *name = xm_json_str(m, "name", ""), *alias = xm_json_str(m, "alias", "");
        if (strlen(name) == n && !strncmp(name, machine, n))
            return true;
        if (strlen(alias) == n && !strncmp(alias, machine, n)) {
            snprintf(full, 128, "%s%s", name, machine + n);
            return true;
        }
    }
    return false;
}

/* "pc-q35-10.2" -> 10 * 1000 + 2, and where the number begins; 0: it has none. */
static unsigned machine_number(const char *name, size_t *at)
{
    const char *dash = strrchr(name, '-');
    unsigned major = 0, minor = 0;

    *at = dash ? (size_t)(dash + 1 - name) : 0;
    return dash && sscanf(dash + 1, "%u.%u", &major, &minor) == 2 && minor < 1000 ? major * 1000 + minor : 0;
}

void qemu_facts_machine_like(const struct qemu_facts *q, const char *machine, const char *version,
                             char like[64])
{
    char kind[64], wanted[64];
    unsigned major = 0, minor = 0, best = 0;
    unsigned most =
        version && sscanf(version, "%u.%u", &major, &minor) == 2 && minor < 1000 ? major * 1000 + minor : ~0u;
    const json_t *m;
    size_t at, i;

    like[0] = 0;
    snprintf(wanted, sizeof wanted, "%.*s", (int)XM_MIN(strcspn(machine, ","), sizeof wanted - 1), machine);
    bool numbered = machine_number(wanted, &at) != 0;
    snprintf(kind, sizeof kind, "%.*s", numbered ? (int)at : 7, numbered ? wanted : "pc-q35-");
    json_array_foreach (q->machines, i, m) {
        const char *name = xm_json_str(m, "name", "");
        unsigned n = machine_number(name, &at);
        if (n > best && n <= most && strlen(kind) == at && !strncmp(name, kind, at)) {
            best = n;
            snprintf(like, 64, "%s", name);
        }
    }
}

/* ---- CPUs ---- */

/* Properties of QEMU's CPU object that are true or false, and no feature that a guest could use. pcommit:
 * withdrawn by Intel before there was a CPU that had it, known to QEMU 7.2. */
static const char *const no_features[] = {"check",
                                          "cpuid-0xb",
                                          "fill-mtrr-mask",
                                          "full-cpuid-auto-level",
                                          "hotpluggable",
                                          "hotplugged",
                                          "kvm",
                                          "l3-cache",
                                          "legacy-cache",
                                          "migratable",
                                          "pcommit",
                                          "pmu",
                                          "realized",
                                          "start-powered-off",
                                          "tcg-cpuid",
                                          "vmware-cpuid-freq",
                                          NULL};

static bool is_feature(const char *name)
{
    if (!strncmp(name, "x-", 2) || strpbrk(name, "_.")) /* '_' and '.': second names */
        return false;
    for (const char *const *n = no_features; *n; n++) {
        if (!strcmp(*n, name))
            return false;
    }
    return true;
}

/* "Skylake-Server,+avx,-tsx,pcid=on" as query-cpu-model-expansion takes it. */
static json_t *cpu_model(const char *cpu)
{
    size_t n = strcspn(cpu, ",");
    json_t *props = json_object();

    for (const char *p = cpu + n; *p; p += strcspn(p, ",")) {
        char word[128];
        size_t len = strcspn(++p, ",");
        snprintf(word, sizeof word, "%.*s", (int)len, p);
        char *value = strchr(word, '=');
        if (value)
            *value++ = 0;
        if (word[0] == '+' || word[0] == '-')
            json_object_set_new(props, word + 1, json_boolean(word[0] == '+'));
        else if (word[0] && (!value || !strcmp(value, "on") || !strcmp(value, "off")))
            json_object_set_new(props, word, json_boolean(!value || !strcmp(value, "on")));
    }
    return json_pack("{s:s, s:{s:s, s:{s:s%, s:o}}}", "execute", "query-cpu-model-expansion", "arguments",
                     "type", "full", "model", "name", cpu, n, "props", props);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static json_t *features_of(const json_t *expansion, const json_t *unavailable)
{
    json_t *props = json_object_get(json_object_get(expansion, "model"), "props"), *list = json_array(), *v;
    const char **name = calloc(json_object_size(props) + 1, sizeof *name), *key;
    size_t n = 0;

    json_object_foreach (props, key, v) {
        if (name && json_is_true(v) && is_feature(key) && !xm_json_lists(unavailable, key))
            name[n++] = key;
    }
    if (n)
        qsort(name, n, sizeof *name, by_name);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_string(name[i]));
    free(name);
    return list;
}

/* The sentence for what QEMU does not take: which of the flags, when it knows the model. */
static void what_is_unknown(const char *program, const char *accel, const char *cpu, struct xm_error *e)
{
    int n = (int)strcspn(cpu, ",");
    char *model = xm_printf("%.*s", n, cpu);
    json_t *answers = converse(program, accel, json_pack("[o]", cpu_model(model)), NULL);
    json_t *asked = cpu_model(cpu), *v;
    const json_t *known = json_object_get(json_object_get(json_array_get(answers, 0), "model"), "props");
    json_t *props = json_object_get(json_object_get(json_object_get(asked, "arguments"), "model"), "props");
    const char *key;

    xm_error_set(e, EINVAL, "QEMU does not know the CPU '%.60s' with %s", cpu, accel);
    json_object_foreach (props, key, v) {
        if (json_is_object(known) && !json_object_get(known, key)) {
            xm_error_set(e, EINVAL, "QEMU knows no flag '%.40s' of the CPU '%.60s'", key, model);
            break;
        }
    }
    json_decref(asked);
    json_decref(answers);
    free(model);
}

/* The features of one model, and those that the accelerator cannot give to it. */
static void ask_cpu(const char *program, const char *accel, const char *cpu, struct known *k)
{
    json_t *answers = converse(
        program, accel, json_pack("[o, o]", cpu_model(cpu), command("query-cpu-definitions")), &k->error);
    const json_t *expansion = json_array_get(answers, 0), *model, *unavailable = NULL;
    size_t i, n = strcspn(cpu, ",");

    json_array_foreach (json_array_get(answers, 1), i, model) {
        const char *name = xm_json_str(model, "name", "");
        if (strlen(name) == n && !strncmp(name, cpu, n))
            unavailable = json_object_get(model, "unavailable-features");
    }
    if (answers && !json_is_object(expansion))
        what_is_unknown(program, accel, cpu, &k->error);
    else if (answers)
        k->features = features_of(expansion, unavailable);
    if (!k->features)
        k->believed = xm_now() + FAILURE_KEPT;
    json_decref(answers);
}

json_t *qemu_facts_cpu(const char *program, const char *accel, const char *cpu, struct xm_error *e)
{
    struct identity id = identify(program);
    char *key = xm_printf("%s %s %s", program, accel_name(accel), cpu);
    struct answer a = {0};

    if (!find_known(key, id, &a)) {
        pthread_mutex_lock(&asking);
        if (!find_known(key, id, &a)) {
            struct known fresh = {0};
            ask_cpu(program, accel_name(accel), cpu, &fresh);
            remember(key, id, &fresh, &a);
        }
        pthread_mutex_unlock(&asking);
    }
    free(key);
    if (!a.features)
        xm_error_set(e, XM_MAX(a.error.code, 1), "%s", a.error.text);
    return a.features;
}
