# shellcheck shell=bash
# A private node: portcullisd, and a containerd that has the image. Source common.sh first.
#
#   node_start BIN             starts one with the programs in BIN, its directory is NODE, and ends and removes it when the
#                              script ends, however it does; so the script sets no traps of its own
#   node_ctr ARGUMENT…         ctr for it
#   node_portcullis ARGUMENT…  portcullis for it
#
#   node_in_machine BIN SCRIPT SECONDS VM_OPTION… -- ARGUMENT…
#                              runs scripts/SCRIPT --inside ARGUMENT… in a virtual machine with kernel 6.12, BIN at /opt/portcullis
#
# PORTCULLIS_IMAGE: the image's archive, if it is there already. PORTCULLIS_CONTAINERD_ROOT: a containerd root that may have it.

# shellcheck source=scripts/lib/containerd.sh
. "$REPO/scripts/lib/containerd.sh"

# shellcheck disable=SC2034 # for whoever sources this
IMAGE=docker.io/library/portcullis-demo:latest
NODE='' node_bin='' node_agent=''

node_ctr() { private_ctr "$NODE" "$@"; }

node_portcullis() { "$node_bin/portcullis" --socket "$NODE/run/portcullis.sock" "$@"; }

# shellcheck disable=SC2317 # called by the trap
node_stop() {
    trap '' HUP INT TERM
    containerd_stop "$NODE" >/dev/null 2>&1 || true
    [[ -z $node_agent ]] || end_process "$node_agent"
    umount "$NODE/bpf" 2>/dev/null || true
    rm -rf "$NODE"
}

node_start_agent() {
    mkdir -p "$NODE"/{bpf,run,policies,state}
    mount -t bpf bpf "$NODE/bpf"
    cat >"$NODE/portcullis.toml" <<CONFIG
run_dir = "$NODE/run"
bpffs_root = "$NODE/bpf/portcullis"
state_dir = "$NODE/state"
policy_dir = "$NODE/policies"
CONFIG
    node_run_agent
}

# Starts it, again perhaps, and waits until it answers.
node_run_agent() {
    local tries=300
    rm -f "$NODE/run/portcullis.sock"
    setsid "$node_bin/portcullisd" --config "$NODE/portcullis.toml" >"$NODE/portcullisd.log" 2>&1 </dev/null &
    node_agent=$!
    until [[ -S $NODE/run/portcullis.sock ]]; do
        if ! kill -0 "$node_agent" 2>/dev/null || ((tries-- == 0)); then
            cat "$NODE/portcullisd.log" >&2
            die "portcullisd did not start; its log is above"
        fi
        sleep 0.1
    done
}

node_start() { # BIN
    node_bin=$1
    NODE=$(mktemp -d /tmp/portcullis-node.XXXXXX)
    trap node_stop EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    export PORTCULLIS_RUN_DIR=$NODE/run PATH=$node_bin:$PATH
    say "starting portcullisd"
    node_start_agent
    say "starting a private containerd"
    containerd_start "$NODE" "${PORTCULLIS_CONTAINERD_ROOT:-$NODE/root}"
    node_ctr images list -q | grep -qxF "$IMAGE" ||
        node_ctr images import "${PORTCULLIS_IMAGE:-$("$REPO/scripts/lib/oci-image.sh")}" >/dev/null
}

node_in_machine() { # BIN SCRIPT SECONDS VM_OPTION… -- ARGUMENT…
    local program script=$2 options=(--kernel 6.12 --timeout "$3")
    for program in portcullis portcullisd containerd-shim-portcullis-v1; do
        options+=(--add "$1/$program:/opt/portcullis/$program")
    done
    shift 3
    while [[ $1 != -- ]]; do options+=("$1") && shift; done
    shift
    "$REPO/scripts/vm" "${options[@]}" --add "$REPO/scripts:/opt/node/scripts" --add "$(command -v bash):/bin/bash" -- \
        /usr/bin/env PORTCULLIS_IMAGE=/vm/image.tar PORTCULLIS_CONTAINERD_ROOT=/var/lib/containerd \
        "/opt/node/scripts/$script" --inside "$@"
}
