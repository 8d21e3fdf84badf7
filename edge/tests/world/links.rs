//! Connections that delay, stall and break. What was said before a break may still arrive, late.

use common::Clock;
use edge_client::transport::Stream;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;

pub struct Links {
    clock: Arc<dyn Clock>,
    rng: Arc<Mutex<fastrand::Rng>>,
    open: Mutex<Vec<Link>>,
}

struct Link {
    to: String,
    cut: watch::Sender<bool>,
    /// Nothing goes through until then.
    stalled: Arc<Mutex<Duration>>,
}

#[derive(Clone)]
struct Nature {
    clock: Arc<dyn Clock>,
    rng: Arc<Mutex<fastrand::Rng>>,
    stalled: Arc<Mutex<Duration>>,
}

impl Nature {
    async fn delay(&self) {
        let delay = {
            let mut rng = self.rng.lock();
            match rng.u8(..100) {
                0 => Duration::from_millis(rng.u64(100..2500)),
                1..=30 => Duration::from_micros(rng.u64(..3000)),
                _ => Duration::ZERO,
            }
        };
        if !delay.is_zero() {
            self.clock.sleep(delay).await;
        }
        loop {
            let until = *self.stalled.lock();
            let left = until.saturating_sub(self.clock.now());
            if left.is_zero() {
                return;
            }
            self.clock.sleep(left).await;
        }
    }
}

impl Links {
    pub fn new(clock: Arc<dyn Clock>, seed: u64) -> Self {
        let rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed ^ 0x5eed)));
        Links { clock, rng, open: Mutex::default() }
    }

    /// A connection to `to`: this end, and the other.
    pub fn pair(&self, to: &str) -> (Stream, Stream) {
        let (mine, near) = tokio::io::duplex(16 << 10);
        let (far, theirs) = tokio::io::duplex(16 << 10);
        let (cut, cutting) = watch::channel(false);
        let stalled = Arc::new(Mutex::new(Duration::ZERO));
        let nature = Nature { clock: self.clock.clone(), rng: self.rng.clone(), stalled: stalled.clone() };
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        tokio::spawn(up(near_read, far_write, nature.clone()));
        tokio::spawn(down(far_read, near_write, nature, cutting));
        let mut open = self.open.lock();
        open.retain(|link| link.cut.receiver_count() > 0);
        open.push(Link { to: to.to_owned(), cut, stalled });
        (Stream::any(mine), Stream::any(theirs))
    }

    /// One of them breaks, as its client sees it.
    pub fn cut_one(&self) {
        let open = self.open.lock();
        if !open.is_empty() {
            let _ = open[self.rng.lock().usize(..open.len())].cut.send(true);
        }
    }

    pub fn cut_all(&self, to: &str) {
        for link in self.open.lock().iter().filter(|link| link.to == to) {
            let _ = link.cut.send(true);
        }
    }

    /// Nothing gets to `to`, or from it, for a while.
    pub fn stall(&self, to: &str, time: Duration) {
        let until = self.clock.now() + time;
        for link in self.open.lock().iter().filter(|link| link.to == to) {
            *link.stalled.lock() = until;
        }
    }
}

/// Everything arrives, in the end: also what was said before a break.
async fn up(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, nature: Nature) {
    let mut bytes = vec![0; 4096];
    while let Ok(n) = from.read(&mut bytes).await {
        if n == 0 {
            break;
        }
        nature.delay().await;
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn down(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    nature: Nature,
    mut cut: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 4096];
    let pass = async {
        while let Ok(n) = from.read(&mut bytes).await {
            if n == 0 {
                return;
            }
            nature.delay().await;
            if to.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|cut| *cut) => {}
        () = pass => {}
    }
    let _ = to.shutdown().await;
    // The other end may go on saying things to nobody.
    while from.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
}
