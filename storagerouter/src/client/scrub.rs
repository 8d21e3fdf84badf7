//! `vdisk scrub`: asks for it, and tells meanwhile how far it is.

use super::commands::{NOTHING, vdisk_path};
use super::http::Api;
use super::show;
use crate::cli::Output;
use crate::size::human;
use anyhow::Result;
use common::Clock;
use common::clock::SystemClock;
use framework::types::{Scrubbed, Vdisk};
use hyper::Method;
use std::io::IsTerminal;
use std::time::Duration;

/// Time between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Carries it out.
pub async fn run(api: Api, output: Output, vdisk: &str, merge: bool, wait: u64) -> Result<()> {
    let path = vdisk_path(&api, vdisk).await?;
    let api = api.with_timeout(Duration::from_secs(wait.saturating_add(60)));
    let ask = format!("{path}/scrub?wait={wait}&merge={merge}");
    let scrub = api.call(Method::POST, &ask, NOTHING);
    let watched = wait > 0 && std::io::stderr().is_terminal();
    let scrubbed: Scrubbed = tokio::select! {
        done = scrub => done,
        never = tell(&api, &path), if watched => match never {},
    }?;
    if watched {
        eprintln!();
    }
    show(output, &scrubbed, line)
}

/// Tells how far it is, until it is dropped.
async fn tell(api: &Api, path: &str) -> std::convert::Infallible {
    let clock = SystemClock::new();
    loop {
        clock.sleep(LOOK).await;
        // What is wrong, the scrub itself will say.
        let Ok(vdisk) = api.get::<Vdisk>(path).await else { continue };
        if let Some(scrub) = vdisk.scrub.filter(|scrub| scrub.running) {
            let (copied, of) = (human(scrub.copied_bytes), human(scrub.to_copy_bytes));
            eprint!("\rcopied {copied} of {of}    ");
        }
    }
}

fn line(scrubbed: &Scrubbed) -> String {
    let Scrubbed { vdisk, deleted_scos, copied_bytes, replaced_tlogs } = scrubbed;
    let stored = vdisk.stored_bytes.map(|bytes| format!("; {} stored", human(bytes))).unwrap_or_default();
    let share = vdisk.space_amplification.map(|n| format!(", {n:.2} for each byte that is read"));
    format!(
        "vDisk {}/{}: {deleted_scos} SCOs deleted, {} copied before, {replaced_tlogs} TLogs replaced{stored}{}\n",
        vdisk.vpool,
        vdisk.name,
        human(*copied_bytes),
        share.unwrap_or_default()
    )
}
