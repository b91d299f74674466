#!/bin/sh
# SPDX-License-Identifier: MIT
# debian13.sh COMMAND...    runs a command of the project in Debian 13: its compiler, its libraries, its QEMU.
# debian13.sh --qemu 10|11  prints a directory with the programs qemu-system-x86_64, qemu-storage-daemon, qemu-nbd and qemu-img: that
#                           version, with this machine's files. 10 is Debian 13's own, 11 that of its backports.
#
# Both come from root directories that are made once, by debootstrap from this machine's own apt sources, into the cache. A command
# runs in namespaces of its own (mounts, processes, network: only lo), at the tree's own path, with build/debian13 in the place of
# build; what it writes elsewhere goes with it, and so do its processes and loop devices. On Debian 13 the command is just run.
#
# Exit status: the command's; 77 when there is no such root directory and none can be made here (said why).
# Environment: XMIGRATE_TEST_CACHE (/var/cache/xmigrate-test).
set -e
top=$(cd "$(dirname "$0")/.." && pwd)
base=${XMIGRATE_TEST_CACHE:-/var/cache/xmigrate-test}/debian13
suite=trixie
# Beside what `make deps` installs: the apt sources' keys, and what tests of a running system take for granted.
more="debian-archive-keyring iputils-ping kmod strace git"

say() { echo "debian13.sh: $*" >&2; }
cannot() { say "$*"; exit 77; }

# ---- the root directories ----

wanted() { # the packages, a word each; with those of the benches, which have no network in there to install them
  echo "$("$top/tests/deps.sh" --list bench | tr '\n' ' ')" "$more"
}
# The stamp is one line: name, the recipe's number (another way to fill gets another one), release, packages. More than is wanted is
# good, too: two trees that want different packages do not remake it for each other.
stamp_of() { cat "$base/$1/.xmigrate-stamp" 2>/dev/null || true; }
stamp_head() { echo "$1 4 $suite"; }
whole() { # root or qemu-11
  stamp=$(stamp_of "$1")
  case $stamp in "$(stamp_head "$1") "*) ;; *) return 1 ;; esac
  for p in $(wanted); do
    case " $stamp " in *" $p "*) ;; *) return 1 ;; esac
  done
}
list() { # root or qemu-11: what is wanted, then what it had besides
  wanted=$(wanted) extra=''
  for p in $(stamp_of "$1" | cut -s -d' ' -f4-); do
    case " $wanted " in *" $p "*) ;; *) extra="$extra $p" ;; esac
  done
  echo "$wanted$extra"
}

can_make() {
  [ "$(id -u)" = 0 ] || cannot "a Debian 13 root directory in $base can only be made by root"
  command -v apt-get >/dev/null || cannot "a Debian 13 root directory can only be made on a Debian (apt-get is missing)"
  mkdir -p "$base" 2>/dev/null || cannot "cannot write $base"
  "$top/tests/aptsources.sh" $suite >/dev/null || cannot "no apt sources to make a Debian 13 of"
}

in_root() { # directory, command...: with /proc and /dev, whose mounts go with the command
  dir=$1
  shift
  # shellcheck disable=SC2016 # the inner shell's words
  unshare --mount sh -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$dir" "$@"
}
apt_in() {
  dir=$1
  shift
  in_root "$dir" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends "$@"
}

# This machine's way to its mirrors is the root directory's, too.
reach_mirrors() {
  cp /etc/resolv.conf /etc/hosts "$1/etc/"
  apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries)' >"$1/etc/apt/apt.conf.d/99machine" || true
}

fill_root() { # directory
  command -v debootstrap >/dev/null || {
    say "installing debootstrap"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install debootstrap debian-archive-keyring
  }
  proxy=$(apt-config dump | sed -n 's/^Acquire::http::Proxy "\(.*\)";/\1/p')
  [ -z "$proxy" ] || export http_proxy="$proxy"
  main=$("$top/tests/aptsources.sh" $suite | sed -n '1s/deb \([^ ]*\) .*/\1/p')
  tls='' script=''
  case $main in https:*) tls=--include=ca-certificates ;; esac
  [ -e /usr/share/debootstrap/scripts/$suite ] || script=/usr/share/debootstrap/scripts/sid
  # shellcheck disable=SC2086 # none or one word each
  debootstrap --variant=minbase $tls $suite "$1" "$main" $script
  "$top/tests/aptsources.sh" $suite >"$1/etc/apt/sources.list"
  reach_mirrors "$1"
  printf 'path-exclude=/usr/share/%s/*\n' doc man locale info >"$1/etc/dpkg/dpkg.cfg.d/lean"
  printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" # no service is started
  chmod +x "$1/usr/sbin/policy-rc.d"
  apt_in "$1" update
  # shellcheck disable=SC2046 # words on purpose
  apt_in "$1" install $(list root)
}

