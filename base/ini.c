/* SPDX-License-Identifier: MIT */
/* Configuration files: inih splits lines, this file checks them against a table.
 *
 * inih as Debian builds it gives its handler no line number, says nothing of a section that has no keys,
 * takes what follows a section's ] for nothing, and cuts long section names. So the file is read whole, and
 * inih gets it line by line from next_line(), which counts: when the handler runs, the count is the number of
 * the line being parsed. Behind each section's line it is given one more, SECTION_MARK, whose only purpose is
 * that the handler hears of the section.
 *
 * The first error stops everything: e is filled once, by whoever sees it, and parsing ends (handler returns
 * 0, or no more lines). A line that inih itself refuses ends parsing too (ini_stop_on_first_error), and the
 * count is that line's number.
 */
#include "base/base.h"

#include <ctype.h>
#include <ini.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FILE_MAX     (1u << 20)
#define LINE_MAX_    8192u
#define SECTION_MAX_ 49u /* inih's MAX_SECTION less the 0 */
#define SECTION_MARK "\001="
#define BOM          "\xef\xbb\xbf" /* with which some editors begin a file */
#define TABLE_MAX    64u            /* keys of a section; sections of a file: what the bit masks below hold */

struct parse {
    const char *path;
    const char *next; /* what is left of the text */
    unsigned line;    /* number of the line given last; 0: none yet */
    bool announce;    /* the next «line» is SECTION_MARK */
    const struct xm_ini_section *sections;
    void *root;
    const struct xm_ini_section *in; /* the section we are in, NULL before the first */
    char title[SECTION_MAX_ + 1];    /* as written: "disk root" */
    unsigned title_line;
    void *object;           /* where its keys go */
    uint64_t keys_seen;     /* of this section, by position in the table */
    uint64_t sections_seen; /* likewise */
    struct xm_error *e;
    int err;
};

/* Records the first error; what inih's callbacks return then. */
__attribute__((format(printf, 3, 4))) static int ini_fail(struct parse *p, unsigned line, const char *fmt,
                                                          ...)
{
    char text[440];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->err = xm_error_set(p->e, EINVAL, "%s:%u: %s", p->path, line, text);
    return 0;
}

static bool is_comment(char c)
{
    return c == ';' || c == '#';
}

/* What inih would silently accept. text: one line, without its end. */
static int check_line(struct parse *p, const char *text, size_t len)
{
    const char *end = text + len;

    if (len + 3 > LINE_MAX_)
        return ini_fail(p, p->line, "the line is longer than %u bytes", LINE_MAX_ - 3);
    while (text < end && isspace((unsigned char)*text))
        text++;
    if (text == end || *text != '[')
        return 1;
    const char *close = memchr(text, ']', (size_t)(end - text));
    if (!close)
        return ini_fail(p, p->line, "the section's name has no ] behind it");
    if ((size_t)(close - text - 1) > SECTION_MAX_)
        return ini_fail(p, p->line, "the section's name is longer than %u bytes", SECTION_MAX_);
    const char *after = close + 1;
    while (after < end && isspace((unsigned char)*after))
        after++;
    if (after < end && !is_comment(*after))
        return ini_fail(p, p->line,
                        "what is \"%.*s\" behind the section's name? A key goes on a line of its own",
                        (int)XM_MIN(end - after, 40), after);
    p->announce = true;
    return 1;
}

/* inih's reader: like fgets. */
static char *next_line(char *buf, int size, void *arg)
{
    struct parse *p = arg;

    if (p->err)
        return NULL;
    if (p->announce) {
        p->announce = false;
        snprintf(buf, (size_t)size, "%s\n", SECTION_MARK);
        return buf;
    }
    if (!*p->next)
        return NULL;
    const char *nl = strchr(p->next, '\n');
    size_t len = nl ? (size_t)(nl - p->next) : strlen(p->next);
    p->line++;
    if (!check_line(p, p->next, len))
        return NULL;
    memcpy(buf, p->next, len);
    buf[len] = '\n';
    buf[len + 1] = 0;
    p->next += len + (nl != NULL);
    return buf;
}

/* At the end of a section: was all there that must be? */
static int finish_section(struct parse *p)
{
    if (!p->in)
        return 1;
    for (unsigned i = 0; p->in->keys[i].name; i++) {
        if (p->in->keys[i].required && !(p->keys_seen >> i & 1))
            return ini_fail(p, p->title_line, "[%s] lacks the key \"%s\"", p->title, p->in->keys[i].name);
    }
    return 1;
}

