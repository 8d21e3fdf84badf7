//! Limits of vDisks, changed at run time.

use super::Router;
use crate::qos::Qos;
use crate::vdisk::VdiskInfo;
use common::Result;
use std::sync::Arc;

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
        let router = self.clone();
        let task = format!("limit vDisk {vdisk}");
        let work = async move {
            let _work = vdisk.work.lock().await;
            // The limits in force follow the record.
            router.change_record(&vdisk, |record| record.qos = qos).await?;
            Ok(vdisk.info())
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
