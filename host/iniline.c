#include "host/iniline.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned ini_line(const char *path, const char *section, const char *key)
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
