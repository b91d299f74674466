/* SPDX-License-Identifier: MIT */
/* Whatever stands in a configuration file or comes from an agent: units, INI by table, JSON lines, and what
 * the command prints of them.
 *
 *   make run-fuzz-text [FUZZ_SECONDS=60]
 *
 * The first byte says which: 0 a size, a rate and a time; 1 an INI file; 2 JSON lines over a socket; 3 one
 * JSON object as a migration's event, result, and each verb's answer. Must hold: no report of a sanitizer, no
 * hang; what is read is what formatting it gives again; an error has a sentence; nothing printed but text
 * could steer a terminal. */
#include "cli/outcome.h"
#include "cli/progress.h"
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "fuzz_text: %s\n", what);
        abort();
    }
}

static void must_judge(int err, const struct xm_error *e)
{
    must(err == 0 ? !e->code : e->code == -err && *e->text,
         "an error without a sentence, or a sentence without an error");
}

static void try_units(const char *text)
{
    int (*const parse[])(const char *, uint64_t *, struct xm_error *) = {xm_parse_size, xm_parse_rate,
                                                                         xm_parse_time};

    for (int i = 0; i < 3; i++) {
        struct xm_error e = {0};
        uint64_t v = 0, again;
        int err = parse[i](text, &v, &e);
        must_judge(err, &e);
        if (err)
            continue;
        char exact[40];
        snprintf(exact, sizeof exact, i == 2 ? "%lluns" : "%llu", (unsigned long long)v);
        must(parse[i](exact, &again, NULL) == 0 && again == v, "a number is not read as itself");
        must(*xm_format_size(v).s && *xm_format_rate((double)v).s && *xm_format_time(v).s, "nothing printed");
    }
}

struct things {
    char *text, **many;
    uint64_t size, rate, time;
    unsigned number, percent, named;
    bool yes;
};

static void *open_named(void *root, const char *name, struct xm_error *e)
{
    struct things *t = root;

    must(*name && strlen(name) < 50, "a section's name");
    if (++t->named < 3)
        return t;
    xm_error_set(e, EINVAL, "enough");
    return NULL;
}

#define KEY(field, kind)                                                                                     \
    {                                                                                                        \
        .name = #field, .type = kind, .offset = offsetof(struct things, field)                               \
    }
static const struct xm_ini_key keys[] = {
    KEY(text, XM_INI_STRING), KEY(many, XM_INI_STRINGS),    KEY(size, XM_INI_SIZE),
    KEY(rate, XM_INI_RATE),   KEY(time, XM_INI_TIME),       KEY(number, XM_INI_UINT),
    KEY(yes, XM_INI_BOOL),    KEY(percent, XM_INI_PERCENT), {0}};
static const struct xm_ini_section sections[] = {
    {.name = "a", .keys = keys}, {.name = "b", .named = true, .keys = keys, .open = open_named}, {0}};

static void try_ini(const uint8_t *data, size_t size)
{
    struct things t = {0};
    struct xm_error e = {0};
    char path[40];
    int fd = memfd_create("ini", MFD_CLOEXEC);

    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    must_judge(xm_ini_load(path, sections, &t, &e), &e);
    must(!e.code || strstr(e.text, path), "an error that does not name the file");
    must(t.percent <= 100, "more than all");
    free(t.text);
    for (char **s = t.many; s && *s; s++)
        free(*s);
    free(t.many);
    close(fd);
}

static void try_jsonl(const uint8_t *data, size_t size)
{
    struct xm_jsonl j;
    struct xm_error e = {0};
    int s[2];
    bool bad = false;

    if (size > 60000 || socketpair(AF_UNIX, SOCK_STREAM, 0, s) < 0)
        return;
    if (write(s[1], data, size) != (ssize_t)size)
        abort();
    close(s[1]);
    xm_jsonl_init(&j, s[0]);
    while (!bad && xm_jsonl_fill(&j, &e) > 0) {
        for (json_t *o; (o = xm_jsonl_next(&j, &bad, &e));) {
            must(json_is_object(o), "no object");
            json_decref(o);
        }
    }
    must(bad == (e.code != 0), "bad without a sentence");
    xm_jsonl_close(&j);
}

static void try_printing(const char *text, size_t size)
{
    json_t *o = xm_json_parse(text, size, &xm_json_answer, NULL);
    char *printed = NULL, line[100];
    size_t len = 0;
    struct args a = {.word = {"vm", "host"}, .words = 2};
    struct progress p;

    if (!o)
        return;
    FILE *f = open_memstream(&printed, &len);
    struct cli_io io = {.out = f, .err = f, .columns = 80};
    progress_init(&p, &io);
    progress_format(line, sizeof line, "state", o);
    must(strlen(line) < sizeof line, "longer than its buffer");
    progress_event(&p, o, 1);
    report_done(o, o, &io);
    must(report_failure(o, &io) >= CLI_FAILED, "a failure that is none");
    for (const struct verb *v = verb_table; v->name; v++)
        must(!v->print || v->print(&a, o, &io) <= CLI_UNKNOWN, "no exit status");
    fclose(f);
    for (size_t i = 0; i < len; i++)
        must((unsigned char)printed[i] >= ' ' || printed[i] == '\n', "a control character");
    free(printed);
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    char *text = strndup((const char *)data + 1, size - 1);

    switch (data[0] % 4) {
    case 0:
        try_units(text);
        break;
    case 1:
        try_ini(data + 1, size - 1);
        break;
    case 2:
        try_jsonl(data + 1, size - 1);
        break;
    case 3:
        try_printing((const char *)data + 1, size - 1);
        break;
    }
    free(text);
    return 0;
}
