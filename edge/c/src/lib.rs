//! The C library of the edge protocol; its interface is described in `include/storagerouter_edge.h`.
//!
//! | room | what |
//! |---|---|
//! | `blocking` | functions that wait |
//! | `background` | functions that call back |
//! | `open` | options, opening, closing |
//! | `border` | pointers, panics and errors on their way out |
//! | `runtime` | the threads of the library |
//!
//! Does not own: anything but the way across the border; the client is the crate `edge-client`.

mod background;
mod blocking;
mod border;
mod open;
mod runtime;

use edge_client::Device;

/// `sr_edge_device`.
pub struct SrEdgeDevice {
    /// `None` only while it is closed.
    device: Option<Device>,
    runtime: runtime::Shared,
}
