//! `vdisk qos`: words only.

use clap::Args;

/// `vdisk qos`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Limits hold for all clients of the vDisk together, at once and over restarts. What is not named stays as it
is; 'none' takes one limit away, --clear all of them. A discard and a write of zeroes count as one write
without bytes; flushes do not count.

Examples:
  storagerouter vdisk qos disk1
  storagerouter vdisk qos disk1 --read-iops 2000 --write-iops 500
  storagerouter vdisk qos demo/disk1 --write-bandwidth 50MiB --burst 5
  storagerouter vdisk qos disk1 --read-iops none
  storagerouter vdisk qos disk1 --clear")]
pub struct Qos {
    /// VPOOL/NAME, or NAME when unique
    pub vdisk: String,
    /// Reads per second
    #[arg(long, value_name = "N|none", value_parser = iops)]
    pub read_iops: Option<Limit>,
    /// Writes per second
    #[arg(long, value_name = "N|none", value_parser = iops)]
    pub write_iops: Option<Limit>,
    /// Bytes read per second
    #[arg(long, value_name = "SIZE|none", value_parser = bandwidth)]
    pub read_bandwidth: Option<Limit>,
    /// Bytes written per second
    #[arg(long, value_name = "SIZE|none", value_parser = bandwidth)]
    pub write_bandwidth: Option<Limit>,
    /// How much of each limit may pass at once after a quiet time, in seconds of it, 0.1 to 60 [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = burst_ms)]
    pub burst: Option<u32>,
    /// Take all limits away, before those that are named with it are set
    #[arg(long)]
    pub clear: bool,
}

/// What a flag says about one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// There is to be none.
    None,
    /// So many requests or bytes.
    PerSecond(u64),
}

impl Limit {
    /// As the API has it.
    pub fn value(self) -> Option<u64> {
        match self {
            Limit::None => None,
            Limit::PerSecond(value) => Some(value),
        }
    }
}

fn limit(text: &str, parse: impl Fn(&str) -> Result<u64, String>) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit::None);
    }
    match parse(text)? {
        0 => Err(format!("'{text}' would let nothing pass; 'none' is no limit")),
        value => Ok(Limit::PerSecond(value)),
    }
}

fn iops(text: &str) -> Result<Limit, String> {
    limit(text, |text| {
        text.parse().map_err(|_| format!("'{text}' is not a number of requests per second, nor 'none'"))
    })
}

fn bandwidth(text: &str) -> Result<Limit, String> {
    limit(text, crate::size::parse)
}

/// Milliseconds of a text in seconds.
fn burst_ms(text: &str) -> Result<u32, String> {
    let bad = || format!("'{text}' is not a burst: 0.1 to 60 seconds, as in 5 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| bad())?;
    if !(0.1..=60.0).contains(&seconds) {
        return Err(bad());
    }
    Ok((seconds * 1000.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_sizes_or_none() {
        assert_eq!(iops("200"), Ok(Limit::PerSecond(200)));
        assert_eq!(bandwidth("10M"), Ok(Limit::PerSecond(10 << 20)));
        assert_eq!((iops("none"), bandwidth("none")), (Ok(Limit::None), Ok(Limit::None)));
        for bad in ["", "0", "-1", "1.5", "many", "10MB", "99999999999999999999"] {
            assert!(iops(bad).unwrap_err().contains(bad), "{bad}");
        }
        for bad in ["", "0", "-1", "10MB", "fast"] {
            assert!(bandwidth(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn a_burst_is_in_seconds_with_a_fraction() {
        assert_eq!((burst_ms("1"), burst_ms("0.25"), burst_ms("60")), (Ok(1000), Ok(250), Ok(60_000)));
        for bad in ["", "0", "0.05", "61", "-1", "NaN", "inf", "1s"] {
            assert!(burst_ms(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
