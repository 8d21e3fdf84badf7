//! The receiving half of a connection to a router.

use crate::transport::{Dial, ReadHalf, Stream, WriteHalf};
use crate::wire::{self, Decoder, PROLOGUE, ToClient};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What comes, cut into frames.
pub struct Incoming {
    read: ReadHalf,
    /// Its name.
    pub router: String,
    pub decoder: Decoder,
}

/// Connects, and hears the router's name.
pub async fn greet(dial: &dyn Dial, address: &str) -> Result<(WriteHalf, Incoming), String> {
    let mut stream = dial.dial(address).await.map_err(|e| e.to_string())?;
    let mut hello = BytesMut::with_capacity(PROLOGUE);
    wire::put_prologue(&mut hello, wire::VERSION, wire::VERSION);
    stream.write.write_all_buf(&mut hello).await.map_err(|e| e.to_string())?;
    stream.write.flush().await.map_err(|e| e.to_string())?;
    let mut answer = [0u8; PROLOGUE];
    stream.read.read_exact(&mut answer).await.map_err(|e| e.to_string())?;
    let (lowest, highest) = wire::prologue(&answer)?;
    if wire::choose_version(lowest, highest).is_none() || lowest != highest {
        return Err(format!("the router speaks another version ({lowest} to {highest})"));
    }
    let Stream { read, write } = stream;
    let mut connection = Incoming { read, router: String::new(), decoder: Decoder::default() };
    match connection.next().await? {
        (_, ToClient::Hello(name)) => connection.router = name,
        _ => return Err("the router did not say its name".into()),
    }
    Ok((write, connection))
}

impl Incoming {
    /// Receives something; 0 at the end.
    pub async fn fill(&mut self) -> std::io::Result<usize> {
        self.read.read_buf(self.decoder.buffer()).await
    }

    /// Receives what is there, without waiting; `None`: nothing, or it can't be known.
    pub fn look(&mut self) -> std::io::Result<Option<usize>> {
        self.read.look(self.decoder.buffer())
    }

    /// The runtime hears no more of it, until it is filled again. Whether that can be.
    pub fn unwatch(&mut self) -> bool {
        self.read.unwatch()
    }

    /// The next thing that the router says, and of which channel.
    pub async fn next(&mut self) -> Result<(u32, ToClient), String> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok((frame.channel, frame.to_client()?));
            }
            match self.fill().await {
                Ok(0) => return Err("the router closed the connection".into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
