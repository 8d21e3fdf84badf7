//! Bytes that are no NBD, at every stage: the server neither panics nor hangs nor hurts others.

use super::client::{Client, info, within};
use super::*;
use crate::nbd::fuzz;
use crate::nbd::proto::{OPTION_MAGIC, opt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), extended: bool) {
        fuzz::decode_option(&bytes);
        fuzz::decode_request(&bytes, extended);
    }

    #[test]
    fn decoders_take_bytes_that_look_right(tail in prop::collection::vec(0u8..4, 0..200), extended: bool) {
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend(&tail);
        fuzz::decode_option(&option);
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut request = magic.to_be_bytes().to_vec();
        request.extend(&tail);
        let size = fuzz::decode_request(&request, extended);
        prop_assert_eq!(size.is_some(), request.len() >= if extended { 32 } else { 28 });
    }
}

/// Where the garbage starts.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Greeting,
    Option,
    Payload,
    Request(bool),
    Header(bool),
}

async fn throw(world: &World, stage: Stage, bytes: &[u8]) {
    let mut stream = match stage {
        Stage::Greeting => TcpStream::connect(world.address).await.unwrap(),
        Stage::Option => Client::connect(world.address).await.stream,
        Stage::Payload => {
            let mut c = Client::connect(world.address).await;
            let mut head = OPTION_MAGIC.to_be_bytes().to_vec();
            let option = bytes.first().map_or(opt::GO, |b| u32::from(b % 13));
            head.extend(option.to_be_bytes());
            head.extend((bytes.len() as u32).to_be_bytes());
            c.stream.write_all(&head).await.unwrap();
            c.stream
        }
        Stage::Request(extended) => Client::open(world.address, "p/a", extended).await.stream,
        Stage::Header(extended) => {
            let mut c = Client::open(world.address, "p/a", extended).await;
            let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
            c.stream.write_all(&magic.to_be_bytes()).await.unwrap();
            c.stream
        }
    };
    // The server may close while this writes.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let _ = within(stream.read_to_end(&mut rest)).await;
}

#[test]
fn garbage_at_every_stage_ends_that_connection_only() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    let mut witness = runtime.block_on(Client::open(world.address, "p/b", false));
    let stage = prop_oneof![
        Just(Stage::Greeting),
        Just(Stage::Option),
        Just(Stage::Payload),
        any::<bool>().prop_map(Stage::Request),
        any::<bool>().prop_map(Stage::Header),
    ];
    // Small values make lengths and numbers that get further.
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2000),
        prop::collection::vec(0u8..9, 0..2000),
        prop::collection::vec(prop_oneof![9 => Just(0u8), 1 => any::<u8>()], 0..500),
    ];
    TestRunner::new(Config::with_cases(400))
        .run(&(stage, bytes), |(stage, bytes)| {
            runtime.block_on(throw(&world, stage, &bytes));
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        assert_eq!(witness.write(0, 0, &[1; 4096]).await, 0);
        assert_eq!(witness.read(0, 4096).await.unwrap(), [1; 4096]);
        assert!(!world.served.is_finished());
        drop(witness);
        eventually(|| world.metric("storagerouter_edge_connections") == 0.0).await;
        assert!(world.metric("storagerouter_edge_protocol_errors_total") > 0.0);
    });
}

#[tokio::test]
async fn a_wrong_magic_and_a_boundless_write_end_the_connection() {
    let world = World::new().await;
    for extended in [false, true] {
        let mut c = Client::open(world.address, "p/a", extended).await;
        c.stream.write_all(&[0x25; 64]).await.unwrap();
        assert!(c.rest().await.is_empty());
    }
    let mut c = Client::open(world.address, "p/a", true).await;
    let head = c.header(1 << 5, 1, 1, 0, u64::MAX);
    c.stream.write_all(&head).await.unwrap();
    assert!(c.rest().await.is_empty(), "nobody waits for 16 EiB");
    let mut c = Client::connect(world.address).await;
    c.send_option(opt::GO, &info("p/a", &[])[..3]).await;
    c.stream.write_all(&[0; 16]).await.unwrap();
    assert!(!c.rest().await.is_empty(), "answered, then closed");
}
