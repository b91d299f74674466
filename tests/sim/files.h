/* SPDX-License-Identifier: MIT */
/* tests/sim/files.h: a host's file system, between files.c (what is there, and what would be after a power
 * cut) and file_calls.c (the system calls on it). */
#ifndef XM_SIM_FILES_H
#define XM_SIM_FILES_H

#include "tests/sim/sim.h"

#define NAMES 400

struct name {
    char path[160];
    uint64_t hash;
    struct inode *inode, *durable;
    uint64_t changed; /* number of the change that is not durable yet; 0: it is */
};

struct file_system {
    struct name name[NAMES];
    unsigned names;
    uint64_t changes;
};
extern struct file_system sim_fs[HOSTS];

struct host *files_here(void); /* whose files are meant: files_as's, else the current process's */
bool files_looked_at(void);    /* by the world itself: nothing goes wrong then */
struct name *name_find(struct host *, const char *path);
void name_set(struct host *, const char *path, struct inode *); /* NULL: removed */
void name_touched(struct host *, const char *path);             /* it may be an owner record */
bool file_in_memory(struct host *, const char *path);
bool file_has_parent(struct host *, const char *path);
struct inode *inode_new(bool dir);
void inode_set(char **to, size_t *to_len, const char *data, size_t len);
void inode_synced(struct inode *);

#endif
