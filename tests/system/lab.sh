#!/bin/sh
# SPDX-License-Identifier: MIT
# lab.sh up | down | status | off HOST | on HOST | run HOST COMMAND...: two hosts made of network namespaces, on this machine alone.
#
#   PREFIX-hosta, PREFIX-hostb   hosts with an agent each: links 10.1.0.1/.2 and 10.2.0.1/.2, control network 10.8.0.1/.2,
#                                bridge br0 for guests (joined by a trunk), datastores ds1 and ds2 of a known size (ext4)
#   PREFIX-client                10.9.0.1, on host A's bridge: from here guests are seen as the world sees them (10.9.0.2)
#   VM web1                      2 vCPUs, 512 MiB, disk «system» on a loop device, disk «data» a file in A's ds1
#
# Everything is found again by its name (namespaces, and the processes in them; files below two directories; loop devices and
# mounts of those files). So `down` takes away what a half-done or killed `up` has left, and can be repeated.
#
# Environment: XM_PREFIX (xm; another one for each lab at once), XM_BUILD (build), XM_ENGINE (auto), XM_LAB_VM=no (no guest), none (nor its disks),
# XM_LAB_RATE (1gbit, say: shapes both links), XM_LAB_SYSTEM, XM_LAB_DATA (disk sizes: 1G, 512M), XM_LAB_APPEND (guest's parameters),
# XM_LAB_QEMU_A, XM_LAB_QEMU_B (a directory with that host's qemu-system-x86_64: its agent's PATH begins with it; tests/debian13.sh
# --qemu prints such), XM_LAB_FS=yes (ext4 on «data» instead of records), XM_LAB_LINK_TIMEOUT (5s), XM_LAB_GRACE (switch_grace: 20s, since a loaded machine may take its time), XM_LAB_DOWNTIME (100ms), XM_LAB_PARTIAL_KVM=yes ([host] partial_kvm), XM_LAB_QEMU_RIGHTS=yes ([host] qemu_rights; set with another QEMU), XM_LAB_KVM=yes (hosts see a /dev/kvm as udev makes it, of a group that
# no account has, 2099999999), XM_LAB_LIMITS (more lines of [limits]), XM_LAB_STORE (size of a datastore: 3G), XM_LAB_OWN=yes (state and run
# directories are small file systems of their own, so that they can be full, or be lost), XM_LAB_FAULTS=yes (agents look for a fault point in
# RUN/a/fault, RUN/b/fault: base/fault.h), XM_LAB_PROXY=yes (host B is reached by
# xm-client proxy 10.8.0.2,10.1.0.2,10.2.0.2 7070 ... alone).
set -e
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${XM_BUILD:-build}
case $build in /*) ;; *) build=$top/$build ;; esac
guest=$top/build/guest
prefix=${XM_PREFIX:-xm}
hosta=$prefix-hosta hostb=$prefix-hostb client=$prefix-client
run=/run/$prefix-lab           # sockets and state: short paths
store=$top/build/lab/$prefix   # disks and datastores: a file system with room

say() { echo "lab: $*"; }
die() { echo "lab: $*" >&2; exit 1; }
namespace_exists() { ip netns list | grep -q "^$1\( \|$\)"; }
pids_in() { if namespace_exists "$1"; then ip netns pids "$1" 2>/dev/null || true; fi; }
all_pids() { for n in "$hosta" "$hostb" "$client"; do pids_in "$n"; done; }
alive() { [ -n "$(readlink "/proc/$1/exe")" ]; } # a process that nobody has waited for yet has none
command_socket() { echo "$run/$1/run/agent.sock"; }

# ---- down ----

end_processes() {
  for signal in TERM KILL; do
    # The shims' and agents' own end is tried first; shims end their QEMU.
    pids=$(all_pids)
    [ -n "$pids" ] || return 0
    # shellcheck disable=SC2086 # numbers
    kill -$signal $pids 2>/dev/null || true
    i=0
    while [ -n "$(all_pids)" ] && [ $i -lt 600 ]; do sleep 0.05; i=$((i + 1)); done
  done
  [ -z "$(all_pids)" ] || die "these processes do not end: $(all_pids | tr '\n' ' ')"
}

# Detached here, a device goes with its last user. That may be the mount namespace of somebody who has nothing to do with us, but has
# copied all mounts while ours were there: he is not waited for.
free_loops() { # file
  i=0
  while devs=$(losetup -j "$1" | cut -d: -f1) && [ -n "$devs" ] && [ $i -lt 10 ]; do
    for dev in $devs; do losetup -d "$dev" 2>/dev/null || true; done
    i=$((i + 1))
    sleep 0.05
  done
}

# What was mounted over it, too.
unmount_all() { # directory
  while mountpoint -q "$1"; do umount "$1" 2>/dev/null || umount -l "$1"; done
}

take_down() {
  # One that a test has frozen: who waits for it does not end.
  for d in "$store"/*/ds*; do
    ! mountpoint -q "$d" || fsfreeze -u "$d" 2>/dev/null || true
  done
  end_processes
  for n in "$hosta" "$hostb" "$client"; do
    ! namespace_exists "$n" || ip netns del "$n"
  done
  if [ -d "$store" ]; then
    for d in "$store"/*/ds* "$run"/?/state; do unmount_all "$d"; done
    for f in "$store"/*.img; do
      [ -e "$f" ] || continue
      free_loops "$f"
    done
    ! mountpoint -q "$store" || umount "$store" 2>/dev/null || umount -l "$store"
    rm -rf "$store"
    rmdir "$top/build/lab" 2>/dev/null || true
  fi
  for d in "$run"/?/state "$run"/?/run "$run"; do unmount_all "$d"; done
  rm -rf "$run"
}

# ---- up ----

# A free device, with the file. Labs and tests beside this one look for a free one at the same time.
loop_of() {
  i=0
  until losetup --find --show --direct-io=on "$1"; do
    i=$((i + 1))
    [ $i -lt 20 ] || die "no loop device for $1"
    sleep 0.1
  done
}

require() {
  for p in "$build/xmigrated" "$build/xmigrate" "$build/xmigrate-shim" "$guest/xm-client" "$guest/initramfs" "$guest/kernel/vmlinuz"; do
    [ -e "$p" ] || die "$p is missing: run make, and make guest"
  done
  for c in ip losetup mkfs.ext4 qemu-system-x86_64; do
    command -v $c >/dev/null || die "$c is missing: run make deps"
  done
  [ -e /dev/loop-control ] || die "this machine has no loop devices"
  [ -c /dev/net/tun ] || die "this machine has no /dev/net/tun"
}

join() { # name, address in A, address in B
  ip link add "$1" netns "$hosta" type veth peer name "$1" netns "$hostb"
  ip -n "$hosta" addr add "$2" dev "$1"
  ip -n "$hostb" addr add "$3" dev "$1"
  for n in "$hosta" "$hostb"; do ip -n "$n" link set "$1" up; done
}

make_networks() {
  for n in "$hosta" "$hostb" "$client"; do
    ip netns add "$n"
    ip netns exec "$n" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 2>/dev/null || true
    ip -n "$n" link set lo up
  done
  join control 10.8.0.1/24 10.8.0.2/24
  join link1 10.1.0.1/24 10.1.0.2/24
  join link2 10.2.0.1/24 10.2.0.2/24
  ip link add trunk netns "$hosta" type veth peer name trunk netns "$hostb"
  ip link add client netns "$hosta" type veth peer name eth0 netns "$client"
  for n in "$hosta" "$hostb"; do
    ip -n "$n" link add br0 type bridge
    ip -n "$n" link set trunk master br0 up
    ip -n "$n" link set br0 up
  done
  ip -n "$hosta" link set client master br0 up
  ip -n "$client" addr add 10.9.0.1/24 dev eth0
  ip -n "$client" link set eth0 up
  [ -z "$XM_LAB_RATE" ] || shape "$XM_LAB_RATE"
}

shape() { # rate, or none
  for n in "$hosta" "$hostb"; do
    for l in link1 link2; do
      if [ "$1" = none ]; then
        ip netns exec "$n" tc qdisc del dev "$l" root 2>/dev/null || true
      else
        ip netns exec "$n" tc qdisc replace dev "$l" root tbf rate "$1" burst 256kb latency 50ms
      fi
    done
  done
}

make_image() { # file, size
  truncate -s "$2" "$1"
  mkfs.ext4 -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1 "$1"
}

mount_image() { # file, directory
  # Not cached twice: a real disk is not, and writing back 2 GiB would slow whatever comes next.
  dev=$(loop_of "$1")
  mount -o discard "$dev" "$2"
  losetup -d "$dev" # when it is unmounted, whoever does that
}

make_own() {
  mount --bind "$run" "$run"
  mount --make-shared "$run"
  for h in a b; do
    mkdir -p "$run/$h/state" "$run/$h/run"
    make_image "$store/$h-state.img" 32M
    mount_image "$store/$h-state.img" "$run/$h/state"
    mount -t tmpfs -o size=8M,mode=700 xmigrate "$run/$h/run"
  done
}

# As after a power cut: no process, nothing that is made of memory, nothing mounted.
switch_off() { # a or b
  n=$prefix-host$1
  # shellcheck disable=SC2046 # numbers
  kill -KILL $(pids_in "$n") 2>/dev/null || true
  i=0
  while [ -n "$(pids_in "$n")" ] && [ $i -lt 600 ]; do sleep 0.02; i=$((i + 1)); done
  for t in $(ip -n "$n" -o link show type tun | cut -d: -f2); do ip -n "$n" link del "$t"; done
  for d in "$store/$1/ds1" "$store/$1/ds2" "$run/$1/state" "$run/$1/run"; do unmount_all "$d"; done
}

switch_on() { # a or b; its agent is started by itself
  for d in ds1 ds2; do mount_image "$store/$1-$d.img" "$store/$1/$d"; done
  mount_image "$store/$1-state.img" "$run/$1/state"
  mount -t tmpfs -o size=8M,mode=700 xmigrate "$run/$1/run"
}

make_datastores() {
  # Namespaces that `ip netns exec` makes, for other labs too, have our mounts as slaves: they let go of them when we do.
  mount --bind "$store" "$store"
  mount --make-shared "$store"
  mkdir -p "$store/shared" # the same directory on both: what an NFS mount would be
  for h in a b; do
    for d in ds1 ds2; do
      mkdir -p "$store/$h/$d"
      make_image "$store/$h-$d.img" "${XM_LAB_STORE:-3G}"
      mount_image "$store/$h-$d.img" "$store/$h/$d"
    done
  done
}

make_disks() {
  truncate -s "${XM_LAB_SYSTEM:-1G}" "$store/system.img"
  "$guest/xm-client" fill "$store/system.img" vda 7 256M >/dev/null
  head -c 128M /dev/urandom | dd of="$store/system.img" bs=1M seek=512 conv=notrunc status=none iflag=fullblock
  truncate -s "${XM_LAB_DATA:-512M}" "$store/a/ds1/web1-data.img"
  if [ "$XM_LAB_FS" = yes ]; then
    mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 "$store/a/ds1/web1-data.img"
  else
    "$guest/xm-client" fill "$store/a/ds1/web1-data.img" vdb 7 64M >/dev/null
  fi
  loop_of "$store/system.img" >"$run/system.loop"
}

write_agent() { # a or b, number, peer, its address, own address
  qemu_rights=${XM_LAB_QEMU_RIGHTS:-no}
  [ -z "$XM_LAB_QEMU_A$XM_LAB_QEMU_B" ] || qemu_rights=yes # those programs are wrappers that make namespaces
  mkdir -p "$run/$1"
  cat >"$run/$1/xmigrated.conf" <<END
[host]
name = host$1
state_dir = $run/$1/state
run_dir = $run/$1/run
engine = ${XM_ENGINE:-auto}
partial_kvm = ${XM_LAB_PARTIAL_KVM:-no}
qemu_rights = $qemu_rights

[listen]
address = $5
port = 7070

[limits]
link_timeout = ${XM_LAB_LINK_TIMEOUT:-5s}
switch_grace = ${XM_LAB_GRACE:-20s}
downtime = ${XM_LAB_DOWNTIME:-100ms}
${XM_LAB_LIMITS:-}

[incoming]
bridge = br0
kernels = $guest
firmware = $guest
firmware = $store/firmware
firmware = /usr/share/OVMF
images = $store/images

[datastore shared]
path = $store/shared

[datastore ds1]
path = $store/$1/ds1
target = 60%

[datastore ds2]
path = $store/$1/ds2
target = 60%

[link link1]
address = 10.1.0.$2

[link link2]
address = 10.2.0.$2

[peer host$3]
address = $4
END
}

write_vm() {
  append="xm.disk=vda:rate=4M:span=256M:trim=32M:prefilled xm.disk=vdb:rate=2M:span=64M:prefilled xm.mem=64M:rate=16M"
  cat >"$run/web1.ini" <<END
[vm]
name = web1
memory = 512M
vcpus = 2
accel = tcg
kernel = $guest/kernel/vmlinuz
initrd = $guest/initramfs
append = console=ttyS0 quiet no_timer_check xm.seed=7 xm.ip=10.9.0.2/24 ${XM_LAB_APPEND:-$append}

[disk system]
path = $(cat "$run/system.loop")

[disk data]
datastore = ds1
file = web1-data.img

[nic lan]
bridge = br0
END
}

start_agent() { # a or b
  case $1 in a) qemu=$XM_LAB_QEMU_A ;; *) qemu=$XM_LAB_QEMU_B ;; esac
  [ -z "$qemu" ] || [ -x "$qemu/qemu-system-x86_64" ] || die "$qemu has no qemu-system-x86_64"
  # One that was killed a moment ago holds its lock until it has gone.
  i=0
  while [ -e "$run/$1/agent.pid" ] && alive "$(cat "$run/$1/agent.pid")" && [ $i -lt 100 ]; do
    i=$((i + 1))
    sleep 0.05
  done
  [ "$XM_LAB_FAULTS" != yes ] || export XMIGRATE_FAULT="@$run/$1/fault"
  if [ "$XM_LAB_KVM" = yes ] && [ ! -e "$run/kvm" ]; then
    mknod -m 660 "$run/kvm" c 10 232
    chgrp 2099999999 "$run/kvm"
  fi
  # The mount is in the agent's own mount namespace, which ip netns exec makes.
  # shellcheck disable=SC2016 # of that shell
  ip netns exec "$prefix-host$1" env PATH="${qemu:+$qemu:}$PATH" \
    sh -c '[ ! -e "$0" ] || mount --bind "$0" /dev/kvm; exec setsid "$@"' "$run/kvm" "$build/xmigrated" --config "$run/$1/xmigrated.conf" </dev/null >>"$run/$1/agent.log" 2>&1 9>&- &
  echo $! >"$run/$1/agent.pid"
  i=0
  until xmigrate "$1" list >/dev/null 2>&1; do
    i=$((i + 1))
    [ $i -lt 1000 ] && alive "$(cat "$run/$1/agent.pid")" || {
      cat "$run/$1/agent.log" >&2
      die "the agent of host$1 does not answer"
    }
    sleep 0.05
  done
}

xmigrate() { # a or b, words...
  h=$1
  shift
  ip netns exec "$prefix-host$h" "$build/xmigrate" --socket "$(command_socket "$h")" "$@"
}

# Everything that may say why a guest does not answer.
tell_of() { # a or b, VM
  set +e
  tail -n 25 "$run/$1/run/vms/$2"/*.log "$run/$1/state/logs"/* "$run/$1/agent.log" 2>&1
  for p in $(pids_in "$prefix-host$1"); do
    for t in "/proc/$p/task"/*; do
      # In: state, user and system ticks; the system call that it is in and its arguments.
      echo "---- $t $(cat "$t/comm") $(sed 's/.*) //' "$t/stat" | cut -d' ' -f1,12,13) in $(cat "$t/wchan"): $(cat "$t/syscall")" 2>&1
    done
  done
  ip -n "$client" neigh 2>&1
  ip netns exec "$prefix-host$1" bridge fdb show br br0 2>&1
}

bring_up() {
  require
  if [ -e "$run/ready" ] && namespace_exists "$hosta" && [ -n "$(pids_in "$hosta")" ]; then
    die "the lab '$prefix' is up already; take it down with: make lab-down"
  fi
  take_down
  mkdir -p "$run" "$store"
  trap 'code=$?; [ $code = 0 ] || { echo "lab: failed, cleaning up" >&2; [ -n "$XM_LAB_KEEP" ] || take_down; }' EXIT
  trap 'exit 130' INT TERM
  make_networks
  make_datastores
  [ "$XM_LAB_OWN" != yes ] || make_own
  [ "$XM_LAB_VM" = none ] || make_disks
  write_agent a 1 b 10.8.0.2 0.0.0.0
  if [ "$XM_LAB_PROXY" = yes ]; then
    write_agent b 2 a 127.0.0.1 127.0.0.1 # all comes by a proxy on B that stands at its addresses
  else
    write_agent b 2 a 10.8.0.1 0.0.0.0
  fi
  [ "$XM_LAB_VM" = none ] || write_vm
  start_agent a
  start_agent b
  if [ "$XM_LAB_VM" != no ] && [ "$XM_LAB_VM" != none ]; then
    xmigrate a start "$run/web1.ini"
    ip netns exec "$client" "$guest/xm-client" wait 10.9.0.2 60 >/dev/null || { tell_of a web1 >&2; die "the guest does not answer"; }
  fi
  touch "$run/ready"
}

explain() {
  a="ip netns exec $hosta $build/xmigrate --socket $(command_socket a)"
  b="ip netns exec $hostb $build/xmigrate --socket $(command_socket b)"
  c="ip netns exec $client $guest/xm-client"
  cat <<END
Two hosts and a guest are up. To try (as root):
  a="$a"
  b="$b"
  guest="$c"
  \$a list                                   # what runs on host A
  \$guest cmd 10.9.0.2 status                # what the guest is doing
  \$guest pulse 10.9.0.2 0 &                 # watch its longest gap; ends with kill %1
  \$a --with-storage web1 hostb              # move it with its disks
  \$guest cmd 10.9.0.2 verify                # its own check of disks and memory
  \$b show web1
  \$b --with-storage web1 hosta              # and back
Logs: $run/{a,b}/agent.log, $run/{a,b}/run/vms/web1/. Away with all of it: make lab-down
END
}

need_root() { [ "$(id -u)" = 0 ] || die "needs root"; }

case ${1:-} in
  up)
    need_root
    exec 9>"/run/$prefix-lab.lock"
    flock -w 30 9 || die "another lab.sh is at work on '$prefix'"
    bring_up
    [ -n "$XM_LAB_QUIET" ] || explain
    ;;
  down)
    need_root
    exec 9>"/run/$prefix-lab.lock"
    flock -w 60 9 || die "another lab.sh is at work on '$prefix'"
    take_down
    rm -f "/run/$prefix-lab.lock"
    ;;
  status)
    if [ -e "$run/ready" ]; then say "'$prefix' is up: $(all_pids | wc -l) processes"; else say "'$prefix' is not up"; fi
    ;;
  agent) start_agent "$2" ;; # again, after it was killed
  off) switch_off "$2" ;;
  on) switch_on "$2" ;;
  tell) tell_of "$2" "$3" ;;
  shape) shape "$2" ;;
  run)
    n=$prefix-$2
    shift 2
    exec ip netns exec "$n" "$@"
    ;;
  xmigrate)
    shift
    xmigrate "$@"
    ;;
  *) die "usage: lab.sh up | down | status | agent a|b | off a|b | on a|b | tell a|b VM | shape RATE|none | run hosta|hostb|client COMMAND... | xmigrate a|b WORDS..." ;;
esac
