# shellcheck shell=bash
# What every script here shares. Source it; it sets REPO and TESTBED.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything fetched or built for tests; PORTCULLIS_TESTBED lets several worktrees share one.
TESTBED=${PORTCULLIS_TESTBED:-$REPO/target/testbed}
mkdir -p "$TESTBED"
# Where scripts/lib/deps.sh unpacks what it does not install. Last, so that installed programs come first.
PATH=$PATH:/usr/sbin:/sbin:$TESTBED/tools/bin
export PATH

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

# elf_libraries FILE…: the shared objects (the loader included) that these programs need, by the paths they are looked for.
elf_libraries() {
    local file
    for file in "$@"; do
        ldd "$file" 2>/dev/null | grep -oE '/[^ ]+ \(0x' | cut -d' ' -f1 || true
    done | sort -u
}

# copy_into ROOT FILE…: copies to the same path, following links, so that no dangling one results.
copy_into() {
    local root=$1 file
    shift
    for file in "$@"; do
        mkdir -p "$root$(dirname "$file")"
        [[ -e $root$file ]] || cp -L --preserve=mode,timestamps "$file" "$root$file"
    done
}

static_busybox() {
    local busybox
    busybox=$(command -v busybox) || die "busybox is missing: run scripts/lib/deps.sh"
    ldd "$busybox" >/dev/null 2>&1 && die "$busybox is not static: install busybox-static"
    echo "$busybox"
}
