//! From an object to the fragments that lie on disks, and back. Pure functions; nothing here waits.
//!
//! | room | what |
//! |---|---|
//! | [`erasure`] | any k of k + m fragments give each other one back |
//! | [`shape`] | where the bytes of an object are in its fragments |
//! | [`pack`] | frames: compressed, sealed or summed |
//! | [`header`] | what lies beside each fragment on its disk, and the keys there |

pub mod erasure;
pub mod header;
pub mod pack;
pub mod shape;

#[cfg(test)]
mod tests;

pub use erasure::Code;
pub use header::{FragmentHeader, FragmentKey};
pub use pack::{BadFrame, decode, encode};
pub use shape::{Extent, Packing, Plan, Shape};

use bytes::{Bytes, BytesMut};
use common::Result;
use std::fmt;

/// The random identity of one put: never used twice, so what was put under it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u128);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// An object, laid out.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// How to read it.
    pub shape: Shape,
    /// Data fragments, then parity; all of one length.
    pub fragments: Vec<Bytes>,
    /// CRC32C of each.
    pub crcs: Vec<u32>,
}

/// Fragment `want`, or the same slice of it as those of the k others in `have`. No key is needed.
///
/// # Errors
/// `Internal` when they are not k different fragments.
pub fn reconstruct(shape: &Shape, have: &[(usize, Bytes)], want: usize) -> Result<Bytes> {
    let code = Code::of(shape.policy.data(), usize::from(shape.policy.m))?;
    let numbers: Vec<usize> = have.iter().map(|(n, _)| *n).collect();
    let recipe = code.solve(&numbers, &[want])?;
    let len = have.first().map_or(0, |(_, b)| b.len());
    if have.iter().any(|(_, b)| b.len() != len) {
        return Err(common::Error::internal("slices of fragments of different length"));
    }
    let inputs: Vec<&[u8]> = have.iter().map(|(_, b)| &b[..]).collect();
    let mut made = BytesMut::zeroed(len);
    recipe.apply(&inputs, &mut [&mut made[..]]);
    Ok(made.freeze())
}
