# shellcheck shell=bash
# Promise 35: the pid file and, under systemd, MAINPID name one living process at every look, each 10 ms, whatever is
# done meanwhile. Sourced by `run`.

# Looks until /run/sampling goes; asks systemd over one connection, because a systemctl for each look would be the load.
sampler() {
    cat <<'PERL'
use strict;
use IO::Socket::UNIX;
$| = 1;

# The D-Bus call Get("org.freedesktop.systemd1.Service", "MainPID") of proxy.service; every argument is aligned.
sub padded { my ($bytes, $to) = @_; return $bytes . "\0" x (-length($bytes) % $to) }
sub text { my ($text) = @_; return pack('V', length $text) . "$text\0" }
my $fields = '';
for (
    [1, "\1o\0" . text('/org/freedesktop/systemd1/unit/proxy_2eservice')],
    [2, "\1s\0" . text('org.freedesktop.DBus.Properties')],
    [3, "\1s\0" . text('Get')],
    [8, "\1g\0" . "\2ss\0"],
) {
    $fields = padded($fields, 8) . chr($_->[0]) . $_->[1];
}
my $body = padded(text('org.freedesktop.systemd1.Service'), 4) . text('MainPID');
my ($bus, $serial) = (undef, 0);

sub bytes {
    my ($wanted) = @_;
    my $bytes = '';
    while (length($bytes) < $wanted) {
        sysread($bus, $bytes, $wanted - length $bytes, length $bytes) or die "systemd hung up\n";
    }
    return $bytes;
}

sub main_pid {
    my $head = pack('a C C C V V V', 'l', 1, 0, 1, length $body, ++$serial, length $fields);
    syswrite($bus, padded($head . $fields, 8) . $body);
    while (1) {
        my (undef, $type, undef, undef, $length, undef, $more) = unpack('a C C C V V V', bytes(16));
        bytes(length padded("\0" x $more, 8));
        my $answer = bytes($length);
        # What is neither an answer nor an error is a signal.
        die "systemd does not know the service\n" if $type == 3;
        return unpack('V', substr($answer, -4)) if $type == 2;
    }
}

if (-d '/run/systemd/system') {
    $bus = IO::Socket::UNIX->new('/run/systemd/private') or die "no systemd: $!\n";
    syswrite($bus, "\0AUTH EXTERNAL 30\r\nBEGIN\r\n");
    my $line = '';
    $line .= bytes(1) while $line !~ /\n/;
    die "systemd says $line" if $line !~ /^OK /;
}

my $looks = 0;
while (-e '/run/sampling') {
    open my $file, '<', '/run/proxy/proxy.pid' or print "there is no pid file\n";
    my $pid = $file ? <$file> : '';
    chomp $pid;
    print "the pid file names '$pid', which is no process\n" if $pid !~ /^\d+$/ || !kill 0, $pid;
    my $main = $bus ? main_pid() : $pid;
    print "MAINPID is $main, the pid file says $pid\n" if $main != $pid;
    $looks++;
    select undef, undef, undef, 0.01;
}
open my $file, '>', '/run/samples' or die;
print $file "$looks\n";
PERL
}

sampled() {
    local sampling outcome=0 began took samples
    within rm -f /run/samples
    within touch /run/sampling
    within perl /usr/local/bin/sampler >"$WORK/samples" 2>&1 &
    sampling=$!
    began=$(date +%s%N)
    "$@" || outcome=1
    took=$((($(date +%s%N) - began) / 1000000))
    within rm -f /run/sampling
    wait "$sampling" || outcome=1
    cat "$WORK/samples"
    samples=$(within cat /run/samples)
    note "the pids were looked at $samples times in $took ms"
    # A look takes its time, too, and the machine may be busy.
    [[ $outcome == 0 && ! -s $WORK/samples ]] && ((samples * 100 > took))
}
