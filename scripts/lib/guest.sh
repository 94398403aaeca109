# shellcheck shell=bash
# The virtual machine's root file system: an ext4 image made without mounting. Source common.sh, debian.sh, kernels.sh and
# containerd.sh first. There are two systems:
#
#   busybox  this machine's own containerd and little else
#   debian   Debian 12 as its packages make it, with systemd and containerd.service

# shellcheck source=scripts/lib/guest-debian.sh
. "$REPO/scripts/lib/guest-debian.sh"

# Programs of this machine that the guest has in /usr/bin. Optional ones are left out where they are missing.
GUEST_PROGRAMS=(dash containerd ctr containerd-shim-runc-v2 runc nc.openbsd dig nslookup host curl)
GUEST_OPTIONAL_PROGRAMS=(bpftool strace)
# CNI's plugins, for pods' networks; from the oldest suite, whose programs run with newer libraries too.
GUEST_CNI=(bridge host-local loopback)
GUEST_MODULES=(overlay virtio_pci virtio_console veth bridge)
GUEST_MIB=1024
GUEST_DEBIAN_MIB=2048

guest_paths() {
    local program
    for program in "${GUEST_PROGRAMS[@]}"; do
        command -v "$program" || die "$program is missing: run scripts/lib/deps.sh"
    done
    for program in "${GUEST_OPTIONAL_PROGRAMS[@]}"; do command -v "$program" || true; done
}

guest_cni_paths() {
    local directory
    directory=$(debian_unpacked bookworm containernetworking-plugins)/usr/lib/cni
    printf '%s\n' "${GUEST_CNI[@]/#/$directory/}"
}

guest_cni() { # ROOT
    local cni
    mapfile -t cni < <(guest_cni_paths)
    cp --preserve=mode,timestamps "${cni[@]}" "$1/opt/cni/bin/"
}

guest_skeleton() { # ROOT
    local dir
    mkdir -p "$1"/usr/{bin,sbin,lib,lib64,local/bin,local/sbin} "$1"/{dev,etc,opt,proc,root,run,sys,tmp,var/lib,var/log,vm}
    for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$1/$dir"; done
    ln -s /run "$1/var/run"
    ln -s /tmp "$1/var/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
    printf '127.0.0.1 localhost portcullis-vm\n' >"$1/etc/hosts"
    printf 'nameserver 127.0.0.1\n' >"$1/etc/resolv.conf"
    printf 'hosts: files dns\n' >"$1/etc/nsswitch.conf"
    printf 'PRETTY_NAME="Portcullis test machine"\nID=portcullis-test\n' >"$1/etc/os-release"
}

guest_busybox() { # ROOT
    local busybox applet
    busybox=$(static_busybox)
    cp "$busybox" "$1/bin/busybox"
    while read -r applet; do
        [[ -e $1/usr/bin/$applet ]] || ln -s busybox "$1/usr/bin/$applet"
    done < <("$busybox" --list)
}

# Modules are unpacked here: busybox need not know the kernel's compression.
guest_modules() { # ROOT KERNEL_DIR
    local file name
    mkdir -p "$1/vm/ko"
    kernel_modules "$2" "${GUEST_MODULES[@]}" | while read -r file; do
        name=$(basename "${file%.xz}" .zst)
        case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -qdc "$file" ;;
            *) cat "$file" ;;
        esac >"$1/vm/ko/$name"
        echo "/vm/ko/$name"
    done >"$1/vm/modules"
}

# The demo's image, imported already for ctr and for CRI: that takes a second here and twenty there. The archive is there as well for whoever
# wants another containerd root; without root's rights here it must be imported there.
guest_container_image() { # ROOT
    local archive=$1/vm/image.tar dir namespace
    cp "$("$REPO/scripts/lib/oci-image.sh")" "$archive"
    [[ $(id -u) == 0 ]] || { say "NOTICE: not root, the guest has to import the container image itself" && return; }
    dir=$(mktemp -d /tmp/portcullis.XXXXXX)
    (
        containerd_start "$dir" "$1/var/lib/containerd"
        for namespace in default k8s.io; do
            private_ctr "$dir" -n "$namespace" images import "$archive" >/dev/null || exit 1
        done
    ) || say "NOTICE: the container image could not be imported here; the guest has to do it itself"
    containerd_stop "$dir"
    rm -rf "$dir" "$1"/var/lib/containerd/tmpmounts
}

guest_busybox_root() { # ROOT
    local paths cni libraries
    mapfile -t paths < <(guest_paths)
    mapfile -t cni < <(guest_cni_paths)
    mapfile -t libraries < <(elf_libraries "${paths[@]}" "${cni[@]}")
    guest_skeleton "$1"
    cp -L --preserve=mode,timestamps "${paths[@]}" "$1/usr/bin/"
    copy_into "$1" "${libraries[@]}"
    ln -s nc.openbsd "$1/usr/bin/nc"
    # Not busybox: its shell runs applets of its own for nc and nslookup, whatever PATH says.
    ln -s dash "$1/usr/bin/sh"
    guest_busybox "$1"
}

