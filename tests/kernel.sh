#!/bin/sh
# kernel.sh DIR: gets the kernel for test guests, Debian's cloud kernel, into DIR: vmlinuz, modules/NN-NAME.ko in the order in
# which they need each other, version. Kept in a cache too, so that a clean clone downloads nothing. Nothing is installed.
set -e
dir=$1
cache=${XMIGRATE_TEST_CACHE:-/var/cache/xmigrate-test}
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net button evdev"
count=11

# Whole: a bzImage (its magic number stands at 514) and every module an ELF file.
valid() {
  [ -s "$1/version" ] && [ "$(dd if="$1/vmlinuz" bs=1 skip=514 count=4 2>/dev/null)" = HdrS ] || return 1
  (cd "$1" && sha256sum --quiet --status -c SHA256SUMS) || return 1
  [ "$(find "$1/modules" -name '*.ko' | wc -l)" = $count ]
}

copy() { # from, to: all or nothing
  rm -rf "$2.new"
  mkdir -p "$(dirname "$2")" && cp -r "$1" "$2.new" && rm -rf "$2" && mv "$2.new" "$2"
}

if valid "$dir"; then exit 0; fi
if valid "$cache/kernel"; then copy "$cache/kernel" "$dir"; exit 0; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/xmigrate-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
find_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }
fetch() {
  package=$(find_package)
  [ -n "$package" ] || return 1
  echo "downloading the test guests' kernel: $package"
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package") && ls "$work"/*.deb >/dev/null 2>&1
}
if ! fetch 2>"$work/err"; then
  apt-get -qq update && fetch || {
    cat "$work/err" >&2
    echo "kernel.sh: cannot download Debian's cloud kernel (linux-image-cloud-amd64) for the test guests" >&2
    exit 1
  }
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
    *) echo "kernel.sh: $package has no module $m" >&2; exit 1 ;;
  esac
  number=$((number + 1))
done
echo "$package" >"$work/kernel/version"
(cd "$work/kernel" && find . -type f ! -name SHA256SUMS -exec sha256sum {} + >SHA256SUMS)
valid "$work/kernel" || { echo "kernel.sh: $package does not hold what was expected" >&2; exit 1; }
if mkdir -p "$cache" 2>/dev/null; then copy "$work/kernel" "$cache/kernel"; fi
copy "$work/kernel" "$dir"
