//! The three products: what each is configured with, started by and stopped by.
//! Used by `main`. Never changes a product's defaults but where the comment says why.

use std::error::Error;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};

use super::origin::Sink;
use super::works::idle_count;

/// Where Debian keeps nginx's TCP mode.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// How long a product may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Product {
    Proxy,
    Haproxy,
    Nginx,
}

impl Product {
    pub(crate) const ALL: [Self; 3] = [Self::Proxy, Self::Haproxy, Self::Nginx];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

/// What a work is done through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Plain,
    /// TLS with a P-256 certificate.
    P256,
    /// TLS with an RSA-2048 certificate.
    Rsa,
    /// The server's bytes as they are.
    Tcp,
}

/// Where a product listens, by [`Door`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doors([SocketAddr; 4]);

impl Doors {
    fn free() -> io::Result<Self> {
        let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); 4];
        for (address, listener) in addresses.iter_mut().zip(held) {
            *address = listener?.local_addr()?;
        }
        Ok(Self(addresses))
    }

    pub(crate) fn address(&self, door: Door) -> SocketAddr {
        self.0[door as usize]
    }
}

/// A folder with certificates, and the program under test.
pub(crate) struct Site {
    folder: PathBuf,
    program: PathBuf,
    origin: SocketAddr,
}

impl Site {
    /// Makes the certificates.
    pub(crate) fn new(folder: &Path, program: &Path, origin: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        for (name, key) in [("rsa", rsa), ("p256", p256)] {
            let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
            fs::write(folder.join(format!("{name}.pem")), certificate.pem() + &key.serialize_pem())?;
        }
        Ok(Self { folder: folder.to_owned(), program: program.to_owned(), origin })
    }

