//! Certificates of clients: who is let in, what the server behind learns, what a resumed session is worth.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber, date_time_ymd};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, Error, HandshakeKind, SupportedProtocolVersion};
use support::authority::{Authority, parts};
use support::client::read_message;
use support::origin::Origin;
use support::syslog::Syslog;
use support::tls::{Pair, TlsClient};
use support::{Port, Site, code, output, pid, serving, text, until};
use time::OffsetDateTime;

const FIELDS: &str = "request-headers.set = { X-CN = \"%[ssl_c_s_dn(cn)]\", X-Serial = \"%[ssl_c_serial,hex]\", \
    X-DN = \"%[ssl_c_s_dn]\", X-Used = \"%[ssl_c_used]\", X-Facts = \"%[src] %[ssl_fc] %[ssl_fc_protocol] \
    %[ssl_fc_sni] %[ssl_c_verify]\" }";

/// A server that answers with the fields it got whose names begin with `X-`.
fn telling() -> Origin {
    Origin::answering(|request| {
        let told: Vec<_> = request.fields.iter().filter(|(name, _)| name.starts_with("x-")).collect();
        let lines: String = told.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        support::origin::ok(&lines)
    })
}

/// A site whose clients are those of `ca.pem`.
fn site(auth: &str) -> (Site, Authority, Origin) {
    let (site, origin) = (Site::new(""), telling());
    let authority = Authority::written(site.folder.path(), "ca.pem");
    Pair::written(site.folder.path(), "site.pem", "localhost");
    configure(&site, &origin, auth);
    (site, authority, origin)
}

fn configure(site: &Site, origin: &Origin, auth: &str) {
    let tls = format!("[frontend.web.tls]\ncertificates = [\"site.pem\"]\nclient-auth = {auth}\n");
    let text = Site::text(&[origin.address], "")
        .replace("backend = \"pool\"\n", &format!("backend = \"pool\"\nforwarded-for = false\n{FIELDS}\n{tls}"));
    site.configure(&text);
}

/// A client with the certificate and key of a PEM text.
fn client(versions: &[&'static SupportedProtocolVersion], identity: Option<&str>) -> TlsClient {
    let mut client = TlsClient::new(versions);
    if let Some(pem) = identity {
        let (chain, key) = parts(pem);
        let key = CertifiedKey::new(chain, any_supported_type(&key).unwrap());
        client.config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
    }
    client
}

/// What the server behind was told, or why there was no session.
fn told(client: &TlsClient, address: SocketAddr) -> Result<(String, HandshakeKind), Error> {
    let mut stream = client.shake(address, "localhost")?;
    // The refusal of TLS 1.3 comes when the client believes to be done.
    let sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-CN: forged\r\nX-Used: forged\r\n\r\n");
    let mut first = [0; 1];
    let refused = sent.and_then(|()| stream.read_exact(&mut first)).err();
    if let Some(error) = refused {
        return Err(error.downcast::<Error>().unwrap());
    }
    let kind = stream.conn.handshake_kind().unwrap();
    let mut reader = BufReader::new(first.chain(&mut stream));
    let body = read_message(&mut reader, true).unwrap().text();
    Ok((body, kind))
}

fn refused(client: &TlsClient, address: SocketAddr) -> AlertDescription {
    match told(client, address) {
        Err(Error::AlertReceived(alert)) => alert,
        other => panic!("{other:?}"),
    }
}

fn with_serial(serial: u8) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.serial_number = Some(SerialNumber::from_slice(&[serial]))
}

