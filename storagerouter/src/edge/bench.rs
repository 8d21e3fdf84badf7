//! `edge bench`: requests to a vDisk, so many at a time, and how long they take.

mod times;

use super::connect::Connect;
use crate::cli::edge::Bench;
use crate::client::print;
use crate::failure::{Exit, Failure};
use crate::size::human;
use anyhow::Result;
use bytes::Bytes;
use common::{BlockDevice, Clock};
use edge_client::Device;
use edge_client::wire::{Mode, Op};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use std::time::Duration;
use times::Times;

/// What is written comes from here, so that no two blocks are the same and none can be compressed.
const NOISE: usize = 1 << 20;

/// `edge bench`.
pub async fn run(args: &Bench) -> Result<()> {
    if args.read_percent < 100 && !args.destroy_data {
        return Err(Failure::usage(format!(
            "this would write over what is on {}: say --destroy-data if that may be lost, or --read-percent 100",
            args.export
        )));
    }
    let connect = Connect::new(&args.routers, "edge bench", super::say)?;
    let mode = if args.read_percent == 100 { Mode::ReadOnly } else { Mode::Exclusive };
    let device = connect.open(&args.export, mode).await?;
    let measured = tokio::select! {
        measured = measure(&device, &*connect.clock, args) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    device.close().await;
    let measured = measured?;
    print(&if args.json { serde_json::to_string_pretty(&measured.json(args))? } else { measured.table(args) })
}

/// What came of it.
struct Measured {
    took: Duration,
    reads: Times,
    writes: Times,
    /// Attachments after the first: a router died, or the vDisk moved.
    reconnects: u64,
}

/// Chooses the next request.
struct Chooser {
    block: u64,
    blocks: u64,
    sequential: bool,
    read_percent: u64,
    noise: Bytes,
    state: u64,
    next: u64,
}

impl Chooser {
    fn new(args: &Bench, size: u64, unit: u64, clock: &dyn Clock) -> Result<Chooser> {
        let block = args.block_size;
        let wrong = |why: String| Err(Failure::usage(format!("--block-size {block}: {why}")));
        if block == 0 || !block.is_multiple_of(unit) {
            return wrong(format!("a multiple of {unit} is needed"));
        }
        if block > 32 << 20 {
            return wrong("32MiB are the most".into());
        }
        if block > size {
            return wrong(format!("{} has only {}", args.export, human(size)));
        }
        let mut chooser = Chooser {
            block,
            blocks: size / block,
            sequential: args.sequential,
            read_percent: args.read_percent.into(),
            noise: Bytes::new(),
            state: clock.random(),
            next: 0,
        };
        if args.read_percent < 100 {
            let words = (NOISE + block as usize).div_ceil(8);
            chooser.noise = (0..words).flat_map(|_| chooser.draw().to_le_bytes()).collect();
        }
        Ok(chooser)
    }

    /// Splitmix64: good enough for offsets, and costs nothing beside a request.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn choose(&mut self) -> Op {
        let block = if self.sequential { self.next } else { self.draw() } % self.blocks;
        self.next = self.next.wrapping_add(1);
        let offset = block * self.block;
        if self.draw() % 100 < self.read_percent {
            return Op::Read { offset, len: self.block as u32 };
        }
        let from = (self.draw() as usize % NOISE) & !511;
        Op::Write { offset, data: self.noise.slice(from..from + self.block as usize), fua: false }
    }
}

async fn measure(device: &Device, clock: &dyn Clock, args: &Bench) -> Result<Measured> {
    let geometry = device.geometry();
    let mut chooser = Chooser::new(args, geometry.size, geometry.min_block.into(), clock)?;
    let (mut reads, mut writes) = (Times::default(), Times::default());
    let begin = clock.now();
    let end = begin + Duration::from_secs(args.seconds.into());
    let one = |op: Op| {
        let (since, read) = (clock.now(), matches!(op, Op::Read { .. }));
        let answer = device.submit(op);
        async move { (since, read, answer.await) }
    };
    let mut under_way: FuturesUnordered<_> = (0..args.depth).map(|_| one(chooser.choose())).collect();
    while let Some((since, read, answer)) = under_way.next().await {
        answer.map_err(|e| Failure::error(Exit::Failure, format!("{}: {e}", args.export)))?;
        let now = clock.now();
        if read { &mut reads } else { &mut writes }.add(now.saturating_sub(since));
        if now < end {
            under_way.push(one(chooser.choose()));
        }
    }
    let took = clock.now().saturating_sub(begin);
    if writes.count() > 0 {
        device.flush().await?;
    }
    Ok(Measured { took, reads, writes, reconnects: device.counters().reconnects })
}

impl Measured {
    fn rows(&self) -> impl Iterator<Item = (&'static str, &Times)> {
        [("read", &self.reads), ("write", &self.writes)].into_iter().filter(|(_, times)| times.count() > 0)
    }

    fn rates(&self, times: &Times, block: u64) -> (f64, f64) {
        let iops = times.count() as f64 / self.took.as_secs_f64();
        (iops, iops * block as f64 / f64::from(1 << 20))
    }

    fn table(&self, args: &Bench) -> String {
        let mut out = format!(
            "{}: {} {} requests, {} at a time, {:.1} s\n",
            args.export,
            human(args.block_size),
            if args.sequential { "sequential" } else { "random" },
            args.depth,
            self.took.as_secs_f64()
        );
        for (what, times) in self.rows() {
            let (iops, mib) = self.rates(times, args.block_size);
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|p| times.percentile(p).as_secs_f64() * 1e6);
            out.push_str(&format!(
                "{what:5}  {iops:9.0} IOPS  {mib:8.1} MiB/s  p50 {p50:.0} us  p99 {p99:.0} us  p99.9 {p999:.0} us\n"
            ));
        }
        if self.reconnects > 0 {
            out.push_str(&format!("attached anew {} times meanwhile\n", self.reconnects));
        }
        out
    }

    fn json(&self, args: &Bench) -> Value {
        let mut told = json!({
            "name": args.export,
            "block_size_bytes": args.block_size,
            "depth": args.depth,
            "sequential": args.sequential,
            "seconds": self.took.as_secs_f64(),
            "reconnects": self.reconnects,
        });
        for (what, times) in self.rows() {
            let (iops, mib) = self.rates(times, args.block_size);
            let us = |p: f64| times.percentile(p).as_secs_f64() * 1e6;
            told[what] = json!({
                "requests": times.count(),
                "iops": iops,
                "mib_per_second": mib,
                "p50_us": us(0.5),
                "p99_us": us(0.99),
                "p999_us": us(0.999),
            });
        }
        told
    }
}
