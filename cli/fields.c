/* SPDX-License-Identifier: MIT */
#include "cli/fields.h"
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *scalar_text(const json_t *v)
{
    static char text[8][64];
    static unsigned at;

    if (json_is_string(v))
        return json_string_value(v);
    at = (at + 1) % 8;
    text[at][0] = 0;
    if (json_is_integer(v))
        snprintf(text[at], sizeof text[at], "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(text[at], sizeof text[at], "%.4g", json_real_value(v));
    else if (json_is_boolean(v))
        snprintf(text[at], sizeof text[at], "%s", json_is_true(v) ? "yes" : "no");
    return text[at];
}

const char *size_text(const json_t *o, const char *key)
{
    static char text[8][32];
    static unsigned at;
    int64_t n = xm_json_int(o, key, -1);

    at = (at + 1) % 8;
    snprintf(text[at], sizeof text[at], "%s", n < 0 ? "" : xm_format_size((uint64_t)n).s);
    return text[at];
}

const char *time_text(const json_t *v)
{
    static char text[32];
    struct tm tm;

    if (!json_is_number(v))
        return scalar_text(v);
    time_t t = (time_t)json_number_value(v);
    if (!localtime_r(&t, &tm) || !strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm))
        return "";
    return text;
}

void print_lines(const json_t *array, const char *before, FILE *out)
{
    size_t i;
    json_t *v;

    json_array_foreach (array, i, v) {
        fputs(before, out);
        put_text(out, scalar_text(v));
        fputc('\n', out);
    }
}

void print_paths(const json_t *disks, const char *title, FILE *out)
{
    const json_t *d;
    size_t i;

    if (json_array_size(disks))
        fputs(title, out);
    json_array_foreach (disks, i, d) {
        fputs("  ", out);
        put_text(out, xm_json_str(d, "path", scalar_text(d)));
        fputc('\n', out);
    }
}

/* Is the number under this key one of bytes? */
static bool in_bytes(const char *key)
{
    size_t n = strlen(key);
    return !strcmp(key, "memory") || !strcmp(key, "size") || (n > 6 && !strcmp(key + n - 6, "_bytes"));
}

/* Or a moment? */
static bool is_time(const char *key, const json_t *v)
{
    return json_is_integer(v) && (!strcmp(key, "at") || !strcmp(key, "started"));
}

/* Is there nothing to say? */
static bool empty(const json_t *v)
{
    return json_is_null(v) || (json_is_string(v) && !*json_string_value(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v));
}

void print_tree(const json_t *o, const char *without, int indent, FILE *out)
{
    const char *key;
    size_t i;
    json_t *v, *item;

    json_object_foreach ((json_t *)o, key, v) {
        if (empty(v) || (without && !strcmp(key, without)))
            continue;
        fprintf(out, "%*s", indent, "");
        put_text(out, key);
        if (json_is_object(v)) {
            fputs(":\n", out);
            print_tree(v, NULL, indent + 2, out);
        } else if (json_is_array(v)) {
            fputs(":\n", out);
            json_array_foreach (v, i, item) {
                const char *name = xm_json_str(item, "name", NULL);
                fprintf(out, "%*s- ", indent + 2, "");
                put_text(out, name ? name : scalar_text(item));
                fputc('\n', out);
                if (json_is_object(item) && indent < 20)
                    print_tree(item, "name", indent + 4, out);
            }
        } else {
            fprintf(out, "%*s", (int)XM_MAX(14 - (int)strlen(key), 1), "");
            put_text(out, in_bytes(key) && json_is_integer(v) ? size_text(o, key)
                          : is_time(key, v)                   ? time_text(v)
                                                              : scalar_text(v));
            fputc('\n', out);
        }
    }
}

#define FLAT_MAX 300 /* bytes after which nothing more is added */

char *flat_text(const json_t *v)
{
    char *text = xm_printf("%s", scalar_text(v));
    const char *key;
    json_t *item;
    size_t i;

    json_object_foreach ((json_t *)v, key, item) {
        if (strlen(text) > FLAT_MAX)
            break;
        char *inner = flat_text(item);
        char *more = xm_printf("%s%s%s %s", text, *text ? ", " : "", key, inner);
        free(inner);
        free(text);
        text = more;
    }
    json_array_foreach (v, i, item) {
        if (strlen(text) > FLAT_MAX)
            break;
        char *inner = flat_text(item);
        char *more = xm_printf("%s%s%s", text, i ? "; " : "", inner);
        free(inner);
        free(text);
        text = more;
    }
    for (char *s = text; *s; s++)
        *s = *s == '_' ? ' ' : *s;
    return text;
}
