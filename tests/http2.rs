//! HTTP/2 from clients: the same phases as HTTP/1, translated without a way to desynchronise.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Reason, client};
use support::client::{Client, read_head};
use support::h2::{self as http2, END_HEADERS, END_STREAM, GOAWAY, H2Client, HEADERS, RST_STREAM, Raw, get_block};
use support::origin::{Origin, download, ok};
use support::syslog::Syslog;
use support::{Site, text};

/// A site that speaks both protocols in plain; `frontend` are more keys of the frontend.
fn site(origin: &Origin, frontend: &str, rest: &str) -> Site {
    Site::new(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nproto = \"auto\"\nbackend = \"pool\"\n{frontend}\n\n\
         [backend.pool]\nserver = [{{ name = \"s1\", address = \"{}\" }}]\n{rest}\n",
        origin.address
    ))
}

#[test]
fn a_request_takes_the_way_it_takes_in_http_1() {
    let (origin, requests) = Origin::recording(|request| ok(&request.line));
    let log = Syslog::new();
    let edits = "forwarded-for = true\nrequest-headers.set = { X-Seen = \"yes\" }\n\
                 response-headers.add = { X-Frame-Options = \"DENY\" }";
    let site = site(&origin, edits, &log.section());
    let _daemon = site.start();
    let answer = http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let mut request = client.request("GET", "/a?b");
        request.headers_mut().append("cookie", "a=1".parse().unwrap());
        request.headers_mut().append("cookie", "b=2".parse().unwrap());
        client.ask(request, b"").await.unwrap()
    });
    assert_eq!((answer.status, answer.text().as_str()), (200, "GET /a?b HTTP/1.1"));
    assert_eq!(answer.field("x-frame-options"), Some("DENY"));
    let seen = requests.next();
    assert_eq!(seen.values("cookie"), ["a=1; b=2"]);
    assert_eq!(seen.values("host"), [site.address().to_string()]);
    assert_eq!((seen.field("x-seen"), seen.field("x-forwarded-for")), (Some("yes"), Some("127.0.0.1")));
    let line = log.line();
    let expected = format!("\"GET http://{}/a?b HTTP/2.0\"", site.address());
    assert!(line.ends_with(&expected) && line.contains(" web pool/s1 ") && line.contains(" 200 "), "{line}");
}

#[test]
fn pages_redirects_and_limits_are_the_same_in_both_protocols() {
    let origin = Origin::echo();
    let frontend = "limit = { uri-length = \"64B\", headers = 10 }\nerror-pages.414 = \"{dir}/414.http\"\n\
                    [[frontend.web.rule]]\nwhen = { tls = true }\nredirect = { scheme = \"http\" }";
    let site = Site::new("");
    let page = "HTTP/1.0 414 Long\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nour page";
    std::fs::write(site.path("414.http"), page).unwrap();
    let down = support::Port::new();
    let text = format!(
        "[frontend.web]\nbind = \"{{port}}\"\nproto = \"h2\"\nbackend = \"pool\"\n{frontend}\n\n\
         [[frontend.web.route]]\nwhen = {{ path-prefix = \"/down/\" }}\nbackend = \"down\"\n\
         [backend.pool]\nservers = [\"{}\"]\n[backend.down]\nretries = 0\nservers = [\"{}\"]\n",
        origin.address, down.address
    );
    site.configure(&text);
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let long = client.get(&format!("/{}", "x".repeat(64))).await;
        assert_eq!((long.status, long.text().as_str()), (414, "our page"));
        assert_eq!(client.get("/down/").await.status, 503);
        let head = client.ask(client.request("HEAD", "/down/"), b"").await.unwrap();
        assert_eq!((head.status, head.body.len()), (503, 0));
        let mut many = client.request("GET", "/");
        for number in 0..11 {
            many.headers_mut().append(http::HeaderName::try_from(format!("x-{number}")).unwrap(), "".parse().unwrap());
        }
        assert_eq!(client.ask(many, b"").await.unwrap().status, 431);
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
        let connect = http::Request::builder().method("CONNECT").uri("other:443").body(()).unwrap();
        assert_eq!(client.ask(connect, b"").await.unwrap().status, 405);
    });
}

