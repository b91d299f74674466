#!/bin/sh
# SPDX-License-Identifier: MIT
# initramfs.sh INIT KERNEL_DIR OUT: packs the test guest's init and the modules it loads (KERNEL_DIR/modules, in their order).
set -e
init=$1 kernel=$2 out=$3
tree=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/modules" "$tree/dev"
cp "$init" "$tree/init"
cp -r "$kernel/modules/." "$tree/modules/" # none, when all is built in
(cd "$tree" && find . | cpio --quiet -o -H newc) >"$out.new"
mv "$out.new" "$out"
