//! HTTP semantics towards clients, with real processes: connections, heads, refusals, redirects, error pages.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::time::{Duration, Instant};

use support::client::{Client, End, Message};
use support::origin::{Origin, ok};
use support::{PATIENCE, Port, Site};

/// Answers every request with its path.
fn echo() -> Origin {
    Origin::answering(|request| ok(request.path()))
}

fn fields<'a>(message: &'a Message, names: &[&str]) -> Vec<(&'a str, &'a str)> {
    let wanted = message.fields.iter().filter(|(name, _)| names.contains(&name.as_str()));
    wanted.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// A refused request gets one answer, the connection ends, and no server hears of it.
fn assert_refused(site: &Site, origin: &Origin, request: &str, status: u16) {
    let mut client = Client::connect(site.address());
    let answer = client.ask(request);
    assert_eq!((answer.status(), answer.field("connection")), (status, Some("close")), "{request:?}");
    assert!(answer.complete, "{request:?}");
    assert_eq!(client.rest(), b"", "a second answer to {request:?}");
    assert_eq!(origin.accepted(), 0, "{request:?} reached a server");
}

#[test]
fn an_http_1_0_client_that_does_not_ask_is_not_kept() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let answer = client.ask("GET /old HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "/old"));
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(client.at_end());
}

#[test]
fn an_http_1_0_client_that_asks_is_kept_and_told_so() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for path in ["/one", "/two", "/three"] {
        let answer = client.ask(format!("GET {path} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert_eq!((answer.text().as_str(), answer.field("connection")), (path, Some("keep-alive")));
    }
}

#[test]
fn an_http_1_1_client_that_says_close_is_told_close_and_closed() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let answer = client.ask("GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("/last", Some("close")));
    assert!(client.at_end());
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    // Bodies are echoed too: one that is cut in the wrong place shifts everything behind it.
    let origin = Origin::answering(|request| ok(&format!("{} {}", request.path(), request.text())));
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut all = String::new();
    for number in 0..60 {
        all += &match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: test\r\n\r\n"),
            1 => format!("POST /{number} HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nGET /x"),
            _ => format!(
                "POST /{number} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
            ),
        };
    }
    let mut client = Client::connect(site.address());
    client.send(&all);
    for number in 0..60 {
        let body = ["", "GET /x", "hi"][number % 3];
        assert_eq!(client.response().unwrap().text(), format!("/{number} {body}"));
    }
}

#[test]
fn a_client_that_ends_its_direction_early_still_gets_its_answers() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /a HTTP/1.1\r\nHost: test\r\n\r\nGET /b HTTP/1.1\r\nHost: test\r\n\r\n");
    client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.response().unwrap().text(), "/a");
    assert_eq!(client.response().unwrap().text(), "/b");
    assert!(client.at_end());
}

