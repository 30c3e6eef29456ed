#!/usr/bin/env bash
# Generates everything anew in a copy of the tree and compares: what is
# committed must be what its sources give. The tree itself is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$PWD/.generated
rm -rf "$copy"
trap 'rm -rf "$copy"' EXIT
mkdir "$copy"
git ls-files -z --cached --others --exclude-standard |
	while IFS= read -r -d '' f; do [ ! -f "$f" ] || printf '%s\0' "$f"; done |
	tar --null --files-from=- -cf - | tar -C "$copy" -xf -
cp -r "$copy" "$copy.before"
trap 'rm -rf "$copy" "$copy.before"' EXIT

(
	cd "$copy"
	go tool -modfile=proto/buf.mod buf generate
	go generate ./...
)
if ! diff -r "$copy.before" "$copy" >"$copy.diff"; then
	echo "generated code is not current; run: make generate"
	sed "s|$copy.before|committed|g; s|$copy|generated|g" "$copy.diff" | head -n 60
	rm -f "$copy.diff"
	exit 1
fi
rm -f "$copy.diff"
echo "generated code is current"