# Debian 13's files (the same ones: hard links) with the newer packages over them: dpkg replaces files, it does not write into them.
fill_qemu_11() { # directory
  make_root root
  cp -al "$base/root/." "$1"
  for d in etc var; do rm -rf "${1:?}/$d" && cp -a "$base/root/$d" "$1/$d"; done
  rm -f "$1/.xmigrate-stamp"
  "$top/tests/aptsources.sh" $suite backports >"$1/etc/apt/sources.list.d/backports.list"
  reach_mirrors "$1"
  apt_in "$1" update
  apt_in "$1" install -t $suite-backports qemu-system-x86 qemu-system-common qemu-system-data
  version=$(in_root "$1" qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
  [ "${version:-0}" -ge 11 ] || { echo "$suite-backports has QEMU ${version:-none}, not 11"; return 1; }
}

fill() { # name, directory
  case $1 in root) fill_root "$2" ;; *) fill_qemu_11 "$2" ;; esac
  apt_in "$2" clean
  rm -rf "$2"/var/lib/apt/lists/* "$2/usr/share/doc" "$2/usr/share/man" "$2/usr/share/locale"
  mkdir -p "$2/usr/share/man" "$2/usr/share/doc" "$2/usr/share/locale"
  write_wrapper "$1" "$2"
}

# A command that runs in an older one goes on: it holds a lock of the stamp there.
drop_older() { # root or qemu-11
  for d in "$base/$1.old".*; do
    if [ -d "$d" ] && { [ ! -e "$d/.xmigrate-stamp" ] || flock -n -x "$d/.xmigrate-stamp" true; }; then
      rm -rf --one-file-system "$d"
    fi
  done
}

make_root() { # root or qemu-11: all or nothing
  ! whole "$1" || return 0
  can_make
  exec 8>"$base/.$1.lock"
  flock -n 8 || { say "waiting for another run that makes $base/$1"; flock 8; }
  if ! whole "$1"; then
    say "making $base/$1 (about a minute, 1 GB)"
    rm -rf --one-file-system "$base/$1.new"
    mkdir "$base/$1.new"
    # The shell's -e does not reach into a condition; a shell of its own has it.
    if ! "$0" --fill "$1" "$base/$1.new" >"$base/$1.log" 2>&1 8>&-; then
      tail -n 5 "$base/$1.log" >&2
      rm -rf --one-file-system "$base/$1.new"
      cannot "making $base/$1 failed (all of it: $base/$1.log)"
    fi
    echo "$(stamp_head "$1")" "$(list "$1")" >"$base/$1.new/.xmigrate-stamp"
    [ ! -e "$base/$1" ] || mv "$base/$1" "$base/$1.old.$$"
    mv "$base/$1.new" "$base/$1"
    drop_older "$1"
  fi
  exec 8>&-
}

# ---- their QEMU, with this machine's files ----

# A wrapper stays one process: what is started is what has the wrapper's pid, descriptors and namespaces (but its mounts).
write_wrapper() { # name, directory
  mkdir -p "$2/xmigrate-bin" "$2/xmigrate-host"
  cat >"$2/xmigrate-bin/qemu-system-x86_64" <<'END'
#!/bin/sh
# The program of this name of the root directory that this script is in, with the machine's files: its /usr is QEMU's, all else the
# machine's. Made by tests/debian13.sh.
root=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" = 0 ] || { echo "$0: needs root" >&2; exit 1; }
export XM_QEMU_ROOT="$root" XM_QEMU_CWD="$PWD" XM_QEMU_PROGRAM="${0##*/}"
# slave: what the machine unmounts is not kept by a QEMU.
exec unshare --mount --propagation slave sh -c '
  set -e
  new=$XM_QEMU_ROOT/xmigrate-host
  mount -t tmpfs -o mode=755,size=1M none "$new"
  for f in /* /.[!.]*; do
    case $f in
      /usr | /bin | /sbin | /lib | /lib32 | /lib64 | /libx32 | /boot) continue ;;
    esac
    if [ -L "$f" ]; then cp -P "$f" "$new$f"
    elif [ -d "$f" ]; then mkdir "$new$f" && mount --rbind "$f" "$new$f"
    fi
  done
  mkdir "$new/usr" && mount --bind "$XM_QEMU_ROOT/usr" "$new/usr"
  for f in bin sbin lib lib64; do ln -s usr/$f "$new/$f"; done
  mount --bind "$XM_QEMU_ROOT/etc/ld.so.cache" "$new/etc/ld.so.cache"
  cd=$XM_QEMU_CWD program=$XM_QEMU_PROGRAM
  [ -d "$new$cd" ] || cd=/
  unset XM_QEMU_ROOT XM_QEMU_CWD XM_QEMU_PROGRAM
  exec chroot "$new" /usr/bin/env -C "$cd" "/usr/bin/$program" "$@"
' "${0##*/}" "$@"
END
  chmod 755 "$2/xmigrate-bin/qemu-system-x86_64"
  for p in qemu-storage-daemon qemu-nbd qemu-img; do ln -sf qemu-system-x86_64 "$2/xmigrate-bin/$p"; done
}

