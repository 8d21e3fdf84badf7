//! A client and three real routers, each in a network of its own, under the oracle's load: links are cut, one way or
//! both, while routers are killed, frozen, moved and lose their disks. What the rules say must go on goes on, the rest
//! comes back by itself when all is whole again, and nothing acknowledged is lost, stale or said by a zombie.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt;
use tests::cluster::{CLIENT, Cluster, DISK};
use tests::edge::EdgeServe;
use tests::model::Promise;
use tests::time::{Stopwatch, pause, rounds};
use tests::tools::{command, need, run_within};
use tests::workload::{Plan, Running, Subject};

/// What happens to the network. Numbers are nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nothing,
    OneWay(usize, usize),
    BothWays(usize, usize),
    Router(usize),
    ClientFromOwner,
    OwnerFromPeer,
    OwnerFromRouters,
    Peer,
}

/// What happens to processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Nothing,
    KillOwner,
    FreezeOwner,
    KillPeer,
    RestartPeer,
    KillBoth,
    LoseDisk,
    Move,
}

/// One round, drawn from its seed.
struct Round {
    owner: usize,
    peer: usize,
    cut: Cut,
    blow: Blow,
    cut_first: bool,
    thaw_first: bool,
    dwell: u64,
    asked: usize,
    seed: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Round { owner, peer, cut, blow, .. } = self;
        let order = if self.cut_first { "then" } else { "after" };
        write!(f, "owner {owner}, peer {peer}: cut {cut:?}, {order} {blow:?}")
    }
}

impl Round {
    fn draw(seed: u64, owner: usize, peer: usize) -> Round {
        let mut random = fastrand::Rng::with_seed(seed);
        let one = random.usize(..4);
        let other = (one + random.usize(1..4)) % 4;
        let cut = match random.u32(..16) {
            0 => Cut::Nothing,
            1..4 => Cut::OneWay(one, other),
            4..6 => Cut::BothWays(one, other),
            6..8 => Cut::Router(random.usize(..3)),
            8..10 => Cut::ClientFromOwner,
            10..12 => Cut::OwnerFromPeer,
            12..14 => Cut::OwnerFromRouters,
            _ => Cut::Peer,
        };
        let blow = match random.u32(..16) {
            0..4 => Blow::Nothing,
            4..6 => Blow::KillOwner,
            6..9 => Blow::FreezeOwner,
            9 => Blow::KillPeer,
            10 => Blow::RestartPeer,
            11 => Blow::KillBoth,
            12..14 => Blow::LoseDisk,
            _ => Blow::Move,
        };
        let mut round = Round {
            owner,
            peer,
            cut,
            blow,
            cut_first: random.bool(),
            thaw_first: random.bool(),
            dwell: random.u64(..3000),
            asked: random.usize(..3),
            seed,
        };
        if round.blow == Blow::LoseDisk && round.goes_degraded() {
            // Alone the owner has what it acknowledged, and says so: its disk must come back.
            round.blow = Blow::KillOwner;
        }
        round
    }

    fn third(&self) -> usize {
        3 - self.owner - self.peer
    }

    /// Which links are cut, in which direction.
    fn links(&self) -> Vec<(usize, usize)> {
        let both = |one: usize, other: usize| vec![(one, other), (other, one)];
        let (owner, peer) = (self.owner, self.peer);
        let around = |node: usize| (0..4).filter(|at| *at != node).flat_map(|at| both(node, at)).collect();
        match self.cut {
            Cut::Nothing => vec![],
            Cut::OneWay(from, to) => vec![(from, to)],
            Cut::BothWays(one, other) => both(one, other),
            Cut::Router(node) => around(node),
            Cut::Peer => around(peer),
            Cut::ClientFromOwner => both(CLIENT, owner),
            Cut::OwnerFromPeer => both(owner, peer),
            Cut::OwnerFromRouters => [both(owner, peer), both(owner, self.third())].concat(),
        }
    }

    /// Whether two nodes can speak: one direction is not enough for that.
    fn linked(&self, one: usize, other: usize) -> bool {
        !self.links().iter().any(|cut| *cut == (one, other) || *cut == (other, one))
    }

    /// Whether the owner may say in the registry that it goes on without its peer.
    fn goes_degraded(&self) -> bool {
        !self.linked(self.owner, self.peer) && self.linked(self.owner, self.third())
    }

