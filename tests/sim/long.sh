#!/bin/sh
# SPDX-License-Identifier: MIT
# long.sh N: two faults at every step of a move, N seeds with two hosts and a tenth of that with three, beyond those of
# `make check`, by XM_JOBS processes (2).
sim=${XM_BUILD:-build}/tests/sim/sim jobs=${XM_JOBS:-2} n=$1 bad=0 pids=
"$sim" -2 -n 0 -s & pids=$!
"$sim" -3 -S -l -f 3001 -n $((n / 10)) & pids="$pids $!"
i=0
while [ "$i" -lt "$jobs" ]; do
  "$sim" -S -l -f $((18001 + i * (n / jobs))) -n $((n / jobs + 1)) & pids="$pids $!"
  i=$((i + 1))
done
for p in $pids; do wait "$p" || bad=1; done
exit $bad