# ---- a command in Debian 13 ----

# Loop devices of files below a directory; their backing file is known by device and inode (its path depends on who asks).
detach_loops() { # directory
  [ -d "$1" ] || return 0
  here=$(stat -c %d "$1")
  losetup -l -n -O NAME,BACK-INO,BACK-MAJ:MIN 2>/dev/null | while read -r name inode device; do
    major=${device%:*} minor=${device#*:}
    [ "$here" = $((((major & 0xfff) << 8) | (minor & 0xff) | ((minor & ~0xff) << 12))) ] || continue
    [ -z "$(find "$1" -xdev -inum "$inode" -print -quit)" ] || losetup -d "$name"
  done
}

finish() {
  code=$?
  trap - EXIT INT TERM HUP
  if [ -n "$child" ] && kill -KILL "$child" 2>/dev/null; then wait "$child" || true; fi
  detach_loops "$own"
  [ -z "$scratch" ] || rm -rf --one-file-system "$scratch"
  exit "$code"
}

# Inside the new namespaces; the last step is the command itself, which is process 1's child (a shell reaps what is left to it).
inside() { # scratch, cache, command...
  scratch=$1 cache=$2
  shift 2
  new=$scratch/new
  mount -t tmpfs none "$scratch/layer"
  mkdir "$scratch/layer/upper" "$scratch/layer/work"
  mount -t overlay -o "lowerdir=$base/root,upperdir=$scratch/layer/upper,workdir=$scratch/layer/work" none "$new"
  mount -t proc proc "$new/proc"
  mount -t sysfs sysfs "$new/sys"
  mount --rbind /dev "$new/dev"
  mount -t tmpfs -o mode=1777 none "$new/dev/shm"
  mount -t tmpfs -o mode=755 none "$new/run"
  chmod 1777 "$scratch/tmp" "$scratch/vartmp"
  mount --bind "$scratch/tmp" "$new/tmp"
  mount --bind "$scratch/vartmp" "$new/var/tmp"
  mkdir -p "$new$top" "$new$cache"
  mount --bind "$top" "$new$top"
  mount --bind "$own" "$new$top/build"
  mount --bind "$cache" "$new$cache"
  ip link set lo up
  # The locks (6, 7) are this process's, for as long as anything runs in here; not the command's.
  chroot "$new" env -C "$top" "$@" 6<&- 7>&- &
  code=0
  wait $! || code=$?
  exit "$code"
}

run_inside() {
  make_root root
  [ "$(id -u)" = 0 ] || cannot "only root can run a command in $base/root"
  own=$top/build/debian13
  mkdir -p "$own"
  child='' scratch=''
  exec 6<"$base/root/.xmigrate-stamp"
  flock -s 6
  exec 7>"$own.lock"
  flock -n 7 || { say "waiting for another command in this tree's Debian 13"; flock 7; }
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  rm -rf --one-file-system "$own"/.scratch.*
  detach_loops "$own"
  # There is no network in there: what may be downloaded is got now.
  "$top/tests/kernel.sh" "$own/guest/kernel" debian13 >&2 || say "without the test guests' kernel"
  scratch=$(mktemp -d "$own/.scratch.XXXXXX")
  mkdir "$scratch/new" "$scratch/layer" "$scratch/tmp" "$scratch/vartmp"
  unshare --mount --pid --fork --kill-child --net --mount-proc \
    "$0" --inside "$scratch" "${XMIGRATE_TEST_CACHE:-/var/cache/xmigrate-test}" "$@" <&0 &
  child=$!
  code=0
  wait $child || code=$?
  child=''
  exit "$code"
}

case ${1:-} in
  '') say "usage: debian13.sh COMMAND... | --qemu 10|11"; exit 2 ;;
  --fill) fill "$2" "$3" ;;
  --inside)
    shift
    own=$top/build/debian13
    inside "$@"
    ;;
  --qemu)
    case $2 in
      10) name=root ;;
      11) name=qemu-11 ;;
      *) say "--qemu 10 or --qemu 11"; exit 2 ;;
    esac
    make_root $name
    [ "$(id -u)" = 0 ] || cannot "only root can run QEMU of $base/$name"
    echo "$base/$name/xmigrate-bin"
    ;;
  *)
    if grep -q "^VERSION_CODENAME=$suite\$" /etc/os-release; then exec "$@"; fi
    run_inside "$@"
    ;;
esac
