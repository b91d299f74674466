/* SPDX-License-Identifier: MIT */
/* The named points, in the order of a migration's life, and where the VM has to be when each host's process
 * dies there. A point that is passed on both sides stands twice. */
#include "tests/faults/faults.h"

#define KILLED(name, side, passage, home)                                                                    \
    {                                                                                                        \
        name, side, passage, "kill", 300, home, false, false                                                 \
    }
#define CUT_AT(name, side, passage, home)                                                                    \
    {                                                                                                        \
        name, side, passage, "cut", 300, home, false, false                                                  \
    }
#define STOPPED(name, side, passage, hold, home)                                                             \
    {                                                                                                        \
        name, side, passage, "stop", hold, home, false, false                                                \
    }
#define FAILS(name, side, passage, home)                                                                     \
    {                                                                                                        \
        name, side, passage, "error", 0, home, false, false                                                  \
    }
#define AGAIN(name, side, action, home)                                                                      \
    {                                                                                                        \
        name, side, 1, action, 300, home, false, true                                                        \
    }
#define STORAGE(name, action)                                                                                \
    {                                                                                                        \
        name, SOURCE, 1, action, 300, "source", true, false                                                  \
    }

#define S    SOURCE
#define D    DESTINATION
#define AT_S "source"
#define AT_D "destination"

const struct point points[] = {
    /* The agents prepare. */
    KILLED("job-made", S, 1, AT_S),
    KILLED("prepare-created", D, 1, AT_S),
    KILLED("journal-written", D, 1, AT_S),
    KILLED("prepare-journaled", D, 1, AT_S),
    KILLED("prepared", D, 1, AT_S),
    KILLED("destination-start", D, 1, AT_S),
    KILLED("move-prepared", S, 1, AT_S),
    KILLED("move-launched", S, 1, AT_D),
    FAILS("journal-write", D, 1, AT_S),
    STOPPED("prepared", D, 1, 3000, AT_D),
    CUT_AT("prepare-created", D, 1, AT_S),
    CUT_AT("prepared", D, 1, AT_S),
    /* Disks, memory. */
    FAILS("journal-write", S, 1, AT_S),
    KILLED("source-journaled", S, 1, AT_S),
    KILLED("source-linked", S, 1, AT_S),
    KILLED("source-begun", S, 1, AT_S),
    KILLED("begin-taken", D, 1, AT_S),
    KILLED("disks-mirrored", S, 1, AT_S),
    KILLED("disks-copied", S, 1, AT_S),
    KILLED("memory-round", S, 1, AT_S),
    KILLED("memory-copied", S, 1, AT_S),
    STOPPED("memory-copied", S, 1, 3000, NULL),
    CUT_AT("disks-copied", S, 1, AT_S),
    /* The switch. */
    KILLED("incoming-spec-saved", D, 1, AT_S),
    KILLED("owner-saved", D, 1, AT_S),
    KILLED("incoming-promised", D, 1, AT_S),
    FAILS("owner-save", D, 1, AT_S),
    KILLED("switch-begun", S, 1, AT_S),
    KILLED("switch-stopped", S, 1, AT_S),
    FAILS("switch-stopped", S, 1, AT_S),
    STOPPED("switch-stopped", S, 1, 2000, NULL),
    KILLED("switch-compared", S, 1, AT_S),
    KILLED("switch-sent", S, 1, AT_S),
    KILLED("loaded", D, 1, AT_S),
    KILLED("switch-loaded", S, 1, AT_S),
    STOPPED("loaded", D, 1, 2000, NULL),
    CUT_AT("incoming-promised", D, 1, AT_S),
    CUT_AT("switch-sent", S, 1, AT_S),
    CUT_AT("switch-loaded", S, 1, AT_S),
    CUT_AT("loaded", D, 1, AT_S),
    FAILS("state-large", S, 1, AT_S),
    /* The hand-off. */
    KILLED("handoff-before-record", S, 1, AT_S),
    FAILS("handoff-before-record", S, 1, AT_S),
    FAILS("owner-save", S, 1, AT_S),
    KILLED("handoff-after-record", S, 1, AT_D),
    STOPPED("handoff-after-record", S, 1, 4000, AT_D),
    CUT_AT("handoff-after-record", S, 1, AT_D),
    KILLED("run-told", D, 1, AT_D),
    CUT_AT("run-told", D, 1, AT_S), /* it has lost its QEMU, and hands it back: the source has it whole */
    KILLED("run-after-record", D, 1, AT_D),
    CUT_AT("run-after-record", D, 1, AT_D),
    FAILS("run-refused", D, 1, AT_S),
    KILLED("run-running", D, 1, AT_D),
    CUT_AT("run-running", D, 1, AT_D),
    KILLED("handoff-told", S, 1, AT_D),
    CUT_AT("handoff-told", S, 1, AT_D),
    KILLED("handoff-after-record", S, 2, AT_D),
    CUT_AT("handoff-after-record", S, 2, AT_D),
    /* Behind it. */
    KILLED("came-begin", D, 1, AT_D),
    CUT_AT("came-begin", D, 1, AT_D),
    KILLED("journal-end", D, 1, AT_D),
    FAILS("journal-end", D, 1, AT_D),
    KILLED("vm-came", D, 1, AT_D),
    KILLED("gone-begin", S, 1, AT_D),
    KILLED("gone-qemu-ended", S, 1, AT_D),
    KILLED("left-delete", S, 1, AT_D),
    KILLED("left-delete", S, 2, AT_D),
    CUT_AT("left-delete", S, 2, AT_D),
    KILLED("journal-end", S, 1, AT_D),
    KILLED("journal-ended", S, 1, AT_D),
    FAILS("journal-end", S, 1, AT_D),
    KILLED("source-last-word", S, 1, AT_D),
    KILLED("vm-ended", S, 1, AT_D),
    KILLED("clean-up-undone", S, 1, AT_D),
    KILLED("clean-up-removed", S, 1, AT_D),
    KILLED("job-ending", S, 1, AT_D),
    /* A switch-over that is given up, and the next one. */
    AGAIN("again", S, "kill", AT_S),
    AGAIN("again-withdrawn", D, "kill", AT_S),
    AGAIN("again-withdrawn", D, "cut", AT_S),
    AGAIN("again-withdrawn", D, "stop", AT_D),
    AGAIN("again-answered", S, "kill", AT_S),
    AGAIN("again-answered", S, "cut", AT_S),
    AGAIN("again-told", D, "kill", AT_S),
    AGAIN("again-resumed", S, "kill", AT_S),
    AGAIN("again-resumed", S, "stop", AT_D),
    AGAIN("wait-anew", D, "kill", AT_S),
    AGAIN("wait-anew", D, "cut", AT_S),
    AGAIN("wait-anew", D, "stop", AT_D),
    AGAIN("loaded", D, "kill", AT_S),
    AGAIN("run-after-record", D, "kill", AT_D),
    AGAIN("handoff-after-record", S, "kill", AT_D),
    /* Disks alone. */
    STORAGE("storage-journaled", "kill"),
    STORAGE("storage-made", "kill"),
    STORAGE("storage-created", "kill"),
    STORAGE("storage-created", "cut"),
    STORAGE("pivot-before-record", "kill"),
    STORAGE("pivot-after-record", "kill"),
    STORAGE("pivot-after-record", "cut"),
    STORAGE("storage-sweep", "kill"),
    STORAGE("storage-sweep", "cut"),
    STORAGE("left-delete", "kill"),
};
const unsigned points_count = sizeof points / sizeof *points;
