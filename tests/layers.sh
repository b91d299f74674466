#!/bin/sh
# SPDX-License-Identifier: MIT
# A folder may include the public header (folder/folder.h) of the folders below it, and nothing else of them.
cd "$(dirname "$0")/.." || exit 1
bad=0
check() { # folder, folders it may use
  f=$1; shift
  for used in $(grep -ho '^#include "[a-z]*/[a-z_]*\.h"' "$f"/*.[ch] 2>/dev/null | cut -d'"' -f2 | sort -u); do
    case " $f $* " in
      *" ${used%%/*} "*) ;;
      *) echo "$f/ includes $used: it may use only: $*" >&2; bad=1; continue ;;
    esac
    [ "${used%%/*}" = "$f" ] || [ "$used" = "${used%%/*}/${used%%/*}.h" ] || { echo "$f/ includes $used, which is private to its folder" >&2; bad=1; }
  done
}
check base
check net base
check blkcopy base net
check mirror base net blkcopy
check memxfer base net
check vm base
check probe base blkcopy memxfer
check machine base blkcopy mirror memxfer vm probe
check migrate base net blkcopy mirror memxfer vm machine
check shim base vm machine migrate
check agent base net vm probe
check cli base
exit $bad
