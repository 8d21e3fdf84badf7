//! Memory for payload, of all connections of a server together: a connection takes before it reads a payload or
//! starts a read, and stands in line when there is none. NBD takes for a connection ([`Share`]), the edge protocol for
//! each request ([`Account`]).
//!
//! What a store that is away can hold up are requests to its exports. Exports whose names agree before
//! the first `/` lie on one store, a *group*: writes of a group take at most half of the memory and its
//! reads at most a quarter, so that the rest is there for its other direction and for other groups.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The least that makes sense for NBD: the largest request fits the share of a group's reads.
pub const LEAST: u64 = 256 << 20;

/// Which way a payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client: a write.
    In,
    /// To the client: a read.
    Out,
}

/// Memory for payload.
pub struct Memory {
    limit: u64,
    all: Arc<Semaphore>,
    groups: Mutex<HashMap<String, Weak<Group>>>,
}

struct Group {
    incoming: Arc<Semaphore>,
    outgoing: Arc<Semaphore>,
}

fn permits(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes as usize).min(Semaphore::MAX_PERMITS)))
}

impl Memory {
    /// Memory of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, all: permits(limit), groups: Mutex::default() }
    }

    /// What a connection to `export` takes from. It holds nothing yet.
    pub fn share(&self, export: &str) -> Share {
        let group = self.group(export);
        Share { all: self.all.clone(), group, incoming: 0, outgoing: 0, line: Line::Nowhere }
    }

    /// Where requests to `export` take from.
    pub fn account(&self, export: &str) -> Account {
        Account { all: self.all.clone(), group: self.group(export) }
    }

    fn group(&self, export: &str) -> Arc<Group> {
        let name = export.split('/').next().unwrap_or_default();
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let group =
                Arc::new(Group { incoming: permits(self.limit / 2), outgoing: permits(self.limit / 4) });
            groups.retain(|_, group| group.strong_count() > 0);
            groups.insert(name.to_owned(), Arc::downgrade(&group));
            group
        })
    }
}

impl Group {
    fn way(&self, way: Way) -> &Arc<Semaphore> {
        match way {
            Way::In => &self.incoming,
            Way::Out => &self.outgoing,
        }
    }
}

/// What the requests to one export take from.
#[derive(Clone)]
pub struct Account {
    all: Arc<Semaphore>,
    group: Arc<Group>,
}

/// What one request holds; given back when it is dropped.
pub struct Held {
    _group: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Account {
    /// Takes `bytes`, if there are as many.
    pub fn take(&self, way: Way, bytes: u32) -> Option<Held> {
        let group = self.group.way(way).clone().try_acquire_many_owned(bytes).ok()?;
        let all = self.all.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Held { _group: group, _all: all })
    }

    /// Takes `bytes` when it is its turn and there are as many. Nothing is held by one that is dropped before.
    pub fn wait(&self, way: Way, bytes: u32) -> impl Future<Output = Held> + Send + use<> {
        let (group, all) = (self.group.way(way).clone(), self.all.clone());
        async move {
            match (group.acquire_many_owned(bytes).await, all.acquire_many_owned(bytes).await) {
                (Ok(group), Ok(all)) => Held { _group: group, _all: all },
                // Nobody closes them.
                _ => std::future::pending().await,
            }
        }
    }
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a connection stands that found no room.
enum Line {
    Nowhere,
    Waiting(Way, u64, Waiting),
    /// Its turn came: this much is held for what it will ask next.
    Granted(Way, u64),
}

/// What one connection holds; given back when it is dropped.
pub struct Share {
    all: Arc<Semaphore>,
    group: Arc<Group>,
    incoming: u64,
    outgoing: u64,
    line: Line,
}

impl Share {
    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.incoming + self.outgoing
    }

