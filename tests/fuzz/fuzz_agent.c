/* SPDX-License-Identifier: MIT */
/* What agents say to each other, and shims: a request to prepare as a peer sends it, the hand-off's messages,
 * with anything in the place of any of their values.
 *
 *   make run-fuzz-agent [FUZZ_SECONDS=60]
 *
 * The first byte says which message; then changes: which value of it (counted through the whole tree), what
 * becomes of it, and bytes for that. So nearly every input is JSON that is almost right, and goes deep. Must
 * hold: no report of a sanitizer, no hang; what is refused has a sentence; what is taken passes the bounds
 * that the rest relies on. */
#include "agent/asked.h"
#include "agent/outside.h"
#include "vm/handoff.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "fuzz_agent: %s\n", what);
        abort();
    }
}

static unsigned take(struct input *in)
{
    return in->left ? (in->left--, *in->at++) : 0;
}

/* With ' for ". Unchanged they are taken. */
static const char *const message[] = {
    "{'verb':'peer.prepare', 'from':'hostb', 'storage':true, 'datastore':'ds', 'epoch':3, 'protocol':1, "
    "'qemu':'7.2.22', 'cpu_flags':'sse avx', 'cpu':['sse','avx'], 'kvm':1, 'allow_older':false, 'job':'12', "
    "'large_rings':false, 'booted':true, 'used':[4096,4096], "
    "'links':[{'name':'l1','address':'10.1.0.1'}, {'name':'l2','address':'fe80::1'}], "
    "'probes':[{'datastore':'ds','probe':'0123456789abcdef','content':'0123456789abcdef0123456789abcdef',"
    "'file':'a.raw'}], "
    "'vm':{'name':'web1', 'memory':67108864, 'vcpus':2, 'accel':'tcg', 'machine':'pc-q35-7.2', 'cpu':'max', "
    "'qemu':'qemu-system-x86_64', 'kernel':'/boot/k', 'initrd':'/boot/i', 'append':'quiet', "
    "'disks':[{'name':'root','datastore':'ds','size':1048576,'path':'/srv/a','queues':0,'boot':1}, "
    "{'name':'data','datastore':'','size':4096,'path':'/srv/b','queues':2,'read_only':true}], "
    "'nics':[{'name':'lan','bridge':'br0','mac':'52:54:00:12:34:56','tap':'t'}], "
    "'cdroms':[{'name':'seed','path':'/srv/seed.iso','boot':2}], "
    "'devices':{'rng':true,'guest_agent':true,'video':'std','vnc':'unix','smbios_serial':'7'}, "
    "'extra':['-device','virtio-rng-pci']}}",
    "{'call':'handoff', 'handoff':'answer', 'epoch':4, 'owner':'given', 'to':'hostb'}",
};

static json_t *read_message(unsigned which)
{
    struct xm_error e = {0};
    char *text = xm_printf("%s", message[which]);

    for (char *c = text; *c; c++)
        *c = *c == '\'' ? '"' : *c;
    json_t *o = xm_json_parse(text, strlen(text), &xm_json_request, &e);
    must(o, e.text);
    free(text);
    return o;
}

/* A value made of the input. */
static json_t *any_value(struct input *in)
{
    static const char *const words[] = {"",       "..", "../../x", "/etc/shadow", "a,b=c", "json:{}", "hosta",
                                        "\n\033", "ds", "-1",      "%s%n",        "::",    "0.0.0.0", "tcg"};
    char text[300];
    json_t *o = NULL;
    unsigned n;

    switch (take(in) % 10) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(take(in) & 1);
    case 2:
        return json_integer((json_int_t)(((uint64_t)take(in) << 56) - take(in)));
    case 3:
        return json_integer((json_int_t)1 << take(in) % 63);
    case 4:
        return json_real((double)take(in) * 1e300);
    case 5:
        return json_string(words[take(in) % (sizeof words / sizeof *words)]);
    case 6:
        n = take(in) + take(in) % 40;
        memset(text, 'a' + (int)take(in) % 26, n);
        return json_stringn(text, n);
    case 7:
        for (n = 0; n < 60 && (text[n] = (char)take(in)); n++) {
        }
        o = json_stringn(text, n);
        return o ? o : json_string("no UTF-8");
    case 8:
        o = json_array();
        for (n = take(in); n; n--)
            json_array_append_new(o, json_integer((json_int_t)n));
        return o;
    default:
        return json_object();
    }
}

