use super::client::{Client, info, meta};
use super::*;
use crate::nbd::proto::{opt, rep, tx};
use common::{Clock, ErrorKind};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn list_names_every_export_with_its_description() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    let replies = c.option(opt::LIST, &[]).await;
    let names: Vec<String> = replies.iter().map(|r| r.text()).collect();
    assert_eq!(names, ["\0\0\0\x03p/aabout p/a", "\0\0\0\x03p/babout p/b", "\0\0\0\x04p/roabout p/ro", ""]);
    assert_eq!(c.option(opt::LIST, b"x").await[0].kind, rep::ERR_INVALID, "LIST has no payload");
}

#[tokio::test]
async fn info_tells_size_flags_blocks_name_and_description_and_go_starts() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    c.structured().await;
    for option in [opt::INFO, opt::GO] {
        let replies = c.option(option, &info("a", &[1, 2, 3])).await;
        let body = |kind: u16| {
            replies
                .iter()
                .find(|r| r.kind == rep::INFO && r.body[..2] == kind.to_be_bytes())
                .map(|r| r.body[2..].to_vec())
                .unwrap_or_else(|| panic!("no info {kind}"))
        };
        let export = body(0);
        assert_eq!(export[..8], (64 * MIB).to_be_bytes());
        let flags = u16::from_be_bytes([export[8], export[9]]);
        assert_eq!(
            flags,
            tx::HAS_FLAGS
                | tx::SEND_FLUSH
                | tx::SEND_FUA
                | tx::SEND_TRIM
                | tx::SEND_WRITE_ZEROES
                | tx::SEND_DF
                | tx::CAN_MULTI_CONN
                | tx::SEND_CACHE
                | tx::SEND_FAST_ZERO
        );
        let blocks = [512u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
        assert_eq!(body(3), blocks);
        assert_eq!(body(1), b"a");
        assert_eq!(body(2), b"about p/a");
        assert_eq!(replies.last().unwrap().kind, rep::ACK);
    }
    assert_eq!(c.read(0, 512).await.unwrap(), [0; 512]);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_refused_with_a_message_and_the_next_option_works() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    let replies = c.option(opt::GO, &info("nope", &[])).await;
    assert_eq!(replies[0].kind, rep::ERR_UNKNOWN);
    assert!(replies[0].text().contains("nope"));
    let replies = c.option(opt::GO, &info("", &[])).await;
    assert_eq!(replies[0].kind, rep::ERR_UNKNOWN, "three exports have no default");
    assert!(replies[0].text().contains("p/a"), "{}", replies[0].text());
    assert_eq!(c.option(opt::GO, &info("p/a", &[])).await.last().unwrap().kind, rep::ACK);
}

#[tokio::test]
async fn unknown_and_malformed_options_are_answered_and_skipped() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    for option in [0, 4, 12, 99, u32::MAX] {
        assert_eq!(c.option(option, &[7; 5000]).await[0].kind, rep::ERR_UNSUP, "option {option}");
    }
    let cut = &info("p/a", &[])[..5];
    assert_eq!(c.option(opt::GO, cut).await[0].kind, rep::ERR_INVALID);
    let mut long = info("p/a", &[]);
    long.push(0);
    assert_eq!(c.option(opt::GO, &long).await[0].kind, rep::ERR_INVALID, "bytes left over");
    assert_eq!(c.option(opt::GO, &info(&"x".repeat(4097), &[])).await[0].kind, rep::ERR_INVALID);
    assert_eq!(c.option(opt::GO, b"\0\0\0\x01\xff\0\0").await[0].kind, rep::ERR_INVALID, "not UTF-8");
    assert_eq!(c.option(opt::STRUCTURED_REPLY, b"x").await[0].kind, rep::ERR_INVALID);
    assert_eq!(c.option(opt::STARTTLS, &[]).await[0].kind, rep::ERR_POLICY, "TLS is off");
    // Larger than anybody needs: answered, then the connection ends.
    assert_eq!(c.option(99, &vec![0; (64 << 10) + 1]).await[0].kind, rep::ERR_TOO_BIG);
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn meta_contexts_need_structured_replies_and_hold_for_the_export_they_name() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    let set = |name| meta(name, &["base:allocation", "other:thing"]);
    assert_eq!(c.option(opt::SET_META_CONTEXT, &set("p/a")).await[0].kind, rep::ERR_INVALID);
    c.structured().await;
    for (queries, found) in [(&[][..], true), (&["base:"], true), (&["base:x", "q:"], false)] {
        let replies = c.option(opt::LIST_META_CONTEXT, &meta("p/a", queries)).await;
        assert_eq!(replies.iter().any(|r| r.body.ends_with(b"base:allocation")), found, "{queries:?}");
    }
    assert_eq!(c.option(opt::SET_META_CONTEXT, &set("nope")).await[0].kind, rep::ERR_UNKNOWN);
    let none = c.option(opt::SET_META_CONTEXT, &meta("p/a", &["base:"])).await;
    assert_eq!(none[0].kind, rep::ACK, "a wildcard selects nothing");
    let replies = c.option(opt::SET_META_CONTEXT, &set("p/a")).await;
    assert_eq!(replies[0].body, b"\0\0\0\x01base:allocation");
    // Selected for p/a, used on p/b: not selected.
    c.option(opt::GO, &info("p/b", &[])).await;
    assert_eq!(c.call(0, 7, 0, 4096).await, 22);
}

