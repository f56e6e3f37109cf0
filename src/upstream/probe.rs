//! One check of one server: connect, ask where something is asked, hear the answer.
//! Run by `checks`. Never decides what its end means for the server.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::verdict::{Finding, judge, request};
use super::{ConnectError, ServerStream, Way};
use crate::config::HttpCheck;
use crate::handoff::fault::{self, Step};
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
    match tokio::time::timeout_at(deadline, ask(stream, http, &way.address.to_string())).await {
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
