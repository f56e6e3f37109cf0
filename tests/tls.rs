//! TLS towards clients, end to end: certificates by name, versions, suites, groups, tickets across reloads.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_RSA_SHA256};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion, SignatureScheme,
    SupportedProtocolVersion,
};

use support::client::Client;
use support::origin::Origin;
use support::tls::{Pair, TlsClient};
use support::{Daemon, Site, code, serving};

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// One TLS frontend in front of a server that says `one`, with this text in its TLS section.
fn site(settings: &str) -> Site {
    Site::proxying(&[Origin::named("one").address], &format!("[frontend.web.tls]\n{settings}"))
}

/// A site with one certificate for `localhost`, running.
fn running(settings: &str) -> (Site, Daemon) {
    let site = site(&format!("certificates = [\"a.pem\"]\n{settings}"));
    Pair::written(site.folder.path(), "a.pem", "localhost");
    let daemon = site.start();
    (site, daemon)
}

#[test]
fn the_certificate_follows_the_name_the_client_asks_for() {
    let site = site("certificates = [\"first.pem\", \"second.pem\", \"wild.pem\"]");
    let folder = site.folder.path();
    let first = Pair::written(folder, "first.pem", "first.example");
    let second = Pair::written(folder, "second.pem", "second.example");
    let wild = Pair::written(folder, "wild.pem", "*.wild.example");
    let _daemon = site.start();
    for versions in [[&TLS12], [&TLS13]] {
        for (name, expected) in [
            ("first.example", &first),
            ("second.example", &second),
            ("SECOND.example", &second),
            ("a.wild.example", &wild),
            // A wildcard stands for exactly one label (RFC 6125 section 6.4.3).
            ("a.b.wild.example", &first),
            ("wild.example", &first),
            ("unknown.example", &first),
            // Addresses are not sent as names (RFC 6066 section 3).
            ("127.0.0.1", &first),
        ] {
            let answer = TlsClient::new(&versions).get(site.address(), name);
            assert!(answer.leaf() == expected.der, "another certificate for {name}, {versions:?}");
            assert_eq!(answer.response.text(), "one");
        }
        let mut nameless = TlsClient::new(&versions);
        nameless.config.enable_sni = false;
        assert!(nameless.get(site.address(), "second.example").leaf() == first.der, "no name, {versions:?}");
    }
}

#[test]
fn a_certificate_with_only_a_common_name_is_served() {
    let site = site("certificates = [\"first.pem\", \"cn.pem\"]");
    Pair::written(site.folder.path(), "first.pem", "first.example");
    let pair = Pair::new("localhost", &[], &KeyPair::generate().unwrap());
    fs::write(site.path("cn.pem"), pair.text()).unwrap();
    let _daemon = site.start();
    assert!(TlsClient::new(&BOTH).get(site.address(), "localhost").leaf() == pair.der);
}

#[test]
fn a_doubled_file_with_the_key_first_is_one_certificate() {
    let site = site("certificates = [\"twice.pem\"]");
    let pair = Pair::new("localhost", &["localhost"], &KeyPair::generate().unwrap());
    let text = format!("{}{}", pair.key, pair.certificate);
    fs::write(site.path("twice.pem"), text.repeat(2)).unwrap();
    let _daemon = site.start();
    assert_eq!(TlsClient::new(&BOTH).get(site.address(), "localhost").chain, [pair.der]);
}

#[test]
fn a_chain_in_any_order_is_sent_leaf_first() {
    let site = site("certificates = [{ cert = \"chain.crt\", key = \"leaf.key\" }]");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Test CA");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![String::from("localhost")]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(site.path("chain.crt"), issuer.pem() + &leaf.pem()).unwrap();
    fs::write(site.path("leaf.key"), key.serialize_pem()).unwrap();
    let _daemon = site.start();
    let answer = TlsClient::new(&BOTH).get(site.address(), "localhost");
    assert_eq!(answer.chain, [leaf.der().to_vec(), issuer.der().to_vec()]);
}

#[test]
fn an_rsa_certificate_is_for_those_who_know_no_other() {
    let site = site("certificates = [\"ecdsa.pem\", \"rsa.pem\"]");
    let ecdsa = Pair::written(site.folder.path(), "ecdsa.pem", "localhost");
    let rsa = Pair::new("localhost", &["localhost"], &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    fs::write(site.path("rsa.pem"), rsa.text()).unwrap();
    let _daemon = site.start();
    let only_rsa = vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256];
    for versions in [[&TLS12], [&TLS13]] {
        let old = TlsClient::verifying(&versions, only_rsa.clone());
        for name in ["localhost", "unknown.example"] {
            assert!(old.get(site.address(), name).leaf() == rsa.der, "{name}, {versions:?}");
        }
        assert!(TlsClient::new(&versions).get(site.address(), "localhost").leaf() == ecdsa.der, "{versions:?}");
    }
}

