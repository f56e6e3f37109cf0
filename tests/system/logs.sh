# shellcheck shell=bash
# Access lines in a real rsyslogd, by UDP 514 and by /dev/log: one for each request, whatever happens to rsyslogd.
# Sourced by `run`.

readonly REQUESTS=3000

# Every installation of a package with a file for it restarts it: systemd's limit of starts is not the point here.
rsyslog() {
    [[ $INIT != systemd ]] || within systemctl reset-failed rsyslog.service
    within service rsyslog "$1" >"$WORK/rsyslog" 2>&1 || {
        cat "$WORK/rsyslog" >&2
        give_up "rsyslog $1"
    }
    eventually 'rsyslogd' within pgrep -x rsyslogd
}

# Beside the shipped rule: a file for each way a line comes, and a second target for access lines.
log_both_ways() {
    cat >"$ROOT/etc/rsyslog.d/10-count.conf" <<'CONF'
if $programname == 'proxy' and $msg contains 'GET /count' then {
    if $inputname == 'imudp' then { action(type="omfile" file="/var/log/count-udp.log") stop }
    action(type="omfile" file="/var/log/count-dev.log")
    stop
}
CONF
    cat >>"$ROOT/etc/proxy/proxy.toml" <<'TOML'

[[log]]
target   = "syslog:/dev/log"
facility = "local0"
only     = ["access"]
TOML
    rsyslog restart
    service reload
}

# A run of requests that must all succeed; prints nothing.
run_of() {
    within ab -f TLS1.2 -l -n "$1" -c "$USERS" "${URL}count$2" >"$WORK/load" 2>"$WORK/load.err" || return
    local requests failed
    read -r requests failed < <(tally_ab)
    [[ $requests == "$1" && $failed == 0 ]]
}

lines() {
    within sh -c "grep -c 'GET /count$2 ' /var/log/count-$1.log || :"
}

lines_are() {
    [[ $(lines "$1" "$2") == "$3" ]]
}

lines_flow() {
    run_of "$USERS" -warm && [[ $(lines udp -warm) -gt 0 && $(lines dev -warm) -gt 0 ]]
}

dropped() {
    within proxy status | sed -n 's/.*log lines dropped: \([0-9]*\).*/\1/p'
}

log_sockets_recreated() {
    case $INIT in
        # It unlinks and binds /dev/log itself.
        sysvinit) rsyslog restart ;;
        systemd)
            # All of journald's, or another of its sockets wakes it up in between, and that of /dev/log is refused.
            # shellcheck disable=SC2016
            eventually 'another /dev/log' within sh -c '
                all="systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket"
                systemctl reset-failed "systemd-journald*"
                systemctl stop systemd-journald.service $all
                systemctl start $all systemd-journald.service'
            rsyslog restart
            ;;
    esac
}

rsyslog_stops() {
    case $INIT in
        sysvinit) within service rsyslog stop ;;
        systemd) within systemctl stop rsyslog.service syslog.socket ;;
    esac
    eventually 'no rsyslogd' within sh -c '! pgrep -x rsyslogd'
}

log_row() {
    local title=$1 word=$2
    echo "$KIND|$title|$REQUESTS|$(lines udp "$word")|$(lines dev "$word")" >>"$WORK/logged"
    note "$title: $(lines udp "$word") lines by UDP, $(lines dev "$word") by /dev/log of $REQUESTS requests"
}

# Nobody but rsyslogd holds the file, so nobody else has to be told.
rotated() {
    within logrotate -f /etc/logrotate.d/proxy
    expect 'the old log is kept' within test -s /var/log/proxy.log.1
    expect 'it serves while the log is rotated' serves
    eventually 'a line in the new log' within test -s /var/log/proxy.log
}

logs() {
    local before way
    log_both_ways
    before=$(dropped)
    run_of "$REQUESTS" -one || wrong 'requests fail while rsyslogd runs'
    for way in udp dev; do
        eventually "every line by $way" lines_are "$way" -one "$REQUESTS"
    done
    expect 'no line was dropped' test "$(dropped)" = "$before"
    rsyslog_stops
    run_of "$REQUESTS" -down || wrong 'requests fail while rsyslogd is down'
    rsyslog start
    expect 'what a missing receiver cost is counted' test "$(dropped)" -gt "$before"
    log_sockets_recreated
    # The master connects a worker's lost socket anew once a second; what is lost meanwhile is counted.
    eventually 'lines by both ways again' lines_flow
    before=$(dropped)
    run_of "$REQUESTS" -two || wrong 'requests fail after rsyslogd came back'
    for way in udp dev; do
        eventually "every line by $way after rsyslogd came back" lines_are "$way" -two "$REQUESTS"
    done
    expect 'no line was dropped after rsyslogd came back' test "$(dropped)" = "$before"
    log_row 'rsyslogd runs' -one
    log_row 'rsyslogd is down' -down
    log_row 'rsyslogd is back' -two
    # Once more, now that nothing can be on its way: exactly one line each, no second one.
    expect 'no line came twice' test "$(lines udp -one),$(lines dev -one)" = "$REQUESTS,$REQUESTS"
    expect 'no line came twice' test "$(lines udp -two),$(lines dev -two)" = "$REQUESTS,$REQUESTS"
    within sh -c 'rm -f /etc/rsyslog.d/10-count.conf /var/log/count-*.log'
    rsyslog restart
    rotated
}
