//! Collecting what puts left behind that did not succeed (rule 12 of the design: a put may be slower than any collection).
//!
//! A put belongs to the epoch that was the youngest when it began. A later collection closes the epochs before the youngest: first in the
//! registry, so that no record can name anything more of them; then at each disk that has something of them, so that
//! nothing more of them arrives there. What no record names from then on, none ever will.

use super::{AlbaStore, CALL, Inner};
use crate::alba::layout::{FragmentHeader, FragmentKey};
use bytes::Bytes;
use common::osd::{Call, Changes, KeyRange, Osd, OsdId, Value};
use common::{ErrorKind, Result};
use std::collections::BTreeSet;

/// Headers of one question to a disk: each may have some hundred KiB.
const PAGE: usize = 64;

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Fragments that were removed.
    pub fragments: u64,
    /// Disks that could not be asked: their garbage stays until the next time.
    pub away: usize,
}

impl AlbaStore {
    /// Opens the next epoch: what is put from now on belongs to it, and a collection takes what is left of those before.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn begin_epoch(&self) -> Result<()> {
        let youngest = self.inner.records.epoch().await?;
        match self.inner.records.open_epoch(youngest).await {
            // Somebody else did.
            Err(e) if e.kind == ErrorKind::Conflict => Ok(()),
            outcome => outcome,
        }
    }

    /// Closes the epochs before the youngest, and removes the fragments of closed epochs that no record names. Puts that are
    /// under way in one of them begin anew, so it is not to be called sooner after [`AlbaStore::begin_epoch`] than puts take.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn collect(&self) -> Result<Collected> {
        let inner = &self.inner;
        let open = inner.records.open_epochs().await?;
        let Some(youngest) = open.last() else { return Ok(Collected::default()) };
        let mut end = youngest.number;
        if common::mutant::is_on("alba-collect-open-epoch") {
            end += 1;
        } else {
            for epoch in &open[..open.len() - 1] {
                inner.records.close_epoch(epoch.number).await?;
            }
        }
        let mut collected = Collected::default();
        for (id, osd) in inner.osds.all() {
            match inner.collect_disk(id, &*osd, end).await {
                Ok(fragments) => collected.fragments += fragments,
                Err(error)
                    if matches!(
                        error.kind,
                        ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::NoSpace
                    ) =>
                {
                    inner.osds.report_error(id, &error);
                    collected.away += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(collected)
    }
}

impl Inner {
    /// Removes from a disk what is of epochs before `end` and named by no record.
    async fn collect_disk(&self, id: OsdId, osd: &dyn Osd, end: u64) -> Result<u64> {
        let namespace = self.records.namespace();
        let to = FragmentKey::headers(namespace, Some(end));
        let mut range = KeyRange { from: FragmentKey::headers(namespace, None).into(), to: Some(to.into()) };
        let (mut closed, mut removed) = (BTreeSet::new(), 0);
        loop {
            let page = osd.range(Call::maintenance(CALL), range.clone(), PAGE).await?;
            for info in &page.keys {
                let key = FragmentKey::of_header(&info.key)?;
                if closed.insert(key.epoch) {
                    let closing = Changes::new()
                        .set(FragmentKey::closed(namespace, key.epoch), Value::new(Bytes::new()));
                    match osd.apply(Call::maintenance(CALL), closing).await {
                        // It has to be emptied all the more; what comes late is found the next time.
                        Err(e) if e.kind == ErrorKind::NoSpace => {}
                        outcome => outcome?,
                    }
                }
                // Looked up only now, when nothing can be added any more.
                let Some(header) = osd.get(Call::maintenance(CALL), &info.key).await? else { continue };
                let header = match FragmentHeader::decode(&header.bytes) {
                    Ok(header) => header,
                    Err(error) => {
                        // Its data may be needed: the record knows it without the header.
                        tracing::warn!(osd = %id, %error, "a fragment's header can't be read; it is left alone");
                        continue;
                    }
                };
                let found = self.records.get(&header.name).await?;
                let named = found.is_some_and(|found| {
                    let place = found.record.places.get(usize::from(key.fragment)).copied().flatten();
                    found.record.id() == key.id
                        && place
                            .is_some_and(|p| p.osd == id && p.epoch == key.epoch && p.version == key.version)
                });
                if !named {
                    let values = header.shape.values();
                    let gone =
                        (0..values).fold(Changes::new().delete(key.header()), |c, v| c.delete(key.value(v)));
                    osd.apply(Call::maintenance(CALL), gone).await?;
                    removed += 1;
                }
            }
            match page.next {
                Some(next) => range = range.onward(next),
                None => return Ok(removed),
            }
        }
    }
}
