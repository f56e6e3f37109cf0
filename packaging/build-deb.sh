#!/usr/bin/env bash
# Builds the Debian package from this tree: target/debian/proxy_VERSION_ARCHITECTURE.deb. Its path is the last line.
# Needs cargo, cargo-deb (cargo install cargo-deb --locked) and dpkg-dev, which finds out the libraries it depends on.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in cargo cargo-deb dpkg-shlibdeps; do
    command -v "$tool" >/dev/null || {
        echo "$0: $tool is missing" >&2
        exit 1
    }
done

cargo build --release --locked
# The program is built; line tables stay with the build, not in the package.
cargo deb --locked --no-build --strip "$@" >/dev/null
deb=$(find target/debian -maxdepth 1 -name 'proxy_*.deb' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
dpkg-deb --info "$deb" >/dev/null
echo "$deb"
