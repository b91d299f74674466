#!/bin/sh
# Runs test programs one after the other, each whole; fails if one failed, and names it last.
failed=
for t in "$@"; do
  echo "== ${t##*/}"
  timeout -k 10 "${TEST_TIMEOUT:-240}" "$t" || failed="$failed ${t##*/}($?)"
done
[ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
