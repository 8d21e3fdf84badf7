//! `vdisk export` and `vdisk import`: bytes from the API to a file or stdout, and back.

use super::commands::{name, vdisk_path};
use super::http::{Api, escape};
use super::{show, tables};
use crate::cli::{Output, backup};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use anyhow::{Context, Result};
use bytes::Bytes;
use framework::types::{Imported, VdiskList};
use hyper::body::Frame;
use objectrouter::stream::{Decoder, Record};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use tokio::sync::mpsc;

/// Bytes that are read from a file at a time.
const CHUNK: usize = 1 << 20;

/// `vdisk export`.
pub async fn export(api: &Api, args: &backup::Export) -> Result<()> {
    let (vdisk, snapshot) = match args.vdisk.split_once('@') {
        Some((vdisk, snapshot)) => (vdisk, Some(snapshot)),
        None => (args.vdisk.as_str(), None),
    };
    let of = vdisk_path(api, vdisk).await?;
    let owner = api.of_owner(&of).await?;
    let api = owner.as_ref().unwrap_or(api);
    let mut path = format!("{of}/export");
    let query = [("snapshot", snapshot), ("since", args.since.as_deref())];
    for (key, value) in query.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        let mark = if path.contains('?') { '&' } else { '?' };
        path.push_str(&format!("{mark}{key}={}", escape(&name(value)?)));
    }
    let to = Path::new(&args.to);
    let to_stdout = args.to == "-";
    let mut out: Box<dyn Write> = if to_stdout {
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("the stream is not for a terminal: say --to FILE, or pipe it"));
        }
        Box::new(std::io::stdout().lock())
    } else {
        // One that is there may be the only copy.
        let file = File::create_new(to).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::error(Exit::Conflict, format!("{} is there already", to.display()))
            }
            _ => Failure::error(Exit::Failure, format!("creating {}: {e}", to.display())),
        })?;
        Box::new(file)
    };
    let outcome = copy_out(api, &path, &mut out).await;
    let outcome = outcome.and_then(|()| match to_stdout {
        true => Ok(()),
        false => File::open(to).and_then(|file| file.sync_all()).context("writing the file to disk"),
    });
    if outcome.is_err() && !to_stdout {
        // What is left of it would look like an export. That it can't be removed changes nothing.
        let _ = std::fs::remove_file(to);
    }
    outcome
}

/// Looks at all of the stream on its way: what is written is whole and right, or the command fails.
async fn copy_out(api: &Api, path: &str, out: &mut dyn Write) -> Result<()> {
    let mut decoder = Decoder::default();
    let mut progress = Reached::new();
    api.download(path, |bytes| {
        for part in bytes.chunks(CHUNK) {
            decoder.push(part);
            while let Some(record) = decoder.next_record()? {
                progress.saw(&record, decoder.reached());
            }
        }
        out.write_all(bytes).context("writing the stream")
    })
    .await?;
    decoder.finish()?;
    progress.line.end();
    out.flush().context("writing the stream")
}

/// `vdisk import`.
pub async fn import(api: &Api, output: Output, args: &backup::Import) -> Result<()> {
    let path = target(api, &args.vdisk).await?;
    // One that is not there is made where it is asked for; other errors are for the import to tell.
    let owner = api.of_owner(&path).await.unwrap_or(None);
    let api = owner.as_ref().unwrap_or(api);
    let mut source: Box<dyn Read + Send> = match args.from.as_str() {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::error(Exit::NotFound, format!("there is no file {path}"))
            }
            _ => Failure::error(Exit::Failure, format!("opening {path}: {e}")),
        })?),
    };
    let (send, receive) = mpsc::channel::<std::io::Result<Frame<Bytes>>>(2);
    // Ends when nobody listens any more, or with this process.
    std::thread::spawn(move || {
        let mut decoder = Some(Decoder::default());
        let mut progress = Reached::new();
        loop {
            let mut buffer = vec![0; CHUNK];
            let read = source.read(&mut buffer);
            if let Ok(n) = read {
                buffer.truncate(n);
            }
            // What is wrong with it is for the router to say.
            decoder = decoder.filter(|_| progress.line.is_shown()).and_then(|mut decoder| {
                decoder.push(&buffer);
                while let Some(record) = decoder.next_record().ok()? {
                    progress.saw(&record, decoder.reached());
                }
                Some(decoder)
            });
            let (last, frame) = match read {
                Ok(0) => break,
                Ok(_) => (false, Ok(Frame::data(Bytes::from(buffer)))),
                Err(error) => (true, Err(error)),
            };
            if send.blocking_send(frame).is_err() || last {
                break;
            }
        }
        progress.line.end();
    });
    let bytes = futures::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|frame| (frame, receive))
    });
    let force = args.force;
    let done: Imported = api.upload(&format!("{path}/import?force={force}"), Box::pin(bytes)).await?;
    show(output, &done, |done| tables::vdisk(&done.vdisk))
}

/// The path of a vDisk that may be new: then its vPool must be said, unless there is only one that it can be.
async fn target(api: &Api, text: &str) -> Result<String> {
    if text.contains('/') {
        return vdisk_path(api, text).await;
    }
    let list: VdiskList = api.get("/api/v1/vdisks").await?;
    match list.items.iter().any(|vdisk| vdisk.name == text) {
        true => vdisk_path(api, text).await,
        false => {
            Err(Failure::usage(format!("'{text}' is a new vDisk: say its vPool too, as in VPOOL/{text}")))
        }
    }
}

/// How far a stream has come.
struct Reached {
    size: u64,
    line: Progress,
}

impl Reached {
    fn new() -> Self {
        Self { size: 0, line: Progress::new() }
    }

    fn saw(&mut self, record: &Record, reached: u64) {
        if let Record::Begin(begin) = record {
            self.size = begin.size;
        }
        let reached = if let Record::End(_) = record { self.size } else { reached };
        self.line.at(reached, self.size);
    }
}
