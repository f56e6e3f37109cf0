# shellcheck shell=bash
# What an operator may stumble over: policy-rc.d, exit codes, a restart with a broken file, `proxy stop`, a socket unit.
# Sourced by `run`.

exits() {
    local wanted=$1 code=0
    shift
    within "$@" >"$WORK/exits" 2>&1 || code=$?
    ((code == wanted)) || {
        wrong "$* exited with $code, not $wanted"
        cat "$WORK/exits" >&2
        [[ $INIT != systemd ]] || within journalctl --no-pager -q -n 20 -u proxy >&2
    }
}

forbid_actions() {
    printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d"
    chmod +x "$ROOT/usr/sbin/policy-rc.d"
}

allow_actions() {
    rm "$ROOT/usr/sbin/policy-rc.d"
}

# In an image that is being made, before it has ever been booted: install, upgrade, purge.
forbidden_in_an_image() {
    forbid_actions
    # shellcheck disable=SC2016
    unbooted sh -c 'set -e
        for package in proxy next; do
            apt-get -y install /root/$package.deb
            ! ls -l /proc/[0-9]*/exe | grep -q /usr/sbin/proxy
        done
        apt-get -y purge proxy' >"$WORK/said" 2>&1 || {
        cat "$WORK/said" >&2
        wrong 'the package in an image where policy-rc.d forbids every action'
    }
    expect 'it is said that the start was denied' grep -q 'policy-rc.d denied' "$WORK/said"
    allow_actions
}

forbidden_in_a_system() {
    forbid_actions
    apt_get install /root/proxy.deb
    expect 'policy-rc.d forbids the start' nothing_runs
    apt_get purge proxy
    allow_actions
}

forbidden_upgrade() {
    local pid code=0
    pid=$(master)
    forbid_actions
    within apt-get install -y --reinstall --allow-downgrades /root/proxy.deb >"$WORK/said" 2>&1 || code=$?
    allow_actions
    cat "$WORK/said"
    ((code == 0)) && grep -q 'policy-rc.d forbids it: the running daemon stays' "$WORK/said" || return
    [[ $(master) == "$pid" ]] && serves && ! runs_what_is_installed || return
    within proxy upgrade && [[ $(master) == "$pid" ]] && runs_what_is_installed
}

# As the LSB has them.
exit_codes() {
    exits 0 service proxy start
    exits 0 service proxy status
    exits 2 /etc/init.d/proxy begin
    exits 0 service proxy stop
    exits 3 service proxy status
    exits 0 service proxy stop
    exits 7 service proxy reload-socket
    exits 0 service proxy try-restart
    expect 'try-restart starts nothing' nothing_runs
    exits 0 service proxy start
    exits 0 service proxy reload-socket
    exits 0 service proxy try-restart
    exits 0 service proxy force-reload
    exits 0 service proxy status
}

systemd_version() {
    within systemctl --version | awk 'NR == 1 { print $2 }'
}

# Whether the sockets outlive a master.
keeps_sockets() {
    [[ $INIT == systemd ]] && (($(systemd_version) >= 236))
}

says_what_is_not_kept() {
    within sh -c 'journalctl --no-pager -q -u proxy |
        grep -q "systemd before 236.*a restart or a killed master refuses clients"'
}

state_is() {
    [[ $(within systemctl show -p ActiveState proxy) == "ActiveState=$1" ]]
}

# It fails at once and for good: nobody waits in a queue that nobody will take.
restart_with_a_broken_file() {
    within sed -i 's/^maxconn /maxcon /' /etc/proxy/proxy.toml
    exits 1 systemctl restart proxy
    expect 'the service has failed' state_is failed
    within systemctl status proxy --no-pager >"$WORK/said" || :
    expect 'the status says why' grep -q 'status=6' "$WORK/said"
    expect 'the journal says where' within sh -c 'journalctl --no-pager -q -u proxy | grep -q "did you mean .maxconn"'
    # Connection refused.
    exits 7 curl -sk --max-time 5 "$URL"
    sleep 1
    expect 'nobody tries again' state_is failed
    within sed -i 's/^maxcon /maxconn /' /etc/proxy/proxy.toml
    exits 0 systemctl start proxy
    expect 'it serves once the file is mended' serves
}

# What is only missing is tried again, and those who wait are served once it is there.
restart_without_a_file() {
    local waiting
    within mv /etc/proxy/errors/503.http /etc/proxy/errors/503.away
    exits 1 systemctl restart proxy
    expect 'the service is started again and again' state_is activating
    expect 'the journal says that clients wait' within sh -c \
        'journalctl --no-pager -q -u proxy | grep -q "clients wait until a start succeeds"'
    within curl -fsSk -o /dev/null --max-time 30 "$URL" &
    waiting=$!
    within mv /etc/proxy/errors/503.away /etc/proxy/errors/503.http
    wait "$waiting" || wrong 'who waited for the missing file was not served'
    expect 'it serves once the file is there' serves
}

proxy_stop_stops() {
    exits 0 proxy stop
    eventually 'an inactive service' state_is inactive
    expect 'nothing is left of it' nothing_runs
    sleep 1
    expect 'nobody starts it again' state_is inactive
    exits 7 curl -sk --max-time 5 "$URL"
    exits 0 systemctl start proxy
}

start_traps() {
    restart_with_a_broken_file
    ! keeps_sockets || restart_without_a_file
    proxy_stop_stops
}

# Who connects has the service started again, and waits for it.
stopped_meanwhile() {
    for ((count = 0; count < 5; count++)); do
        within systemctl stop proxy || return
        sleep 0.5
    done
    serves
}

# The example unit, as it says itself.
socket_unit() {
    local URL=https://127.0.0.1:8443/ folder=/etc/systemd/system
    service stop
    cp "$ROOT/etc/proxy/proxy.toml" "$WORK/proxy.toml"
    cp "$ROOT/usr/share/doc/proxy/examples/proxy.socket" "$ROOT$folder/"
    mkdir "$ROOT$folder/proxy.service.d"
    printf '[Unit]\nRequires=proxy.socket\nAfter=proxy.socket\n' >"$ROOT$folder/proxy.service.d/sockets.conf"
    cat >>"$ROOT/etc/proxy/proxy.toml" <<'TOML'

[frontend.extra]
bind    = [{ fd-name = "https-extra" }]
backend = "www-backend"
tls.certificates = ["self-signed.pem"]
TOML
    within systemctl daemon-reload
    exits 0 systemctl enable proxy.socket
    exits 0 systemctl start proxy.socket
    expect 'nothing runs before a client comes' nothing_runs
    expect 'a client starts the service' serves
    step 'socket unit: 20 reloads' 0 sampled reloads 20
    step 'socket unit: restart' 0 service restart
    step 'socket unit: kill -9 of the master' 0 kill_master
    # Nobody is refused, but what is under way gets a second and no more: on a busy machine that can be too little.
    step 'socket unit: 5 times systemctl stop' "$USERS" stopped_meanwhile
    exits 0 systemctl stop proxy.socket proxy
    exits 7 curl -sk --max-time 5 "$URL"
    exits 0 systemctl disable proxy.socket
    cat "$WORK/proxy.toml" >"$ROOT/etc/proxy/proxy.toml"
    rm -r "$ROOT$folder/proxy.socket" "$ROOT$folder/proxy.service.d"
    within systemctl daemon-reload
    service start
}
