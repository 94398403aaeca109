# shellcheck shell=bash
# Packages of Debian suites other than this machine's. Source common.sh first.
#
# They are unpacked, never installed; apt works on lists and caches of its own, so that the system's apt configuration
# is neither used as a source nor changed.
#
#   debian_index ROOT SUITE…       makes ROOT/apt.conf, with which apt knows these suites and nothing else
#   debian_unpacked SUITE PACKAGE  prints the directory in which the suite's newest version is unpacked, without dependencies

# An index younger than this is not asked for again.
DEBIAN_MAX_AGE_DAYS=7

# The mirror this machine is set up for, else the standard one. $1: debian or debian-security.
debian_mirror() {
    local found
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -E '^(deb |URIs:)' | grep -oE "https?://[^] ]+/$1/?( |\$)" | head -n 1 | tr -d ' ') || true
    echo "${found:-http://deb.debian.org/$1}"
}

suite_source() { # ROOT KEYRING SUITE
    local mirror=debian
    [[ $3 == *-security ]] && mirror=debian-security
    echo "deb [signed-by=$2 arch=amd64] $(debian_mirror "$mirror") $3 main"
}

# private_apt ROOT KEYRING SUITE…: an apt configuration that shares nothing with the system's but how to reach a mirror
# (proxies) and what its administrator decided about release files' dates (a mirror may lag, a clock may be wrong).
# Signatures are always checked.
private_apt() {
    local root=$1 keyring=$2 suite
    shift 2
    mkdir -p "$root/empty" "$root/lists/partial" "$root/cache/archives/partial"
    : >"$root/status"
    for suite in "$@"; do suite_source "$root" "$keyring" "$suite"; done >"$root/sources.list"
    apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries)' >"$root/apt.conf" || true
    cat >>"$root/apt.conf" <<EOF
Dir::Etc::parts "$root/empty";
Dir::Etc::main "/dev/null";
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "$root/empty";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$root/empty";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "$root/empty";
Dir::State "$root";
Dir::State::status "$root/status";
Dir::State::lists "$root/lists";
Dir::Cache "$root/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
Acquire::Languages "none";
Acquire::AllowInsecureRepositories "false";
APT::Sandbox::User "root";
EOF
}

# apt-get update that counts warnings (an index that could not be had) as failures.
private_update() { # ROOT
    APT_CONFIG=$1/apt.conf apt-get -q -o APT::Update::Error-Mode=any update >"$1/update.log" 2>&1
}

# An older release's keyring may lack the key of a newer suite. Then Debian's own newer keyring package is taken from a
# suite that the installed keyring does verify, so that trust still begins at the installed one.
newer_keyring() { # KEYRING
    local root=$TESTBED/apt/keyring suite deb
    for suite in trixie bookworm-updates bookworm; do
        private_apt "$root" "$1" "$suite"
        private_update "$root" || continue
        (cd "$root" && rm -f ./*.deb && APT_CONFIG=$root/apt.conf apt-get -q download debian-archive-keyring) \
            >>"$root/update.log" 2>&1 || continue
        deb=$(ls "$root"/*.deb)
        dpkg-deb -x "$deb" "$root/unpacked"
        find "$root/unpacked" -name 'debian-archive-keyring.[gp]*' | sort -r | head -n 1
        return
    done
    return 1
}

installed_keyring() {
    local file
    for file in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
        [[ -e $file ]] && echo "$file" && return
    done
    die "Debian's archive keyring is missing: install the package debian-archive-keyring"
}

debian_index() { # ROOT SUITE…
    local root=$1 keyring
    shift
    keyring=$(installed_keyring)
    private_apt "$root" "$keyring" "$@"
    private_update "$root" && return
    grep -q NO_PUBKEY "$root/update.log" || return 1
    say "the installed archive keyring does not know $*: fetching Debian's newer one"
    keyring=$(newer_keyring "$keyring") || return 1
    private_apt "$root" "$keyring" "$@"
    private_update "$root"
}

# debian_is_current LINK: whether what LINK (a file with a directory's name, relative to its own) leads to is new enough.
debian_is_current() {
    [[ -n $(find "$1" -mtime "-$DEBIAN_MAX_AGE_DAYS" 2>/dev/null) && -d $(dirname "$1")/$(cat "$1") ]]
}

# debian_earlier LINK ROOT: says why the index could not be had, and whether there is something from an earlier run.
debian_earlier() {
    if [[ -f $2/update.log ]]; then grep -E '^(E|W|Err)' "$2/update.log" >&2 || true; fi
    [[ -e $1 && -d $(dirname "$1")/$(cat "$1") ]] || return 1
    say "NOTICE: Debian's archive could not be asked; going on with $(cat "$1") from an earlier run"
}

debian_unpack() { # ROOT PACKAGE DESTINATION
    local work=$3.new
    rm -rf "$work"
    mkdir -p "$work/deb"
    say "fetching $(basename "$3")"
    (cd "$work/deb" && APT_CONFIG=$1/apt.conf apt-get -q download "$2") >"$1/download.log" 2>&1 || {
        cat "$1/download.log" >&2
        return 1
    }
    dpkg-deb -x "$work"/deb/*.deb "$work"
    rm -rf "$work/deb" "$3"
    mv "$work" "$3"
}

debian_fetch() { # SUITE PACKAGE
    local root=$TESTBED/apt/$1-$2 current=$TESTBED/packages/$1-$2.current version name
    mkdir -p "$TESTBED/packages"
    if debian_is_current "$current"; then return; fi
    say "looking for the newest $2 in Debian's $1"
    if ! debian_index "$root" "$1" ||
        ! version=$(APT_CONFIG=$root/apt.conf apt-cache show --no-all-versions "$2" | sed -n 's/^Version: //p'); then
        debian_earlier "$current" "$root" && return
        die "no $2 could be had from Debian's $1"
    fi
    name=${2}_${version//[^A-Za-z0-9.+-]/_}
    [[ -d $TESTBED/packages/$name ]] || debian_unpack "$root" "$2" "$TESTBED/packages/$name" ||
        die "$2 $version could not be fetched"
    echo "$name" >"$current"
    rm -rf "$root"
}

debian_unpacked() { # SUITE PACKAGE
    with_lock "debian-$1-$2" debian_fetch "$1" "$2" || exit 1
    echo "$TESTBED/packages/$(cat "$TESTBED/packages/$1-$2.current")"
}
