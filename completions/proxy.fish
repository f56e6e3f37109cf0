# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_proxy_global_optspecs
    string join \n h/help
end

function __fish_proxy_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_proxy_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_proxy_using_subcommand
    set -l cmd (__fish_proxy_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c proxy -n "__fish_proxy_needs_command" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "run" -d 'Serve, in the foreground or as a daemon'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "check" -d 'Check the configuration and everything it names; change nothing'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "reload" -d 'Load the configuration anew; returns when the new generation serves'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "reload-socket" -d 'Reload with the listening sockets handed over: `reload --mode handover`'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "status" -d 'Show generations, listeners, connections and the last reload'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "server" -d 'Show servers, take them out of service, give them another weight'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "upgrade" -d 'Let the running daemon become the program that is installed now; same pid, nothing is closed'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "stop" -d 'Stop the daemon'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "self-signed" -d 'Make a self-signed certificate with its key, in one PEM'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "demo" -d 'Show it at work: three servers, TLS, statistics; no files, no root'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "measure" -d 'Measure what clients lose while the daemon is restarted or reloaded'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "version" -d 'Show the version'
complete -c proxy -n "__fish_proxy_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c proxy -n "__fish_proxy_using_subcommand run" -s f -l config -d 'Configuration file' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand run" -s p -l pid-file -d 'Pid file, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand run" -s x -l take-over -d 'Take the listening sockets of the daemon behind this admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand run" -l finish -d 'Let these processes finish once this one serves (-sf PID...)' -r
complete -c proxy -n "__fish_proxy_using_subcommand run" -l terminate -d 'End these processes once this one serves (-st PID...)' -r
complete -c proxy -n "__fish_proxy_using_subcommand run" -s D -l daemon -d 'Go to the background; return when the daemon serves, or fail with its reason'
complete -c proxy -n "__fish_proxy_using_subcommand run" -l foreground -d 'Stay in the foreground (-db), which is what happens without -D'
complete -c proxy -n "__fish_proxy_using_subcommand run" -s q -l quiet -d 'Say nothing but errors'
complete -c proxy -n "__fish_proxy_using_subcommand run" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand check" -s f -l config -d 'Configuration file' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand check" -s q -l quiet -d 'Say nothing but errors'
complete -c proxy -n "__fish_proxy_using_subcommand check" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand reload" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand reload" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand reload" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand reload" -l mode -d 'How listeners reach the new worker; the configuration\'s strategy when absent' -r -f -a "handover\t'The very same listening sockets'
rebind\t'Freshly bound sockets; the old queues are emptied'"
complete -c proxy -n "__fish_proxy_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c proxy -n "__fish_proxy_using_subcommand reload-socket" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand reload-socket" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand reload-socket" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand reload-socket" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand status" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand status" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand status" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand status" -l json -d 'For machines'
complete -c proxy -n "__fish_proxy_using_subcommand status" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand server; and not __fish_seen_subcommand_from list set help" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand server; and not __fish_seen_subcommand_from list set help" -f -a "list" -d 'Show all servers with their state'
complete -c proxy -n "__fish_proxy_using_subcommand server; and not __fish_seen_subcommand_from list set help" -f -a "set" -d 'Change a server\'s state or weight, until it is changed again: reloads, crashes and upgrades keep it'
complete -c proxy -n "__fish_proxy_using_subcommand server; and not __fish_seen_subcommand_from list set help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from list" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from list" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from list" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from list" -l json -d 'For machines'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -l state -d 'Whether it takes requests' -r -f -a "ready\t'It takes requests'
drain\t'No new requests; checks go on'
maint\t'No new requests, no checks, no idle connections'"
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -l weight -d 'Its share of requests: 0 to 256, or 0% to 100% of the configured one' -r
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from help" -f -a "list" -d 'Show all servers with their state'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from help" -f -a "set" -d 'Change a server\'s state or weight, until it is changed again: reloads, crashes and upgrades keep it'
complete -c proxy -n "__fish_proxy_using_subcommand server; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c proxy -n "__fish_proxy_using_subcommand upgrade" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand upgrade" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand upgrade" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand stop" -s f -l config -d 'Configuration file that names the admin socket' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand stop" -s s -l socket -d 'Admin socket, instead of the configuration\'s' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand stop" -l timeout -d 'Wait at most this many seconds for the outcome' -r
complete -c proxy -n "__fish_proxy_using_subcommand stop" -l graceful -d 'Let open connections finish first'
complete -c proxy -n "__fish_proxy_using_subcommand stop" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand self-signed" -l out -d 'File to make; one that exists is never replaced' -r -F
complete -c proxy -n "__fish_proxy_using_subcommand self-signed" -l name -d 'Host name or address it is for, repeatable; this machine\'s name, localhost, 127.0.0.1 and ::1 when absent' -r
complete -c proxy -n "__fish_proxy_using_subcommand self-signed" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand demo" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand measure" -s n -l requests -d 'Requests of each run' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -s c -l users -d 'Parallel users; several numbers make several runs' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l every -d 'Pause between two reloads, seconds' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l do -d 'What is done to the daemon meanwhile; all four when absent' -r -f -a "none\t'Nothing'
restart\t'Stop and start'
reload\t'Reload onto freshly bound sockets'
reload-socket\t'Reload with the sockets handed over'"
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l idle -d 'Connections that stay idle meanwhile, and must answer once more at the end' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l url -d 'Aim at a daemon that runs already (http or https)' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l reload-command -d 'How that daemon is reloaded: a command for sh' -r
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l keep-alive -d 'Keep connections: half the users GET, half POST, none ever retries'
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l resume -d 'Clients resume their TLS sessions, each its own'
complete -c proxy -n "__fish_proxy_using_subcommand measure" -l json -d 'JSON for machines'
complete -c proxy -n "__fish_proxy_using_subcommand measure" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c proxy -n "__fish_proxy_using_subcommand version" -l verbose -d 'Also what it is made of'
complete -c proxy -n "__fish_proxy_using_subcommand version" -l json -d 'For machines: which versions of what crosses in an upgrade it speaks'
complete -c proxy -n "__fish_proxy_using_subcommand version" -s h -l help -d 'Print help'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "run" -d 'Serve, in the foreground or as a daemon'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "check" -d 'Check the configuration and everything it names; change nothing'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "reload" -d 'Load the configuration anew; returns when the new generation serves'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "reload-socket" -d 'Reload with the listening sockets handed over: `reload --mode handover`'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "status" -d 'Show generations, listeners, connections and the last reload'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "server" -d 'Show servers, take them out of service, give them another weight'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "upgrade" -d 'Let the running daemon become the program that is installed now; same pid, nothing is closed'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "stop" -d 'Stop the daemon'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "self-signed" -d 'Make a self-signed certificate with its key, in one PEM'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "demo" -d 'Show it at work: three servers, TLS, statistics; no files, no root'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "measure" -d 'Measure what clients lose while the daemon is restarted or reloaded'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "version" -d 'Show the version'
complete -c proxy -n "__fish_proxy_using_subcommand help; and not __fish_seen_subcommand_from run check reload reload-socket status server upgrade stop self-signed demo measure version help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c proxy -n "__fish_proxy_using_subcommand help; and __fish_seen_subcommand_from server" -f -a "list" -d 'Show all servers with their state'
complete -c proxy -n "__fish_proxy_using_subcommand help; and __fish_seen_subcommand_from server" -f -a "set" -d 'Change a server\'s state or weight, until it is changed again: reloads, crashes and upgrades keep it'
