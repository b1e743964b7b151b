//! The syncer: remembers what is installed, applies changes, and recovers from failed writes.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;

use super::PerFamily;
use super::change::{Batch, Lack, Room};
use super::classes::Classes;
use super::ids::{Generations, Ids};
use super::port::{self, InstalledPort, Port};
use super::store::{Dialled, EndpointId, Step, Store};
use super::strays::{free_runs, stray};
use crate::model::{Family, PortChange, PortId, PortState, Protocol};

/// How a syncer works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long runs and ids rest before they are used again: far longer than a program runs.
    pub grace: Duration,
    /// Where generations of endpoint ids start whose history is not known; draw it anew at each start.
    pub first_generation: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(3), first_generation: 1 }
    }
}

/// The node's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// All of them. Loopback addresses may be among them, and are not local to packets.
    pub local: HashSet<IpAddr>,
    /// Those that serve NodePorts (E1 … E6).
    pub node_port: HashSet<IpAddr>,
    /// Subnets of its links: who is there is its neighbour.
    pub links: Vec<IpNet>,
}

/// A port that waits for room. What was installed for it before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub id: PortId,
    pub why: Lack,
}

/// A step of writes that failed. No step after it was done; the maps are whole, and are read back and brought up to
/// date by a later call, once the grace period is over.
#[derive(Debug)]
pub struct Failed {
    pub what: &'static str,
    pub error: Box<dyn std::error::Error + Send + Sync>,
}

/// What a call did.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps written.
    pub steps: usize,
    /// Ports that this call tried and that do not fit. See [`Syncer::refused`] for all that wait.
    pub refused: Vec<Refused>,
    pub failed: Vec<Failed>,
    /// A write failed earlier, and the maps rest before they are read back: nothing was done, nothing is lost.
    pub rests: bool,
    /// Endpoints of a UDP port have gone: sockets may be connected to them (S-08).
    pub departed: bool,
    /// Frontends of UDP ports that have come: sockets may be connected to them already (P-54).
    pub arrived: Vec<Dialled>,
    /// Classes of addresses that were written, in order; 0: removed.
    pub addresses: Vec<(IpAddr, u32)>,
}

impl Report {
    /// Everything asked for is installed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refused.is_empty() && self.failed.is_empty() && !self.rests
    }
}

/// Keeps the maps in step. Time is given with each call, as any clock that does not jump.
#[derive(Debug)]
pub struct Syncer {
    settings: Settings,
    room: Room,
    /// Each in memory of its own: the table has room for twice as many at times.
    ports: HashMap<PortId, Box<Port>>,
    /// Found in the maps, and not claimed yet, by index.
    strays: BTreeMap<u32, Box<Port>>,
    /// Endpoint ids found in use that no run refers to: left by an agent that was killed.
    orphans: Vec<u32>,
    waiting: BTreeMap<PortId, (PortState, Lack)>,
    /// A write failed then: the maps are to be read again.
    stale: Option<Duration>,
    /// Changes that came since.
    queued: Vec<PortChange>,
    /// A complete list has been applied: what is not in it goes.
    complete: bool,
    node: Option<NodeAddresses>,
}

