//! Opens a TCP connection to a server within a time limit.
//! Called by `Backend::connect`. Never retries.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::ConnectError;

pub(super) async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectError> {
    let stream = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(result) => result.map_err(ConnectError::Failed)?,
        Err(_elapsed) => return Err(ConnectError::TimedOut),
    };
    // A head and its body may leave in two writes; Nagle would hold the second back.
    stream.set_nodelay(true).map_err(ConnectError::Failed)?;
    Ok(stream)
}
