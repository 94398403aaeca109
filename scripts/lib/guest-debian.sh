# shellcheck shell=bash
# Debian 12 under systemd for the virtual machine, made from Debian's packages alone. Source common.sh and debian.sh first.

# What a node has before Portcullis comes.
GUEST_DEBIAN_PACKAGES=(systemd systemd-sysv dbus containerd runc crun iproute2 kmod)
GUEST_DEBIAN_SUITE=bookworm

# Changes with what is installed; newer packages alone do not change it.
guest_debian_system() {
    echo "$TESTBED/system/$GUEST_DEBIAN_SUITE-$(echo "${GUEST_DEBIAN_PACKAGES[@]}" | sha256sum | cut -c1-16).tar"
}

# Maintainer scripts run in a chroot: only root can make one of which mke2fs then takes over the owners.
guest_debian_bootstrap() { # TAR
    local keyring suite
    [[ -e $1 ]] && return
    need mmdebstrap mmdebstrap
    [[ $(id -u) == 0 ]] || die "making the Debian machine needs root: run this once as root"
    keyring=$(installed_keyring)
    say "installing Debian's $GUEST_DEBIAN_SUITE for the machine; a minute"
    mkdir -p "$(dirname "$1")"
    # As debian.sh has it: how to reach a mirror, and nothing else of this machine's configuration.
    apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries)' >"$1.apt" || true
    for suite in "$GUEST_DEBIAN_SUITE" "$GUEST_DEBIAN_SUITE-security"; do suite_source "" "$keyring" "$suite"; done |
        mmdebstrap --mode=root --variant=minbase --format=tar --architectures=amd64 --aptopt="$1.apt" \
            --include="$(IFS=, && echo "${GUEST_DEBIAN_PACKAGES[*]}")" "$GUEST_DEBIAN_SUITE" "$1.new" - >"$1.log" 2>&1 ||
        { cat "$1.log" >&2 && die "Debian's $GUEST_DEBIAN_SUITE could not be installed; the log is above"; }
    rm "$1.apt" "$1.log"
    mv "$1.new" "$1"
}

# Starts /vm/run when everything else has been started.
guest_debian_unit() { # ROOT
    cat >"$1/etc/systemd/system/portcullis-vm.service" <<'UNIT'
[Unit]
Description=What this machine was started for
After=multi-user.target
FailureAction=poweroff-immediate

[Service]
Type=exec
ExecStart=/vm/run
WorkingDirectory=/root
Environment=HOME=/root TERM=dumb
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
UNIT
    ln -s ../portcullis-vm.service "$1/etc/systemd/system/multi-user.target.wants/"
}

guest_debian_root() { # ROOT
    local system unit
    system=$(guest_debian_system)
    with_lock system guest_debian_bootstrap "$system" || exit 1
    tar -x -f "$system" -C "$1" --numeric-owner
    echo portcullis-vm >"$1/etc/hostname"
    printf '127.0.0.1 localhost portcullis-vm\n' >"$1/etc/hosts"
    printf 'nameserver 127.0.0.1\n' >"$1/etc/resolv.conf"
    # An id of its own, or systemd takes this for the first boot.
    printf 'c0ffee00c0ffee00c0ffee00c0ffee00\n' >"$1/etc/machine-id"
    # Nobody logs in, and nothing is to happen at some hour.
    for unit in getty@.service serial-getty@.service apt-daily.timer apt-daily-upgrade.timer; do
        ln -sf /dev/null "$1/etc/systemd/system/$unit"
    done
    guest_debian_unit "$1"
}
