/* SPDX-License-Identifier: MIT */
/* base/ini.h: configuration files by table. Unknown sections and keys, bad values, missing required keys: one
 * sentence with file and line.
 *
 *   [section]            one of its kind, its keys go to the object given
 *   [section NAME]       a named one: `open` makes the object its keys go to
 */
#ifndef XM_BASE_INI_H
#define XM_BASE_INI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

enum xm_ini_type {
    XM_INI_STRING,  /* char *, malloc'ed, not empty; a default that is there (malloc'ed, or NULL) is freed and
                       replaced */
    XM_INI_STRINGS, /* char **, malloc'ed, ends with NULL; each line with this key adds one. The only key that
                       may come again */
    XM_INI_SIZE,    /* uint64_t bytes */
    XM_INI_RATE,    /* uint64_t bytes a second */
    XM_INI_TIME,    /* uint64_t ns */
    XM_INI_UINT,    /* unsigned, min..max below */
    XM_INI_BOOL,    /* bool: yes/no, true/false, on/off */
    XM_INI_PERCENT  /* unsigned 0..100, a % sign is allowed */
};

struct xm_ini_key {
    const char *name;
    enum xm_ini_type type;
    size_t offset; /* in the section's object */
    bool required;
    uint64_t min, max; /* XM_INI_UINT, and XM_INI_TIME in ns; max 0: no limit */
};

struct xm_ini_section {
    const char *name;
    bool named;                    /* [name SOMETHING] */
    bool required;                 /* at least one */
    const struct xm_ini_key *keys; /* ends with name NULL */
    size_t offset;                 /* of the section's object in the root object, unless named */
    /* Named: returns the object for a new [name SOMETHING], or NULL with e filled (a duplicate, a bad name).
     */
    void *(*open)(void *root, const char *name, struct xm_error *e);
};

/* sections ends with name NULL; at most 64 of them, and 64 keys in each. A section's title has at most 49
 * bytes, a line 8 KiB, a value one line; "; ..." after a blank is a comment, and so is a line that begins
 * with ; or #. 0 or -errno with "FILE:LINE: ..." in e. On an error the root may be half filled. */
int xm_ini_load(const char *path, const struct xm_ini_section *sections, void *root, struct xm_error *e);

/* One line of an xm_ini_key table: the key is named as the field it goes to. */
#define XM_INI_KEY(type_, field_, kind_, ...)                                                                \
    {                                                                                                        \
        .name = #field_, .type = kind_, .offset = offsetof(type_, field_), __VA_ARGS__                       \
    }

/* The line (from 1) of the last `key` in `[section]`, or of the section's own line when key is NULL or not
 * there; 0: neither. */
unsigned xm_ini_line(const char *path, const char *section, const char *key);

#endif
