/* SPDX-License-Identifier: MIT */
#include "cli/verbs.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

const struct option_row option_table[OPTIONS] = {
    {OPT_WITH_STORAGE, "with-storage", .help = "Move the disks too: the hosts share no storage."},
    {OPT_STORAGE_ONLY, "storage-only",
     .help = "Move only the disks, to another datastore of this host; the VM stays here."},
    {OPT_DOWNTIME, "downtime", .arg = "MS", .initial = "the agent's",
     .help = "How long the VM may stand still at most, in milliseconds (or a time with a unit, as in 2s)."},
    {OPT_BANDWIDTH, "bandwidth", .arg = "RATE", .initial = "the agent's",
     .help = "At most so much a second over all links together: 100M, 1.2GB/s, 10Gbit; 0 is no limit."},
    {OPT_POSTCOPY, "postcopy", .arg = "WHEN", .initial = "no", .choices = "no auto now",
     .not_yet = "auto now",
     .help = "Whether the VM may run at the destination before all of its memory is there."},
    {OPT_VERIFY, "verify",
     .help = "Read the disks again on both sides before the VM changes sides, and compare them."},
    {OPT_COMPRESS, "compress", .arg = "HOW", .initial = "no", .choices = "auto no lz4", .not_yet = "auto lz4",
     .help = "Whether what goes over the links is compressed."},
    {OPT_RESUME, "resume", .not_yet = "",
     .help = "Go on with what an interrupted run has left at the destination."},
    {OPT_KEEP_SOURCE, "keep-source", .help = "Leave the disks at the source when they have been moved."},
    {OPT_ALLOW_OLDER, "allow-older",
     .help =
         "Move to a host whose QEMU is older than this one's, if it knows the VM's machine type and CPU."},
    {OPT_OUTRUN, "outrun", .arg = "WHAT", .initial = "end", .choices = "end go-on",
     .help =
         "What becomes of a migration whose guest writes faster than the copy comes on: it ends, with the VM "
         "where it is, or goes on until the guest writes less."},
    {OPT_DETACH, "detach", .help = "Start it, print the job's number and do not wait."},
    {OPT_DRY_RUN, "dry-run", .help = "Only say whether it could be done, or what would be done."},
    {OPT_FORCE, "force",
     .help = "stop: do not ask the guest, end the VM at once, as a power cut does. undefine: forget a VM "
             "although no host is known to have it."},
    {OPT_TIMEOUT, "timeout", .arg = "TIME", .initial = "2min",
     .help = "How long the guest is given to power itself down."},
    {OPT_PEER_IS_DEAD, "peer-is-dead",
     .help = "The host that would have to say whose the VM is will never be back: take the VM here."},
    {OPT_AUTOSTART, "autostart", .arg = "ANSWER", .initial = "no", .choices = "yes no",
     .help = "Whether the VM is started by itself when its host has booted."},
    {OPT_JSON, "json", .help = "Print JSON objects, one a line, instead of text."},
    {OPT_SOCKET, "socket", .arg = "PATH", .initial = CLI_SOCKET,
     .help = "Where the agent listens; XMIGRATE_SOCKET in the environment says it too."},
    {OPT_HELP, "help", .help = "Print this help, or that of one verb."},
    {OPT_VERSION, "version", .help = "Print the version."},
    {OPT_OPTIONS, "options", .hidden = true,
     .help = "Print the tables of verbs and options for the manual's test."},
};

/* Is `word` one of the words of the list? */
static bool listed(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *s = list; s && n && (s = strstr(s, word)); s += n) {
        if ((s == list || s[-1] == ' ') && (!s[n] || s[n] == ' '))
            return true;
    }
    return false;
}

struct xm_text option_usage(const struct option_row *o)
{
    struct xm_text t;

