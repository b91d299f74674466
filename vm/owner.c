/* SPDX-License-Identifier: MIT */
/* See owner.h. Happy path: the slot that is older (or not valid) is overwritten with number + 1, with
 * O_DSYNC, in one write.
 * - The write fails or is torn: the other slot is valid still, and is the record.
 * - Both slots are damaged (not by us: we never touch the valid one): owner_load refuses, and the VM is not
 * run until somebody has looked.
 * - An empty slot is all spaces; a file of two empty slots is no record. */
#include "vm/owner.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define SLOT 4096u

static const char *const side_names[] = {"none", "mine", "given", "promised"};

const char *owner_side_name(enum owner_side side)
{
    return (unsigned)side < sizeof side_names / sizeof *side_names ? side_names[side] : "?";
}

int owner_side_of(const char *name)
{
    for (int i = 0; i < (int)(sizeof side_names / sizeof *side_names); i++) {
        if (!strcmp(name, side_names[i]))
            return i;
    }
    return -1;
}

struct slot {
    bool valid, empty;
    uint64_t number;
    struct owner_record rec;
    char vm[64];
};

struct slots {
    int fd;
    char text[2 * SLOT + 1];
    struct slot slot[2];
};

static uint64_t checksum(const char *vm, uint64_t number, const struct owner_record *r)
{
    char text[512];
    int n = snprintf(text, sizeof text, "%s|%llu|%llu|%s|%s|%s%s", vm, (unsigned long long)number,
                     (unsigned long long)r->epoch, side_names[r->owner], r->to, r->from,
                     r->settled ? "" : "|open");

    return XXH3_64bits(text, (size_t)n);
}

/* Without the blanks that it is filled up with: most of it, which the parser would walk through. */
static size_t text_length(const char *text)
{
    static const char blank[64] = "                                                                ";
    size_t len = SLOT;

    if (text[len - 1] == '\n')
        len--;
    while (len > sizeof blank && !memcmp(text + len - sizeof blank, blank, sizeof blank))
        len -= sizeof blank;
    while (len && (text[len - 1] == ' ' || text[len - 1] == '\n'))
        len--;
    return len;
}

static void read_slot(struct slot *s, const char *text)
{
    size_t len = text_length(text);
    json_t *o = json_loadb(text, len, 0, NULL);
    const char *side = xm_json_str(o, "owner", "");
    char sum[32];

    memset(s, 0, sizeof *s);
    s->empty = !len;
    s->number = (uint64_t)xm_json_int(o, "number", 0);
    s->rec.epoch = (uint64_t)xm_json_int(o, "epoch", 0);
    s->rec.owner = (enum owner_side)XM_MAX(owner_side_of(side), 0);
    s->rec.settled = !xm_json_bool(o, "open", false);
    snprintf(s->rec.to, sizeof s->rec.to, "%s", xm_json_str(o, "to", ""));
    snprintf(s->rec.from, sizeof s->rec.from, "%s", xm_json_str(o, "from", ""));
    snprintf(s->vm, sizeof s->vm, "%s", xm_json_str(o, "vm", ""));
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)checksum(s->vm, s->number, &s->rec));
    s->valid = o && s->rec.epoch && s->rec.owner != OWNER_NONE && !strcmp(sum, xm_json_str(o, "sum", ""));
    json_decref(o);
}

static char *path_of(const char *dir)
{
    return xm_printf("%s/owner.json", dir);
}

int owner_prepare(const char *dir, struct xm_error *e)
{
    char *path = path_of(dir);
    char empty[2 * SLOT];
    int r = xm_mkdir_all(dir, e);

    memset(empty, ' ', sizeof empty);
    empty[SLOT - 1] = empty[2 * SLOT - 1] = '\n';
    if (!r && access(path, F_OK) < 0)
        r = xm_file_replace(path, empty, sizeof empty, e);
    free(path);
    return r;
}

/* Opens and reads both slots. -ENOENT: no file. */
static int slots_open(struct slots *s, const char *path, int flags, struct xm_error *e)
{
    memset(s->slot, 0, sizeof s->slot);
    s->fd = open(path, flags | O_CLOEXEC);
    if (s->fd < 0)
        return xm_error_errno(e, errno, "%s", path);
    memset(s->text, ' ', sizeof s->text);
    ssize_t n = pread(s->fd, s->text, 2 * SLOT, 0);
    if (n != 2 * (ssize_t)SLOT) {
        int code = n < 0 ? errno : EINVAL;
        close(s->fd);
        return xm_error_set(e, code, "%s: not an ownership record (it has %zd bytes of %u)", path, n,
                            2 * SLOT);
    }
    for (unsigned i = 0; i < 2; i++)
        read_slot(&s->slot[i], s->text + (size_t)i * SLOT);
    return 0;
}

