//! The maps as the syncer sees them. The real ones are behind [`crate::datapath::Datapath`]; tests have their own.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::{Frontend, Run, Service};

use crate::model::{Family, Protocol};

/// A frontend as clients dial it: the key of the `frontends` maps. The address is unspecified for a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dialled {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

/// An endpoint id with its generation (see `proxy_common::abi::Backend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId {
    pub id: u32,
    pub generation: u16,
}

impl EndpointId {
    /// As an id is written that nobody holds any more.
    #[must_use]
    pub const fn gone(id: u32) -> Self {
        Self { id, generation: 0 }
    }
}

/// One endpoint in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub address: SocketAddr,
    pub endpoint: EndpointId,
}

/// One 64-bit store into a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    External(Run),
    Internal(Run),
    Cluster(Run),
    Settings { flags: u32, affinity_timeout: u32 },
}

impl Word {
    /// What the store makes of `service`.
    pub const fn put(self, service: &mut Service) {
        match self {
            Self::External(run) => service.external = run,
            Self::Internal(run) => service.internal = run,
            Self::Cluster(run) => service.cluster = run,
            Self::Settings { flags, affinity_timeout } => {
                (service.flags, service.affinity_timeout) = (flags, affinity_timeout);
            }
        }
    }
}

/// Map writes of one kind. The syncer orders them so that the maps are whole after each of them (L-01).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds chunks with these numbers to the slots, in order. All at once: the kernel waits for every reader after each
    /// write to a map of maps (E15), some 10 ms.
    Chunks(Family, Vec<u32>),
    /// Makes room for affinity records, if there is none. Waits for readers, as chunks do, the first time.
    Affinity(Family),
    /// Generations of endpoint ids; see [`EndpointId::gone`].
    Endpoints(Vec<EndpointId>),
    /// Slots from an offset on.
    Slots(Family, Vec<(u32, Slot)>),
    /// Stores in this order.
    Services(Vec<(u32, Word)>),
    /// Sources that may dial a service.
    Ranges(Vec<(u32, IpNet)>),
    RemoveRanges(Vec<(u32, IpNet)>),
    Frontends(Vec<(Dialled, Frontend)>),
    RemoveFrontends(Vec<Dialled>),
    /// Class bits of addresses.
    Addresses(Vec<(IpAddr, u32)>),
    RemoveAddresses(Vec<IpAddr>),
}

impl Step {
    /// What is written, for messages.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Chunks(..) => "chunks of slots",
            Self::Affinity(_) => "room for affinity records",
            Self::Endpoints(_) => "endpoints",
            Self::Slots(..) => "slots",
            Self::Services(_) => "services",
            Self::Ranges(_) => "source ranges",
            Self::RemoveRanges(_) => "source ranges to remove",
            Self::Frontends(_) => "frontends",
            Self::RemoveFrontends(_) => "frontends to remove",
            Self::Addresses(_) => "addresses",
            Self::RemoveAddresses(_) => "addresses to remove",
        }
    }
}

/// How much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub services: u32,
    /// Services that there is an element for.
    pub services_there: u32,
    pub endpoints: u32,
    /// Endpoints, likewise.
    pub endpoints_there: u32,
    /// Of each family.
    pub frontends: u32,
    /// Of each family.
    pub addresses: u32,
    /// Of each family.
    pub slots: u32,
    /// Of each family.
    pub ranges: u32,
}

/// Reads and writes of the maps.
pub trait Store {
    type Error: std::error::Error + Send + Sync + 'static;

    fn capacity(&self) -> Capacity;

    /// Every frontend.
    ///
    /// # Errors
    /// If the maps cannot be read; so for all reads.
    fn frontends(&self) -> Result<Vec<(Dialled, Frontend)>, Self::Error>;

    /// Every service in use, with its index.
    ///
    /// # Errors
    /// See [`Store::frontends`].
    fn services(&self) -> Result<Vec<(u32, Service)>, Self::Error>;

    /// Every slot of the chunks there are, by position.
    ///
    /// # Errors
    /// See [`Store::frontends`].
    fn slots(&self, family: Family) -> Result<Vec<Slot>, Self::Error>;

    /// Every endpoint id that is not gone.
    ///
    /// # Errors
    /// See [`Store::frontends`].
    fn endpoints(&self) -> Result<Vec<EndpointId>, Self::Error>;

    /// Every source range, with the index of its service.
    ///
    /// # Errors
    /// See [`Store::frontends`].
    fn ranges(&self) -> Result<Vec<(u32, IpNet)>, Self::Error>;

    /// Every classified address.
    ///
    /// # Errors
    /// See [`Store::frontends`].
    fn addresses(&self) -> Result<Vec<(IpAddr, u32)>, Self::Error>;

    /// Does one step.
    ///
    /// # Errors
    /// If a write failed; any part of the step may have been done.
    fn write(&mut self, step: &Step) -> Result<(), Self::Error>;
}
