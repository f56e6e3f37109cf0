//! What process-level tests share: real daemons, kernel-chosen ports, scripted origin servers.
//! Everything waits for an event with a deadline; nothing sleeps.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod authority;
pub mod client;
pub mod faulty;
pub mod h2;
pub mod haproxy;
pub mod kernel;
pub mod load;
pub mod origin;
pub mod peer;
pub mod program;
pub mod side_by_side;
pub mod supervisor;
pub mod syslog;
pub mod tls;
pub mod visitor;

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test.
pub const PROXY: &str = env!("CARGO_BIN_EXE_proxy");

/// A port that the kernel chose and that nobody else gets while this is alive: it is bound, not
/// listened on, so that the daemon can still have it.
pub struct Port {
    pub address: SocketAddr,
    held: Socket,
}

impl Port {
    pub fn new() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        held.set_reuse_address(true).unwrap();
        held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = held.local_addr().unwrap().as_socket().unwrap();
        Self { address, held }
    }

    /// Begins to listen: a server that was down is up.
    pub fn listen(self) -> TcpListener {
        self.held.listen(16).unwrap();
        self.held.into()
    }
}

/// A folder with a configuration, and the ports it uses.
pub struct Site {
    pub folder: TempDir,
    pub port: Port,
}

impl Site {
    /// A site whose file is `text` after these replacements: `{dir}` the folder, `{port}` its main
    /// address; an `[admin]` section is put in front.
    pub fn new(text: &str) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap(), port: Port::new() };
        site.configure(text);
        site
    }

    /// One frontend in front of these servers; `extra` is appended at the end.
    pub fn proxying(servers: &[SocketAddr], extra: &str) -> Self {
        Self::new(&Self::text(servers, extra))
    }

    pub fn text(servers: &[SocketAddr], extra: &str) -> String {
        let list: Vec<_> = servers
            .iter()
            .enumerate()
            .map(|(number, at)| format!("  {{ name = \"s{}\", address = \"{at}\" }},\n", number + 1))
            .collect();
        format!(
            "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n\n[backend.pool]\nserver = [\n{}]\n{extra}\n",
            list.concat()
        )
    }

    /// Replaces the configuration.
    pub fn configure(&self, text: &str) {
        let dir = self.folder.path().display().to_string();
        let admin = "config-version = 1\n[admin]\nsocket = \"{dir}/admin.sock\"\nmode = \"0600\"\n\n";
        let whole = format!("{admin}{text}").replace("{dir}", &dir).replace("{port}", &self.address().to_string());
        fs::write(self.config(), whole).unwrap();
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address
    }

    pub fn config(&self) -> PathBuf {
        self.path("proxy.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("admin.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `proxy COMMAND… -f CONFIG` to its end.
    pub fn proxy(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROXY);
        command.args(arguments).arg("-f").arg(self.config());
        output(command)
    }

    /// The JSON of `proxy status --json`.
    pub fn status(&self) -> serde_json::Value {
        let output = self.proxy(&["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the status satisfies something; returns that status.
    pub fn await_status(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "never happened: {what}; last status {status:#}");
        }
    }

    /// Starts the daemon; returns when it serves.
    pub fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        self.launch(arguments, &[]).unwrap_or_else(|said| panic!("the daemon did not start: {said}"))
    }

    /// Starts the daemon with an environment; `Err` is what it said when it did not serve.
    pub fn launch(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Daemon, String> {
        let mut command = Command::new(PROXY);
        command.arg("run").arg("-f").arg(self.config()).args(arguments).envs(environment.iter().copied());
        self.launch_command(command)
    }

    /// Starts the daemon with [`Site::fault`] in force.
    pub fn start_faulty(&self) -> Daemon {
        let file = self.path("fault");
        self.launch(&[], &[("PROXY_FAULT", &file.to_string_lossy())]).unwrap()
    }

    /// What goes wrong next, and at which step: `STEP FAULT` as in `src/handoff/fault.rs`.
    pub fn fault(&self, what: &str) {
        // Renamed into place: half a name would be another step's.
        fs::write(self.path("fault.draft"), what).unwrap();
        fs::rename(self.path("fault.draft"), self.path("fault")).unwrap();
    }

    /// Waits until a new worker obeys [`Site::fault`]; returns its pid.
    pub fn await_fault(&self, daemon: &Daemon, known: &[u32]) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        while self.path("fault").exists() {
            assert!(Instant::now() < deadline, "no new worker was started");
            std::thread::yield_now();
        }
        children(daemon.pid()).into_iter().find(|child| !known.contains(child)).unwrap()
    }

    /// Starts the daemon by any command that ends up as it; `Err` is what it said when it did not serve.
    pub fn launch_command(&self, command: Command) -> Result<Daemon, String> {
        let (daemon, readiness) = self.begin(command);
        daemon.until_ready(&readiness)
    }

    /// Starts the daemon with an environment; returns the socket by which it tells systemd, where nothing is read yet.
    pub fn launch_heard(&self, environment: &[(&str, &str)]) -> (Daemon, UnixDatagram) {
        let mut command = Command::new(PROXY);
        command.arg("run").arg("-f").arg(self.config()).envs(environment.iter().copied());
        self.begin(command)
    }

    fn begin(&self, mut command: Command) -> (Daemon, UnixDatagram) {
        let notify = self.folder.path().join(format!("notify.{}", fs::read_dir(self.folder.path()).unwrap().count()));
        let readiness = UnixDatagram::bind(&notify).unwrap();
        // A daemon of another user tells it too.
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666)).unwrap();
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, said) = mpsc::channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        (Daemon { child, said }, readiness)
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    /// Lines of its stderr.
    pub said: mpsc::Receiver<String>,
}