#[test]
fn a_client_that_is_let_in_is_known_to_the_server_behind() {
    let (site, authority, _origin) = site("{ ca-file = \"ca.pem\" }");
    let _daemon = site.start();
    let identity = authority.issue_as("Zoë\r\nX-Evil: 1", &[], |params| {
        params.serial_number = Some(SerialNumber::from_slice(&[0x0A, 0xBC]));
        params.distinguished_name.push(DnType::OrganizationName, "Example");
    });
    for (versions, name) in [([&TLS12], "TLSv1.2"), ([&TLS13], "TLSv1.3")] {
        let (body, _kind) = told(&client(&versions, Some(&identity)), site.address()).unwrap();
        let expected = [
            "x-cn=Zoë??X-Evil: 1",
            "x-dn=/CN=Zoë??X-Evil: 1/O=Example",
            &format!("x-facts=127.0.0.1 1 {name} localhost 0"),
            "x-serial=0ABC",
            "x-used=1",
        ];
        let mut lines: Vec<_> = body.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, expected);
    }
}

#[test]
fn who_is_not_believed_is_refused_with_the_alert_that_says_why() {
    let auth = "{ mode = \"required\", ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }";
    let (site, authority, origin) = site(auth);
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
    let syslog = Syslog::new();
    configure(&site, &origin, &format!("{auth}\n{}", syslog.section()));
    let _daemon = site.start();
    let good = authority.issue_as("good", &[], with_serial(1));
    let revoked = authority.issue_as("revoked", &[], with_serial(66));
    let expired = authority.issue_as("expired", &[], |params| params.not_after = date_time_ymd(2020, 1, 1));
    let stranger = Authority::new("Test CA").issue("stranger", &[]);
    for versions in [[&TLS12], [&TLS13]] {
        assert!(told(&client(&versions, Some(&good)), site.address()).unwrap().0.contains("x-cn=good\n"));
        assert!(syslog.line().contains("\"GET / HTTP/1.1\""));
        for (identity, alert, reason) in [
            (None, AlertDescription::CertificateRequired, "peer sent no certificates"),
            (Some(&revoked), AlertDescription::CertificateRevoked, "invalid peer certificate: Revoked"),
            (Some(&expired), AlertDescription::CertificateExpired, "invalid peer certificate: certificate expired"),
            // Of the same name, but not of the same key.
            (Some(&stranger), AlertDescription::DecryptError, "invalid peer certificate: BadSignature"),
        ] {
            let client = client(&versions, identity.map(String::as_str));
            assert_eq!(refused(&client, site.address()), alert, "{versions:?}");
            let line = syslog.line();
            assert!(line.contains(&format!("] web/1: SSL handshake failure ({reason}")), "{versions:?}: {line}");
        }
    }
    // A list that is out of date says nothing any more.
    fs::write(site.path("revoked.pem"), authority.revoke(&[], 2025)).unwrap();
    let reload = site.proxy(&["reload"]);
    assert!(code(&reload) == 0 && text(&reload.stderr).contains("out of date"), "{}", text(&reload.stderr));
    assert_eq!(refused(&client(&[&TLS13], Some(&good)), site.address()), AlertDescription::UnknownCA);
}

#[test]
fn an_optional_certificate_may_be_left_out_but_not_made_up() {
    let (site, authority, _origin) = site("{ mode = \"optional\", ca-file = \"ca.pem\" }");
    let _daemon = site.start();
    let (body, _) = told(&client(&[&TLS13], None), site.address()).unwrap();
    assert!(body.contains("x-cn=\n") && body.contains("x-used=0\n") && body.contains("x-serial=\n"), "{body}");
    let identity = authority.issue("one", &[]);
    let (body, _) = told(&client(&[&TLS13], Some(&identity)), site.address()).unwrap();
    assert!(body.contains("x-cn=one\n") && body.contains("x-used=1\n"), "{body}");
    let stranger = Authority::new("Other CA").issue("one", &[]);
    assert_eq!(refused(&client(&[&TLS13], Some(&stranger)), site.address()), AlertDescription::UnknownCA);
}

#[test]
fn a_client_may_be_named_itself() {
    let (site, _authority, origin) = site("{ ca-file = \"ca.pem\" }");
    let (friend, other) = ("friend", "other");
    let [friend, other] = [friend, other].map(|name| Pair::new(name, &[], &KeyPair::generate().unwrap()));
    fs::write(site.path("friends.pem"), &friend.certificate).unwrap();
    configure(&site, &origin, "{ ca-file = \"friends.pem\" }");
    let _daemon = site.start();
    assert!(told(&client(&[&TLS13], Some(&friend.text())), site.address()).unwrap().0.contains("x-cn=friend\n"));
    assert!(told(&client(&[&TLS13], Some(&other.text())), site.address()).is_err());
}

