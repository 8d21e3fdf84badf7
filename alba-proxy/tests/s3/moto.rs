//! The S3 server of the tests.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A moto server of its own for one test; it ends with the value.
pub struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts the server on a free port.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child = Command::new("moto_server")
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            // One request at a time: see the file there.
            .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/moto"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("moto_server does not start ({e}); install it: pip install 'moto[server,s3]'")
            });
        Self { child, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for the server and makes the bucket.
    pub async fn create_bucket(&self, bucket: &str) {
        super::within("the start of moto_server", async {
            loop {
                match self.request_bucket(bucket).await {
                    Ok(reply) if reply.starts_with("HTTP/1.1 200") => return,
                    Ok(reply) => panic!("moto_server: {reply}"),
                    Err(_) => pause().await,
                }
            }
        })
        .await;
    }

    async fn request_bucket(&self, bucket: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(clippy::disallowed_methods)] // Waits for a real process.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
