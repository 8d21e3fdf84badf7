//! Presets: how the objects of a namespace are cut, protected and packed.
//!
//! A preset is an ordered list of policies and what never changes: compression, encryption, sizes. The first policy that the
//! live OSDs can satisfy is used. A policy is `(k, m, c, x)`: data fragments, parity fragments, fragments that
//! must be stored before a put succeeds, and fragments per node at most.

use common::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

/// The most fragments of an object.
pub const MAX_FRAGMENTS: usize = 32;
/// The most policies of a preset.
pub const MAX_POLICIES: usize = 16;
/// The smallest frame.
pub const MIN_FRAME: u32 = 4 << 10;
/// The largest frame.
pub const MAX_FRAME: u32 = 1 << 20;
/// The largest value of a fragment.
pub const MAX_VALUE: u32 = common::osd::MAX_VALUE as u32;
/// Values are cut at multiples of this, as a disk is.
pub const VALUE_UNIT: u32 = common::osd::BLOCK as u32;

/// How one object is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Data fragments; any so many fragments give the object back.
    pub k: u8,
    /// Parity fragments.
    pub m: u8,
    /// Fragments that are stored before a put succeeds.
    pub c: u8,
    /// Fragments per node at most; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<u8>,
}

impl Policy {
    /// A policy, checked.
    ///
    /// # Errors
    /// `Invalid`: it names the field.
    pub fn new(k: u8, m: u8, c: u8, x: Option<u8>) -> Result<Self> {
        let policy = Self { k, m, c, x };
        policy.check()?;
        Ok(policy)
    }

    /// Data fragments.
    pub fn data(&self) -> usize {
        usize::from(self.k)
    }

