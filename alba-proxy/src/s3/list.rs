//! Listings: from S3's pages to ours.

use super::S3Store;
use super::fault::Failure;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::operation::list_objects_v2::builders::ListObjectsV2FluentBuilder;
use common::object::{Listing, ObjectMeta};
use common::{Error, ErrorKind, Result};

/// Sorts behind every byte that a key of ours may have.
const BEHIND: char = '~';
/// Pages of the server that may hold nothing new, at most, for one page of ours.
const EMPTY_PAGES: usize = 1000;

impl S3Store {
    pub(super) async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        let full = format!("{}{prefix}", self.prefix);
        let start = after.map(|after| {
            let mut start = format!("{}{after}", self.prefix);
            let folded = after.len() > prefix.len() && after.starts_with(prefix) && after.ends_with('/');
            if delimiter && folded {
                // Go on behind all keys that were folded into it.
                start.push(BEHIND);
            }
            start
        });
        let mut listing = Listing::default();
        let mut token: Option<String> = None;
        for _ in 0..EMPTY_PAGES {
            let want = limit - listing.objects.len() - listing.prefixes.len();
            let page = self.retry.run(|_| {
                let request = self
                    .client
                    .list_objects_v2()
                    .bucket(&self.place.bucket)
                    .prefix(&full)
                    .set_start_after(start.clone())
                    .set_continuation_token(token.clone())
                    .set_delimiter(delimiter.then(|| "/".to_string()))
                    .max_keys(want as i32);
                self.list_once(request, &full)
            });
            let page = page.await?;
            self.take(&page, after, &mut listing)?;
            token = page.next_continuation_token.filter(|_| page.is_truncated == Some(true));
            let found = listing.objects.len() + listing.prefixes.len();
            if found >= limit {
                self.cut(&mut listing, limit, token.is_some());
                return Ok(listing);
            }
            // A page that is not full but has more behind it: what it held was left out above.
            if token.is_none() {
                return Ok(listing);
            }
        }
        Err(Error::unavailable(format!("list '{full}' at {}: the listing does not get on", self.place)))
    }

    async fn list_once(
        &self,
        request: ListObjectsV2FluentBuilder,
        full: &str,
    ) -> Result<ListObjectsV2Output, Failure> {
        request.send().await.map_err(|e| match self.place.failure("list", full, e) {
            // Nothing was named that could be absent.
            failure if failure.error.kind == ErrorKind::NotFound => {
                Failure::last(Error::invalid(failure.error.message().to_string()))
            }
            failure => failure,
        })
    }

    fn take(&self, page: &ListObjectsV2Output, after: Option<&str>, listing: &mut Listing) -> Result<()> {
        let foreign = || {
            Error::corrupt(format!(
                "the listing of {} has a key that does not begin with its prefix",
                self.place
            ))
        };
        for object in page.contents() {
            let key = object.key().and_then(|key| key.strip_prefix(&self.prefix)).ok_or_else(foreign)?;
            let len = object.size().and_then(|len| u64::try_from(len).ok()).ok_or_else(|| {
                Error::corrupt(format!("the listing of {} has no length for '{key}'", self.place))
            })?;
            if after.is_none_or(|after| key > after) {
                listing.objects.push(ObjectMeta { key: key.to_string(), len });
            }
        }
        for folded in page.common_prefixes() {
            let folded = folded.prefix().and_then(|p| p.strip_prefix(&self.prefix)).ok_or_else(foreign)?;
            if after.is_none_or(|after| folded > after) {
                listing.prefixes.push(folded.to_string());
            }
        }
        Ok(())
    }

    /// Keeps the first `limit` entries, and says where to go on when there are others.
    fn cut(&self, listing: &mut Listing, limit: usize, more: bool) {
        let mut cut = false;
        while listing.objects.len() + listing.prefixes.len() > limit {
            cut = true;
            let object = listing.objects.last().map(|object| object.key.as_str());
            if object > listing.prefixes.last().map(String::as_str) {
                listing.objects.pop();
            } else {
                listing.prefixes.pop();
            }
        }
        if cut || more {
            let object = listing.objects.last().map(|object| object.key.clone());
            listing.next = object.max(listing.prefixes.last().cloned());
        }
    }
}
