#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh PROGRAM... [--alone PROGRAM...]: what `make check` runs, all of it even after a failure; the programs
# four at a time (XM_JOBS: another number). A good run ends with cmocka's closing lines, a bad one with what failed.
here=$(dirname "$0")
failed=
"$here/layers.sh" || failed="$failed layers"
[ ! -x "$here/man.sh" ] || "$here/man.sh" || failed="$failed man"
# A signal that ends this shell is meant for the tests; they are waited for, since they clean up.
"$here/run.sh" -j "${XM_JOBS:-4}" -t 600 "$@" &
child=$!
trap 'kill -TERM $child 2>/dev/null' INT TERM
code=0
wait $child || code=$?
while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
[ $code = 0 ] || failed="$failed tests"
[ -z "$failed" ] || { echo "make check failed:$failed" >&2; exit 1; }
