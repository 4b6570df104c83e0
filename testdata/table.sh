#!/usr/bin/env bash
# The table in README.md of what works where, from a run on this machine and the guests' last one
# (testdata/vm.sh). With -check it is compared with what they saw, and not written.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}
log=build/conformance.log
mkdir -p build
$go test -count=1 -v -run '^TestConformance$' ./subsystems >$log || { cat $log; exit 1; }
$go run ./testdata/table "$@" <$log
