#!/usr/bin/env bash
# One table of medians, as ratios in one run.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make bench: needs root" >&2; exit 1; }
need cgclassify cgroup-tools
need nsenter util-linux
exec ${GO:-go} run ./testdata/bench "$@"
