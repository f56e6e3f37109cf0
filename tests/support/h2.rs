//! HTTP/2 for tests: a client and a server by the library, and a client that writes frames by hand.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{PATIENCE, Site};

/// Runs a test's future, with a deadline.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE * 3, future).await.unwrap() })
}

/// A connection of a client.
#[derive(Clone)]
pub struct H2Client {
    pub send: SendRequest<Bytes>,
    pub address: SocketAddr,
}

/// A whole response.
#[derive(Debug)]
pub struct H2Answer {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl H2Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }
}

/// How a connection ended, for those who want to know.
pub type Ended = JoinHandle<Result<(), h2::Error>>;

impl H2Client {
    pub async fn connect(address: SocketAddr) -> (Self, Ended) {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        let ended = tokio::spawn(connection);
        (Self { send, address }, ended)
    }

    pub fn request(&self, method: &str, path: &str) -> Request<()> {
        let uri = format!("http://{}{path}", self.address);
        Request::builder().method(method).uri(uri).version(http::Version::HTTP_2).body(()).unwrap()
    }

    /// Sends a request with its whole body, and reads the whole response.
    pub async fn ask(&self, request: Request<()>, body: &[u8]) -> Result<H2Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            // A server may answer before it has all of it.
            let _ = write(&mut stream, body, true).await;
        }
        whole(response.await?).await
    }

    pub async fn get(&self, path: &str) -> H2Answer {
        self.ask(self.request("GET", path), b"").await.unwrap()
    }
}

/// Writes as the other side takes it.
pub async fn write(stream: &mut SendStream<Bytes>, mut body: &[u8], end: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        let (now, later) = body.split_at(room?.min(body.len()));
        stream.send_data(Bytes::copy_from_slice(now), end && later.is_empty())?;
        body = later;
    }
    Ok(())
}

pub async fn whole(response: Response<RecvStream>) -> Result<H2Answer, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let body = read(&mut stream).await?;
    let trailers = stream.trailers().await?;
    Ok(H2Answer { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
}

pub async fn read(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body)
}

/// A server of HTTP/2.
pub struct H2Origin {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl H2Origin {
    /// Every request is given to `serve`, in a task of its own. Runs in the runtime that it is made in.
    pub async fn new<F>(serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::limited(u32::MAX, serve).await
    }

    /// As [`H2Origin::new`]; a connection takes so many requests at a time.
    pub async fn limited<F>(
        streams: u32,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::accepting(streams, |stream| async { Some(stream) }, serve).await
    }

    /// As [`H2Origin::new`], over TLS.
    pub async fn secured<F>(
        mut settings: ServerConfig,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        settings.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(settings));
        let shake = move |stream| {
            let shaken = acceptor.accept(stream);
            async { shaken.await.ok().filter(|stream| stream.get_ref().1.alpn_protocol() == Some(b"h2")) }
        };
        Self::accepting(u32::MAX, shake, serve).await
    }

    /// As [`H2Origin::limited`]; each connection is given to `shake` first.
    pub async fn accepting<F, S, H>(
        streams: u32,
        shake: impl Fn(TcpStream) -> H + Send + Sync + 'static,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Future<Output = Option<S>> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (serve, connections) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (serve, shaken) = (Arc::clone(&serve), shake(stream));
                tokio::spawn(async move {
                    let Some(stream) = shaken.await else { return };
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(streams);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond));
                    }
                });
            }
        });
        Self { address, connections }
    }

    pub fn accepted(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A site in front of one server of HTTP/2; `backend` are more keys of the backend, and what follows it.
pub fn site(server: &str, backend: &str) -> Site {
    Site::new(&format!(
        "[global]\nthreads = 1\n[frontend.web]\nbind = \"{{port}}\"\nproto = \"auto\"\nbackend = \"pool\"\n\
         [backend.pool]\nservers = [\"{server}\"]\n{backend}\n"
    ))
}

/// Answers like a unary gRPC service: the body back, the status behind it; what was asked for in a field.
pub async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let Ok(whole) = read(&mut body).await else { return };
    let response = Response::builder().header("x-uri", parts.uri.to_string()).body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    if write(&mut stream, &whole, false).await.is_ok() {
        // The client may be gone.
        let _ = stream.send_trailers(grpc_status("0"));
    }
}

/// The trailers of gRPC.
pub fn grpc_status(code: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), code.parse().unwrap())])
}

/// Frames by hand.
pub struct Raw(pub StdStream);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame that was read.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A field without compression or index.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(length @ 0..127) => out.push(length),
            _ => {
                out.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    out.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                out.push(u8::try_from(rest).unwrap());
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// The fields of a GET, and some more.
pub fn get_block(more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", "/")];
    usual.iter().chain(more).flat_map(|(name, value)| literal(name, value)).collect()
}

impl Raw {
    /// Connects and says hello; a peer that ends is noticed by reading.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = StdStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Self(stream);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(SETTINGS, 0, 0, b"");
        raw
    }

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// Sends a frame; false when nobody takes it any more.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.0.write_all(&Self::frame(kind, flags, stream, payload)).is_ok()
    }

    /// The next frame; `None` at the end.
    pub fn read(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.0.read_exact(&mut header).ok()?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(header[5..9].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    /// The next frame of a kind; what comes before is passed over.
    pub fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.read().unwrap_or_else(|| panic!("no frame {kind} before the end"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads in the background what comes, until the connection has ended.
    pub fn listen(&self) -> mpsc::Receiver<Frame> {
        let mut reader = Self(self.0.try_clone().unwrap());
        reader.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (tell, frames) = mpsc::channel();
        // Whoever listens may have gone.
        std::thread::spawn(move || while reader.read().is_some_and(|frame| tell.send(frame).is_ok()) {});
        frames
    }
}
