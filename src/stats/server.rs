//! The statistics listener's connections: HTTP/1.1, authentication, and the choice of a view.
//! Called by the worker for each connection it accepts there. Never changes anything.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::auth::{Gate, challenge};
use super::csv::csv;
use super::json::{info, json};
use super::memory::Memory;
use super::page::{About, html};
use super::prometheus;
use super::snapshot::Snapshot;
use crate::config::Bundle;
use crate::handoff::messages::Slots;

/// A request head must be complete within this time, and a kept connection idle no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the page shows; one for all connections of a worker.
#[derive(Debug)]
pub struct StatsPage {
    bundle: Arc<Bundle>,
    slots: Slots,
    memory: Memory,
    generation: u64,
    gate: Gate,
    /// The same with the certificates in use, which need not be those it was read with any more.
    current: RwLock<Arc<Bundle>>,
}

/// Which listener a connection came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `[stats]`.
    Page,
    /// `[metrics]`.
    Metrics,
}

impl StatsPage {
    /// Joins configuration and counters. Without `bundle.stats` every request is answered 404.
    #[must_use]
    pub fn new(bundle: Arc<Bundle>, slots: Slots, memory: Memory, generation: u64) -> Self {
        let gate = Gate::new(bundle.stats.as_ref().map_or(&[], |stats| &stats.users));
        let current = RwLock::new(Arc::clone(&bundle));
        Self { bundle, slots, memory, generation, gate, current }
    }

    /// Other certificates are in use than those that the configuration was read with.
    pub fn exchange(&self, current: Arc<Bundle>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    fn snapshot(&self, now: SystemTime) -> Snapshot {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        Snapshot::take(&current, &self.slots, &self.memory, now)
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let Some(stats) = &self.bundle.stats else { return plain(StatusCode::NOT_FOUND) };
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let Some(options) = target.strip_prefix(stats.uri.as_str()) else { return plain(StatusCode::NOT_FOUND) };
        let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        if !self.gate.admits(authorization).await {
            let mut response = plain(StatusCode::UNAUTHORIZED);
            if let Ok(value) = HeaderValue::try_from(challenge(&stats.realm)) {
                response.headers_mut().insert(WWW_AUTHENTICATE, value);
            }
            return response;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed();
        }
        self.view(options, stats.refresh)
    }

    /// The Prometheus view; nothing else is behind its listener.
    fn metrics<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let wanted = self.bundle.metrics.as_ref().is_some_and(|metrics| metrics.path == request.uri().path());
        if !wanted {
            return plain(StatusCode::NOT_FOUND);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed();
        }
        let now = SystemTime::now();
        let snapshot = self.snapshot(now);
        response(StatusCode::OK, prometheus::CONTENT_TYPE, prometheus::prometheus(&snapshot, now))
    }

    fn view(&self, options: &str, refresh: Option<Duration>) -> Response<Full<Bytes>> {
        let wanted = |option| options.split(';').any(|part| part == option);
        let snapshot = self.snapshot(SystemTime::now());
        if wanted("csv") {
            return response(StatusCode::OK, "text/plain; charset=utf-8", csv(&snapshot));
        }
        if wanted("info") {
            return response(StatusCode::OK, "application/json", info(&snapshot));
        }
        if wanted("json") {
            return response(StatusCode::OK, "application/json", json(&snapshot));
        }
        let stats = self.bundle.stats.as_ref();
        let about = About {
            generation: self.generation,
            pid: std::process::id(),
            uri: stats.map_or("", |stats| stats.uri.as_str()),
            refresh: refresh.filter(|_| !wanted("norefresh")),
        };
        response(StatusCode::OK, "text/html; charset=utf-8", html(&snapshot, &about))
    }
}

/// Serves one connection to its end; what its peer does wrong ends it silently.
pub async fn serve<IO>(io: IO, page: Arc<StatsPage>, door: Door)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    serve_within(io, (page, door), HEAD_TIMEOUT).await;
}

pub(super) async fn serve_within<IO>(io: IO, (page, door): (Arc<StatsPage>, Door), head_timeout: Duration)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request| {
        let page = Arc::clone(&page);
        async move {
            Ok::<_, Infallible>(match door {
                Door::Page => page.answer(&request).await,
                Door::Metrics => page.metrics(&request),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .serve_connection(TokioIo::new(io), service);
    // A scraper that hangs up is nobody's problem.
    let _ = connection.await;
}

fn not_allowed() -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let text = format!("{} {}\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let fields = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
