# shellcheck shell=bash
# Debian's kernels for the virtual machine. Source common.sh and debian.sh first.
#
# kernel_dir LINE prints a directory with vmlinuz, modules/ (lib/modules/RELEASE's content) and release.
# Lines: 6.1, 6.12, newest.

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
    local line=$1 root=$TESTBED/apt/$1 current=$TESTBED/kernels/$1.current found package version dir suites
    mkdir -p "$TESTBED/kernels"
    if debian_is_current "$current"; then return; fi
    say "looking for Debian's newest $line kernel"
    read -ra suites <<<"$(kernel_suites "$line")"
    if ! debian_index "$root" "${suites[@]}" || ! found=$(kernel_newest_package "$line" "$root"); then
        debian_earlier "$current" "$root" && return
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
