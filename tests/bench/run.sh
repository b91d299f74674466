#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh NAME...: runs these benches one after the other, then makes the report of all rows there are. A bench that ends
# without a word gets a row that says so. Fails when a goal was not met.
#
# Before: what the benches need is installed (tests/deps.sh bench), and the newest QEMU at hand is looked for, to be measured beside
# the host's own: tests/debian13.sh makes one where the host is older. Before each bench the machine has to be quiet (quiet.sh); it
# may be waited for five minutes in all, then the run is over.
#
# Environment: XM_BENCH_QEMU (a directory with another QEMU's programs, or empty: the host's alone), XM_BENCH_LOADED=yes (measures on
# a loaded machine, too), XM_BENCH_TIMEOUT (600: seconds for one bench); see tests/bench/bench.h and lib_version.h.
build=${XM_BUILD:-build}
bench=$build/bench
patience=300

program() {
  case $1 in
    disk-*) echo disk ;;
    whole | downtime-idle | downtime-busy) echo whole ;;
    downtime-kvm | thousand | estimate) echo kvm ;;
    guest-io-mirrored) echo guestio ;;
    vhost-iops) echo vhost ;;
    *) echo "$1" ;;
  esac
}

find_qemu() {
  [ -z "${XM_BENCH_QEMU+set}" ] || return 0
  XM_BENCH_QEMU=''
  if grep -Eq '^VERSION_ID="?(1[3-9]|[2-9][0-9])"?$' /etc/os-release; then
    echo "   beside this host's own QEMU alone: on this Debian it is the newest at hand"
  elif XM_BENCH_QEMU=$(tests/debian13.sh --qemu 10); then
    echo "   beside the QEMU in $XM_BENCH_QEMU, and this host's own"
  else
    echo "   BESIDE THIS HOST'S OWN QEMU ALONE: tests/debian13.sh has no newer one (status $?)"
    XM_BENCH_QEMU=''
  fi
}

# Per cent of the processors' time that the machine's host took away between two lines of /proc/stat.
stolen() {
  echo "$1 $2" | awk '{ for (i = 2; i <= 9; i++) all += $(i + 11) - $i; printf "%.1f", all ? 100 * ($20 - $9) / all : 0 }'
}
cpu_times() { grep '^cpu ' /proc/stat; }

tests/deps.sh bench || exit 1
find_qemu
export XM_BENCH_QEMU

child=''
trap 'trap - INT TERM; [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null; wait "$child"; }; exit 130' INT TERM
began=$(date +%s)
failed='' refused=''
mkdir -p build/bench
for name in "$@"; do
  start=$(date +%s)
  if [ -z "$refused" ]; then
    if refused=$(tests/bench/quiet.sh "$patience" 2>&1 >&3); then refused=''; fi
    patience=$((patience - $(date +%s) + start))
    [ $patience -gt 0 ] || patience=0
  fi 3>&1
  if [ -n "$refused" ]; then
    echo "   $name is not measured: $refused"
    "$bench/report" --refused "$name" "$refused"
    failed=yes
    continue
  fi
  start=$(date +%s) before=$(cpu_times)
  timeout -k 30 "${XM_BENCH_TIMEOUT:-600}" "$bench/$(program "$name")" "$name" &
  child=$!
  wait "$child"
  code=$?
  child=''
  echo "   $name took $(($(date +%s) - start)) s; $(stolen "$before" "$(cpu_times)") % of the processors were taken away (steal)"
  [ $code = 0 ] || { failed=yes; "$bench/report" --failed "$name" "ended with status $code"; }
done
"$bench/report" || failed=yes
echo "took $(($(date +%s) - began)) s; build/bench/report.html, build/bench/table.md"
[ -z "$refused" ] || echo "refused: $refused (XM_BENCH_LOADED=yes measures all the same)" >&2
[ -z "$failed" ]
