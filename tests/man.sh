#!/bin/sh
# SPDX-License-Identifier: MIT
# man.sh: the manual pages say what the programs do. Compares them with the programs' own tables, and lints them.
cd "$(dirname "$0")/.." || exit 1
build=${XM_BUILD:-build}
bad=0
complain() { echo "man: $*" >&2; bad=1; }
# $1 says of itself what $2 holds, one a line, and both are to be the same.
same() {
  sort -u "$tmp/a" >"$tmp/as"; sort -u "$tmp/b" >"$tmp/bs"
  comm -23 "$tmp/as" "$tmp/bs" | sed "s|^|man: $1 has, but $2 lacks: |" >&2
  comm -13 "$tmp/as" "$tmp/bs" | sed "s|^|man: $2 has, but $1 lacks: |" >&2
  cmp -s "$tmp/as" "$tmp/bs" || bad=1
  [ -s "$tmp/as" ] || complain "nothing was found in $1 to compare"
}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

if command -v mandoc >/dev/null; then
  mandoc -T lint -W warning man/*.[1-8] >"$tmp/lint" || { cat "$tmp/lint" >&2; bad=1; }
  for p in man/*.[1-8]; do
    LC_ALL=C mandoc -T ascii "$p" >/dev/null 2>"$tmp/err" || complain "$p cannot be formatted: $(cat "$tmp/err")"
    awk '/^\.SH/ { if (last == "SYNOPSIS" && $2 != "EXAMPLES") exit 1; last = $2 }' "$p" || complain "$p: EXAMPLES stand behind SYNOPSIS"
  done
else
  echo "man: SKIPPED the lint: mandoc is not installed"
fi

# xmigrate(1): each option with its argument, and its default; each verb.
if "$build/xmigrate" --options >"$tmp/options"; then
  awk -F '\t' '$1 == "option" { print "--" $3 ($4 == "" ? "" : " " $4) }' "$tmp/options" >"$tmp/a"
  awk '/^\.SH/ { on = $2 == "OPTIONS" } on && /^\.BI? \\-\\-/ { gsub(/\\-/, "-"); gsub(/"/, ""); $1 = ""; gsub(/ +/, " "); sub(/^ /, ""); print }' \
    man/xmigrate.1 >"$tmp/b"
  same "xmigrate --options" man/xmigrate.1
  awk -F '\t' '$1 == "option" { print "--" $3 "\t" $5 }' "$tmp/options" | sort -u | while IFS='	' read -r name default; do
    case $name in --help | --version) continue ;; esac
    # The option's paragraph, on one line.
    text=$(awk -v name="$name" '/^\.TP/ { on = 0 } /^\.S[HS]/ { on = 0 } on { print }
      /^\.BI? \\-\\-/ { n = $2; gsub(/\\-/, "-", n); on = n == name }' man/xmigrate.1 | tr '\n' ' ')
    case $text in
      *"Default: ${default:-off}"[.,\ ]*) ;;
      *) echo "$name: its default, ${default:-off}" ;;
    esac
  done >"$tmp/missing"
  [ ! -s "$tmp/missing" ] || { sed 's/^/man: xmigrate.1 does not say of /' "$tmp/missing" >&2; bad=1; }
  awk -F '\t' '$1 == "verb" { print $2 }' "$tmp/options" >"$tmp/a"
  awk '/^\.SH/ { on = $2 == "VERBS" } on && /^\.TP/ { getline; if ($1 == ".B") print $2 }' man/xmigrate.1 >"$tmp/b"
  same "xmigrate --options (verbs)" man/xmigrate.1
else
  complain "there is no $build/xmigrate to compare with"
fi

# ... each verb's answer; keys that the page names are in the programs. `move' and `watch' have events, `console' is no answer.
awk '/^\.S[SH]/ { on = $0 == ".SS Keys of the answers" } on' man/xmigrate.1 >"$tmp/answers"
grep -A 1 '^\.TP' "$tmp/answers" | sed -n 's/^\.B //p' | tr -d ',' | tr ' ' '\n' >"$tmp/a"
awk -F '\t' '$1 == "verb" && $2 !~ /^(move|watch|console)$/ { print $2 }' "$tmp/options" >"$tmp/b"
same "man/xmigrate.1 (answers)" "xmigrate --options (verbs)"
sed -n -e 's/^\.IR* //p' -e 's/^\.RI ( //p' "$tmp/answers" | awk '{ print $1 }' | grep '^[a-z_]*$' | sort -u | while read -r key; do
  grep -q "\"$key\"" agent/*.c vm/*.c shim/*.c || echo "$key"
done >"$tmp/missing"
[ ! -s "$tmp/missing" ] || { sed 's/^/man: xmigrate.1 names a key that no program has: /' "$tmp/missing" >&2; bad=1; }

# xmigrate-protocol(7): the options of a move.
awk '/json_t \*options_of/ { on = 1 } on' cli/verbs.c | sed '/^}/q' | grep -o '"[a-z_]*"' | tr -d '"' | grep -v '^$' >"$tmp/a"
sed -n 's/^with \(downtime_ms.*\)); start$/\1/p' man/xmigrate-protocol.7 | tr -d ' ' | tr ',' '\n' >"$tmp/b"
same "cli/verbs.c (options of a move)" man/xmigrate-protocol.7

# xmigrated(8): the options of its own help.
if [ -x "$build/xmigrated" ]; then
  "$build/xmigrated" --help | grep -o -e '--[a-z-]*' >"$tmp/a"
  awk '/^\.SH/ { on = $2 == "OPTIONS" } on && /^\.BI? \\-\\-/ { gsub(/\\-/, "-"); print $2 }' man/xmigrated.8 >"$tmp/b"
  same "xmigrated --help" man/xmigrated.8
fi

# ... the unit that is installed, without its comments, and systemd understands it.
grep -v '^#' etc/xmigrated.service | sed '/^$/d; s|@PREFIX@|/usr/local|' >"$tmp/a"
awk '/^\[Unit\]/ { on = 1 } /^\.EE/ { on = 0 } on && NF' man/xmigrated.8 | sed 's/\\-/-/g' >"$tmp/b"
same etc/xmigrated.service man/xmigrated.8
if command -v systemd-analyze >/dev/null && [ -x "$build/xmigrated" ]; then
  sed "s|@PREFIX@/sbin|$(cd "$build" && pwd)|" etc/xmigrated.service >"$tmp/xmigrated.service"
  systemd-analyze verify --man=no "$tmp/xmigrated.service" 2>&1 | grep -F xmigrated >"$tmp/out" && complain "$(cat "$tmp/out")"
else
  echo "man: SKIPPED the unit's syntax: systemd-analyze is not installed"
fi

# xmigrate.conf(5): the keys of the tables that the files are read by.
if [ -f agent/config.c ]; then
  # «{"name", ...» or INI_KEY(struct x, name, ...), and the section that each table belongs to.
  table_keys() { # file: prints "section key"
    awk '
      /xm_ini_key [a-z_]*\[\]/ { match($0, /[a-z_]*_keys\[/); table = substr($0, RSTART, RLENGTH - 1) }
      { line = $0
        while (match(line, /INI_KEY\([a-z_ ]*, [a-z_]*|\.name = "[a-z_]*", \.type/)) {
          key = substr(line, RSTART, RLENGTH); line = substr(line, RSTART + RLENGTH)
          sub(/^INI_KEY\([a-z_ ]*, /, "", key); sub(/^\.name = "/, "", key); sub(/".*/, "", key)
          keys[table] = keys[table] " " key
        }
        if (match($0, /\.keys = [a-z_]*/)) {
          t = substr($0, RSTART + 8, RLENGTH - 8); s = $0; sub(/.*\.name = "/, "", s); sub(/".*/, "", s)
          n = split(keys[t], k, " "); for (i = 1; i <= n; i++) print s, k[i]
        }
      }' "$1"
  }
  { table_keys agent/config.c; table_keys vm/spec_ini.c; } >"$tmp/a"
  awk '/^\.SS \[/ { s = $2; gsub(/[][]/, "", s) } /^\.SH/ { s = "" } s != "" && /^\.TP/ { getline; if ($1 == ".B") print s, $2 }' \
    man/xmigrate.conf.5 >"$tmp/b"
  same "agent/config.c and vm/spec_ini.c" man/xmigrate.conf.5
