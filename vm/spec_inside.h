/* vm/spec_inside.h: what spec.c, spec_words.c, spec_ini.c and spec_json.c share. */
#ifndef XM_VM_SPEC_INSIDE_H
#define XM_VM_SPEC_INSIDE_H

#include "vm/spec.h"

#define VCPUS_MAX  1024
#define QUEUES_MAX 16

/* Where a value came from, for the sentence. */
struct spec_where {
    const char *ini; /* NULL: JSON */
};

/* Sets the sentence, returns -EINVAL. key NULL: the section as a whole. */
int spec_bad(const struct spec_where *, struct xm_error *, const char *section, const char *key,
             const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void spec_set_defaults(struct vm_spec *);
int spec_check(const struct vm_spec *, const struct spec_where *, struct xm_error *); /* with its defaults */
int spec_check_words(const struct vm_spec *, const struct spec_where *, struct xm_error *); /* part of it */

/* Disks and NICs are named in paths, QEMU ids and device serials. */
int part_name_check(const char *kind, const char *name, struct xm_error *);
bool mac_ok(const char *);
bool ifname_ok(const char *);
void free_strings(char **); /* NULL-terminated, or NULL */

#endif
