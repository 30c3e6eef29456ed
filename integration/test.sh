#!/usr/bin/env bash
# All that must hold, in the order in which it fails fastest: generated code,
# lint, unit and property and script tests (under the race detector where that
# is possible), the carried runtimes' own tests, then network tests with real
# processes, among them the demo, judged and searched for what it left.
#
# Everything runs even if something fails; the sum comes at the end.
set -uo pipefail
cd "$(dirname "$0")/.."

results=$PWD/.test
rm -rf "$results"
mkdir -p "$results"
failed=()
begun=$SECONDS

phase() { printf '\n== %s (%d s in)\n' "$1" $((SECONDS - begun)); }
check() { # check NAME COMMAND...
	phase "$1"
	"${@:2}" || failed+=("$1")
}

go build -o bin/redoubt-tally ./integration/tally || exit 1
go_test() { # go_test NAME ARGS...
	phase "$1"
	go test -json "${@:2}" 2>&1 | bin/redoubt-tally -into "$results/${1// /-}.json"
	local codes=("${PIPESTATUS[@]}")
	[ "${codes[0]}" = 0 ] && [ "${codes[1]}" = 0 ] || failed+=("$1")
}

check "generated code" integration/generated.sh
check "lint" make --no-print-directory lint

# What the race detector cannot take: tests that trace other processes, that
# measure time against a kernel or memory, or that run real sandboxes for minutes;
# and the command's scripts, which start it five times slower with it.
without_race='/(cmd/redoubt/cli|isolation/probe/kvm|isolation/surface|agent/containerd|agent/canary|deploy/runtimes|integration|integration/.*)$'
all=$(go list ./... | grep -v '/integration/net$')
mapfile -t raced < <(grep -Ev "$without_race" <<<"$all")
mapfile -t plain < <(grep -E "$without_race" <<<"$all")

# The linker and the race detector need a C compiler.
CGO_ENABLED=1 go_test "unit tests under the race detector" -race -timeout 20m "${raced[@]}"
# One package after the other: these look at processes, mounts and links.
# Those of one package that wait for deadlines do so side by side.
go_test "tests with real runtimes" -p 1 -parallel 5 -timeout 20m "${plain[@]}"
check "modules of the carried runtimes" make --no-print-directory -C deploy/runtimes test

# Alone on the host: they compare everything on it before and after.
# Uncached: a test log of every file that the listing looks at has gigabytes.
REDOUBT_NET=1 go_test "network tests and the demo" -count=1 -p 1 -timeout 25m ./integration/net

# With root and the built runtimes, as here, no test of a runtime may skip.
never=
if [ "$(id -u)" = 0 ] && [ -f deploy/runtimes/out/manifest.json ]; then
	never='(?i)root|carried|built runtimes|gvisor|runsc|runc|containerd|REDOUBT_NET'
fi
bin/redoubt-tally -sum "$results" -never-skip "$never" || failed+=("sum")
printf 'in %d s\n' $((SECONDS - begun))
if [ ${#failed[@]} -gt 0 ]; then
	printf 'not passed:'
	printf ' %s;' "${failed[@]}"
	printf '\n'
	exit 1
fi