#[test]
fn a_resumed_session_is_that_of_the_same_client_until_the_rules_change() {
    let (site, authority, origin) = site("{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }");
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
    let _daemon = site.start();
    for versions in [[&TLS12], [&TLS13]] {
        fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
        assert_eq!(code(&site.proxy(&["reload"])), 0);
        let identity = authority.issue_as("good", &[], with_serial(1));
        let client = client(&versions, Some(&identity));
        let (_, first) = told(&client, site.address()).unwrap();
        assert_ne!(first, HandshakeKind::Resumed);
        for _ in 0..2 {
            let (body, kind) = told(&client, site.address()).unwrap();
            assert!(kind == HandshakeKind::Resumed && body.contains("x-cn=good\n"), "{kind:?} {body}");
        }
        // Also over a reload that changes nothing of it.
        configure(&site, &origin, "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", mode = \"required\" }");
        assert_eq!(code(&site.proxy(&["reload"])), 0);
        assert_eq!(told(&client, site.address()).unwrap().1, HandshakeKind::Resumed);
        fs::write(site.path("revoked.pem"), authority.revoke(&[66, 1], 2101)).unwrap();
        assert_eq!(code(&site.proxy(&["reload"])), 0);
        assert_eq!(refused(&client, site.address()), AlertDescription::CertificateRevoked, "{versions:?}");
    }
}

/// A client that has proven who it is, and resumes its session.
fn resuming(version: &'static SupportedProtocolVersion, identity: &str, address: SocketAddr) -> TlsClient {
    let client = client(&[version], Some(identity));
    assert_ne!(told(&client, address).unwrap().1, HandshakeKind::Resumed);
    assert_eq!(told(&client, address).unwrap().1, HandshakeKind::Resumed);
    client
}

#[test]
fn a_session_is_resumed_for_no_longer_than_what_let_its_client_in_is_good() {
    const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
    let end = OffsetDateTime::from_unix_timestamp(OffsetDateTime::now_utc().unix_timestamp() + 6).unwrap();
    let (site, authority, _origin) = site("{ ca-file = \"ca.pem\" }");
    let (lists, lists_authority, _origin) = self::site("{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }");
    fs::write(lists.path("revoked.pem"), lists_authority.revoke_until(&[66], end)).unwrap();
    let (_daemon, _other) = (site.start(), lists.start());
    let leaf = authority.issue_as("leaf", &[], |params| params.not_after = end);
    let between = authority.intermediate("Between", |params| params.not_after = end);
    let below = between.issue("below", &[]) + &between.pem();
    let listed = lists_authority.issue_as("listed", &[], with_serial(1));
    let of = |identity, at: &Site| VERSIONS.map(|version| resuming(version, identity, at.address()));
    let (leaves, belows, listeds) = (of(&leaf, &site), of(&below, &site), of(&listed, &lists));
    until("the end of all of it", || OffsetDateTime::now_utc() > end + Duration::from_secs(1));
    // Whoever shows it again is told what is wrong with it.
    for client in leaves.iter().chain(&belows) {
        assert_eq!(refused(client, site.address()), AlertDescription::CertificateExpired);
    }
    for client in &listeds {
        assert_eq!(refused(client, lists.address()), AlertDescription::UnknownCA);
    }
    // Whoever has another one by now is let in with it.
    let renewed = authority.issue("renewed", &[]);
    for mut client in leaves {
        client.config.client_auth_cert_resolver =
            self::client(&VERSIONS, Some(&renewed)).config.client_auth_cert_resolver;
        let (body, kind) = told(&client, site.address()).unwrap();
        assert!(kind != HandshakeKind::Resumed && body.contains("x-cn=renewed\n"), "{kind:?} {body}");
        assert_eq!(told(&client, site.address()).unwrap().1, HandshakeKind::Resumed);
    }
}

