//! The SDK's client, with our own HTTP and TLS under it.

use super::ca;
use super::credentials::Credentials;
use crate::spec::S3Spec;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use common::{Clock, Error, Result};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(5);
/// Shorter than what servers and the boxes between keep an idle connection.
const IDLE: Duration = Duration::from_secs(20);

/// The region that requests are signed for.
pub(super) fn region(spec: &S3Spec) -> &str {
    spec.region.as_deref().unwrap_or("us-east-1")
}

pub(super) fn build(spec: &S3Spec, credentials: Credentials, clock: &dyn Clock) -> Result<Client> {
    let plain = spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let http = if plain {
        Builder::new().pool_idle_timeout(IDLE).build_http()
    } else {
        let trust = match &spec.ca_file {
            Some(file) => TrustStore::empty().with_pem_certificate(ca::load(file, clock.unix_time())?),
            None => TrustStore::default(),
        };
        let context = TlsContext::builder()
            .with_trust_store(trust)
            .build()
            .map_err(|e| Error::internal(format!("set up TLS for the s3 store: {e}")))?;
        Builder::new()
            .pool_idle_timeout(IDLE)
            .tls_provider(Provider::rustls(CryptoMode::Ring))
            .tls_context(context)
            .build_https()
    };
    let credentials = aws_sdk_s3::config::Credentials::new(
        credentials.access_key,
        credentials.secret_key,
        credentials.session_token,
        None,
        "storagerouter",
    );
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(Region::new(region(spec).to_string()))
        .credentials_provider(credentials)
        .force_path_style(spec.path_style.unwrap_or(spec.endpoint.is_some()))
        // Attempts, their pauses and their limits are ours.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Servers other than AWS's refuse or ignore its newer checksums. Each request carries the
        // SHA-256 of its body in its signature anyway, and what is read has our own checksums.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &spec.endpoint {
        config = config.endpoint_url(endpoint.trim_end_matches('/'));
    }
    Ok(Client::from_conf(config.build()))
}
