//! From the greeting to an opened export.
//!
//! One [`Handshake`] serves one phase: plain text, or what follows inside TLS, which starts from
//! nothing again, so that nothing said in plain text counts inside.

use super::input::Input;
use super::meta::{self, Selected};
use super::proto::{self, OptionHeader, opt, rep};
use crate::config::TlsMode;
use common::{BlockDevice, Clock, Error, ErrorKind, ExportInfo, Exports, Geometry, Result};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Time that a handshake may spend waiting for its client, in all.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Options of one handshake.
const MAX_OPTIONS: u32 = 4096;

/// How replies look in transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replies {
    /// One header, payload after it.
    #[default]
    Simple,
    /// Chunks.
    Structured,
    /// Chunks with 64-bit lengths; requests too.
    Extended,
}

/// An export that a client has chosen, and how it wants to talk.
pub struct Chosen {
    /// The name, as the client gave it (or as the default was found).
    pub name: String,
    /// The open device.
    pub device: Arc<dyn BlockDevice>,
    /// The shape of replies.
    pub replies: Replies,
    /// The metadata contexts that were selected.
    pub contexts: Vec<Selected>,
}

/// How a phase of the handshake ended.
pub enum Outcome {
    /// Transmission follows.
    Go(Chosen),
    /// The client was told to start TLS now.
    StartTls,
    /// The client left in order.
    Left,
}

/// Why a handshake was given up.
#[derive(Debug)]
pub enum Failure {
    /// The client broke the protocol.
    Protocol(String),
    /// The connection is gone.
    Gone(std::io::Error),
    /// The client took too long.
    Slow,
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Failure::Gone(e)
    }
}

/// What a handshake works with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where exports come from.
    pub exports: &'a dyn Exports,
    /// What to do about TLS.
    pub tls: TlsMode,
    /// Whether this phase is inside TLS.
    pub secure: bool,
}

/// The flags of an export with this geometry.
pub fn transmission_flags(geometry: &Geometry, replies: Replies) -> u16 {
    use proto::tx;
    let mut flags = tx::HAS_FLAGS | tx::SEND_FLUSH | tx::CAN_MULTI_CONN | tx::SEND_CACHE;
    flags |= if geometry.read_only {
        tx::READ_ONLY
    } else {
        tx::SEND_FUA | tx::SEND_TRIM | tx::SEND_WRITE_ZEROES | tx::SEND_FAST_ZERO
    };
    if replies != Replies::Simple {
        flags |= tx::SEND_DF;
    }
    flags
}

/// Time left for the client, shared by the phases.
pub struct Patience<'a> {
    clock: &'a dyn Clock,
    left: Duration,
}

impl<'a> Patience<'a> {
    /// All of it.
    pub fn new(clock: &'a dyn Clock, left: Duration) -> Self {
        Self { clock, left }
    }

    /// Waits for the client, within what is left.
    pub async fn wait<T>(
        &mut self,
        what: impl Future<Output = std::io::Result<T>>,
    ) -> std::result::Result<T, Failure> {
        let start = self.clock.now();
        let done = tokio::time::timeout(self.left, what).await;
        self.left = self.left.saturating_sub(self.clock.now().saturating_sub(start));
        match done {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::Slow),
        }
    }
}

/// One phase of a handshake.
pub struct Handshake<'a, 'p, S> {
    stream: &'a mut S,
    input: &'a mut Input,
    context: Context<'a>,
    patience: &'a mut Patience<'p>,
    out: Vec<u8>,
    no_zeroes: bool,
    replies: Replies,
    /// The export for which metadata contexts are selected, and those.
    contexts: Option<(String, Vec<Selected>)>,
    /// The export opened last: what a client asks about first, it mostly takes next.
    opened: Option<(String, Arc<dyn BlockDevice>)>,
}

impl<'a, 'p, S: AsyncRead + AsyncWrite + Unpin + Send> Handshake<'a, 'p, S> {
    /// A phase that starts from nothing.
    pub fn new(
        stream: &'a mut S,
        input: &'a mut Input,
        context: Context<'a>,
        patience: &'a mut Patience<'p>,
    ) -> Self {
        Self {
            stream,
            input,
            context,
            patience,
            out: Vec::new(),
            no_zeroes: false,
            replies: Replies::Simple,
            contexts: None,
            opened: None,
        }
    }

