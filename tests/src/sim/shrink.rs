//! A failing plan made shorter, as long as it fails.

use super::plan::{Plan, When};
use super::run::run;
use std::time::{Duration, Instant};

/// The shortest failing plan that was found in about `budget`, and what is wrong in it.
pub fn shrink(plan: Plan, wrong: String, budget: Duration) -> (Plan, String) {
    let mut best = Best { plan, wrong, until: Instant::now() + budget };
    // Lives after the one that fails do nothing.
    while best.lives() > 1 && best.try_without(|p| drop(p.lives.pop())) {}
    loop {
        let before = best.weight();
        for life in (0..best.lives()).rev() {
            best.try_without(|p| drop(p.lives.remove(life)));
        }
        for life in (0..best.lives()).rev() {
            best.try_without(|p| p.lives[life].weather.clear());
            best.try_without(|p| p.lives[life].stumbles.clear());
            best.try_without(|p| p.lives[life].twice = false);
            best.try_without(|p| p.lives[life].when = When::Done);
            for client in (0..best.plan.lives[life].clients.len()).rev() {
                best.try_without(|p| drop(p.lives[life].clients.remove(client)));
            }
            for client in 0..best.plan.lives[life].clients.len() {
                best.thin(life, client);
            }
        }
        if best.weight() == before || Instant::now() > best.until {
            return (best.plan, best.wrong);
        }
    }
}

struct Best {
    plan: Plan,
    wrong: String,
    until: Instant,
}

impl Best {
    fn lives(&self) -> usize {
        self.plan.lives.len()
    }

    fn weight(&self) -> usize {
        let lives = self.plan.lives.iter();
        lives.map(|l| 1 + l.weather.len() + l.stumbles.len() + l.clients.len()).sum::<usize>()
            + self.plan.operations()
    }

    /// Keeps the change if the plan still fails.
    fn try_without(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        let mut plan = self.plan.clone();
        change(&mut plan);
        match run(&plan) {
            Ok(_) => false,
            Err(wrong) => {
                self.plan = plan;
                self.wrong = wrong;
                true
            }
        }
    }

    /// Takes out requests of one client, by halves, quarters and so on.
    fn thin(&mut self, life: usize, client: usize) {
        let mut chunk = self.plan.lives[life].clients[client].len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < self.plan.lives[life].clients[client].len() {
                let gone = self.try_without(|p| {
                    let steps = &mut p.lives[life].clients[client];
                    let end = (at + chunk).min(steps.len());
                    steps.drain(at..end);
                });
                if !gone {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
    }
}
