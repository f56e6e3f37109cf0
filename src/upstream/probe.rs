//! One check of one server: connect, ask where something is asked, hear the answer.
//! Run by `checks`. Never decides what its end means for the server.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::verdict::{Finding, LIMITS, asked, judge, request};
use super::{ConnectError, ServerStream, Way};
use crate::config::{HttpCheck, Protocol};
use crate::handoff::fault::{self, Step};
use crate::http::h2::read_response;
use crate::stats::CheckStatus;

/// Checks a server; `limit` is for all of it.
pub async fn probe(way: &Way, http: Option<&HttpCheck>, limit: Duration) -> Finding {
    let deadline = Instant::now() + limit;
    let opened = match fault::strike(Step::Probe) {
        Ok(()) => way.open(limit).await,
        Err(error) => Err(ConnectError::Failed(error.into())),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(error) => return unconnected(&error),
    };
    let Some(http) = http else {
        return Finding::plain(if way.tls.is_some() { CheckStatus::L6Ok } else { CheckStatus::L4Ok });
    };
    let host = http.host.clone().unwrap_or_else(|| way.address.to_string());
    let asking = async {
        match (way.protocol, stream.protocol()) {
            (Protocol::H2c, _) | (_, Some(b"h2")) => ask_shared(stream, http, &host).await,
            (Protocol::H2, _) => invalid("the server does not speak HTTP/2"),
            _ => ask(stream, http, &host).await,
        }
    };
    match tokio::time::timeout_at(deadline, asking).await {
        Ok(finding) => finding,
        Err(_elapsed) => Finding::plain(CheckStatus::L7Timeout),
    }
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

/// The same as [`ask`] in HTTP/2: the answer is judged as the text that it would be in HTTP/1.
async fn ask_shared(stream: ServerStream, http: &HttpCheck, host: &str) -> Finding {
    let scheme = if stream.protocol().is_some() { "https" } else { "http" };
    let request = Request::builder()
        .method(http.method.word())
        .uri(format!("{scheme}://{host}{}", http.path))
        .header("user-agent", "proxy-check")
        .header("accept", "*/*")
        .body(());
    let (send, connection) = match h2::client::handshake(stream).await {
        Ok(begun) => begun,
        Err(error) => return invalid(error),
    };
    let asking = async {
        match request {
            Ok(request) => hear(send, request, http).await.unwrap_or_else(invalid),
            Err(error) => invalid(error),
        }
    };
    tokio::pin!(asking);
    tokio::select! {
        biased;
        finding = &mut asking => finding,
        // Whatever has ended it, the request has ended with it.
        _ = connection => asking.await,
    }
}

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