#[test]
fn bodies_of_any_kind_cross_byte_by_byte() {
    let big = download(700_000);
    let whole = big.clone();
    let origin = Origin::answering(move |request| match request.path() {
        "/length" => ok(&request.body.len().to_string()),
        "/same" => [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), chunks(&request.body)].concat(),
        "/big" => {
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", whole.len()).into_bytes(), whole.clone()].concat()
        }
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"
            .to_vec(),
    });
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let mut declared = client.request("POST", "/length");
        declared.headers_mut().insert("content-length", "700000".parse().unwrap());
        assert_eq!(client.ask(declared, &big).await.unwrap().text(), "700000");
        let same = client.ask(client.request("POST", "/same"), &big).await.unwrap();
        assert!(same.body == big, "{} bytes", same.body.len());
        assert!(client.get("/big").await.body == big);
        assert_eq!(client.get("/204").await.status, 204);
        let unchanged = client.get("/304").await;
        assert_eq!((unchanged.status, unchanged.field("content-length")), (304, Some("77")));
        let trailed = client.get("/trailers").await;
        assert_eq!((trailed.text().as_str(), trailed.trailers.unwrap()["x-sum"].to_str().unwrap()), ("hi", "7"));
    });
}

fn chunks(body: &[u8]) -> Vec<u8> {
    let one = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
    let mut out: Vec<u8> = body.chunks(10_000).flat_map(one).collect();
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[test]
fn trailers_of_a_request_reach_a_server_of_http_1() {
    let (origin, requests) = Origin::recording(|_| ok("fine"));
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let mut send = client.send.clone();
        let (response, mut stream) = send.send_request(client.request("POST", "/"), false).unwrap();
        stream.send_data(Bytes::from_static(b"body"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        trailers.insert("content-length", "9".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    let seen = requests.next();
    assert_eq!((seen.text().as_str(), seen.trailers), ("body", vec![("x-sum".into(), "7".into())]));
}

#[test]
fn interim_responses_are_passed_on() {
    let origin = Origin::new(|stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        read_head(&mut reader).unwrap();
        writer.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").unwrap();
        writer.write_all(&ok("late")).unwrap();
    });
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let (mut response, _) = client.send.clone().send_request(client.request("GET", "/"), true).unwrap();
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</a.css>".parse().unwrap()));
        assert_eq!(http2::whole(response.await.unwrap()).await.unwrap().text(), "late");
    });
}

#[test]
fn a_truncated_response_is_reset_and_not_ended() {
    let origin = Origin::new(|mut stream| {
        read_head(&mut BufReader::new(stream.try_clone().unwrap())).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    });
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let error = client.ask(client.request("GET", "/"), b"").await.unwrap_err();
        assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::INTERNAL_ERROR)));
    });
}

#[test]
fn a_client_can_send_no_more_than_the_server_takes() {
    let (taken, take) = mpsc::channel::<()>();
    let take = std::sync::Mutex::new(take);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let origin = Origin::new(move |mut stream| {
        read_head(&mut BufReader::with_capacity(1, stream.try_clone().unwrap())).unwrap();
        let _ = take.lock().unwrap().recv();
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if counted.fetch_add(length, Ordering::SeqCst) + length >= 24_000_000 {
                break;
            }
        }
        stream.write_all(&ok("enough")).unwrap();
    });
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let mut request = client.request("POST", "/");
        request.headers_mut().insert("content-length", "24000000".parse().unwrap());
        let (response, mut stream) = client.send.clone().send_request(request, false).unwrap();
        let piece = Bytes::from(vec![b'x'; 16_384]);
        let mut sent = 0;
        // It stands still when the sockets on the way and the stream's window are full.
        loop {
            stream.reserve_capacity(piece.len());
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let Ok(room) = tokio::time::timeout(std::time::Duration::from_secs(1), room).await else { break };
            let room = room.unwrap().unwrap().min(piece.len());
            stream.send_data(piece.slice(..room), false).unwrap();
            sent += room;
        }
        assert!(sent < 16_000_000, "{sent} bytes went somewhere");
        taken.send(()).unwrap();
        let rest = vec![b'x'; 24_000_000 - sent];
        http2::write(&mut stream, &rest, true).await.unwrap();
        assert_eq!(http2::whole(response.await.unwrap()).await.unwrap().text(), "enough");
    });
}

/// Sends a block by hand; the status that comes back, or the code of a reset.
fn by_hand(site: &Site, block: &[u8]) -> Result<(), u32> {
    let mut raw = Raw::connect(site.address());
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, block);
    loop {
        let frame = raw.read().unwrap();
        match frame.kind {
            HEADERS => return Ok(()),
            RST_STREAM | GOAWAY => return Err(frame.code()),
            _ => {}
        }
    }
}