    /// Takes `bytes`. Without room it stands in line: ask for the same again once [`Share::poll`] says so.
    pub fn take(&mut self, way: Way, bytes: u64) -> bool {
        match std::mem::replace(&mut self.line, Line::Nowhere) {
            Line::Nowhere => {}
            Line::Granted(w, n) if (w, n) == (way, bytes) => return true,
            Line::Granted(w, n) => self.give(w, n),
            waiting => {
                self.line = waiting;
                return false;
            }
        }
        let (group, all) = (self.account(way).clone(), self.all.clone());
        // No request that is served has more than 64 MiB.
        let n = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(first) = group.try_acquire_many(n)
            && let Ok(second) = all.try_acquire_many(n)
        {
            first.forget();
            second.forget();
            *self.counter(way) += bytes;
            return true;
        }
        let wait = async move {
            // Nobody closes them, so there is no error.
            if let Ok(first) = group.acquire_many(n).await
                && let Ok(second) = all.acquire_many(n).await
            {
                first.forget();
                second.forget();
            }
        };
        self.line = Line::Waiting(way, bytes, Box::pin(wait));
        false
    }

    /// Whether it stood in line and its turn has come.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Line::Waiting(way, bytes, wait) = &mut self.line else { return false };
        let (way, bytes) = (*way, *bytes);
        if wait.as_mut().poll(cx).is_pending() {
            return false;
        }
        *self.counter(way) += bytes;
        self.line = Line::Granted(way, bytes);
        true
    }

    /// Gives `bytes` back.
    pub fn give(&mut self, way: Way, bytes: u64) {
        if bytes == 0 {
            return;
        }
        *self.counter(way) -= bytes;
        self.account(way).add_permits(bytes as usize);
        self.all.add_permits(bytes as usize);
    }

    fn account(&self, way: Way) -> &Arc<Semaphore> {
        self.group.way(way)
    }

    fn counter(&mut self, way: Way) -> &mut u64 {
        match way {
            Way::In => &mut self.incoming,
            Way::Out => &mut self.outgoing,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give(Way::In, self.incoming);
        self.give(Way::Out, self.outgoing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    const MIB: u64 = 1 << 20;

    fn turn(share: &mut Share) -> bool {
        share.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_group_leaves_room_for_its_reads_and_for_other_groups() {
        let memory = Memory::new(256 * MIB);
        let mut shares: Vec<_> = (0..8).map(|n| memory.share(&format!("p/{n}"))).collect();
        let taken = shares.iter_mut().filter_map(|s| s.take(Way::In, 32 * MIB).then_some(())).count();
        assert_eq!(taken, 4, "half of the memory");
        let mut reader = memory.share("p/r");
        assert!(reader.take(Way::Out, 64 * MIB) && !reader.take(Way::Out, 1));
        let mut other = memory.share("q/v");
        assert!(other.take(Way::In, 64 * MIB) && !other.take(Way::In, 1), "64 MiB are left");
        drop(shares);
        assert!(turn(&mut other) && other.take(Way::In, 1));
        assert_eq!(other.held(), 64 * MIB + 1);
    }

    #[test]
    fn who_waits_is_served_in_order_and_who_leaves_is_forgotten() {
        let memory = Memory::new(256 * MIB);
        let mut first = memory.share("p/a");
        assert!(first.take(Way::In, 64 * MIB) && first.take(Way::In, 64 * MIB));
        let (mut leaver, mut second, mut third) =
            (memory.share("p/b"), memory.share("p/c"), memory.share("p/d"));
        for waiting in [&mut leaver, &mut second, &mut third] {
            assert!(!waiting.take(Way::In, 48 * MIB) && !turn(waiting));
        }
        drop(leaver);
        first.give(Way::In, 64 * MIB);
        assert!(!turn(&mut third), "not before the second");
        assert!(turn(&mut second) && second.take(Way::In, 48 * MIB));
        assert!(!second.take(Way::In, 48 * MIB));
        drop(first);
        assert!(turn(&mut third));
        // What was granted and not asked for again goes back.
        assert!(third.take(Way::In, 1));
        assert_eq!(third.held(), 1);
        drop((second, third));
        let mut last = memory.share("p/e");
        assert!(last.take(Way::In, 128 * MIB), "everything came back");
    }
}
