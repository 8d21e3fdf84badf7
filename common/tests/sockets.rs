//! The halves of a stream on real sockets: between the runtime and a thread, full and empty.

use common::alone::{SINGLES, Solo, Threads};
use common::socket::{self, Reader, Writer};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

const LIMIT: Duration = Duration::from_secs(60);

async fn pairs() -> Vec<((Reader, Writer), (Reader, Writer))> {
    let (a, b) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let c = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (d, _) = listener.accept().await.unwrap();
    let unix = (socket::unix(a).unwrap(), socket::unix(b).unwrap());
    vec![unix, (socket::tcp(c).unwrap(), socket::tcp(d).unwrap())]
}

/// Answers each byte with the next one, and notes whether it had a thread to itself.
async fn echo(
    mut read: Reader,
    mut write: Writer,
    solo: Arc<Solo>,
    was_alone: Arc<std::sync::atomic::AtomicU32>,
) {
    let mut requests = 0;
    loop {
        solo.turn(requests, true);
        let mut bytes = [0; 4096];
        let n = read.read(&mut bytes).await.unwrap();
        if n == 0 {
            return;
        }
        if solo.is_alone() {
            was_alone.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        requests = n;
        let answer: Vec<u8> = bytes[..n].iter().map(|b| b.wrapping_add(1)).collect();
        write.write_all(&answer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_to_a_thread_and_back_and_loses_nothing() {
    for ((read, write), (mut from, mut to)) in pairs().await {
        let solo = Solo::new(Threads::new(2), true);
        let was_alone = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let mut read = read;
        assert!(read.attend(&solo));
        let task = {
            let (solo, was_alone) = (solo.clone(), was_alone.clone());
            tokio::spawn(async move { solo.run(echo(read, write, solo.clone(), was_alone)).await })
        };
        let talk = async {
            for round in 0..5u32 {
                // One at a time: until it has a thread, and for some time with it.
                for i in 0..SINGLES * 4 {
                    to.write_all(&[i as u8]).await.unwrap();
                    assert_eq!(from.read_u8().await.unwrap(), (i as u8).wrapping_add(1));
                }
                assert!(
                    was_alone.load(std::sync::atomic::Ordering::Relaxed) > round,
                    "it never had a thread"
                );
                // Many at once, and silence: it goes back to the runtime.
                let many: Vec<u8> = (0..200).collect();
                to.write_all(&many).await.unwrap();
                let mut answers = vec![0; many.len()];
                from.read_exact(&mut answers).await.unwrap();
                assert!(answers.iter().zip(&many).all(|(a, m)| *a == m.wrapping_add(1)));
                while solo.is_alone() {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(LIMIT, talk).await.unwrap();
        drop((from, to));
        tokio::time::timeout(LIMIT, task).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_socket_does_not_take_is_sent_when_there_is_room() {
    const MANY: usize = 32 << 20;
    for ((_, mut write), (mut read, _keep)) in pairs().await {
        let sender = tokio::spawn(async move {
            let chunk: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
            for _ in 0..MANY / chunk.len() {
                write.write_all(&chunk).await.unwrap();
            }
        });
        let receive = async {
            let (mut at, mut bytes) = (0, vec![0; 100_000]);
            while at < MANY {
                let n = read.read(&mut bytes).await.unwrap();
                assert!(n > 0, "it ends after {at} bytes");
                assert!(bytes[..n].iter().enumerate().all(|(i, b)| *b == ((at + i) % 256) as u8));
                at += n;
            }
        };
        tokio::time::timeout(LIMIT, receive).await.unwrap();
        sender.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_gets_what_is_there_and_the_runtime_the_rest() {
    for ((mut read, _keep), (_, mut write)) in pairs().await {
        let mut bytes = bytes::BytesMut::new();
        assert_eq!(read.look(&mut bytes).unwrap(), None, "nothing was sent");
        write.write_all(b"one").await.unwrap();
        let look = async {
            while read.look(&mut bytes).unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, look).await.unwrap();
        assert_eq!(&bytes[..], b"one");
        // Watched, no longer watched, and watched again.
        write.write_all(b"two").await.unwrap();
        let mut some = [0; 3];
        tokio::time::timeout(LIMIT, read.read_exact(&mut some)).await.unwrap().unwrap();
        assert_eq!(&some, b"two");
        assert!(read.unwatch());
        write.write_all(b"six").await.unwrap();
        tokio::time::timeout(LIMIT, read.read_exact(&mut some)).await.unwrap().unwrap();
        assert_eq!(&some, b"six");
        write.shutdown().await.unwrap();
        drop(write);
        assert_eq!(tokio::time::timeout(LIMIT, read.read(&mut some)).await.unwrap().unwrap(), 0);
    }
}