#[test]
fn responses_without_a_body_do_not_shift_the_next_one() {
    let origin = Origin::answering(|request| match request.path() {
        "/204" => b"HTTP/1.1 204 No Content\r\nX-Kind: none\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: \"x\"\r\n\r\n".to_vec(),
        _ if request.line.starts_with("HEAD ") => b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n".to_vec(),
        path => ok(path),
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for (request, status, length) in
        [("GET /204", 204, None), ("GET /304", 304, Some("77")), ("HEAD /", 200, Some("77"))]
    {
        client.send(format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n"));
        let answer = client.head().unwrap();
        assert_eq!((answer.status(), answer.field("content-length")), (status, length), "{request}");
        assert_eq!(answer.field("transfer-encoding"), None, "{request}");
        assert_eq!(client.get("/after").text(), "/after", "after {request}");
    }
    assert_eq!(origin.accepted(), 1, "the server's connection was kept throughout");
}

#[test]
fn a_body_where_none_may_be_never_becomes_the_next_answer() {
    let origin = Origin::answering(|request| match request.path() {
        "/204" => b"HTTP/1.1 204 No Content\r\nContent-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            .to_vec(),
        "/head" => ok("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        path => ok(path),
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for request in ["GET /204", "HEAD /head"] {
        client.send(format!("{request} HTTP/1.1\r\nHost: test\r\n\r\n"));
        client.head().unwrap();
        assert_eq!(client.get("/after").text(), "/after", "after {request}");
    }
}

#[test]
fn a_request_reaches_the_server_as_http_1_1_without_hop_by_hop_fields() {
    let (origin, requests) = Origin::recording(|_| ok(""));
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.ask(
        "GET http://test/a?b HTTP/1.1\r\nHost: test\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: gzip\r\nX-End: 2\r\n\r\n",
    );
    let request = requests.next();
    assert_eq!(request.line, "GET /a?b HTTP/1.1");
    assert_eq!(request.fields, [("host".into(), "test".into()), ("x-end".into(), "2".into())]);
    Client::connect(site.address()).ask("GET /old HTTP/1.0\r\nHost: test\r\n\r\n");
    assert_eq!(requests.next().line, "GET /old HTTP/1.1");
}

#[test]
fn x_forwarded_for_is_appended_to_what_is_there() {
    let (origin, requests) = Origin::recording(|_| ok(""));
    let site = Site::proxying(&[origin.address], "[defaults]\nforwarded-for = true");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.get("/");
    assert_eq!(requests.next().values("x-forwarded-for"), ["127.0.0.1"]);
    client.ask("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n");
    assert_eq!(requests.next().values("x-forwarded-for"), ["192.0.2.7", "127.0.0.1"]);
}

#[test]
fn header_edits_remove_replace_and_add() {
    let (origin, requests) = Origin::recording(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: secret\r\nX-Set: old\r\nx-set: older\r\nX-Add: first\r\n\r\n"
            .to_vec()
    });
    let edits = "del = [\"server\", \"x-del\"]\nset = { X-Set = \"new\" }\nadd = { X-Add = \"second\" }";
    let site = Site::proxying(
        &[origin.address],
        &format!("[frontend.web.request-headers]\n{edits}\n[frontend.web.response-headers]\n{edits}"),
    );
    let _daemon = site.start();
    let request = "GET / HTTP/1.1\r\nHost: test\r\nX-DEL: 1\r\nX-Set: a\r\nX-Set: b\r\nX-Add: first\r\n\r\n";
    let answer = Client::connect(site.address()).ask(request);
    let wanted = [("x-add", "first"), ("x-set", "new"), ("x-add", "second")];
    let names = ["server", "x-del", "x-set", "x-add"];
    assert_eq!(fields(&answer, &names), wanted);
    assert_eq!(fields(&requests.next(), &names), wanted);
}

#[test]
fn each_kind_of_redirect_gives_its_location_and_code() {
    let cases = [
        ("scheme = \"https\"", "https://test/a?b=c", 302),
        ("scheme = \"https\", code = 301", "https://test/a?b=c", 301),
        ("host = \"other.example\", code = 307", "http://other.example/a?b=c", 307),
        ("scheme = \"https\", host = \"other.example:8443\", code = 308", "https://other.example:8443/a?b=c", 308),
        ("prefix = \"https://other.example/sub\", code = 303", "https://other.example/sub/a?b=c", 303),
        ("location = \"/moved\", code = 302", "/moved", 302),
    ];
    let ports: Vec<_> = cases.iter().map(|_| Port::new()).collect();
    let frontends = cases.iter().zip(&ports).enumerate().map(|(number, ((redirect, ..), port))| {
        let bind = port.address;
        format!("[frontend.f{number}]\nbind = \"{bind}\"\nrule = [{{ redirect = {{ {redirect} }} }}]\n")
    });
    let site = Site::new(&frontends.collect::<String>());
    let _daemon = site.start();
    for ((rule, location, code), port) in cases.iter().zip(&ports) {
        let mut client = Client::connect(port.address);
        // Twice: a redirect does not cost the connection.
        for _ in 0..2 {
            let answer = client.ask("GET /a?b=c HTTP/1.1\r\nHost: test:8080\r\n\r\n");
            assert_eq!((answer.status(), answer.field("location")), (*code, Some(*location)), "{rule}");
        }
    }
}

#[test]
fn a_redirected_request_with_a_body_ends_the_connection() {
    let site = Site::new("[frontend.web]\nbind = \"{port}\"\nrule = [{ redirect = { scheme = \"https\" } }]");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    // The body looks like a request: whoever does not know it for a body answers twice.
    let body = "GET /x HTTP/1.1\r\nHost: test\r\n\r\n";
    let answer = client.ask(format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!((answer.status(), answer.field("connection")), (302, Some("close")));
    assert!(client.at_end());
}

#[test]
fn what_is_still_on_its_way_after_our_own_answer_is_taken_in_not_reset() {
    let (dead, redirecting) = (Port::new(), Port::new());
    let rule = "rule = [{ redirect = { scheme = \"https\" } }]";
    let other = format!("[frontend.other]\nbind = \"{}\"\n{rule}", redirecting.address);
    let site = Site::proxying(&[dead.address], &format!("retries = 0\n{other}"));
    let _daemon = site.start();
    let post = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n";
    for (address, request, status) in
        [(redirecting.address, post, 302), (site.address(), post, 503), (site.address(), "POST / HTTP/1.1\n", 400)]
    {
        let mut client = Client::connect(address);
        assert_eq!(client.ask(request).status(), status);
        assert!(client.at_end());
        // A moment, in which a connection that was simply closed is gone.
        site.status();
        client.send("first");
        client.send("other");
        client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.end(), (Vec::new(), End::Closed), "after {status}");
    }
}

#[test]
fn a_raw_error_page_is_sent_as_it_is_and_others_stay_built_in() {
    let dead = Port::new();
    let site = Site::proxying(
        &[dead.address],
        "retries = 0\n[frontend.web.error-pages]\n503 = \"{dir}/503.http\"\n400 = \"{dir}/400.http\"",
    );
    let page = "HTTP/1.0 503 Sorry\r\nX-Own: yes\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry";
    // Line feeds alone are what an editor makes of such a file.
    let edited = "HTTP/1.0 400 No\nContent-Length: 4\nConnection: close\n\nno!\n";
    std::fs::write(site.path("503.http"), page).unwrap();
    std::fs::write(site.path("400.http"), edited).unwrap();
    let _daemon = site.start();
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: test\r\n\r\n", page),
        ("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n", page.strip_suffix("sorry").unwrap()),
        ("GET / HTTP/1.1\r\n\r\n", edited),
    ] {
        let mut client = Client::connect(site.address());
        client.send(request);
        assert_eq!(support::text(&client.rest()), expected, "{request:?}");
    }
    let mut client = Client::connect(site.address());
    let answer = client.ask("GET / HTTP/3.0\r\nHost: test\r\n\r\n");
    assert_eq!((answer.status(), answer.field("content-type")), (505, Some("text/html")));
    assert!(answer.complete && answer.text().contains("505"), "{answer:?}");
}

#[test]
fn an_error_answer_to_head_has_no_body() {
    let dead = Port::new();
    let pages = ["", "[frontend.web.error-pages]\n503 = \"{dir}/503.http\""];
    for page in pages {
        let site = Site::proxying(&[dead.address], &format!("retries = 0\n{page}"));
        // Line feeds alone end this page's head, too.
        std::fs::write(site.path("503.http"), "HTTP/1.0 503 Sorry\nContent-Length: 5\n\nsorry").unwrap();
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        client.send("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n");
        let answer = support::text(&client.rest());
        assert!(answer.starts_with("HTTP/1.") && answer.contains(" 503 "), "{answer:?}");
        assert!(answer.ends_with("\n\n") || answer.ends_with("\r\n\r\n"), "a body: {answer:?}");
    }
}

#[test]
fn heads_up_to_the_limits_pass_and_beyond_them_are_refused() {
    let origin = echo();
    let limits = "[frontend.web.limit]\nuri-length = \"64B\"\nheaders = 4\nheader-size = \"512B\"";
    let site = Site::proxying(&[origin.address], limits);
    let _daemon = site.start();
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "a".repeat(length - 1));
    let count = |fields: usize| format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "A: b\r\n".repeat(fields - 1));
    let size = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}\r\n\r\n", "a".repeat(bytes - 35));
    assert_eq!(size(512).len(), 512);
    for (request, status) in [(target(65), 414), (count(5), 431), (size(513), 431)] {
        assert_refused(&site, &origin, &request, status);
    }
    for request in [target(64), count(4), size(512)] {
        assert_eq!(Client::connect(site.address()).ask(&request).status(), 200, "{request:?}");
    }
}

#[test]
fn an_endless_head_is_refused_before_it_ends() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    assert_refused(&site, &origin, &format!("GET /{}", "a".repeat(9000)), 414);
    assert_refused(&site, &origin, &format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}", "a".repeat(17_000)), 431);
}

