//! What is asked again after an answer that does not do (`retry-on`), and what never is.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::sync::{Mutex, mpsc};

use support::client::{Client, get, read_head};
use support::h2::{self as http2, H2Client};
use support::origin::{Origin, ok};
use support::syslog::Syslog;
use support::{PATIENCE, Site, code, text};

/// A server that serves its first connections badly, each in its own way, and then well; it tells what it is asked.
fn unsteady(bad: &'static [&'static str]) -> (Origin, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let left = Mutex::new(bad.iter());
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            // The test may be over already.
            let _ = tell.send(head.line);
            let sent = match left.lock().unwrap().next() {
                None => stream.write_all(&ok("well")),
                Some(&"silent") => reader.read(&mut [0; 1]).map(drop),
                Some(answer) => {
                    let _ = stream.write_all(answer.as_bytes());
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    });
    (origin, told)
}

const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
const JUNK: &str = "SSH-2.0-junk\r\n";
const HALF: &str = "HTTP/1.1 200 OK\r\nContent-";
const GET: &str = "GET / HTTP/1.1\r\nHost: t\r\n\r\n";

fn site(origins: &[&Origin], settings: &str) -> Site {
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    Site::proxying(&addresses, &format!("timeout.server = \"500ms\"\n{settings}\n"))
}

#[test]
fn what_is_named_is_asked_again_until_the_retries_are_used_up() {
    const ALL: &str = "[\"empty-response\", \"junk-response\", \"response-timeout\", \"503\"]";
    for (bad, on, status, asked) in [
        (&[""][..], "[\"empty-response\"]", 200, 2),
        (&[JUNK], "[\"junk-response\"]", 200, 2),
        (&[HALF], "[\"junk-response\"]", 200, 2),
        (&["silent"], "[\"response-timeout\"]", 200, 2),
        (&[BUSY], "[\"500\", \"503\"]", 200, 2),
        (&["", JUNK, "silent"], ALL, 200, 4),
        // The last answer is passed on as it is.
        (&[BUSY, BUSY, BUSY, BUSY], ALL, 503, 4),
        (&["", "", "", ""], ALL, 502, 4),
        // What is not named is not.
        (&[""], "[\"conn-failure\", \"503\"]", 502, 1),
        (&[JUNK], "[\"empty-response\"]", 502, 1),
        (&[HALF], "[\"empty-response\"]", 502, 1),
        (&["silent"], "[\"junk-response\"]", 504, 1),
        (&[BUSY], "[\"500\"]", 503, 1),
        (&[BUSY], "\"none\"", 503, 1),
    ] {
        let (origin, told) = unsteady(bad);
        let syslog = Syslog::new();
        let site = site(&[&origin], &format!("retry-on = {on}\n{}", syslog.section()));
        let _daemon = site.start();
        let answer = Client::connect(site.address()).ask(GET);
        assert_eq!((answer.status(), told.try_iter().count()), (status, asked), "{bad:?} {on}");
        assert!(status != 503 || answer.text() == "busy", "{bad:?} {on}: {answer:?}");
        // The number of retries is in the access line.
        let line = syslog.line();
        assert!(line.contains(&format!("/{} ", asked - 1)), "{bad:?} {on}: {line}");
    }
}

#[test]
fn the_last_attempt_goes_to_another_server() {
    let (bad, told) = unsteady(&[BUSY; 20]);
    let good = Origin::named("good");
    let site = site(&[&bad, &good], "retries = 2\nretry-on = \"503\"");
    let _daemon = site.start();
    for _ in 0..4 {
        assert_eq!(get(site.address(), "/").text(), "good");
    }
    assert_eq!(told.try_iter().count(), 4, "of every second request the first two attempts");
}

#[test]
fn a_server_that_leaves_while_it_is_asked_is_not_the_next_one() {
    let (tell, told) = mpsc::channel();
    let (answer, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let busy = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            // The test may be over already.
            let _ = tell.send(head.line);
            let _ = wait.lock().unwrap().recv();
            if stream.write_all(BUSY.as_bytes()).is_err() {
                return;
            }
        }
    });
    let good = Origin::named("good");
    let site = Site::proxying(&[busy.address, good.address], "retries = 3\nretry-on = \"503\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(GET);
    told.recv_timeout(PATIENCE).unwrap();
    let order = site.proxy(&["server", "set", "pool/s1", "--state", "maint"]);
    assert_eq!(code(&order), 0, "{}", text(&order.stderr));
    // From here on it answers at once.
    answer.send(()).unwrap();
    drop(answer);
    assert_eq!(client.response().unwrap().text(), "good");
    assert_eq!(told.try_iter().count(), 0, "asked no more");
}

#[test]
fn what_may_have_been_done_and_what_is_not_whole_any_more_is_asked_once() {
    const ALL: &str = "retry-on = [\"empty-response\", \"junk-response\", \"503\"]";
    for (request, bad, status) in [
        ("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n", BUSY, 503),
        ("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi", "", 502),
        ("PUT / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi", BUSY, 503),
        ("PATCH / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n", BUSY, 503),
    ] {
        let (origin, told) = unsteady(match bad {
            "" => &[""],
            _ => &[BUSY],
        });
        let site = site(&[&origin], ALL);
        let _daemon = site.start();
        let answer = Client::connect(site.address()).ask(request);
        assert_eq!((answer.status(), told.try_iter().count()), (status, 1), "{request}");
    }
    // The client has heard of the first attempt already.
    let (origin, told) =
        unsteady(&["HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"]);
    let site = site(&[&origin], ALL);
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(GET);
    assert_eq!([client.response().unwrap().status(), client.response().unwrap().status()], [103, 503]);
    assert_eq!(told.try_iter().count(), 1);
}

#[test]
fn a_request_of_http_2_is_asked_again_too() {
    let (origin, told) = unsteady(&["", BUSY]);
    let site = site(&[&origin], "retry-on = [\"empty-response\", \"503\"]");
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("backend = \"pool\"", "backend = \"pool\"\nproto = \"h2\"")).unwrap();
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        assert_eq!(client.get("/").await.text(), "well");
    });
    assert_eq!(told.try_iter().count(), 3);
}

#[test]
fn without_connections_among_it_a_failed_connection_is_the_last() {
    let dead = support::Port::new();
    let good = Origin::named("good");
    for (on, statuses) in
        [("", [200, 200]), ("retry-on = \"503\"", [503, 200]), ("retry-on = \"conn-failure\"", [200, 200])]
    {
        let site = Site::proxying(&[dead.address, good.address], &format!("retries = 1\n{on}\n"));
        let _daemon = site.start();
        assert_eq!([0, 1].map(|_| get(site.address(), "/").status()), statuses, "{on}");
    }
}

#[test]
fn what_cannot_be_retried_on_is_an_error() {
    for (settings, problem) in [
        ("retry-on = \"always\"", "`always` is nothing to retry on"),
        ("retry-on = [\"200\"]", "`200` is nothing to retry on"),
        ("mode = \"tcp\"\nretry-on = \"503\"", "means nothing where no request"),
    ] {
        let site = Site::proxying(&["127.0.0.1:9".parse().unwrap()], settings);
        let check = site.proxy(&["check"]);
        assert!(code(&check) == 1 && text(&check.stderr).contains(problem), "{settings}: {}", text(&check.stderr));
    }
}
