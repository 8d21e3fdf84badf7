//! Bodies that are piped through: streams of vDisks, of any length.

use super::{Api, LARGEST_ANSWER};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;

/// The media type of a stream.
const STREAM: &str = "application/x-storagerouter-export";

impl Api {
    /// `GET` of a stream; `each` gets its bytes as they come.
    pub async fn download(&self, path: &str, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let request = self.builder(Method::GET, path)?.body(Empty::<Bytes>::new());
        let mut response = self.start(request.context("building the request")?).await?;
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|e| {
                Failure::error(Exit::Failure, format!("the storage router broke the export off: {e}"))
            })?;
            if let Some(bytes) = frame.data_ref() {
                each(bytes)?;
            }
        }
        Ok(())
    }

    /// `POST` of a stream, with an answer.
    pub async fn upload<A: DeserializeOwned>(
        &self,
        path: &str,
        bytes: impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Unpin + 'static,
    ) -> Result<A> {
        let request = self.builder(Method::POST, path)?.header(CONTENT_TYPE, STREAM);
        let request = request.body(StreamBody::new(bytes)).context("building the request")?;
        let response = self.start(request).await?;
        let answer = self.whole(response).await?;
        serde_json::from_slice(&answer).context("the answer is not what this version expects")
    }

    /// Sends a request; the answer, when it is no refusal.
    async fn start<B>(&self, request: hyper::Request<B>) -> Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let told = |e: hyper::Error| self.unreachable(&format!("{:#}", anyhow::Error::from(e)));
        let stream = TokioIo::new(self.open().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(told)?;
        // Ends with the answer, or with this process.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(told)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.whole(response).await?;
        Err(self.refused(status, &body))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        Ok(body.map_err(|e| self.unreachable(&format!("reading the answer: {e}")))?.to_bytes())
    }
}
