/* SPDX-License-Identifier: MIT */
/* agent/datastore.h: is the directory of a datastore the one that it was? An unmounted one is an empty
 * directory on another file system, and disks that were made there would be hidden by the next mount.
 *
 * Its identity is a UUID: in the datastore as what the link `.xmigrate-datastore` names (made and read in one
 * step, and no file that counts as a disk), and in the state directory's datastores.json. It is written when
 * the datastore is first used; two hosts that share one have the same. Never under agent.lock. */
#ifndef XM_AGENT_DATASTORE_H
#define XM_AGENT_DATASTORE_H

#include "agent/agent.h"

/* 0 when disks may be made there, as far as can be seen; changes nothing. Else a sentence with what to do. */
int datastore_judge(struct agent *, const struct conf_datastore *, struct xm_error *);
/* The same right before a disk is made there: notes its identity when it has none. Who has made it judges
 * once more: it may have been unmounted in between. */
int datastore_use(struct agent *, const struct conf_datastore *, struct xm_error *);
/* For who makes disks there without us (a shim): {"path": of the mark, "names": what it has to name}. NULL:
 * not known. */
json_t *datastore_mark(struct agent *, const struct conf_datastore *);

#endif
