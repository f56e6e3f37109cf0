# shellcheck shell=bash
# The package's life in a booted root: install, every action, crash, upgrade, reboot, purge. Sourced by `run`.

reloads() {
    local pid
    pid=$(master)
    for ((count = 0; count < $1; count++)); do
        service reload || return
        sleep 0.2
    done
    [[ $(master) == "$pid" ]]
}

# `service` on a systemd machine runs the init script itself for this action: it must find the unit's daemon.
reload_socket_beside_systemd() {
    local pid
    pid=$(master)
    within service proxy reload-socket || return
    within systemctl reload proxy & within service proxy reload-socket || return
    wait "$!" || return
    [[ $(master) == "$pid" && $(within pgrep -cx proxy -P 1) == 1 ]]
}

kill_worker() {
    local worker
    worker=$(worker)
    within kill -KILL "$worker" || return
    eventually 'another worker' worker_other_than "$worker"
}

worker_other_than() {
    local now
    now=$(within pgrep -P "$(master)")
    [[ -n $now ]] && ! grep -qx "$1" <<<"$now" && serves
}

kill_master() {
    local pid
    pid=$(master)
    # As the path of a Unix socket, which is worth as much as the socket.
    ! keeps_sockets || within touch /run/proxy/here || return
    within kill -KILL "$pid" || return
    # Nobody but an administrator starts it again without a supervisor: over the stale pid file.
    if [[ $INIT != systemd ]]; then
        [[ $(service status) == *'is dead, but'* ]] || echo "status: $(service status)"
        service start || return
    fi
    eventually 'another master' master_other_than "$pid" || return
    ! keeps_sockets || within rm /run/proxy/here
}

# Systemd hears of nobody and ends it. Its workers serve meanwhile.
hung_master() {
    local pid
    pid=$(master)
    within kill -STOP "$pid" || return
    eventually 'another master' master_other_than "$pid"
}

# Before the next start, so that nobody has to wait for half a minute.
short_watchdog() {
    within sh -c 'mkdir -p /run/systemd/system/proxy.service.d
        printf "[Service]\nWatchdogSec=4s\n" >/run/systemd/system/proxy.service.d/watchdog.conf
        systemctl daemon-reload'
}

master_other_than() {
    [[ $(master) != "$1" ]] && serves
}

# Held still as a whole, as by a debugger or a disk that does not answer: its successor takes the queue, it is killed.
stalled_worker() {
    local worker
    worker=$(worker)
    within kill -STOP "$worker" || return
    eventually 'another worker' worker_other_than "$worker"
    eventually 'an end of the stalled one' within sh -c "! kill -0 $worker"
}

broken_reload() {
    local pid code=0
    pid=$(master)
    within sed -i 's/^maxconn /maxcon /' /etc/proxy/proxy.toml || return
    service reload >"$WORK/said" 2>&1 || code=$?
    if [[ $INIT == systemd ]]; then
        within journalctl --no-pager -q -u proxy >"$WORK/said"
    fi
    within sed -i 's/^maxcon /maxconn /' /etc/proxy/proxy.toml
    cat "$WORK/said"
    [[ $code -ne 0 ]] && grep -q 'did you mean .maxconn' "$WORK/said" && [[ $(master) == "$pid" ]]
}

install_over() {
    local pid
    pid=$(master)
    within apt-get install -y --reinstall --allow-downgrades "/root/$1" || return
    [[ $(master) == "$pid" ]] && serves && service reload && [[ $(master) == "$pid" ]]
}

# What dpkg calls of a package when something else has failed, or another one wants its place: no daemon is touched.
unusual_calls() {
    local pid call
    pid=$(master)
    for call in 'prerm upgrade 9' 'prerm failed-upgrade 9' 'prerm deconfigure in-favour other 1' 'postrm upgrade 9' \
        'postrm failed-upgrade 9' 'postrm abort-install' 'postrm abort-upgrade 9' 'postinst abort-upgrade 9' \
        'postinst abort-deconfigure in-favour other 1' 'postinst abort-remove'; do
        # shellcheck disable=SC2086
        within env DPKG_MAINTSCRIPT_PACKAGE=proxy /var/lib/dpkg/info/proxy.$call || {
            echo "proxy.$call failed"
            return 1
        }
    done
    [[ $(master) == "$pid" ]] && serves
}

# Fresh sockets beside the old ones: the one command that may lose somebody, where the kernel does not help.
rebinds() {
    local pid
    pid=$(master)
    for ((count = 0; count < $1; count++)); do
        within service proxy reload || return
        sleep 0.2
    done
    within service proxy force-reload && [[ $(master) == "$pid" ]]
}

# A process that has ended is there until its parent has heard of it.
nothing_runs() {
    for ((tries = 0; tries < 20; tries++)); do
        within pgrep -x proxy >/dev/null || return 0
        sleep 0.1
    done
    within ps -ef
    return 1
}

