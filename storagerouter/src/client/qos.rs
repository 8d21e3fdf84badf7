//! `vdisk qos`.

use super::http::Api;
use super::{show, tables};
use crate::cli::Output;
use crate::cli::qos::Qos as Flags;
use crate::failure::Failure;
use crate::size::human;
use anyhow::Result;
use framework::types::{Qos, Vdisk, VdiskPatch};
use hyper::Method;

/// Sets what the flags name, and shows the limits.
pub async fn run(api: &Api, output: Output, path: &str, flags: &Flags) -> Result<()> {
    let mut vdisk: Vdisk = api.get(path).await?;
    if let Some(qos) = changed(vdisk.qos.unwrap_or_default(), flags)? {
        let body = VdiskPatch { qos: Some(qos), ..VdiskPatch::default() };
        vdisk = api.call(Method::PATCH, path, Some(&body)).await?;
    }
    show(output, &vdisk.qos.unwrap_or_default(), table)
}

/// The limits after the flags; `None` when they name nothing.
fn changed(before: Qos, flags: &Flags) -> Result<Option<Qos>> {
    let Flags { vdisk: _, read_iops, write_iops, read_bandwidth, write_bandwidth, burst, clear } = flags;
    let limits = [read_iops, write_iops, read_bandwidth, write_bandwidth];
    if !clear && burst.is_none() && limits.iter().all(|limit| limit.is_none()) {
        return Ok(None);
    }
    let mut qos = if *clear { Qos::default() } else { before };
    for (limit, flag) in [
        (&mut qos.read_iops, read_iops),
        (&mut qos.write_iops, write_iops),
        (&mut qos.read_bytes_per_second, read_bandwidth),
        (&mut qos.write_bytes_per_second, write_bandwidth),
    ] {
        if let Some(flag) = flag {
            *limit = flag.value();
        }
    }
    qos.burst_ms = burst.or(qos.burst_ms);
    if (Qos { burst_ms: None, ..qos }) == Qos::default() {
        if burst.is_some() {
            return Err(Failure::usage("--burst alone limits nothing: name a limit with it"));
        }
        return Ok(Some(Qos::default()));
    }
    Ok(Some(qos))
}

fn direction(iops: Option<u64>, bandwidth: Option<u64>) -> Option<String> {
    let parts = [iops.map(|n| format!("{n} IOPS")), bandwidth.map(|bytes| format!("{}/s", human(bytes)))];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn parts(qos: &Qos) -> [(&'static str, Option<String>); 3] {
    [
        ("reads", direction(qos.read_iops, qos.read_bytes_per_second)),
        ("writes", direction(qos.write_iops, qos.write_bytes_per_second)),
        ("burst", qos.burst_ms.map(|ms| format!("{} s", f64::from(ms) / 1000.0))),
    ]
}

fn table(qos: &Qos) -> String {
    let [reads, writes, burst] = parts(qos);
    let always = |(name, value): (_, Option<String>)| (name, Some(value.unwrap_or("no limit".to_string())));
    tables::pairs(vec![always(reads), always(writes), burst])
}

/// In one line, for `vdisk show`.
pub fn line(qos: &Qos) -> String {
    let parts = parts(qos).into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    parts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, VdiskAction};
    use clap::Parser;

    fn after(before: Qos, words: &[&str]) -> Result<Option<Qos>> {
        let cli = Cli::try_parse_from([&["storagerouter", "vdisk", "qos", "d"], words].concat())?;
        let Command::Vdisk(vdisk) = cli.command else { panic!("not vdisk") };
        let VdiskAction::Qos(flags) = vdisk.action else { panic!("not qos") };
        changed(before, &flags)
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let none = Qos::default();
        let some = Qos { read_iops: Some(7), write_iops: Some(8), burst_ms: Some(2000), ..none };
        assert_eq!(after(some, &[]).unwrap(), None);
        let set = after(none, &["--read-iops", "200", "--write-bandwidth", "10MiB"]).unwrap().unwrap();
        let want = Qos { read_iops: Some(200), write_bytes_per_second: Some(10 << 20), ..none };
        assert_eq!(set, want);
        let more = after(some, &["--read-bandwidth", "1MiB", "--read-iops", "none"]).unwrap().unwrap();
        assert_eq!(more, Qos { read_iops: None, read_bytes_per_second: Some(1 << 20), ..some });
        assert_eq!(after(some, &["--burst", "0.5"]).unwrap().unwrap(), Qos { burst_ms: Some(500), ..some });
        assert_eq!(after(some, &["--clear"]).unwrap(), Some(none));
        let only = after(some, &["--clear", "--write-iops", "9"]).unwrap().unwrap();
        assert_eq!(only, Qos { write_iops: Some(9), ..none });
        assert_eq!(after(some, &["--read-iops", "none", "--write-iops", "none"]).unwrap(), Some(none));
        assert!(after(none, &["--burst", "5"]).unwrap_err().to_string().contains("--burst"));
        assert!(after(none, &["--read-iops", "0"]).unwrap_err().to_string().contains("--read-iops"));
    }

    #[test]
    fn limits_are_shown_for_people() {
        assert_eq!(table(&Qos::default()), "reads   no limit\nwrites  no limit\n");
        let qos = Qos {
            read_iops: Some(200),
            read_bytes_per_second: Some(10 << 20),
            burst_ms: Some(500),
            ..Qos::default()
        };
        assert_eq!(table(&qos), "reads   200 IOPS, 10 MiB/s\nwrites  no limit\nburst   0.5 s\n");
        assert_eq!(line(&qos), "reads 200 IOPS, 10 MiB/s; burst 0.5 s");
    }
}
