#!/bin/sh
make -j2 system > build.log 2>&1 || { tail -5 build.log; exit 1; }
make run-system-again run-system-handoff
