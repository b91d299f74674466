#!/bin/sh
# SPDX-License-Identifier: MIT
# stillness.sh MS: what it means that an idle guest stood still for MS ms. At most 50: good, nothing is said. More, and others are using
# this machine's processors (bench/quiet.sh): a guest without KVM waits for them, too; the load is said, status 0. More on a quiet
# machine: a fault of ours, status 1.
bound=50
! awk "BEGIN { exit !($1 <= $bound) }" || exit 0
if load=$(unset XM_BENCH_LOADED && "$(dirname "$0")/../bench/quiet.sh" 0 2>&1); then
  echo "an idle guest stood still for $1 ms, more than the $bound ms it should on a quiet machine, and this one is quiet" >&2
  exit 1
fi
echo "an idle guest stood still for $1 ms, and not for $bound ms at most as on a quiet machine: $load"
