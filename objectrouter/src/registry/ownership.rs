//! What the registry says of storage routers, and of who owns which volume.
//!
//! | key | what | lives |
//! |---|---|---|
//! | `router/{name}` | a storage router that belongs here: [`RouterRecord`] | until it is removed |
//! | `node/{name}` | that it is there now, and where: [`NodeRecord`] | as long as its lease |
//! | `volume/{id}` | who owns a volume, and how its tail is replicated: [`VolumeRecord`] | as long as its vDisk |

use super::records::Record;
use common::{Epoch, Name, VolumeId};
use dtl::Registration;
use dtl::registration::Config;
use serde::{Deserialize, Serialize};

/// One life of a storage router: it has authority while the lease is live (rule 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incarnation {
    /// Which router.
    pub node: Name,
    /// The lease of that life; never given twice.
    pub lease: u64,
}

/// A write buffer, and the start of the machine in which something was written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteBuffer {
    /// The data directory's identity.
    pub device: VolumeId,
    /// As the kernel numbers its starts.
    pub boot: String,
}

/// Who is attached to a vDisk, for its next owner (R9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachedRecord {
    /// The number that the client drew.
    pub attachment: VolumeId,
    /// Whose it is, as people call it.
    pub client: String,
}

/// `volume/{id}`: who owns it, and how its acknowledged tail is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    pub(crate) v: u32,
    /// Its vPool.
    pub vpool: Name,
    /// Its vDisk.
    pub vdisk: Name,
    /// Who has claimed `registration.claimed`, and may serve in it; nobody after a hand-over.
    pub holder: Option<Incarnation>,
    /// The router that an operator wants to have it, while it is on its way there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Name>,
    /// The write buffer of `registration.owner`, in which what it accepted lies.
    pub journal: Option<WriteBuffer>,
    /// How it was and is replicated.
    pub registration: Registration,
    /// Who is attached and lets nobody else in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<AttachedRecord>,
}

impl VolumeRecord {
    /// Of a volume that its first owner is about to make, in epoch 1.
    pub(crate) fn created(vpool: Name, vdisk: Name, by: Incarnation, config: Config) -> Self {
        let mut record = Self::new(vpool, vdisk, by.node.clone(), config);
        record.registration.claimed = Epoch(1);
        record.holder = Some(by);
        record
    }

    /// Of a volume that was found on the backend, up to `epoch`. If it was `owner`'s, what that one had accepted lies in
    /// `journal`.
    pub(crate) fn found(
        (vpool, vdisk): (Name, Name),
        epoch: Epoch,
        owner: Name,
        journal: WriteBuffer,
        config: Config,
    ) -> Self {
        let mut record = Self::new(vpool, vdisk, owner, config);
        record.registration.epoch = epoch;
        record.registration.claimed = epoch;
        record.registration.clean = false;
        record.journal = Some(journal);
        record
    }

    /// The router that has claimed it, or that owned it last.
    pub fn owner(&self) -> &Name {
        self.holder.as_ref().map_or(&self.registration.owner, |holder| &holder.node)
    }

    /// Of a volume whose first owner is `owner`; `config` is how its tail is to be replicated.
    pub(crate) fn new(vpool: Name, vdisk: Name, owner: Name, config: Config) -> Self {
        Self {
            v: Self::VERSION,
            vpool,
            vdisk,
            holder: None,
            moving_to: None,
            journal: None,
            registration: Registration::fresh(owner, config),
            attached: Vec::new(),
        }
    }
}

/// `node/{name}`: a storage router that lives. Bound to its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    pub(crate) v: u32,
    /// Its lease.
    pub lease: u64,
    /// Its data directory.
    pub device: VolumeId,
    /// Where it listens.
    pub addresses: Addresses,
    /// What it may fail with: its machine, rack, room.
    pub domains: Vec<String>,
    /// Domains where its volumes are to be recovered.
    pub recovery_domains: Vec<String>,
    /// It gives its volumes away and takes none.
    pub draining: bool,
}

/// Where a storage router listens, as others reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Addresses {
    /// The edge protocol, as clients write it: `HOST:PORT` or `unix:PATH`.
    pub edge: Vec<String>,
    /// The DTL service, `HOST:PORT`; none where it keeps nothing for others.
    pub dtl: Option<String>,
    /// The path of its unix socket, for routers on the same machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtl_unix: Option<String>,
    /// The API's URL.
    pub api: Option<String>,
}

impl NodeRecord {
    pub(crate) fn new(lease: u64, device: VolumeId, addresses: Addresses) -> Self {
        let (domains, recovery_domains) = Default::default();
        Self { v: Self::VERSION, lease, device, addresses, domains, recovery_domains, draining: false }
    }
}

/// `router/{name}`: a storage router that belongs here, whether it is there or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterRecord {
    pub(crate) v: u32,
    /// Its data directory: another one is another router.
    pub device: VolumeId,
    /// It is to give its volumes away and to take none.
    pub draining: bool,
}

impl RouterRecord {
    pub(crate) fn new(device: VolumeId) -> Self {
        Self { v: Self::VERSION, device, draining: false }
    }
}

impl Record for VolumeRecord {
    const VERSION: u32 = 1;
}

impl Record for NodeRecord {
    const VERSION: u32 = 1;
}

impl Record for RouterRecord {
    const VERSION: u32 = 1;
}
