//! The threads of the library: one set for all devices, which ends with the last of them.

use common::{Error, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::{Arc, Weak};
use tokio::runtime::{Builder, Handle, Runtime};

/// A share of the threads.
#[derive(Clone)]
pub struct Shared(Arc<Threads>);

struct Threads {
    runtime: Option<Runtime>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever lets go last may be one of its threads.
            runtime.shutdown_background();
        }
    }
}

/// C has no place to keep it in between calls.
static RUNNING: Mutex<Weak<Threads>> = Mutex::new(Weak::new());

impl Shared {
    /// Those that run, or new ones.
    ///
    /// # Errors
    /// `Internal`: no thread can be started.
    pub fn get() -> Result<Shared> {
        let mut running = RUNNING.lock();
        if let Some(threads) = running.upgrade() {
            return Ok(Shared(threads));
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sr-edge")
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting a thread", &e))?;
        let threads = Arc::new(Threads { runtime: Some(runtime) });
        *running = Arc::downgrade(&threads);
        Ok(Shared(threads))
    }

    /// Where tasks are started.
    pub fn handle(&self) -> &Handle {
        match &self.0.runtime {
            Some(runtime) => runtime.handle(),
            None => unreachable!("it is taken when nobody has a share any more"),
        }
    }

    /// Waits for `future` on the caller's thread.
    ///
    /// # Errors
    /// `Invalid`: the caller is one of the library's threads.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        if Handle::try_current().is_ok() {
            return Err(Error::invalid("a callback must not call a function that waits"));
        }
        Ok(self.handle().block_on(future))
    }
}
