//! What kind of world, and what happened in it.

/// What kind of world.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub members: u64,
    /// Members are added and removed.
    pub changes: bool,
    /// Leaders are deposed all the time, by short lives.
    pub elections: bool,
    pub clients: u64,
    /// Virtual seconds with faults.
    pub seconds: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { members: 3, changes: false, elections: false, clients: 6, seconds: 40 }
    }
}

/// What happened, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub events: u64,
    pub applied: u64,
    pub answered: u64,
    pub retried: u64,
    pub reads: u64,
    pub leaders: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub freezes: u64,
    pub partitions: u64,
    pub lost: u64,
    pub snapshots: u64,
    pub changes: u64,
    pub torn: u64,
    pub leases_ended: u64,
    pub takeovers: u64,
    pub watched: u64,
}

impl Tally {
    pub fn add(&mut self, o: &Tally) {
        let pairs = [
            (&mut self.events, o.events),
            (&mut self.applied, o.applied),
            (&mut self.answered, o.answered),
            (&mut self.retried, o.retried),
            (&mut self.reads, o.reads),
            (&mut self.leaders, o.leaders),
            (&mut self.kills, o.kills),
            (&mut self.power_cuts, o.power_cuts),
            (&mut self.freezes, o.freezes),
            (&mut self.partitions, o.partitions),
            (&mut self.lost, o.lost),
            (&mut self.snapshots, o.snapshots),
            (&mut self.changes, o.changes),
            (&mut self.torn, o.torn),
            (&mut self.leases_ended, o.leases_ended),
            (&mut self.takeovers, o.takeovers),
            (&mut self.watched, o.watched),
        ];
        for (mine, other) in pairs {
            *mine += other;
        }
    }

    /// A world in which nothing goes wrong shows nothing.
    pub fn check_that_it_happened(&self, name: &str) {
        let must = [
            ("answers", self.answered),
            ("retries", self.retried),
            ("reads", self.reads),
            ("kills", self.kills),
            ("power cuts", self.power_cuts),
            ("leases that ended", self.leases_ended),
            ("watched changes", self.watched),
        ];
        for (what, count) in must {
            assert!(count > 0, "{name}: no {what} in any world");
        }
        if name != "one member" {
            assert!(
                self.snapshots > 0 && self.torn > 0 && self.partitions > 0 && self.freezes > 0,
                "{name}: {self:?}"
            );
        }
        if name == "changing members" {
            assert!(self.changes > 20, "{name}: {self:?}");
        }
    }
}
