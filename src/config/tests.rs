//! Whole configurations: what each mistake is called, and what a valid file comes to.
//! Run by `cargo test --lib config`.
//! Never binds.

use std::time::Duration;

use super::*;

/// A backend that a frontend may name.
const BACKEND: &str = "[backend.b]\nservers = [\"127.0.0.1:9000\"]\n";
/// A frontend that lacks nothing; what is put behind it belongs to it.
const FRONTEND: &str = "[backend.b]\nservers = [\"127.0.0.1:9000\"]\n[frontend.f]\nbind = \"*:80\"\nbackend = \"b\"\n";

fn read(text: &str) -> Result<Loaded, Rejected> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f.toml");
    std::fs::write(&path, text).unwrap();
    load(&path, &|format| if format == "bad" { Err(String::from("bad format")) } else { Ok(()) })
}

fn frontend(text: &str) -> Frontend {
    let loaded = read(&format!("{FRONTEND}{text}")).unwrap_or_else(|rejected| panic!("{text}: {rejected}"));
    loaded.bundle.frontends.into_iter().next().unwrap()
}

/// Each text is wrong once, and the report holds both the problem and the advice.
fn each_is_wrong_once(base: &str, cases: &[(&str, &str, &str)]) {
    for (text, problem, advice) in cases {
        let rejected = read(&format!("{base}{text}")).map(|_| ()).expect_err(text);
        assert_eq!(rejected.errors, 1, "{text}: {rejected}");
        assert!(rejected.rendered.contains(problem), "{text}: {problem:?} is not in {rejected}");
        assert!(rejected.rendered.contains(advice), "{text}: {advice:?} is not in {rejected}");
        assert!(rejected.rendered.contains("f.toml:"), "{text}: no place in {rejected}");
    }
}

#[test]
fn a_value_of_another_kind_is_told_what_belongs_there() {
    each_is_wrong_once(
        FRONTEND,
        &[
            ("maxconn = \"5\"", "a string where a whole number belongs", "write a whole number"),
            ("maxconn = 0", "`maxconn` is out of range", "write 1 to 10000000"),
            ("maxconn = -1", "`maxconn` is out of range", "write 1 to 10000000"),
            ("maxconn = 99999999999999999999", "", "f.toml"),
            ("maxconn = 1.5", "a number where a whole number belongs", "write a whole number"),
            ("forwarded-for = \"yes\"", "a string where true or false belongs", "write true or false"),
            ("timeout = 5", "a number where a table belongs", "write a table"),
            ("timeout.client = 5", "`client` has no unit", "write \"5s\" or \"5ms\""),
            ("timeout.client = \"5\"", "`client` is not understood", "a unit is missing"),
            ("timeout.client = \"5y\"", "`client` is not understood", "unknown unit `y`"),
            ("timeout.client = true", "true or false where a string with a unit belongs", "write"),
            ("limit.header-size = 16", "`header-size` has no unit", "\"16KiB\""),
            ("limit.header-size = \"16\"", "`header-size` is not understood", "a unit is missing"),
            ("access-format = 2024-01-01", "a date where a string belongs", "write a string"),
            ("access-format = [\"a\"]", "a list where a string belongs", "write a string"),
            ("access-format = \"bad\"", "the access format cannot be used", "bad format"),
            (
                "[[log]]\ntarget = \"syslog:/dev/log\"\ntag = \"two\\nlines\"",
                "a tag has 1 to 48",
                "the name of a program",
            ),
            ("[[log]]\ntarget = \"syslog:/dev/log\"\ntag = \"\"", "a tag has 1 to 48", "the name of a program"),
            ("access-format = \"${NO_SUCH_VARIABLE_HERE}\"", "`NO_SUCH_VARIABLE_HERE` is not set", ":-default"),
            ("connection-mode = \"kep-alive\"", "cannot be `kep-alive`", "did you mean `keep-alive`?"),
            ("error-pages.503 = \"none.http\"", "cannot read", "none.http"),
        ],
    );
}

