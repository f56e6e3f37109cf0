//! Which server is next: pure arithmetic over counters.
//! Called by `Backend` and by `proxy` after a failed connection. Never touches a socket.

/// Maps a ticket of the shared round-robin counter to a server.
#[must_use]
pub fn round_robin(ticket: u64, servers: usize) -> Option<usize> {
    let count = u64::try_from(servers).ok().filter(|count| *count > 0)?;
    usize::try_from(ticket % count).ok()
}

/// What to do after a connection attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Try this server at once: it is another one.
    Redispatch(usize),
    /// Try the same server after the turn-around delay, as HAProxy does, so that a server that
    /// restarts is not hammered.
    Again,
    /// Out of retries.
    GiveUp,
}

/// Decides the attempt after `failed` failures on `server` (HAProxy: `retries`, `option redispatch`:
/// the last retry goes to another server).
#[must_use]
pub fn next_server(server: usize, servers: usize, failed: u32, retries: u32, redispatch: bool) -> Attempt {
    if failed > retries {
        return Attempt::GiveUp;
    }
    if redispatch && failed == retries && servers > 1 {
        return Attempt::Redispatch((server + 1) % servers);
    }
    Attempt::Again
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_walk_the_servers_in_order() {
        let order: Vec<_> = (0..5).map(|ticket| round_robin(ticket, 3)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(0), Some(1)]);
        assert_eq!(round_robin(7, 0), None);
    }

    #[test]
    fn the_last_retry_goes_to_another_server() {
        assert_eq!(next_server(2, 3, 1, 3, true), Attempt::Again);
        assert_eq!(next_server(2, 3, 3, 3, true), Attempt::Redispatch(0));
        assert_eq!(next_server(2, 3, 4, 3, true), Attempt::GiveUp);
    }

    #[test]
    fn without_redispatch_or_a_second_server_the_same_one_is_tried() {
        assert_eq!(next_server(0, 1, 3, 3, true), Attempt::Again);
        assert_eq!(next_server(1, 3, 3, 3, false), Attempt::Again);
        assert_eq!(next_server(1, 3, 1, 0, true), Attempt::GiveUp);
    }
}
