//! Log lines as a syslog daemon receives them: prefix, formats, levels, and what no client can make of them.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use support::client::{Client, get};
use support::origin::Origin;
use support::{PATIENCE, Site, code, pid, serving};

/// The format of HAProxy's own documentation, spelled out.
const ARTICLE: &str =
    "%ci:%cp [%t] %ft %b/%s %Tq/%Tw/%Tc/%Tr/%Tt %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs %{+Q}r";

/// A syslog daemon.
enum Receiver {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Receiver {
    fn udp() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::Udp(socket)
    }

    fn unix(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::Unix(socket)
    }

    fn target(&self) -> String {
        match self {
            Self::Udp(socket) => format!("syslog+udp:{}", socket.local_addr().unwrap()),
            Self::Unix(socket) => format!("syslog:{}", socket.local_addr().unwrap().as_pathname().unwrap().display()),
        }
    }

    /// The next datagram.
    fn line(&self) -> String {
        let mut buffer = [0; 65_536];
        let received = match self {
            Self::Udp(socket) => socket.recv(&mut buffer),
            Self::Unix(socket) => socket.recv(&mut buffer),
        };
        let length = received.unwrap_or_else(|error| panic!("no log line: {error}"));
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next datagram that contains something.
    fn line_with(&self, part: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(part) {
                return line;
            }
        }
    }
}

/// A `[[log]]` section.
fn log(receiver: &Receiver, more: &str) -> String {
    format!("[[log]]\ntarget = \"{}\"\n{more}\n", receiver.target())
}

/// Cuts `<150>Nov  3 09:08:07 tag[42]: message` apart; panics where it is not that.
fn parsed(line: &str) -> (u32, String, u32, &str) {
    let (priority, rest) = line.strip_prefix('<').unwrap().split_once('>').unwrap();
    let (date, rest) = rest.split_at(15);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    assert!(months.contains(&&date[..3]), "{line}");
    let shape: String = date[3..].chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert!(shape == " 99 99:99:99" || shape == "  9 99:99:99", "{line}");
    let (head, message) = rest.split_once("]: ").unwrap();
    let (tag, pid) = head.strip_prefix(' ').unwrap().split_once('[').unwrap();
    (priority.parse().unwrap(), tag.to_owned(), pid.parse().unwrap(), message)
}

fn message(line: &str) -> &str {
    parsed(line).3
}

/// The local address of a client, as the proxy sees it.
fn address(client: &Client) -> SocketAddr {
    client.reader.get_ref().local_addr().unwrap()
}

#[test]
fn the_prefix_is_rfc_3164_with_facility_severity_tag_and_pid() {
    let origin = Origin::echo();
    let (udp, unix_folder) = (Receiver::udp(), tempfile::tempdir().unwrap());
    let unix = Receiver::unix(&unix_folder.path().join("log"));
    let extra = log(&udp, "facility = \"local2\"") + &log(&unix, "facility = \"daemon\"\ntag = \"edge\"");
    let site = Site::proxying(&[origin.address], &extra);
    let daemon = site.start();
    get(site.address(), "/prefix");
    for (receiver, facility, tag) in [(udp, 18, "proxy"), (unix, 3, "edge")] {
        let event = receiver.line_with(" serves, pid ");
        let (priority, name, from, _) = parsed(&event);
        assert_eq!((priority, name.as_str(), from), (facility * 8 + 5, tag, daemon.pid()), "{event}");
        let access = receiver.line_with("/prefix");
        let (priority, name, from, _) = parsed(&access);
        assert_eq!((priority, name.as_str(), from), (facility * 8 + 6, tag, serving(&site.status())), "{access}");
    }
}

/// Checks a line of the format `httplog` about a request on a connection that is the only one.
fn check_httplog(message: &str, client: SocketAddr, request: &str) {
    let (front, rest) = message.split_once(" [").unwrap();
    assert_eq!(front, client.to_string());
    let (date, rest) = rest.split_once("] ").unwrap();
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert!(shape.starts_with("99/") && shape.ends_with("/9999:99:99:99.999"), "{date}");
    let fields: Vec<_> = rest.splitn(10, ' ').collect();
    assert_eq!(fields[..2], ["web", "pool/s1"], "{message}");
    let times: Vec<i64> = fields[2].split('/').map(|time| time.parse().unwrap()).collect();
    assert!(times.len() == 5 && times.iter().all(|time| (0..20_000).contains(time)), "{message}");
    assert!(times[4] >= times[..4].iter().sum::<i64>() - 1, "the parts are no longer than the whole: {message}");
    assert_eq!(fields[3], "200", "{message}");
    assert!(fields[4].parse::<u32>().unwrap() > 40, "bytes with the head: {message}");
    assert_eq!(fields[5..8], ["-", "-", "----"], "{message}");
    let counts: Vec<u32> = fields[8].split('/').map(|count| count.parse().unwrap()).collect();
    assert_eq!((counts.len(), counts[0], counts[1], counts[4]), (5, 1, 1, 0), "{message}");
    // Nothing is captured, and as in HAProxy there is one blank where `%hr %hs` would be.
    assert_eq!(fields[9], format!("0/0 \"{request}\""), "{message}");
}