/* "disk root" -> "disk", "root"; the name may be "". */
static const char *split_title(const char *title, char *kind)
{
    size_t n = strcspn(title, " \t");

    memcpy(kind, title, n);
    kind[n] = 0;
    return title + n + strspn(title + n, " \t");
}

static int begin_section(struct parse *p, const char *title)
{
    char kind[SECTION_MAX_ + 1];
    struct xm_error why = {0};

    if (!finish_section(p))
        return 0;
    snprintf(p->title, sizeof p->title, "%s", title);
    p->title_line = p->line;
    p->keys_seen = 0;
    const char *name = split_title(p->title, kind);
    unsigned i = 0;
    while (p->sections[i].name && strcmp(p->sections[i].name, kind))
        i++;
    p->in = &p->sections[i];
    if (!p->in->name) {
        p->in = NULL;
        return ini_fail(p, p->line, "there is no section [%s]", p->title);
    }
    if (!p->in->named && *name)
        return ini_fail(p, p->line, "[%s] takes no name", kind);
    if (!p->in->named && (p->sections_seen >> i & 1))
        return ini_fail(p, p->line, "a second [%s]", kind);
    if (p->in->named && !*name)
        return ini_fail(p, p->line, "[%s] needs a name, as in [%s NAME]", kind, kind);
    p->sections_seen |= 1ull << i;
    p->object = p->in->named ? p->in->open(p->root, name, &why) : (char *)p->root + p->in->offset;
    if (!p->object)
        return ini_fail(p, p->line, "[%s]: %s", p->title, why.text);
    return 1;
}

static int parse_bool(const char *value, bool *out, struct xm_error *e)
{
    static const char *const yes[] = {"yes", "true", "on"}, *const no[] = {"no", "false", "off"};

    for (int i = 0; i < 3; i++) {
        if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
            *out = !strcasecmp(value, yes[i]);
            return 0;
        }
    }
    return xm_error_set(e, EINVAL, "\"%.60s\" is neither yes nor no", value);
}

static int parse_uint(const char *value, uint64_t min, uint64_t max, unsigned *out, struct xm_error *e)
{
    uint64_t n = 0;
    size_t digits = strspn(value, "0123456789");

    if (!digits || value[digits])
        return xm_error_set(e, EINVAL, "\"%.60s\" is no whole number", value);
    for (size_t i = 0; i < digits && n <= UINT32_MAX; i++)
        n = n * 10 + (uint64_t)(value[i] - '0');
    if (n < min || n > (max ? max : UINT32_MAX))
        return xm_error_set(e, ERANGE, "%.60s is not between %u and %u", value, (unsigned)min,
                            (unsigned)(max ? max : UINT32_MAX));
    *out = (unsigned)n;
    return 0;
}

static int parse_time(const char *value, uint64_t min, uint64_t max, uint64_t *out, struct xm_error *e)
{
    uint64_t ns;
    int r = xm_parse_time(value, &ns, e);

    if (!r && max && (ns < min || ns > max))
        r = xm_error_set(e, ERANGE, "%.60s is not between %s and %s", value, xm_format_time(min).s,
                         xm_format_time(max).s);
    else if (!r && ns < min)
        r = xm_error_set(e, ERANGE, "%.60s is less than %s", value, xm_format_time(min).s);
    if (!r)
        *out = ns;
    return r;
}

static int parse_percent(const char *value, unsigned *out, struct xm_error *e)
{
    char digits[8];
    size_t n = strlen(value);

    if (n && value[n - 1] == '%')
        n--;
    while (n && value[n - 1] == ' ')
        n--;
    if (!n || n >= sizeof digits)
        return xm_error_set(e, EINVAL, "\"%.60s\" is no percentage from 0 to 100", value);
    memcpy(digits, value, n);
    digits[n] = 0;
    return parse_uint(digits, 0, 100, out, NULL) < 0
               ? xm_error_set(e, EINVAL, "\"%.60s\" is no percentage from 0 to 100", value)
               : 0;
}

static int append_string(char ***list, const char *value, struct xm_error *e)
{
    size_t n = 0;

    while (*list && (*list)[n])
        n++;
    char **more = realloc(*list, (n + 2) * sizeof *more);
    if (!more)
        return xm_error_set(e, ENOMEM, "no memory");
    more[n] = xm_printf("%s", value);
    more[n + 1] = NULL;
    *list = more;
    return 0;
}

