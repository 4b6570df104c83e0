#!/usr/bin/env bash
# All tests, and how long each part took.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make test: needs root" >&2; exit 1; }
need gcc gcc # for the race detector
[ -e /usr/include/stdlib.h ] || need no-such-command libc6-dev
need findmnt mount
need nsenter util-linux
need cgclassify cgroup-tools # a client
need ip iproute2             # another
need_servers

# The go command does not look into folders named testdata by itself.
packages="./... ./testdata/rig ./testdata/victim ./testdata/bench ./testdata/table ./testdata/view ./testdata/vm"
go=${GO:-go}
times=''
part() {
	local name=$1 start=$SECONDS
	shift
	echo "== $name"
	"$@" || { echo "== $name: FAILED"; exit 1; }
	times+=$(printf '%5d s  %s' $((SECONDS - start)) "$name")$'\n'
}

formatted() {
	local files
	files=$(gofmt -l cmd fs proxy subsystems testdata)
	[ -z "$files" ] || { echo "gofmt would change: $files"; return 1; }
}
arm64() { GOARCH=arm64 CGO_ENABLED=0 $go vet $packages; }

part gofmt formatted
part vet $go vet $packages
part 'vet for arm64' arm64
part staticcheck $go tool -modfile=tools.mod staticcheck $packages
# It slows everything down; how often something is tried matters in the other run.
part 'tests with the race detector' env RCFS_TEST_SLOW=3 $go test -race -count=1 -p 1 -timeout 20m ./... ./testdata/table
part 'tests on one processor' env GOMAXPROCS=1 $go test -count=1 -p 1 -timeout 20m ./...
part guests testdata/vm.sh
part 'the table in README.md' testdata/table.sh -check
echo "== times"
printf '%s' "$times"
