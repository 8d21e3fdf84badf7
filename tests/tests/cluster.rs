//! Storage routers as members of one cluster: they join, are killed, agree, move and leave.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tests::router::{Config, Router};
use tests::time::{Stopwatch, eventually, pause};
use tests::tls::Authority;
use tests::tools::{free_port, run_within, scratch};

/// A router of a cluster on this machine.
fn config(folder: &Path, name: &str) -> Result<Config> {
    let config = Config { registry_port: free_port()?, ..Config::new(&folder.join(name))? };
    Ok(config
        .set(&format!("cluster.name={name}"))
        .set("volumedriver.journal_mib=64")
        .set("volumedriver.segment_mib=4")
        .set("volumedriver.buffer_mib=32"))
}

fn guarded(config: Config, authority: &Authority) -> Config {
    let file = |name: &str| authority.file(name).display().to_string();
    config
        .set(&format!("cluster.tls_cert={}", file("router-cert.pem")))
        .set(&format!("cluster.tls_key={}", file("router-key.pem")))
        .set(&format!("cluster.tls_ca={}", file("ca-cert.pem")))
}

fn join(config: &Config, peer: &Config) -> Result<tests::tools::Ran> {
    let peer = format!("127.0.0.1:{}", peer.registry_port);
    run_within(30, config.command_of(&["cluster", "join", "--peer", &peer])?)
}

fn joined(config: Config, peer: &Config) -> Result<Router> {
    join(&config, peer)?.ok()?;
    Router::start(config)
}

fn status(router: &Router) -> Result<Value> {
    router.cli_json(&["cluster", "status"])
}

fn number(status: &Value, field: &str) -> Result<u64> {
    status[field].as_u64().with_context(|| format!("no number {field} in {status}"))
}

/// All say the same: so many voters, all of which answer and have everything.
fn agree(routers: &[Router], voters: u64) -> Result<Value> {
    eventually("the members agree", 15, || {
        let mut said = Vec::new();
        for router in routers {
            let mut status = status(router)?;
            ensure!(
                number(&status, "answering")? == voters && number(&status, "voters")? == voters,
                "{status}"
            );
            let applied: Vec<_> = status["members"]
                .as_array()
                .context("members")?
                .iter()
                .map(|m| m["applied"].clone())
                .collect();
            ensure!(applied.windows(2).all(|two| two[0] == two[1]), "{status}");
            ensure!(!status["leader"].is_null(), "{status}");
            for own in ["member", "name", "address"] {
                status[own] = Value::Null;
            }
            said.push(status);
        }
        ensure!(said.windows(2).all(|two| two[0] == two[1]), "{said:?}");
        said.pop().context("nobody was asked")
    })
}

fn vpools(router: &Router) -> Result<Vec<String>> {
    let list = router.cli_json(&["vpool", "list"])?;
    let items = list["items"].as_array().context("items")?;
    Ok(items.iter().filter_map(|vpool| vpool["name"].as_str().map(str::to_string)).collect())
}

fn make_vpool(router: &Router, folder: &Path, name: &str) -> Result<()> {
    let place = folder.join(format!("pool-{name}")).display().to_string();
    router.cli(&["vpool", "create", name, "--backend", "directory", "--path", &place]).map(drop)
}

