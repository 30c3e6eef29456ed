#!/bin/bash
# Builds the carried runtimes and images from their pinned modules into out/:
# <part>.zst for each part, and manifest.json, which says what they are.
#
# A part is built again only when its sources, its pins, the toolchain or its
# flags changed. Everything is made in .build/ and renamed into out/ when the
# last part is ready; manifest.json goes first and comes back last, so that a
# build killed at any moment counts as not built. One build runs at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'runtimes: %s\n' "$*" >&2; }

mkdir -p .build out
exec 9>.build/lock
if ! flock -n 9; then
	say "another build is running here; waiting for it"
	flock 9
fi
# The lock is ours, so whatever is in tmp was left by a build that died.
rm -rf .build/tmp
mkdir -p .build/tmp
trap 'rm -rf .build/tmp' EXIT
export GOTMPDIR=$PWD/.build/tmp TMPDIR=$PWD/.build/tmp
# The pins hold whatever the caller's environment says.
export GOFLAGS=-mod=readonly GOWORK=off GOOS=linux

command -v go >/dev/null || { say "missing: go (the version that go.mod names), from go.dev/dl"; exit 1; }
busybox=${BUSYBOX:-/bin/busybox}

# toolchain identifies what compiles.
toolchain=$(go env GOVERSION GOARCH CGO_CFLAGS CGO_LDFLAGS | tr '\n' ' ')
arch=$(go env GOARCH)

# pin MODULE DIR prints the version that DIR/go.mod requires of MODULE.
pin() { awk -v m="$1" '$1 == m { print $2; exit } $1 == "require" && $2 == m { print $3; exit }' "$2/go.mod"; }

# sources DIR... prints a digest over all that a module compiles.
sources() {
	find "$@" \( -name '*.go' ! -name '*_test.go' -o -name go.mod -o -name go.sum \) -type f -print0 |
		LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum | cut -c1-64
}

key() { printf '%s\n' "$@" | sha256sum | cut -c1-64; }

# current PART KEY succeeds when out/PART.zst was built from KEY and is whole.
current() {
	local k sum
	[[ -f .build/$1.stamp && -f out/$1.zst ]] || return 1
	read -r k sum <.build/"$1".stamp || return 1
	[[ $k == "$2" && $(sha256sum <"out/$1.zst" | cut -c1-64) == "$sum" ]]
}

missing=0
need() { # need PACKAGE WHAT-FOR
	say "missing: $1 ($2): apt-get install $1"
	missing=1
}
needs_zstd() { command -v zstd >/dev/null || need zstd "compresses the parts"; }
needs_c() {
	command -v gcc >/dev/null || need gcc "runc has C in it"
	command -v pkg-config >/dev/null || need pkg-config "finds libseccomp for runc"
	[[ -f $(gcc -print-file-name=libc.a 2>/dev/null) ]] || need libc6-dev "runc is linked statically"
	[[ -f $(gcc -print-file-name=libseccomp.a 2>/dev/null) ]] || need libseccomp-dev "runc filters system calls with it"
}

# gobuild DIR OUT CGO TAGS LDFLAGS TARGET
gobuild() {
	(cd "$1" && CGO_ENABLED=$3 go build -trimpath -buildvcs=false -tags "$4" -ldflags "-s -w $5" -o "$2" "$6")
}

# stage PART FILE KEY compresses FILE, and leaves what describes it for publish.
stage() {
	local part=$1 file=$2 key=$3
	zstd -q -19 -T0 -f "$file" -o ".build/tmp/$part.zst"
	printf '%s %s\n' "$(sha256sum <"$file" | cut -c1-64)" "$(stat -c %s "$file")" >".build/tmp/$part.content"
	printf '%s %s\n' "$key" "$(sha256sum <".build/tmp/$part.zst" | cut -c1-64)" >".build/tmp/$part.stamp"
	say "$part: $(($(stat -c %s "$file") / 1000000)) MB, $(($(stat -c %s ".build/tmp/$part.zst") / 1000)) kB compressed, ${SECONDS} s in"
	staged+=("$part")
}

containerd=$(pin github.com/containerd/containerd/v2 containerd)
runc=$(pin github.com/opencontainers/runc runc)
runsc=$(pin gvisor.dev/gvisor runsc)

common="v1 $toolchain -trimpath -s -w zstd-19"
csrc=$(sources containerd)
declare -A keys=(
	[containerd]=$(key "$common" daemon "$csrc")
	[containerd-shim-runc-v2]=$(key "$common" shim "$csrc")
	[runc]=$(key "$common" "$(sources runc)" "$(gcc -dumpfullversion 2>&1 || true)" "$(pkg-config --modversion libseccomp 2>&1 || true)")
	[runsc]=$(key "$common" "$(sources runsc)")
)
declare -A version=(
	[containerd]=$containerd [containerd-shim-runc-v2]=$containerd [runc]=$runc [runsc]=$runsc
)
declare -A module=(
	[containerd]=github.com/containerd/containerd/v2 [containerd-shim-runc-v2]=github.com/containerd/containerd/v2
	[runc]=github.com/opencontainers/runc [runsc]=gvisor.dev/gvisor
)
declare -A kind=([containerd]=binary [containerd-shim-runc-v2]=binary [runc]=binary [runsc]=binary)
parts=(containerd containerd-shim-runc-v2 runc runsc redoubt-oci canary toolbox)

