# shellcheck shell=bash
# Programs of crates.io that scripts need. Source it after common.sh.

# cargo_tool NAME VERSION: builds it into the test bed where it is not there; it is the one that is run, whatever is in PATH.
cargo_tool() {
    with_lock "$1" cargo_tool_install "$@"
    hash -p "$TESTBED/tools/bin/$1" "$1"
}

cargo_tool_install() { # NAME VERSION
    grep -qsF "\"$1 $2 (" "$TESTBED/tools/.crates.toml" && return
    say "building $1 $2; some minutes, once"
    # It need not be fast, only soon there.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install "$1" --version "$2" --locked --quiet --root "$TESTBED/tools" >&2
}
