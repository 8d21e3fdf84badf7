//! S3 that is wrong, away, or comes back: a clear error when a vPool is made, a wait that ends by
//! itself afterwards. `SR_OUTAGE_SECONDS` sets how long the store is away under load.

use anyhow::{Context, Result, bail, ensure};
use tests::gate::{Gate, State};
use tests::model::Promise;
use tests::router::{Config, Router};
use tests::s3::{BUCKET, Moto, always_refusing};
use tests::setup::{credentials, s3_place};
use tests::time::{eventually, pause, rounds};
use tests::tls::Authority;
use tests::tools::{Ran, scratch};
use tests::workload::{Plan, Subject};

fn router(folder: &std::path::Path) -> Result<Router> {
    let config = credentials(Config::new(&folder.join("data"))?);
    Router::start(
        config
            .set("volumedriver.journal_mib=256")
            .set("volumedriver.segment_mib=8")
            .set("volumedriver.seal_age_seconds=1"),
    )
}

fn create(router: &Router, name: &str, url: &str, bucket: &str, more: &[&str]) -> Result<Ran> {
    let place = s3_place(url, bucket, "it/");
    let mut arguments = vec!["vpool", "create", name];
    arguments.extend(place.iter().map(String::as_str));
    arguments.extend(more);
    router.try_cli(&arguments)
}

