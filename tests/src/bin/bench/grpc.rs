//! etcd's `Put` and `Range` over gRPC: what a load generator needs of it, and no more.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Method, Request, Version};
use tokio::net::TcpStream;

/// One connection.
#[derive(Clone)]
pub struct Etcd {
    address: String,
    send: SendRequest<Bytes>,
}

/// A field of a message that is bytes.
fn field(message: &mut BytesMut, number: u8, content: &[u8]) {
    message.put_u8(number << 3 | 2);
    let mut length = content.len();
    while length >= 0x80 {
        message.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8(length as u8);
    message.put_slice(content);
}

impl Etcd {
    pub async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = h2::client::handshake(stream).await?;
        // It ends with the last of its senders.
        tokio::spawn(connection);
        Ok(Self { address: address.into(), send })
    }

    async fn call(&self, method: &str, message: &[u8]) -> Result<usize> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/etcdserverpb.KV/{method}", self.address))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(message);
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(framed.freeze(), true)?;
        let mut body = response.await?.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            length += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        let trailers = body.trailers().await?.context("an answer of gRPC without its end")?;
        let status = trailers.get("grpc-status").context("an answer of gRPC without a status")?;
        ensure!(status == "0", "etcd: {method}: {trailers:?}");
        Ok(length)
    }

    /// Writes a key.
    pub async fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut message = BytesMut::new();
        field(&mut message, 1, key.as_bytes());
        field(&mut message, 2, value);
        self.call("Put", &message).await.map(drop)
    }

    /// Reads a key that is there, linearizably.
    pub async fn get(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut message = BytesMut::new();
        field(&mut message, 1, key.as_bytes());
        let length = self.call("Range", &message).await?;
        ensure!(length > value.len(), "etcd does not have {key}");
        Ok(())
    }
}