#[test]
fn authorities_and_revocation_lists_that_change_count_without_a_reload_and_for_every_worker_to_come() {
    let (site, authority, origin) = site("{ ca-file = \"ca.pem\" }");
    let watching = "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }\nwatch = true";
    configure(&site, &origin, watching);
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
    let daemon = site.start();
    let first = authority.issue_as("first", &[], with_serial(1));
    let next = Authority::new("Next CA");
    let second = next.issue_as("second", &[], with_serial(2));
    let admitted = |identity: &String| told(&client(&[&TLS13], Some(identity)), site.address()).is_ok();
    let resumes = resuming(&TLS13, &first, site.address());
    assert!(!admitted(&second));
    // A list that is broken changes nothing, and is told.
    fs::write(site.path("revoked.pem"), "-----BEGIN X509 CRL-----").unwrap();
    daemon.hear("revoked.pem");
    assert!(admitted(&first));
    fs::write(site.path("revoked.pem"), authority.revoke(&[66, 1], 2101)).unwrap();
    until("the first is revoked", || !admitted(&first));
    daemon.hear("frontend web: other revocation lists for clients");
    assert_eq!(refused(&resumes, site.address()), AlertDescription::CertificateRevoked);
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101) + &next.revoke(&[], 2101)).unwrap();
    fs::write(site.path("ca.pem"), authority.pem() + &next.pem()).unwrap();
    until("both authorities count", || admitted(&first) && admitted(&second));
    daemon.hear("frontend web: other authorities for clients");
    let before = serving(&site.status());
    kill(pid(before), Signal::SIGKILL).unwrap();
    site.await_status("a new worker", |status| {
        let all = status["generations"].as_array().unwrap();
        all.iter().any(|one| one["state"] == "serving" && one["pid"] != before)
    });
    assert!(admitted(&first) && admitted(&second));
    // Nobody is left who vouches for the first.
    fs::write(site.path("ca.pem"), next.pem()).unwrap();
    until("the first authority is gone", || !admitted(&first));
    assert!(admitted(&second));
}

#[test]
fn a_certificate_half_made_does_not_hold_up_a_newer_revocation_list() {
    let (site, authority, origin) = site("{ ca-file = \"ca.pem\" }");
    configure(&site, &origin, "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }\nwatch = true");
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
    let daemon = site.start();
    let first = authority.issue_as("first", &[], with_serial(1));
    let admitted = || told(&client(&[&TLS13], Some(&first)), site.address()).is_ok();
    assert!(admitted());
    let whole = fs::read_to_string(site.path("site.pem")).unwrap();
    fs::write(site.path("site.pem"), &whole[..whole.len() / 2]).unwrap();
    daemon.hear("frontend web: the certificates stay as they are");
    assert!(admitted());
    fs::write(site.path("revoked.pem"), authority.revoke(&[66, 1], 2101)).unwrap();
    until("the first is revoked", || !admitted());
    daemon.hear("frontend web: other revocation lists for clients");
}

