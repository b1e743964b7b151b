//! One installed port: as it is remembered, and as it is read back from the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::{CHUNK, FrontendKind, Run, Service, service_flags};

use super::PerFamily;
use super::store::{Dialled, EndpointId, Slot, Store, Word};
use crate::model::{Family, PortFrontend, PortId, PortState, Protocol};
use crate::sorted::Sorted;

/// The words of a service's lists, in the order in which everything here has the lists.
pub const WORDS: [fn(Run) -> Word; 3] = [Word::External, Word::Internal, Word::Cluster];

/// [`PortState::kept`], among a member's lists.
const KEPT: usize = WORDS.len();

/// Flags that come from the plan.
pub const SETTINGS: u32 = ((1 << service_flags::EPOCH_SHIFT) - 1) & !service_flags::IN_USE;

/// Where an endpoint list lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    pub run: Run,
    /// What lies there are the endpoints that say so, in order. Otherwise it is written anew.
    pub sound: bool,
}

/// An endpoint of a port, in 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    id: u32,
    generation: u16,
    /// The lists that it is in, a bit each; [`KEPT`] is one that has no slots.
    pub lists: u8,
}

impl Member {
    /// In none of the lists yet.
    pub const fn new(EndpointId { id, generation }: EndpointId) -> Self {
        Self { id, generation, lists: 0 }
    }

    pub const fn endpoint(self) -> EndpointId {
        EndpointId { id: self.id, generation: self.generation }
    }

    pub const fn is_in(self, list: usize) -> bool {
        self.lists & 1 << list != 0
    }
}

/// An endpoint's address and port, in 20 bytes where a [`SocketAddr`] has 32, and in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Compact {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Compact {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip(), port: address.port() }
    }
}

impl From<Compact> for SocketAddr {
    fn from(Compact { ip, port }: Compact) -> Self {
        Self::new(ip, port)
    }
}

/// What is installed for one port.
#[derive(Clone, Debug)]
pub struct Port {
    pub index: u32,
    pub family: Family,
    /// With the kind's number.
    pub frontends: Sorted<Dialled, u32>,
    /// In the order of [`WORDS`].
    pub lists: [List; 3],
    pub ranges: BTreeSet<IpNet>,
    /// Bits of `service_flags`.
    pub flags: u32,
    pub affinity_timeout: u32,
    pub endpoints: Sorted<Compact, Member>,
}

impl Port {
    /// The state that this port was made from.
    pub fn state(&self) -> PortState {
        let frontend = |(dialled, kind): (&Dialled, &u32)| {
            let kind = kind_of(*kind)?;
            Some(PortFrontend { kind, address: dialled.address, port: dialled.port })
        };
        let mut frontends: Vec<_> = self.frontends.iter().filter_map(frontend).collect();
        frontends.sort();
        let [external, internal, cluster] = [0, 1, 2].map(|list| self.members(list).collect());
        let kept = self.endpoints.iter().filter(|(_, member)| member.is_in(KEPT));
        PortState {
            frontends,
            external,
            internal,
            cluster,
            kept: kept.map(|(address, _)| (*address).into()).collect(),
            ranges: self.ranges.iter().copied().collect(),
            flags: self.flags & SETTINGS,
            affinity_timeout: self.affinity_timeout,
        }
    }

    /// The endpoints of one list, as far as it is sound.
    fn members(&self, list: usize) -> impl Iterator<Item = SocketAddr> {
        let sound = self.lists.get(list).is_some_and(|list| list.sound);
        let listed = self.endpoints.iter().filter(move |(_, member)| sound && member.is_in(list));
        listed.map(|(address, _)| (*address).into())
    }

    /// Whether a list is sound and has these members.
    pub fn lists(&self, list: usize, want: &[SocketAddr]) -> bool {
        self.lists.get(list).is_some_and(|list| list.sound) && self.members(list).eq(want.iter().copied())
    }

    /// Takes over lists that lie at `runs`, and gives back the endpoints that are in none any more. Every endpoint in them
    /// is among the port's; of those that are kept, only the ones that flows may lead to.
    pub fn set_lists(&mut self, runs: [Run; 3], want: &PortState) -> Vec<(Compact, Member)> {
        self.lists = runs.map(|run| List { run, sound: true });
        let [external, internal, cluster] = want.lists();
        let mut want = [external, internal, cluster, &want.kept]
            .map(|list| list.iter().copied().map(Compact::from).peekable());
        for (address, member) in self.endpoints.iter_mut() {
            member.lists = 0;
            for (bit, list) in (0..).zip(&mut want) {
                // Both are sorted.
                while list.next_if(|next| next < address).is_some() {}
                member.lists |= u8::from(list.next_if_eq(address).is_some()) << bit;
            }
        }
        self.endpoints.extract(|_, member| member.lists == 0)
    }

    pub fn is_udp(&self) -> bool {
        self.frontends.keys().any(|dialled| dialled.protocol == Protocol::Udp)
    }

    /// Its runs, each once.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<_> = self.lists.iter().map(|list| list.run).collect();
        runs.sort_unstable();
        runs.dedup();
        runs
    }
}

