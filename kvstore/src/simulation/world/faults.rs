//! What goes wrong: deaths, power cuts, freezes, cut links, changes of the membership.

use super::*;

impl World {
    /// The process dies, or the power goes.
    pub(super) fn kill(&mut self, id: u64, power: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(mut life) = node.life.take() else { return };
        node.lives += 1;
        node.frozen_until = 0;
        if !life.jobs.is_empty() && self.random.u8(..4) != 0 {
            // In the middle of what the disk was doing: before the write, before its sync, or behind both.
            node.disk.die_at_effect(Some(node.disk.effects() + self.random.u64(1..4)));
            let _ = Self::work(&mut life, &node.table);
        }
        drop(life);
        if power {
            self.tally.power_cuts += 1;
            let random = &mut self.random;
            node.disk.forget_tally();
            node.disk.crash(|| random.bool());
            self.tally.torn += u64::from(node.disk.tally().lost_sectors > 0);
            node.table.crash(|n| random.usize(..=n));
        } else {
            self.tally.kills += 1;
            node.disk.kill();
        }
        node.disk.die_at_effect(None);
        let (least, most) = if self.plan.elections { (20, 400) } else { (50, 5000) };
        let down = self.random.u64(least * MS..most * MS);
        self.tell(|| format!("member {id} dies ({})", if power { "power" } else { "kill" }));
        self.at(self.now + down, Event::Restart { node: id });
    }

    pub(super) fn fault(&mut self) {
        if self.quiet {
            return;
        }
        let (least, most) = if self.plan.elections { (50, 600) } else { (200, 3000) };
        let next = self.now + self.random.u64(least * MS..most * MS);
        self.at(next, Event::Fault);
        let ids = self.node_ids();
        let leader =
            ids.iter().copied().find(|id| self.nodes[id].life.as_ref().is_some_and(|l| l.member.leads()));
        let any = ids[self.random.usize(..ids.len())];
        let victim = if self.random.bool() { leader.unwrap_or(any) } else { any };
        match self.random.u8(..20) {
            0..4 => self.kill(victim, false),
            4..7 => self.kill(victim, true),
            7 => {
                // The whole room goes dark.
                for id in &ids {
                    self.kill(*id, true);
                }
            }
            8..11 => {
                let until = self.now + self.random.u64(50 * MS..3 * SECOND);
                self.tally.freezes += 1;
                self.tell(|| format!("member {victim} freezes until {:.3}", until as f64 / 1e6));
                if let Some(node) = self.nodes.get_mut(&victim) {
                    node.frozen_until = until;
                }
            }
            11..16 => self.partition(&ids, victim),
            16 | 17 => {
                self.net.faults = NetFaults {
                    lost: self.random.u32(..200),
                    doubled: self.random.u32(..200),
                    delay: (100, self.random.u64(200..30 * MS)),
                    late: self.random.u32(..50),
                };
                let heals = self.now + self.random.u64(SECOND..5 * SECOND);
                self.at(heals, Event::Heal);
            }
            18 => self.admin(Request::Transfer { to: any }),
            _ => {}
        }
        if self.plan.changes && self.random.bool() {
            self.change(&ids);
        }
    }

    fn partition(&mut self, ids: &[u64], victim: u64) {
        self.tally.partitions += 1;
        let kind = self.random.u8(..4);
        self.tell(|| format!("partition {kind} of {victim}"));
        for other in ids {
            match kind {
                // From its peers, not from the clients.
                0 => {
                    self.net.cut(victim, *other);
                    self.net.cut(*other, victim);
                }
                1 => self.net.cut(victim, *other),
                2 => self.net.cut(*other, victim),
                _ => {
                    let side = |id: u64| id % 2;
                    for third in ids {
                        if side(*other) != side(*third) {
                            self.net.cut(*other, *third);
                        }
                    }
                }
            }
        }
        let heals = self.now + self.random.u64(100 * MS..6 * SECOND);
        self.at(heals, Event::Heal);
    }

    fn admin(&mut self, request: Request) {
        self.tell(|| format!("admin asks {request:?}"));
        for to in self.node_ids() {
            self.admin_token += 1;
            let token = (ADMIN << 32) | self.admin_token;
            self.net.send(self.now, ADMIN, to, Packet::Request { token, request: request.encode() });
        }
    }

    fn change(&mut self, ids: &[u64]) {
        let Some(configuration) = ids
            .iter()
            .filter_map(|id| self.nodes[id].life.as_ref())
            .find(|life| life.member.leads())
            .map(|life| life.member.machine().meta().configuration.clone())
        else {
            return;
        };
        let mut changes = Vec::new();
        let (voters, learners) = (&configuration.voters, &configuration.learners);
        if voters.len() + learners.len() < 6 && self.random.bool() {
            let id = self.next_node;
            self.next_node += 1;
            self.add_node(id, None);
            changes.push(Change::AddLearner { member: id, address: format!("member-{id}") });
        }
        for learner in learners {
            match self.random.u8(..4) {
                0 | 1 => changes.push(Change::Promote { member: *learner }),
                2 if learners.len() > 1 => changes.push(Change::Remove { member: *learner }),
                _ => {}
            }
        }
        if voters.len() > 3 {
            let voter = voters[self.random.usize(..voters.len())];
            match self.random.bool() {
                true => changes.push(Change::Remove { member: voter }),
                false => changes.push(Change::Demote { member: voter }),
            }
        }
        if !changes.is_empty() {
            self.admin(Request::Change(changes));
        }
    }

    pub(super) fn heal(&mut self) {
        self.quiet = true;
        self.tell(|| "everything heals".into());
        self.net.heal();
        self.net.faults = NetFaults::default();
        for (id, node) in &mut self.nodes {
            node.frozen_until = node.frozen_until.min(self.now);
            if node.life.is_none() && !node.gone {
                self.scheduled += 1;
                self.events.insert((self.now, self.scheduled), Event::Restart { node: *id });
            }
        }
        for client in CLIENTS..CLIENTS + self.plan.clients {
            self.wake_client(client, self.now);
        }
    }
}
