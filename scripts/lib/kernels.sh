# shellcheck shell=bash
# Debian's kernels for the virtual machine. Source common.sh first, then this.
#
# kernel_dir LINE prints a directory with vmlinuz, modules/ (lib/modules/RELEASE's content) and release.
# Lines: 6.1, 6.12, newest. The packages are unpacked, never installed; apt works on lists and caches of its own,
# so that the system's apt configuration is neither used as a source nor changed.

# An index younger than this is not asked for again.
KERNEL_MAX_AGE_DAYS=7

kernel_suites() {
    case $1 in
        6.1) echo "bookworm bookworm-security" ;;
        6.12) echo "trixie trixie-security" ;;
        newest) echo "sid" ;;
        *) die "unknown kernel '$1': 6.1, 6.12 and newest are known" ;;
    esac
}

# Exactly one ABI's image each: no meta-packages, no debug symbols, no unsigned twins.
kernel_pattern() {
    case $1 in
        6.1) echo '^linux-image-6\.1\.[0-9].*-cloud-amd64$' ;;
        6.12) echo '^linux-image-6\.12\.[0-9].*-cloud-amd64$' ;;
        newest) echo '^linux-image-[0-9].*-cloud-amd64$' ;;
    esac
}

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

kernel_index() { # LINE ROOT
    local keyring suites
    keyring=$(installed_keyring)
    read -ra suites <<<"$(kernel_suites "$1")"
    private_apt "$2" "$keyring" "${suites[@]}"
    private_update "$2" && return
    grep -q NO_PUBKEY "$2/update.log" || return 1
    say "the installed archive keyring does not know ${suites[*]}: fetching Debian's newer one"
    keyring=$(newer_keyring "$keyring") || return 1
    private_apt "$2" "$keyring" "${suites[@]}"
    private_update "$2"
}

# Prints "PACKAGE VERSION" of the newest.
kernel_newest_package() { # LINE ROOT
    local best='' best_version='' package version
    while read -r package version; do
        if [[ -z $best ]] || dpkg --compare-versions "$version" gt "$best_version"; then
            best=$package best_version=$version
        fi
    done < <(APT_CONFIG=$2/apt.conf apt-cache dumpavail |
        awk -v pattern="$(kernel_pattern "$1")" \
            '/^Package: / { package = $2 } /^Version: / && package ~ pattern { print package, $2 }')
    [[ -n $best ]] && echo "$best $best_version"
}

# Prints "PACKAGE=VERSION" of everything that has a part of the kernel: since 7.x the image package is empty and depends on
# one with vmlinuz, one with modules and one with their lists.
kernel_parts() { # ROOT PACKAGE VERSION
    echo "$2=$3"
    APT_CONFIG=$1/apt.conf apt-cache show "$2=$3" | awk '/^Depends: /' | tr ',' '\n' |
        grep -oE 'linux-(base|binary|modules)-[^ ]+ ' | sed "s/ \$/=$3/" || true
}

kernel_unpack() { # ROOT PACKAGE VERSION DESTINATION
    local work=$4.new vmlinuz modules parts deb
    rm -rf "$work"
    mkdir -p "$work/deb"
    say "fetching $2 $3"
    mapfile -t parts < <(kernel_parts "$1" "$2" "$3")
    (cd "$work/deb" && APT_CONFIG=$1/apt.conf apt-get -q download "${parts[@]}") >"$1/download.log" 2>&1 || {
        cat "$1/download.log" >&2
        return 1
    }
    for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/unpacked"; done
    modules=$(find "$work/unpacked" -type d -path '*/lib/modules/*' -prune)
    vmlinuz=$(find "$work/unpacked" -type f -name 'vmlinuz*' | head -n 1)
    [[ -d $modules && -n $vmlinuz ]] || die "$2 $3 has no kernel or no modules where they were expected"
    basename "$modules" >"$work/release"
    mv "$vmlinuz" "$work/vmlinuz"
    mkdir -p "$work/lib/modules"
    mv "$modules" "$work/lib/modules/"
    rm -rf "$work/deb" "$work/unpacked"
    depmod -b "$work" "$(cat "$work/release")"
    rm -rf "$4"
    mv "$work" "$4"
}

kernel_fetch() { # LINE
    local line=$1 root=$TESTBED/apt/$1 current=$TESTBED/kernels/$1.current found package version dir
    mkdir -p "$TESTBED/kernels"
    if [[ -n $(find "$current" -mtime "-$KERNEL_MAX_AGE_DAYS" 2>/dev/null) && -d $TESTBED/kernels/$(cat "$current") ]]; then
        return
    fi
    say "looking for Debian's newest $line kernel"
    if ! kernel_index "$line" "$root" || ! found=$(kernel_newest_package "$line" "$root"); then
        [[ -f $root/update.log ]] && grep -E '^(E|W|Err)' "$root/update.log" >&2
        if [[ -e $current && -d $TESTBED/kernels/$(cat "$current") ]]; then
            say "NOTICE: Debian's archive could not be asked; going on with $(cat "$current") from an earlier run"
            return
        fi
        die "no $line kernel could be had from Debian's archive"
    fi
    read -r package version <<<"$found"
    dir=${package}_${version//[^A-Za-z0-9.+-]/_}
    [[ -d $TESTBED/kernels/$dir ]] || kernel_unpack "$root" "$package" "$version" "$TESTBED/kernels/$dir" ||
        die "$package $version could not be fetched"
    echo "$dir" >"$current"
    # A hundred megabytes of lists that are not read again before they are too old.
    rm -rf "$root"
}

kernel_dir() { # LINE
    kernel_suites "$1" >/dev/null
    need depmod kmod
    with_lock "kernel-$1" kernel_fetch "$1" || exit 1
    echo "$TESTBED/kernels/$(cat "$TESTBED/kernels/$1.current")"
}

# kernel_modules DIR NAME…: the files of these modules and of what they need, in loading order; built-in ones give nothing.
kernel_modules() {
    local dir=$1 name
    shift
    for name in "$@"; do
        modprobe -d "$dir" -S "$(cat "$dir/release")" --ignore-install --show-depends "$name" 2>/dev/null |
            awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++'
}
