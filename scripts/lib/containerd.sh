# shellcheck shell=bash
# A private containerd, apart from any other on this machine. Source common.sh first.
#
#   containerd_start DIR [ROOT]   config, socket and state below DIR; ROOT (default DIR/root) holds images and snapshots
#   private_ctr DIR ARGUMENT…     ctr for it
#   containerd_stop DIR           containers, containerd, shims and mounts of it, and nothing else
#
# The shims inherit containerd's environment: set PATH and PORTCULLIS_RUN_DIR before starting it. Keep DIR short: a
# socket's path may have 107 characters.

CONTAINERD_START_SECONDS=30

containerd_config() { # DIR ROOT
    sed "s|@DIR@|$1|; s|@ROOT@|$2|" "$REPO/scripts/lib/containerd.toml"
}

# ctr wants this variable's directory to exist, and often it does not.
private_ctr() { # DIR ARGUMENT…
    local dir=$1
    shift
    env -u XDG_RUNTIME_DIR ctr --address "$dir/containerd.sock" "$@"
}

containerd_start() { # DIR [ROOT]
    local dir=$1 deadline=$((SECONDS + CONTAINERD_START_SECONDS)) pid
    need containerd containerd
    mkdir -p "$dir"
    containerd_config "$dir" "${2:-$dir/root}" >"$dir/containerd.toml"
    # In a session of its own: Ctrl-C must not end it before its containers are removed.
    setsid containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$dir/containerd.pid"
    until private_ctr "$dir" version >/dev/null 2>&1; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS >= deadline)); then
            tail -n 20 "$dir/containerd.log" >&2
            containerd_stop "$dir"
            die "the private containerd did not start; the end of its log is above"
        fi
        sleep 0.1
    done
}

containerd_remove_containers() { # DIR
    local namespace id
    for namespace in $(private_ctr "$1" namespaces list -q); do
        for id in $(private_ctr "$1" -n "$namespace" tasks list -q); do
            private_ctr "$1" -n "$namespace" tasks delete --force "$id" >/dev/null 2>&1 || true
        done
        for id in $(private_ctr "$1" -n "$namespace" containers list -q); do
            private_ctr "$1" -n "$namespace" containers delete "$id" >/dev/null 2>&1 || true
        done
    done
}

# Ends a process that this shell started, first politely.
end_process() { # PID
    local tries=100
    kill "$1" 2>/dev/null || return 0
    while kill -0 "$1" 2>/dev/null; do
        ((tries-- > 0)) || kill -KILL "$1" 2>/dev/null || true
        sleep 0.05
    done
    wait "$1" 2>/dev/null || true
}

# Pids of the shims that were started for DIR's containerd: they have its socket as an argument.
containerd_shims() { # DIR
    local file
    for file in /proc/[0-9]*/cmdline; do
        { tr '\0' '\n' <"$file"; } 2>/dev/null | grep -qxF "$1/containerd.sock" || continue
        basename "$(dirname "$file")"
    done
}

containerd_unmount() { # DIR
    local target
    awk -v prefix="$1/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r target; do umount -l "$target" || true; done
}

containerd_stop() { # DIR
    local dir=$1 tries=20 pid
    [[ -f $dir/containerd.pid ]] || return 0
    pid=$(cat "$dir/containerd.pid")
    # A container that is only just coming into being is not listed, but its shim is there.
    while private_ctr "$dir" version >/dev/null 2>&1; do
        containerd_remove_containers "$dir"
        if [[ -z $(containerd_shims "$dir") ]] || ((tries-- == 0)); then break; fi
        sleep 0.1
    done
    end_process "$pid"
    for pid in $(containerd_shims "$dir"); do kill -KILL "$pid" 2>/dev/null || true; done
    containerd_unmount "$dir"
    rm -f "$dir/containerd.pid"
}