#[test]
fn any_one_of_three_routers_may_be_killed_and_all_agree_again() -> Result<()> {
    let folder = scratch("cluster")?;
    let authority = Authority::new(&folder.path().join("tls"))?;
    let make = |name: &str| Ok::<_, anyhow::Error>(guarded(config(folder.path(), name)?, &authority));
    let first = Router::start(make("a")?)?;
    first.try_cli(&["cluster", "init"])?.refused(&["--one-machine"])?;
    let said = first.cli(&["cluster", "init", "--one-machine"])?.stdout;
    ensure!(said.contains(&format!("--peer 127.0.0.1:{}", first.config.registry_port)), "{said}");
    make_vpool(&first, folder.path(), "before")?;
    // Without a certificate of the authority nobody is let in.
    join(&config(folder.path(), "stranger")?, &first.config)?.refused(&["the cluster", "registry"])?;
    let second = joined(make("b")?, &first.config)?;
    ensure!(vpools(&second)? == ["before"], "a router that joined knows what there is");
    let third = joined(make("c")?, &second.config)?;
    let mut routers = vec![first, second, third];
    let all = agree(&routers, 3)?;
    ensure!(number(&all, "may_fail")? == 1, "{all}");
    for (killed, other) in [(0, 1), (1, 2), (2, 0)] {
        routers[killed].kill9()?;
        let name = format!("without-{killed}");
        let watch = Stopwatch::start();
        make_vpool(&routers[other], folder.path(), &name)?;
        ensure!(!watch.past(5), "the registry took {:.1} s to go on", watch.seconds());
        let left = status(&routers[other])?;
        ensure!(number(&left, "answering")? == 2 && number(&left, "may_fail")? == 0, "{left}");
        // It comes back at another address, and the others follow it there.
        routers[killed].config.registry_port = free_port()?;
        routers[killed].start_again()?;
        ensure!(vpools(&routers[killed])?.contains(&name), "it does not know what came meanwhile");
        agree(&routers, 3)?;
    }
    // All at once: who comes first waits for a second one, however long that takes.
    for router in &mut routers {
        router.kill9()?;
    }
    for (nth, router) in routers.iter_mut().enumerate() {
        router.launch_again()?;
        if nth == 0 {
            eventually("it says for whom it waits", 15, || {
                router.must_run()?;
                ensure!(router.log().contains("2 of 3 voters have to be there"), "it does not wait");
                Ok(())
            })?;
        }
    }
    for router in &mut routers {
        router.wait_ready(30)?;
        ensure!(vpools(router)? == ["before", "without-0", "without-1", "without-2"], "something is missing");
    }
    agree(&routers, 3)?;
    for router in &mut routers {
        router.terminate()?;
    }
    Ok(())
}

#[test]
fn joining_may_be_cut_off_anywhere_and_goes_on() -> Result<()> {
    let folder = scratch("join")?;
    let first = Router::start(config(folder.path(), "a")?)?;
    let second = config(folder.path(), "b")?;
    join(&second, &first.config)?.ok()?;
    let note = || fs::read_to_string(second.data_dir.join("membership"));
    let mut seen = Vec::new();
    for round in 0..80 {
        let mut router = Router::launch(second.clone())?;
        pause(round * 5);
        router.kill9()?;
        let note: Value = serde_json::from_str(&note()?)?;
        seen.push(note["at"]["stage"].as_str().context("stage")?.to_string());
        if seen.last().is_some_and(|stage| stage == "member") {
            break;
        }
    }
    println!("it was killed when it was: {seen:?}");
    ensure!(seen.iter().any(|stage| stage != "member"), "it was never killed while it joined");
    let second = Router::start(second)?;
    let all = agree(&[first, second], 2)?;
    ensure!(all["members"].as_array().context("members")?.len() == 2, "somebody was left behind: {all}");
    Ok(())
}

