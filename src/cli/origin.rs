//! Small origin servers that answer like the article's server.js: the request's header as JSON, then
//! `endpoint:`, `requestcount:` and `echo:`. Used by `showcase`. Never part of a daemon.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts serving on each listener, from one thread of their own that lives as long as the process.
pub(super) fn serve(listeners: Vec<StdListener>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(async {
            let count = Arc::new(AtomicU64::new(0));
            for listener in listeners {
                tokio::spawn(serve_one(listener, Arc::clone(&count)));
            }
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("origins".into()).spawn(run).map(drop)
}

async fn serve_one(listener: StdListener, count: Arc<AtomicU64>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let endpoint = listener.local_addr()?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let count = Arc::clone(&count);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                answer(request, endpoint, number)
            });
            // A connection that breaks is the proxy's affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    endpoint: SocketAddr,
    number: u64,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut fields = serde_json::Map::new();
    for (name, value) in request.headers() {
        fields.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into());
    }
    let asked = request.uri().query().and_then(echo_parameter).map(String::from);
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let sent = (!body.is_empty()).then(|| String::from_utf8_lossy(&body).into_owned());
    let echo = asked.or(sent).unwrap_or_else(|| String::from("undefined"));
    let mut text = serde_json::Value::Object(fields).to_string();
    // Writing to a String cannot fail.
    let _ = write!(text, "\nendpoint: {endpoint}\nrequestcount: {number}\necho: {echo}\n");
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn echo_parameter(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("echo="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_is_found_among_parameters() {
        assert_eq!(echo_parameter("a=1&echo=hello&b"), Some("hello"));
        assert_eq!(echo_parameter("anecho=1"), None);
    }
}