    /// Data and parity fragments.
    pub fn fragments(&self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    /// Losses that an object survives which has just been acknowledged.
    pub fn losses_when_acknowledged(&self) -> usize {
        usize::from(self.c) - usize::from(self.k)
    }

    /// Nodes whose loss at one time it survives, for certain.
    pub fn nodes_lost(&self) -> usize {
        self.x.map_or(0, |x| self.losses_when_acknowledged() / usize::from(x))
    }

    fn check(&self) -> Result<()> {
        let all = self.fragments();
        if self.k == 0 {
            return Err(Error::invalid(
                "field 'k' must be at least 1: without data fragments nothing is stored",
            ));
        }
        if all > MAX_FRAGMENTS {
            return Err(Error::invalid(format!(
                "fields 'k' and 'm' sum up to {all}: at most {MAX_FRAGMENTS}"
            )));
        }
        if self.c < self.k || usize::from(self.c) > all {
            return Err(Error::invalid(format!(
                "field 'c' is {}: it must be from k = {} (fewer fragments do not give the object back) to k + m = {all}",
                self.c, self.k
            )));
        }
        if self.x == Some(0) {
            return Err(Error::invalid("field 'x' must be at least 1, or '*' for any number"));
        }
        Ok(())
    }

    /// How many fragments `nodes` can take, each the number of live OSDs of a node.
    pub fn room(&self, nodes: impl IntoIterator<Item = usize>) -> usize {
        let most = self.x.map_or(usize::MAX, usize::from);
        nodes.into_iter().map(|osds| osds.min(most)).sum()
    }

    /// What it survives, in words.
    pub fn survives(&self) -> String {
        let (now, later) = (self.losses_when_acknowledged(), usize::from(self.m));
        let osds = |n: usize| match n {
            0 => "no lost OSD".to_string(),
            1 => "any 1 lost OSD".to_string(),
            n => format!("any {n} lost OSDs"),
        };
        let mut told = format!("{}, from the moment of success", osds(now));
        if later > now {
            told += &format!(" ({} when the other {} fragments have followed)", osds(later), later - now);
        }
        match (self.x, self.nodes_lost()) {
            (None, _) => told += "; no promise for nodes, since a node may hold any number of fragments",
            (Some(_), 0) => told += "; not a lost node",
            (Some(_), 1) => told += "; any 1 lost node",
            (Some(_), n) => told += &format!("; any {n} lost nodes"),
        }
        let stored = self.fragments() as f64 / self.data() as f64;
        told + &format!("; stores {stored:.2} bytes per byte")
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{},{},", self.k, self.m, self.c)?;
        match self.x {
            Some(x) => write!(f, "{x})"),
            None => f.write_str("*)"),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    /// `(k,m,c,x)` or `k,m,c,x`; `*` for x is any number.
    fn from_str(text: &str) -> Result<Self> {
        let bare = text.trim();
        let bare = bare.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(bare);
        let wrong = |what: String| Error::invalid(format!("policy '{}': {what}", text.escape_debug()));
        let parts: Vec<&str> = bare.split(',').map(str::trim).collect();
        let [k, m, c, x] = parts[..] else {
            return Err(wrong("four numbers are needed: k,m,c,x, as in 4,2,6,2".into()));
        };
        let number = |field: &str, text: &str| {
            text.parse::<u8>().map_err(|_| {
                wrong(format!("field '{field}': '{}' is no number from 0 to 255", text.escape_debug()))
            })
        };
        let x = if x == "*" { None } else { Some(number("x", x)?) };
        Policy::new(number("k", k)?, number("m", m)?, number("c", c)?, x)
            .map_err(|e| wrong(e.message().into()))
    }
}

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By zstd; a frame that does not shrink is kept as it is.
    Zstd {
        /// From -7 (fast) to 19 (small).
        level: i8,
    },
}

/// How frames are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not at all.
    #[default]
    None,
    /// By ChaCha20-Poly1305, with a key per namespace, and one per put that is derived from it.
    ChaCha20Poly1305,
}

/// How the objects of a namespace are cut, protected and packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The first that the live OSDs can satisfy is used.
    pub policies: Vec<Policy>,
    /// Lost OSDs that every acknowledged object survives: each policy keeps it, from the moment of success.
    pub losses: u8,
    /// How frames are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How frames are encrypted.
    #[serde(default)]
    pub encryption: Encryption,
    /// Bytes of a frame, the unit of compression, encryption and checksum: a power of two.
    #[serde(default = "default_frame")]
    pub frame_size: u32,
    /// Bytes of a value at an OSD: a longer fragment is several of them.
    #[serde(default = "default_fragment")]
    pub fragment_size: u32,
}

fn default_frame() -> u32 {
    64 << 10
}

fn default_fragment() -> u32 {
    16 << 20
}

impl Preset {
    /// A preset of these policies that promises `losses`, with everything else by default.
    ///
    /// # Errors
    /// `Invalid`: it names the field.
    pub fn new(policies: Vec<Policy>, losses: u8) -> Result<Self> {
        let preset = Self {
            policies,
            losses,
            compression: Compression::None,
            encryption: Encryption::None,
            frame_size: default_frame(),
            fragment_size: default_fragment(),
        };
        preset.check()?;
        Ok(preset)
    }

