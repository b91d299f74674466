#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh PROGRAM... [--alone PROGRAM...]: what `make check` runs, all of it even after a failure; the programs two at a time
# (XM_JOBS: another number). A good run ends with cmocka's closing lines, a bad one with what failed.
here=$(dirname "$0")
failed=
"$here/layers.sh" || failed="$failed layers"
[ ! -x "$here/man.sh" ] || "$here/man.sh" || failed="$failed man"
"$here/run.sh" -j "${XM_JOBS:-2}" -t 600 "$@" || failed="$failed tests"
[ -z "$failed" ] || { echo "make check failed:$failed" >&2; exit 1; }
