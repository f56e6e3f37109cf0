# shellcheck shell=bash
# Next versions of the package: one that works, one that cannot be unpacked, one whose program cannot run, one that
# refuses the configuration.
# Sourced by `run`.

# next.deb, stubborn.deb, unusable.deb, refusing.deb and mended.deb, each a later version than the one before.
next_packages() {
    local name number=0
    dpkg-deb -R "$WORK/proxy.deb" "$WORK/unpacked"
    cp "$WORK/unpacked/usr/sbin/proxy" "$WORK/program"
    for name in next stubborn unusable refusing mended; do
        number=$((number + 1))
        rm -f "$WORK/unpacked/DEBIAN/preinst"
        if [[ $name == stubborn ]]; then
            printf '#!/bin/sh\nexit 1\n' >"$WORK/unpacked/DEBIAN/preinst"
            chmod +x "$WORK/unpacked/DEBIAN/preinst"
        fi
        sed -i "s/^\(Version: [^+]*\).*/\1+$number/" "$WORK/unpacked/DEBIAN/control"
        "program_of_$name" >"$WORK/unpacked/usr/sbin/proxy"
        rm -rf "$WORK/unpacked/usr/lib/proxy"
        if [[ $name == refusing ]]; then
            install -D "$WORK/program" "$WORK/unpacked/usr/lib/proxy/program"
        fi
        dpkg-deb --root-owner-group -Zgzip -z1 -b "$WORK/unpacked" "$WORK/$name.deb" >/dev/null
    done
    rm -rf "$WORK/unpacked" "$WORK/program"
}

program_of_next() {
    cat "$WORK/program"
}

program_of_stubborn() {
    cat "$WORK/program"
}

program_of_unusable() {
    head -c 4096 "$WORK/program"
}

# The program itself, but for what it thinks of the configuration.
program_of_refusing() {
    cat <<'SH'
#!/bin/sh
if [ "$1" = check ]; then
    echo "error: maxconn is gone" >&2
    exit 1
fi
exec /usr/lib/proxy/program "$@"
SH
}

program_of_mended() {
    cat "$WORK/program"
}

runs_what_is_installed() {
    [[ $(within readlink "/proc/$(master)/exe") == /usr/sbin/proxy ]]
}

# The running daemon becomes the new version: same pid, new program.
upgrade() {
    local pid
    pid=$(master)
    within apt-get install -y /root/next.deb || return
    [[ $(master) == "$pid" ]] && serves && runs_what_is_installed && service reload && [[ $(master) == "$pid" ]]
}

# Dpkg takes everything back; the version before is installed and runs.
stubborn_upgrade() {
    local pid
    pid=$(master)
    ! within apt-get install -y /root/stubborn.deb || return
    # shellcheck disable=SC2016
    [[ $(within dpkg-query -W -f '${Status}' proxy) == 'install ok installed' ]] || return
    [[ $(master) == "$pid" ]] && serves && runs_what_is_installed
}

unusable_upgrade() {
    local pid
    pid=$(master)
    ! within apt-get install -y /root/unusable.deb >"$WORK/said" 2>&1 || return
    cat "$WORK/said"
    grep -q 'the new program cannot run' "$WORK/said" && [[ $(master) == "$pid" ]] && serves
}

refused_upgrade() {
    local pid
    pid=$(master)
    within apt-get install -y /root/refusing.deb >"$WORK/said" 2>&1
    cat "$WORK/said"
    grep -q 'maxconn is gone' "$WORK/said" && grep -q 'goes on serving' "$WORK/said" || return
    [[ $(master) == "$pid" ]] && serves || return
    # And from there the next good one takes over.
    within apt-get install -y /root/mended.deb || return
    [[ $(master) == "$pid" ]] && serves && runs_what_is_installed
}
