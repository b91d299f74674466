/* SPDX-License-Identifier: MIT */
#include "agent/mounts.h"

#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Of this host's administrator, and of what has been generated of /etc/fstab: units that come with the system
 * may stand there and not be used. */
static const char *const unit_dirs[] = {"/etc/systemd/system", "/run/systemd/system",
                                        "/run/systemd/generator"};

/* In place: \040 and the like. */
static void unescape(char *s)
{
    char *to = s;

    for (; *s; s++) {
        unsigned c;
        if (*s == '\\' && strspn(s + 1, "01234567") >= 3 && sscanf(s + 1, "%3o", &c) == 1) {
            *to++ = (char)c;
            s += 3;
        } else {
            *to++ = *s;
        }
    }
    *to = 0;
}

/* How much of the path is `dir`: it is that directory, or lies below it; 0: it does not. */
static size_t below(const char *path, const char *dir)
{
    size_t n = strlen(dir);

    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n == 1 && dir[0] == '/')
        return path[0] == '/';
    return n && !strncmp(path, dir, n) && (!path[n] || path[n] == '/') ? n : 0;
}

/* The longest mount point above the path; or whether something is mounted at just that one. */
static size_t search(const char *path, const char *exactly, bool *found)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    size_t longest = 1, cap = 0;
    char *line = NULL;

    while (f && getline(&line, &cap, f) > 0) {
        char *word = line, *rest;
        for (int i = 0; word && i < 4; i++)
            word = strchr(word, ' ') ? strchr(word, ' ') + 1 : NULL;
        if (!word || !(rest = strchr(word, ' ')))
            continue;
        *rest = 0;
        unescape(word);
        longest = XM_MAX(longest, below(path, word));
        *found = *found || (exactly && !strcmp(word, exactly));
    }
    free(line);
    if (f)
        fclose(f);
    return longest;
}

size_t mounts_below(const char *path)
{
    bool unused = false;

    return search(path, NULL, &unused);
}

static bool mounted(const char *dir)
{
    bool found = false;

    search("/", dir, &found);
    return found;
}

static char *missing_of_fstab(const char *path)
{
    FILE *f = setmntent("/etc/fstab", "re");
    char text[4096], *missing = NULL;
    struct mntent m;

    while (f && !missing && getmntent_r(f, &m, text, sizeof text)) {
        size_t n = m.mnt_dir[0] == '/' ? below(path, m.mnt_dir) : 0;
        char *dir = n > 1 ? xm_printf("%.*s", (int)n, path) : NULL;
        if (dir && !mounted(dir))
            missing = dir;
        else
            free(dir);
    }
    if (f)
        endmntent(f);
    return missing;
}

/* systemd-escape --path */
static char *unit_name(const char *dir, size_t n)
{
    char *name = xm_printf("%s", "");

    for (size_t i = 1; i < n; i++) {
        unsigned char c = (unsigned char)dir[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == ':' ||
                     c == '_' || (c == '.' && i > 1);
        char *more = c == '/' ? xm_printf("%s-", name)
                     : plain  ? xm_printf("%s%c", name, c)
                              : xm_printf("%s\\x%02x", name, c);
        free(name);
        name = more;
    }
    return name;
}

static char *missing_of_unit(const char *path, size_t n, char **by)
{
    char *dir = xm_printf("%.*s", (int)n, path), *unit = unit_name(path, n);
    struct stat st;

    for (size_t i = 0; !*by && i < sizeof unit_dirs / sizeof *unit_dirs; i++) {
        char *file = xm_printf("%s/%s.mount", unit_dirs[i], unit);
        if (stat(file, &st) == 0 && S_ISREG(st.st_mode) &&
            !mounted(dir)) /* a masked one is a link to /dev/null */
            *by = file;
        else
            free(file);
    }
    free(unit);
    if (*by)
        return dir;
    free(dir);
    return NULL;
}

char *mounts_missing(const char *path, char **by)
{
    char *whole = realpath(path, NULL), *dir;

    *by = NULL;
    path = whole ? whole : path;
    if ((dir = missing_of_fstab(path)))
        *by = xm_printf("/etc/fstab");
    for (size_t n = strlen(path); !dir && n > 1;) {
        dir = missing_of_unit(path, n, by);
        for (n--; n > 1 && path[n] != '/';)
            n--;
    }
    free(whole);
    return dir;
}
