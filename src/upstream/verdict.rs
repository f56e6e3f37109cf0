//! What the end of a check means: counting as HAProxy does, and whether an answer is the expected one.
//! Called by `checks` and `probe`. Pure: told what happened, never connects, never looks at a clock.

use std::time::Duration;

use crate::config::{Check, CheckMethod, HttpCheck};
use crate::http::{Body, Chunked, HeadLimits, Method, ResponseHead, parse_response};
use crate::stats::{CheckStatus, Health};

/// Bytes of a body that are looked at.
const LOOK_AT: usize = 64 * 1024;
/// A check's answer needs no more than this.
pub(super) const LIMITS: HeadLimits = HeadLimits { size: 16 * 1024, fields: 200, target: 0 };

/// How one check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In HAProxy's words.
    pub status: CheckStatus,
    /// HTTP status, or errno.
    pub code: u16,
    /// What the system or the server said.
    pub info: Option<String>,
}

impl Finding {
    /// A finding that needs no words.
    #[must_use]
    pub fn plain(status: CheckStatus) -> Self {
        Self { status, code: 0, info: None }
    }
}

/// The health of a server whose checks begin: up, and down with its first failure.
#[must_use]
pub fn initial(check: &Check) -> Health {
    Health { up: true, level: check.rise, status: CheckStatus::Initializing, code: 0, millis: 0 }
}

/// The health after a check: `fall` failures in a row take an entirely healthy server down, `rise`
/// successes in a row bring it up, and either way it is entirely so from then on.
#[must_use]
pub fn after(health: Health, finding: &Finding, took: Duration, check: &Check) -> Health {
    let (up, level) = if finding.status == CheckStatus::SocketError {
        // What we lack says nothing about the server.
        (health.up, health.level)
    } else if finding.status.passed() {
        let level = health.level.saturating_add(1);
        if level >= check.rise { (true, check.full()) } else { (false, level) }
    } else if health.up && health.level > check.rise {
        (true, health.level - 1)
    } else {
        (false, 0)
    };
    let millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
    Health { up, level, status: finding.status, code: finding.code, millis }
}

/// A health that rules of other numbers have led to, as these rules would have it.
#[must_use]
pub fn adjusted(health: Health, check: &Check) -> Health {
    let level = if health.up { health.level.clamp(check.rise, check.full()) } else { health.level.min(check.rise - 1) };
    Health { level, ..health }
}

/// Time from the beginning of a check to that of the next: shorter while it is not certain what the server is.
#[must_use]
pub fn pause(health: Health, check: &Check) -> Duration {
    let certain = if health.up { health.level >= check.full() } else { health.level == 0 };
    if certain { check.interval } else { check.fast }
}

/// The request of a check. `host` is used where the configuration names none.
#[must_use]
pub fn request(check: &HttpCheck, host: &str) -> String {
    let host = check.host.as_deref().unwrap_or(host);
    format!(
        "{} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: proxy-check\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        check.method.word(),
        check.path
    )
}

/// What an answer says as far as it has come; `None` when more of it is needed. `ended`: no more will come.
#[must_use]
pub fn judge(answer: &[u8], ended: bool, check: &HttpCheck) -> Option<Finding> {
    let invalid = |info: &str| Some(Finding { status: CheckStatus::L7Invalid, code: 0, info: Some(info.to_owned()) });
    let (head, start) = match final_head(answer, check.method) {
        Ok(Some(found)) => found,
        Ok(None) if ended => return invalid("the answer ended inside its head"),
        Ok(None) => return None,
        Err(problem) => return invalid(&problem),
    };
    let reason = String::from_utf8_lossy(head.reason.of(&answer[start..])).trim().to_owned();
    let says =
        |status| Finding { status, code: head.status, info: Some(reason.clone()).filter(|text| !text.is_empty()) };
    if !check.statuses.iter().any(|(first, last)| (*first..=*last).contains(&head.status)) {
        return Some(says(CheckStatus::L7WrongStatus));
    }
    let Some(expected) = &check.body else { return Some(says(CheckStatus::L7Ok)) };
    let (body, whole) = match body(&answer[start + head.len..], head.body) {
        Ok(read) => read,
        Err(problem) => return invalid(&problem),
    };
    if memchr::memmem::find(&body, expected.as_bytes()).is_some() {
        return Some(says(CheckStatus::L7Ok));
    }
    if whole || ended || body.len() >= LOOK_AT {
        let info = Some(String::from("the body does not hold what is expected"));
        return Some(Finding { status: CheckStatus::L7Invalid, code: head.status, info });
    }
    None
}

