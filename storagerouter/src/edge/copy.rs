//! `edge copy`: a vDisk to or from anything that holds bytes.
//!
//! What is not allocated, and what is zero, is not copied but made a hole. Parts are copied many at a time and in any
//! order, unless they go to a pipe.

mod source;
mod target;
mod zeroes;

use super::connect::{Connect, check_name};
use crate::cli::edge::Copy;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::size::human;
use anyhow::{Context, Result};
use common::{Error, blocking};
use futures::TryStreamExt;
use source::Source;
use std::cell::{Cell, RefCell};
use std::path::Path;
use target::Target;

/// Bytes that are copied with one request.
const PART: u64 = 1 << 20;

/// What a word on the command line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Disk(&'a str),
    Path(&'a Path),
    Pipe,
}

/// `edge copy`.
pub async fn run(args: &Copy) -> Result<()> {
    let (from, to) = (place(&args.from)?, place(&args.to)?);
    match (from, to) {
        (Place::Disk(a), Place::Disk(b)) if a == b => {
            return Err(Failure::usage(format!("{a} can't be copied to itself")));
        }
        (Place::Disk(_), _) | (_, Place::Disk(_)) => {}
        _ => return Err(Failure::usage("neither of the two is a vDisk, VPOOL/VDISK: use cp for files")),
    }
    let connect = Connect::new(&args.routers, "edge copy", super::say)?;
    let source = Source::open(from, &connect).await?;
    let copied = match Target::open(to, &connect, args.overwrite, source.size()).await {
        Ok(target) => {
            let copied = tokio::select! {
                copied = copy(&source, &target, args) => copied,
                _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: the copy is not whole")),
            };
            target.close(copied.is_ok()).await;
            copied
        }
        Err(error) => Err(error),
    };
    source.close().await;
    copied
}

/// A path begins with / or . so that no vDisk can be taken for one.
fn place(text: &str) -> Result<Place<'_>> {
    match text {
        "-" => Ok(Place::Pipe),
        path if path.starts_with(['/', '.']) => Ok(Place::Path(Path::new(path))),
        name if name.contains('/') => check_name(name).map(|()| Place::Disk(name)),
        name => Err(Failure::usage(format!(
            "'{}' is neither VPOOL/VDISK nor a path that begins with / or . (as in ./{})",
            name.escape_debug(),
            name.escape_debug()
        ))),
    }
}

/// Does what waits for a disk or a pipe, where that may wait.
async fn io<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> common::Result<T> {
    blocking::run(move || work().map_err(|e| Error::io(what, &e))).await
}

async fn copy(source: &Source, target: &Target, args: &Copy) -> Result<()> {
    let size = source.size();
    if let (Some(size), Some(room)) = (size, target.room())
        && size > room
    {
        return Err(Failure::error(
            Exit::Conflict,
            format!(
                "{} has {}, and {} only {}: nothing was copied; make it larger first (storagerouter vdisk resize)",
                args.from,
                human(size),
                args.to,
                human(room)
            ),
        ));
    }
    let progress = RefCell::new(Progress::new());
    let (done, end) = (Cell::new(0), Cell::new(0));
    let room = target.room().unwrap_or(u64::MAX);
    let depth = usize::from(args.depth);
    let moved = |len: u64| {
        done.set(done.get() + len);
        if let Some(size) = size {
            progress.borrow_mut().at(done.get(), size);
        }
    };
    let parts = source.parts().and_then(|part| async move {
        match part.offset.checked_add(part.len) {
            Some(end) if end <= room => Ok(part),
            _ => Err(Failure::error(
                Exit::Conflict,
                format!("there is more than the {} of the target", human(room)),
            )),
        }
    });
    let parts = parts.inspect_ok(|part| end.set(part.offset + part.len));
    let loaded = parts.map_ok(|part| source.load(part));
    let put = |part: source::Loaded| async move {
        for (at, run) in part.runs() {
            match run {
                zeroes::Run::Zero(len) => target.clear(at, len).await?,
                zeroes::Run::Data(data) => target.put(at, data).await?,
            }
        }
        Ok::<u64, anyhow::Error>(part.len)
    };
    if target.is_ordered() {
        let mut loaded = std::pin::pin!(loaded.try_buffered(depth));
        while let Some(part) = loaded.try_next().await? {
            moved(put(part).await?);
        }
    } else {
        let copied = loaded.map_ok(|load| async { put(load.await?).await }).try_buffer_unordered(depth);
        let mut copied = std::pin::pin!(copied);
        while let Some(len) = copied.try_next().await? {
            moved(len);
        }
    }
    progress.borrow_mut().end();
    let size = end.get();
    target.finish(size).await.with_context(|| format!("at the end of copying to {}", args.to))?;
    if let Some(rest) = target.room().map(|room| room - size).filter(|rest| *rest > 0) {
        super::say(&format!("{} is larger: its last {} are as they were", args.to, human(rest)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_of;

    #[test]
    fn a_word_is_a_vdisk_a_path_or_a_pipe_and_never_guessed() {
        assert_eq!(place("p/v").unwrap(), Place::Disk("p/v"));
        assert_eq!(place("p/v@monday").unwrap(), Place::Disk("p/v@monday"));
        assert_eq!(place("./p/v").unwrap(), Place::Path(Path::new("./p/v")));
        assert_eq!(place("/p/v").unwrap(), Place::Path(Path::new("/p/v")));
        assert_eq!(place("-").unwrap(), Place::Pipe);
        for bad in ["", "image.raw", "p/v/w", "p/", "/v".trim_start_matches('/'), "p/v@", "p\n/v"] {
            let error = place(bad).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Usage, "{bad}: {error}");
            assert!(error.to_string().contains("VPOOL/VDISK"), "{bad}: {error}");
        }
    }
}
