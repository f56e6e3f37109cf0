# shellcheck shell=bash
# Load, and what is asked of a booted root: what every scenario uses. Sourced by `run`, which sets CACHE, WORK and the folder PACKAGES.

# With its port: a minbase root knows no names of ports, and wrk asks.
URL=https://127.0.0.1:443/
readonly USERS=20

# shellcheck disable=SC2034
KIND='' SUITE='' INIT='' PACKAGES='' ROOT='' TARBALL='' NSPAWN='' LEADER='' ORIGINS='' LOAD='' WRONG=0

die() {
    echo "tests/system/run: $*" >&2
    exit 1
}

note() {
    echo "$KIND: $*"
}

# What a step was to show and did not; the rest still runs.
wrong() {
    echo "WRONG ($KIND): $*" >&2
    WRONG=$((WRONG + 1))
}

expect() {
    local what=$1
    shift
    "$@" || wrong "$what"
}

shut_down() {
    # The root's pid 1 takes every process of the root with it.
    [[ -z $LEADER ]] || kill -KILL "$LEADER" 2>/dev/null || :
    [[ -z $NSPAWN ]] || wait "$NSPAWN" 2>/dev/null || :
    LEADER='' NSPAWN=''
    [[ -z $KIND ]] || together
    [[ -z $ROOT ]] || rm -rf --one-file-system "$ROOT"
    ROOT=''
}

within() {
    nsenter -t "$LEADER" -a -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@" </dev/null
}

# Ends this system's life with what it says about itself.
give_up() {
    if [[ $INIT == systemd ]]; then
        within journalctl --no-pager -n 40 >&2 || :
    else
        within tail -n 40 /var/log/proxy.log /var/log/daemon.log >&2 || :
    fi
    die "$KIND: $*"
}

# Waits for a command to succeed, a minute at most or PATIENCE seconds.
eventually() {
    local what=$1 began=$SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS - began < ${PATIENCE:-60})) || give_up "not within ${PATIENCE:-60} s: $what"
        sleep 0.1
    done
}

# The servers behind: no step touches them, and every answer is the same, so that ab counts a shorter one as failed.
origins() {
    cat <<'PERL'
use strict;
use IO::Socket::INET;
$SIG{PIPE} = 'IGNORE';
my $answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n" . "x" x 100;
for my $port (9000 .. 9002) {
    my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$port", Listen => 1024, ReuseAddr => 1) or die $!;
    for (1 .. 3) {
        next if fork;
        while (1) {
            my $client = $listener->accept or next;
            my $head = '';
            1 while $head !~ /\r\n\r\n/ && sysread($client, $head, 8192, length $head);
            syswrite($client, $answer);
            close $client;
        }
    }
}
1 while wait > 0;
PERL
}

# Every file there is, without what any package manager and any log writes.
inventory() {
    within find /etc /opt /root /run /srv /usr /var -xdev | grep -vE \
        -e '^/var/(cache|log/(apt|journal|alternatives|dpkg|syslog|messages|user|daemon|auth|kern|mail|debug|dmesg)|lib/(dpkg|apt|systemd/timers))' \
        -e '^/run/(systemd|lock|udev|user|log|mount|initctl|ab|adduser)|^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|__pycache__' |
        grep -vE -e '^/var/tmp/|^/var/lib/(systemd|logrotate)/?(random|catalog|status)' | sort
}

master() {
    within cat /run/proxy/proxy.pid
}

worker() {
    within pgrep -P "$(master)" | tail -n 1
}

serves() {
    within curl -fsSk -o /dev/null --max-time 5 "$URL"
}

# The init system's own words for what is done to the service.
service() {
    case $INIT:$1 in
        systemd:reload) within systemctl reload proxy ;;
        *:reload) within service proxy reload-socket ;;
        systemd:*) within systemctl "$1" proxy ;;
        *) within service proxy "$1" ;;
    esac
}