static int ini_store(const struct xm_ini_key *k, void *at, const char *value, struct xm_error *e)
{
    switch (k->type) {
    case XM_INI_STRING:
        if (!*value)
            return xm_error_set(e, EINVAL, "a value is missing");
        free(*(char **)at);
        *(char **)at = xm_printf("%s", value);
        return 0;
    case XM_INI_STRINGS:
        return *value ? append_string(at, value, e) : xm_error_set(e, EINVAL, "a value is missing");
    case XM_INI_SIZE:
        return xm_parse_size(value, at, e);
    case XM_INI_RATE:
        return xm_parse_rate(value, at, e);
    case XM_INI_TIME:
        return parse_time(value, k->min, k->max, at, e);
    case XM_INI_UINT:
        return parse_uint(value, k->min, k->max, at, e);
    case XM_INI_BOOL:
        return parse_bool(value, at, e);
    case XM_INI_PERCENT:
        return parse_percent(value, at, e);
    }
    return xm_error_set(e, EINVAL, "this program knows no such kind of value");
}

/* inih's handler: 1 go on, 0 stop. */
static int one_key(void *arg, const char *section, const char *name, const char *value)
{
    struct parse *p = arg;
    struct xm_error why = {0};
    unsigned i = 0;

    if (p->err)
        return 0;
    if (!strcmp(name, "\001"))
        return begin_section(p, section);
    if (!p->in)
        return ini_fail(p, p->line, "\"%.60s\" stands before the first [section]", name);
    while (p->in->keys[i].name && strcmp(p->in->keys[i].name, name))
        i++;
    const struct xm_ini_key *k = &p->in->keys[i];
    if (!k->name)
        return ini_fail(p, p->line, "[%s] has no key \"%.60s\"", p->title, name);
    if ((p->keys_seen >> i & 1) && k->type != XM_INI_STRINGS)
        return ini_fail(p, p->line, "\"%s\" a second time in [%s]", name, p->title);
    p->keys_seen |= 1ull << i;
    if (ini_store(k, (char *)p->object + k->offset, value, &why) < 0)
        return ini_fail(p, p->line, "%s: %s", name, why.text);
    return 1;
}

/* inih's settings are globals of the library; ours are the only ones in this process. */
static void set_up_inih(void)
{
    ini_allow_multiline = false; /* a value is on one line */
    ini_stop_on_first_error = true;
    ini_max_line = LINE_MAX_;
}

static bool table_fits(const struct xm_ini_section *sections)
{
    unsigned n = 0;

    for (; sections[n].name; n++) {
        unsigned keys = 0;
        while (sections[n].keys[keys].name)
            keys++;
        if (keys > TABLE_MAX)
            return false;
    }
    return n <= TABLE_MAX;
}

int xm_ini_load(const char *path, const struct xm_ini_section *sections, void *root, struct xm_error *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct parse p = {.path = path, .sections = sections, .root = root, .e = e};
    char *text;
    size_t len;

    if (!table_fits(sections))
        return xm_error_set(e, EINVAL, "%s: the program's table has more than %u entries", path, TABLE_MAX);
    int err = xm_file_read(path, FILE_MAX, &text, &len, e);
    if (err)
        return err;
    pthread_once(&once, set_up_inih);
    p.next = text + (len >= 3 && !memcmp(text, BOM, 3) ? 3 : 0);
    if (strlen(text) != len) {
        ini_fail(&p, 1, "the file holds a zero byte: it is no text");
    } else {
        int bad = ini_parse_stream(next_line, &p, one_key, &p);
        if (bad && !p.err)
            ini_fail(&p, p.line, "this is neither [section], nor key = value, nor a comment (; or #)");
    }
    if (!p.err)
        finish_section(&p);
    for (unsigned i = 0; !p.err && sections[i].name; i++) {
        if (sections[i].required && !(p.sections_seen >> i & 1))
            p.err = xm_error_set(e, EINVAL, "%s: there is no section [%s%s]", path, sections[i].name,
                                 sections[i].named ? " NAME" : "");
    }
    free(text);
    return p.err;
}

unsigned xm_ini_line(const char *path, const char *section, const char *key)
{
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t cap = 0, key_len = key ? strlen(key) : 0;
    unsigned n = 0, found = 0;
    bool inside = false;

    while (f && getline(&line, &cap, f) >= 0) {
        const char *s = line + strspn(line, " \t");
        n++;
        if (*s == '[') {
            size_t len = strlen(section);
            inside = !strncmp(s + 1, section, len) && s[1 + len] == ']';
            if (inside && !found)
                found = n;
        } else if (inside && key_len && !strncmp(s, key, key_len) && strchr(" \t=:", s[key_len])) {
            found = n;
        }
    }
    free(line);
    if (f)
        fclose(f);
    return found;
}
