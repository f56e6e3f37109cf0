//! One check of one server: connect, ask where something is asked, hear the answer.
//! Run by `checks`. Never decides what its end means for the server.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::verdict::{Finding, LIMITS, asked, health_request, judge, judge_health, request};
use super::{ConnectError, ServerStream, Way};
use crate::config::{HttpCheck, Protocol, Question};
use crate::handoff::fault::{self, Step};
use crate::http::h2::read_response;
use crate::stats::CheckStatus;

/// Bytes of what a service says of its health; more are not waited for.
const MOST_HEALTH: usize = 1024;

/// Checks a server; `limit` is for all of it.
pub async fn probe(way: &Way, question: &Question, limit: Duration) -> Finding {
    let deadline = Instant::now() + limit;
    let opened = match fault::strike(Step::Probe) {
        Ok(()) => way.open(limit).await,
        Err(error) => Err(ConnectError::Failed(error.into())),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(error) => return unconnected(&error),
    };
    if *question == Question::Nothing {
        return Finding::plain(if way.tls.is_some() { CheckStatus::L6Ok } else { CheckStatus::L4Ok });
    }
    let address = way.address.to_string();
    let asking = async {
        let shared = matches!((way.protocol, stream.protocol()), (Protocol::H2c, _) | (_, Some(b"h2")));
        match question {
            Question::Http(http) if shared => {
                let host = http.host.as_deref().unwrap_or(&address);
                let request = plain_request(http, &uri(&stream, host, &http.path));
                over(stream, request, |send, request| hear(send, request, http)).await
            }
            Question::Http(http) if way.protocol != Protocol::H2 => ask(stream, http, &address).await,
            Question::Grpc(service) if shared => {
                let request = health_call(&uri(&stream, &address, "/grpc.health.v1.Health/Check"));
                over(stream, request, |send, request| hear_health(send, request, service)).await
            }
            _ => invalid("the server does not speak HTTP/2"),
        }
    };
    match tokio::time::timeout_at(deadline, asking).await {
        Ok(finding) => finding,
        Err(_elapsed) => Finding::plain(CheckStatus::L7Timeout),
    }
}

fn uri(stream: &ServerStream, host: &str, path: &str) -> String {
    let scheme = if stream.protocol().is_some() { "https" } else { "http" };
    format!("{scheme}://{host}{path}")
}

fn unconnected(error: &ConnectError) -> Finding {
    let (status, source) = match error {
        ConnectError::TimedOut => return Finding::plain(CheckStatus::L4Timeout),
        ConnectError::Handshake { source, .. } => (CheckStatus::L6Invalid, source),
        // For want of descriptors or ports: it says nothing about the server.
        ConnectError::Failed(source) if is_ours(source) => (CheckStatus::SocketError, source),
        ConnectError::Failed(source) => (CheckStatus::L4Failed, source),
    };
    finding(status, source)
}

fn is_ours(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    error.raw_os_error().is_some_and(|number| [EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(&number))
}

fn finding(status: CheckStatus, error: &io::Error) -> Finding {
    let code = error.raw_os_error().and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
    let text = error.to_string();
    let info = text.split(" (os error").next().map(str::to_owned);
    Finding { status, code, info }
}

fn invalid(problem: impl ToString) -> Finding {
    Finding { status: CheckStatus::L7Invalid, code: 0, info: Some(problem.to_string()) }
}

/// A request that may be none, which no configuration leads to.
type Asked = Result<Request<()>, http::Error>;

fn plain_request(check: &HttpCheck, uri: &str) -> Asked {
    let request = Request::builder().method(check.method.word()).uri(uri);
    request.header("user-agent", "proxy-check").header("accept", "*/*").body(())
}

fn health_call(uri: &str) -> Asked {
    let request = Request::builder().method("POST").uri(uri).header("user-agent", "proxy-check");
    request.header("content-type", "application/grpc").header("te", "trailers").body(())
}

/// Asks over a connection of HTTP/2 of its own.
async fn over<F>(
    stream: ServerStream,
    request: Asked,
    ask: impl FnOnce(SendRequest<Bytes>, Request<()>) -> F,
) -> Finding
where
    F: Future<Output = Result<Finding, h2::Error>>,
{
    let request = match request {
        Ok(request) => request,
        Err(error) => return invalid(error),
    };
    let (send, connection) = match h2::client::handshake(stream).await {
        Ok(begun) => begun,
        Err(error) => return invalid(error),
    };
    let asking = ask(send, request);
    tokio::pin!(asking);
    let heard = tokio::select! {
        biased;
        heard = &mut asking => heard,
        // Whatever has ended it, the request has ended with it.
        _ = connection => asking.await,
    };
    heard.unwrap_or_else(invalid)
}

/// An answer is judged as the text that it would be in HTTP/1.
async fn hear(send: SendRequest<Bytes>, request: Request<()>, http: &HttpCheck) -> Result<Finding, h2::Error> {
    let (response, _nothing) = send.ready().await?.send_request(request, true)?;
    let (parts, mut body) = response.await?.into_parts();
    let (mut answer, mut fields, mut ended) = (Vec::new(), Vec::new(), body.is_end_stream());
    let head = (parts.status.as_u16(), &parts.headers, ended);
    if let Err(refusal) = read_response(head, asked(http.method).into(), &LIMITS, (&mut answer, &mut fields)) {
        return Ok(invalid(refusal));
    }
    loop {
        if let Some(finding) = judge(&answer, ended, http) {
            return Ok(finding);
        }
        match body.data().await.transpose()? {
            Some(data) => {
                body.flow_control().release_capacity(data.len())?;
                answer.extend_from_slice(&data);
            }
            None => ended = true,
        }
    }
}

async fn hear_health(send: SendRequest<Bytes>, request: Request<()>, service: &str) -> Result<Finding, h2::Error> {
    let (response, mut message) = send.ready().await?.send_request(request, false)?;
    message.send_data(health_request(service).into(), true)?;
    let (parts, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await.transpose()? {
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
        if body.len() > MOST_HEALTH {
            break;
        }
    }
    // An answer without a body has its trailers in its head.
    let trailers = stream.trailers().await?.unwrap_or(parts.headers);
    let code = trailers.get("grpc-status").and_then(|code| code.to_str().ok());
    Ok(judge_health(parts.status.as_u16(), code, &body))
}

async fn ask(mut stream: ServerStream, http: &HttpCheck, host: &str) -> Finding {
    let sent = async {
        stream.write_all(request(http, host).as_bytes()).await?;
        stream.flush().await
    };
    // A server may refuse without having read: what it said counts, if it said something.
    let mut failed = sent.await.err();
    let mut answer = Vec::new();
    loop {
        let read = stream.read_buf(&mut answer).await;
        let ended = !matches!(read, Ok(count) if count > 0);
        failed = failed.or(read.err());
        if let (true, true, Some(error)) = (ended, answer.is_empty(), &failed) {
            return Finding { code: 0, ..finding(CheckStatus::L7Invalid, error) };
        }
        if let Some(finding) = judge(&answer, ended, http) {
            return finding;
        }
    }
}
