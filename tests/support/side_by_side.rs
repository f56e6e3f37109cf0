//! The same exchanges through this product and through HAProxy, and the access lines of both beside each other: every
//! field that neither measures time nor counts bytes of heads is the same, or the difference is named.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender};

use super::faulty::faulty;
use super::haproxy::Haproxy;
use super::origin::{Full, Origin};
use super::syslog::Syslog;
use super::{Port, Site};

/// One of the two: its lines, and the ports of its frontends.
pub struct Product {
    log: Syslog,
    ports: Vec<(&'static str, Port)>,
}

impl Product {
    fn new(frontends: &[&'static str]) -> Self {
        Self { log: Syslog::new(), ports: frontends.iter().map(|name| (*name, Port::new())).collect() }
    }

    pub fn at(&self, frontend: &str) -> SocketAddr {
        self.ports.iter().find(|(name, _)| *name == frontend).unwrap().1.address
    }

    /// A configuration in which names of frontends, and `log`, in pointed brackets stand for addresses.
    fn configured(&self, text: &str) -> String {
        let text = text.replace("<log>", &self.log.address().to_string());
        self.ports.iter().fold(text, |text, (name, port)| text.replace(&format!("<{name}>"), &port.address.to_string()))
    }
}

/// What a client does, told where; a connection it still has when its line is awaited.
pub type Visit = fn(&Product, &Sender<()>) -> Option<TcpStream>;

/// Lines that differ: the scene, ours, HAProxy's (more than one where it depends on what it notices first), and why that
/// is left so. No line is an empty one.
pub type Difference = (&'static str, &'static str, &'static [&'static str], &'static str);

/// What clients do, one after the other, each of which leaves one line.
pub struct Play {
    pub frontends: &'static [&'static str],
    pub scenes: &'static [(&'static str, Visit)],
    pub differences: &'static [Difference],
}

impl Play {
    /// Through both, with their configurations; `go` is for scenes that tell a server to go on.
    pub fn must_leave_the_same_lines(&self, [ours, theirs]: [String; 2], go: &Sender<()>) {
        let [our, their] = [Product::new(self.frontends), Product::new(self.frontends)];
        let site = Site::new(&our.configured(&format!("{}{ours}", our.log.section())));
        let _daemon = site.start();
        let listens = (their.at(self.frontends[0]), || true);
        let _haproxy = Haproxy::start(site.folder.path(), &their.configured(&theirs), &[], listens);
        let mut wrong = Vec::new();
        for (name, visit) in self.scenes {
            let known = self.differences.iter().find(|known| known.0 == *name);
            let line = |product: &Product, silent: bool| match silent {
                true => self.silence(product, *visit, go),
                false => line(product, *visit, go),
            };
            let our = line(&our, known.is_some_and(|known| known.1.is_empty()));
            let their = line(&their, known.is_some_and(|known| known.2 == [""]));
            let right = match known {
                Some(known) => known.1 == our && known.2.contains(&their.as_str()),
                None => our == their,
            };
            if !right {
                wrong.push(format!("{name}\n  ours   {our}\n  theirs {their}"));
            }
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }

    /// Nothing, if a visit leaves no line: the next one is then that of the first scene, which is played once more.
    fn silence(&self, product: &Product, visit: Visit, go: &Sender<()>) -> String {
        let first = self.scenes[0].1;
        let usual = line(product, first, go);
        drop(visit(product, go));
        let next = line(product, first, go);
        if next == usual { String::new() } else { next }
    }
}

/// Why lines differ whatever the protocol.
pub const NO_STATUS: &str = "-1 is what its manual writes where no answer has begun; an interim one is none";
pub const REQUEST_WAS_THERE: &str = "the request was there, however briefly it took";
pub const CLIENT_STOPPED: &str = "the client is to blame, and HAProxy has the server wait for it";

/// What a visit leaves in the log.
fn line(product: &Product, visit: Visit, go: &Sender<()>) -> String {
    let held = visit(product, go);
    let line = essence(&product.log.line());
    drop(held);
    line
}

/// The servers of HTTP that both have behind them.
pub struct WebServers {
    web: Origin,
    dead: Port,
    deaf: Full,
}

impl WebServers {
    pub const FRONTENDS: &[&str] = &["web", "moved", "lost"];