#[test]
fn limits_are_lax_only_for_a_number_of_connections() {
    let lax = |text: &str| read(&format!("{text}\n{FRONTEND}")).unwrap().bundle.global.lax_limits;
    assert!(lax("[global]\nmaxconn = 5\nstrict-limits = false"));
    assert!(!lax("[global]\nmaxconn = 5\nstrict-limits = true"));
    assert!(!lax("[global]\nmaxconn = 5"));
    let alone = ("[global]\nstrict-limits = false", "only beside `maxconn`", "add maxconn");
    each_is_wrong_once(FRONTEND, &[alone]);
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    each_is_wrong_once(
        FRONTEND,
        &[
            ("maxcon = 5", "unknown key `maxcon` in [frontend.f]", "did you mean `maxconn`?"),
            ("timeout.cleint = \"5s\"", "unknown key `cleint`", "did you mean `client`?"),
            ("timeout.connect = \"5s\"", "unknown key `connect`", "known here"),
            ("error-pages.999 = \"x\"", "unknown key `999`", ""),
            ("[tls]", "unknown key `tls` in the file", ""),
            ("[backend.c]\nservers = \"127.0.0.1:1\"\ntimeout.client = \"5s\"", "unknown key `client`", "connect"),
        ],
    );
}

#[test]
fn a_frontend_needs_a_bind_and_somewhere_to_send_requests() {
    each_is_wrong_once(
        BACKEND,
        &[
            ("", "there is no frontend", "[frontend.NAME]"),
            ("[frontend.f]\nbackend = \"b\"", "[frontend.f] has no bind", "add bind"),
            ("[frontend.f]\nbind = \"*:80\"", "[frontend.f] has no backend", "add backend"),
            ("[frontend.f]\nbind = \"*:80\"\nbackend = \"bb\"", "there is no [backend.bb]", "did you mean `b`?"),
            ("[frontend.f]\nbind = \"localhost:80\"\nbackend = \"b\"", "`localhost:80` is not an address", "*:80"),
            ("[frontend.f]\nbind = \"*:0\"\nbackend = \"b\"", "`*:0` is not an address", "*:80"),
            ("[frontend.f]\nbind = \"*:65536\"\nbackend = \"b\"", "`*:65536` is not an address", "*:80"),
            ("[frontend.f]\nbind = { v6only = true }\nbackend = \"b\"", "a bind without an address", "add address"),
            ("[frontend.f]\nbind = [\"*:80\", \":80\"]\nbackend = \"b\"", "0.0.0.0:80 is bound twice", ""),
            (
                "[frontend.f]\nbind = \"*:80\"\nrule = [{ when.tls = false, redirect.scheme = \"https\" }]",
                "[frontend.f] has no backend",
                "a rule without `when`",
            ),
        ],
    );
}

#[test]
fn a_rule_has_one_destination_that_cannot_break_its_line() {
    each_is_wrong_once(
        FRONTEND,
        &[
            ("rule = [{}]", "a rule without an action", "redirect"),
            ("rule = [{ redirect = {} }]", "a redirect without a destination", "add scheme"),
            ("rule = [{ redirect.scheme = \"ftp\" }]", "`scheme` cannot be `ftp`", "http"),
            ("rule = [{ redirect = { host = \"a\", code = 304 } }]", "no redirect", "use 301, 302"),
            ("rule = [{ redirect = { host = \"a\", code = 200 } }]", "out of range", "write 301 to 308"),
            ("rule = [{ redirect.location = \"/a\\r\\nEvil: 1\" }]", "only visible ASCII", "percent-encode"),
            ("rule = [{ redirect.prefix = \"/a b\" }]", "only visible ASCII", "percent-encode"),
            ("rule = [{ redirect.location = \"/caf\u{e9}\" }]", "only visible ASCII", "percent-encode"),
            ("rule = [{ redirect = { location = \"/a\", host = \"b\" } }]", "stand alone", "leave the others out"),
            ("rule = [{ redirect.host = \"a\", when.tsl = true }]", "unknown key `tsl`", "did you mean `tls`?"),
        ],
    );
}

