#!/usr/bin/env bash
# Builds the Debian package from this tree: target/debian/proxy_VERSION_ARCHITECTURE.deb. Its path is the last line.
# Usage: packaging/build-deb.sh [ARCHITECTURE] (amd64 or arm64; this machine's own unless given).
#
# The program is linked for glibc 2.17, so that one file runs from Ubuntu 14.04 to today, and it is refused if it
# needs more. Needs cargo with the target's standard library, and
#   cargo install --locked cargo-deb cargo-zigbuild
#   pip install ziglang          (in any environment; in target/zig this script makes one itself where there is no zig)
#   apt install binutils dpkg-dev python3-venv
set -euo pipefail
cd "$(dirname "$0")/.."

readonly GLIBC=2.17
# The version this was tried with.
readonly ZIG=0.17.1

die() {
    echo "packaging/build-deb.sh: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || die "$1 is missing: $2"
}

# Zig comes as a Python package; cargo-zigbuild runs it as `python3 -m ziglang`.
find_zig() {
    command -v zig >/dev/null && return
    local python=${CARGO_ZIGBUILD_PYTHON_PATH:-$PWD/target/zig/bin/python3}
    if ! "$python" -m ziglang version >/dev/null 2>&1; then
        need python3 'apt install python3-venv'
        echo "zig: into target/zig" >&2
        python3 -m venv target/zig || die 'no virtual environment can be made: apt install python3-venv'
        target/zig/bin/pip install -q "ziglang==$ZIG" || die "zig is missing: pip install ziglang==$ZIG"
        python=$PWD/target/zig/bin/python3
    fi
    export CARGO_ZIGBUILD_PYTHON_PATH=$python
}

# Symbols of a later glibc than promised, one a line.
too_new() {
    local symbols version symbol
    symbols=$(objdump -T "$1" | sed -nE 's/.*GLIBC_([0-9.]+)\)? +([^ ]+)$/\1 \2/p')
    [[ -n $symbols ]] || die "$1 names no symbol of glibc: is it what was built?"
    while read -r version symbol; do
        [[ $(printf '%s\n' "$version" "$GLIBC" | sort -V | tail -n 1) == "$GLIBC" ]] || echo "$symbol GLIBC_$version"
    done <<<"$symbols"
}

architecture=${1:-$(dpkg --print-architecture)}
case $architecture in
    amd64) target=x86_64-unknown-linux-gnu ;;
    arm64) target=aarch64-unknown-linux-gnu ;;
    *) die "amd64 or arm64, not $architecture" ;;
esac
need cargo 'see the Rust documentation'
need cargo-deb 'cargo install --locked cargo-deb'
need cargo-zigbuild 'cargo install --locked cargo-zigbuild'
need objdump 'apt install binutils'
need python3 'apt install python3'
[[ -d $(rustc --print sysroot)/lib/rustlib/$target/lib ]] || die "no standard library for $target: rustup target add $target"
find_zig

cargo zigbuild --release --locked --target "$target.$GLIBC"
newer=$(too_new "target/$target/release/proxy")
[[ -z $newer ]] || die "the program needs more than glibc $GLIBC:
$newer"
mkdir -p target/package
python3 packaging/licences.py "$target" >target/package/linked-crates.txt
# The program is built; line tables stay with the build, not in the package. Ubuntu 14.04's dpkg reads no control.tar.xz.
cargo deb --locked --no-build --target "$target" --strip --compress-type gz --output target/debian/ >/dev/null
deb=$(find target/debian -maxdepth 1 -name "proxy_*_$architecture.deb" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
dpkg-deb --info "$deb" >/dev/null
echo "$deb"
