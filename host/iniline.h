/* host/iniline.h: where in an INI file something stands, for sentences about values that are wrong only
 * beside others. */
#ifndef XM_HOST_INILINE_H
#define XM_HOST_INILINE_H

#include <stddef.h>

/* One line of an xm_ini_key table: the key is named as the field it goes to. */
#define INI_KEY(type_, field_, kind_, ...)                                                                   \
    {                                                                                                        \
        .name = #field_, .type = kind_, .offset = offsetof(type_, field_), __VA_ARGS__                       \
    }

/* The line (from 1) of the last `key` in `[section]`, or of the section's own line when key is NULL or not
 * there; 0: neither. */
unsigned ini_line(const char *path, const char *section, const char *key);

#endif