# The two programs of our own have no version but their source.
isrc=$(sources images)
s=$(sources wrapper)
kind[redoubt-oci]=binary module[redoubt-oci]=redoubt.dev/redoubt/deploy/runtimes/wrapper
version[redoubt-oci]=source-${s:0:12} keys[redoubt-oci]=$(key "$common" "$s")
s=$(sources canary)
kind[canary]=image module[canary]=redoubt.dev/redoubt/deploy/runtimes/canary
version[canary]=source-${s:0:12} keys[canary]=$(key "$common" "$isrc" "$s")
kind[toolbox]=image module[toolbox]=redoubt.dev/redoubt/deploy/runtimes/images
version[toolbox]=none
if [[ -x $busybox ]]; then
	read -r banner < <("$busybox" 2>&1) || true
	# "BusyBox v1.35.0 (Debian 1:1.35.0-4+deb12u1) multi-call binary."
	version[toolbox]=busybox-$(sed -E 's/^BusyBox v([^ ]+)( \([^ ]+ ([^)]+)\))?.*/\3 \1/; s/^ *([^ ]+).*/\1/' <<<"$banner")
	keys[toolbox]=$(key "$common" "$isrc" "$(sha256sum <"$busybox")")
else
	keys[toolbox]=none
fi

stale=()
for p in "${parts[@]}"; do
	current "$p" "${keys[$p]}" && [[ -f .build/$p.content ]] || stale+=("$p")
done

# Say all that is missing before the first minute is spent.
for p in ${stale[@]+"${stale[@]}"}; do
	case $p in
	runc) needs_c ;;
	toolbox) [[ -x $busybox ]] || need busybox-static "is what the toolbox image holds" ;;
	esac
done
((${#stale[@]} == 0)) || needs_zstd
((missing == 0)) || exit 1

staged=()
images() { # images NAME BINARY OUT
	[[ -x .build/tmp/images ]] || gobuild images "$PWD/.build/tmp/images" 0 "" "" .
	.build/tmp/images "$1" "$2" "$3" >".build/tmp/$1.digest"
}
for p in ${stale[@]+"${stale[@]}"}; do
	say "building $p ${version[$p]}"
	bin=$PWD/.build/tmp/$p
	case $p in
	containerd)
		gobuild containerd "$bin" 0 "" "-X github.com/containerd/containerd/v2/version.Version=${containerd#v}" ./daemon ;;
	containerd-shim-runc-v2)
		gobuild containerd "$bin" 0 "" "-X github.com/containerd/containerd/v2/version.Version=${containerd#v}" ./shim ;;
	runc)
		gobuild runc "$bin" 1 "seccomp netgo osusergo urfave_cli_no_docs" "-linkmode external -extldflags -static" github.com/opencontainers/runc ;;
	runsc)
		gobuild runsc "$bin" 0 "" "-X gvisor.dev/gvisor/runsc/version.version=$runsc" . ;;
	redoubt-oci)
		gobuild wrapper "$bin" 0 "" "" . ;;
	canary)
		gobuild canary "$bin.program" 0 "" "" .
		images canary "$bin.program" "$bin" ;;
	toolbox)
		images toolbox "$busybox" "$bin" ;;
	esac
	stage "$p" "$bin" "${keys[$p]}"
done

# manifest prints what out/ holds once publish is done.
manifest() {
	local p sum size sep=
	printf '{\n  "arch": "%s",\n  "parts": [' "$arch"
	for p in "${parts[@]}"; do
		read -r sum size <".build/$p.content"
		printf '%s\n    {"name": "%s", "kind": "%s", "module": "%s", "version": "%s", "sha256": "%s", "size": %s' \
			"$sep" "$p" "${kind[$p]}" "${module[$p]}" "${version[$p]}" "$sum" "$size"
		if [[ ${kind[$p]} == image ]]; then
			printf ', "reference": "carried.redoubt/%s:1", "image_digest": "%s"' "$p" "$(<".build/$p.digest")"
		fi
		printf '}'
		sep=,
	done
	printf '\n  ]\n}\n'
}

# A name that is no longer a part must not stay in the embedded folder.
extra=()
for f in out/*.zst; do
	[[ -e $f ]] || continue
	p=${f#out/} p=${p%.zst}
	[[ " ${parts[*]} " == *" $p "* ]] || extra+=("$f")
done

if ((${#staged[@]} + ${#extra[@]})) || [[ ! -f out/manifest.json ]] || ! manifest | cmp -s - out/manifest.json; then
	rm -f out/manifest.json ${extra[@]+"${extra[@]}"}
	for p in ${staged[@]+"${staged[@]}"}; do
		rm -f ".build/$p.stamp"
		mv -f ".build/tmp/$p.zst" "out/$p.zst"
		mv -f ".build/tmp/$p.content" ".build/$p.content"
		[[ ${kind[$p]} != image ]] || mv -f ".build/tmp/$p.digest" ".build/$p.digest"
		mv -f ".build/tmp/$p.stamp" ".build/$p.stamp"
	done
	manifest >.build/tmp/manifest.json
	sync -f out
	mv -f .build/tmp/manifest.json out/manifest.json
	say "$(find out -name '*.zst' -printf '%s\n' | awk '{ n += $1 } END { printf "%d parts, %.1f MB compressed", NR, n / 1e6 }') in deploy/runtimes/out"
fi
