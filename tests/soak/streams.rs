//! An HTTP/2 client by prior knowledge: eight streams at a time, a new connection when the old one says goodbye.

use h2::client::{SendRequest, handshake};
use h2::{Reason, RecvStream};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::ledger::Outcome;
use crate::traffic::{Places, Shared};

/// Streams at a time.
const AT_ONCE: usize = 8;
/// Rounds of them on one connection.
const ROUNDS: usize = 50;

pub fn run(at: &Places, all: &Shared, name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        for number in 0.. {
            if all.over() {
                return;
            }
            converse(at, all, &format!("{name}/{number}")).await;
        }
    });
}

async fn converse(at: &Places, all: &Shared, name: &str) {
    let socket = TcpStream::connect(at.two).await.unwrap();
    let (send, connection) = match handshake(socket).await {
        Ok(both) => both,
        Err(error) => return all.broke(&format!("a connection of streams ({error})")),
    };
    let driver = tokio::task::spawn_local(connection);
    for round in 0..ROUNDS {
        let mut streams = JoinSet::new();
        for number in 0..AT_ONCE {
            let path = format!("{name}/{round}/{number}");
            let send = send.clone();
            streams.spawn_local(async move { (path.clone(), ask(send, &path).await) });
        }
        let mut goodbye = all.over();
        while let Some(ended) = streams.join_next().await {
            match ended.unwrap() {
                (path, Ok(outcome)) => all.done.note(path, outcome),
                // Never begun: whoever asked may ask again.
                (_, Err(error)) if error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM) => {
                    goodbye = true
                }
                (path, Err(error)) => {
                    all.broke(&format!("{path} ({error})"));
                    goodbye = true;
                }
            }
        }
        if goodbye {
            break;
        }
    }
    drop(send);
    // Its last words are not waited for where the worker was killed.
    let _ = driver.await;
}

async fn ask(send: SendRequest<bytes::Bytes>, path: &str) -> Result<Outcome, h2::Error> {
    let mut send = send.ready().await?;
    let request = http::Request::builder().uri(format!("http://soak{path}?3000")).body(()).unwrap();
    let (response, _) = send.send_request(request, true)?;
    let response = response.await?;
    let status = response.status().as_u16();
    assert!([200, 502, 503, 504].contains(&status), "{path}: {status}");
    let length = read(response.into_body()).await;
    assert!(status != 200 || length.is_none_or(|length| length == 3000), "{path}: {length:?}");
    Ok(Outcome { status, whole: length.is_some() })
}

/// The length of a body; `None` when it broke.
async fn read(mut body: RecvStream) -> Option<usize> {
    let mut length = 0;
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        length += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    Some(length)
}
