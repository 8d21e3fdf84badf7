//! Object stores: where the immutable blobs of a vPool live.
//!
//! | room | what |
//! |---|---|
//! | [`spec`] | [`BackendSpec`]: which store a vPool uses, without its secrets |
//! | [`attach`](mod@attach) | [`open`], [`attach()`]: from a spec to a store behind `common::ObjectStore` |
//! | [`probe`](mod@probe) | [`probe()`]: whether a store keeps the promises we build on, tried out when it is attached |
//! | [`directory`] | the `directory` store: one folder of the local machine |
//! | [`s3`] | the `s3` store: any server that speaks S3, through the AWS SDK |
//! | [`key`] | which keys are allowed |
//! | [`alba`] | the `alba` store: spread over many disks, by erasure codes |
//! | [`metrics`] | [`Metrics`], and the wrapper that counts every request |
//!
//! Does not own: what is in an object or what its key means (volumedriver), for how long an
//! unavailable store is asked again (its callers), and which vPools exist (objectrouter).

pub mod alba;
pub mod attach;
pub mod directory;
pub mod key;
pub mod metrics;
pub mod probe;
pub mod s3;
pub mod spec;

pub use attach::{attach, open};
pub use metrics::Metrics;
pub use probe::{ProbeReport, probe};
pub use spec::{BackendSpec, DirectorySpec, S3Spec};
