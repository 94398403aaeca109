#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks, from the Debian archive that it is set up for.
# Does nothing, and asks for no rights, where nothing is missing.
#
# containerd and runc are unpacked below target/testbed/tools instead of installed: Debian's containerd package starts a
# service, and nothing here may start or change one. Where they are installed, those are used.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# COMMAND-OR-FILE:PACKAGE
DEPENDENCIES=(
    clang-19:clang-19
    llvm-strip-19:llvm-19
    /usr/include/bpf/bpf_helpers.h:libbpf-dev
    /usr/include/linux/bpf.h:linux-libc-dev
    gcc:gcc
    /usr/include/stdlib.h:libc6-dev
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
    qemu-system-x86_64:qemu-system-x86
    busybox:busybox-static
    mke2fs:e2fsprogs
    mmdebstrap:mmdebstrap
    depmod:kmod
    strip:binutils
    dpkg-shlibdeps:dpkg-dev
    nc.openbsd:netcat-openbsd
    nslookup:bind9-dnsutils
    host:bind9-host
    curl:curl
    openssl:openssl
    python3:python3
    xz:xz-utils
    flock:util-linux
)
UNPACKED=(containerd:containerd ctr:containerd containerd-shim-runc-v2:containerd runc:runc)

present() { # COMMAND-OR-FILE
    case $1 in
        /*) [[ -e $1 ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing_packages() { # ENTRY…
    local entry
    for entry in "$@"; do
        present "${entry%%:*}" || echo "${entry#*:}"
    done | sort -u
    return 0
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    else
        die "installing packages needs root's rights: run as root, install sudo, or install by hand: ${missing[*]}"
    fi
}

install_missing() {
    missing=()
    mapfile -t missing < <(missing_packages "${DEPENDENCIES[@]}")
    # Busybox may be there in its dynamic form, which no image can use.
    if command -v busybox >/dev/null && ldd "$(command -v busybox)" >/dev/null 2>&1; then missing+=(busybox-static); fi
    # ensurepip tells whether venv works; the python3-venv package has no file of its own to look for.
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "this machine has no apt-get: install by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get -q update
    as_root apt-get -q install -y --no-install-recommends "${missing[@]}"
}

unpack_missing() {
    local packages work deb
    mapfile -t packages < <(missing_packages "${UNPACKED[@]}")
    ((${#packages[@]})) || return 0
    say "unpacking ${packages[*]} into $TESTBED/tools"
    work=$TESTBED/tools.new
    rm -rf "$work"
    mkdir -p "$work"
    # The lists may be older than the archive, or not there at all.
    (cd "$work" && apt-get -q download "${packages[@]}") >"$work/log" 2>&1 || {
        as_root apt-get -q update
        (cd "$work" && apt-get -q download "${packages[@]}")
    }
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/unpacked"; done
    mkdir -p "$TESTBED/tools/bin"
    find "$work/unpacked" -type f -path '*bin/*' -exec mv -t "$TESTBED/tools/bin" {} +
    rm -rf "$work"
}

# The compiler is the developer's choice (rustup or a package); only its absence is told.
check_rust() {
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml") or newer (https://rustup.rs)"
}

export DEBIAN_FRONTEND=noninteractive
missing=()
with_lock deps install_missing
with_lock deps unpack_missing
check_rust