    snprintf(t.s, sizeof t.s, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    return t;
}

/* "no, auto or now" */
static const char *choices_text(const char *choices, char *buf, size_t cap)
{
    const char *last = strrchr(choices, ' ');
    size_t n = 0;

    for (const char *s = choices; *s && n + 8 < cap; s++)
        n += (size_t)snprintf(buf + n, cap - n, *s != ' ' ? "%c" : s == last ? " or " : ", ", *s);
    return buf;
}

static int parse_downtime(const char *text, uint64_t *ms, struct xm_error *e)
{
    uint64_t ns;
    char with_unit[40];
    bool bare = *text && strspn(text, "0123456789") == strlen(text) && strlen(text) < 20;

    snprintf(with_unit, sizeof with_unit, "%sms", text);
    if (xm_parse_time(bare ? with_unit : text, &ns, e) < 0)
        return xm_error_set(
            e, EINVAL,
            "--downtime: \"%.40s\" is no time: write milliseconds, or a number with its unit, as in 2s",
            text);
    *ms = ns / XM_NS_PER_MS;
    if (!*ms || ns % XM_NS_PER_MS || *ms > 3600 * 1000)
        return xm_error_set(e, EINVAL, "--downtime: %.40s is not between 1 ms and 1 h in whole milliseconds",
                            text);
    return 0;
}

static int parse_timeout(const char *text, uint64_t *ms, struct xm_error *e)
{
    uint64_t ns;

    if (xm_parse_time(text, &ns, e) < 0)
        return xm_error_set(e, EINVAL,
                            "--timeout: \"%.40s\" is no time: write a number with its unit, as in 30s", text);
    *ms = ns / XM_NS_PER_MS;
    if (ns < XM_NS_PER_S || ns > 86400 * XM_NS_PER_S)
        return xm_error_set(e, EINVAL, "--timeout: %.40s is not between 1 s and 24 h", text);
    return 0;
}

static int take_option(struct args *a, const struct option_row *o, const char *value, struct xm_error *e)
{
    char buf[80];

    if (args_has(a, o->id))
        return xm_error_set(e, EINVAL, "--%s is given twice", o->name);
    a->given |= OPT_BIT(o->id);
    a->value[o->id] = value;
    if (o->choices && !listed(o->choices, value))
        return xm_error_set(e, EINVAL, "--%s: \"%.40s\" is none of %s", o->name, value,
                            choices_text(o->choices, buf, sizeof buf));
    if (o->not_yet && (!o->choices || listed(o->not_yet, value)))
        return xm_error_set(e, EINVAL, "--%s%s%s is planned, but this version cannot do it yet", o->name,
                            o->arg ? "=" : "", o->arg ? value : "");
    if (o->id == OPT_DOWNTIME)
        return parse_downtime(value, &a->downtime_ms, e);
    if (o->id == OPT_TIMEOUT)
        return parse_timeout(value, &a->timeout_ms, e);
    if (o->id == OPT_BANDWIDTH && xm_parse_rate(value, &a->bandwidth, e) < 0)
        return xm_error_prefix(e, "--bandwidth");
    return 0;
}

/* Does the verb take, and has it got, all these options? */
static int check_options(const struct args *a, struct xm_error *e)
{
    for (int i = 0; i < OPTIONS; i++) {
        const char *name = option_table[i].name;
        if (args_has(a, option_table[i].id) && !((a->verb->options | OPT_COMMON) & OPT_BIT(i)))
            return xm_error_set(e, EINVAL, "%s does not take --%s", a->verb->name, name);
        if (!args_has(a, option_table[i].id) && (a->verb->needs & OPT_BIT(i)))
            return xm_error_set(e, EINVAL, "%s needs %s", a->verb->name, option_usage(&option_table[i]).s);
    }
    return 0;
}

/* The first word is a verb, or the VM of a move. No VM has a verb's name. */
static int find_verb(struct args *a, char **word, int words, struct xm_error *e)
{
    a->verb = words ? verb_find(word[0]) : NULL;
    int skip = a->verb != NULL;
    if (!skip)
        a->verb = &verb_table[0];
    if (a->given & (OPT_BIT(OPT_HELP) | OPT_BIT(OPT_VERSION) | OPT_BIT(OPT_OPTIONS))) {
        a->verb = skip ? a->verb : NULL;
        return 0;
    }
    if (!words)
        return xm_error_set(e, EINVAL, "a VM and a host, or a verb, are missing");
    words -= skip;
    if (!skip && words == 1)
        return xm_error_set(e, EINVAL, "\"%.60s\" is no verb, and as a VM to move it needs a host behind it",
                            word[0]);
    if (words < a->verb->min || words > a->verb->max)
        return xm_error_set(e, EINVAL, "too %s words: write xmigrate %s%s%s",
                            words < a->verb->min ? "few" : "many", a->verb->name, *a->verb->words ? " " : "",
                            a->verb->words);
    for (a->words = 0; a->words < words; a->words++) {
        a->word[a->words] = word[skip + a->words];
        if (!*a->word[a->words])
            return xm_error_set(e, EINVAL, "an empty word: write xmigrate %s %s", a->verb->name,
                                a->verb->words);
    }
    return check_options(a, e);
}

int args_parse(struct args *a, int argc, char **argv, struct xm_error *e)
{
    struct option longopts[OPTIONS + 1] = {0};

    *a = (struct args){0};
    for (int i = 0; i < OPTIONS; i++) {
        longopts[i] = (struct option){.name = option_table[i].name,
                                      .has_arg = option_table[i].arg ? required_argument : no_argument,
                                      .val = 1000 + i};
        a->value[i] = option_table[i].initial;
    }
    optind = 0; /* getopt starts anew */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", longopts, NULL)) != -1;) {
        if (c == 'h')
            c = 1000 + OPT_HELP;
        if (c == ':')
            return xm_error_set(e, EINVAL, "%.60s needs a value behind it", argv[optind - 1]);
        if (c < 1000) {
            if (optopt >= 1000)
                return xm_error_set(e, EINVAL, "--%s takes no value", option_table[optopt - 1000].name);
            /* Of a cluster like -json getopt names the letter; the word is the next one's until its end. */
            if (optopt)
                return xm_error_set(e, EINVAL, "there is no option -%c: options begin with --",
                                    optopt > ' ' && optopt < 127 ? optopt : '?');
            return xm_error_set(e, EINVAL, "there is no option %.60s", argv[optind - 1]);
        }
        const char *name = option_table[c - 1000].name, *cut = xm_option_cut(argv, optind, optarg, name);
        if (cut)
            return xm_error_set(e, EINVAL, "there is no option %.*s: is --%s meant?",
                                (int)XM_MIN(strcspn(cut, "="), 60), cut, name);
        int err = take_option(a, &option_table[c - 1000], optarg, e);
        if (err)
            return err;
    }
    return find_verb(a, argv + optind, argc - optind, e);
}

