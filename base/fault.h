/* SPDX-License-Identifier: MIT */
/* base/fault.h: counted fault points for tests. A point is a name in the code; XMIGRATE_FAULT in the
 * environment of a program says what happens there: NAME:N:ACTION[,NAME:N:ACTION...], at the N-th passage
 * (from 1): kill (SIGKILL to itself), error (the point reports a failure), stop (SIGSTOP), delay=MS. Costs
 * one load when the variable is not set.
 *
 * N may be *: each passage.
 *
 * @FILE instead: the one NAME:N:ACTION that stands in that file, looked for at each passage; it is removed by
 * who acts, unless N is *. So a point can be armed in programs that run, and it is seen that it was reached.
 */
#ifndef XM_BASE_FAULT_H
#define XM_BASE_FAULT_H

#include <stdbool.h>

/* True when the caller shall fail as if the operation at this point had failed. Any thread. */
bool xm_fault(const char *point);

#endif
