//! SIGKILL of the router loses nothing that was acknowledged: random writes, trims, zeroes,
//! flushes and reads over several connections, killed at random moments, many times.
//! `SR_KILL_ROUNDS` sets how many.

use anyhow::{Context, Result, ensure};
use tests::model::Promise;
use tests::s3::S3sFs;
use tests::setup::{DISK, Kind, Setup};
use tests::time::{pause, rounds};
use tests::workload::{Plan, Subject};

/// How much of the vDisk is used: each round reads all of it back, which a store in Python answers slowly.
fn blocks(kind: Kind) -> usize {
    if kind == Kind::Directory { 16384 } else { 4096 }
}

fn plan(random: &mut fastrand::Rng) -> Plan {
    Plan {
        syncs: true,
        connections: random.usize(1..=4),
        depth: [1, 4, 16][random.usize(..3)],
        longest: [1, 8, 32, 256][random.usize(..4)],
        hot: random.u32(..60),
        seed: random.u64(..),
    }
}

/// One life of the router under load; every fifth ends in order.
fn one_life(setup: &mut Setup, subject: &mut Subject, round: u64, random: &mut fastrand::Rng) -> Result<u64> {
    subject.endpoint = if random.bool() { setup.router.endpoint() } else { setup.unix_endpoint() };
    let running = subject.start(&plan(random))?;
    pause(random.u64(50..500));
    if round % 5 == 4 {
        setup.router.terminate()?;
    } else {
        setup.router.kill9()?;
    }
    let done = subject.gather(running)?;
    setup.router.start_again()?;
    subject.settle(Promise::Everything)?;
    Ok(done)
}

fn kill_loop(kind: Kind, between: impl Fn(&mut Setup) -> Result<()>) -> Result<()> {
    let seed = fastrand::u32(..).into();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut setup = Setup::small("kill", kind, "64MiB")?;
    let mut subject = setup.subject(blocks(kind))?;
    let (mut done, mut epoch) = (0, 0);
    for round in 0..rounds("SR_KILL_ROUNDS", 20) {
        done += one_life(&mut setup, &mut subject, round, &mut random)
            .with_context(|| format!("round {round}"))?;
        let now = setup.router.number(DISK, "epoch")?;
        ensure!(now > epoch, "the epoch was {epoch} and is {now}: every open takes a new one");
        epoch = now;
        between(&mut setup)?;
    }
    println!("{done} requests answered");
    setup.router.drain(DISK)?;
    setup.router.cli(&["fsck", DISK]).context("fsck at the end")?;
    // And what lies on the backend is that same image.
    setup.from_backend_alone()?;
    subject.endpoint = setup.router.endpoint();
    subject.settle(Promise::Everything).context("from the backend alone")
}

#[test]
fn nothing_acknowledged_is_lost_on_a_directory() -> Result<()> {
    kill_loop(Kind::Directory, |_| Ok(()))
}

#[test]
fn nothing_acknowledged_is_lost_on_s3() -> Result<()> {
    kill_loop(Kind::Moto, |_| Ok(()))
}

/// The store is killed too.
#[test]
#[ignore = "needs s3s-fs: cargo install --locked s3s-fs --features binary"]
fn nothing_acknowledged_is_lost_when_the_store_is_killed_too() -> Result<()> {
    ensure!(S3sFs::installed(), "s3s-fs is not installed");
    kill_loop(Kind::S3sFs, |setup| match &mut setup.backend {
        tests::setup::Backend::S3sFs(store) => store.kill_and_restart(),
        _ => Ok(()),
    })
}

/// Any S3 service: the environment names it (docs/testing.md).
#[test]
#[ignore = "needs SR_S3_ENDPOINT and SR_S3_BUCKET"]
fn nothing_acknowledged_is_lost_on_the_s3_service_of_the_environment() -> Result<()> {
    ensure!(tests::setup::external().is_some(), "SR_S3_ENDPOINT and SR_S3_BUCKET are not set");
    kill_loop(Kind::External, |_| Ok(()))
}

/// Two volumes share one write buffer; neither shows a byte of the other, and both keep all.
#[test]
fn volumes_that_share_the_write_buffer_stay_apart() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut setup = Setup::small("apart", Kind::Directory, "64MiB")?;
    let mut subjects = vec![setup.subject(4096)?];
    for name in ["w", "x"] {
        setup.router.cli(&["vdisk", "create", name, "--vpool", "p", "--size", "16MiB"])?;
        subjects.push(Subject::new(setup.router.endpoint(), &format!("p/{name}"), 4096)?);
    }
    for round in 0..rounds("SR_KILL_ROUNDS", 20).div_ceil(4) {
        let plans = subjects.iter().map(|_| plan(&mut random)).collect::<Vec<_>>();
        let running = subjects.iter().zip(&plans).map(|(subject, plan)| subject.start(plan));
        let running = running.collect::<Result<Vec<_>>>()?;
        pause(random.u64(50..400));
        setup.router.kill9()?;
        for (subject, running) in subjects.iter().zip(running) {
            subject.gather(running)?;
        }
        setup.router.start_again()?;
        for subject in &subjects {
            subject
                .settle(Promise::Everything)
                .with_context(|| format!("round {round}, {}", subject.export))?;
        }
    }
    Ok(())
}
