//! How members and clients reach each other.
//!
//! | room | what |
//! |---|---|
//! | `memory` | a network for the simulation, which loses, delays and cuts |

#[cfg(test)]
pub(crate) mod memory;
