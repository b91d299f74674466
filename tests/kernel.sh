#!/bin/sh
# SPDX-License-Identifier: MIT
# kernel.sh DIR [debian12|debian13]: gets the kernel for test guests, Debian's cloud kernel (this machine's own release's, or that
# one's), into DIR: vmlinuz, modules/NN-NAME.ko in the order in which they need each other (those that are not built in), version.
# Kept in a cache too, so that a clean clone downloads nothing. Nothing is installed.
set -e
dir=$1
here=$(cd "$(dirname "$0")" && pwd)
own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null)
case $2 in
  '') suite=$own ;;
  debian12) suite=bookworm ;;
  debian13) suite=trixie ;;
  *) echo "kernel.sh: debian12 or debian13, not $2" >&2; exit 2 ;;
esac
cache=${XMIGRATE_TEST_CACHE:-/var/cache/xmigrate-test}/kernel-${suite:-own}
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net button evdev"

# Whole: a bzImage (its magic number stands at 514), and all files are what they were.
valid() {
  [ -s "$1/version" ] && [ "$(dd if="$1/vmlinuz" bs=1 skip=514 count=4 2>/dev/null)" = HdrS ] || return 1
  (cd "$1" && sha256sum --quiet --status -c SHA256SUMS) && [ -d "$1/modules" ]
}

copy() { # from, to: all or nothing
  rm -rf "$2.new.$$"
  mkdir -p "$(dirname "$2")" && cp -r "$1" "$2.new.$$" && rm -rf "$2" && mv "$2.new.$$" "$2"
}

# What is in DIR already may be another release's: the build directory may have been another system's.
same_suite() { [ "$(cat "$1/suite" 2>/dev/null)" = "${suite:-own}" ]; }
if valid "$dir" && same_suite "$dir"; then exit 0; fi
# One at a time: two runs would copy into each other's.
if mkdir -p "${cache%/*}" 2>/dev/null && [ -w "${cache%/*}" ]; then
  exec 9>"$cache.lock"
  flock 9
fi
if valid "$cache"; then copy "$cache" "$dir"; exit 0; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/xmigrate-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# Another release's packages have lists of their own, which go with the work directory.
options="-o APT::Sandbox::User=root"
if [ "$suite" != "$own" ]; then
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  "$here/aptsources.sh" "$suite" >"$work/sources.list"
  options="$options -o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$work/lists"
  options="$options -o Dir::Cache=$work/cache -o APT::Default-Release="
fi
# shellcheck disable=SC2086 # words on purpose
apt() { tool=$1; shift; "apt-$tool" $options "$@"; }
find_package() { apt cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }
fetch() {
  package=$(find_package)
  [ -n "$package" ] || return 1
  echo "downloading the test guests' kernel: $package"
  (cd "$work" && apt get -qq download "$package") && ls "$work"/*.deb >/dev/null 2>&1
}
if ! fetch 2>"$work/err"; then
  if ! apt get -qq update || ! fetch; then
    cat "$work/err" >&2
    echo "kernel.sh: cannot download Debian's cloud kernel (linux-image-cloud-amd64, ${suite:-own release}) for the test guests" >&2
    exit 1
  fi
fi
dpkg -x "$work"/*.deb "$work/x"
mkdir -p "$work/kernel/modules"
cp "$work"/x/boot/vmlinuz-* "$work/kernel/vmlinuz"
number=10
for m in $modules; do
  file=$(find "$work/x" -name "$m.ko" -o -name "$m.ko.xz" -o -name "$m.ko.gz" | head -n 1)
  target=$work/kernel/modules/$number-$m.ko
  case $file in
    *.ko) cp "$file" "$target" ;;
    *.xz) xz -dc "$file" >"$target" ;;
    *.gz) gzip -dc "$file" >"$target" ;;
    *)
      find "$work/x" -name modules.builtin -exec cat {} + | grep -q "/$m\.ko$" || {
        echo "kernel.sh: $package has no module $m, nor is it built in" >&2
        exit 1
      }
      ;;
  esac
  number=$((number + 1))
done
echo "$package" >"$work/kernel/version"
echo "${suite:-own}" >"$work/kernel/suite"
(cd "$work/kernel" && find . -type f -exec sha256sum {} + >../sums && mv ../sums SHA256SUMS)
valid "$work/kernel" || { echo "kernel.sh: $package does not hold what was expected" >&2; exit 1; }
if mkdir -p "$cache" 2>/dev/null; then copy "$work/kernel" "$cache"; fi
copy "$work/kernel" "$dir"
