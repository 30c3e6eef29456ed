#!/usr/bin/env bash
# Runs every fuzz target for a short time: FUZZTIME=10s integration/fuzz.sh
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-5s}
count=0
while IFS=: read -r file target; do
	package=./$(dirname "$file")
	echo "fuzz $package $target for $time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
	count=$((count + 1))
done < <(git ls-files '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
[ "$count" -gt 0 ] || { echo "no fuzz target was found" >&2; exit 1; }
echo "$count fuzz targets ran"
