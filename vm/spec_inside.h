/* SPDX-License-Identifier: MIT */
/* vm/spec_inside.h: what spec.c, spec_words.c, spec_ini.c and spec_json.c share. */
#ifndef XM_VM_SPEC_INSIDE_H
#define XM_VM_SPEC_INSIDE_H

#include "vm/spec.h"

#define VCPUS_MAX  1024
#define QUEUES_MAX 16
#define BOOT_MAX   99

/* Where a value came from, for the sentence. */
struct spec_where {
    const char *ini; /* NULL: JSON */
};

/* Sets the sentence, returns -EINVAL. key NULL: the section as a whole. */
int spec_bad(const struct spec_where *, struct xm_error *, const char *section, const char *key,
             const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void spec_set_defaults(struct vm_spec *);
int spec_check(const struct vm_spec *, const struct spec_where *, struct xm_error *); /* with its defaults */
/* Parts of it: spec_words.c, spec_devices.c. */
int spec_check_words(const struct vm_spec *, const struct spec_where *, struct xm_error *);
int spec_check_devices(const struct vm_spec *, const struct spec_where *, struct xm_error *);
bool spec_only(const char *text, const char *set); /* not empty, not long, of these characters alone */
bool spec_path_ok(const char *path);               /* absolute, and of characters that mean nothing to QEMU */
#define SPEC_ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

/* spec_devices.c: {"rng": true, "clock": "utc"}: what was not given is not there. */
int devices_from_json(struct vm_devices *, const json_t *, struct xm_error *);
json_t *devices_to_json(const struct vm_devices *); /* NULL: none of it was given */
void devices_free(struct vm_devices *);

/* Disks and NICs are named in paths, QEMU ids and device serials. */
int part_name_check(const char *kind, const char *name, struct xm_error *);
bool mac_ok(const char *);
/* The name that a NIC's tap gets when none is given. */
void spec_tap_name(const struct vm_spec *, unsigned nic, char name[16]);
bool ifname_ok(const char *);
void free_strings(char **); /* NULL-terminated, or NULL */

#endif