#[test]
fn malformed_requests_never_reach_a_server() {
    let (origin, requests) = Origin::recording(|_| ok("fine"));
    let site = site(&origin, "", "");
    let _daemon = site.start();
    let refused = Err(1);
    for more in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        ("upgrade", "x"),
        ("X-Upper", "1"),
        ("x-line", "a\r\nGET /smuggled HTTP/1.1"),
        ("x-nul", "a\0b"),
        ("content-length", "5"),
        (":path", "/twice"),
        (":unknown", "x"),
        ("x:y", "z"),
    ] {
        assert_eq!(by_hand(&site, &get_block(&[more])), refused, "{more:?}");
    }
    let without = |name: &str| -> Vec<u8> {
        let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", "/")];
        usual.iter().filter(|(key, _)| *key != name).flat_map(|(key, value)| http2::literal(key, value)).collect()
    };
    for name in [":method", ":scheme", ":path"] {
        assert_eq!(by_hand(&site, &without(name)), refused, "without {name}");
    }
    // These are for us to refuse, with an answer.
    let mut raw = Raw::connect(site.address());
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &get_block(&[("host", "other")]));
    let answer = raw.expect(HEADERS);
    assert_eq!(answer.flags & END_STREAM, 0, "a page follows");
    assert_eq!(by_hand(&site, &get_block(&[("host", "test")])), Ok(()));
    assert_eq!(requests.next().path(), "/");
    assert_eq!(requests.left(), 0, "nothing else has reached the server");
}

#[test]
fn http_1_is_what_a_plain_listener_speaks_unless_told_otherwise() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.response().unwrap().status(), 505);
}

#[test]
fn a_websocket_crosses_as_an_extended_connect() {
    let origin = Origin::new(|stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let head = read_head(&mut reader).unwrap();
        assert_eq!((head.line.as_str(), head.field("upgrade")), ("GET /chat HTTP/1.1", Some("websocket")));
        assert!(head.field("sec-websocket-key").is_some_and(|key| key.len() == 24));
        let switch =
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
        writer.write_all(switch).unwrap();
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            writer.write_all(&buffer[..length]).unwrap();
        }
    });
    let site = site(&origin, "", "");
    let _daemon = site.start();
    http2::run(async {
        let stream = tokio::net::TcpStream::connect(site.address()).await.unwrap();
        let (mut send, mut connection) = client::handshake(stream).await.unwrap();
        // The server has to say first that it takes these.
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut connection).poll(cx) {
            _turned if send.is_extended_connect_protocol_enabled() => std::task::Poll::Ready(()),
            std::task::Poll::Ready(ended) => panic!("{ended:?}"),
            std::task::Poll::Pending => std::task::Poll::Pending,
        })
        .await;
        tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method("CONNECT")
            .uri(format!("http://{}/chat", site.address()))
            .version(http::Version::HTTP_2)
            .body(())
            .unwrap();
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let (response, mut stream) = send.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get("sec-websocket-accept")), (200, None));
        let mut body = response.into_body();
        for word in ["ping", "pong"] {
            stream.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), word);
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let end = http2::read(&mut body).await.unwrap();
        assert_eq!(end, b"", "the end is passed on");
    });
}

#[test]
#[ignore = "needs curl with HTTP/2"]
fn curl_speaks_it_by_prior_knowledge_and_over_tls() {
    let origin = Origin::echo();
    let site = Site::new("");
    support::certificate(site.folder.path(), "a.pem", &["localhost"]);
    let secure = support::Port::new();
    site.configure(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nproto = \"auto\"\nbackend = \"pool\"\n\
         [frontend.tls]\nbind = \"{}\"\nbackend = \"pool\"\ntls.certificates = [\"{{dir}}/a.pem\"]\n\
         [backend.pool]\nservers = [\"{}\"]\n",
        secure.address, origin.address
    ));
    let _daemon = site.start();
    for (option, url, version) in [
        ("--http2-prior-knowledge", format!("http://{}/x", site.address()), "2"),
        ("--http1.1", format!("http://{}/x", site.address()), "1.1"),
        ("--http2", format!("https://{}/x", secure.address), "2"),
        ("--http1.1", format!("https://{}/x", secure.address), "1.1"),
    ] {
        let format = " %{http_version} %{http_code}";
        let output =
            Command::new("curl").args(["-sk", "--max-time", "20", "-w", format, option, &url]).output().unwrap();
        assert_eq!(text(&output.stdout), format!("GET /x HTTP/1.1\n {version} 200"), "{option} {url}");
    }
}