#[test]
fn min_version_1_3_refuses_an_older_client_and_serves_the_others() {
    let (site, _daemon) = running("min-version = \"1.3\"");
    let refusal = TlsClient::new(&[&TLS12]).try_get(site.address(), "localhost").map(|_| ()).unwrap_err();
    assert_eq!(refusal, rustls::Error::AlertReceived(AlertDescription::ProtocolVersion));
    let answer = TlsClient::new(&BOTH).get(site.address(), "localhost");
    assert_eq!(answer.session().protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn a_suite_is_named_the_iana_or_the_openssl_way() {
    for (name, suite) in [
        ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ] {
        let (site, _daemon) = running(&format!("ciphers = [\"{name}\"]"));
        let answer = TlsClient::new(&[&TLS12]).get(site.address(), "localhost");
        let negotiated = answer.session().negotiated_cipher_suite().unwrap().suite();
        assert_eq!(negotiated, suite, "{name}");
        let newer = TlsClient::new(&BOTH).get(site.address(), "localhost");
        assert_eq!(newer.session().protocol_version(), Some(ProtocolVersion::TLSv1_3), "{name}");
    }
}

#[test]
fn a_current_client_gets_a_key_exchange_that_outlives_quantum_computers() {
    let (site, _daemon) = running("");
    let answer = TlsClient::new(&BOTH).get(site.address(), "localhost");
    let group = answer.session().negotiated_key_exchange_group().unwrap().name();
    assert_eq!((group, answer.kind), (NamedGroup::X25519MLKEM768, HandshakeKind::Full));
}

#[test]
fn groups_can_be_restricted() {
    let (site, _daemon) = running("groups = [\"P-384\"]");
    let answer = TlsClient::new(&BOTH).get(site.address(), "localhost");
    assert_eq!(answer.session().negotiated_key_exchange_group().unwrap().name(), NamedGroup::secp384r1);
}

#[test]
fn a_client_that_offers_http_2_gets_it_where_it_is_offered() {
    let offer = |client: &mut TlsClient, protocols: &[&[u8]]| {
        client.config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    };
    let mut client = TlsClient::new(&BOTH);
    let (site, _daemon) = running("");
    offer(&mut client, &[b"h2", b"http/1.1"]);
    assert_eq!(client.shake(site.address(), "localhost").unwrap().conn.alpn_protocol(), Some(&b"h2"[..]));
    offer(&mut client, &[b"http/1.1"]);
    assert_eq!(client.get(site.address(), "localhost").session().alpn_protocol(), Some(&b"http/1.1"[..]));
    offer(&mut client, &[]);
    assert_eq!(client.get(site.address(), "localhost").session().alpn_protocol(), None);
    let (site, _daemon) = running("alpn = [\"http/1.1\"]");
    offer(&mut client, &[b"h2", b"http/1.1"]);
    assert_eq!(client.get(site.address(), "localhost").session().alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn a_session_is_resumed_by_the_next_generation() {
    let (site, _daemon) = running("");
    for versions in [[&TLS12], [&TLS13]] {
        let client = TlsClient::new(&versions);
        assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full, "{versions:?}");
        assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Resumed, "{versions:?}");
        for command in ["reload-socket", "reload"] {
            let before = serving(&site.status());
            assert_eq!(code(&site.proxy(&[command])), 0, "{command}");
            assert_ne!(serving(&site.status()), before, "{command}");
            let answer = client.get(site.address(), "localhost");
            assert_eq!((answer.kind, answer.response.text()), (HandshakeKind::Resumed, String::from("one")));
        }
        // Tickets are no use to a client that starts afresh: the assertions above can fail.
        assert_eq!(TlsClient::new(&versions).get(site.address(), "localhost").kind, HandshakeKind::Full);
    }
}

#[test]
fn ticket_keys_rotate_and_the_last_ones_still_resume() {
    let settings = "[global.tls]\ntickets = { rotate = \"2s\", keep = 2 }\n";
    let (site, daemon) = running(settings);
    let client = TlsClient::new(&[&TLS12]);
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full);
    daemon.hear("ticket keys were rotated");
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Resumed, "by the key before");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Resumed, "by the next generation");
    daemon.hear("ticket keys were rotated");
    daemon.hear("ticket keys were rotated");
    daemon.hear("ticket keys were rotated");
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full, "by no key that is gone");
}

#[test]
fn a_closed_connection_ends_with_a_notice_so_that_truncation_shows() {
    let (site, _daemon) = running("");
    let mut answer = TlsClient::new(&BOTH).get(site.address(), "localhost");
    let stream = answer.reader.get_mut();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    // Without the notice the library reports an unexpected end.
    answer.reader.read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200 OK\r\n") && rest.ends_with(b"\r\n\r\none"), "{}", rest.escape_ascii());
}

#[test]
fn a_plain_client_on_the_tls_port_is_turned_away_and_harms_nobody() {
    let (site, _daemon) = running("");
    let before = serving(&site.status());
    let mut plain = Client::connect(site.address());
    plain.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut rest = Vec::new();
    let ended = plain.reader.read_to_end(&mut rest).map_err(|error| error.kind());
    assert!(matches!(ended, Ok(_) | Err(ErrorKind::ConnectionReset)), "the connection stays open: {ended:?}");
    // At most a TLS alert: nothing of the site in the clear.
    assert!(rest.is_empty() || rest.starts_with(&[0x15, 0x03]), "{}", rest.escape_ascii());
    assert_eq!(TlsClient::new(&BOTH).get(site.address(), "localhost").response.text(), "one");
    assert_eq!(serving(&site.status()), before);
}

#[test]
fn a_key_of_another_certificate_stops_the_start_with_its_place() {
    let site = site("certificates = [\"a.pem\"]");
    let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pair = Pair::new("localhost", &["localhost"], &one);
    fs::write(site.path("a.pem"), pair.certificate + &other.serialize_pem()).unwrap();
    let said = site.launch(&[], &[]).map(|_| ()).unwrap_err();
    assert!(said.contains("belongs to its private key") && said.contains("proxy.toml:"), "{said}");
}
