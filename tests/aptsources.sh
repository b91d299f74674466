#!/bin/sh
# SPDX-License-Identifier: MIT
# aptsources.sh SUITE [backports]: prints a sources.list for that Debian release (bookworm, trixie), made of this machine's
# own mirrors: those that serve its own release. Nothing is changed. Fails when this machine knows no mirror of Debian's.
set -e
suite=$1 only=$2
own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)

# "URI SUITE" for each that apt may use, out of both formats of sources.
entries() {
  for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -r "$f" ] || sed -n 's/#.*//; s/^ *deb  *\(\[[^]]*\]\)\{0,1\} *\([^ ]*\)  *\([^ ]*\) .*/\2 \3/p' "$f"
  done
  for f in /etc/apt/sources.list.d/*.sources; do
    [ ! -r "$f" ] || awk -v RS= '{
        uris = suites = ""; on = deb = 1; n = split($0, line, "\n")
        for (i = 1; i <= n; i++) {
          if (line[i] ~ /^#/) continue
          if (line[i] !~ /^[ \t]/) { key = tolower(line[i]); sub(/:.*/, "", key); sub(/^[^:]*:/, "", line[i]) }
          if (key == "uris") uris = uris " " line[i]
          if (key == "suites") suites = suites " " line[i]
          if (key == "enabled" && line[i] ~ /no/) on = 0
          if (key == "types" && line[i] !~ /deb( |$)/) deb = 0
        }
        if (!on || !deb) next
        u = split(uris, uri, " "); s = split(suites, suite, " ")
        for (i = 1; i <= u; i++) for (j = 1; j <= s; j++) print uri[i], suite[j]
      }' "$f"
  done
}

# The first URI that serves a suite of this machine; a list of mirrors gives its first.
mirror_of() {
  uri=$(entries | awk -v s="$1" '$2 == s { print $1; exit }')
  case $uri in
    mirror+file:*) sed -n 's/#.*//; s/^ *\([^ \t]\{1,\}\).*/\1/p' "${uri#mirror+file:}" | head -n 1 ;;
    *) printf '%s\n' "$uri" ;;
  esac
}

main=$(mirror_of "$own")
security=$(mirror_of "$own-security")
[ -n "$main" ] || { echo "aptsources.sh: apt knows no mirror of Debian $own here" >&2; exit 1; }
if [ "$only" = backports ]; then
  echo "deb $main $suite-backports main"
else
  echo "deb $main $suite main"
  echo "deb $main $suite-updates main"
  [ -z "$security" ] || echo "deb $security $suite-security main"
fi
