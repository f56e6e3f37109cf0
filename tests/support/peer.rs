//! Programs that other people wrote, in the place of clients and servers.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, Port, output};

const NGINX: &str = "/usr/sbin/nginx";

/// A script of `tests/peers`.
pub fn peer(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(file)
}

/// The interpreter that knows a module: a virtual environment under `target/`, or the system's.
pub fn python(module: &str) -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/python");
    let name = if own.exists() { own.display().to_string() } else { String::from("python3") };
    let mut command = Command::new(&name);
    command.args(["-c", &format!("import {module}")]);
    assert!(
        output(command).status.success(),
        "python3 -m venv target/peers && target/peers/bin/pip install websockets grpcio"
    );
    name
}

/// Somebody else's program; killed when dropped.
pub struct Peer(pub Child);

impl Peer {
    /// Starts a server that says its port.
    pub fn server(command: &mut Command) -> (Self, SocketAddr) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap_or_else(|_| panic!("no port but {line:?}"));
        (Self(child), SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Starts a server that was told its address.
    pub fn listening(command: &mut Command, address: SocketAddr) -> Self {
        let mut running = Self(command.stdin(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(running.0.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(Instant::now() < deadline, "{command:?} does not serve");
        }
        running
    }

    pub fn pid(&self) -> Pid {
        super::pid(self.0.id())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// nginx with these options of `listen`, and these locations or other directives of its server.
pub fn nginx(folder: &Path, options: &str, locations: &str) -> (Peer, SocketAddr) {
    assert!(Path::new(NGINX).exists(), "{NGINX} is not installed, and this test is about it");
    // Its workers are somebody else.
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let port = Port::new();
    let (file, dir) = (folder.join("nginx.conf"), folder.display());
    let text = format!(
        "daemon off; master_process on; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\n\
         events {{}}\nhttp {{ access_log off; client_body_temp_path {dir}; proxy_temp_path {dir};\n\
         fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};\n\
         server {{ listen {} {options}; root {dir}; keepalive_requests 5; {locations} }} }}\n",
        port.address
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new(NGINX);
    command.arg("-c").arg(&file).stderr(Stdio::null());
    (Peer::listening(&mut command, port.address), port.address)
}
