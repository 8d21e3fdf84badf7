//! One world from its beginning to its end.

use super::clients;
use super::host;
use super::plan::Plan;
use super::truth::{CLUSTERS, Vdisk};
use super::world::{Coverage, World};
use common::Clock;
use dtl::{Mode, Status};
use objectrouter::{CreateVdisk, CreateVpool, DtlWish, VpoolState};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::LocalSet;

/// How long a world may take to be well when nothing goes wrong any more.
const RECOVERY: Duration = Duration::from_secs(240);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What came out of a world in which nothing was wrong.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// A number made of all that happened: the same for the same plan.
    pub digest: u64,
    /// How often each thing happened.
    pub coverage: Coverage,
    /// How much time passed in the world.
    pub virtual_time: Duration,
}

/// Runs a plan; an error says what was wrong. A `loud` one tells what happens.
///
/// # Errors
/// What broke which rule.
pub fn run(plan: &Plan, loud: bool) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let told = |e: Box<dyn std::any::Any + Send>| {
        let text = e.downcast_ref::<String>().cloned();
        text.or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
    };
    let world = std::panic::AssertUnwindSafe(|| LocalSet::new().block_on(&runtime, all(plan, loud)));
    std::panic::catch_unwind(world).unwrap_or_else(|e| Err(format!("panicked: {}", told(e))))
}

async fn all(plan: &Plan, loud: bool) -> Result<Outcome, String> {
    let world = World::new(plan, loud);
    begin(&world, plan).await?;
    let mut tasks = tokio::task::JoinSet::new();
    tokio::spawn(world.clone().follow_records());
    for vdisk in &world.vdisks {
        tasks.spawn(clients::clients(world.clone(), vdisk.clone(), world.draw()));
    }
    for _ in 0..2 {
        tokio::spawn(clients::look(world.clone(), world.draw()));
    }
    let began = world.clock.now();
    let mut over = world.over.subscribe();
    for (at, event) in &plan.events {
        let left = (began + *at).saturating_sub(world.clock.now());
        tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => break,
            () = world.clock.sleep(left) => world.happen(event),
        }
    }
    world.clock.sleep((began + plan.end).saturating_sub(world.clock.now())).await;
    end(&world).await;
    world.over.send_replace(true);
    while tasks.join_next().await.is_some() {}
    if world.edge_metrics.protocol_errors() > 0 {
        world.wrong("an edge server cut a connection for what it said".into());
    }
    match world.verdict() {
        Some(wrong) => Err(wrong),
        None => {
            let (digest, _) = world.diary();
            Ok(Outcome { digest, coverage: world.coverage(), virtual_time: world.clock.now() })
        }
    }
}

/// Starts the routers and makes the vDisks.
async fn begin(world: &Arc<World>, plan: &Plan) -> Result<(), String> {
    for n in world.numbers() {
        host::start(world, n);
    }
    let all = world.numbers().len();
    until(world, Duration::from_secs(30), || {
        let meets = |n| world.router(n).is_some_and(|router| router.nodes().len() == all);
        world.numbers().all(meets)
    })
    .await
    .map_err(|()| "the routers do not start".to_string())?;
    let router = |n| world.router(n).ok_or_else(|| format!("router {n} is not there"));
    let text = |e: common::Error| e.to_string();
    let spec = CreateVpool {
        name: "p".parse().map_err(text)?,
        backend: serde_json::json!({"kind": "simulated"}),
        cluster_size: None,
        adopt: false,
    };
    router(0)?.create_vpool(spec).await.map_err(text)?;
    for (vdisk, config) in world.vdisks.iter().zip(&plan.vdisks) {
        let n = vdisk.number % all;
        let at = router(n)?;
        until(world, Duration::from_secs(30), || {
            at.vpool("p").is_ok_and(|info| info.state == VpoolState::Serving)
        })
        .await
        .map_err(|()| format!("router {n} does not open the vPool"))?;
        let spec = CreateVdisk {
            vpool: "p".into(),
            name: vdisk.name.parse().map_err(text)?,
            size: (CLUSTERS * 4096) as u64,
            sco_size: None,
        };
        at.create_vdisk(spec).await.map_err(text)?;
        let wish = DtlWish {
            mode: Some(config.mode),
            peers: Some(config.wanted),
            needed: Some(config.needed),
            on_failure: Some(config.on_failure),
        };
        if config.mode == Mode::Async {
            vdisk.content().lenient = true;
        }
        at.set_dtl("p", &vdisk.name, wish).await.map_err(text)?;
    }
    Ok(())
}

