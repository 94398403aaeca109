#!/usr/bin/env bash
# Builds Kubernetes's apiextensions-apiserver from the sources in Debian's unstable packages, and prints the directory in which it
# is, beside Debian's etcd. Some 350 MB are fetched, and the build takes some minutes of two cores; both once.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/lib/debian.sh
. "$REPO/scripts/lib/debian.sh"

SUITE=sid
TARGET=$TESTBED/apiserver

apiserver_build() {
    [[ -e $TARGET/complete ]] && return
    local work=$TARGET.new go version deb
    rm -rf "$work" "$TARGET"
    mkdir -p "$work/root" "$work/bin" "$work/tmp"
    say "fetching the sources of Kubernetes's API server"
    debian_index "$work/apt" "$SUITE" || die "Debian's $SUITE could not be asked: $(tail -n 3 "$work/apt/update.log")"
    go=$(APT_CONFIG=$work/apt/apt.conf apt-cache depends golang-go | grep -oE 'golang-[0-9.]+-go' | head -n 1)
    (cd "$work" && APT_CONFIG=$work/apt/apt.conf apt-get -q -y --no-install-recommends --download-only install \
        golang-k8s-apiextensions-apiserver-dev "$go" etcd-server) >"$work/download.log" 2>&1 ||
        die "the sources could not be fetched: $(tail -n 3 "$work/download.log")"
    for deb in "$work"/apt/cache/archives/{golang-*,etcd-server}*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    say "building it with $go; some minutes"
    version=${go#golang-} version=${version%-go}
    go=$work/root/usr/lib/go-$version
    GOROOT=$go GOPATH=$work/root/usr/share/gocode GO111MODULE=off GOPROXY=off GOFLAGS='' CGO_ENABLED=0 \
        GOCACHE=$work/cache GOTMPDIR=$work/tmp "$go/bin/go" build -trimpath -ldflags '-s -w' \
        -o "$work/bin/apiextensions-apiserver" k8s.io/apiextensions-apiserver
    cp "$work/root/usr/bin/etcd" "$work/bin/"
    mv "$work/bin" "$TARGET"
    rm -rf "$work"
    touch "$TARGET/complete"
}

with_lock apiserver apiserver_build >&2
echo "$TARGET"