#[test]
fn haproxys_formats_are_written_field_by_field() {
    let origin = Origin::echo();
    let (usual, spelled, machine) = (Receiver::udp(), Receiver::udp(), Receiver::udp());
    let extra = log(&usual, "only = \"access\"")
        + &log(&spelled, &format!("only = \"access\"\naccess-format = '{ARTICLE}'"))
        + &log(&machine, "only = \"access\"\naccess-format = \"json\"");
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let size = client.get("/path?q=1").body.len();
    let request = "GET /path?q=1 HTTP/1.1";
    check_httplog(message(&usual.line()), address(&client), request);
    check_httplog(message(&spelled.line()), address(&client), request);
    let line = machine.line();
    let object: serde_json::Value = serde_json::from_str(message(&line)).unwrap();
    assert_eq!(
        (&object["request"], &object["method"], &object["status"]),
        (&request.into(), &"GET".into(), &200.into())
    );
    assert_eq!((&object["frontend"], &object["server"]), (&"web".into(), &"s1".into()));
    assert_eq!(object["client_port"], address(&client).port());
    assert!(object["bytes_out"].as_u64().unwrap() > size as u64);
    assert_eq!(object["bytes_in"], "GET /path?q=1 HTTP/1.1\r\nHost: test\r\n\r\n".len());
}

#[test]
fn a_level_keeps_out_what_is_less_urgent() {
    let origin = Origin::echo();
    let (alerts, notices) = (Receiver::udp(), Receiver::udp());
    let extra = log(&alerts, "level = \"err\"") + &log(&notices, "level = \"notice\"");
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/quiet").status(), 200);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    kill(pid(serving(&site.status())), Signal::SIGKILL).unwrap();
    // The first line of each is the first that is urgent enough.
    let alert = alerts.line();
    assert!(parsed(&alert).0 == 16 * 8 + 1 && alert.contains(" died: "), "{alert}");
    assert!(notices.line().contains(" serves, pid "));
    assert!(notices.line().contains("reload: generation 2 serves"));
}

#[test]
fn a_target_gets_only_what_it_wants() {
    let origin = Origin::echo();
    let (access, events) = (Receiver::udp(), Receiver::udp());
    let extra = log(&access, "only = \"access\"") + &log(&events, "only = [\"event\"]");
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/one").status(), 200);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert!(access.line().contains("GET /one "));
    assert!(events.line().contains(" serves, pid "));
    assert!(events.line().contains("reload: generation 2 serves"));
}