fi

# The example is good: with its directories put elsewhere, since here they are not, and every key in it uncommented.
if [ -x "$build/xmigrated" ]; then
  mkdir "$tmp/fast" "$tmp/slow"
  sed -e 's/^;//' -e "s|= /srv/|= $tmp/|" etc/xmigrated.conf.example >"$tmp/conf"
  "$build/xmigrated" --config "$tmp/conf" --check >"$tmp/out" 2>&1 || complain "etc/xmigrated.conf.example: $(cat "$tmp/out")"
fi

# xmigrate-protocol(7): the types of frames with their numbers, payloads' bounds and flags.
awk '
  function number_of(text,  f, n, i) { n = split(text, f, / *\* */); i = 1
    while (n > 0) { sub(/u$/, "", f[n]); i *= f[n] in value ? value[f[n]] : f[n]; n-- } return i }
  /^#define [A-Z_]+ +[0-9(]/ { v = $3; gsub(/[u()]/, "", v); value[$2] = v ~ /^[0-9]+$/ && $4 == "<<" ? v * 2 ^ ($5 + 0) : v }
  FILENAME ~ /net\.h$/ && match($0, /XM_FRAME_[A-Z_]+/) && !/TYPE_MAX/ && !/MAGIC/ {
    name = substr($0, RSTART + 9, RLENGTH - 9)
    if (match($0, /= [0-9]+/)) n = substr($0, RSTART + 2, RLENGTH - 2) + 0; else n++
    number[name] = n
  }
  /\[XM_FRAME_[A-Z_]+\] = \{"/ { row = $0; while (row !~ /\}/ && getline > 0) row = row $0
    match(row, /\{.*\}/); split(substr(row, RSTART + 1, RLENGTH - 2), f, /, */)
    gsub(/"/, "", f[1]); gsub(/XM_FLAG_/, "", f[6]); gsub(/ \| /, " ", f[6])
    min = number_of(f[2]); max = number_of(f[3])
    print number[f[1]], f[1], max ? min "-" max : 0, f[6] == 0 ? "" : f[6]
  }
' net/net.h net/frame.h net/frame.c >"$tmp/a"
awk -F '|' '/^[0-9]+\|[A-Z_]+\|/ { gsub(/\\-/, "-", $3); print $1, $2, $3, $4 }' man/xmigrate-protocol.7 >"$tmp/b"
same net/frame.c man/xmigrate-protocol.7

# ... what agents ask each other, and shims.
page_of() { awk -v of="$1" '/^\.S[SH]/ { on = index($0, of) } on && /^\.TP/ { getline; if ($1 == ".B") print $2 }' man/xmigrate-protocol.7; }
if [ -f agent/verbs.c ]; then
  grep -o '{"peer\.[a-z]*"' agent/verbs.c | tr -d '{"' >"$tmp/a"
  page_of "Requests between agents" >"$tmp/b"
  same agent/verbs.c man/xmigrate-protocol.7
  grep -o '{"[a-z]*", cmd_' shim/commands.c | cut -d '"' -f 2 >"$tmp/a"
  page_of "Requests to a shim" >"$tmp/b"
  same shim/commands.c man/xmigrate-protocol.7
fi

[ $bad = 0 ] && echo "man: the manual pages agree with the programs"
exit $bad