#[tokio::test]
async fn extended_headers_forbid_going_back() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    c.extended().await;
    assert_eq!(c.option(opt::STRUCTURED_REPLY, &[]).await[0].kind, rep::ERR_EXT_HEADER_REQD);
    c.send_option(opt::EXPORT_NAME, b"p/a").await;
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn export_name_answers_with_or_without_zeroes_and_closes_on_an_unknown_name() {
    let world = World::new().await;
    for (client_flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let mut c = Client { stream, extended: false, structured: false };
        c.greet(client_flags).await;
        c.send_option(opt::EXPORT_NAME, b"p/ro").await;
        let head: [u8; 10] = c.bytes().await;
        assert_eq!(head[..8], (64 * MIB).to_be_bytes());
        let flags = u16::from_be_bytes([head[8], head[9]]);
        assert_eq!(
            flags,
            tx::HAS_FLAGS | tx::READ_ONLY | tx::SEND_FLUSH | tx::CAN_MULTI_CONN | tx::SEND_CACHE
        );
        assert_eq!(c.vec(zeroes).await, vec![0; zeroes]);
        assert_eq!(c.read(0, 1024).await.unwrap(), [0; 1024]);
    }
    let mut c = Client::connect(world.address).await;
    c.send_option(opt::EXPORT_NAME, b"nope").await;
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn abort_is_acknowledged_and_closes() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    assert_eq!(c.option(opt::ABORT, &[]).await[0].kind, rep::ACK);
    assert!(c.rest().await.is_empty());
}

#[tokio::test]
async fn options_and_requests_sent_in_one_breath_are_served() {
    let world = World::new().await;
    let mut c = Client::connect(world.address).await;
    let mut bytes = Vec::new();
    for (option, payload) in [(opt::STRUCTURED_REPLY, vec![]), (opt::GO, info("p/a", &[]))] {
        bytes.extend(crate::nbd::proto::OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
    }
    bytes.extend(c.header(0, 0, 5, 0, 512));
    c.stream.write_all(&bytes).await.unwrap();
    let skip = 20 + (20 + 12) + (20 + 14) + 20;
    c.vec(skip).await;
    c.structured = true;
    assert_eq!(c.reply(0).await.cookie, 5);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_takes_too_long_is_cut() {
    let world = World::new().await;
    let clock = common::clock::SystemClock::new();
    let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let mut c = Client { stream, extended: false, structured: false };
    let mut all = Vec::new();
    // Dribbles, so that no single wait is long. Virtual time moves when everyone waits.
    let (mut reader, mut writer) = c.stream.split();
    let dribble = async {
        for byte in [0u8, 0, 0, 3].into_iter().chain(0..255) {
            clock.sleep(Duration::from_secs(3)).await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = dribble => {}
        _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all) => {}
    }
    let took = clock.now();
    assert!(took < Duration::from_secs(60), "cut after {took:?}");
    assert!(took >= Duration::from_secs(9));
}

#[tokio::test]
async fn a_port_or_socket_in_use_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let world = World::with(Settings { unix: Some(path.clone()), ..Settings::default() }).await;
    let bind = |settings: Settings| async move {
        let clock = Arc::new(common::clock::SystemClock::new());
        Server::bind(settings, Arc::new(Shelf::default()), clock, &mut Registry::default()).await
    };
    let e = bind(Settings { listen: world.address.to_string(), ..Settings::default() }).await.err().unwrap();
    assert_eq!(e.kind, ErrorKind::Conflict);
    assert!(e.message().contains(&world.address.to_string()) && e.message().contains("nbd.listen"), "{e}");

    let socket_only = Settings { listen: String::new(), unix: Some(path.clone()), ..Settings::default() };
    let e = bind(socket_only.clone()).await.err().unwrap();
    assert_eq!(e.kind, ErrorKind::Conflict);
    assert!(e.message().contains("nbd.sock") && e.message().contains("in use"), "{e}");

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(bind(socket_only.clone()).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious", "a file that is no socket stays");

    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = bind(socket_only).await.expect("a stale socket is replaced");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn the_unix_socket_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let settings = Settings { listen: String::new(), unix: Some(path.clone()), ..Settings::default() };
    let _world = World::with(settings).await;
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut c = Client { stream, extended: false, structured: false };
    c.greet(3).await;
    c.option(opt::GO, &info("p/a", &[])).await;
    assert_eq!(c.write(0, 4096, &[9; 4096]).await, 0);
    assert_eq!(c.read(4096, 4096).await.unwrap(), [9; 4096]);
}

#[tokio::test]
async fn more_connections_than_allowed_are_turned_away_and_places_come_free() {
    let world = World::with(Settings { max_connections: 2, ..Settings::default() }).await;
    let one = Client::open(world.address, "p/a", false).await;
    let _two = Client::open(world.address, "p/a", false).await;
    let mut three = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let mut got = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut three, &mut got).await;
    assert!(got.is_empty());
    assert_eq!(world.metric("storagerouter_edge_refused_connections_total"), 1.0);
    drop(one);
    eventually(|| world.metric("storagerouter_edge_connections") < 2.0).await;
    Client::open(world.address, "p/a", false).await;
}
