/* SPDX-License-Identifier: MIT */
#include "vm/life.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name, *text;
} whys[] = {
    [LIFE_UNKNOWN] = {"unknown", "it ended together with its shim, and nobody saw why"},
    [LIFE_USER] = {"user", "it was stopped by its user"},
    [LIFE_FORCED] = {"forced", "it was ended at once by its user (--force)"},
    [LIFE_GUEST] = {"guest", "its guest powered itself down"},
    [LIFE_DIED] = {"died", "its QEMU ended by itself: killed, or by a fault (its qemu.log may say more)"},
    [LIFE_SIGNAL] = {"signal", "its shim was told to end, as when a host is shut down"},
    [LIFE_REBOOT] = {"reboot", "its host was restarted, or lost its power, while it ran"},
};
#define WHYS (sizeof whys / sizeof *whys)

static const char *const states[] = {"never", "runs", "ended"};

const char *life_why_name(enum life_why why)
{
    return whys[(size_t)why < WHYS ? why : LIFE_UNKNOWN].name;
}

const char *life_why_text(enum life_why why)
{
    return whys[(size_t)why < WHYS ? why : LIFE_UNKNOWN].text;
}

int life_save(const char *dir, const struct vm_life *l, struct xm_error *e)
{
    json_t *o = json_pack("{s:s, s:s*, s:I, s:s}", "state", states[l->state], "why",
                          l->state == LIFE_ENDED ? life_why_name(l->why) : NULL, "at", (json_int_t)l->at,
                          "boot", l->boot);
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    char *path = xm_printf("%s/life.json", dir);
    int r =
        text ? xm_file_replace(path, text, strlen(text), e) : xm_error_set(e, EINVAL, "%s: no JSON", path);

    free(path);
    free(text);
    json_decref(o);
    return r;
}

int life_load(const char *dir, struct vm_life *l, struct xm_error *e)
{
    char *path = xm_printf("%s/life.json", dir), *text = NULL;
    size_t len = 0;
    int r = xm_file_read(path, 4096, &text, &len, e);

    memset(l, 0, sizeof *l);
    json_t *o = r ? NULL : json_loadb(text, len, 0, NULL);
    const char *state = xm_json_str(o, "state", ""), *why = xm_json_str(o, "why", "");
    l->state = !strcmp(state, "runs") ? LIFE_RUNS : !strcmp(state, "ended") ? LIFE_ENDED : LIFE_NEVER;
    for (size_t i = 0; l->state == LIFE_ENDED && i < WHYS; i++) {
        if (!strcmp(whys[i].name, why))
            l->why = (enum life_why)i;
    }
    l->at = xm_json_int(o, "at", 0);
    snprintf(l->boot, sizeof l->boot, "%s", xm_json_str(o, "boot", ""));
    if (r == -ENOENT)
        r = 0;
    else if (!r && l->state == LIFE_NEVER)
        r = xm_error_set(e, EINVAL, "%s: not the record of a VM's life", path);
    json_decref(o);
    free(text);
    free(path);
    return r;
}

int life_end(const char *dir, enum life_why why, struct xm_error *e)
{
    struct vm_life l;
    int r = life_load(dir, &l, e);

    if (r || l.state != LIFE_RUNS)
        return r;
    l.state = LIFE_ENDED;
    l.why = why;
    l.at = (int64_t)time(NULL);
    return life_save(dir, &l, e);
}
