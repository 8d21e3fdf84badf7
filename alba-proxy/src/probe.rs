//! Tries out whether a store keeps the promises that a volume's safety rests on.
//!
//! A store that ignores the condition of a put, or checks it and then writes, works well until two
//! routers believe that they own a volume. So it is found out when the store is attached: by two
//! conditional puts of one key, and by races of sixteen.

use bytes::Bytes;
use common::object::{ObjectStore, Precondition, list_all};
use common::{Clock, Error, ErrorKind, Result};
use futures::future::join_all;

/// Puts that race for one key.
const RACERS: usize = 16;
/// A store that checks and then writes may look right once.
const RACES: usize = 3;

/// A promise that a store must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// A key that was never put is not found.
    AbsentKey,
    /// A second put-if-absent is refused and changes nothing.
    ConditionalPut,
    /// Of racing put-if-absent exactly one succeeds, and what it wrote is there.
    AtomicPut,
    /// A read returns what was put, whole and in part.
    ReadBack,
    /// Listings are complete and in ascending byte order, page by page.
    OrderedListing,
    /// What was deleted is gone.
    Delete,
}

/// A promise that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The promise.
    pub promise: Promise,
    /// What was seen.
    pub told: String,
}

/// What [`probe()`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// The broken promises; none when the store is fit.
    pub findings: Vec<Finding>,
}

impl ProbeReport {
    /// Whether every promise was kept.
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether the store fails only in what `single_writer` replaces.
    pub fn single_writer_would_help(&self) -> bool {
        !self.passed()
            && self.findings.iter().all(|f| matches!(f.promise, Promise::ConditionalPut | Promise::AtomicPut))
    }

    /// The report as an error, `Unsupported`, that says what is wrong with `store` and what can be done.
    pub fn into_result(self, store: &str) -> Result<()> {
        if self.passed() {
            return Ok(());
        }
        let told: Vec<_> = self.findings.iter().map(|f| f.told.as_str()).collect();
        let advice = if self.single_writer_would_help() {
            "Two routers that both believe to own a volume could overwrite each other there. If this router is \
             the only one that will ever write to it, set 'single_writer' to true: then the router checks before \
             each put instead, and what a second writer does is not noticed."
        } else {
            "It can't hold a vPool."
        };
        Err(Error::new(ErrorKind::Unsupported, format!("{store} is refused: {}. {advice}", told.join("; "))))
    }

    fn find(&mut self, promise: Promise, told: impl Into<String>) {
        self.findings.push(Finding { promise, told: told.into() });
    }
}

/// Tries out the promises under a random key below `probe/`, and removes what it put.
///
/// An error is the store's own, as when it is away or the key is not allowed to write; a broken
/// promise is in the report.
pub async fn probe(store: &dyn ObjectStore, clock: &dyn Clock) -> Result<ProbeReport> {
    let base = format!("probe/{:032x}", clock.random_u128());
    let mut report = ProbeReport::default();
    let told = |e: Error| e.context(format!("trying out {}", store.describe()));
    // A store that does not even answer this has nothing that must be removed.
    absent(store, &format!("{base}/first"), &mut report).await.map_err(told)?;
    match try_out(store, &base, &mut report).await {
        Ok(()) => clean(store, &base, &mut report).await.map_err(told)?,
        Err(error) => {
            // What is wrong is known; that removing fails too would say nothing new, and a store
            // that went away would be waited for once more.
            if error.kind != ErrorKind::Unavailable
                && let Err(left) = clean(store, &base, &mut report).await
            {
                tracing::warn!(store = store.describe(), under = base, error = %left, "what was tried out stays behind");
            }
            return Err(told(error));
        }
    }
    Ok(report)
}

async fn absent(store: &dyn ObjectStore, key: &str, report: &mut ProbeReport) -> Result<()> {
    match store.get(key).await {
        Err(e) if e.kind == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
        Ok(_) => {
            report.find(Promise::AbsentKey, "it returned an object under a random key that was never put")
        }
    }
    if store.head(key).await?.is_some() {
        report.find(Promise::AbsentKey, "it claims that a random key that was never put exists");
    }
    Ok(())
}

async fn try_out(store: &dyn ObjectStore, base: &str, report: &mut ProbeReport) -> Result<()> {
    twice(store, &format!("{base}/first"), report).await?;
    for race in 0..RACES {
        if !self::race(store, &format!("{base}/race{race}"), report).await? {
            break;
        }
    }
    listing(store, &format!("{base}/list/"), report).await
}