    /// Greets, and reads the client's flags. Only in the first phase.
    pub async fn greet(&mut self) -> std::result::Result<(), Failure> {
        self.out.extend_from_slice(&proto::MAGIC.to_be_bytes());
        self.out.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&(proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES).to_be_bytes());
        self.flush().await?;
        let flags = u32::from_be_bytes(self.take::<4>().await?);
        if flags & !u32::from(proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES) != 0 {
            return Err(Failure::Protocol(format!("unknown client flags {flags:#x}")));
        }
        self.no_zeroes = flags & u32::from(proto::FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// Whether the client left the 124 zeroes out; kept across the upgrade to TLS.
    pub fn no_zeroes(&self) -> bool {
        self.no_zeroes
    }

    /// Takes over what was agreed before the upgrade to TLS by the client's flags.
    pub fn set_no_zeroes(&mut self, no_zeroes: bool) {
        self.no_zeroes = no_zeroes;
    }

    /// Answers options until one of them ends the phase.
    pub async fn negotiate(mut self) -> std::result::Result<Outcome, Failure> {
        for _ in 0..MAX_OPTIONS {
            let header = proto::decode_option_header(&self.take().await?)
                .map_err(|e| Failure::Protocol(e.0.to_owned()))?;
            if header.length > proto::MAX_OPTION {
                self.refuse(header.option, rep::ERR_TOO_BIG, "the option is larger than 64 KiB");
                self.flush().await?;
                return Err(Failure::Protocol(format!(
                    "option {} has {} bytes, more than {}",
                    header.option,
                    header.length,
                    proto::MAX_OPTION
                )));
            }
            let payload = self.payload(header.length as usize).await?;
            let end = self.option(header, &payload).await?;
            self.flush().await?;
            if let Some(outcome) = end {
                return Ok(outcome);
            }
        }
        Err(Failure::Protocol(format!("more than {MAX_OPTIONS} options")))
    }

    async fn option(
        &mut self,
        header: OptionHeader,
        payload: &[u8],
    ) -> std::result::Result<Option<Outcome>, Failure> {
        let OptionHeader { option, .. } = header;
        let plain = self.context.tls == TlsMode::Require && !self.context.secure;
        if plain && !matches!(option, opt::STARTTLS | opt::ABORT) {
            if option == opt::EXPORT_NAME {
                return Err(Failure::Protocol(
                    "the client chose an export without TLS, which nbd.tls requires".to_owned(),
                ));
            }
            self.refuse(option, rep::ERR_TLS_REQD, "this server requires TLS: send NBD_OPT_STARTTLS first");
            return Ok(None);
        }
        let bare =
            matches!(option, opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS);
        if bare && !payload.is_empty() {
            self.refuse(option, rep::ERR_INVALID, "this option has no payload");
            return Ok(None);
        }
        match option {
            opt::EXPORT_NAME => return self.export_name(payload).await.map(Some),
            opt::ABORT => {
                self.reply(option, rep::ACK, &[]);
                // The client need not wait for the answer.
                let _ = self.flush().await;
                return Ok(Some(Outcome::Left));
            }
            opt::LIST => self.list().await?,
            opt::STARTTLS => return self.start_tls(),
            opt::INFO | opt::GO => return self.info(option, payload).await,
            opt::STRUCTURED_REPLY => match self.replies {
                Replies::Extended => self.refuse(
                    option,
                    rep::ERR_EXT_HEADER_REQD,
                    "extended headers, which include structured replies, are on already",
                ),
                Replies::Simple | Replies::Structured => {
                    self.replies = Replies::Structured;
                    self.reply(option, rep::ACK, &[]);
                }
            },
            opt::EXTENDED_HEADERS => {
                self.replies = Replies::Extended;
                self.reply(option, rep::ACK, &[]);
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta(option, payload).await?,
            _ => self.refuse(option, rep::ERR_UNSUP, "this server does not know the option"),
        }
        Ok(None)
    }

    fn start_tls(&mut self) -> std::result::Result<Option<Outcome>, Failure> {
        if self.context.secure {
            self.refuse(opt::STARTTLS, rep::ERR_INVALID, "TLS is on already");
            return Ok(None);
        }
        if self.context.tls == TlsMode::Off {
            self.refuse(opt::STARTTLS, rep::ERR_POLICY, "TLS is off on this server (nbd.tls)");
            return Ok(None);
        }
        // What came in plain text behind the option could have been put there by anyone on the
        // way; it must not be taken for something said inside TLS.
        if !self.input.bytes().is_empty() {
            return Err(Failure::Protocol("plain text follows NBD_OPT_STARTTLS".to_owned()));
        }
        self.reply(opt::STARTTLS, rep::ACK, &[]);
        Ok(Some(Outcome::StartTls))
    }

    async fn list(&mut self) -> std::result::Result<(), Failure> {
        match self.context.exports.list().await {
            Ok(exports) => {
                for ExportInfo { name, description } in &exports {
                    if name.len() > proto::MAX_STRING {
                        continue;
                    }
                    let description = shorten(description);
                    let mut body = Vec::with_capacity(4 + name.len() + description.len());
                    body.extend_from_slice(&(name.len() as u32).to_be_bytes());
                    body.extend_from_slice(name.as_bytes());
                    body.extend_from_slice(description.as_bytes());
                    self.reply(opt::LIST, rep::SERVER, &body);
                    if self.out.len() > 32 << 10 {
                        self.flush().await?;
                    }
                }
                self.reply(opt::LIST, rep::ACK, &[]);
            }
            Err(e) => self.refuse(opt::LIST, refusal(e.kind), e.message()),
        }
        Ok(())
    }

    async fn export_name(&mut self, payload: &[u8]) -> std::result::Result<Outcome, Failure> {
        // This old option has no error reply: closing the connection is the answer.
        let name = proto::decode_name(payload).map_err(|e| Failure::Protocol(e.0.to_owned()))?;
        if self.replies == Replies::Extended {
            return Err(Failure::Protocol(
                "NBD_OPT_EXPORT_NAME after extended headers; NBD_OPT_GO is required".to_owned(),
            ));
        }
        let (name, device) = self
            .open(name)
            .await
            .map_err(|e| Failure::Protocol(format!("export {name:?} cannot be opened: {e}")))?;
        let geometry = device.geometry();
        self.out.extend_from_slice(&geometry.size.to_be_bytes());
        self.out.extend_from_slice(&transmission_flags(&geometry, self.replies).to_be_bytes());
        if !self.no_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(Outcome::Go(self.chosen(name, device)))
    }

    async fn info(&mut self, option: u32, payload: &[u8]) -> std::result::Result<Option<Outcome>, Failure> {
        let request = match proto::decode_info(payload) {
            Ok(request) => request,
            Err(e) => {
                self.refuse(option, rep::ERR_INVALID, e.0);
                return Ok(None);
            }
        };
        let (name, device) = match self.open(request.name).await {
            Ok(opened) => opened,
            Err(e) => {
                self.refuse(option, refusal(e.kind), e.message());
                return Ok(None);
            }
        };
        let geometry = device.geometry();
        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&proto::info::EXPORT.to_be_bytes());
        body.extend_from_slice(&geometry.size.to_be_bytes());
        body.extend_from_slice(&transmission_flags(&geometry, self.replies).to_be_bytes());
        self.reply(option, rep::INFO, &body);
        body.clear();
        body.extend_from_slice(&proto::info::BLOCK_SIZE.to_be_bytes());
        for size in [geometry.min_block, geometry.preferred_block, geometry.max_payload] {
            body.extend_from_slice(&size.to_be_bytes());
        }
        self.reply(option, rep::INFO, &body);
        if request.wants_name {
            self.text(option, proto::info::NAME, &name);
        }
        if request.wants_description {
            let suffix = format!("/{name}");
            let listed = self.context.exports.list().await.unwrap_or_default();
            if let Some(line) = listed.iter().find(|e| e.name == name || e.name.ends_with(&suffix)) {
                self.text(option, proto::info::DESCRIPTION, shorten(&line.description));
            }
        }
        self.reply(option, rep::ACK, &[]);
        Ok((option == opt::GO).then(|| Outcome::Go(self.chosen(name, device))))
    }

    async fn meta(&mut self, option: u32, payload: &[u8]) -> std::result::Result<(), Failure> {
        if option == opt::SET_META_CONTEXT {
            // Each one replaces the last, also when it fails.
            self.contexts = None;
        }
        if self.replies == Replies::Simple {
            self.refuse(option, rep::ERR_INVALID, "structured replies must be negotiated first");
            return Ok(());
        }
        let request = match proto::decode_meta(payload) {
            Ok(request) => request,
            Err(e) => {
                self.refuse(option, rep::ERR_INVALID, e.0);
                return Ok(());
            }
        };
        let (name, device) = match self.open(request.name).await {
            Ok(opened) => opened,
            Err(e) => {
                self.refuse(option, refusal(e.kind), e.message());
                return Ok(());
            }
        };
        let baselines = device.baselines();
        if option == opt::LIST_META_CONTEXT {
            for context in meta::list(&request.queries, &baselines) {
                self.context(option, 0, &context);
                if self.out.len() > 32 << 10 {
                    self.flush().await?;
                }
            }
            self.reply(option, rep::ACK, &[]);
            return Ok(());
        }
        let mut selected: Vec<(Selected, &str)> = Vec::new();
        for query in &request.queries {
            let Some(context) = meta::select(query, &baselines) else {
                // As the protocol has it, the client learns it from what is missing in the answer.
                if query.starts_with(meta::DIFF) {
                    tracing::warn!(
                        export = name,
                        query,
                        "a client wants to compare with a snapshot that is not there"
                    );
                }
                continue;
            };
            if selected.iter().all(|(_, known)| known != query) {
                selected.push((Selected { id: selected.len() as u32 + 1, context }, query));
            }
        }
        if selected.len() > meta::MAX_SELECTED {
            let text = format!("more than {} metadata contexts at a time", meta::MAX_SELECTED);
            self.refuse(option, rep::ERR_TOO_BIG, &text);
            return Ok(());
        }
        for (Selected { id, .. }, query) in &selected {
            self.context(option, *id, query);
        }
        self.contexts = Some((name, selected.into_iter().map(|(context, _)| context).collect()));
        self.reply(option, rep::ACK, &[]);
        Ok(())
    }

    fn context(&mut self, option: u32, id: u32, name: &str) {
        let mut body = Vec::with_capacity(4 + name.len());
        body.extend_from_slice(&id.to_be_bytes());
        body.extend_from_slice(name.as_bytes());
        self.reply(option, rep::META_CONTEXT, &body);
    }

    /// Opens an export, or takes the one that is open already; the empty name is the only export
    /// there is.
    async fn open(&mut self, asked: &str) -> Result<(String, Arc<dyn BlockDevice>)> {
        let name = if asked.is_empty() {
            let mut all = self.context.exports.list().await?;
            match all.len() {
                1 => all.remove(0).name,
                0 => return Err(Error::not_found("there is no export yet: create a vDisk")),
                n => {
                    return Err(Error::not_found(format!(
                        "there are {n} exports and no default one: name one, for example {:?}",
                        all[0].name
                    )));
                }
            }
        } else {
            asked.to_owned()
        };
        if let Some((opened, device)) = &self.opened
            && *opened == name
        {
            return Ok((name, device.clone()));
        }
        self.opened = None;
        let device = self.context.exports.open(&name).await?;
        self.opened = Some((name.clone(), device.clone()));
        Ok((name, device))
    }

    fn chosen(&self, name: String, device: Arc<dyn BlockDevice>) -> Chosen {
        let contexts = match &self.contexts {
            Some((of, contexts)) if *of == name => contexts.clone(),
            _ => Vec::new(),
        };
        Chosen { name, device, replies: self.replies, contexts }
    }

    fn text(&mut self, option: u32, kind: u16, text: &str) {
        let mut body = Vec::with_capacity(2 + text.len());
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(text.as_bytes());
        self.reply(option, rep::INFO, &body);
    }

    fn refuse(&mut self, option: u32, kind: u32, message: &str) {
        self.reply(option, kind, shorten(message).as_bytes());
    }

    fn reply(&mut self, option: u32, kind: u32, body: &[u8]) {
        self.out.extend_from_slice(&proto::OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        self.out.extend_from_slice(body);
    }

    async fn flush(&mut self) -> std::result::Result<(), Failure> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        let stream = &mut *self.stream;
        self.patience
            .wait(async {
                stream.write_all(&out).await?;
                stream.flush().await
            })
            .await
    }

    async fn need(&mut self, total: usize) -> std::result::Result<(), Failure> {
        let Self { input, stream, patience, .. } = self;
        input.hold(total);
        while input.bytes().len() < total {
            let n = patience.wait(poll_fn(|cx| input.poll_fill(&mut **stream, cx))).await?;
            if n == 0 {
                return Err(Failure::Gone(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    async fn take<const N: usize>(&mut self) -> std::result::Result<[u8; N], Failure> {
        self.need(N).await?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.input.bytes()[..N]);
        self.input.consume(N);
        Ok(bytes)
    }

    async fn payload(&mut self, length: usize) -> std::result::Result<Vec<u8>, Failure> {
        self.need(length).await?;
        let payload = self.input.bytes()[..length].to_vec();
        self.input.consume(length);
        Ok(payload)
    }
}

/// The refusal that tells a client about an error of this kind; the message says more.
/// (`ERR_UNKNOWN` is the protocol's "this export is not available".)
fn refusal(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::Invalid => rep::ERR_INVALID,
        ErrorKind::Denied | ErrorKind::Conflict | ErrorKind::Unsupported => rep::ERR_POLICY,
        ErrorKind::NotFound
        | ErrorKind::Unavailable
        | ErrorKind::NotOwner
        | ErrorKind::Fenced
        | ErrorKind::NoSpace
        | ErrorKind::Corrupt
        | ErrorKind::Internal => rep::ERR_UNKNOWN,
    }
}

/// The text, cut to what the protocol allows in a string.
pub fn shorten(text: &str) -> &str {
    let mut end = text.len().min(proto::MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