# Nothing goes on after one that fails.
apt_get() {
    within apt-get -y "$@" >"$WORK/apt" 2>&1 || {
        cat "$WORK/apt" >&2
        give_up "apt-get $*"
    }
    # Dpkg warns of folders that it shares with others where /lib is not yet a link.
    if grep -iE '^(warning|error)|^(invoke-rc.d|dpkg): ' "$WORK/apt" |
        grep -vE 'policy-rc.d denied|directory .* not empty so not removed'; then
        wrong "apt-get $* complains"
    fi
}

# Requests and failed ones of many runs of ab. It counts a reset or refused connection under three headings: the largest
# is how many there were. A run that it gave up is a request of each user that waited for too long. The length
# of its first answer is the right one to it: where that one is broken, it counts all others.
tally_ab() {
    awk -v users="$USERS" '
        /^Complete requests:/ { all += $3; complete = $3 }
        /^Document Length:/ { first = $3 }
        /^ +\(Connect:/ {
            gsub(/[(),]/, "")
            if (first ~ /^[0-9]+$/ && first != 100) $6 = complete - $6
            most = 0
            for (column = 2; column <= 8; column += 2) if ($column + 0 > most) most = $column + 0
            broken += most
        }
        /^Non-2xx responses:/ { broken += $3 }
        /^given up$/ { all += users; broken += users }
        END { print all + 0, broken + 0 }' "$WORK/load"
}

# The same of wrk, whose every socket error is one request.
tally_wrk() {
    awk '
        / requests in / { all = $1 }
        /Socket errors:/ { gsub(/,/, ""); broken = $4 + $6 + $8 + $10 }
        /Non-2xx or 3xx responses:/ { other = $NF }
        END { print all + 0, broken + other }' "$WORK/load"
}

# One connection per request by ab, in short runs, because interrupted it may spin for ever; kept connections by wrk.
start_load() {
    local tool=$1
    within rm -f /run/load.pid /run/load.stop
    # shellcheck disable=SC2016
    case $tool in
        ab)
            within sh -c 'echo $$ >/run/load.pid
                until [ -e /run/load.stop ]; do
                    ab -r -s 20 -f TLS1.2 -n 200 -c "$1" "$2" || echo "given up"
                done' ab "$USERS" "$URL"
            ;;
        wrk) within sh -c 'echo $$ >/run/load.pid; exec wrk -t 2 -c "$1" -d 600s --timeout 20s "$2"' wrk "$USERS" "$URL" ;;
    esac >"$WORK/load" 2>"$WORK/load.err" &
    LOAD=$!
    eventually 'load' within test -s /run/load.pid
    sleep 0.5
}

stop_load() {
    sleep 0.5
    # shellcheck disable=SC2016
    case $1 in
        ab) within touch /run/load.stop ;;
        wrk) within sh -c 'kill -INT "$(cat /run/load.pid)"' 2>/dev/null || : ;;
    esac
    wait "$LOAD" || :
}

# Runs a step under load, and a row of the table about it. A limit is how many requests may fail; - is any number.
# Inside a step `set -e` does not hold: it says || return.
step() {
    local tool=ab
    if [[ $1 == --kept ]]; then
        tool=wrk
        shift
    fi
    local title=$1 limit=$2 began requests failed took
    shift 2
    start_load "$tool"
    began=$(date +%s%N)
    "$@" >"$WORK/step" 2>&1 || {
        wrong "$title"
        cat "$WORK/step" >&2
    }
    took=$((($(date +%s%N) - began) / 1000000))
    grep "^$KIND: " "$WORK/step" || :
    stop_load "$tool"
    read -r requests failed < <("tally_$tool")
    if [[ $limit != - ]]; then
        ((requests > 0 && failed <= limit)) || {
            wrong "$title: $failed of $requests requests failed, $limit may"
            cat "$WORK/load.err" >&2
        }
    else
        limit=any
    fi
    echo "$KIND|$title|$requests|$failed|$limit|$took" >>"$WORK/rows"
    note "$title: $failed of $requests failed"
}
