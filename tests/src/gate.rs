//! A TCP gate before a server: open, closed (connections end and new ones are refused at once), or
//! deaf (connections stand still and nobody answers).

use crate::tools::free_port;
use anyhow::Result;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Passes everything.
    Open = 0,
    /// Ends every connection.
    Closed = 1,
    /// Accepts and passes nothing on.
    Deaf = 2,
}

/// The gate; it ends with its owner's process.
pub struct Gate {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: AtomicU8,
    to: u16,
    live: Mutex<Vec<TcpStream>>,
}

impl Gate {
    /// A gate before port `to` of this machine.
    pub fn before(to: u16) -> Result<Self> {
        let port = free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let shared = Arc::new(Shared { state: AtomicU8::new(0), to, live: Mutex::new(Vec::new()) });
        let inner = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inner = inner.clone();
                std::thread::spawn(move || {
                    // An error ends this connection, which is all there is to do about it.
                    let _ = inner.serve(stream);
                });
            }
        });
        Ok(Self { port, shared })
    }

    /// Where the gate listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Opens or shuts it.
    pub fn set(&self, state: State) {
        self.shared.state.store(state as u8, Ordering::SeqCst);
        let mut live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner);
        if state == State::Closed {
            for stream in live.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Shared {
    fn is(&self, state: State) -> bool {
        self.state.load(Ordering::SeqCst) == state as u8
    }

    fn serve(self: Arc<Self>, client: TcpStream) -> Result<()> {
        if self.is(State::Closed) {
            return Ok(());
        }
        let server = TcpStream::connect(("127.0.0.1", self.to))?;
        {
            let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            if live.len() > 1000 {
                live.drain(..500);
            }
            live.push(client.try_clone()?);
            live.push(server.try_clone()?);
        }
        let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
        let other = self.clone();
        let forth = std::thread::spawn(move || other.copy(from_client, to_server));
        let _ = self.copy(server, client);
        let _ = forth.join();
        Ok(())
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let ended = loop {
            let length = match from.read(&mut buffer) {
                Ok(0) | Err(_) => break Ok(()),
                Ok(length) => length,
            };
            while self.is(State::Deaf) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if self.is(State::Closed) || to.write_all(&buffer[..length]).is_err() {
                break Ok(());
            }
        };
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    /// A server that answers each byte with itself.
    fn echo() -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        });
        Ok(port)
    }

    fn ask(gate: &Gate) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", gate.port()))?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"x")?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        ensure!(&answer == b"x");
        Ok(())
    }

    #[test]
    fn a_gate_passes_refuses_or_stays_silent_and_opens_again() -> Result<()> {
        let gate = Gate::before(echo()?)?;
        ask(&gate)?;
        let mut standing = TcpStream::connect(("127.0.0.1", gate.port()))?;
        standing.write_all(b"y")?;
        standing.read_exact(&mut [0])?;
        gate.set(State::Closed);
        ensure!(ask(&gate).is_err(), "closed");
        ensure!(matches!(standing.read(&mut [0]), Ok(0) | Err(_)), "a standing connection ends too");
        gate.set(State::Deaf);
        ensure!(ask(&gate).is_err(), "deaf");
        gate.set(State::Open);
        ask(&gate)
    }
}
