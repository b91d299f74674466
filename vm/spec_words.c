/* SPDX-License-Identifier: MIT */
/* The texts of a specification: of which characters each may be.
 *
 * They end as words of QEMU's command line, where a comma begins the next option and a file's name may
 * bring a protocol along. So each is a list of words, or a set of characters, for whoever wrote it; what a
 * peer may say with them is held to more (agent/outside.c).
 */
#include "vm/spec_inside.h"

#include <ctype.h>
#include <string.h>

#define TEXT_MAX 2048

bool spec_only(const char *text, const char *set)
{
    return text[0] && strlen(text) <= TEXT_MAX && text[strspn(text, set)] == 0;
}

bool spec_path_ok(const char *path)
{
    return path[0] == '/' && spec_only(path, SPEC_ALNUM "/._+@~:=-");
}

/* Any text of one line. */
static bool printable(const char *text)
{
    for (const char *c = text; *c; c++) {
        if (iscntrl((unsigned char)*c))
            return false;
    }
    return strlen(text) <= TEXT_MAX;
}

static int check_file(const char *key, const char *path, const struct spec_where *w, struct xm_error *e)
{
    if (path && path[0] != '/')
        return spec_bad(w, e, "vm", key, "%s: the path '%s' has to begin with /", key, path);
    if (path && !spec_path_ok(path))
        return spec_bad(w, e, "vm", key, "%s: the path '%s' may have letters, digits and /._+@~:=- alone",
                        key, path);
    return 0;
}

static int check_extra(const struct vm_spec *s, const struct spec_where *w, struct xm_error *e)
{
    for (char **x = s->extra; x && *x; x++) {
        if (!printable(*x))
            return spec_bad(w, e, "vm", "extra", "extra has a character that is none of a text");
    }
    return 0;
}

int spec_check_words(const struct vm_spec *s, const struct spec_where *w, struct xm_error *e)
{
    /* Options behind a comma are the user's own business; spaces and quotes are none of them. */
    const struct {
        const char *key, *value;
    } options[] = {{"machine", s->machine}, {"accel", s->accel}, {"cpu", s->cpu}};

    for (unsigned i = 0; i < 3; i++) {
        const char *value = options[i].value;
        if (value && (!spec_only(value, SPEC_ALNUM "/._+:=,-") || value[0] == '-'))
            return spec_bad(w, e, "vm", options[i].key,
                            "%s '%s' may have letters, digits and /._+:=,- alone, and none of '-' in front",
                            options[i].key, value);
    }
    if (s->append && !printable(s->append))
        return spec_bad(w, e, "vm", "append",
                        "append has a character that is none of a text, or is longer than %d", TEXT_MAX);
    if (check_file("kernel", s->kernel, w, e) || check_file("initrd", s->initrd, w, e) ||
        check_file("firmware", s->firmware, w, e) || check_file("nvram", s->nvram, w, e) ||
        check_extra(s, w, e))
        return -EINVAL;
    return 0;
}
