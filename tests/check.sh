#!/bin/sh
# check.sh UNIT-TESTS... -- SYSTEM-TESTS...: what `make check` runs, all of it even after a failure. The guests come last, so that a
# good run ends with cmocka's closing lines; a bad one ends with what failed.
here=$(dirname "$0")
failed=
"$here/layers.sh" || failed="$failed layers"
[ ! -x "$here/man.sh" ] || "$here/man.sh" || failed="$failed man"
unit=
while [ $# -gt 0 ] && [ "$1" != -- ]; do unit="$unit $1"; shift; done
[ $# -eq 0 ] || shift
# shellcheck disable=SC2086 # words on purpose
"$here/run.sh" $unit || failed="$failed unit"
TEST_TIMEOUT=${TEST_TIMEOUT:-300} "$here/run.sh" "$@" || failed="$failed system"
[ -z "$failed" ] || { echo "make check failed:$failed" >&2; exit 1; }
