/* SPDX-License-Identifier: MIT */
/* tests/system/small.h: the guest without an operating system (tests/guest/kvm) as a VM of a lab. It is up in
 * a second under TCG, too; what it is to check it checks all the time, and tells on its console.
 *
 * What it said is read from the consoles' logs of both hosts, as one stream: first the rest of where it was
 * heard last. So a letter for an error is heard wherever it was said, and how often it began anew is known.
 * Which of its writes it had been told to be done, and to be flushed, is kept: a guest that begins anew says
 * what it finds.
 *
 * Nothing here fails a test but what says so (small_must_...): the program that injects faults uses it, too.
 */
#ifndef XM_TESTS_SYSTEM_SMALL_H
#define XM_TESTS_SYSTEM_SMALL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define SMALL_PARTS 8 /* of two disks */

struct small_options {
    const char *accel;  /* tcg when NULL */
    const char *cpu;    /* QEMU's default when NULL */
    const char *append; /* the guest's parameters; NULL: some that make it quick under TCG */
    unsigned memory;    /* MiB; 0: 16 */
    unsigned fill;      /* MiB of random data on the second disk, for a move to last */
    bool no_nic;
};

struct small_progress {
    unsigned up, rounds, pages, sweeps, sectors, errors;
};

/* What was found of a part at the start. */
struct small_kept {
    bool said;
    unsigned newest, complete;
};

struct small {
    char name[32], host; /* where it was heard last: a, b; 0: nowhere yet */
    struct small_console {
        int fd;
        bool deaf;
        off_t at;
        size_t heard; /* bytes so far */
    } console[2];
    struct small_progress now;       /* as last told */
    unsigned lines, boots;           /* times that it told how far it is; that it began anew */
    unsigned pages, sectors;         /* what there is to check */
    unsigned acked[SMALL_PARTS];     /* numbers of writes (disk.c) */
    unsigned synced[SMALL_PARTS];    /* those that a flush covers */
    unsigned was_acked[SMALL_PARTS]; /* the same when it last began anew */
    unsigned was_synced[SMALL_PARTS];
    struct small_kept kept[SMALL_PARTS];
    char wrong[200]; /* the first error that it told; "": none */
    char line[256];  /* the one that is being read */
    size_t len;
};

/* Of that name in the lab that is up. Nothing is opened yet; a host's log is read from where it ends now. */
void small_init(struct small *, const char *name);
void small_free(struct small *);
/* Its specification, for `xmigrate start`: two disks of 4 MiB (the second: and `fill`) in ds1, a NIC. */
bool small_write_spec(const struct small *, const char *path, const struct small_options *);
/* Lets go of a host's log, which may become shorter; and reads it again, from where it then ends. */
void small_deafen(struct small *, char host);
void small_listen(struct small *, char host);
/* Takes what has come on both consoles. True: something has. */
bool small_read(struct small *);
/* Waits until it has told something new at that host, or anywhere (0). */
bool small_ticks(struct small *, char host, unsigned seconds);
/* Starts it and waits until it has filled its disks and compared them. NULL, or what is wrong. */
const char *small_start(struct small *, const char *host, const char *name, const struct small_options *);
/* Waits until it tells at that host that its disks have been compared since it began. */
const char *small_ready(struct small *, char host);
/* Waits until all of its RAM and all sectors have been checked since now, as long as it goes on telling.
 * NULL, or what is wrong: an error that it told, its silence. */
const char *small_check(struct small *);
/* It has begun anew: NULL, or what of its writes has been lost. flushed: those that no flush covers may be.
 */
const char *small_lost(const struct small *, bool flushed);

/* ---- these fail the test ---- */

/* A lab with a small guest, web1, at host a. `guest` is read, SMALL_GROUP(name, env, .field = value ...)
 * defines it with lab_setup and lab_teardown. */
int small_group_setup(const char *name, const char *env, struct small *, const struct small_options *);
#define SMALL_GROUP(name, env, ...)                                                                          \
    static struct small guest;                                                                               \
    static int lab_setup(void **state)                                                                       \
    {                                                                                                        \
        static const struct small_options options = {__VA_ARGS__};                                           \
        (void)state;                                                                                         \
        return small_group_setup(name, "XM_LAB_VM=none " env, &guest, &options);                             \
    }                                                                                                        \
    static int lab_teardown(void **state)                                                                    \
    {                                                                                                        \
        (void)state;                                                                                         \
        small_free(&guest);                                                                                  \
        return lab_down();                                                                                   \
    }
/* For a move that takes two seconds over links of 300mbit each, disks and memory a second each. */
#define SMALL_RATE "XM_LAB_RATE=300mbit "
#define SMALL_LONG .fill = 80, .memory = 64, .append = "beat=2000 ram=10000 disk=800 span=512 tell=100"

void small_must_start(struct small *, const char *host, const char *name, const struct small_options *);
/* It runs there, and what it checks from now on is right; if it has begun anew, nothing that was acknowledged
 * is lost. */
void small_must_be_whole(struct small *, const char *host);

#endif
