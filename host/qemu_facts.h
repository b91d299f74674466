/* host/qemu_facts.h: what a QEMU program says of itself. Arguments are chosen by this, never by its version.
 * Any thread. */
#ifndef XM_HOST_QEMU_FACTS_H
#define XM_HOST_QEMU_FACTS_H

#include "base/base.h"

/* Asked once per program (as PATH finds it, and again when another file is there), kept for the life of the
 * process; a failure for some seconds. At most 10 s. */
struct qemu_facts {
    char version[32];  /* "7.2.22" */
    json_t *machines;  /* query-machines: [{"name", "alias"}] */
    bool reconnect_ms; /* -chardev knows reconnect-ms; else reconnect, in seconds */
};

/* NULL with a sentence when it cannot be run (-ENOENT: it is not there) or does not answer. The result is
 * never freed. */
const struct qemu_facts *qemu_facts(const char *program, struct xm_error *);

/* The machine's name without options is known there. An alias ("q35") is written out in `full`
 * ("pc-q35-7.2"), options kept. */
bool qemu_facts_machine(const struct qemu_facts *, const char *machine, char full[128]);

/* The CPU features that a guest sees with this -cpu and accelerator ("tcg" or "kvm", options behind a comma
 * are ignored): a sorted array of names, a new reference; NULL with a sentence. */
json_t *qemu_facts_cpu(const char *program, const char *accel, const char *cpu, struct xm_error *);

#endif
