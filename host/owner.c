#include "host/owner.h"

#include <stdlib.h>
#include <string.h>

static const char *const side_names[] = {"none", "mine", "given"};

int owner_save(const char *dir, const char *vm, const struct owner_record *rec, struct xm_error *e)
{
    char *path = xm_printf("%s/owner.json", dir);
    json_t *o = json_pack("{s:s s:I s:s s:s s:s}", "vm", vm, "epoch", (json_int_t)rec->epoch, "owner",
                          side_names[rec->owner], "to", rec->to, "from", rec->from);
    char *text = json_dumps(o, JSON_INDENT(1));
    int r = xm_mkdir_all(dir, e);

    if (!r && xm_fault("owner-save"))
        r = xm_error_set(e, EIO, "%s: fault point owner-save", path);
    if (!r)
        r = text ? xm_file_replace(path, text, strlen(text), e) : xm_error_set(e, ENOMEM, "no memory");
    free(text);
    json_decref(o);
    free(path);
    return r;
}

int owner_load(const char *dir, const char *vm, struct owner_record *rec, struct xm_error *e)
{
    char *path = xm_printf("%s/owner.json", dir);
    char *text = NULL;
    size_t len = 0;
    int r = xm_file_read(path, 65536, &text, &len, e);

    memset(rec, 0, sizeof *rec);
    if (!r) {
        json_t *o = json_loadb(text, len, 0, NULL);
        const char *side = xm_json_str(o, "owner", "");
        rec->epoch = (uint64_t)xm_json_int(o, "epoch", 0);
        rec->owner = !strcmp(side, "mine") ? OWNER_MINE : !strcmp(side, "given") ? OWNER_GIVEN : OWNER_NONE;
        snprintf(rec->to, sizeof rec->to, "%s", xm_json_str(o, "to", ""));
        snprintf(rec->from, sizeof rec->from, "%s", xm_json_str(o, "from", ""));
        if (!rec->epoch || rec->owner == OWNER_NONE || strcmp(xm_json_str(o, "vm", ""), vm) != 0)
            r = xm_error_set(
                e, EINVAL,
                "%s: not an ownership record of VM %s; until it is repaired by hand the VM is not run", path,
                vm);
        json_decref(o);
    }
    free(text);
    free(path);
    return r;
}

bool owner_may_run(const struct owner_record *rec)
{
    return rec->owner == OWNER_MINE;
}
