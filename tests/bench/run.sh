#!/bin/sh
# run.sh NAME...: runs these benches one after the other, then makes the report of all rows there are. A bench that ends
# without a word gets a row that says so. Fails when a goal was not met.
build=${XM_BUILD:-build}
bench=$build/bench
began=$(date +%s)

program() {
  case $1 in
    disk-*) echo disk ;;
    whole | downtime-idle | downtime-busy) echo whole ;;
    downtime-kvm) echo kvm ;;
    guest-io-mirrored) echo guestio ;;
    vhost-iops) echo vhost ;;
    *) echo "$1" ;;
  esac
}

child=
trap 'trap - INT TERM; [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null; wait "$child"; }; exit 130' INT TERM
mkdir -p build/bench
for name in "$@"; do
  start=$(date +%s)
  timeout -k 30 "${XM_BENCH_TIMEOUT:-600}" "$bench/$(program "$name")" "$name" &
  child=$!
  wait "$child"
  code=$?
  child=
  echo "   $name took $(($(date +%s) - start)) s"
  [ $code = 0 ] || "$bench/report" --failed "$name" "ended with status $code"
done
"$bench/report" || code=1
echo "took $(($(date +%s) - began)) s; build/bench/report.html"
[ "${code:-0}" = 0 ]