#[test]
fn header_edits_cannot_touch_framing_or_break_a_line() {
    for name in ["Connection", "content-length", "Host", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade"]
    {
        for text in [
            format!("request-headers.set.{name} = \"1\""),
            format!("response-headers.add.{name} = \"1\""),
            format!("request-headers.del = [\"{name}\"]"),
        ] {
            each_is_wrong_once(FRONTEND, &[(&text, name, "leave it out")]);
        }
    }
    each_is_wrong_once(
        FRONTEND,
        &[
            ("request-headers.set.\"X Y\" = \"1\"", "`X Y` cannot be a field name", "letters"),
            ("request-headers.set.\"X:\" = \"1\"", "`X:` cannot be a field name", "letters"),
            ("request-headers.set.\"\" = \"1\"", "`` cannot be a field name", "letters"),
            ("request-headers.set.\"\u{dc}\" = \"1\"", "cannot be a field name", "letters"),
            ("request-headers.set.X = \"a\\r\\nEvil: 1\"", "this cannot be a field value", "control"),
            ("request-headers.set.X = \"a\\u0000\"", "this cannot be a field value", "control"),
            ("request-headers.set.X = \"%[sorc]\"", "`sorc` is not known", "did you mean `src`?"),
            ("request-headers.set.X = 1", "a number where a field value belongs", "write"),
            ("request-headers.sett.X = \"1\"", "unknown key `sett`", "did you mean `set`?"),
        ],
    );
}

#[test]
fn a_server_has_a_name_of_its_own_and_an_address_with_a_port() {
    let good = "{ name = \"s\", address = \"127.0.0.1:1\" }";
    let base = "[frontend.f]\nbind = \"*:80\"\nbackend = \"b\"\n[backend.b]\n";
    each_is_wrong_once(
        base,
        &[
            ("", "[backend.b] has no server", "add servers"),
            ("servers = [\"127.0.0.1\"]", "`127.0.0.1` is not a server's address", "write"),
            ("servers = [\"127.0.0.1:0\"]", "`127.0.0.1:0` is not a server's address", "write"),
            ("server = [{ name = \"s\" }]", "a server needs a name and an address", "write"),
            (&format!("server = [{good}, {good}]"), "server `s` is defined twice", "first here"),
            (
                "servers = \"127.0.0.1:1\"\nserver = { name = \"s1\", address = \"127.0.0.1:1\" }",
                "server `s1` is defined twice",
                "first here",
            ),
            (&format!("server = [{good}]\nbalance = \"uri\""), "`balance` cannot be `uri`", "roundrobin"),
            (
                "server = { name = \"s\", address = \"127.0.0.1:1\", weight = 257 }",
                "`weight` is out of range",
                "write 0 to 256",
            ),
        ],
    );
}

#[test]
fn the_statistics_page_is_never_open_by_accident() {
    let stats = |rest: &str| format!("[stats]\nbind = \"*:81\"\n{rest}");
    each_is_wrong_once(
        FRONTEND,
        &[
            (stats("auth = \"ops\"").as_str(), "there is no [users.ops]", ""),
            (&stats("auth = \"ops\"\n[users.ops]"), "[users.ops] holds nobody", "add an account"),
            (&stats("auth = \"ops\"\n[users.ops]\na = \"secret\""), "not a password hash", "mkpasswd"),
            (&stats("auth = \"ops\"\n[users.ops]\na = {}"), "a user without a password", "insecure-password"),
            (&stats("refresh = 5"), "`refresh` has no unit", "\"5s\""),
            ("[stats]\nbind = \"*:80\"", "0.0.0.0:80 is bound twice", "first here"),
        ],
    );
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    let rejected = read(&format!("config-version = 2\n{FRONTEND}maxcon = 1\ntimeout.client = 5\n")).unwrap_err();
    assert_eq!(rejected.errors, 3, "{rejected}");
    let place = |part: &str| rejected.rendered.find(part).unwrap_or_else(|| panic!("{part}: {rejected}"));
    assert!(place("config-version") < place("maxcon") && place("maxcon") < place("has no unit"), "{rejected}");
    assert!(read("= 1").unwrap_err().rendered.contains("not TOML"));
}

#[test]
fn binds_are_written_in_six_ways() {
    let address = |text: &str| Address::Internet(text.parse().unwrap());
    let text = format!(
        "{BACKEND}[frontend.f]\nbackend = \"b\"\nbind = [\"*:1\", \":2\", \"127.0.0.1:3\", \"[::]:4\", \
         {{ address = \"[::1]:5\", v6only = true, backlog = 7, interface = \"lo\" }}, \"unix:/run/f.sock\", \
         {{ address = \"unix:f.sock\", mode = \"0660\" }}, {{ fd-name = \"proxy.socket\", backlog = 9 }}]"
    );
    let binds = read(&text).unwrap().bundle.frontends.remove(0).binds;
    let got: Vec<_> = binds.iter().map(|bind| (bind.address.clone(), bind.v6only, bind.backlog)).collect();
    let Address::Unix(beside) = &binds[6].address else { panic!("{:?}", binds[6]) };
    let want = [
        (address("0.0.0.0:1"), false, 4096),
        (address("0.0.0.0:2"), false, 4096),
        (address("127.0.0.1:3"), false, 4096),
        (address("[::]:4"), false, 4096),
        (address("[::1]:5"), true, 7),
        (Address::Unix("/run/f.sock".into()), false, 4096),
        (Address::Unix(beside.clone()), false, 4096),
        (Address::Passed("proxy.socket".into()), false, 9),
    ];
    assert_eq!(got, want);
    assert!(beside.is_absolute() && beside.ends_with("f.sock"), "{beside:?}");
    assert_eq!((binds[4].interface.as_deref(), binds[6].access.mode), (Some("lo"), Some(0o660)));
    assert!(binds[0].origin.ends_with("f.toml:5:9"), "{}", binds[0].origin);
}

#[test]
fn a_bind_has_no_settings_of_another_kind_of_socket() {
    let long = format!("\"unix:/{}\"", "x".repeat(92));
    for (bind, problem) in [
        ("{ address = \"*:1\", v6only = true }", "nothing for an IPv4 address"),
        ("{ address = \"*:1\", mode = \"0600\" }", "for Unix sockets alone"),
        ("{ address = \"unix:/f\", v6only = true }", "nothing for a Unix socket"),
        ("{ address = \"unix:/f\", interface = \"lo\" }", "nothing for a Unix socket"),
        ("{ address = \"unix:/f\", mode = \"rw\" }", "octal digits"),
        ("{ address = \"*:1\", interface = \"a-name-too-long-for-it\" }", "not the name of an interface"),
        ("[\"unix:/f\", \"unix:/f\"]", "unix:/f is bound twice"),
        ("\"unix:\"", "not the path of a socket"),
        ("{ fd-name = \"x\", address = \"*:1\" }", "`address` is for whoever makes the socket"),
        ("{ fd-name = \"x\", mode = \"0600\" }", "`mode` is for whoever makes the socket"),
        ("{ fd-name = \"x\", accept-proxy = [\"10.0.0.0/8\"] }", "`accept-proxy` belongs to an address"),
        ("{ fd-name = \"\" }", "cannot be the name of a descriptor"),
        ("{ fd-name = \"a:b\" }", "cannot be the name of a descriptor"),
        ("{ fd-name = \"proxy-counters-1\" }", "has the supervisor keep"),
        ("{ fd-name = \"proxy-listener-17\" }", "has the supervisor keep"),
        ("[{ fd-name = \"x\" }, { fd-name = \"x\" }]", "fd-name `x` is bound twice"),
        (&long, "93 bytes"),
    ] {
        let rejected = read(&format!("{BACKEND}[frontend.f]\nbackend = \"b\"\nbind = {bind}\n")).unwrap_err();
        assert!(rejected.rendered.contains(problem), "{bind}: {rejected}");
    }
}

#[test]
fn a_frontends_own_settings_win_over_the_defaults() {
    let plain = frontend("");
    assert_eq!((plain.limit.header_size, plain.limit.headers, plain.maxconn), (16 * 1024, 100, None));
    let text = "maxconn = 1_000\ntimeout.client = \"1m30s\"\nlimit.header-size = \"8KB\"\n\
                [defaults]\nconnection-mode = \"close\"\ntimeout = { client = \"1s\", http-request = \"2s\" }\n";
    let own = frontend(text);
    assert_eq!((own.limit.header_size, own.limit.headers, own.maxconn), (8_000, 100, Some(1_000)));
    assert_eq!(own.timeout.client, Duration::from_secs(90));
    assert_eq!(own.timeout.http_request, Duration::from_secs(2));
    assert_eq!(own.connection_mode, ConnectionMode::Close);
}

#[test]
fn rules_and_edits_arrive_as_written() {
    let own = frontend(
        "request-headers = { del = [\"X-A\"], set.X-B = \"b\", add = { X-C = \"\", x-d = \"\\t\u{e9}\" } }\n\
         [[frontend.f.rule]]\nwhen.tls = false\nredirect = { scheme = \"https\", host = \"a\", code = 308 }\n",
    );
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(own.request_headers.del, ["x-a"]);
    assert_eq!(own.request_headers.set, [pair("X-B", "b")]);
    assert_eq!(own.request_headers.add, [pair("X-C", ""), pair("x-d", "\t\u{e9}")]);
    let [Rule { tls: Some(false), action: Action::Redirect(redirect) }] = &own.rules[..] else {
        panic!("{:?}", own.rules)
    };
    assert_eq!((redirect.scheme.as_deref(), redirect.host.as_deref(), redirect.code), (Some("https"), Some("a"), 308));
}

#[test]
fn systemds_watchdog_is_answered_by_the_threads_unless_the_file_says_otherwise() {
    let watchdog = |text: &str| read(&format!("{FRONTEND}{text}")).unwrap().bundle.systemd.watchdog;
    assert!(watchdog(""));
    assert!(!watchdog("\n[systemd]\nwatchdog = false\n"));
    each_is_wrong_once(FRONTEND, &[("\n[systemd]\nwatchdg = true", "unknown", "did you mean `watchdog`?")]);
}

#[test]
fn checks_are_what_haproxy_would_do_where_nothing_is_said() {
    let check = |text: &str| {
        let loaded = read(&FRONTEND.replace("[backend.b]\n", &format!("[backend.b]\n{text}\n")));
        loaded.unwrap_or_else(|rejected| panic!("{text}: {rejected}")).bundle.backends[0].check.clone()
    };
    assert_eq!(check(""), None);
    let plain = check("check = {}").unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((plain.interval, plain.fast, plain.timeout), (seconds(2), seconds(2), seconds(2)));
    assert_eq!((plain.fall, plain.rise, plain.full(), plain.question), (3, 2, 4, Question::Nothing));
    let http =
        check("check = { type = \"http\", interval = \"3s\", fast = \"500ms\" }\ntimeout.check = \"1s\"").unwrap();
    assert_eq!((http.fast, http.timeout), (Duration::from_millis(500), seconds(1)));
    let Question::Http(request) = http.question else { panic!("{http:?}") };
    assert_eq!((request.path.as_str(), &request.statuses[..]), ("/", &[(200, 399)][..]));
    let wanted = "check = { type = \"http\", expect = { status = [\"200-299, 404\", 503], body = \"ok\" } }";
    let Some(Check { question: Question::Http(request), .. }) = check(wanted) else { panic!("no check over HTTP") };
    assert_eq!((&request.statuses[..], request.body), (&[(200, 299), (404, 404), (503, 503)][..], Some("ok".into())));
}

#[test]
fn a_check_that_could_not_work_is_refused() {
    each_is_wrong_once(
        FRONTEND,
        &[
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck.path = \"/x\"",
                "`path` means something only",
                "type = \"http\"",
            ),
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { type = \"htpp\" }",
                "cannot be `htpp`",
                "did you mean `http`?",
            ),
            ("[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { fall = 0 }", "`fall` is out of range", "1 to 1000"),
            ("[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { inter = \"2s\" }", "unknown key `inter`", "interval"),
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { type = \"http\", path = \"a b\" }",
                "`a b` is not a path",
                "/healthz",
            ),
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { type = \"http\", host = \"a\\r\\nb\" }",
                "`host` is not a host name",
                "write",
            ),
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { type = \"http\", expect.status = \"2xx\" }",
                "`2xx` is no status",
                "200-299",
            ),
            (
                "[backend.c]\nservers = \"127.0.0.1:1\"\ncheck = { type = \"http\", method = \"HEAD\", expect.body = \"x\" }",
                "has no body",
                "use GET",
            ),
            (
                "[backend.c]\nserver = { name = \"s\", address = \"127.0.0.1:1\", check = true }",
                "nothing says how this server is checked",
                "add check",
            ),
        ],
    );
}