#[test]
fn a_router_leaves_and_may_join_again_under_another_id() -> Result<()> {
    let folder = scratch("leave")?;
    let first = Router::start(config(folder.path(), "a")?)?;
    first.try_cli(&["cluster", "leave"])?.refused(&["alone"])?;
    first.try_cli(&["cluster", "leave", "--member", "7"])?.refused(&["no member 7"])?;
    let second = joined(config(folder.path(), "b")?, &first.config)?;
    let third = joined(config(folder.path(), "c")?, &first.config)?;
    let mut routers = vec![first, second, third];
    let all = agree(&routers, 3)?;
    // Whoever leads hands that over first.
    let leader = number(&all, "leader")? as usize - 1;
    let mut gone = routers.remove(leader);
    gone.cli(&["cluster", "leave"])?;
    let ended = gone.wait(20)?;
    ensure!(ended.success() && gone.log().contains("left its cluster"), "{ended}: {}", gone.log());
    agree(&routers, 2)?;
    gone.config.must_refuse(&["has left its cluster"])?;
    join(&gone.config, &routers[0].config)?.ok()?;
    gone.start_again()?;
    routers.push(gone);
    let again = agree(&routers, 3)?;
    ensure!(again["members"][2]["member"] == 4, "an id was used again: {again}");
    // Killed while it leaves, it goes on with that when it is started.
    let mut gone = routers.pop().context("the last one")?;
    gone.kill9()?;
    let file = gone.config.data_dir.join("membership");
    let note = fs::read_to_string(&file)?;
    ensure!(note.contains("\"stage\":\"member\""), "{note}");
    fs::write(&file, note.replace("\"stage\":\"member\"", "\"stage\":\"leaving\""))?;
    gone.launch_again()?;
    let ended = gone.wait(20)?;
    ensure!(ended.success(), "{ended}: {}", gone.log());
    agree(&routers, 2)?;
    join(&gone.config, &routers[0].config)?.ok()?;
    gone.start_again()?;
    routers.push(gone);
    let again = agree(&routers, 3)?;
    ensure!(again["members"][2]["member"] == 5, "an id was used again: {again}");
    // One that is dead is removed by another one, and finds out when it comes back.
    let mut dead = routers.remove(0);
    dead.kill9()?;
    let id = status(&routers[0])?["members"]
        .as_array()
        .context("members")?
        .iter()
        .find_map(|member| (member["answers"] == false).then(|| member["member"].to_string()));
    routers[0].cli(&["cluster", "leave", "--member", &id.context("nobody is dead")?])?;
    agree(&routers, 2)?;
    dead.config.must_refuse(&["was removed from it"])?;
    Ok(())
}

#[test]
fn a_router_that_leaves_gives_its_vdisks_away_first() -> Result<()> {
    let folder = scratch("leave-disks")?;
    let first = Router::start(config(folder.path(), "a")?)?;
    let mut second = joined(config(folder.path(), "b")?, &first.config)?;
    let third = joined(config(folder.path(), "c")?, &first.config)?;
    make_vpool(&second, folder.path(), "p")?;
    for disk in ["v", "w"] {
        second.cli(&["vdisk", "create", disk, "--vpool", "p", "--size", "64M"])?;
    }
    let id = number(&status(&second)?, "member")?;
    second.cli(&["cluster", "leave"])?;
    let ended = second.wait(20)?;
    ensure!(ended.success(), "{ended}: {}", second.log());
    ensure!(second.log().contains("left its cluster"), "{}", second.log());
    let routers = [first, third];
    let all = agree(&routers, 2)?;
    ensure!(!all["members"].to_string().contains(&format!("\"member\":{id},")), "{all}");
    // They were served elsewhere before it went.
    for disk in ["p/v", "p/w"] {
        let said = routers[0].show(disk)?;
        ensure!(said["state"] == "serving", "{said}");
    }
    // Back under its name, it takes vDisks again.
    join(&second.config, &routers[0].config)?.ok()?;
    second.start_again()?;
    let said = second.cli_json(&["router", "show", "b"])?;
    ensure!(said["draining"] == false, "{said}");
    Ok(())
}

#[test]
fn what_can_not_join_is_told_why() -> Result<()> {
    let folder = scratch("refuse")?;
    let first = Router::start(config(folder.path(), "a")?)?;
    let mut own = Router::start(config(folder.path(), "b")?)?;
    join(&own.config, &first.config)?.refused(&["held by process"])?;
    make_vpool(&own, folder.path(), "mine")?;
    own.terminate()?;
    join(&own.config, &first.config)?.refused(&["mine", "--detach"])?;
    own.start_again()?;
    own.cli(&["vpool", "delete", "mine", "--detach"])?;
    own.terminate()?;
    let nobody = Config { registry_port: free_port()?, ..own.config.clone() };
    join(&own.config, &nobody)?.refused(&["does not answer"])?;
    join(&own.config, &first.config)?.ok()?;
    // A name is one router's.
    own.config.settings.push("cluster.name=a".into());
    own.config.must_refuse(&["'a' already"])?;
    own.config.settings.pop();
    own.start_again()?;
    agree(&[first, own], 2)?;
    Ok(())
}
