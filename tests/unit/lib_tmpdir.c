/* SPDX-License-Identifier: MIT */
#include "tests/unit/lib_tmpdir.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[64];

int tmpdir_make(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/xmt-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

int tmpdir_remove(void **state)
{
    (void)state;
    return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *tmpdir_path(const char *name)
{
    static char path[8][320];
    static unsigned at;

    at = (at + 1) % 8;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

const char *tmpdir_write(const char *name, const char *text)
{
    const char *path = tmpdir_path(name);
    FILE *f = fopen(path, "w");

    if (!f || fputs(text, f) < 0 || fclose(f)) {
        perror(path);
        abort();
    }
    return path;
}
