#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, where they are
# missing. On another system it names what is missing, a line each, and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

want=$(sed -n 's/^go //p' go.mod)
have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//') || true
if [ -z "${have:-}" ]; then
	echo "Go $want or newer is needed and is not on PATH." >&2
	exit 1
fi
if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
	echo "Go $want or newer is needed; this is $have." >&2
	exit 1
fi

# A line each: the file that shows that it is there, the package, what for.
missing=()
while read -r file package purpose; do
	compgen -G "$file" >/dev/null || missing+=("$package|$purpose")
done <<'PACKAGES'
/usr/bin/gcc gcc the C compiler that runc is built with
/usr/include/stdlib.h libc6-dev the C library's headers
/usr/bin/pkg-config pkg-config finds libseccomp
/usr/include/seccomp.h libseccomp-dev runc's seccomp filters
/usr/bin/busybox busybox-static the toolbox image
/usr/bin/zstd zstd packs the runtimes
/usr/bin/git git the version's name
/etc/ssl/certs/ca-certificates.crt ca-certificates registries over TLS
PACKAGES
# The package busybox has a program of the same name that needs a C library.
if [ -e /usr/bin/busybox ] && ldd /usr/bin/busybox >/dev/null 2>&1; then
	missing+=("busybox-static|the toolbox image")
fi

# Tests run a real firewalld, nft and iptables in namespaces of their own. They
# are unpacked and not installed: an installed firewalld would begin to rule this
# host. Without them those tests skip.
unpacked=bin/firewalls
if [ ! -e $unpacked/usr/sbin/firewalld ] && [ "$(id -u)" = 0 ] && command -v apt-get dpkg-deb >/dev/null; then
	debs=$PWD/bin/.debs
	rm -rf "$debs" $unpacked.new
	mkdir -p "$debs/partial" $unpacked.new
	fetch() {
		apt-get install -y -qq --no-install-recommends --download-only --reinstall \
			-o Dir::Cache::archives="$debs" firewalld python3-firewall dbus-daemon nftables iptables >/dev/null 2>&1
	}
	if fetch || { apt-get update -qq >/dev/null 2>&1 && fetch; }; then
		for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" $unpacked.new; done
		rm -rf $unpacked
		mv $unpacked.new $unpacked
	else
		echo "firewalld, nft and iptables cannot be fetched; the tests beside real ones will skip" >&2
	fi
	rm -rf "$debs" $unpacked.new
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	for m in "${missing[@]}"; do echo "missing: ${m%%|*} (${m#*|})" >&2; done
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	for m in "${missing[@]}"; do echo "missing: ${m%%|*} (${m#*|}); run this once as root, or: apt-get install ${m%%|*}" >&2; done
	exit 1
fi
names=("${missing[@]%%|*}")
echo "installing from Debian: ${names[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends "${names[@]}" >/dev/null 2>&1 || {
	apt-get update -qq >/dev/null
	apt-get install -y -qq --no-install-recommends "${names[@]}" >/dev/null
}