    fn is_up(&self, router: usize) -> bool {
        match self.blow {
            Blow::Nothing | Blow::Move => true,
            Blow::KillOwner | Blow::FreezeOwner | Blow::LoseDisk => router != self.owner,
            Blow::KillPeer | Blow::RestartPeer => router != self.peer,
            Blow::KillBoth => router == self.third(),
        }
    }

    /// Who must serve while this lasts, and be reached by the client directly or through another router; `None`: the
    /// rules let the client wait.
    fn goes_on(&self) -> Option<usize> {
        let (owner, peer, third) = (self.owner, self.peer, self.third());
        let routers = [(owner, peer), (owner, third), (peer, third)];
        if self.blow == Blow::Move && routers.iter().any(|(one, other)| !self.linked(*one, *other)) {
            // A new owner has no peer in sync yet. If it is cut off from who leads the registry, its lease ends, and
            // nobody else has what it acknowledged.
            return None;
        }
        let speak =
            |one: usize, other: usize| self.is_up(one) && self.is_up(other) && self.linked(one, other);
        let serving = if speak(owner, peer) || speak(owner, third) {
            owner
        } else if speak(peer, third) && !self.goes_degraded() {
            peer
        } else {
            return None;
        };
        let through =
            |router: usize| router != serving && speak(router, serving) && self.linked(CLIENT, router);
        (self.linked(CLIENT, serving) || (0..3).any(through)).then_some(serving)
    }

    /// Whether the owner is a zombie: it lives, and another one has taken over.
    fn leaves_a_zombie(&self) -> bool {
        self.goes_on().is_some_and(|serving| serving != self.owner)
            && matches!(self.blow, Blow::Nothing | Blow::FreezeOwner)
            && !self.linked(self.owner, self.peer)
            && !self.linked(self.owner, self.third())
    }
}

/// The system under test.
struct World {
    cluster: Cluster,
    serve: EdgeServe,
    subject: Subject,
}

impl World {
    /// Whether the newest thing that the owner said in the registry is that its peer has all that it acknowledged. A
    /// machine that is busy with other things makes it go on without its peer at any time.
    fn is_replicated(&self, owner: usize) -> bool {
        let log = self.cluster.routers[owner].log();
        log.lines()
            .rev()
            .find(|line| line.contains("replication changes"))
            .is_some_and(|line| line.contains("InSync"))
    }

    /// Does it; who must serve from then on.
    fn strike(&mut self, round: &mut Round) -> Result<Option<usize>> {
        let net = self.cluster.net.as_ref().context("a network")?;
        let links = round.links();
        let cut = || links.iter().try_for_each(|(from, to)| net.cut(*from, *to));
        if round.cut_first {
            cut()?;
        }
        let routers = &mut self.cluster.routers;
        match round.blow {
            Blow::Nothing => {}
            Blow::KillOwner => routers[round.owner].kill9()?,
            Blow::FreezeOwner => routers[round.owner].freeze()?,
            Blow::KillPeer => routers[round.peer].kill9()?,
            Blow::RestartPeer => routers[round.peer].launch_again()?,
            Blow::KillBoth => {
                routers[round.owner].kill9()?;
                routers[round.peer].kill9()?;
            }
            Blow::LoseDisk => {
                routers[round.owner].kill9()?;
                if self.is_replicated(round.owner) {
                    std::fs::remove_dir_all(&self.cluster.routers[round.owner].config.data_dir)?;
                } else {
                    round.blow = Blow::KillOwner;
                }
            }
            Blow::Move => {
                let to = ["a", "b", "c"][(round.owner + 1 + round.asked % 2) % 3];
                // What is cut may be in its way: then it says so, and the vDisk is where it was, or where it was sent.
                let _ = routers[round.asked].try_cli_within(10, &["vdisk", "move", DISK, "--to", to]);
            }
        }
        if !round.cut_first {
            cut()?;
        }
        let serving = round.goes_on();
        Ok(serving.filter(|serving| *serving == round.owner || self.is_replicated(round.owner)))
    }

    /// Waits until the client is served, however long it did not get an answer before.
    fn served(&self, running: &Running) -> Result<f64> {
        let watch = Stopwatch::start();
        let before = running.done();
        // More than were under way when it began.
        running.wait_past(before + 64)?;
        Ok(watch.seconds())
    }

