#!/usr/bin/env bash
# One table of medians for each thing that rcfs does, as ratios in one run, and one of what is wanted.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make bench: needs root" >&2; exit 1; }
need cgclassify cgroup-tools
need nsenter util-linux
need ip iproute2
need strace strace
need gcc gcc
[ -e /usr/include/linux/fuse.h ] || need no-such-command libc6-dev
mkdir -p build
for program in nothing crowd; do
	gcc -O2 -Wall -o build/bench-$program testdata/bench/$program.c
done
exec ${GO:-go} run ./testdata/bench "$@"
