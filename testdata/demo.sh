#!/usr/bin/env bash
# The whole main job, on this machine: a redis-server under load is moved, alive, between two
# containers. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make demo: needs root" >&2; exit 1; }
need redis-benchmark redis-tools
need nsenter util-linux

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
work=$(mktemp -d /tmp/rcfs-demo.XXXXXX)
mnt=$work/mnt
mkdir "$mnt"
redis='' load=''
cleanup() {
	[ -z "$load" ] || kill "$load" 2>/dev/null || true
	[ -z "$redis" ] || { kill "$redis" 2>/dev/null || true; wait "$redis" 2>/dev/null || true; }
	if mountpoint -q "$mnt"; then
		for c in blue green; do for i in 1 2 3 4 5; do rmdir "$mnt/$c" 2>/dev/null && break; sleep 0.2; done; done
		umount "$mnt"
	fi
	rm -rf "$work"
}
trap cleanup EXIT

say "mount -t fuse.rcfs -o cpu,pids,uts,net,ipc none $mnt"
bin/mount.fuse.rcfs none "$mnt" -o cpu,pids,uts,net,ipc
mkdir "$mnt/blue" "$mnt/green"
echo blue >"$mnt/blue/uts.hostname"
echo green >"$mnt/green/uts.hostname"

# Debian's server is the very program that redis-tools has under another name.
ln -s "$(command -v redis-check-rdb)" "$work/redis-server"
"$work/redis-server" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >"$work/log" 2>&1 &
redis=$!
for _ in $(seq 100); do redis-cli -s "$work/socket" ping >/dev/null 2>&1 && break; sleep 0.05; done

show() {
	say "$1: redis-server $redis, $(ls /proc/$redis/task | wc -l) threads"
	echo "hostname    $(nsenter --target "$redis" --uts uname -n)"
	echo "interfaces  $(nsenter --target "$redis" --net sh -c 'cut -d: -f1 /proc/thread-self/net/dev | tail -n +3' | xargs)"
	echo "cgroups     $(grep -E ':(cpu|pids)' /proc/$redis/cgroup | xargs)"
	echo "networks of its threads: $(readlink /proc/$redis/task/*/ns/net | sort | uniq -c | xargs)"
	[ -z "${2:-}" ] || { echo "rcfs.proxies of $2:"; sed 's/^/  /' "$mnt/$2/rcfs.proxies"; }
}

show before
say "redis-benchmark runs; meanwhile the server moves"
timeout 120 redis-benchmark -s "$work/socket" -c 20 -n 100000 -t set,get -q >"$work/bench" 2>"$work/errors" &
load=$!
moves=0
while kill -0 "$load" 2>/dev/null; do
	for c in blue green; do
		echo "$redis" >"$mnt/$c/tasks"
		moves=$((moves + 1))
	done
	sleep 0.05
done
status=0
wait "$load" || status=$?
load=''
show after green
say "$moves moves under load"
tr '\r' '\n' <"$work/bench" | grep 'requests per second' || true
errors=$(wc -l <"$work/errors")
echo "client: exit status $status, $errors errors"
[ "$status" = 0 ] && [ "$errors" = 0 ] && [ "$moves" -gt 1 ] && grep -q 'requests per second' "$work/bench"
redis-cli -s "$work/socket" ping
echo "$redis" >"$mnt/tasks"
show "back in the root"