async fn twice(store: &dyn ObjectStore, key: &str, report: &mut ProbeReport) -> Result<()> {
    let (first, second) = (Bytes::from_static(b"the first body"), Bytes::from_static(b"another body"));
    store.put(key, first.clone(), Precondition::IfAbsent).await?;
    match store.put(key, second, Precondition::IfAbsent).await {
        Err(e) if e.kind == ErrorKind::Conflict => {}
        Err(e) => return Err(e),
        Ok(()) => report.find(
            Promise::ConditionalPut,
            "a conditional put (If-None-Match: *) of a key that exists succeeded, so the condition is ignored",
        ),
    }
    let whole = store.get(key).await?;
    let part = store.get_range(key, 4..9).await?;
    if whole != first && report.passed() {
        report.find(
            Promise::ConditionalPut,
            "a conditional put of a key that exists was refused, but changed the object",
        );
    }
    if part[..] != whole[4..whole.len().min(9)] || store.head(key).await? != Some(whole.len() as u64) {
        report.find(Promise::ReadBack, "a ranged read or the length of an object does not fit its content");
    }
    Ok(())
}

/// One race; false when it was lost.
async fn race(store: &dyn ObjectStore, key: &str, report: &mut ProbeReport) -> Result<bool> {
    let bodies: Vec<_> = (0..RACERS).map(|n| Bytes::from(format!("the body of racer {n:02}"))).collect();
    let puts = bodies.iter().map(|body| store.put(key, body.clone(), Precondition::IfAbsent));
    let mut winners = Vec::new();
    for (n, outcome) in join_all(puts).await.into_iter().enumerate() {
        match outcome {
            Ok(()) => winners.push(n),
            Err(e) if e.kind == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
    let stored = store.get(key).await?;
    if winners.len() != 1 {
        report.find(
            Promise::AtomicPut,
            format!("of {RACERS} conditional puts that raced for one key, {} succeeded", winners.len()),
        );
        return Ok(false);
    }
    if stored != bodies[winners[0]] {
        report.find(
            Promise::AtomicPut,
            format!(
                "of {RACERS} conditional puts that raced for one key one succeeded, but another's body is stored"
            ),
        );
        return Ok(false);
    }
    Ok(true)
}

async fn listing(store: &dyn ObjectStore, base: &str, report: &mut ProbeReport) -> Result<()> {
    // Put out of order; upper case sorts before lower case, digits before both.
    let mut keys: Vec<_> = ["b", "0f", "B/x", "a"].iter().map(|name| format!("{base}{name}")).collect();
    for key in &keys {
        store.put(key, Bytes::from_static(b"x"), Precondition::IfAbsent).await?;
    }
    keys.sort_unstable();
    let whole = store.list(base, None, false, 1000).await?;
    let first = store.list(base, None, false, 2).await?;
    let rest = store.list(base, first.next.as_deref().or(Some(base)), false, 1000).await?;
    let of = |listings: &[&common::object::Listing]| -> Vec<String> {
        listings.iter().flat_map(|l| l.objects.iter().map(|o| o.key.clone())).collect()
    };
    if of(&[&whole]) != keys {
        report.find(
            Promise::OrderedListing,
            format!("a listing of {} new keys was not those keys in ascending byte order", keys.len()),
        );
    } else if first.objects.len() != 2 || of(&[&first, &rest]) != keys {
        report.find(Promise::OrderedListing, "a listing page by page was not the whole listing");
    }
    let folded = store.list(base, None, true, 1000).await?;
    if folded.prefixes != [format!("{base}B/")] || folded.objects.len() != keys.len() - 1 {
        report.find(Promise::OrderedListing, "a listing with a delimiter did not fold the keys behind it");
    }
    Ok(())
}

async fn clean(store: &dyn ObjectStore, base: &str, report: &mut ProbeReport) -> Result<()> {
    let under = format!("{base}/");
    for object in list_all(store, &under).await? {
        store.delete(&object.key).await?;
    }
    // Also what a broken listing does not show.
    let names = ["first", "list/b", "list/0f", "list/B/x", "list/a"].map(str::to_string);
    let races = (0..RACES).map(|race| format!("race{race}"));
    for name in names.into_iter().chain(races) {
        let key = format!("{under}{name}");
        store.delete(&key).await?;
        if store.head(&key).await?.is_some() {
            report.find(Promise::Delete, "an object was still there after its delete had succeeded");
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