#define HELP_COLUMNS 80

/* Its words in lines of so many columns, of which the first has `indent` already; ends the line. */
static void put_words(FILE *out, size_t indent, const char *text)
{
    size_t at = indent;

    for (const char *w = text; *w; w += *w == ' ') {
        size_t n = strcspn(w, " ");
        bool next = at > indent && at + 1 + n > HELP_COLUMNS;
        if (next)
            fprintf(out, "\n%*s", (int)indent, "");
        else if (at > indent)
            fputc(' ', out);
        at = next ? indent + n : at + (at > indent) + n;
        fwrite(w, 1, n, out);
        w += n;
    }
    fputc('\n', out);
}

static void print_option_help(FILE *out, const struct option_row *o)
{
    char buf[80], *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    if (!f)
        return;
    fputs(o->help, f);
    if (o->choices)
        fprintf(f, " One of: %s.", choices_text(o->choices, buf, sizeof buf));
    if (o->initial)
        fprintf(f, " Default: %s.", o->initial);
    if (o->not_yet)
        fprintf(f, " (Not yet%s%s.)", *o->not_yet ? ": " : "",
                *o->not_yet ? choices_text(o->not_yet, buf, sizeof buf) : "");
    fclose(f);
    fprintf(out, "  %-20s ", option_usage(o).s);
    put_words(out, 23, text);
    free(text);
}

void print_help(FILE *out, const struct verb *only)
{
    unsigned options = OPT_COMMON;

    fprintf(out,
            only
                ? "usage:\n"
                : "xmigrate moves running virtual machines between hosts that share no storage.\n\nusage:\n");
    for (const struct verb *v = verb_table; v->name; v++) {
        if (only && only != v)
            continue;
        options |= v->options;
        fprintf(out, "  xmigrate %s%s%s\n      ", v == verb_table ? "[OPTION...]" : v->name,
                *v->words ? " " : "", v->words);
        put_words(out, 6, v->help);
    }
    fprintf(out, "\noptions:\n");
    for (int i = 0; i < OPTIONS; i++) {
        if (!option_table[i].hidden && (options & OPT_BIT(i)))
            print_option_help(out, &option_table[i]);
    }
    fputc('\n', out);
    put_words(out, 0,
              "Sizes and rates: K, M, G, T are powers of 1024, KB, MB, ... of 1000, kbit, Mbit, Gbit bits.");
    put_words(
        out, 0,
        "Exit status: 0 done, 1 failed with the VM safe at the source, 2 wrong use, 3 refused by checks, "
        "4 interrupted or state unknown.");
}

void print_options(FILE *out)
{
    for (const struct verb *v = verb_table; v->name; v++) {
        fprintf(out, "verb\t%s\t%s\n", v->name, v->words);
        for (int i = 0; i < OPTIONS; i++) {
            const struct option_row *o = &option_table[i];
            if (!o->hidden && (v->options & OPT_BIT(i)))
                fprintf(out, "option\t%s\t%s\t%s\t%s\n", v->name, o->name, o->arg ? o->arg : "",
                        o->initial ? o->initial : "");
        }
    }
    for (int i = 0; i < OPTIONS; i++) {
        const struct option_row *o = &option_table[i];
        if (!o->hidden && (OPT_COMMON & OPT_BIT(i)))
            fprintf(out, "option\t*\t%s\t%s\t%s\n", o->name, o->arg ? o->arg : "",
                    o->initial ? o->initial : "");
    }
}