#[test]
fn a_wrong_key_a_wrong_clock_and_a_missing_bucket_are_told_apart() -> Result<()> {
    let folder = scratch("s3bad")?;
    let router = router(folder.path())?;
    let moto = Moto::start(folder.path())?;
    let message = create(&router, "a", &moto.url(), "nobodys-bucket", &[])?.refused(&["bucket"])?;
    ensure!(message.contains("nobodys-bucket"), "it names the bucket: {message}");

    let strict = Moto::start_strict(folder.path())?;
    create(&router, "a", &strict.url(), BUCKET, &[])?.refused(&["key", "credential", "denied"])?;
    let skewed = always_refusing(
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    )?;
    create(&router, "a", &skewed, BUCKET, &[])?.refused(&["clock", "skew"])?;
    let unsigned =
        always_refusing(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")?;
    create(&router, "a", &unsigned, BUCKET, &[])?.refused(&["secret", "signature", "key"])?;

    let nobody = format!("http://127.0.0.1:{}", tests::tools::free_port()?);
    let message = create(&router, "a", &nobody, BUCKET, &[])?.refused(&[
        "connect",
        "reach",
        "unavailable",
        "refused",
    ])?;
    ensure!(message.contains(&nobody), "it names the endpoint: {message}");
    // None of these left anything behind: the name is still free.
    create(&router, "a", &moto.url(), BUCKET, &[])?.ok()?;
    Ok(())
}

#[test]
fn tls_to_the_store_trusts_its_authority_only() -> Result<()> {
    let folder = scratch("s3tls")?;
    let router = router(folder.path())?;
    let good = Authority::new(&folder.path().join("good"))?;
    let other = Authority::new(&folder.path().join("other"))?;
    let old = Authority::expired(&folder.path().join("old"))?;
    let serve = |authority: &Authority| {
        Moto::start_tls(folder.path(), &authority.file("server-cert.pem"), &authority.file("server-key.pem"))
    };
    let moto = serve(&good)?;
    let url = format!("https://127.0.0.1:{}", moto.port);
    let ca = |authority: &Authority| authority.file("ca-cert.pem").display().to_string();
    create(&router, "a", &url, BUCKET, &["--ca-file", &ca(&other)])?.refused(&["certificate"])?;
    create(&router, "a", &url, BUCKET, &[])?.refused(&["certificate"])?;
    let expired = serve(&old)?;
    let message = create(
        &router,
        "a",
        &format!("https://127.0.0.1:{}", expired.port),
        BUCKET,
        &["--ca-file", &ca(&old)],
    )?
    .refused(&["certificate"])?;
    ensure!(
        message.to_lowercase().contains("expired"),
        "it says that the certificate has expired: {message}"
    );
    // The right one gets as far as the bucket, which is not there.
    create(&router, "a", &url, BUCKET, &["--ca-file", &ca(&good)])?.refused(&["bucket"])?;
    Ok(())
}

/// A router with a vPool on moto behind a gate, and a vDisk.
fn gated(folder: &std::path::Path) -> Result<(Router, Moto, Gate, Subject)> {
    let moto = Moto::start(folder)?;
    let gate = Gate::before(moto.port)?;
    let router = router(folder)?;
    create(&router, "p", &format!("http://127.0.0.1:{}", gate.port()), BUCKET, &[])?.ok()?;
    router.cli(&["vdisk", "create", "v", "--vpool", "p", "--size", "64MiB"])?;
    let subject = Subject::new(router.endpoint(), "p/v", 16384)?;
    Ok((router, moto, gate, subject))
}

#[test]
fn a_store_that_is_down_at_the_start_is_waited_for() -> Result<()> {
    let folder = scratch("s3start")?;
    let (mut router, _moto, gate, subject) = gated(folder.path())?;
    subject.run_for(&Plan::default(), 300)?;
    router.kill9()?;
    gate.set(State::Closed);
    router.start_again_unready()?;
    let (status, body) = router.get("/readyz")?;
    ensure!(status == 503 && body.contains('p'), "not ready, and says for what it waits: {status} {body}");
    router.cli(&["vpool", "list"]).context("the API answers meanwhile")?;
    gate.set(State::Open);
    router.wait_ready(90)?;
    subject.settle(Promise::Everything)
}

#[test]
fn a_store_that_goes_away_under_load_is_waited_for_and_loses_nothing() -> Result<()> {
    let folder = scratch("s3outage")?;
    let (mut router, _moto, gate, subject) = gated(folder.path())?;
    let place = folder.path().join("near").display().to_string();
    router.cli(&["vpool", "create", "near", "--backend", "directory", "--path", &place])?;
    router.cli(&["vdisk", "create", "v", "--vpool", "near", "--size", "16MiB"])?;
    let near = Subject::new(router.endpoint(), "near/v", 4096)?;
    let away = rounds("SR_OUTAGE_SECONDS", 12);
    for (seed, state) in [(1, State::Closed), (2, State::Deaf)] {
        let running = subject.start(&Plan { seed, longest: 64, ..Plan::default() })?;
        pause(300);
        gate.set(state);
        let watch = tests::time::Stopwatch::start();
        let mut named = state == State::Deaf;
        // A connection that is refused is reported once the time for retries has passed.
        while !watch.past(away) || !(named || watch.past(90)) {
            near.run_for(&Plan { seed, connections: 1, longest: 4, ..Plan::default() }, 500)
                .context("the other vPool")?;
            router.must_run()?;
            named |= router.get("/api/v1/health")?.1.contains("/p");
        }
        ensure!(named, "health does not name the vPool: {}", router.get("/api/v1/health")?.1);
        gate.set(State::Open);
        let before = running.done();
        eventually("writes resume", 90, || match running.done() {
            done if done > before + 20 => Ok(()),
            done => bail!("{done} answers, {before} before the store came back"),
        })?;
        subject.gather(running).context("no request may fail while the store is away")?;
        router.drain("p/v")?;
    }
    // Killed while the store is away: the write buffer holds what was acknowledged.
    gate.set(State::Closed);
    // (Reads of what only the store has wait for it, so nobody waits for the answers here.)
    let running = subject.start(&Plan { seed: 3, longest: 8, ..Plan::default() })?;
    pause(300);
    router.kill9()?;
    subject.gather(running)?;
    gate.set(State::Open);
    router.start_again()?;
    subject.settle(Promise::Everything)?;
    near.settle(Promise::Everything)?;
    router.drain("p/v")?;
    router.cli(&["fsck", "p/v"])?;
    Ok(())
}
