#!/usr/bin/env bash
# Makes the container image of demo and tests from this machine's own packages, without a registry, and prints the path of
# the tar archive (an OCI image layout, for `ctr images import`). The same packages give the same bytes.
# A second image in it is what pods are held together by: the same layer, but it only sleeps.
#
# In it: busybox and its applets; bash, and perl without its library; the real nc, nslookup, dig, host and curl of Debian with their libraries; links to them
# under other names in /opt/links; ncdu, a harmless program whose name only begins like a network utility's; and
# /opt/evade, which executes programs in ways that hide what they are (integration-tests/container/evade.c), and /opt/tamper, which
# attacks the guard itself (tamper.c).
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE_NAME=docker.io/library/portcullis-demo:latest
PAUSE_NAME=docker.io/library/portcullis-pause:latest
# dash because busybox's shell runs applets of its own for nc and nslookup, whatever PATH says.
EVADE=$REPO/integration-tests/container/evade.c
TAMPER=$REPO/integration-tests/container/tamper.c
IMAGE_PROGRAMS=(dash bash perl nc.openbsd nslookup dig host curl)

image_programs() {
    local program
    for program in "${IMAGE_PROGRAMS[@]}"; do
        command -v "$program" || die "$program is missing: run scripts/lib/deps.sh"
    done
}

# Debian's own layout: /bin and the like are links into /usr, /usr/bin/nc goes through the alternatives.
image_skeleton() { # ROOT
    local dir
    mkdir -p "$1"/usr/{bin,sbin,lib,lib64} "$1"/{dev,etc/alternatives,opt/links,proc,root,run,sys,tmp,var}
    for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$1/$dir"; done
    chmod 1777 "$1/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\n' >"$1/etc/group"
    printf '127.0.0.1 localhost\n' >"$1/etc/hosts"
    printf 'PRETTY_NAME="Portcullis demo"\nID=portcullis-demo\n' >"$1/etc/os-release"
}

image_root() { # ROOT
    local programs libraries applet busybox
    busybox=$(static_busybox)
    mapfile -t programs < <(image_programs)
    mapfile -t libraries < <(elf_libraries "${programs[@]}")
    image_skeleton "$1"
    copy_into "$1" "${programs[@]}" "${libraries[@]}"
    ln -s dash "$1/usr/bin/sh"
    ln -s /bin/nc.openbsd "$1/etc/alternatives/nc"
    ln -s /etc/alternatives/nc "$1/usr/bin/nc"
    ln -s /usr/bin/nc "$1/opt/links/report"
    ln -s /usr/bin/nslookup "$1/opt/links/lookup"
    ln -s ../../usr/bin/curl "$1/opt/links/update"
    printf '#!/bin/sh\necho "ncdu: nothing to see here"\n' >"$1/usr/bin/ncdu"
    chmod 755 "$1/usr/bin/ncdu"
    gcc -static -O2 -Wall -Wextra -o "$1/opt/evade" "$EVADE"
    gcc -static -O2 -Wall -Wextra -o "$1/opt/tamper" "$TAMPER"
    cp "$busybox" "$1/usr/bin/busybox"
    while read -r applet; do
        [[ -e $1/usr/bin/$applet || -L $1/usr/bin/$applet ]] || ln -s busybox "$1/usr/bin/$applet"
    done < <("$busybox" --list)
}

sha256() { sha256sum "$1" | cut -d' ' -f1; }

# add_blob LAYOUT FILE: moves it to where an OCI layout looks for it and prints its descriptor's digest and size.
add_blob() {
    local digest size
    digest=$(sha256 "$2")
    size=$(stat -c %s "$2")
    mv "$2" "$1/blobs/sha256/$digest"
    printf '"digest":"sha256:%s","size":%d' "$digest" "$size"
}

stable_tar() { # TAR DIRECTORY
    tar -c -f "$1" --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$2" .
}

# add_image LAYOUT NAME COMMAND LAYER DIFF_ID: prints its descriptor for the index. COMMAND is JSON.
add_image() {
    local layout=$1 config manifest
    printf '%s' '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":'"$3"'},"rootfs":{"type":"layers","diff_ids":["sha256:'"$5"'"]}}' >"$layout/config"
    config=$(add_blob "$layout" "$layout/config")
    printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",'"$config"'},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",'"$4"'}]}' >"$layout/manifest"
    manifest=$(add_blob "$layout" "$layout/manifest")
    printf '%s' '{"mediaType":"application/vnd.oci.image.manifest.v1+json",'"$manifest"',"platform":{"architecture":"amd64","os":"linux"},"annotations":{"io.containerd.image.name":"'"$2"'","org.opencontainers.image.ref.name":"latest"}}'
}

image_layout() { # LAYOUT ROOT
    local layout=$1 diff_id layer images
    mkdir -p "$layout/blobs/sha256"
    stable_tar "$layout/layer" "$2"
    diff_id=$(sha256 "$layout/layer")
    layer=$(add_blob "$layout" "$layout/layer")
    images=$(add_image "$layout" "$IMAGE_NAME" '["/bin/sh"]' "$layer" "$diff_id")
    images+=,$(add_image "$layout" "$PAUSE_NAME" '["sleep","infinity"]' "$layer" "$diff_id")
    printf '%s' '{"schemaVersion":2,"manifests":['"$images"']}' >"$layout/index.json"
    printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
}

# The programs' content, their libraries by the version of libc (upgraded together), and this script.
image_key() {
    local programs
    mapfile -t programs < <(image_programs)
    { cat "${programs[@]}" "$EVADE" "$TAMPER" "$(static_busybox)" "${BASH_SOURCE[0]}" && ldd --version; } | sha256sum | cut -c1-16
}

image_build() { # TAR
    local work=$1.new
    [[ -e $1 ]] && return
    say "making the container image $IMAGE_NAME"
    rm -rf "$work" "$TESTBED"/image/*.tar
    mkdir -p "$work"
    image_root "$work/root"
    image_layout "$work/layout" "$work/root"
    stable_tar "$work/tar" "$work/layout"
    mv "$work/tar" "$1"
    rm -rf "$work"
}

archive=$TESTBED/image/portcullis-demo-$(image_key).tar
mkdir -p "$TESTBED/image"
with_lock image image_build "$archive"
echo "$archive"