stale_pid_files() {
    service stop
    expect 'stop leaves no process' nothing_runs
    expect 'the port is free at once' within perl -MIO::Socket::INET -e \
        'IO::Socket::INET->new(LocalAddr => "0.0.0.0:443", Listen => 1, ReuseAddr => 1) or die $!'
    [[ $INIT != systemd ]] || return 0
    within mkdir -p /run/proxy
    # The pid of a process that is somebody else's.
    local foreign
    foreign=$(within pgrep -x rsyslogd)
    within sh -c "echo $foreign >/run/proxy/proxy.pid"
    expect 'a foreign pid is not taken for ours' within sh -c '! service proxy status'
    expect 'stop spares a foreign process' service stop
    expect 'the foreign process lives' within kill -0 "$foreign"
    within sh -c "echo $foreign >/run/proxy/proxy.pid"
    expect 'start over a foreign pid' service start
    within rm /run/proxy/proxy.pid
    expect 'reload-socket without a pid file' service reload
    expect 'a second start is none' service start
    expect 'one master' test "$(within pgrep -fc 'proxy run')" = 1
    expect 'stop without a pid file' service stop
    expect 'nothing is left' nothing_runs
    # Two at once: one daemon.
    service start >/dev/null 2>&1 &
    local first=$!
    service start >/dev/null 2>&1 || :
    wait "$first" || :
    expect 'two starts at once are one daemon' test "$(within pgrep -fc 'proxy run')" = 1
    expect 'it serves' serves
    service stop
}

rebooted() {
    service start
    expect 'it serves before the reboot' serves
    reboot_it
    eventually 'service after a reboot' serves
    expect 'the service runs after a reboot' service status >/dev/null
}

install_first() {
    apt_get install /root/proxy.deb
    expect 'it serves after the install' serves
    expect 'the service is running' service status >/dev/null
    expect 'workers are not root' test "$(within ps -o user= -p "$(worker)")" = proxyd
    expect 'workers are in the chroot' test "$(within readlink "/proc/$(worker)/root")" = /var/lib/proxy
    expect 'the key is the group'\''s to read only' test \
        "$(within stat -c '%a %U:%G' /etc/proxy/certs/self-signed.pem)" = '640 root:proxyd'
    expect 'HTTP is sent to HTTPS' within sh -c 'curl -sI http://127.0.0.1/ | grep -q "^Location: https://"'
    expect 'the pages are there' within sh -c 'test -s /usr/share/man/man8/proxy.8.gz'
}

removed() {
    service start
    expect 'it serves after start' serves
    apt_get remove proxy
    expect 'remove stops the service' nothing_runs
    expect 'remove keeps the configuration' within test -f /etc/proxy/proxy.toml
    apt_get install /root/proxy.deb
    expect 'it serves after remove and install' serves
    apt_get purge proxy
    expect 'purge stops the service' nothing_runs
    expect 'purge leaves no account' within sh -c '! getent passwd proxyd && ! getent group proxyd'
}

confined() {
    # Older ones take what they do not know for unsound.
    (($(systemd_version) >= 247)) || return 0
    expect 'the unit is sound' within systemd-analyze verify --man=no proxy.service
    # Older ones know no threshold.
    (($(systemd_version) >= 250)) || return 0
    expect 'the unit is confined' within systemd-analyze security --offline=true --threshold=20 --no-pager \
        /lib/systemd/system/proxy.service >"$WORK/confined"
    note "$(tail -n 1 "$WORK/confined")"
}

# Everything, where the root is one to test in full.
full_life() {
    step 'nothing' 0 sleep 2
    step '100 reloads, one each 0.2 s' 0 sampled reloads 100
    step --kept '20 reloads, connections kept' 0 reloads 20
    if [[ $INIT == systemd ]]; then
        step 'service proxy reload-socket beside systemctl reload' 0 reload_socket_beside_systemd
    else
        step '20 times reload (rebind)' - rebinds 20
    fi
    # What the worker was answering goes with it, at most one request of each user; nobody else notices.
    step 'kill -9 of the worker' "$USERS" kill_worker
    step 'a worker stands still' "$USERS" stalled_worker
    step 'reload of a broken file' 0 broken_reload
    upgrades
    step 'a next version that cannot be unpacked' 0 stubborn_upgrade
    step 'maintainer scripts of what failed' 0 unusual_calls
    step 'a next version where policy-rc.d forbids it' 0 forbidden_upgrade
    [[ $INIT != systemd ]] || short_watchdog
    deaths
    if [[ $INIT == systemd ]]; then
        step 'the master stands still' 0 hung_master
        socket_unit
    fi
    logs
}

upgrades() {
    step 'the same package again' 0 install_over proxy.deb
    step 'a next version' 0 sampled upgrade
    step 'a next version that cannot run' 0 unusable_upgrade
    step 'a next version that refuses the configuration' 0 refused_upgrade
    step 'the first version again' 0 install_over proxy.deb
}

deaths() {
    # Without systemd nobody holds the sockets while no master runs.
    local unsupervised=-
    if keeps_sockets; then
        unsupervised=0
    elif [[ $INIT == systemd ]]; then
        expect 'the log says what is not kept' says_what_is_not_kept
    fi
    step 'restart' "$unsupervised" service restart
    expect 'it serves after the restart' serves
    step 'kill -9 of the master' "$unsupervised" kill_master
}

short_life() {
    step '20 reloads, one each 0.2 s' 0 sampled reloads 20
    step 'reload of a broken file' 0 broken_reload
    upgrades
    deaths
}

life() {
    unpack
    forbidden_in_an_image
    power_on
    inventory >"$WORK/before"
    forbidden_in_a_system
    install_first
    [[ $INIT != systemd ]] || confined
    if [[ $SUITE == bookworm ]]; then
        full_life
    else
        short_life
    fi
    exit_codes
    [[ $INIT != systemd ]] || start_traps
    stale_pid_files
    [[ $SUITE != bookworm ]] || rebooted
    service stop
    removed
    within rm -f /run/load.pid /run/load.stop /run/samples
    inventory >"$WORK/after"
    diff "$WORK/before" "$WORK/after" || wrong 'purge leaves files, or took some'
    shut_down
}