/// What decides whether an answer has a body.
pub(super) fn asked(method: CheckMethod) -> Method {
    if method == CheckMethod::Head { Method::Head } else { Method::Get }
}

/// The message that asks for the health of a service, in its frame (gRPC over HTTP/2; grpc.health.v1.HealthCheckRequest).
#[must_use]
pub fn health_request(service: &str) -> Vec<u8> {
    let length = u8::try_from(service.len()).unwrap_or(u8::MAX);
    let message = if service.is_empty() { Vec::new() } else { [&[0x0A, length][..], service.as_bytes()].concat() };
    let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &size.to_be_bytes(), &message].concat()
}

/// What the answer to it says: status, `grpc-status`, body.
#[must_use]
pub fn judge_health(status: u16, code: Option<&str>, body: &[u8]) -> Finding {
    let says = |finding, info: &str| Finding { status: finding, code: status, info: Some(info.to_owned()) };
    match (status, code) {
        (200, Some("0")) => {}
        (200, Some(code)) => return says(CheckStatus::L7WrongStatus, &format!("gRPC status {code}")),
        (200, None) => return says(CheckStatus::L7Invalid, "the answer has no gRPC status"),
        _ => return Finding { status: CheckStatus::L7WrongStatus, code: status, info: None },
    }
    // One message that is not compressed; a status that is 0 is left out.
    match body {
        [0, _, _, _, _, 0x08, 1] => says(CheckStatus::L7Ok, "SERVING"),
        [0, _, _, _, _, 0x08, 2] => says(CheckStatus::L7WrongStatus, "NOT_SERVING"),
        [0, _, _, _, _, 0x08, 3] => says(CheckStatus::L7WrongStatus, "SERVICE_UNKNOWN"),
        [0, 0, 0, 0, 0] => says(CheckStatus::L7WrongStatus, "UNKNOWN"),
        _ => says(CheckStatus::L7Invalid, "the answer tells of no health"),
    }
}

/// The first head that is not interim, and where it begins.
fn final_head(answer: &[u8], method: CheckMethod) -> Result<Option<(ResponseHead, usize)>, String> {
    let asked = asked(method);
    let (mut fields, mut start) = (Vec::new(), 0);
    loop {
        match parse_response(&answer[start..], asked, &LIMITS, &mut fields) {
            Ok(Some(head)) if head.status < 200 => {
                start += head.len;
                if start > LIMITS.size {
                    return Err(String::from("too many interim answers"));
                }
            }
            Ok(found) => return Ok(found.map(|head| (head, start))),
            Err(refusal) => return Err(refusal.to_string()),
        }
    }
}