    fn command(&self, product: Product, doors: &Doors, sink: SocketAddr) -> io::Result<Command> {
        let file = self.folder.join(product.name());
        let text = match product {
            Product::Proxy => self.proxy(doors, sink),
            Product::Haproxy => self.haproxy(doors, sink),
            Product::Nginx => self.nginx(doors, sink),
        };
        fs::write(&file, text)?;
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]);
        match product {
            Product::Proxy => command.arg(&self.program).args(["run", "-q", "-f"]).arg(file),
            Product::Haproxy => command.args(["haproxy", "-db", "-f"]).arg(file),
            Product::Nginx => command.args(["nginx", "-c"]).arg(file),
        };
        Ok(command)
    }

    fn proxy(&self, doors: &Doors, sink: SocketAddr) -> String {
        let (folder, origin, maxconn) = (self.folder.display(), self.origin, idle_count());
        let [plain, p256, rsa, tcp] = doors.0;
        format!(
            r#"config-version = 1
[global]
maxconn = {maxconn}
strict-limits = false
threads = 1
[admin]
socket = "{folder}/proxy.sock"
[[log]]
target = "syslog+udp:{sink}"
facility = "local0"
[defaults]
connection-mode = "keep-alive"
[defaults.timeout]
http-keep-alive = "5m"
[frontend.plain]
bind = "{plain}"
backend = "pool"
[frontend.p256]
bind = "{p256}"
backend = "pool"
tls.certificates = ["{folder}/p256.pem"]
[frontend.rsa]
bind = "{rsa}"
backend = "pool"
tls.certificates = ["{folder}/rsa.pem"]
[frontend.tcp]
mode = "tcp"
bind = "{tcp}"
backend = "tcp-pool"
[backend.pool]
servers = ["{origin}"]
[backend.tcp-pool]
mode = "tcp"
servers = ["{origin}"]
"#
        )
    }

    /// `http-reuse always`: as the other two, an idle connection to a server serves whoever comes next.
    /// `splice-auto` in TCP mode: what the others may do with the kernel's help, HAProxy may too.
    fn haproxy(&self, doors: &Doors, sink: SocketAddr) -> String {
        let (folder, origin, maxconn) = (self.folder.display(), self.origin, idle_count());
        let [plain, p256, rsa, tcp] = doors.0;
        format!(
            r"global
  maxconn {maxconn}
  no strict-limits
  nbthread 1
  maxpipes 100
  log {sink} local0
defaults
  mode http
  log global
  option httplog
  http-reuse always
  timeout connect 5s
  timeout client 5m
  timeout server 5m
frontend plain
  bind {plain}
  default_backend pool
frontend p256
  bind {p256} ssl crt {folder}/p256.pem alpn h2,http/1.1
  default_backend pool
frontend rsa
  bind {rsa} ssl crt {folder}/rsa.pem
  default_backend pool
frontend tcp
  mode tcp
  option tcplog
  option splice-auto
  bind {tcp}
  default_backend tcp-pool
backend pool
  option forwardfor
  server s1 {origin}
backend tcp-pool
  mode tcp
  option splice-auto
  server s1 {origin}
"
        )
    }

    /// Bodies stay off its disk, where the other two never put them.
    fn nginx(&self, doors: &Doors, sink: SocketAddr) -> String {
        let (folder, origin) = (self.folder.display(), self.origin);
        let [plain, p256, rsa, tcp] = doors.0;
        let connections = 2 * idle_count();
        let (module, stream) = if Path::new(STREAM_MODULE).exists() {
            let stream = format!(
                "stream {{ log_format tcp '$remote_addr pool/s1 $bytes_sent'; \
                 access_log syslog:server={sink} tcp; server {{ listen {tcp}; proxy_pass {origin}; }} }}"
            );
            (format!("load_module {STREAM_MODULE};"), stream)
        } else {
            (String::new(), String::new())
        };
        format!(
            r#"{module}
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections {connections}; }}
http {{
  access_log syslog:server={sink},facility=local0;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  proxy_max_temp_file_size 0;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  ssl_protocols TLSv1.2 TLSv1.3;
  upstream pool {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }}
  proxy_http_version 1.1;
  proxy_request_buffering off;
  proxy_set_header Connection "";
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  server {{
    listen {plain};
    location / {{ proxy_pass http://pool; }}
  }}
  server {{
    listen {p256} ssl http2;
    ssl_certificate {folder}/p256.pem; ssl_certificate_key {folder}/p256.pem;
    location / {{ proxy_pass http://pool; }}
  }}
  server {{
    listen {rsa} ssl;
    ssl_certificate {folder}/rsa.pem; ssl_certificate_key {folder}/rsa.pem;
    location / {{ proxy_pass http://pool; }}
  }}
}}
{stream}
"#
        )
    }

    /// Whether the product can do that at all.
    pub(crate) fn offers(product: Product, door: Door) -> bool {
        product != Product::Nginx || door != Door::Tcp || Path::new(STREAM_MODULE).exists()
    }

    /// Starts a product and waits until it listens everywhere.
    pub(crate) fn start(&self, product: Product) -> Result<Running, Box<dyn Error>> {
        let (doors, sink) = (Doors::free()?, Sink::start()?);
        let mut command = self.command(product, &doors, sink.address)?;
        let errors = fs::File::create(self.folder.join(format!("{}.err", product.name())))?;
        let child = command.stdout(Stdio::null()).stderr(errors).spawn()?;
        let mut running = Running { product, doors, sink, child };
        let end = Instant::now() + PATIENCE;
        for door in [Door::Plain, Door::P256, Door::Rsa, Door::Tcp] {
            while Self::offers(product, door) && TcpStream::connect(doors.address(door)).is_err() {
                if Instant::now() > end || running.child.try_wait()?.is_some() {
                    let said = fs::read_to_string(self.folder.join(format!("{}.err", product.name())))?;
                    return Err(format!("{} does not start: {said}", product.name()).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(running)
    }
}

/// A product that runs.
pub(crate) struct Running {
    pub(crate) product: Product,
    pub(crate) doors: Doors,
    pub(crate) sink: Sink,
    child: Child,
}

impl Running {
    /// The process everything of it descends from.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _gone = kill(pid, Signal::SIGTERM);
        let end = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _gone = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
