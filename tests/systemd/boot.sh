#!/bin/bash
# Boots the systemd of a root directory as PID 1 of fresh namespaces: no container manager, no systemd on the host.
#
#     boot.sh CGROUP ROOT PROGRAMS      needs root; stays in the foreground, its console is standard output
#
# CGROUP is an empty directory in the cgroup2 tree that the caller made and removes; PROGRAMS appears as /opt/handover.
# The root stays read-only, so that any number of machines can run from it: what they write is in memory.
set -euo pipefail

if [ "${1-}" != inside ]; then
    echo $$ >"$1/cgroup.procs"
    # The cgroup namespace begins here, in CGROUP. Whatever happens to the caller, nothing outlives the timeout.
    exec timeout --signal=KILL 300 unshare --kill-child --fork --pid --mount --uts --ipc --net --cgroup \
        "$0" inside "$2" "$3"
fi

root=$2 programs=$3

# Nothing that is mounted from here on is seen outside.
mount --make-rprivate /
mount --bind -o ro "$root" "$root"
# Taken hold of while the path exists: the host's tree is gone after the pivot, and /tmp is not the host's before it.
cd "$root"
for directory in run tmp var srv opt; do
    mount -t tmpfs -o mode=755 tmpfs $directory
done
chmod 1777 tmp
mkdir opt/handover
mount --bind -o ro "$programs" opt/handover

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
# The host may have mounts of its own there, version 1 hierarchies for example; ours sees version 2 alone.
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup

mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done

# The kernel is the host's: its modules and settings are none of our business. Nobody logs in, and no timer is waited for.
mkdir -p run/systemd/system
for unit in systemd-modules-load.service systemd-sysctl.service getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer; do
    ln -s /dev/null run/systemd/system/$unit
done

mkdir run/host-root
pivot_root . run/host-root
cd /
umount --lazy /run/host-root
rmdir /run/host-root
exec env -i container=handover PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    /lib/systemd/systemd --unit=multi-user.target --log-target=journal --show-status=no