#[test]
fn requests_that_two_parsers_could_read_differently_are_refused() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
    for (fields, status) in [
        ("", 400),
        ("Host: a\r\nHost: a\r\n", 400),
        ("Host: a\r\nHost: b\r\n", 400),
        ("Host: a b\r\n", 400),
        ("Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Host: a\r\nContent-Length: 5, 5\r\n", 400),
        ("Host: a\r\nContent-Length: +5\r\n", 400),
        ("Host: a\r\nContent-Length: -1\r\n", 400),
        ("Host: a\r\nContent-Length: 99999999999999999999\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked, chunked\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: \r\n", 400),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        ("Host: a\r\nTransfer-Encoding : chunked\r\n", 400),
        ("Host: a\r\nX: y\r\n folded\r\n", 400),
        ("Host: a\r\nX: y\nContent-Length: 5\r\n", 400),
        ("Host: a\r\nX: y\rz\r\n", 400),
        ("Host: a\r\nX: y\0z\r\n", 400),
    ] {
        assert_refused(&site, &origin, &format!("POST / HTTP/1.1\r\n{fields}\r\n0\r\n\r\n{smuggled}"), status);
    }
    assert_refused(&site, &origin, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    assert_refused(&site, &origin, "CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n", 405);
    assert_refused(&site, &origin, "\u{16}\u{3}\u{1}\0\u{5}hello", 400);
}

#[test]
fn a_head_that_never_completes_gets_408_however_it_drips() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "[frontend.web.timeout]\nhttp-request = \"300ms\"");
    let _daemon = site.start();
    let mut silent = Client::connect(site.address());
    let answer = silent.ask("GET / HTTP/1.1\r\nHost: te");
    assert_eq!((answer.status(), answer.field("connection")), (408, Some("close")));
    assert!(silent.at_end());

    // A byte now and then buys no time.
    let mut dripping = Client::connect(site.address());
    dripping.send("GET / HTTP/1.1\r\nHost: test\r\nX: ");
    let deadline = Instant::now() + PATIENCE;
    while dripping.silent_for(Duration::from_millis(20)) {
        assert!(Instant::now() < deadline, "every byte buys time");
        dripping.send("x");
    }
    assert_eq!(dripping.response().unwrap().status(), 408);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn an_idle_kept_connection_is_closed_without_a_word() {
    let origin = echo();
    let site = Site::proxying(&[origin.address], "[frontend.web.timeout]\nhttp-keep-alive = \"200ms\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.get("/");
    assert!(client.at_end());
}