    /// `go` lets the server go on where it has to wait until the client has seen something.
    pub fn new(go: Receiver<()>) -> Self {
        Self { web: faulty(go), dead: Port::new(), deaf: Full::new() }
    }

    /// Ours and HAProxy's, for clients of a protocol.
    pub fn configurations(&self, protocol: &str) -> [String; 2] {
        let (web, dead, deaf) = (self.web.address, self.dead.address, self.deaf.address);
        let ours = format!(
            r#"[global]
threads = 1
[defaults]
retries = 1
timeout = {{ connect = "200ms", server = "800ms", client = "400ms", http-request = "600ms", http-keep-alive = "600ms", tunnel = "400ms" }}
[frontend.web]
bind = "<web>"
proto = "{protocol}"
route = [
  {{ when = {{ path-prefix = "/dead/" }}, backend = "dead" }},
  {{ when = {{ path-prefix = "/deaf/" }}, backend = "deaf" }},
]
backend = "pool"
[frontend.moved]
bind = "<moved>"
proto = "{protocol}"
rule = [{{ redirect = {{ scheme = "https" }} }}]
[frontend.lost]
bind = "<lost>"
proto = "{protocol}"
route = [{{ when = {{ path = "/never" }}, backend = "pool" }}]
[backend.pool]
server = [{{ name = "s1", address = "{web}" }}]
[backend.dead]
server = [{{ name = "s1", address = "{dead}" }}]
[backend.deaf]
server = [{{ name = "s1", address = "{deaf}" }}]
"#
        );
        let theirs = format!(
            "global\n  log <log> local0\n  nbthread 1\n\
         defaults\n  log global\n  mode http\n  option httplog\n  option dontlognull\n  retries 1\n  option redispatch\n  \
         timeout connect 200ms\n  timeout server 800ms\n  timeout client 400ms\n  timeout http-request 600ms\n  \
         timeout http-keep-alive 600ms\n  timeout tunnel 400ms\n\
         frontend web\n  bind <web> proto {protocol}\n  use_backend dead if {{ path_beg /dead/ }}\n  use_backend deaf if {{ path_beg /deaf/ }}\n  \
         default_backend pool\n\
         frontend moved\n  bind <moved> proto {protocol}\n  http-request redirect scheme https\n\
         frontend lost\n  bind <lost> proto {protocol}\n  use_backend pool if {{ path /never }}\n\
         backend pool\n  server s1 {web}\nbackend dead\n  server s1 {dead}\nbackend deaf\n  server s1 {deaf}\n"
        );
        [ours, theirs]
    }
}

/// Of a line, what must be the same: times as whether they were measured, bytes as whether there were any.
fn essence(line: &str) -> String {
    let mut words = line.trim_end().split(' ').skip(2);
    let (frontend, server, times) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let times: Vec<_> = times.split('/').map(|time| if time == "-1" { "-1" } else { "n" }).collect();
    let mut rest: Vec<_> = words.map(str::to_owned).collect();
    let (place, most) = if times.len() == 5 { (1, 0) } else { (0, 1000) };
    if rest[place].parse::<u64>().unwrap() > most {
        rest[place] = String::from("n");
    }
    // How many others are there depends on when the end of the one before is noticed; where a frontend has a crowd, it
    // has had nobody before.
    let counts = rest.iter_mut().find(|word| word.matches('/').count() == 4).unwrap();
    let (hidden, kept) = if frontend == "crowd" { ("n", 2) } else { ("n/n", 3) };
    *counts = format!("{hidden}/{}", counts.splitn(kept, '/').last().unwrap());
    format!("{frontend} {server} {} {}", times.join("/"), rest.join(" "))
}