/* Changes the value with this number, counted down through the tree. */
static void change(json_t *o, unsigned *number, struct input *in)
{
    const char *key;
    json_t *v;
    size_t i;
    void *tmp;

    json_object_foreach_safe(o, tmp, key, v)
    {
        if ((*number)-- == 0) {
            if (take(in) % 4)
                json_object_set_new(o, key, any_value(in));
            else
                json_object_del(o, key);
            return;
        }
        change(v, number, in);
        if (*number > 10000)
            return;
    }
    for (i = 0; i < json_array_size(o); i++) {
        if ((*number)-- == 0) {
            unsigned how = take(in) % 4;
            if (how == 0)
                json_array_remove(o, i);
            else if (how == 1)
                json_array_insert(o, i, json_array_get(o, i));
            else
                json_array_set_new(o, i, any_value(in));
            return;
        }
        change(json_array_get(o, i), number, in);
        if (*number > 10000)
            return;
    }
}

static bool try_request(const json_t *o)
{
    static struct agent agent = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct host_facts facts = {
        .host = "hosta", .protocol = AGENT_PROTOCOL, .qemu_version = "7.2.22", .machine = true};
    struct asked q = {0};
    struct xm_error e = {0};
    json_t *reasons = json_array(), *v;
    int datastore;
    size_t i;

    TAILQ_INIT(&agent.vms);
    bool taken = asked_read(&agent, &q, o, &e) == 0;
    if (!taken) {
        must(e.code && *e.text, "refused without a sentence");
    } else {
        must(q.req.epoch && q.req.links <= CONFIG_MANY && q.spec.disks <= VM_DISKS_MAX,
             "taken beyond its bounds");
        must(vm_name_check(q.spec.name, NULL) == 0, "taken with a name that is none");
        outside_judge(&q.spec, &agent.conf, q.req.source, reasons);
        admit(&facts, &q.req, reasons, &datastore);
        json_array_foreach (reasons, i, v)
            must(json_string_length(v) > 0, "a reason without a sentence");
        json_t *again = vm_spec_to_json(&q.spec);
        struct vm_spec same = {0};
        must(again && vm_spec_from_json(&same, again, &e) == 0, "a spec that is not read as itself");
        vm_spec_free(&same);
        json_decref(again);
    }
    json_decref(reasons);
    vm_spec_free(&q.spec);
    return taken;
}

static bool try_handoff(const json_t *o)
{
    struct handoff_msg msg, again;
    struct xm_error e = {0};

    if (handoff_msg_unpack(&msg, o, &e) < 0) {
        must(e.code && *e.text, "refused without a sentence");
        return false;
    }
    json_t *packed = handoff_msg_pack(&msg);
    must(handoff_msg_unpack(&again, packed, &e) == 0 && again.type == msg.type && again.epoch == msg.epoch,
         "a message that is not read as itself");
    json_decref(packed);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned which = take(&in) % 2;
    struct xm_error e = {0};
    bool changed = in.left;
    json_t *o = read_message(which);

    while (in.left) {
        unsigned number = take(&in) % 120;
        change(o, &number, &in);
    }
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    /* As it comes over the wire. */
    if (text && (o = xm_json_parse(text, strlen(text), &xm_json_request, &e))) {
        bool taken = which ? try_handoff(o) : try_request(o);
        must(taken || changed, "the message as it should be is refused");
        json_decref(o);
    }
    free(text);
    return 0;
}