impl Syncer {
    /// Reads back what is installed. Changes nothing.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn adopt<S: Store>(store: &S, settings: Settings) -> Result<Self, S::Error> {
        let slots = PerFamily { v4: store.slots(Family::V4)?, v6: store.slots(Family::V6)? };
        let mut unheld: HashSet<EndpointId> = store.endpoints()?.into_iter().collect();
        let mut generations = Generations::new(settings.first_generation);
        unheld.iter().for_each(|live| generations.note(*live));
        let capacity = store.capacity();
        let endpoints = Ids::new(
            capacity.endpoints,
            capacity.endpoints_there,
            &unheld.iter().map(|live| live.id).collect(),
        );
        let mut classes = Classes::new(store.addresses()?);
        let mut owners = HashMap::new();
        let mut owned = PerFamily::<u32>::default();
        let (services, stray_ranges) = port::read(store, &slots)?;
        // All ports before anything that was read goes: what stays would lie scattered over the memory of what does not.
        let strays: BTreeMap<u32, Box<Port>> =
            services.iter().map(|found| (found.index, stray(found, &mut unheld).into())).collect();
        drop(services);
        for port in strays.values() {
            for (dialled, &kind) in port.frontends.iter() {
                owners.insert(*dialled, port.index);
                owned[Family::of(&dialled.address)] += 1;
                classes.add_frontend(dialled, kind);
            }
            port.endpoints.keys().for_each(|address| classes.add_endpoint(SocketAddr::from(*address).ip()));
        }
        let mut ranged = PerFamily::<usize>::default();
        let of_ports = strays.values().map(|port| &port.ranges);
        for range in of_ports.chain(stray_ranges.values()).flatten() {
            ranged[Family::of(&range.addr())] += 1;
        }
        let runs = free_runs(capacity.slots, &slots, &strays);
        let room = Room {
            capacity,
            services: Ids::new(capacity.services, capacity.services_there, &strays.keys().copied().collect()),
            endpoints,
            generations,
            runs,
            classes,
            owners,
            owned,
            ranged,
            stray_ranges,
            epoch: settings.first_generation,
        };
        let mut orphans: Vec<u32> = unheld.into_iter().map(|endpoint| endpoint.id).collect();
        orphans.sort_unstable();
        Ok(Self {
            settings,
            room,
            ports: HashMap::new(),
            strays,
            orphans,
            waiting: BTreeMap::new(),
            stale: None,
            queued: Vec::new(),
            complete: false,
            node: None,
        })
    }

    /// Installs changes. A port found in the maps is claimed by the first change that has one of its frontends.
    pub fn apply<S: Store>(&mut self, store: &mut S, changes: Vec<PortChange>, now: Duration) -> Report {
        let mut report = Report::default();
        if !self.recover(store, now, &mut report) {
            self.queued.extend(changes);
            return report;
        }
        let mut freed = self.reclaim(now);
        let mut batch = Batch::default();
        self.change_all(latest(changes), now, &mut batch, &mut report);
        freed |= batch.frees();
        self.commit(store, batch, now, &mut report);
        if freed {
            self.retry(store, now, &mut report);
        }
        report
    }

    /// Installs a complete list: ports and everything else in the maps that are not in it are removed.
    pub fn replace_all<S: Store>(
        &mut self,
        store: &mut S,
        desired: Vec<(PortId, PortState)>,
        now: Duration,
    ) -> Report {
        let wanted: HashSet<&PortId> = desired.iter().map(|(id, _)| id).collect();
        let mut gone: Vec<PortId> =
            self.ports.keys().chain(self.waiting.keys()).filter(|id| !wanted.contains(id)).cloned().collect();
        gone.sort();
        gone.dedup();
        self.complete = true;
        self.queued.clear();
        let mut changes: Vec<PortChange> = gone.into_iter().map(|id| (id, None)).collect();
        changes.extend(desired.into_iter().map(|(id, state)| (id, Some(state))));
        let mut report = self.apply(store, changes, now);
        if self.stale.is_none() {
            let mut batch = Batch::default();
            let until = now + self.settings.grace;
            for port in std::mem::take(&mut self.strays).into_values() {
                self.room.remove(*port, until, &mut batch);
            }
            for id in &self.orphans {
                self.room.endpoints.retire(*id, until);
            }
            batch.bury(std::mem::take(&mut self.orphans));
            self.room.bury_ranges(&mut batch);
            self.room.classes.review();
            self.commit(store, batch, now, &mut report);
            self.retry(store, now, &mut report);
        }
        report
    }

    /// Sets the node's own addresses.
    pub fn set_node<S: Store>(&mut self, store: &mut S, node: NodeAddresses, now: Duration) -> Report {
        let mut report = Report::default();
        let node = self.node.insert(node).clone();
        if self.recover(store, now, &mut report) {
            self.room.classes.set_node(&node);
            self.commit(store, Batch::default(), now, &mut report);
        }
        report
    }

    /// To be called about once a second: reuses what has rested, gives room to what waits, recovers.
    pub fn tick<S: Store>(&mut self, store: &mut S, now: Duration) -> Report {
        self.apply(store, Vec::new(), now)
    }

    /// Every port that waits for room, in order.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.waiting.iter().map(|(id, (_, why))| Refused { id: id.clone(), why: *why }).collect()
    }

    /// Whether a failed write has not been made good yet.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.stale.is_some()
    }

    /// Number of ports installed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Whether any address is dialled over SCTP.
    #[must_use]
    pub const fn has_sctp(&self) -> bool {
        self.room.classes.have_sctp()
    }

    /// Flags of all ports of a family.
    pub fn flags(&self, family: Family) -> impl Iterator<Item = u32> {
        self.ports.values().filter(move |port| port.family == family).map(|port| port.flags)
    }

    /// The ports by the index of their service; for events and flows.
    #[must_use]
    pub fn names(&self) -> HashMap<u32, &PortId> {
        self.ports.iter().map(|(id, port)| (port.index, id)).collect()
    }

    /// What is installed, read back from the maps, in a stable order.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn installed<S: Store>(&self, store: &S) -> Result<Vec<InstalledPort>, S::Error> {
        let slots = PerFamily { v4: store.slots(Family::V4)?, v6: store.slots(Family::V6)? };
        let names = self.names();
        let (services, _) = port::read(store, &slots)?;
        let mut installed: Vec<_> = services
            .iter()
            .map(|found| InstalledPort::new(names.get(&found.index).map(|id| (*id).clone()), found))
            .collect();
        installed.sort();
        Ok(installed)
    }

    fn reclaim(&mut self, now: Duration) -> bool {
        let room = &mut self.room;
        let services = room.services.reclaim(now);
        let endpoints = room.endpoints.reclaim(now);
        let v4 = room.runs.v4.reclaim(now);
        let v6 = room.runs.v6.reclaim(now);
        services | endpoints | v4 | v6
    }

    /// A Service that is not installed yet comes with all of its ports or with none (C-32). One that is keeps what it has, and
    /// a port that it is given waits alone.
    fn change_all(
        &mut self,
        changes: Vec<PortChange>,
        now: Duration,
        batch: &mut Batch,
        report: &mut Report,
    ) {
        let mut changes = by_service(changes).into_iter().peekable();
        while let Some((place, first)) = changes.next() {
            let mut service = vec![first];
            while let Some((_, next)) = changes.next_if(|(next, _)| *next == place) {
                service.push(next);
            }
            let news: Vec<_> = service
                .iter()
                .filter_map(|(id, want)| Some((id, want.as_ref()?)))
                .filter(|(id, want)| !self.ports.contains_key(*id) && self.stray_of(id, want).is_none())
                .collect();
            let lack = if news.len() > 1 { self.room.lacks(&news, batch) } else { None };
            let refused: HashSet<PortId> = match lack {
                Some(_) => news.iter().map(|(id, _)| (*id).clone()).collect(),
                None => HashSet::new(),
            };
            for (id, want) in service {
                match (lack, want) {
                    (Some(why), Some(want)) if refused.contains(&id) => self.refuse(id, want, why, report),
                    (_, want) => self.change(id, want, now, batch, report),
                }
            }
        }
    }

    fn refuse(&mut self, id: PortId, want: PortState, why: Lack, report: &mut Report) {
        report.refused.push(Refused { id: id.clone(), why });
        self.waiting.insert(id, (want, why));
    }

    fn change(
        &mut self,
        id: PortId,
        want: Option<PortState>,
        now: Duration,
        batch: &mut Batch,
        report: &mut Report,
    ) {
        let until = now + self.settings.grace;
        self.waiting.remove(&id);
        let mut port = self.ports.remove(&id).or_else(|| self.claim(&id, want.as_ref()?));
        let Some(want) = want else {
            if let Some(port) = port {
                self.room.remove(*port, until, batch);
            }
            return;
        };
        let refused = self.room.upsert(&id, &mut port, &want, until, batch).err();
        if let Some(port) = port {
            self.ports.insert(id.clone(), port);
        }
        if let Some(why) = refused {
            self.refuse(id, want, why, report);
        }
    }

    /// The port found in the maps that has one of these frontends.
    fn claim(&mut self, id: &PortId, want: &PortState) -> Option<Box<Port>> {
        self.strays.remove(&self.stray_of(id, want)?)
    }

    fn stray_of(&self, id: &PortId, want: &PortState) -> Option<u32> {
        if self.strays.is_empty() {
            return None;
        }
        let owner = |frontend: &crate::model::PortFrontend| {
            let (address, port) = (frontend.address, frontend.port);
            self.room.owners.get(&Dialled { address, port, protocol: id.protocol }).copied()
        };
        let is_free = |index: &u32| self.room.services.has(*index) && self.strays.contains_key(index);
        want.frontends.iter().filter_map(owner).find(is_free)
    }

    /// Another try for ports that wait, now that something has gone.
    fn retry<S: Store>(&mut self, store: &mut S, now: Duration, report: &mut Report) {
        if self.waiting.is_empty() || self.stale.is_some() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        report.refused.retain(|refused| !waiting.contains_key(&refused.id));
        let mut batch = Batch::default();
        let again = waiting.into_iter().map(|(id, (want, _))| (id, Some(want))).collect();
        self.change_all(again, now, &mut batch, report);
        self.commit(store, batch, now, report);
    }

    fn commit<S: Store>(&mut self, store: &mut S, batch: Batch, now: Duration, report: &mut Report) {
        report.departed |= batch.departs();
        for step in batch.steps(self.room.classes.flush()) {
            if let Err(error) = store.write(&step) {
                report.failed.push(Failed { what: step.what(), error: error.into() });
                self.stale = Some(now);
                return;
            }
            report.steps += 1;
            match step {
                Step::Addresses(list) => report.addresses.extend(list),
                Step::Frontends(list) => {
                    let dialled = list.into_iter().map(|(dialled, _)| dialled);
                    report.arrived.extend(dialled.filter(|dialled| dialled.protocol == Protocol::Udp));
                }
                Step::RemoveAddresses(list) => report.addresses.extend(list.into_iter().map(|ip| (ip, 0))),
                _ => {}
            }
        }
    }

    /// After a failed write: reads the maps again, and installs what is wanted. Whether the state can be built upon.
    fn recover<S: Store>(&mut self, store: &mut S, now: Duration, report: &mut Report) -> bool {
        let Some(since) = self.stale else { return true };
        // What was freed just before may still be read, and is forgotten by reading back.
        if now < since + self.settings.grace {
            report.rests = true;
            return false;
        }
        let mut again = match Self::adopt(store, self.settings) {
            Ok(again) => again,
            Err(error) => {
                report.failed.push(Failed { what: "maps to read back", error: error.into() });
                return false;
            }
        };
        let mut desired: BTreeMap<PortId, PortState> =
            self.ports.drain().map(|(id, port)| (id, port.state())).collect();
        desired.extend(std::mem::take(&mut self.waiting).into_iter().map(|(id, (state, _))| (id, state)));
        let mut removed = Vec::new();
        for (id, want) in self.queued.drain(..) {
            match want {
                Some(want) => {
                    desired.insert(id, want);
                }
                None => {
                    desired.remove(&id);
                    removed.push((id, None));
                }
            }
        }
        if let Some(node) = self.node.take() {
            again.room.classes.set_node(&node);
            again.node = Some(node);
        }
        let desired: Vec<_> = desired.into_iter().collect();
        let outcome = if self.complete {
            again.replace_all(store, desired, now)
        } else {
            let changes = desired.into_iter().map(|(id, state)| (id, Some(state))).chain(removed).collect();
            again.apply(store, changes, now)
        };
        report.steps += outcome.steps;
        report.refused.extend(outcome.refused);
        report.failed.extend(outcome.failed);
        report.departed |= outcome.departed;
        report.arrived.extend(outcome.arrived);
        report.addresses.extend(outcome.addresses);
        *self = again;
        self.stale.is_none()
    }
}

/// Changes with the place of their Service, in the order of places: that of each Service's first change.
fn by_service(changes: Vec<PortChange>) -> Vec<(usize, PortChange)> {
    let mut places = HashMap::new();
    let mut placed: Vec<(usize, PortChange)> = Vec::with_capacity(changes.len());
    for change in changes {
        let name = (change.0.namespace.clone(), change.0.service.clone());
        let next = places.len();
        placed.push((*places.entry(name).or_insert(next), change));
    }
    placed.sort_by_key(|(place, _)| *place);
    placed
}

/// The last change of each port, in order.
fn latest(changes: Vec<PortChange>) -> Vec<PortChange> {
    let mut seen = HashSet::new();
    let mut kept: Vec<PortChange> =
        changes.into_iter().rev().filter(|(id, _)| seen.insert(id.clone())).collect();
    kept.reverse();
    kept
}
