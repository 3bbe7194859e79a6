#!/busybox sh
# The guest's first process: loads the modules, puts the disks together, goes on in start.sh.
# What fails here powers the guest off, and stands on the serial line.
b=/busybox
$b mkdir -p /proc /sys /dev /new /upper /base /later /mnt
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
say() { echo "guest: $*" >/dev/console; }
die() { say "failed: $*"; $b poweroff -f; }

for module in /[0-9][0-9]-*.ko; do
	$b insmod "$module" || die "insmod $module"
done
say "modules loaded"

# vda: scratch; vdb: base; vdc, if there: what only some tests need. All that is written besides the
# scratch disk lies in memory.
$b mount -t erofs -o ro /dev/vdb /base || die "mount base"
lower=/base
if [ -b /dev/vdc ]; then
	$b mount -t erofs -o ro /dev/vdc /later || die "mount later"
	lower=/base:/later
fi
$b mount -t tmpfs -o mode=0755 tmpfs /upper
$b mkdir /upper/over /upper/work
$b mount -t overlay -o "lowerdir=$lower,upperdir=/upper/over,workdir=/upper/work" overlay /new ||
	die "overlay"
cd /new || die "no root"
$b mkdir -p proc sys dev dev/shm run tmp var/tmp root
# What the disks have below /tmp, a checkout there, stays in sight.
$b mkdir /kept
$b mount -o bind tmp /kept
$b mount -t ext4 /dev/vda tmp || die "mount scratch"
for kept in /kept/*; do
	[ -d "$kept" ] || continue
	$b mkdir -p "tmp/${kept##*/}"
	$b mount -o bind "$kept" "tmp/${kept##*/}" || die "bind $kept"
done
$b chmod 1777 tmp var/tmp
$b cp /busybox /agent.py /start.sh run/
for place in proc sys dev; do $b mount -o move /$place $place; done
exec $b switch_root /new /bin/sh /run/start.sh
