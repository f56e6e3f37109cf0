# shellcheck shell=bash
# Roots of a suite with an init system, made once, unpacked and booted for every life. Sourced by `run`.

readonly COMMON=apt,rsyslog,logrotate,iproute2,curl,apache2-utils,wrk,adduser,procps

# An Ubuntu archive is not signed by a key that Debian ships. What is made of it is tested with and thrown away: whoever
# forges it makes a test fail.
ubuntu() {
    echo "deb [trusted=yes] ${UBUNTU_MIRROR:-http://archive.ubuntu.com/ubuntu} $SUITE main universe"
}

# Its systemd makes an account while PAM is not yet set up, where all packages are unpacked at once.
pam_permits() {
    cat <<'SH'
mkdir -p "$1/etc/pam.d"
for kind in auth account password session; do
    echo "$kind required pam_permit.so" >"$1/etc/pam.d/common-$kind"
done
SH
}

bare_root() {
    local include from=(${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}) hooks=()
    case $INIT in
        systemd) include=systemd-sysv,dbus ;;
        sysvinit) include=sysvinit-core,sysv-rc,initscripts,orphan-sysvinit-scripts,lsb-base ;;
        upstart)
            include=dbus
            # In the place of what init prefers; nspawn boots a systemd wherever it sees one.
            # shellcheck disable=SC2016
            hooks+=(--customize-hook='chroot "$1" apt-get -qq install upstart-sysv'
                --customize-hook='chroot "$1" apt-get -qq purge systemd')
            ;;
    esac
    if [[ $SUITE == xenial ]]; then
        from=("$(ubuntu)")
        hooks+=(--extract-hook="$(pam_permits)")
    fi
    # Another list of packages is another root.
    TARBALL=$CACHE/$KIND-$(cksum <<<"$include,$COMMON" | cut -d ' ' -f 1).tar
    [[ ! -f $TARBALL ]] || return 0
    local began=$SECONDS
    mkdir -p "$CACHE"
    mmdebstrap --variant=minbase "--include=$include,$COMMON" "${hooks[@]}" "$SUITE" "$TARBALL.new.tar" \
        "${from[@]}" >"$WORK/mmdebstrap.log" 2>&1 || {
        tail -n 20 "$WORK/mmdebstrap.log" >&2
        die "$KIND: no root could be made"
    }
    mv "$TARBALL.new.tar" "$TARBALL"
    note "its root was made in $((SECONDS - began)) s"
}

unpack() {
    ROOT=$WORK/root
    bare_root
    mkdir "$ROOT"
    tar -C "$ROOT" -xf "$TARBALL"
    origins >"$ROOT/usr/local/bin/origins"
    sampler >"$ROOT/usr/local/bin/sampler"
    cp "$PACKAGES"/*.deb "$ROOT/root/"
}

booted() {
    case $INIT in
        systemd) [[ $(within systemctl is-system-running 2>/dev/null) == @(running|degraded) ]] ;;
        *) [[ $(within runlevel) == 'N 2' ]] ;;
    esac
}

start_origins() {
    within setsid perl /usr/local/bin/origins >"$WORK/origins.log" 2>&1 &
    ORIGINS=$!
    eventually 'servers' within curl -fsS http://127.0.0.1:9000/
}

# The hierarchies that systemd-nspawn passes on, with a folder of this system's own in each.
own_cgroups() {
    awk -v name="proxy-test-$KIND" '$3 == "cgroup2" || $4 ~ /name=systemd/ { print $2 "/" name }' /proc/mounts
}

# Moves this process. Two systems in one cgroup would share that of their proxy.service: one would remove it while the
# other starts.
apart() {
    local cgroup
    for cgroup; do
        echo "$BASHPID" >"$cgroup/cgroup.procs"
    done
}

together() {
    local cgroup
    for cgroup in $(own_cgroups); do
        [[ ! -d $cgroup ]] || find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || :
    done
}

power_on() {
    # What systemd 229 takes for the second hierarchy of cgroups is another one by now.
    local unified=1 cgroups
    [[ $SUITE != xenial ]] || unified=0
    mapfile -t cgroups < <(own_cgroups)
    mkdir -p "${cgroups[@]}"
    # Its first child is taken for the first process, so it has no other.
    (
        apart "${cgroups[@]}"
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=$unified exec systemd-nspawn -q -D "$ROOT" --boot --private-network \
            --register=no --keep-unit --console=pipe
    ) </dev/null >>"$WORK/console" 2>&1 &
    NSPAWN=$!
    eventually 'a first process' pgrep -P "$NSPAWN"
    LEADER=$(pgrep -P "$NSPAWN")
    eventually 'a booted system' booted
    # minbase brings no link up.
    within ip link set lo up
    eventually 'rsyslogd' within pgrep -x rsyslogd
    start_origins
}

# Systemd-nspawn leaves it to whoever started it to start it again, and says so by its exit code.
reboot_it() {
    local code=0
    # A system that goes down stops its processes before it ends them; nsenter stops with them, and would never take
    # note of their end.
    within pkill -x perl || :
    wait "$ORIGINS" || :
    within reboot || :
    PATIENCE=180 eventually 'an end of the system' sh -c "! kill -0 $NSPAWN"
    wait "$NSPAWN" || code=$?
    # shellcheck disable=SC2034
    NSPAWN='' LEADER=''
    ((code == 133)) || give_up "the system ended with code $code instead of rebooting"
    power_on
}

# A command in the root while it is not booted, as in an image that is being made.
unbooted() {
    systemd-nspawn -q -D "$ROOT" --private-network --register=no --keep-unit --pipe \
        --setenv=DEBIAN_FRONTEND=noninteractive --setenv=LC_ALL=C "$@" </dev/null
}
