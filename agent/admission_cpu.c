/* SPDX-License-Identifier: MIT */
/* Admission: can the VM have its CPU here, by its name and by what the guest has seen of it? */
#include "agent/admission_parts.h"

#include <stdio.h>
#include <string.h>

static bool has_word(const char *list, const char *word, size_t n)
{
    for (const char *p = list; (p = strstr(p, word)); p += n) {
        if ((p == list || p[-1] == ' ') && (!p[n] || p[n] == ' '))
            return true;
    }
    return false;
}

/* What QEMU would end with when it starts. */
static void judge_cpu_name(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;
    bool kvm = s->accel && !strncmp(s->accel, "kvm", 3);
    bool host = s->cpu && !strncmp(s->cpu, "host", 4) && (!s->cpu[4] || s->cpu[4] == ',');

    if (host && !kvm && r->start)
        because(why,
                "the CPU 'host' is the processor's own, which only KVM can give to %s, and its accel is tcg: "
                "leave cpu out, or name a model",
                s->name);
    else if (h->cpu_unknown &&
             (r->start || !(kvm || admission_older(h, r)))) /* else judge_features says so */
        because(why, "the CPU '%s' of %s: %s (on %s); `%s -cpu help` lists models and flags",
                s->cpu ? s->cpu : "?", s->name, h->cpu_why, h->host, s->qemu);
}

/* With the host's own CPU in the guest, the guest has seen all of the source's flags; told by the kernel
 * where QEMU has not told. */
static void judge_cpu(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;
    char missing[120] = "", word[64];
    unsigned more = 0;

    if (r->start || !s->accel || strncmp(s->accel, "kvm", 3) || !s->cpu || strncmp(s->cpu, "host", 4) ||
        !r->cpu_flags || (r->cpu && h->cpu))
        return;
    for (const char *p = r->cpu_flags; *p;) {
        size_t n = strcspn(p, " ");
        if (n && n < sizeof word) {
            snprintf(word, sizeof word, "%.*s", (int)n, p);
            if (has_word(h->cpu_flags ? h->cpu_flags : "", word, n))
                ;
            else if (strlen(missing) + n + 2 < sizeof missing)
                snprintf(missing + strlen(missing), sizeof missing - strlen(missing), "%s%s",
                         missing[0] ? " " : "", word);
            else
                more++;
        }
        p += n + (p[n] == ' ');
    }
    if (missing[0] && more)
        because(why, "the CPU of %s lacks what %s has seen: %s and %u more; use a named CPU model", h->host,
                s->name, missing, more);
    else if (missing[0])
        because(why, "the CPU of %s lacks what %s has seen: %s; use a named CPU model", h->host, s->name,
                missing);
}

/* What is missing here, as words: "a b c and 7 more". False: nothing. */
static bool features_missing(const struct host_facts *h, const struct admission_request *r, char *text,
                             size_t size)
{
    enum { REST = 32 }; /* for the last words */
    unsigned more = 0;
    const json_t *v;
    size_t i;

    text[0] = 0;
    json_array_foreach (r->cpu, i, v) {
        const char *word = json_is_string(v) ? json_string_value(v) : NULL;
        size_t used = strlen(text);
        if (!word || xm_json_lists(h->cpu, word))
            continue;
        if (used + strlen(word) + 2 + REST < size)
            snprintf(text + used, size - used, "%s%s", used ? " " : "", word);
        else
            more++;
    }
    size_t used = strlen(text);
    if (more)
        snprintf(text + used, size - used, "%s%u more", used ? " and " : "", more);
    return text[0];
}

/* What the guest has seen of its CPU it may use at any time. An older QEMU knows fewer features; under KVM
 * they are the processor's, and QEMU leaves out, with no more than a warning, what it cannot give.
 *
 * A guest that came from another host was started on less, maybe, but its programs may ask the processor
 * again at any time: what the present QEMU gives counts all the same. Then it is not said that they have seen
 * it. */
static void judge_features(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    const struct vm_spec *s = r->spec;
    const char *cpu = s->cpu ? s->cpu : "?", *version = h->qemu_version ? h->qemu_version : "?";
    bool kvm = s->accel && !strncmp(s->accel, "kvm", 3);
    char missing[190];

    if (r->start || !(kvm || admission_older(h, r)))
        return;
    if (!r->cpu && r->cpu_why) {
        because(why, "what CPU features %s has seen cannot be found out on %s: %.200s", s->name, r->source,
                r->cpu_why);
    } else if (!r->cpu) {
        /* The running QEMU's file is gone; with the host's own CPU, judge_cpu compares flags. */
        if (r->allow_older && admission_older(h, r))
            because(why,
                    "what CPU features %s has seen is not known (was QEMU on %s replaced since it was "
                    "started?): it cannot go to an older QEMU",
                    s->name, r->source);
    } else if (!h->cpu) {
        /* Without KVM or a QEMU that answers, that is the reason (judge_qemu). */
        if (h->cpu_why || (h->qemu_version && (!kvm || h->kvm != KVM_NONE)))
            because(why, "the CPU '%s' of %s: %s (on %s)", cpu, s->name,
                    h->cpu_why ? h->cpu_why : "what it has with QEMU is not known", h->host);
    } else if (!features_missing(h, r, missing, sizeof missing)) {
        return;
    } else if (r->booted) {
        because(
            why,
            "%s has seen CPU features that QEMU %s on %s cannot give to '%s': %s; give it a CPU model that "
            "both hosts can run",
            s->name, version, h->host, cpu, missing);
    } else {
        because(
            why,
            "QEMU %s on %s gives CPU features to '%s' that QEMU %s on %s does not: %s; %s was not started "
            "there, and whether it has seen them is not known; give it a CPU model that both hosts can run",
            r->qemu_version ? r->qemu_version : "?", r->source, cpu, version, h->host, missing, s->name);
    }
}

void admission_cpu(const struct host_facts *h, const struct admission_request *r, json_t *why)
{
    judge_cpu_name(h, r, why);
    judge_cpu(h, r, why);
    judge_features(h, r, why);
}