#[test]
fn no_request_can_forge_a_line() {
    let origin = Origin::echo();
    let (plain, json) = (Receiver::udp(), Receiver::udp());
    let extra = log(&plain, "only = \"access\"") + &log(&json, "only = \"access\"\naccess-format = \"json\"");
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    let attacks: [(&[u8], u16); 7] = [
        (b"GET /a\"forged\" HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET /a\\\"b HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET /%0d%0a<134>forged HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET /a\r<134>forged HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET /a\x1b[2Jb\x07 HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET /a\x00b\x7f\xc2\x9bc HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"G\nET / HTTP/1.1\r\nHost: t\r\n\r\n", 400),
    ];
    for (bytes, expected) in attacks {
        let mut client = Client::connect(site.address());
        client.send(bytes);
        assert_eq!(client.response().unwrap().status(), expected, "{}", bytes.escape_ascii());
        let line = plain.line();
        let shown = message(&line);
        assert!(shown.starts_with(&format!("{} [", address(&client))), "{line}");
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", line.escape_debug());
        assert_eq!(shown.matches('"').count(), 2, "only the quotes of the format: {line}");
        assert!(shown.ends_with('"') && shown.contains(&format!(" {expected} ")), "{line}");
        let line = json.line();
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", line.escape_debug());
        let object: serde_json::Value = serde_json::from_str(message(&line)).unwrap();
        assert_eq!(object["status"], expected, "{line}");
    }
}

/// Stops a receiver and lets another take its place; what was logged in between arrives.
fn restart_receiver(site: &Site, path: &Path, receiver: Receiver) {
    assert_eq!(get(site.address(), "/before").status(), 200);
    receiver.line_with("GET /before ");
    drop(receiver);
    fs::remove_file(path).unwrap();
    assert_eq!(get(site.address(), "/between").status(), 200);
    let receiver = Receiver::unix(path);
    receiver.line_with("GET /between ");
    assert_eq!(get(site.address(), "/after").status(), 200);
    receiver.line_with("GET /after ");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    receiver.line_with("reload: generation 2 serves");
    assert_eq!(get(site.address(), "/reloaded").status(), 200);
    receiver.line_with("GET /reloaded ");
}

#[test]
fn lines_arrive_again_after_the_log_daemon_was_restarted() {
    let origin = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let receiver = Receiver::unix(&path);
    let site = Site::proxying(&[origin.address], &log(&receiver, ""));
    let _daemon = site.start();
    restart_receiver(&site, &path, receiver);
}

#[test]
fn a_worker_in_a_chroot_reaches_the_restarted_log_daemon_too() {
    if !geteuid().is_root() {
        return;
    }
    let origin = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let receiver = Receiver::unix(&path);
    let jail = tempfile::tempdir().unwrap();
    let global = format!("[global]\nuser = \"nobody\"\nchroot = \"{}\"\n", jail.path().display());
    let site = Site::proxying(&[origin.address], &(log(&receiver, "") + &global));
    let _daemon = site.start();
    restart_receiver(&site, &path, receiver);
}

#[test]
fn a_log_daemon_that_comes_later_is_found() {
    let origin = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let section = format!("[[log]]\ntarget = \"syslog:{}\"\n", path.display());
    let site = Site::proxying(&[origin.address], &section);
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/early").status(), 200);
    let receiver = Receiver::unix(&path);
    receiver.line_with("GET /early ");
}

#[test]
fn a_log_daemon_that_never_reads_delays_nobody_and_what_is_lost_is_counted() {
    let origin = Origin::echo();
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::unix(&folder.path().join("log"));
    let other = Receiver::udp();
    let extra = log(&receiver, "") + &log(&other, "only = \"event\"");
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    // More than the socket and everything behind it hold.
    for _ in 0..2500 {
        assert_eq!(client.get("/").status(), 200);
    }
    site.await_status("losses are counted", |status| status["log_lines_dropped"].as_u64().unwrap() > 1000);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0, "the master does not wait for it either");
    other.line_with("reload: generation 2 serves");
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn lines_that_no_udp_receiver_takes_are_counted() {
    let origin = Origin::named("one");
    let receiver = Receiver::udp();
    let site = Site::proxying(&[origin.address], &log(&receiver, "only = [\"access\"]"));
    let _daemon = site.start();
    let Receiver::Udp(socket) = receiver else { panic!() };
    let address = socket.local_addr().unwrap();
    drop(socket);
    for _ in 0..20 {
        get(site.address(), "/");
    }
    // The refusal of the last one is seen by the one after it.
    site.await_status("losses are counted", |status| status["log_lines_dropped"].as_u64().unwrap() >= 19);
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let before = site.status()["log_lines_dropped"].as_u64().unwrap();
    for _ in 0..5 {
        get(site.address(), "/back");
    }
    let receiver = Receiver::Udp(socket);
    for _ in 0..5 {
        receiver.line_with("/back");
    }
    assert!(site.status()["log_lines_dropped"].as_u64().unwrap() <= before + 1);
}

#[test]
fn a_worker_that_ends_writes_its_last_lines() {
    let origin = Origin::echo();
    let receiver = Receiver::udp();
    let site = Site::proxying(&[origin.address], &log(&receiver, "only = \"access\""));
    let daemon = site.start();
    let mut client = Client::connect(site.address());
    for number in 0..100 {
        assert_eq!(client.get(&format!("/{number}/")).status(), 200);
    }
    drop(daemon);
    for number in 0..100 {
        let line = receiver.line();
        assert!(line.contains(&format!("GET /{number}/ ")), "{line}");
    }
}