    /// Who was deposed answers nobody, whoever asks: it can't reach who would know.
    fn silent(&self, round: &Round) -> Result<()> {
        let zombie = &self.cluster.routers[round.owner];
        let request = if round.dwell.is_multiple_of(2) { "read 0 4k" } else { "write -P 7 32M 4k" };
        let mut asking = zombie.config.place.beside();
        asking.extend(["timeout", "3", "qemu-io", "-f", "raw", "-c", request].map(str::to_string));
        let mut asked = command(&asking[0]);
        asked.args(&asking[1..]).arg(zombie.uri(DISK));
        let said = run_within(20, asked)?;
        ensure!(!said.status.success(), "a zombie answered '{request}': {}", said.stdout);
        Ok(())
    }

    /// All is whole again, and everybody runs.
    fn heal(&mut self, round: &Round) -> Result<()> {
        self.cluster.net.as_ref().context("a network")?.heal()?;
        let routers = &mut self.cluster.routers;
        match round.blow {
            Blow::KillOwner => routers[round.owner].start_again()?,
            Blow::FreezeOwner => routers[round.owner].thaw()?,
            Blow::KillPeer => routers[round.peer].start_again()?,
            Blow::RestartPeer => routers[round.peer].wait_ready(60)?,
            Blow::KillBoth => {
                // Whichever comes first may have to wait for the other one.
                routers[round.owner].launch_again()?;
                routers[round.peer].start_again()?;
                routers[round.owner].wait_ready(60)?;
            }
            Blow::Nothing | Blow::LoseDisk | Blow::Move => {}
        }
        Ok(())
    }

    fn play(&mut self, round: &mut Round) -> Result<(Option<f64>, f64)> {
        let running = self.subject.start(&Plan { seed: round.seed, ..Plan::default() })?;
        running.wait_past(300)?;
        let serving = self.strike(round)?;
        let mut went_on = None;
        if let Some(serving) = serving {
            let seconds =
                self.served(&running).with_context(|| format!("router {serving} should serve, as it is"))?;
            went_on = Some(seconds);
        } else {
            pause(round.dwell);
        }
        if round.blow == Blow::FreezeOwner && round.thaw_first {
            self.cluster.routers[round.owner].thaw()?;
        }
        if went_on.is_some() && round.leaves_a_zombie() && (round.thaw_first || round.blow == Blow::Nothing) {
            self.silent(round)?;
        }
        self.heal(round)?;
        let back = self.served(&running).context("all is whole again, and nobody serves")?;
        if round.blow == Blow::LoseDisk {
            self.cluster.replace(round.owner)?;
            self.served(&running).context("a router with an empty disk has joined, and nobody serves")?;
        }
        self.subject.gather(running)?;
        self.subject.settle(Promise::Everything)?;
        ensure!(!self.serve.log().contains("request failed"), "{}", self.serve.log());
        Ok((went_on, back))
    }
}

#[test]
fn whatever_is_cut_nothing_acknowledged_is_lost_and_service_comes_back() -> Result<()> {
    need(&["qemu-io", "timeout"])?;
    let seed = rounds("SR_SEED", fastrand::u32(..).into());
    let count = rounds("SR_ROUNDS", 8);
    println!("{count} rounds, SR_SEED={seed}");
    let cluster = Cluster::start_apart("partition", "64MiB", &["dtl.size_mib=256", "dtl.volume_mib=64"])?;
    let serve = cluster.serve()?;
    let subject = Subject::new(serve.endpoint(), DISK, 4096)?;
    let mut world = World { cluster, serve, subject };
    let (mut mix, mut longest) = (BTreeMap::new(), 0.0_f64);
    let watch = Stopwatch::start();
    for nth in 0..count {
        let (owner, peer) = world.cluster.in_sync().with_context(|| format!("before round {nth}"))?;
        let mut round = Round::draw(seed.wrapping_mul(1_000_003).wrapping_add(nth), owner, peer);
        let what = format!("round {nth} of SR_SEED={seed}, {round}");
        let (went_on, back) = world.play(&mut round).context(what)?;
        let pause =
            went_on.map_or("not before it was whole".into(), |seconds| format!("on in {seconds:.1} s"));
        println!("round {nth}: {round}: {pause}, back in {back:.1} s");
        let name = |text: String| text.split('(').next().unwrap_or_default().to_string();
        let cut = name(format!("{:?}", round.cut));
        *mix.entry(format!("{cut} x {:?}", round.blow)).or_insert(0) += 1;
        longest = longest.max(went_on.unwrap_or(0.0)).max(back);
    }
    println!("{count} rounds in {:.0} s, the longest pause {longest:.1} s: {mix:?}", watch.seconds());
    Ok(())
}