static int newest(const struct slots *s)
{
    const struct slot *a = &s->slot[0];
    const struct slot *b = &s->slot[1];

    if (a->valid && (!b->valid || a->number > b->number))
        return 0;
    return b->valid ? 1 : -1;
}

static int write_slot(struct slots *s, int i, uint64_t number, const char *vm, const struct owner_record *r,
                      const char *path, struct xm_error *e)
{
    char line[SLOT];
    char sum[32];
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)checksum(vm, number, r));
    json_t *o = json_pack("{s:s s:I s:s s:s s:s s:b s:I s:s}", "vm", vm, "epoch", (json_int_t)r->epoch,
                          "owner", side_names[r->owner], "to", r->to, "from", r->from, "open", !r->settled,
                          "number", (json_int_t)number, "sum", sum);
    char *text = o ? json_dumps(o, 0) : NULL;
    int rc = 0;

    json_decref(o);
    size_t len = text ? strlen(text) : SLOT;
    if (len >= SLOT) {
        free(text);
        return xm_error_set(e, EINVAL, "%s: the record of VM %s cannot be written as JSON", path, vm);
    }
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): the slot is padded with spaces */
    memcpy(line, text, len);
    memset(line + len, ' ', SLOT - 1 - len);
    line[SLOT - 1] = '\n';
    free(text);
    ssize_t n = pwrite(s->fd, line, SLOT, (off_t)i * SLOT);
    if (n != (ssize_t)SLOT)
        rc = xm_error_errno(e, n < 0 ? errno : EIO, "%s cannot be written", path);
    return rc;
}

int owner_save(const char *dir, const char *vm, const struct owner_record *rec, struct xm_error *e)
{
    char *path = path_of(dir);
    struct slots s;
    int r = owner_prepare(dir, e);

    if (!r && xm_fault("owner-save"))
        r = xm_error_set(e, EIO, "%s: fault point owner-save", path);
    if (!r)
        r = slots_open(&s, path, O_RDWR | O_DSYNC, e);
    if (!r) {
        int at = newest(&s);
        uint64_t number = at < 0 ? 1 : s.slot[at].number + 1;
        r = write_slot(&s, at < 0 ? 0 : 1 - at, number, vm, rec, path, e);
        close(s.fd);
        xm_fault("owner-saved");
    }
    free(path);
    return r;
}

int owner_load(const char *dir, const char *vm, struct owner_record *rec, struct xm_error *e)
{
    char *path = path_of(dir);
    struct slots s;
    int r = slots_open(&s, path, O_RDONLY, e);

    memset(rec, 0, sizeof *rec);
    if (!r) {
        int at = newest(&s);
        close(s.fd);
        if (at < 0 && s.slot[0].empty && s.slot[1].empty)
            r = xm_error_set(e, ENOENT, "%s holds no record", path);
        else if (at < 0 || strcmp(s.slot[at].vm, vm) != 0)
            r = xm_error_set(
                e, EINVAL,
                "%s: not an ownership record of VM %s; until it is repaired by hand the VM is not run", path,
                vm);
        else
            *rec = s.slot[at].rec;
    }
    free(path);
    return r;
}

int owner_sync(const char *dir, struct xm_error *e)
{
    char *path = path_of(dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;

    if (fd < 0 ? errno != ENOENT : fsync(fd) < 0)
        r = xm_error_errno(e, errno, "%s", path);
    else if (fd < 0 &&
             (r = xm_sync_directory_of(path, e)) == -ENOENT) /* one that was removed stays removed */
        r = 0;
    if (fd >= 0)
        close(fd);
    free(path);
    return r;
}

int owner_restore(const char *dir, const char *vm, const struct owner_record *before, struct xm_error *e)
{
    char *path = path_of(dir);
    int r = 0;

    if (before)
        r = owner_save(dir, vm, before, e);
    else
        r = xm_file_remove(path, e);
    free(path);
    return r;
}

bool owner_may_run(const struct owner_record *rec)
{
    return rec->owner == OWNER_MINE;
}
