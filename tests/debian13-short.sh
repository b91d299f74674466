#!/bin/sh
# SPDX-License-Identifier: MIT
# debian13-short.sh: the half of `make check-debian13` that is part of `make check` elsewhere: the build by Debian 13's compiler with its
# libraries, without a warning, and the unit tests there, but for long ones that no library, QEMU or kernel header is part of (an agent that
# waits for others, pure state machines, simulated disks); make check-debian13 has all of them. Skipped aloud where there is no Debian 13 and none can be made.
cd "$(dirname "$0")/.." || exit 1
if grep -qs '^VERSION_CODENAME=trixie$' /etc/os-release; then
  echo "debian13-short.sh: this is Debian 13; nothing more to run"
  exit 0
fi
# Not the calling make's: its job server does not reach in there.
unset MAKEFLAGS MFLAGS MAKELEVEL
tests/debian13.sh sh -c '
  skip="mirror_random mirror_real memxfer_precopy mirror_pace net_hostile net_failure net_slow vm_handoff
    agent_advice agent_control agent_inventory agent_move agent_plan agent_prepare agent_recover agent_returned
    agent_start agent_storage agent_tidy tests_%"
  skip=$(echo $skip)
  make -j2 DEBUG= UNIT_SKIP="$skip" progs unit-build >build/make.log 2>&1 ||
    { tail -n 40 build/make.log; exit 1; }
  make --no-print-directory DEBUG= UNIT_SKIP="$skip" unit' &
child=$!
trap 'kill -TERM $child 2>/dev/null' INT TERM # it takes away what it has made
code=0
wait $child || code=$?
while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
if [ $code = 77 ]; then
  echo "debian13-short.sh: skipped: no Debian 13 here"
  exit 0
fi
exit $code
