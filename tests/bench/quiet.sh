#!/bin/sh
# SPDX-License-Identifier: MIT
# quiet.sh [LIMIT]: returns when this machine does nothing else: what others take of the processors, and what the machine's own host
# takes away (steal), is at most 15 per cent over 3 s. Says the load and waits while it is more, at most LIMIT seconds (300); then
# fails, having said the load. Nothing of ours may run meanwhile: all that runs is others'.
#
# Environment: XM_BENCH_LOADED=yes (measure all the same: says the load, waits for nothing), XM_BENCH_BUSY (15: per cent).
limit=${1:-300}
most=${XM_BENCH_BUSY:-15}

# «PERCENT of the processors in use by others, PERCENT stolen, TASKS»: the share of both, steal alone, and runnable tasks on average (less
# the one that looks).
look() {
  cat /proc/stat
  for _ in 1 2 3 4 5 6; do sleep 0.5; grep '^procs_running' /proc/stat; done
  cat /proc/stat
}
measure() {
  look | awk '
    $1 == "cpu" && !seen++ { for (i = 2; i <= 9; i++) before[i] = $i; next }
    $1 == "cpu" { for (i = 2; i <= 9; i++) { d[i] = $i - before[i]; all += d[i] } }
    $1 == "procs_running" { sum += $2; n++ }
    # user nice system idle iowait irq softirq steal
    END { printf "%d %d %.1f\n", 100 * (all - d[5] - d[6]) / all, 100 * d[9] / all, sum / n - 1 }'
}

began=$(date +%s)
while :; do
  # shellcheck disable=SC2046 # three words
  set -- $(measure)
  load="others and the host take $1 % of the processors (limit $most %; steal $2 %; $3 tasks runnable)"
  [ "$1" -gt "$most" ] || exit 0
  if [ "$XM_BENCH_LOADED" = yes ]; then
    echo "   the machine is loaded, figures will be wrong: $load"
    exit 0
  fi
  waited=$(($(date +%s) - began))
  if [ $waited -ge "$limit" ]; then
    echo "the machine is loaded: $load" >&2
    exit 1
  fi
  echo "   waiting for the machine to be quiet, $((limit - waited)) s more at most: $load"
  sleep 7
done