fn kind_of(number: u32) -> Option<FrontendKind> {
    proxy_common::abi::Frontend { service: 0, kind: number }.kind()
}

/// A service with all that refers to it, as the maps have it.
pub struct Found {
    pub index: u32,
    pub service: Service,
    /// With the kind's number.
    pub frontends: Sorted<Dialled, u32>,
    pub ranges: BTreeSet<IpNet>,
    /// In the order of [`WORDS`]; `None`: the run lies outside the slots.
    pub lists: [Option<Vec<Slot>>; 3],
}

impl Found {
    /// That of the frontends. A service without frontends is unreachable, and its runs belong to nobody.
    pub fn family(&self) -> Option<Family> {
        self.frontends.keys().next().map(|dialled| Family::of(&dialled.address))
    }
}

/// Source ranges by index of their service.
pub type Ranges = HashMap<u32, BTreeSet<IpNet>>;

/// Reads every service and every index that a frontend names, in order of index; and source ranges that belong to none.
pub fn read<S: Store>(store: &S, slots: &PerFamily<Vec<Slot>>) -> Result<(Vec<Found>, Ranges), S::Error> {
    let mut services: BTreeMap<u32, (Service, BTreeMap<Dialled, u32>)> =
        store.services()?.into_iter().map(|(index, service)| (index, (service, BTreeMap::new()))).collect();
    for (dialled, frontend) in store.frontends()? {
        let entry = services.entry(frontend.service).or_insert((Service::FREE, BTreeMap::new()));
        entry.1.insert(dialled, frontend.kind);
    }
    let mut ranges = Ranges::new();
    for (index, range) in store.ranges()? {
        ranges.entry(index).or_default().insert(range);
    }
    let found = |(index, (service, frontends)): (u32, (Service, BTreeMap<Dialled, u32>))| {
        let mut found = Found {
            index,
            service,
            frontends: frontends.into_iter().collect(),
            ranges: ranges.remove(&index).unwrap_or_default(),
            lists: [None, None, None],
        };
        let all = found.family().map_or(&[][..], |family| &slots[family]);
        found.lists = runs_of(&service).map(|run| members(all, run));
        found
    };
    Ok((services.into_iter().map(found).collect(), ranges))
}

/// A service's runs in the order of [`WORDS`].
pub const fn runs_of(service: &Service) -> [Run; 3] {
    [service.external, service.internal, service.cluster]
}

fn members(slots: &[Slot], run: Run) -> Option<Vec<Slot>> {
    if run.count() == 0 {
        return Some(Vec::new());
    }
    let from = run.offset() as usize;
    let inside = run.count() <= CHUNK - run.offset() % CHUNK;
    slots.get(from..from + run.count() as usize).filter(|_| inside).map(<[Slot]>::to_vec)
}

/// A frontend as the maps have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstalledFrontend {
    /// `None`: a kind that this version does not write.
    pub kind: Option<FrontendKind>,
    /// Unspecified for a NodePort.
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

/// A port as the maps have it: two agents with the same input read the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstalledPort {
    /// `None`: found there, and not claimed by anything this agent knows.
    pub id: Option<PortId>,
    /// Sorted.
    pub frontends: Vec<InstalledFrontend>,
    /// Sorted.
    pub external: Vec<SocketAddr>,
    /// Sorted.
    pub internal: Vec<SocketAddr>,
    /// Sorted.
    pub cluster: Vec<SocketAddr>,
    pub ranges: Vec<IpNet>,
    /// Names of the bits of `service_flags`, without `IN_USE`.
    pub flags: Vec<&'static str>,
    /// Seconds; 0: none.
    pub affinity_timeout: u32,
}

impl InstalledPort {
    pub(super) fn new(id: Option<PortId>, found: &Found) -> Self {
        let mut frontends: Vec<_> = found
            .frontends
            .iter()
            .map(|(dialled, kind)| InstalledFrontend {
                kind: kind_of(*kind),
                address: dialled.address,
                port: dialled.port,
                protocol: dialled.protocol,
            })
            .collect();
        frontends.sort();
        let addresses = |slots: &Option<Vec<Slot>>| {
            let mut addresses: Vec<_> = slots.iter().flatten().map(|slot| slot.address).collect();
            addresses.sort();
            addresses
        };
        let names = [
            (service_flags::MASQUERADE_EXTERNAL, "masquerade-external"),
            (service_flags::DROP_EXTERNAL, "drop-external"),
            (service_flags::DROP_INTERNAL, "drop-internal"),
            (service_flags::LOCAL_EXTERNAL, "local-external"),
            (service_flags::SOURCE_RANGES, "source-ranges"),
            (service_flags::NODE_IN_RANGES, "node-in-ranges"),
        ];
        let [external, internal, cluster] = found.lists.each_ref().map(addresses);
        let set = |(bit, name): (u32, &'static str)| (found.service.flags & bit != 0).then_some(name);
        Self {
            id,
            frontends,
            external,
            internal,
            cluster,
            ranges: found.ranges.iter().copied().collect(),
            flags: names.into_iter().filter_map(set).collect(),
            affinity_timeout: found.service.affinity_timeout,
        }
    }
}
