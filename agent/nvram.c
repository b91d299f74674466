/* SPDX-License-Identifier: MIT */
#include "agent/nvram.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE 3072u /* no remainder in base64 */
#define GRAIN 4096u /* a flash consists of such blocks */

/* ---- the file ---- */

static int read_image(const char *path, char **data, size_t *size, struct xm_error *e)
{
    int r = xm_file_read(path, NVRAM_MAX, data, size, e);

    if (!r && (!*size || *size % GRAIN)) {
        free(*data);
        *data = NULL;
        r = xm_error_set(e, EINVAL, "%s has %zu bytes: variables of a firmware are a multiple of %u", path,
                         *size, GRAIN);
    }
    return r;
}

static int put(const char *path, const void *data, size_t size, json_t *created, struct xm_error *e)
{
    int r = xm_file_replace(path, data, size, e);

    if (!r)
        json_array_append_new(created, json_string(path));
    return r;
}

static bool had_one(struct agent *a, const char *vm)
{
    char *path = vm_state_path(a, vm, "spec.json");
    json_t *o = read_json(path, NULL);
    bool yes = json_object_get(o, "nvram");

    json_decref(o);
    free(path);
    return yes;
}

int nvram_make(struct agent *a, const struct vm_spec *s, json_t *created, struct xm_error *e)
{
    char *dir = vm_state_path(a, s->name, NULL), *path = vm_state_path(a, s->name, "nvram.fd"), *data = NULL;
    size_t size;
    int r = 0;

    if (!s->nvram || access(path, F_OK) == 0)
        goto out;
    if (had_one(a, s->name)) {
        r = xm_error_set(
            e, ENOENT,
            "VM %s: %s, the variables of its firmware, has gone: put a copy there, or the template %s to "
            "begin anew",
            s->name, path, s->nvram);
        goto out;
    }
    r = read_image(s->nvram, &data, &size, e);
    if (!r)
        r = xm_mkdir_all(dir, e);
    if (!r)
        r = put(path, data, size, created, e);
    if (r)
        xm_error_prefix(e, "VM %s: nvram", s->name);
out:
    free(data);
    free(path);
    free(dir);
    return r;
}

int nvram_put(struct agent *a, const char *vm, const unsigned char *data, size_t size, struct xm_error *e)
{
    char *dir = vm_state_path(a, vm, NULL), *path = vm_state_path(a, vm, "nvram.fd");
    int r = xm_mkdir_all(dir, e);

    if (!r)
        r = xm_file_replace(path, data, size, e);
    free(path);
    free(dir);
    return r;
}

void nvram_sync(struct agent *a, const char *vm)
{
    char *path = vm_state_path(a, vm, "nvram.fd");
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (fsync(fd) < 0)
            xm_log(XM_LOG_WARN, "VM %s: %s cannot be synced: %s", vm, path, strerror(errno));
        close(fd);
    }
    free(path);
}

/* ---- between hosts ---- */

static bool blank(const unsigned char *data, size_t n)
{
    for (size_t i = 0; data && i < n; i++) {
        if (data[i] != 0xff)
            return false;
    }
    return true;
}

json_t *nvram_pack(struct agent *a, const char *vm, struct xm_error *e)
{
    char *path = vm_state_path(a, vm, "nvram.fd"), *data = NULL, text[PIECE / 3 * 4 + 1];
    size_t size = 0;
    json_t *o = NULL, *pieces;

    if (read_image(path, &data, &size, e) == 0) {
        o = json_pack("{s:I, s:o}", "size", (json_int_t)size, "pieces", pieces = json_array());
        for (size_t at = 0; at < size; at += PIECE) {
            size_t n = XM_MIN(size - at, PIECE);
            if (blank((unsigned char *)data + at, n))
                continue;
            xm_base64_encode((unsigned char *)data + at, n, text);
            json_array_append_new(pieces, json_pack("[I, s]", (json_int_t)at, text));
        }
    }
    free(data);
    free(path);
    return o;
}

unsigned char *nvram_unpack(const json_t *o, size_t *size, struct xm_error *e)
{
    json_int_t n = xm_json_int(o, "size", 0);
    const json_t *pieces = json_object_get(o, "pieces"), *p;
    unsigned char *data;
    size_t i;

    if (n <= 0 || n > NVRAM_MAX || n % GRAIN || !json_is_array(pieces) ||
        json_array_size(pieces) > NVRAM_MAX / PIECE + 1) {
        xm_error_set(e, EINVAL, "nvram: no size from %u to %u, or no pieces", GRAIN, NVRAM_MAX);
        return NULL;
    }
    data = malloc((size_t)n);
    if (!data) {
        xm_error_set(e, ENOMEM, "no memory");
        return NULL;
    }
    memset(data, 0xff, (size_t)n);
    json_array_foreach ((json_t *)pieces, i, p) {
        const json_t *at = json_array_get(p, 0), *text = json_array_get(p, 1);
        json_int_t offset = json_is_integer(at) ? json_integer_value(at) : -1;
        if (offset < 0 || offset >= n || !json_is_string(text) ||
            xm_base64_decode(json_string_value(text), data + offset, (size_t)(n - offset)) < 0) {
            xm_error_set(e, EINVAL, "nvram: piece %zu is none", i);
            free(data);
            return NULL;
        }
    }
    *size = (size_t)n;
    return data;
}
