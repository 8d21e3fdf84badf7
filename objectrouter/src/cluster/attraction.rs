//! When a vDisk is to follow its clients to another router.
//!
//! Clients of another router (its NBD clients, or edge clients that it serves through) cost a hop each time. A router that
//! asks for most of what is asked of a vDisk, and for enough of it, draws it over.

use crate::traffic::{Asked, Uses};
use common::{Epoch, Name};

/// Looks for which a vDisk stays where it was just opened, or was to be moved from in vain.
const REST: u32 = 5;
/// Looks in a row that have to say the same.
const IN_A_ROW: u32 = 2;

/// How much a router has to ask for between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Of reads; 0: however much it reads.
    pub(crate) reads: u64,
    /// Of writes, as `reads`.
    pub(crate) writes: u64,
}

/// Who draws a vDisk over, and with what: between the last two looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pull {
    pub(crate) to: Name,
    /// By way of that router.
    pub(crate) asked: Asked,
    /// All together.
    pub(crate) of: Asked,
}

/// What is remembered of a vDisk between two looks.
///
/// It does not go back and forth: two thirds of everything have to come from one router, twice in a row, and who just got it keeps
/// it for five looks, whoever asks.
#[derive(Debug)]
pub(crate) struct Attraction {
    epoch: Epoch,
    seen: Uses,
    rest: u32,
    before: Option<(Name, u32)>,
}

impl Attraction {
    /// Of a vDisk that is open in `epoch`, and of which `seen` was asked before.
    pub(crate) fn new(epoch: Epoch, seen: Uses) -> Self {
        Self { epoch, seen, rest: REST, before: None }
    }

    /// Looks again. `may` says which routers can have it.
    pub(crate) fn look(
        &mut self,
        epoch: Epoch,
        now: Uses,
        rule: Rule,
        may: impl Fn(&Name) -> bool,
    ) -> Option<Pull> {
        if epoch != self.epoch {
            *self = Self::new(epoch, now);
            return None;
        }
        let before = std::mem::replace(&mut self.seen, now);
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        let of = self.seen.all.since(before.all);
        let enough = |asked: u64, least: u64| least > 0 && asked >= least;
        let mut asked = self.seen.by_way_of.iter().map(|(name, asked)| {
            (name, asked.since(before.by_way_of.get(name).copied().unwrap_or_default()))
        });
        let most = asked.find(|(name, asked)| {
            let much = enough(asked.reads, rule.reads) || enough(asked.writes, rule.writes);
            much && asked.total().saturating_mul(3) >= of.total().saturating_mul(2) && may(name)
        });
        let Some((to, asked)) = most else {
            self.before = None;
            return None;
        };
        let times = match &self.before {
            Some((name, times)) if name == to => times + 1,
            _ => 1,
        };
        if times < IN_A_ROW {
            self.before = Some((to.clone(), times));
            return None;
        }
        let to = to.clone();
        (self.before, self.rest) = (None, REST);
        Some(Pull { to, asked, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { reads: 100, writes: 10 };

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// A vDisk that is rested, and what was asked of it until now.
    struct Disk(Attraction, Uses);

    impl Disk {
        fn new() -> Self {
            let mut disk = Self(Attraction::new(Epoch(1), Uses::default()), Uses::default());
            for _ in 0..REST {
                assert_eq!(disk.look(&[("b", 1000, 1000)]), None, "it rests");
            }
            disk
        }

        fn asked(&mut self, by: &[(&str, u64, u64)]) {
            for (router, reads, writes) in by {
                self.1.all.reads += reads;
                self.1.all.writes += writes;
                if *router != "here" {
                    let asked = self.1.by_way_of.entry(name(router)).or_default();
                    asked.reads += reads;
                    asked.writes += writes;
                }
            }
        }

        fn look(&mut self, by: &[(&str, u64, u64)]) -> Option<String> {
            self.asked(by);
            let may = |router: &Name| router.as_str() != "away";
            self.0.look(self.0.epoch, self.1.clone(), RULE, may).map(|pull| pull.to.to_string())
        }
    }

    #[test]
    fn reads_and_writes_draw_it_over_apart() {
        for (enough, reads, writes) in [(true, 100, 0), (true, 0, 10), (false, 99, 9)] {
            let mut disk = Disk::new();
            assert_eq!(disk.look(&[("b", reads, writes)]), None, "once is not enough");
            assert_eq!(disk.look(&[("b", reads, writes)]), enough.then(|| "b".into()), "{reads} {writes}");
        }
        // 0 is never enough.
        let mut disk = Disk::new();
        let off = Rule { reads: 0, writes: 0 };
        for _ in 0..3 {
            disk.asked(&[("b", 1000, 1000)]);
            assert_eq!(disk.0.look(Epoch(1), disk.1.clone(), off, |_| true), None);
        }
    }

    #[test]
    fn it_stays_where_a_third_of_it_is_asked_for() {
        let mut disk = Disk::new();
        let mut looks = |by: &[(&str, u64, u64)]| (0..4).filter_map(|_| disk.look(by)).collect::<Vec<_>>();
        assert!(looks(&[("b", 1000, 0), ("here", 501, 0)]).is_empty());
        assert!(looks(&[("b", 1000, 0), ("c", 1000, 0)]).is_empty(), "nobody has most of it");
        assert!(looks(&[("away", 1000, 0)]).is_empty());
        assert_eq!(looks(&[("b", 1000, 0), ("here", 500, 0)]), ["b"]);
    }

    #[test]
    fn what_changes_its_mind_moves_nothing() {
        let mut disk = Disk::new();
        for _ in 0..10 {
            assert_eq!(disk.look(&[("b", 1000, 0)]), None);
            assert_eq!(disk.look(&[("c", 1000, 0)]), None);
        }
        // A pause counts as well.
        for _ in 0..10 {
            assert_eq!(disk.look(&[("b", 1000, 0)]), None);
            assert_eq!(disk.look(&[]), None);
        }
    }

    #[test]
    fn who_just_got_it_keeps_it_for_a_while() {
        let mut disk = Disk::new();
        let busy = [("b", 1000, 1000)];
        disk.look(&busy);
        assert_eq!(disk.look(&busy), Some("b".into()));
        // It could not be moved: not again at once.
        let again = (0..).find(|_| disk.look(&busy).is_some()).unwrap();
        assert_eq!(again, REST + IN_A_ROW - 1);
        // In the next epoch as when it was new.
        disk.asked(&busy);
        assert_eq!(disk.0.look(Epoch(2), disk.1.clone(), RULE, |_| true), None);
        disk.0.epoch = Epoch(2);
        let again = (0..).find(|_| disk.look(&busy).is_some()).unwrap();
        assert_eq!(again, REST + IN_A_ROW - 1);
    }
}
