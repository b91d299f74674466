#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh [-j JOBS] [-t SECONDS] PROGRAM... [--alone PROGRAM...]: tests/run.c of the build directory XM_BUILD, which `make` has made.
exec "${XM_BUILD:-build}/tests/run" "$@"