async fn until(world: &World, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<(), ()> {
    let give_up = world.clock.now() + patience;
    while !holds() {
        if world.clock.now() >= give_up || world.verdict().is_some() {
            return Err(());
        }
        world.clock.sleep(LOOK).await;
    }
    Ok(())
}

/// Nothing goes wrong any more: every vDisk comes back without help, but for what the rules let be lost.
async fn end(world: &Arc<World>) {
    world.heal();
    for vdisk in &world.vdisks {
        come_back(world, vdisk).await;
    }
    // R4: what is to be replicated is.
    for vdisk in &world.vdisks {
        let healed = until(world, RECOVERY, || {
            world.record(vdisk).is_some_and(|record| {
                let config = &record.registration.config;
                config.mode == Mode::None || config.status == Status::InSync
            })
        });
        if healed.await.is_err() {
            world.wrong(format!("R4: {} finds no peers: {:?}", vdisk.name, world.record(vdisk)));
        }
    }
    // Once more, with everybody dead at once: who acknowledged it has it.
    if world.verdict().is_none() && world.below(3) == 0 {
        world.note("all killed at once");
        world.tell("all are killed");
        for n in world.numbers() {
            world.host(n, host::Host::kill);
        }
        world.heal();
        for vdisk in &world.vdisks {
            come_back(world, vdisk).await;
        }
    }
}

/// A new client comes in and finds everything.
async fn come_back(world: &Arc<World>, vdisk: &Vdisk) {
    let before = vdisk.content().settled;
    vdisk.death.send_modify(|n| *n += 1);
    let settled = || vdisk.content().settled > before;
    if until(world, RECOVERY, settled).await.is_ok() || world.verdict().is_some() {
        return;
    }
    let Some(record) = world.record(vdisk) else {
        return world.wrong(format!("{} is not in the registry any more", vdisk.name));
    };
    if world.has_copy(&record, &[]) {
        let said: Vec<_> = world
            .numbers()
            .map(|n| {
                let router = world.router(n)?;
                Some(router.vdisk("p", &vdisk.name).map(|info| {
                    let open = info.status.map(|s| (s.state, s.frontiers, s.dirty_bytes, s.replication));
                    (info.state, info.reason, open)
                }))
            })
            .collect();
        return world.wrong(format!("{} does not come back: {said:?}, {record:?}", vdisk.name));
    }
    world.note("orphaned, and forced");
    world.tell(&format!("{} is orphaned: {record:?}", vdisk.name));
    vdisk.content().forced = true;
    let mut last = String::new();
    for _ in 0..60 {
        for n in world.numbers() {
            let Some(router) = world.router(n) else { continue };
            match router.force_vdisk("p", &vdisk.name).await {
                Ok(info) => {
                    // R6: it is recorded.
                    if info.losses.is_empty() {
                        world.wrong(format!("R6: {} was forced, and no loss is recorded", vdisk.name));
                    }
                    if until(world, RECOVERY, settled).await.is_err() {
                        world.wrong(format!("{} was forced, and does not come back", vdisk.name));
                    }
                    return;
                }
                Err(error) => last = format!("router {n}: {error}"),
            }
        }
        world.clock.sleep(Duration::from_secs(1)).await;
        if settled() {
            return;
        }
    }
    world.wrong(format!("{} is orphaned and can't be forced: {last}; {record:?}", vdisk.name));
}