#[test]
fn a_session_that_began_where_nobody_is_asked_does_not_let_in_where_everybody_is() {
    let (site, _authority, origin) = site("{ ca-file = \"ca.pem\" }");
    let open = Port::new();
    let text = fs::read_to_string(site.config()).unwrap();
    let more = format!(
        "\n[frontend.open]\nbind = \"{}\"\nbackend = \"pool\"\ntls.certificates = [\"site.pem\"]\n",
        open.address
    );
    fs::write(site.config(), text + &more).unwrap();
    let _daemon = site.start();
    let _ = origin;
    for versions in [[&TLS12], [&TLS13]] {
        let client = client(&versions, None);
        told(&client, open.address).unwrap();
        assert_eq!(told(&client, open.address).unwrap().1, HandshakeKind::Resumed);
        assert!(told(&client, site.address()).is_err(), "{versions:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_an_error_and_what_stays_empty_a_warning() {
    let (site, _authority, origin) = site("{ ca-file = \"ca.pem\" }");
    for (auth, problem) in [
        ("{ }", "has no ca-file"),
        ("{ mode = \"optionl\", ca-file = \"ca.pem\" }", "did you mean `optional`?"),
        ("{ ca-file = \"site.key\" }", "cannot read"),
        ("{ ca-file = \"ca.pem\", crl-file = \"ca.pem\" }", "holds no revocation list"),
    ] {
        configure(&site, &origin, auth);
        let check = site.proxy(&["check"]);
        assert!(code(&check) == 1 && text(&check.stderr).contains(problem), "{auth}: {}", text(&check.stderr));
    }
    configure(&site, &origin, "{ ca-file = \"ca.pem\" }");
    let whole = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), whole.replace("client-auth = { ca-file = \"ca.pem\" }\n", "")).unwrap();
    let check = site.proxy(&["check"]);
    assert!(code(&check) == 0 && text(&check.stderr).contains("no client shows a certificate here"));
}

/// Runs `openssl` in a folder; panics when it fails.
fn openssl(site: &Site, arguments: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(site.folder.path());
    let output = output(command);
    assert!(output.status.success(), "openssl {arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
#[ignore = "needs openssl"]
fn certificates_and_lists_that_openssl_makes_are_understood() {
    let (site, _authority, origin) = site("{ ca-file = \"ca.pem\" }");
    for name in ["good", "bad"] {
        openssl(
            &site,
            &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /C=FR/O=Ex/CN={name}"),
        );
    }
    openssl(&site, "req -x509 -newkey rsa:2048 -nodes -days 30 -keyout root.key -out root.pem -subj /CN=Root");
    fs::write(site.path("index.txt"), "").unwrap();
    fs::write(site.path("ca.cnf"), "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ncertificate=root.pem\nprivate_key=root.key\ndefault_md=sha256\ndefault_days=30\ndefault_crl_days=30\npolicy=p\nx509_extensions=x\n[x]\nbasicConstraints=CA:FALSE\n[e]\nauthorityKeyIdentifier=keyid\n[p]\ncommonName=supplied\norganizationName=optional\ncountryName=optional\n").unwrap();
    fs::write(site.path("serial"), "1A2B\n").unwrap();
    for name in ["good", "bad"] {
        openssl(&site, &format!("ca -batch -config ca.cnf -in {name}.csr -out {name}.crt"));
    }
    openssl(&site, "ca -config ca.cnf -revoke bad.crt");
    openssl(&site, "ca -config ca.cnf -gencrl -out root.crl");
    configure(&site, &origin, "{ ca-file = \"root.pem\", crl-file = \"root.crl\" }");
    // Without extensions it is of a version that the library does not read.
    let check = site.proxy(&["check"]);
    assert!(code(&check) == 1 && text(&check.stderr).contains("crl_extensions"), "{}", text(&check.stderr));
    openssl(&site, "ca -config ca.cnf -gencrl -crlexts e -out root.crl");
    configure(&site, &origin, "{ ca-file = \"root.pem\", crl-file = \"root.crl\" }");
    let _daemon = site.start();
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |name: &str| {
            let script = format!(
                "printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n' | timeout 20 openssl s_client -quiet \
                 {version} -connect {} -servername localhost -cert {name}.crt -key {name}.key 2>&1",
                site.address()
            );
            let mut command = Command::new("sh");
            command.args(["-c", &script]).current_dir(site.folder.path());
            text(&output(command).stdout)
        };
        let good = ask("good");
        assert!(
            good.contains("x-cn=good") && good.contains("x-dn=/CN=good/O=Ex/C=FR") && good.contains("x-serial=1A2B"),
            "{good}"
        );
        let bad = ask("bad");
        assert!(bad.contains("certificate revoked") && !bad.contains("200 OK"), "{bad}");
    }
}
