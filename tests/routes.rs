//! Routes of requests: the first one that fits, by host, method and path; and what cannot be a route.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use support::client::Client;
use support::origin::Origin;
use support::syslog::Syslog;
use support::{Site, code, text};

const ROUTES: &str = r#"
[[frontend.web.route]]
when = { host = "*.api.test", method = ["GET", "HEAD"] }
backend = "read"
[[frontend.web.route]]
when = { host = ["api.test", "*.api.test"] }
backend = "api"
[[frontend.web.route]]
when = [{ path-suffix = [".css", ".js"] }, { path-prefix = "/assets/" }]
backend = "static"
[[frontend.web.route]]
when = { path = "/exact" }
backend = "api"
"#;

/// A site whose backends are called after what they answer.
fn site(default: &str, more: &str) -> Site {
    let backends: Vec<_> = ["read", "api", "static", "rest"]
        .map(|name| format!("[backend.{name}]\nservers = \"{}\"\n", Origin::named(name).address))
        .into();
    Site::new(&format!("[frontend.web]\nbind = \"{{port}}\"\n{default}{ROUTES}{}{more}", backends.concat()))
}

#[test]
fn the_first_route_that_fits_is_taken() {
    let log = Syslog::new();
    let site = site("backend = \"rest\"\n", &log.section());
    let _daemon = site.start();
    // Each request on the same connection: the way is chosen anew.
    let mut client = Client::connect(site.address());
    for (line, host, wanted) in [
        ("GET /", "x.api.test", "read"),
        ("GET /", "X.API.test:8080", "read"),
        ("POST /", "x.api.test", "api"),
        ("GET /", "api.test", "api"),
        ("GET /", "api.test.", "api"),
        ("GET /", "notapi.test", "rest"),
        ("GET /", "[::1]:80", "rest"),
        ("GET /a/b.css", "w.test", "static"),
        ("GET /a/b.css?v=1", "w.test", "static"),
        ("GET /a?x=.css", "w.test", "rest"),
        ("GET /assets/x", "w.test", "static"),
        ("GET /assets", "w.test", "rest"),
        ("GET /exact?q", "w.test", "api"),
        ("GET /exact/", "w.test", "rest"),
        ("GET http://w.test/assets/x", "w.test", "static"),
        ("GET http://api.test", "api.test", "api"),
        ("OPTIONS *", "w.test", "rest"),
    ] {
        let answer = client.ask(format!("{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(answer.text(), wanted, "{line} of {host}");
        assert_eq!(log.words()[3], format!("{wanted}/s1"), "{line} of {host}");
    }
}

#[test]
fn where_no_route_fits_and_there_is_no_default_nobody_is_there() {
    let site = site("", "");
    let _daemon = site.start();
    let ask = |path: &str| Client::connect(site.address()).ask(format!("GET {path} HTTP/1.1\r\nHost: w\r\n\r\n"));
    assert_eq!((ask("/exact").text().as_str(), ask("/").status()), ("api", 503));
}

#[test]
fn what_cannot_be_a_route_is_refused() {
    let site = Site::new("");
    let base = "[backend.b]\nservers = \"127.0.0.1:1\"\n[frontend.f]\nbind = \"127.0.0.1:2\"\nbackend = \"b\"\n";
    for (when, problem) in [
        ("{ path = \"x\" }", "`x` is in no path"),
        ("{ path-prefix = \"/a?b\" }", "`/a?b` is in no path"),
        ("{ path-suffix = \"\" }", "`` is in no path"),
        ("{ method = \"get\" }", "`get` is no method"),
        ("{ host = \"a:80\" }", "`a:80` is no name"),
        ("{ host = [] }", "`host` names nothing"),
        ("{ sni = \"a\" }", "unknown key `sni`"),
        ("{}", "a condition that asks for nothing"),
    ] {
        site.configure(&format!("{base}route = [{{ when = {when}, backend = \"b\" }}]\n"));
        let output = site.proxy(&["check"]);
        assert_eq!(code(&output), 1, "{when}");
        assert!(text(&output.stderr).contains(problem), "{when}: {}", text(&output.stderr));
    }
    site.configure(&format!("{base}inspect = {{ tls-hello = true }}\n"));
    assert!(text(&site.proxy(&["check"]).stderr).contains("`inspect` looks into what is passed on unopened"));
}
