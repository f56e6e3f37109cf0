//! Answers of our own: error pages and redirects.
//! Called by `request`. Never talks to a server.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::AsyncWrite;

use super::Failure;
use super::connection::Client;
use super::timer::Alarm;
use crate::config::{Redirect, Rule};
use crate::http::h2::write_page;
use crate::http::{Body, Method, Persistence, RequestHead, redirect_location, write_error_response, write_redirect};

impl Client {
    /// Sends what is in `out`, all of it. Returns the bytes sent.
    pub async fn send_out(&mut self) -> Result<u64, Failure> {
        self.timer.set(self.site.config().timeout.client);
        let mut sent = 0;
        if let Some(stream) = self.stream.as_h2() {
            let (head, length) = write_page(&self.room.out).map_err(Failure::BadResponse)?;
            sent = length;
            let body = if length == self.room.out.len() { Body::None } else { Body::UntilClose };
            stream.respond(head, body)?;
        }
        poll_fn(|cx| {
            match self.timer.poll(cx) {
                Some(Alarm::Expired) => return Poll::Ready(Err(Failure::ClientTimedOut)),
                Some(Alarm::Stopped) => return Poll::Ready(Err(Failure::Stopping)),
                None => {}
            }
            while sent < self.room.out.len() {
                match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.room.out[sent..])) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Failure::ClientAborted)),
                    Ok(written) => sent += written,
                }
            }
            Pin::new(&mut self.stream).poll_flush(cx).map_err(|_error| Failure::ClientAborted)
        })
        .await?;
        if let Some(stream) = self.stream.as_h2() {
            stream.finish(b"");
        }
        self.room.out.clear();
        Ok(sent as u64)
    }

    /// Answers with the page of a status: the configured one, else ours.
    pub async fn send_error(&mut self, status: u16, method: Method) -> Result<u64, Failure> {
        let site = std::rc::Rc::clone(&self.site);
        let page = site.config().error_pages.iter().find(|page| page.status == status);
        self.room.out.clear();
        write_error_response(&mut self.room.out, status, page.map(|page| page.raw.as_slice()), method == Method::Head);
        self.send_out().await
    }

    /// Answers with a redirect.
    pub async fn send_redirect(
        &mut self,
        redirect: &Redirect,
        head: &RequestHead,
        persistence: Persistence,
    ) -> Result<u64, Failure> {
        let mut location = Vec::new();
        let tls = self.site.tls.is_some();
        redirect_location(redirect, tls, &self.room.head, head, &mut location).map_err(Failure::Refused)?;
        self.room.out.clear();
        write_redirect(&mut self.room.out, redirect.code, &location, persistence, &self.edits.response);
        self.send_out().await
    }
}

/// Whether a rule applies to a connection.
pub fn applies(rule: &Rule, tls: bool) -> bool {
    rule.tls.is_none_or(|wanted| wanted == tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    #[test]
    fn a_rule_without_condition_always_applies() {
        for (wanted, tls, expected) in
            [(None, true, true), (None, false, true), (Some(true), false, false), (Some(false), false, true)]
        {
            let rule = Rule { tls: wanted, action: Action::Redirect(Redirect::default()) };
            assert_eq!(applies(&rule, tls), expected);
        }
    }
}
