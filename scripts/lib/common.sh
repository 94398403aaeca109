# shellcheck shell=bash
# What every script here shares. Source it; it sets REPO and TESTBED.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything fetched or built for tests; PORTCULLIS_TESTBED lets several worktrees share one.
TESTBED=${PORTCULLIS_TESTBED:-$REPO/target/testbed}
mkdir -p "$TESTBED"

# Progress goes to stderr, so that stdout stays what was asked for.
say() { printf '>> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need COMMAND PACKAGE
need() {
    command -v "$1" >/dev/null || die "$1 is missing: install Debian's package $2 (or run scripts/lib/deps.sh)"
}

# with_lock NAME COMMAND…: one process at a time builds a cached thing; the others then find it there.
with_lock() {
    local name=$1
    shift
    (
        flock 9
        "$@"
    ) 9>"$TESTBED/.lock-$name"
}