guest_root() { # ROOT KERNEL_DIR SYSTEM
    "guest_$3_root" "$1"
    mkdir -p "$1/vm" "$1/opt/cni/bin"
    guest_cni "$1"
    guest_modules "$1" "$2"
    guest_container_image "$1"
    cp "$REPO/integration-tests/vm/init" "$1/init"
    chmod 755 "$1/init"
    gcc -static -O2 -Wall -o "$1/vm/run" "$REPO/integration-tests/vm/run.c"
}

# le32 NUMBER: as four bytes for printf %b, the lowest first.
le32() {
    printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))
}

# guest_partition_table DISK MIB: one Linux partition from 1 MiB on, whose PARTUUID is 706f7274-01. The kernel numbers the
# namespaces of an NVMe disk in the order in which it happens to find them, so that the root can't be called by name.
guest_partition_table() {
    {
        head -c 440 /dev/zero
        # The disk's signature, then the only entry (status, unused CHS, type 0x83, first sector, sectors), three empty ones.
        printf '%b' "$(le32 0x706f7274)\\0\\0" "\\0\\0\\0\\0\\x83\\0\\0\\0$(le32 2048)$(le32 $(($2 * 2048)))"
        head -c 48 /dev/zero
        printf '\x55\xaa'
    } | dd of="$1" bs=512 conv=notrunc status=none
}

# Changes whenever anything that goes into the image does.
guest_key() { # KERNEL_DIR SYSTEM
    local paths cni
    mapfile -t paths < <(guest_paths)
    mapfile -t cni < <(guest_cni_paths)
    {
        echo "$1"
        [[ $2 == busybox ]] || guest_debian_system
        # Size and time tell two builds of a program apart as well as reading 100 MB would.
        stat -L -c '%n %s %Y' "${paths[@]}" "${cni[@]}" "$(command -v busybox)"
        # Libraries are replaced by upgrades of the whole system, of which libc is the sign.
        ldd --version
        cat "$REPO"/integration-tests/vm/{init,run.c} "$REPO"/integration-tests/container/{evade,tamper}.c "$REPO"/scripts/lib/{guest,guest-debian,oci-image}.sh
    } | sha256sum | cut -c1-16
}

guest_build() { # KERNEL_DIR IMAGE SYSTEM
    local root=$2.root size=$GUEST_MIB
    [[ -e $2 ]] && return
    [[ $3 == busybox ]] || size=$GUEST_DEBIAN_MIB
    say "making the machine's disk for $(cat "$1/release")"
    rm -rf "$root"
    mkdir -p "$root"
    guest_root "$root" "$1" "$3"
    rm -f "$2.new"
    truncate -s $((size + 1))M "$2.new"
    mke2fs -q -t ext4 -O ^has_journal -E offset=1048576,root_owner=0:0 -d "$root" "$2.new" "${size}M" >/dev/null ||
        die "mke2fs failed for $2"
    guest_partition_table "$2.new" "$size"
    (cd "$root" && find usr/lib* -name '*.so*') | sed 's|^usr||' >"$2.libraries"
    rm -rf "$root"
    mv "$2.new" "$2"
}

# guest_image KERNEL_DIR SYSTEM prints the image; IMAGE.libraries beside it lists the shared objects in it.
guest_image() {
    local image
    need gcc gcc
    need mke2fs e2fsprogs
    image=$TESTBED/guest/$2-$(basename "$1")-$(guest_key "$1" "$2").ext4
    mkdir -p "$TESTBED/guest"
    with_lock guest guest_build "$1" "$image" "$2" || exit 1
    # Older builds for the same kernel are of no more use.
    find "$TESTBED/guest" -maxdepth 1 -name "$2-$(basename "$1")-*" ! -name "$(basename "$image")*" -mmin +60 -exec rm -rf {} +
    echo "$image"
}

# guest_run_archive IMAGE TAR HOSTPATH:GUESTPATH… -- COMMAND…: what one run brings along.
guest_run_archive() {
    local image=$1 tar=$2 tree=$2.tree pair from to library
    shift 2
    mkdir -p "$tree/vm"
    while [[ $1 != -- ]]; do
        pair=$1
        shift
        from=${pair%%:*} to=${pair#*:}
        [[ $pair == *:/* ]] || die "--add $pair: HOSTPATH:GUESTPATH with an absolute GUESTPATH is wanted"
        [[ -e $from ]] || die "--add $pair: $from does not exist"
        mkdir -p "$tree$(dirname "$to")"
        cp -rLT --preserve=mode,timestamps "$from" "$tree$to"
        while read -r library; do
            # Below /usr, wherever it is looked for: /lib may be a link in the guest, which a directory would replace.
            grep -qxF "${library#/usr}" "$image.libraries" || copy_into "$tree" "/usr${library#/usr}"
        done < <(find -L "$from" -type f -perm /111 -print0 | while IFS= read -r -d '' file; do elf_libraries "$file"; done)
    done
    shift
    printf '%s\0' "$@" >"$tree/vm/argv"
    tar -c -f "$tar" --owner=0 --group=0 -C "$tree" .
    rm -rf "$tree"
}
