//! Giving space back: segments that hold nothing are removed, those that hold little are emptied by copying what lives.
//!
//! A copy is a change like any other, made by the one writer if the value is still where it was read. Killed anywhere, a
//! value is where it was or where it is now, and what no record names is garbage.

use super::Core;
use super::commit::{Job, Move};
use super::format::{Body, keys};
use common::osd::Priority;
use common::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes that are copied in one go.
const GO: usize = 4 << 20;
/// Values that are looked up at a time.
const ROWS: usize = 256;
/// Pause after something went wrong.
const PAUSE: Duration = Duration::from_secs(5);

/// Runs until the store is closed.
pub async fn run(core: Arc<Core>) {
    loop {
        match core.clean().await {
            Ok(true) => {}
            Ok(false) => core.garbage.notified().await,
            Err(error) => {
                if core.check().is_err() {
                    return;
                }
                tracing::warn!(osd = %core.id, %error, "giving space back has to wait");
                core.clock.sleep(PAUSE).await;
            }
        }
    }
}

impl Core {
    /// Gives one segment back; `false`: there is none that is worth it.
    async fn clean(&self) -> Result<bool> {
        let empty = self.space.lock().empty();
        if let Some(number) = empty {
            self.release(number).await?;
            return Ok(true);
        }
        let victim = self.space.lock().victim();
        let Some(number) = victim else { return Ok(false) };
        self.empty_out(number).await?;
        Ok(true)
    }

    async fn ask(&self, job: impl FnOnce(oneshot::Sender<Result<()>>) -> Job) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.queue.push(Priority::Maintenance, job(done))?;
        super::answered(answer).await
    }

    async fn release(&self, number: u64) -> Result<()> {
        self.ask(|done| Job::Release(number, done)).await?;
        super::count(&self.counters.segments_removed, 1);
        match self.files.remove(number).await {
            // It was missing before.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            // The next start finds it, and that nothing counts in it.
            other => other,
        }
    }

    /// Copies what lives in a segment. Where a value can't be read, the segment stays until somebody deletes it.
    async fn empty_out(&self, number: u64) -> Result<()> {
        let prefix = keys::places(number);
        let mut from = prefix.clone();
        let mut copied = 0;
        loop {
            let rows = self.table.scan(&prefix, &from, ROWS)?;
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            let (mut moves, mut bytes) = (Vec::new(), 0);
            for (_, key) in rows {
                let Some(record) = self.record(&key)? else { continue };
                if !matches!(record.body, Body::Placed { segment, .. } if segment == number) {
                    continue;
                }
                match self.read_placed(&key, &record).await {
                    Ok(value) => {
                        bytes += value.len();
                        moves.push(Move { key, record, bytes: value });
                    }
                    Err(error) => {
                        // Unless it moved or went meanwhile.
                        if self.record(&key)?.as_ref() == Some(&record) {
                            self.space.lock().stick(number);
                            self.note_damage(&key, unreadable(error));
                        }
                    }
                }
                copied += usize::from(bytes > 0);
                if bytes >= GO {
                    self.copy(std::mem::take(&mut moves), std::mem::take(&mut bytes)).await?;
                }
            }
            self.copy(moves, bytes).await?;
        }
        if copied == 0 {
            // It says that it holds something, and nothing says what: it would be looked at again and again.
            self.space.lock().stick(number);
        }
        Ok(())
    }

    async fn copy(&self, moves: Vec<Move>, bytes: usize) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        self.ask(|done| Job::Move(moves, done)).await?;
        // Twice the bytes: read and written.
        if !self.space.lock().is_short() {
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.settings.clean_rate.max(1);
            self.clock.sleep(Duration::from_nanos(nanos)).await;
        }
        Ok(())
    }
}

fn unreadable(error: Error) -> Error {
    Error::corrupt(error.to_string())
}