    /// A preset from JSON, checked.
    ///
    /// # Errors
    /// `Invalid`: it names the field.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let preset: Preset = serde_json::from_slice(json)
            .map_err(|e| Error::invalid(format!("the preset is not understood: {e}")))?;
        preset.check()?;
        Ok(preset)
    }

    /// Checks all of it: what is done when it is made, and when it is read.
    ///
    /// # Errors
    /// `Invalid`: it names the field.
    pub fn check(&self) -> Result<()> {
        if self.policies.is_empty() || self.policies.len() > MAX_POLICIES {
            return Err(Error::invalid(format!(
                "preset field 'policies' must hold 1 to {MAX_POLICIES} policies"
            )));
        }
        for (n, policy) in self.policies.iter().enumerate() {
            let named = |e: Error| e.context(format!("preset field 'policies[{n}]' {policy}"));
            policy.check().map_err(named)?;
            if policy.losses_when_acknowledged() < usize::from(self.losses) {
                return Err(named(Error::invalid(format!(
                    "field 'c' is {}: a preset that promises {} losses (field 'losses') needs c >= k + {} = {}",
                    policy.c,
                    self.losses,
                    self.losses,
                    usize::from(policy.k) + usize::from(self.losses)
                ))));
            }
            if self.policies[..n].contains(policy) {
                return Err(named(Error::invalid("it is there twice")));
            }
        }
        if let Compression::Zstd { level } = self.compression
            && !(-7..=19).contains(&level)
        {
            return Err(Error::invalid(format!(
                "preset field 'compression': level {level} is not from -7 (fast) to 19 (small)"
            )));
        }
        if !self.frame_size.is_power_of_two() || !(MIN_FRAME..=MAX_FRAME).contains(&self.frame_size) {
            return Err(Error::invalid(format!(
                "preset field 'frame_size' is {}: it must be a power of two from {MIN_FRAME} to {MAX_FRAME}",
                self.frame_size
            )));
        }
        let size = self.fragment_size;
        if !(self.frame_size..=MAX_VALUE).contains(&size) || !size.is_multiple_of(VALUE_UNIT) {
            return Err(Error::invalid(format!(
                "preset field 'fragment_size' is {size}: it must be a multiple of {VALUE_UNIT} from one frame ({}) to \
                 {MAX_VALUE}",
                self.frame_size
            )));
        }
        Ok(())
    }

    /// The first policy that `live` OSDs can satisfy, given by the node of each, and its place in the list.
    pub fn choose<N: Eq + Hash>(&self, live: impl IntoIterator<Item = N>) -> Option<(usize, Policy)> {
        let mut nodes: HashMap<N, usize> = HashMap::new();
        for node in live {
            *nodes.entry(node).or_default() += 1;
        }
        let fits = |p: &Policy| p.room(nodes.values().copied()) >= usize::from(p.c);
        self.policies.iter().position(fits).map(|n| (n, self.policies[n]))
    }

    /// What it survives, in words: a line for each policy.
    pub fn survives(&self) -> Vec<String> {
        self.policies.iter().map(|p| format!("{p}: {}", p.survives())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ErrorKind;

    fn policy(text: &str) -> Policy {
        text.parse().unwrap()
    }

    #[test]
    fn a_policy_reads_as_it_is_written() {
        for text in ["(4,2,6,2)", "(1,2,3,1)", "(8,3,11,*)", "(1,0,1,*)"] {
            assert_eq!(policy(text).to_string(), text);
            let json = serde_json::to_string(&policy(text)).unwrap();
            assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy(text));
        }
        assert_eq!(policy(" 4, 2 ,6,* "), policy("(4,2,6,*)"));
    }

    #[test]
    fn what_is_no_policy_is_refused_by_the_name_of_the_field() {
        for (text, named) in [
            ("0,2,2,1", "'k'"),
            ("4,2,3,1", "'c'"),
            ("4,2,7,1", "'c'"),
            ("4,2,6,0", "'x'"),
            ("30,3,33,1", "'k' and 'm'"),
            ("255,255,6,1", "'k' and 'm'"),
            ("4,2,6", "four numbers"),
            ("4,2,six,1", "'c'"),
            ("4,300,6,1", "'m'"),
            ("4,2,6,-1", "'x'"),
            ("", "four numbers"),
        ] {
            let error = text.parse::<Policy>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message().contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_preset_that_promises_more_than_a_policy_keeps_is_refused() {
        let good = Preset::new(vec![policy("4,2,6,2"), policy("2,2,4,2")], 2).unwrap();
        // Acknowledged with five of six: one loss at that moment, so two can't be promised.
        let error = Preset::new(vec![policy("4,2,6,2"), policy("4,2,5,2")], 2).unwrap_err();
        assert!(error.message().contains("policies[1]") && error.message().contains("'c'"), "{error}");
        Preset::new(vec![policy("4,2,5,2")], 1).unwrap();
        for (change, named) in [
            ((|p: &mut Preset| p.policies.clear()) as fn(&mut Preset), "'policies'"),
            (|p| p.policies[1] = p.policies[0], "twice"),
            (|p| p.compression = Compression::Zstd { level: 20 }, "'compression'"),
            (|p| p.frame_size = 5000, "'frame_size'"),
            (|p| p.frame_size = 2048, "'frame_size'"),
            (|p| p.fragment_size = 4096, "'fragment_size'"),
            (|p| p.fragment_size = u32::MAX, "'fragment_size'"),
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            let error = Preset::from_json(&serde_json::to_vec(&bad).unwrap()).unwrap_err();
            assert!(error.message().contains(named), "{error}");
        }
    }

    #[test]
    fn json_is_what_the_api_shows() {
        let json = r#"{"policies":[{"k":4,"m":2,"c":6,"x":2},{"k":2,"m":2,"c":4}],"losses":2,
            "compression":{"kind":"zstd","level":1},"encryption":"chacha20poly1305"}"#;
        let preset = Preset::from_json(json.as_bytes()).unwrap();
        assert_eq!(preset.policies, [policy("4,2,6,2"), policy("2,2,4,*")]);
        assert_eq!((preset.frame_size, preset.encryption), (65536, Encryption::ChaCha20Poly1305));
        let again = serde_json::to_vec(&preset).unwrap();
        assert_eq!(Preset::from_json(&again).unwrap(), preset);
        for (bad, named) in [
            (r#"{"policies":[{"k":4,"m":2,"c":6,"y":2}],"losses":2}"#, "`y`"),
            (r#"{"policies":[{"k":4,"m":2,"c":6}]}"#, "`losses`"),
            (r#"{"policies":[{"k":4,"m":2,"c":6}],"losses":2,"size":1}"#, "`size`"),
            (r#"{"policies":[{"k":4,"m":2,"c":600}],"losses":2}"#, "600"),
        ] {
            let error = Preset::from_json(bad.as_bytes()).unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.message().contains(named), "{error}");
        }
    }

    #[test]
    fn the_first_policy_that_fits_is_chosen() {
        let preset = Preset::new(vec![policy("4,2,6,2"), policy("2,2,4,2")], 2).unwrap();
        let chosen = |nodes: &[u32]| preset.choose(nodes.iter().copied()).map(|(n, _)| n);
        // Three nodes with two OSDs each.
        assert_eq!(chosen(&[1, 1, 2, 2, 3, 3]), Some(0));
        // A node is gone: two of each node, so four fragments.
        assert_eq!(chosen(&[1, 1, 1, 1, 2, 2, 2]), Some(1));
        // Many OSDs on one node do not help.
        assert_eq!(chosen(&[1, 1, 1, 1, 1, 1, 2]), None);
        assert_eq!(chosen(&[]), None);
        // Success needs c, not k + m: the others follow.
        let late = Preset::new(vec![policy("4,2,5,1")], 1).unwrap();
        assert_eq!(late.choose(1..=5).map(|(n, _)| n), Some(0));
        assert_eq!(late.choose(1..=4), None);
    }

    #[test]
    fn what_it_survives_is_said_in_words() {
        let said = policy("4,2,6,2").survives();
        assert_eq!(
            said,
            "any 2 lost OSDs, from the moment of success; any 1 lost node; stores 1.50 bytes per byte"
        );
        let said = policy("5,4,8,3").survives();
        assert!(said.starts_with(
            "any 3 lost OSDs, from the moment of success (any 4 lost OSDs when the other 1 fragments have followed)"
        ));
        assert!(policy("1,0,1,*").survives().starts_with("no lost OSD"));
        assert!(policy("4,2,6,*").survives().contains("no promise for nodes"));
        assert!(policy("4,2,5,2").survives().contains("not a lost node"));
    }
}
