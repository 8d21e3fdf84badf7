//! A volume as a log: it loses a suffix when its owner changes, never what a flush covered.

use async_trait::async_trait;
use common::{Clock, Epoch, Error, ErrorKind, Geometry, Lsn};
use edge::protocol::{Done, Outcome, Recovered, Refused, Volume};
use edge_client::wire::Op;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

pub const BLOCK: u64 = 512;
pub const BLOCKS: u64 = 24;

pub fn geometry() -> Geometry {
    Geometry {
        size: BLOCKS * BLOCK,
        min_block: 512,
        preferred_block: 512,
        max_payload: 2048,
        read_only: false,
    }
}

pub struct State {
    pub epoch: Epoch,
    /// The entry of LSN n is at n - 1.
    pub log: Vec<Op>,
    /// Up to here a flush covered it.
    pub durable: u64,
    /// What each epoch began with.
    cuts: Vec<(Epoch, u64)>,
    content: Vec<u8>,
    pub in_sync: bool,
    /// How long a request takes at most.
    pub slow_ms: u64,
    rng: fastrand::Rng,
}

impl State {
    pub fn new() -> Self {
        State {
            epoch: Epoch(0),
            log: Vec::new(),
            durable: 0,
            cuts: Vec::new(),
            content: vec![0; (BLOCK * BLOCKS) as usize],
            in_sync: true,
            slow_ms: 8,
            rng: fastrand::Rng::with_seed(7),
        }
    }

    /// The disk as of an LSN.
    pub fn image(&self, lsn: u64) -> Vec<u8> {
        let mut content = vec![0; (BLOCK * BLOCKS) as usize];
        self.log[..lsn as usize].iter().for_each(|op| apply(&mut content, op));
        content
    }

    pub fn take_over(&mut self, kept: u64) -> Epoch {
        assert!(kept >= self.durable);
        self.log.truncate(kept as usize);
        self.content = self.image(kept);
        self.epoch = self.epoch.next();
        self.cuts.push((self.epoch, kept));
        self.epoch
    }

    fn pause(&mut self) -> Duration {
        let most = if self.rng.u8(..20) == 0 { self.slow_ms * 20 } else { self.slow_ms };
        Duration::from_micros(self.rng.u64(..=most * 1000))
    }
}

fn apply(content: &mut [u8], op: &Op) {
    let (offset, len) = op.range();
    let range = offset as usize..(offset + len) as usize;
    match op {
        Op::Write { data, .. } => content[range].copy_from_slice(data),
        _ => content[range].fill(0),
    }
}

pub struct ModelVolume {
    pub state: Arc<Mutex<State>>,
    pub epoch: Epoch,
    pub clock: Arc<dyn Clock>,
}

impl ModelVolume {
    async fn pause(&self) {
        let pause = self.state.lock().pause();
        self.clock.sleep(pause).await;
    }

    /// Nothing is done, and nothing said, by who is not the owner any more.
    fn owns(&self, state: &State) -> Result<(), Refused> {
        if state.epoch == self.epoch {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotOwner, format!("epoch {} is over", self.epoch)).into())
    }
}

#[async_trait]
impl Volume for ModelVolume {
    fn geometry(&self) -> Geometry {
        geometry()
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn recovered(&self, since: Epoch) -> Recovered {
        let state = self.state.lock();
        let cuts = state.cuts.iter().filter(|(epoch, _)| *epoch > since && *epoch <= self.epoch);
        cuts.map(|(_, kept)| *kept).min().map_or(Recovered::All, |kept| Recovered::UpTo(Lsn(kept)))
    }

    fn in_sync(&self) -> bool {
        self.state.lock().in_sync
    }

    async fn apply(&self, op: Op) -> Result<Done, Refused> {
        self.pause().await;
        let (lsn, outcome) = {
            let mut state = self.state.lock();
            self.owns(&state)?;
            if state.rng.u8(..50) == 0 {
                return Err(Error::unavailable("not just now").into());
            }
            match &op {
                Op::Read { offset, len } => {
                    let range = *offset as usize..*offset as usize + *len as usize;
                    (0, Outcome::Data(state.content[range].to_vec().into()))
                }
                Op::Flush => (state.log.len() as u64, Outcome::Done),
                _ => {
                    state.log.push(op.clone());
                    apply(&mut state.content, &op);
                    (state.log.len() as u64, Outcome::Done)
                }
            }
        };
        self.pause().await;
        let mut state = self.state.lock();
        self.owns(&state)?;
        if matches!(op, Op::Flush) {
            state.durable = state.durable.max(lsn);
        }
        Ok(Done { lsn: Lsn(lsn), outcome })
    }
}
