//! Limits and cache quotas of vDisks, and whether they follow their clients, changed at run time.

use super::Router;
use crate::qos::Qos;
use crate::vdisk::VdiskInfo;
use common::{Error, Result};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Bytes that a cache quota may be.
const CACHE_QUOTA: RangeInclusive<u64> = 1 << 20..=1 << 50;

impl Router {
    /// Gives a vDisk these limits in place of those that it has; `None` takes them away. They hold
    /// at once, also for requests that wait, and stay over a restart.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`] by [`Qos::check`], [`common::ErrorKind::NotFound`].
    pub async fn set_qos(self: &Arc<Self>, vpool: &str, name: &str, qos: Option<Qos>) -> Result<VdiskInfo> {
        if let Some(qos) = &qos {
            qos.check()?;
        }
        let vdisk = self.find_vdisk(vpool, name)?;
        self.not_elsewhere(&vdisk)?;
        let router = self.clone();
        let task = format!("limit vDisk {vdisk}");
        let work = async move {
            let _work = vdisk.work.lock().await;
            // The limits in force follow the record.
            router.change_record(&vdisk, |record| record.qos = qos).await?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// Bounds what the read cache holds of the clusters of a vDisk; `None` takes the bound away. It holds from now on, and
    /// over a restart.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`] for less than 1 MiB or more than 1 PiB, [`common::ErrorKind::NotFound`].
    pub async fn set_cache_quota(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        quota: Option<u64>,
    ) -> Result<VdiskInfo> {
        check_cache_quota(quota)?;
        let vdisk = self.find_vdisk(vpool, name)?;
        self.not_elsewhere(&vdisk)?;
        let router = self.clone();
        let task = format!("set the cache quota of vDisk {vdisk}");
        let work = async move {
            let _work = vdisk.work.lock().await;
            router.change_record(&vdisk, |record| record.cache_quota = quota).await?;
            router.driver.set_cache_quota(vdisk.id, quota);
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// Whether a vDisk moves to the router through which most of what is asked of it comes; `None`: as the configuration of
    /// its owner says.
    ///
    /// # Errors
    /// [`common::ErrorKind::NotFound`], [`common::ErrorKind::NotOwner`].
    pub async fn set_auto_migrate(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        follows: Option<bool>,
    ) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        self.not_elsewhere(&vdisk)?;
        let router = self.clone();
        let task = format!("say whether vDisk {vdisk} moves to where it is used");
        let work = async move {
            let _work = vdisk.work.lock().await;
            router.change_record(&vdisk, |record| record.auto_migrate = follows).await?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// Lets every request pass from now on, those that wait first: for a stop, which should not take
    /// as long as a limit makes it. Records stay as they are.
    pub fn lift_limits(&self) {
        for vdisk in self.all_vdisks() {
            vdisk.limits.set(None);
        }
    }
}

/// Whether a cache quota can be.
///
/// # Errors
/// [`common::ErrorKind::Invalid`].
pub fn check_cache_quota(quota: Option<u64>) -> Result<()> {
    match quota.filter(|quota| !CACHE_QUOTA.contains(quota)) {
        Some(quota) => Err(Error::invalid(format!(
            "a cache quota of {quota} bytes is out of range ({} to {}; 0: none)",
            CACHE_QUOTA.start(),
            CACHE_QUOTA.end()
        ))),
        None => Ok(()),
    }
}
