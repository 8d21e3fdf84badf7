use super::*;
use async_trait::async_trait;
use common::clock::SystemClock;
use common::object::{Listing, ObjectMeta};
use common::sim::{SimObjectStore, StoreFaults};
use std::ops::Range;

/// A store that breaks one promise.
struct Broken {
    inner: SimObjectStore,
    how: How,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    IgnoresTheCondition,
    ChecksThenWrites,
    OverwritesAndRefuses,
    ListsUnordered,
    ForgetsPages,
    KeepsDeleted,
    InventsObjects,
    ReadsShort,
}

#[async_trait]
impl ObjectStore for Broken {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        match self.how {
            How::IgnoresTheCondition => self.inner.put(key, data, Precondition::None).await,
            How::ChecksThenWrites if precondition == Precondition::IfAbsent => {
                if self.inner.head(key).await?.is_some() {
                    return Err(Error::conflict("exists"));
                }
                tokio::task::yield_now().await;
                self.inner.put(key, data, Precondition::None).await
            }
            How::OverwritesAndRefuses => {
                let there = self.inner.head(key).await?.is_some();
                self.inner.put(key, data, Precondition::None).await?;
                if there { Err(Error::conflict("exists")) } else { Ok(()) }
            }
            _ => self.inner.put(key, data, precondition).await,
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        match self.inner.get(key).await {
            Err(e) if e.kind == ErrorKind::NotFound && self.how == How::InventsObjects => Ok(Bytes::new()),
            outcome => outcome,
        }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let range = if self.how == How::ReadsShort { range.start..range.end - 1 } else { range };
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, fold: bool, limit: usize) -> Result<Listing> {
        let mut listing = self.inner.list(prefix, after, fold, limit).await?;
        match self.how {
            How::ListsUnordered => listing.objects.sort_by_key(|o: &ObjectMeta| o.key.to_lowercase()),
            How::ForgetsPages => listing.next = None,
            _ => {}
        }
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        if self.how == How::KeepsDeleted { Ok(()) } else { self.inner.delete(key).await }
    }

    fn describe(&self) -> String {
        "broken store".into()
    }
}

async fn findings(how: How) -> ProbeReport {
    let store = Broken { inner: SimObjectStore::new(1), how };
    probe(&store, &SystemClock::new()).await.unwrap()
}

#[tokio::test]
async fn a_good_store_passes_and_is_left_as_it_was() {
    let store = SimObjectStore::new(1);
    store.put("vpool", Bytes::from_static(b"x"), Precondition::IfAbsent).await.unwrap();
    assert_eq!(probe(&store, &SystemClock::new()).await.unwrap(), ProbeReport::default());
    assert_eq!(store.keys(), ["vpool"]);
}

#[tokio::test]
async fn a_store_that_does_not_exclude_a_second_writer_is_refused_with_the_way_out() {
    for (how, promise) in [
        (How::IgnoresTheCondition, Promise::ConditionalPut),
        (How::ChecksThenWrites, Promise::AtomicPut),
        (How::OverwritesAndRefuses, Promise::ConditionalPut),
    ] {
        let report = findings(how).await;
        assert!(report.findings.iter().any(|f| f.promise == promise), "{report:?}");
        assert!(report.single_writer_would_help());
        let error = report.into_result("broken store").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message().contains("single_writer") && error.message().contains("broken store"));
    }
}

#[tokio::test]
async fn a_store_that_breaks_another_promise_is_refused_for_good() {
    for (how, promise) in [
        (How::ListsUnordered, Promise::OrderedListing),
        (How::ForgetsPages, Promise::OrderedListing),
        (How::KeepsDeleted, Promise::Delete),
        (How::InventsObjects, Promise::AbsentKey),
        (How::ReadsShort, Promise::ReadBack),
    ] {
        let report = findings(how).await;
        assert!(report.findings.iter().any(|f| f.promise == promise), "{promise:?}: {report:?}");
        assert!(!report.single_writer_would_help());
        assert!(!report.into_result("broken store").unwrap_err().message().contains("single_writer"));
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_no_broken_promise() {
    let store = SimObjectStore::new(1);
    store.set_faults(StoreFaults { away: true, ..StoreFaults::default() });
    let error = probe(&store, &SystemClock::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}
