#!/bin/sh
# The guest's first process once its root is there: the network, then the agent (agent.py), whose end
# is the guest's. The kernel's command line names the interpreter (ffs.python).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
export LANG=C.UTF-8
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
hostname guest
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0

# Two RDMA devices: rxe0 (10.77.0.1) and rxe1 (10.77.0.2), at the two ends of a cable. Both addresses
# are this machine's, which would keep packets between them off the cable; hence the rules: between
# the two, the way leads over the cable, and what comes in from it is local.
ip link add rdma0 type veth peer name rdma1
for n in 0 1; do
	ip link set rdma$n mtu 4200 up
	ip address add 10.77.0.$((n + 1))/24 dev rdma$n
	echo 1 >/proc/sys/net/ipv4/conf/rdma$n/accept_local
	echo 0 >/proc/sys/net/ipv4/conf/rdma$n/rp_filter
	ip rule add iif rdma$n lookup local priority 1
	rdma link add rxe$n type rxe netdev rdma$n
done
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
ip route add 10.77.0.2 dev rdma0 src 10.77.0.1 table 100
ip route add 10.77.0.1 dev rdma1 src 10.77.0.2 table 100
ip rule add from 10.77.0.1 to 10.77.0.2 lookup 100 priority 2
ip rule add from 10.77.0.2 to 10.77.0.1 lookup 100 priority 2
ip rule add lookup local priority 3
ip rule del lookup local priority 0

for word in $(cat /proc/cmdline); do
	case $word in
	ffs.python=*) python=${word#*=} ;;
	esac
done
"$python" -I -S /run/agent.py </dev/null >/dev/console 2>&1
echo "guest: the agent ended" >/dev/console
/run/busybox poweroff -f