impl Daemon {
    fn until_ready(mut self, readiness: &UnixDatagram) -> Result<Self, String> {
        readiness.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 512];
        while Instant::now() < deadline {
            if let Ok(length) = readiness.recv(&mut buffer)
                && text(&buffer[..length]).lines().any(|line| line == "READY=1")
            {
                return Ok(self);
            }
            if self.child.try_wait().unwrap().is_some() {
                let last: Vec<String> = self.said.iter().collect();
                return Err(last.join("\n"));
            }
        }
        Err(String::from("it never said that it is ready"))
    }

    /// Lines of its stderr up to one with this text, which is the last.
    pub fn heard_up_to(&self, part: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        while let Ok(line) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            lines.push(line);
            if lines.last().is_some_and(|line| line.contains(part)) {
                return lines;
            }
        }
        panic!("never said: {part}; but {lines:?}");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(pid(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::yield_now();
        }
    }

    /// Waits for a line on its stderr.
    pub fn hear(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(part) {
                return line;
            }
        }
        panic!("never said: {part}");
    }
}

impl Drop for Daemon {
    /// SIGTERM first: a master that is killed lets its workers drain, which may take long.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill(pid(self.pid()), Signal::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                std::thread::yield_now();
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a watcher, also when the test fails before.
pub struct End<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A process id as nix wants it.
pub fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap())
}

/// Generation of the serving worker according to a status.
pub fn generation(status: &serde_json::Value) -> u64 {
    let generations = status["generations"].as_array().unwrap();
    let worker = generations.iter().find(|worker| worker["state"] == "serving").unwrap();
    worker["generation"].as_u64().unwrap()
}

/// Pid of the serving worker according to a status.
pub fn serving(status: &serde_json::Value) -> u32 {
    let generations = status["generations"].as_array().unwrap();
    let worker = generations.iter().find(|worker| worker["state"] == "serving").unwrap();
    u32::try_from(worker["pid"].as_u64().unwrap()).unwrap()
}

/// Whether a process has ended; one that nobody has waited for yet has, too.
pub fn has_ended(number: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Waits until a process that is no child of ours has ended.
pub fn await_end(number: u32) {
    let deadline = Instant::now() + PATIENCE;
    while !has_ended(number) {
        assert!(Instant::now() < deadline, "process {number} does not end");
        std::thread::yield_now();
    }
}

/// Puts a file in place as careful programs do.
pub fn put(site: &Site, file: &str, content: &str) {
    let draft = site.path(&format!(".{file}.draft"));
    fs::write(&draft, content).unwrap();
    fs::rename(draft, site.path(file)).unwrap();
}

/// Waits for something that no process tells.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

/// Breaks a connection off: its other side sees a reset and no end.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Whether nobody listens on an address.
pub fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Waits until nobody listens on an address.
pub fn await_refusal(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while !refuses(address) {
        assert!(Instant::now() < deadline, "somebody still listens on {address}");
        std::thread::yield_now();
    }
}

/// Living children of a process.
pub fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    all.filter(|number| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let parent_field = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent_field == Some(parent) && !has_ended(*number)
    })
    .collect()
}

/// Runs a command until it has ended and nobody holds its output any more; fails after [`PATIENCE`].
pub fn output(mut command: Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = reading(child.stdout.take().unwrap());
    let stderr = reading(child.stderr.take().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let mut read = |from: mpsc::Receiver<Vec<u8>>| {
        from.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_else(|_late| {
            let _ = child.kill();
            panic!("{command:?} or a process it started still holds its output")
        })
    };
    let (stdout, stderr) = (read(stdout), read(stderr));
    Output { status: child.wait().unwrap(), stdout, stderr }
}

fn reading(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        // Who waited too long is gone.
        let _ = sender.send(bytes);
    });
    receiver
}

/// A number in the statistics' CSV: of the row that begins so, in the column of that name.
pub fn counted(csv: &str, row: &str, column: &str) -> u64 {
    let mut lines = csv.lines();
    let place = lines.next().unwrap().split(',').position(|name| name == column).unwrap();
    let row = lines.find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("no {row}: {csv}"));
    row.split(',').nth(place).unwrap().parse().unwrap()
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code of a finished command.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Writes a self-signed certificate with its key; returns its path.
pub fn certificate(folder: &Path, file: &str, names: &[&str]) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    let path = folder.join(file);
    fs::write(&path, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    path
}
