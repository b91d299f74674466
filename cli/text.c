/* SPDX-License-Identifier: MIT */
#include "cli/text.h"

#include <stdlib.h>
#include <string.h>

void put_text(FILE *out, const char *text)
{
    while (*text) {
        bool fits;
        size_t length = xm_text_char(text, &fits);
        fwrite(fits ? text : "?", 1, fits ? length : 1, out);
        text += length;
    }
}

/* Characters, each a column; what is wider or narrower moves what follows. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    bool fits;

    for (; *text; n++)
        text += xm_text_char(text, &fits);
    return n;
}

void table_begin(struct table *t, unsigned columns, const char *const *titles)
{
    *t = (struct table){.columns = columns};
    table_add(t, titles);
}

void table_add(struct table *t, const char *const *fields)
{
    if (t->rows == t->cap) {
        unsigned cap = t->cap ? t->cap * 2 : 16;
        char **more = realloc(t->field, sizeof *more * cap * t->columns);
        if (!more)
            return; /* a line less; the rest is right */
        t->field = more;
        t->cap = cap;
    }
    for (unsigned c = 0; c < t->columns; c++)
        t->field[t->rows * t->columns + c] = xm_printf("%s", fields[c] && *fields[c] ? fields[c] : "-");
    t->rows++;
}

void table_end(struct table *t, FILE *out)
{
    for (unsigned r = 0; r < t->rows; r++) {
        for (unsigned c = 0; c < t->columns; c++) {
            const char *text = t->field[r * t->columns + c];
            size_t width = 0;
            for (unsigned i = 0; i < t->rows; i++)
                width = XM_MAX(width, width_of(t->field[i * t->columns + c]));
            put_text(out, text);
            if (c + 1 < t->columns)
                fprintf(out, "%*s", (int)(width - width_of(text)) + 2, "");
        }
        fputc('\n', out);
    }
    for (unsigned i = 0; i < t->rows * t->columns; i++)
        free(t->field[i]);
    free(t->field);
    *t = (struct table){0};
}
