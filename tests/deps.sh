#!/bin/sh
# SPDX-License-Identifier: MIT
# deps.sh [--list] [bench]: what `make deps` does: installs the Debian packages that are missing (the same names in Debian 13 and 12),
# and says which; gets the test guests' kernel. --list only prints the packages. bench: with what `make bench` measures beside.
set -e
cd "$(dirname "$0")/.."
packages="build-essential pkg-config liburing-dev libaio-dev liblz4-dev libxxhash-dev libcmocka-dev libjansson-dev libinih-dev
libssl-dev qemu-system-x86 qemu-system-common qemu-utils ovmf iproute2 e2fsprogs cpio xz-utils mandoc util-linux procps"

again="make deps"
case "$*" in *bench) packages="$packages fio iperf3 nbdkit libnbd-bin" again="tests/deps.sh bench" ;; esac

# tests/debian13.sh puts the same into its root directory.
[ "$1" != --list ] || { echo "$packages"; exit; }

# Said, not refused: everything builds, and much of it is tested, without.
release=$(uname -r)
major=${release%%.*} minor=${release#*.}
minor=${minor%%[!0-9]*}
if [ "$major" -lt 6 ] || { [ "$major" = 6 ] && [ "${minor:-0}" -lt 7 ]; }; then
  echo "deps.sh: this machine runs Linux $release; moving a VM's memory needs 6.7 or newer (Debian 13's own; on Debian 12" \
    "linux-image-amd64 of bookworm-backports)" >&2
fi

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
  echo "deps.sh: this is no Debian; install the equivalents of: $packages" >&2
  exit 1
}
missing=
for p in $packages; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
  [ "$(id -u)" = 0 ] || {
    echo "deps.sh: these packages are missing; run \`$again\` as root to install them:$missing" >&2
    exit 1
  }
  echo "installing:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  # shellcheck disable=SC2086 # words on purpose
  apt-get -qq -y --no-install-recommends install $missing >/dev/null
fi
tests/kernel.sh build/guest/kernel
