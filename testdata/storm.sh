#!/usr/bin/env bash
# The daemon, its worker alone, and its tracer alone are killed at random moments, over and over, and the first two
# between any two system calls of every operation; servers under load are moved again and again; many containers
# and tasks are made, changed and removed at random meanwhile. Arguments are for the go command.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make storm: needs root" >&2; exit 1; }
need findmnt mount
need_servers

go=${GO:-go}
RCFS_STORM_KILLS=${RCFS_STORM_KILLS:-1000} RCFS_STORM_MOVES=${RCFS_STORM_MOVES:-10000} \
	$go test -count=1 -v -timeout 2h -run 'TestDaemonKilledInMoves|TestProgramsUnderLoad' "$@" ./cmd/rcfsd
RCFS_STORM_KILLS=${RCFS_STORM_ANY_KILLS:-100} $go test -count=1 -v -timeout 1h -run TestDaemonKilledInAnything "$@" ./cmd/rcfsd
RCFS_STORM_WORKER_KILLS=${RCFS_STORM_WORKER_KILLS:-1000} $go test -count=1 -v -timeout 2h -run 'TestWorkerKilled$' "$@" ./cmd/rcfsd
RCFS_STORM_MIX=${RCFS_STORM_MIX:-10m} $go test -count=1 -v -timeout 1h -run TestRandomMix "$@" ./cmd/rcfsd
RCFS_STORM_STEPS=${RCFS_STORM_STEPS:-1} $go test -count=1 -v -timeout 2h -run TestDaemonCrashesAtEveryStep "$@" ./cmd/rcfsd
RCFS_STORM_STEPS=${RCFS_STORM_STEPS:-1} $go test -count=1 -v -timeout 2h -run TestWorkerCrashesAtEveryStep "$@" ./cmd/rcfsd
RCFS_STORM_KILLS=${RCFS_STORM_TRACER_KILLS:-100} $go test -count=1 -timeout 1h -run Killed "$@" ./proxy/inject
