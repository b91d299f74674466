/* SPDX-License-Identifier: MIT */
/* tests/bench/lib_version.h: the QEMUs that we are measured beside: the newest at hand, and the host's own.
 *
 * XM_BENCH_QEMU names a directory with programs of another version (qemu-system-x86_64, qemu-storage-daemon),
 * the newest; tests/bench/run.sh sets it. Without it, or where it holds the host's own version, there is one.
 * What a version is told to do follows from what it knows by its own words (query-qmp-schema). */
#ifndef XM_BENCH_LIB_VERSION_H
#define XM_BENCH_LIB_VERSION_H

#include "tests/bench/bench.h"

#define VERSIONS_MAX 2u

/* How many there are, the newest first. The first call asks each. No QEMU at all: the bench's end. */
unsigned version_count(void);
const char *version_short(unsigned v); /* «10.0.13» */
const char *version_name(unsigned v);  /* «10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)» */
/* The programs whose names begin with qemu- are its from now on, where this process starts them. */
void version_use(unsigned v);
/* Of the one in use: a QMP command's argument. */
bool version_knows(const char *command, const char *argument);
/* The one that our own guests run on in pairs with QEMU's migration: the newest, or the host's
 * (XM_BENCH_OURS=host). */
unsigned version_of_ours(void);
/* Whether it is measured in that round: the newest always, the other in every fourth. Time is the reason: its
 * median is of fewer runs. */
bool version_turn(unsigned v, unsigned round);

/* A row, judged against the better of the versions that were measured (the least median, or the most); the
 * others stand beside it. ours and peer: one for each version, ours may be the same for all. */
void version_result(const char *unit, const struct bench_stat *const ours[],
                    const struct bench_stat *const peer[], const char *peer_name, double goal,
                    bool higher_is_better);
/* The same, ours being one. peer: an element for each version. */
void version_results(const char *unit, const struct bench_stat *ours, const struct bench_stat peer[],
                     const char *peer_name, double goal, bool higher_is_better);

#endif