/// What is there of a body, and whether it is all of it.
fn body(bytes: &[u8], framing: Body) -> Result<(Vec<u8>, bool), String> {
    match framing {
        Body::None => Ok((Vec::new(), true)),
        Body::UntilClose => Ok((bytes.to_vec(), false)),
        Body::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            Ok((bytes[..bytes.len().min(length)].to_vec(), bytes.len() >= length))
        }
        Body::Chunked => {
            let (mut decoder, mut at, mut body) = (Chunked::new(), 0, Vec::new());
            loop {
                let piece = decoder.decode(&bytes[at..]).map_err(|refusal| refusal.to_string())?;
                body.extend_from_slice(&bytes[at + piece.data.start..at + piece.data.end]);
                at += piece.consumed;
                if piece.done || at == bytes.len() {
                    return Ok((body, piece.done));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Question;

    fn rules(fall: u16, rise: u16) -> Check {
        Check {
            question: Question::Nothing,
            port: None,
            interval: Duration::from_secs(2),
            fast: Duration::from_millis(100),
            fall,
            rise,
            timeout: Duration::from_secs(1),
        }
    }

    /// Each check's result, and the health it leads to as `up level`.
    fn walk(check: &Check, from: Health, results: &str) -> String {
        let mut health = from;
        let after_each = results.chars().map(|result| {
            let status = if result == '+' { CheckStatus::L4Ok } else { CheckStatus::L4Failed };
            health = after(health, &Finding::plain(status), Duration::ZERO, check);
            format!("{}{}", if health.up { "u" } else { "d" }, health.level)
        });
        after_each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rise_and_fall_count_in_a_row_as_haproxys_do() {
        let check = rules(3, 2);
        // The first failure takes down who was never checked; the first success makes him entirely up.
        assert_eq!(walk(&check, initial(&check), "-"), "d0");
        assert_eq!(walk(&check, initial(&check), "+"), "u4");
        let up = Health { level: 4, ..initial(&check) };
        assert_eq!(walk(&check, up, "---"), "u3 u2 d0");
        assert_eq!(walk(&check, up, "--+--+"), "u3 u2 u4 u3 u2 u4", "a success makes up for every failure");
        let down = Health { up: false, level: 0, ..up };
        assert_eq!(walk(&check, down, "++"), "d1 u4");
        assert_eq!(walk(&check, down, "+-+-"), "d1 d0 d1 d0");
        let once = rules(1, 1);
        assert_eq!(walk(&once, initial(&once), "+-+-"), "u1 d0 u1 d0");
    }

    #[test]
    fn a_server_that_goes_on_and_on_is_not_listened_to_for_ever() {
        let check = http(None);
        let endless = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
        assert!(judge(&endless[..1000], false, &check).is_none());
        assert_eq!(judge(&endless, false, &check).map(|finding| finding.status), Some(CheckStatus::L7Invalid));
    }

    #[test]
    fn a_check_that_could_not_be_made_changes_nothing() {
        let check = rules(1, 1);
        let found = Finding::plain(CheckStatus::SocketError);
        for health in [initial(&check), Health { up: false, level: 0, ..initial(&check) }] {
            let then = after(health, &found, Duration::ZERO, &check);
            assert_eq!((then.up, then.level, then.status), (health.up, health.level, CheckStatus::SocketError));
        }
    }

    #[test]
    fn what_is_uncertain_is_asked_more_often() {
        let check = rules(3, 2);
        let (often, seldom) = (check.fast, check.interval);
        for (up, level, expected) in
            [(true, 4, seldom), (true, 3, often), (true, 2, often), (false, 1, often), (false, 0, seldom)]
        {
            assert_eq!(pause(Health { up, level, ..initial(&check) }, &check), expected, "{up} {level}");
        }
    }

    #[test]
    fn a_level_of_other_rules_becomes_one_of_these() {
        let check = rules(2, 2);
        for (up, level, expected) in [(true, 9, 3), (true, 1, 2), (false, 9, 1), (false, 0, 0), (true, 3, 3)] {
            let health = Health { up, level, ..initial(&check) };
            assert_eq!(adjusted(health, &check).level, expected, "{up} {level}");
        }
    }

    fn http(body: Option<&str>) -> HttpCheck {
        HttpCheck {
            method: CheckMethod::Get,
            path: "/healthz".into(),
            host: None,
            statuses: vec![(200, 299), (404, 404)],
            body: body.map(str::to_owned),
        }
    }

    #[test]
    fn a_service_is_asked_for_and_its_health_understood() {
        use CheckStatus::{L7Invalid, L7Ok, L7WrongStatus};
        assert_eq!(health_request(""), [0; 5]);
        assert_eq!(health_request("a.B"), [0, 0, 0, 0, 5, 0x0A, 3, b'a', b'.', b'B']);
        let serving = [0, 0, 0, 0, 2, 8, 1];
        for (status, code, body, expected) in [
            (200, Some("0"), &serving[..], L7Ok),
            (200, Some("0"), &[0, 0, 0, 0, 2, 8, 2], L7WrongStatus),
            (200, Some("0"), &[0; 5], L7WrongStatus),
            (200, Some("0"), &[1, 0, 0, 0, 2, 8, 1], L7Invalid),
            (200, Some("0"), b"", L7Invalid),
            (200, Some("5"), b"", L7WrongStatus),
            (200, None, &serving, L7Invalid),
            (503, Some("0"), &serving, L7WrongStatus),
        ] {
            assert_eq!(judge_health(status, code, body).status, expected, "{status} {code:?} {body:?}");
        }
    }

    #[test]
    fn an_answer_is_judged_as_soon_as_it_says_enough() {
        use CheckStatus::{L7Invalid, L7Ok, L7WrongStatus};
        type Found = Option<(CheckStatus, u16)>;
        let cases: [(&str, Option<&str>, bool, Found); 15] = [
            ("HTTP/1.1 200 OK\r\n\r\n", None, false, Some((L7Ok, 200))),
            ("HTTP/1.1 200 OK\r\n", None, false, None),
            ("HTTP/1.1 200 OK\r\n", None, true, Some((L7Invalid, 0))),
            ("", None, true, Some((L7Invalid, 0))),
            ("HTTP/1.1 404 Not Found\r\n\r\n", None, false, Some((L7Ok, 404))),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some("ok"), false, Some((L7WrongStatus, 503))),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\n\r\n", None, false, Some((L7Ok, 204))),
            ("SSH-2.0-x\r\n", None, false, Some((L7Invalid, 0))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall is o", Some("ok"), false, Some((L7Invalid, 200))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is o", Some("ok"), false, None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is ok", Some("ok"), false, Some((L7Ok, 200))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nok", Some("ok"), false, Some((L7Ok, 200))),
            ("HTTP/1.0 200 OK\r\n\r\nnot o", Some("ok"), true, Some((L7Invalid, 200))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n",
                Some("ok"),
                false,
                Some((L7Ok, 200)),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n0\r\n\r\n",
                Some("ok"),
                false,
                Some((L7Invalid, 200)),
            ),
        ];
        for (answer, body, ended, expected) in cases {
            let found = judge(answer.as_bytes(), ended, &http(body));
            assert_eq!(found.map(|finding| (finding.status, finding.code)), expected, "{answer:?} {body:?} {ended}");
        }
        let busy = judge(b"HTTP/1.1 503 Very Busy\r\n\r\n", false, &http(None)).unwrap();
        assert_eq!(busy.info.as_deref(), Some("Very Busy"));
    }

    #[test]
    fn an_endless_answer_is_given_up() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + LOOK_AT, b'x');
        assert_eq!(
            judge(&answer, false, &http(Some("ok"))).map(|finding| finding.status),
            Some(CheckStatus::L7Invalid)
        );
        answer.truncate(20_000);
        assert_eq!(judge(&answer, false, &http(Some("ok"))), None);
        assert!(judge(&[b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'x'; 20_000]].concat(), false, &http(None)).is_some());
    }

    #[test]
    fn the_request_names_the_host_that_is_wanted() {
        let text = request(&http(None), "127.0.0.1:80");
        assert!(text.starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"), "{text}");
        let named = HttpCheck { host: Some("www".into()), method: CheckMethod::Head, ..http(None) };
        assert!(request(&named, "x").starts_with("HEAD /healthz HTTP/1.1\r\nHost: www\r\n"));
    }
}
